"""Numbers for pages that no server counted, and what a browser would see in a page."""

from html.parser import HTMLParser
from typing import Any

from rpc_fuzz.registries import made
from rpc_proto.http import Pages, Request, Response, Router
from rpc_proto.pages.builtin import BuiltIn
from rpc_proto.service.stats import BOUNDS

PAYLOAD = "\"'><script>window.pwned=1</script><img src=x onerror=window.pwned=1>&lt;{{7*7}}"

# A script that returns what PAYLOAD did to a page.
HOSTILE = """
return { pwned: window.pwned ?? null, scripts: document.scripts.length,
  images: document.images.length, text: document.body.textContent };
"""

_VOID = ("img", "link", "meta")


def counts(begun: int = 0, **others: Any) -> dict[str, Any]:
    names = (
        "ended",
        "in_flight",
        "served",
        "late",
        "failed",
        "refused",
        "cancelled",
        "deadline_overruns",
        "items_received",
        "items_sent",
    )
    return {"begun": begun, **dict.fromkeys(names, 0), "errors": {}, **others}


def method(begun: int = 0, **others: Any) -> dict[str, Any]:
    latency = {
        "count": begun,
        "sum": begun * 0.003,
        "p50": 0.003 if begun else None,
        "p99": 0.2 if begun else None,
        "buckets": [[bound, begun if bound >= 0.005 else 0] for bound in BOUNDS],
    }
    return {**counts(begun, ended=begun, served=begun, **others), "latency": latency}


def numbers(methods: dict[str, Any] | None = None, **others: Any) -> dict[str, Any]:
    """A snapshot as a server gives it."""
    return {
        "time": 1.7e9,
        "uptime": 93784.0,
        "draining": False,
        "health": {"": "serving", "Arith": "serving"},
        "load": {"running": 5, "queued": 2, "abandoned": 3, "memory": 1000},
        "limits": {"max_body": 16 * 1024 * 1024, "idle_timeout": None, "max_calls": 1024},
        "calls": counts(12345, ended=12340, in_flight=5, errors={"not_found": 17}),
        "methods": methods if methods is not None else {"Arith.add": method(12345)},
        "connections": {
            "total": 40,
            "open": 4,
            "violations": 1,
            "refused_handshakes": 2,
            "bytes_received": 2048,
            "bytes_sent": 4096,
        },
        "last_errors": [],
        "slowest": [],
        "streams": [],
        **others,
    }


def offered(*names: str, signature: str = "()", doc: str = "") -> dict[str, dict[str, Any]]:
    """What Introspection.services would return."""
    services: dict[str, dict[str, Any]] = {}
    for name in names:
        service, _, short = name.rpartition(".")
        services.setdefault(service, {})[short] = {"signature": signature, "doc": doc}
    return services


def ask(target: str, snapshot: dict[str, Any], services: Any = None, **fields: str) -> Response:
    """Let the pages answer a request that may see all of them; HttpError if they refuse."""
    router = Router()
    pages = BuiltIn(lambda: snapshot, lambda: services or {}, lambda name: "serving")
    pages.add_to(router, Pages(debug="open"))
    response = made(router(Request("GET", target, fields), 0.0))
    assert isinstance(response, Response)
    return response


class Seen(HTMLParser):
    """The elements and the text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.inside: dict[str, str] = {}
        self._open: list[str] = []
        self.feed(page)
        self.close()
        assert self._open == [], "elements that do not end"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in _VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] in ("script", "style"):
            self.inside[self._open[-1]] = data
        else:
            self.text += data + "\n"
