"""The debug page, which shows what a server is doing, and its JSON form.

Its size is bounded: the 200 most called methods with shortened texts, 50 errors and 20 slow calls
are less than 1 MiB.
"""

from collections.abc import Generator, Iterable
from typing import Any

from rpc_proto.http.making import Pieces
from rpc_proto.version import __version__

from .html import Html, card, page, tag, tile

__all__ = ["MAX_METHODS", "as_page", "describe"]

MAX_METHODS = 200

_NAME = 120  # characters that are shown
_SIGNATURE = 160
_DOC = 240
_MESSAGE = 200

_ROWS_AT_ONCE = 20
_BUILT_IN = "rpc."
_NONE = "-"
_PARTS = ("queue", "handler", "send")
_SIZES = (
    *("high_water", "max_body", "max_decoded", "max_encoded", "max_header", "max_http_body"),
    "memory",
)


# What there is to show


def describe(
    snapshot: dict[str, Any], offered: dict[str, dict[str, dict[str, Any]]]
) -> dict[str, Any]:
    """Return what the page shows as JSON-able values; times in seconds, sizes in bytes.

    `snapshot` is that of a server, and `offered` the result of Introspection.services.
    """
    numbers = snapshot["methods"]
    names = [f"{service}.{name}" for service, listed in offered.items() for name in listed]
    others = sorted(numbers.keys() - set(names))
    names.sort(key=lambda name: -_calls(numbers.get(name)))
    shown = set(names[:MAX_METHODS])
    services = []
    for service, listed in sorted(offered.items(), key=lambda item: _order(item[0])):
        table = [
            {
                "name": _cut(name, _NAME),
                "signature": _cut(about["signature"], _SIGNATURE),
                "doc": _cut(about["doc"].strip().partition("\n\n")[0], _DOC),
                **_figures(numbers[f"{service}.{name}"]),
            }
            for name, about in sorted(listed.items())
            if f"{service}.{name}" in shown and f"{service}.{name}" in numbers
        ]
        if table:
            health = snapshot["health"].get(service, "not_serving")  # removed meanwhile
            services.append({"name": _cut(service, _NAME), "health": health, "methods": table})
    return {
        **{name: value for name, value in snapshot.items() if name != "methods"},
        "version": __version__,
        "health": snapshot["health"][""],
        "services": services,
        "others": [{"name": name, **_figures(numbers[name])} for name in others],
        "methods_left_out": len(names) - len(shown),
    }


def _calls(numbers: dict[str, Any] | None) -> int:
    return int(numbers["begun"] + numbers["refused"]) if numbers else 0


def _order(service: str) -> tuple[bool, str]:
    return service.startswith(_BUILT_IN), service


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def _figures(numbers: dict[str, Any]) -> dict[str, Any]:
    latency = {key: value for key, value in numbers["latency"].items() if key != "buckets"}
    return {**numbers, "latency": latency}


# As a page


def as_page(data: dict[str, Any]) -> Pieces:
    """Return it for people, piece by piece."""
    methods = yield from _methods(data)
    calls = data["calls"]
    rate = tag(
        "div",
        tag("svg", tag("polyline", points=""), viewBox="0 0 120 32", preserveAspectRatio="none"),
        tag("span", tag("b"), " calls/s"),
        id="rate",
        hidden="",
    )
    header = tag(
        "header",
        tag("h1", "rpc-proto"),
        rate,
        tag("p", "The server does not respond; the data below is old.", id="lost"),
    )
    main = tag(
        "main",
        _state(data),
        _tiles(data),
        tag("h2", "Methods"),
        card(methods),
        *_streams(data["streams"]),
        *_slowest(data["slowest"]),
        *_errors(data),
        tag("h2", "Limits"),
        card(_limits(data["limits"])),
        data_calls=calls["ended"] + calls["refused"],
        data_uptime=data["uptime"],
    )
    footer = tag(
        "footer",
        "Updates every 2 seconds. ",
        tag("a", "View as JSON", href="?format=json"),
        class_="soft small",
    )
    return page("rpc-proto", header, main, footer)


def _state(data: dict[str, Any]) -> Html:
    return tag(
        "p",
        _pill(data["health"]),
        f" version {data['version']}, up {_duration(data['uptime'])}",
        class_="soft",
    )


def _tiles(data: dict[str, Any]) -> Html:
    calls, load, connections = data["calls"], data["load"], data["connections"]
    errors = sum(calls["errors"].values())
    received, sent = connections["bytes_received"], connections["bytes_sent"]
    return tag(
        "dl",
        tile(
            "Calls",
            _count(calls["ended"] + calls["refused"]),
            f"{_count(calls['refused'])} refused",
        ),
        tile("In flight", _count(calls["in_flight"]), f"{_count(load['queued'])} of them queued"),
        tile("Errors", _count(errors), f"{_count(calls['deadline_overruns'])} past their deadline"),
        tile("Connections", _count(connections["open"]), f"{_count(connections['total'])} so far"),
        tile("Received", _bytes(received), f"{_bytes(sent)} sent"),
        tile("Abandoned", _count(load["abandoned"]), "still running"),
        class_="tiles",
    )


_COLUMNS = ("Calls", "In flight", "Errors", "p50", "p99")


def _methods(data: dict[str, Any]) -> Generator[None, None, Html]:
    heads = (tag("th", name, class_="number") for name in _COLUMNS)
    bodies = [tag("thead", tag("tr", tag("th"), *heads))]
    for service in data["services"]:
        title = (tag("b", service["name"]), " ", _pill(service["health"]))
        bodies.append((yield from _group(title, service["methods"])))
    if data["others"]:
        bodies.append((yield from _group((tag("b", "Other calls"),), data["others"])))
    if data["methods_left_out"]:
        text = f"{_count(data['methods_left_out'])} less frequently called methods are not shown."
        bodies.append((yield from _group((text,), [])))
    return tag("table", *bodies)


def _group(title: Iterable[Any], methods: list[dict[str, Any]]) -> Generator[None, None, Html]:
    head = tag("tr", tag("td", *title, colspan=1 + len(_COLUMNS), class_="wide"), class_="group")
    rows = []
    for count, method in enumerate(methods, 1):
        rows.append(_method(method))
        if count % _ROWS_AT_ONCE == 0:
            yield
    return tag("tbody", head, *rows)


def _method(method: dict[str, Any]) -> Html:
    errors, latency = sum(method["errors"].values()), method["latency"]
    values = (
        _count(method["ended"] + method["refused"]),
        _count(method["in_flight"]),
        _count(errors),
        _seconds(latency["p50"]),
        _seconds(latency["p99"]),
    )
    cells = []
    for name, value in zip(_COLUMNS, values, strict=True):
        kind = "soft" if value in ("0", _NONE) else "bad" if name == "Errors" else ""
        cells.append(tag("td", value, class_=f"number {kind}", data_name=name))
    what = [tag("code", tag("b", method["name"]), method.get("signature", ""))]
    if method.get("doc"):
        what.append(tag("div", method["doc"], class_="soft small"))
    return tag("tr", tag("td", *what, class_="wide"), *cells)


def _streams(streams: list[dict[str, Any]]) -> Iterable[Html]:
    if not streams:
        return
    yield tag("h2", "Running streams")
    heads = (tag("th", name, class_="number") for name in ("Running for", "Received", "Sent"))
    rows = [
        tag(
            "tr",
            tag(
                "td",
                tag("code", stream["method"]),
                tag("div", stream["peer"] or "unknown peer", class_="soft small"),
                class_="wide",
            ),
            tag("td", _duration(stream["age"]), class_="number"),
            tag("td", _count(stream["items_received"]), class_="number"),
            tag("td", _count(stream["items_sent"]), class_="number"),
        )
        for stream in streams
    ]
    head = tag("thead", tag("tr", tag("th"), *heads))
    yield card(tag("table", head, tag("tbody", *rows)), "long")


def _slowest(calls: list[dict[str, Any]]) -> Iterable[Html]:
    if not calls:
        return
    key = (Html(f"<i class={part}>■</i> {part} ") for part in _PARTS)
    yield tag("h2", "Slowest calls of the last minutes ", tag("span", *key, class_="soft key"))
    longest = max(sum(call[part] for part in _PARTS) for call in calls) or 1.0
    rows = []
    for call in calls:
        times = ", ".join(f"{part} {_seconds(call[part])}" for part in _PARTS)
        rows.append(
            tag(
                "tr",
                tag("td", tag("code", call["method"]), _peer(call), class_="wide"),
                tag("td", _seconds(call["latency"]), class_="number"),
                tag(
                    "td", _bar(call, longest), tag("div", times, class_="soft small"), class_="wide"
                ),
            )
        )
    yield card(tag("table", tag("tbody", *rows)), "long")


def _bar(call: dict[str, Any], longest: float) -> Html:
    """Return the parts of a call's time as a bar; that of the slowest call fills the row."""
    at = 0.0
    parts = []
    for part in _PARTS:
        width = 100 * call[part] / longest
        parts.append(tag("rect", x=f"{at:.2f}%", width=f"{width:.2f}%", height="100%", class_=part))
        at += width
    return tag("svg", *parts, class_="bar")


def _errors(data: dict[str, Any]) -> Iterable[Html]:
    by_code = sorted(data["calls"]["errors"].items(), key=lambda item: -item[1])
    if not by_code and not data["last_errors"]:
        return
    yield tag("h2", "Errors")
    codes = (
        Html(f"{tag('span', code, ' ', tag('b', _count(count)), class_='pill')} ")
        for code, count in by_code
    )
    yield tag("p", *codes)
    rows = []
    for error in data["last_errors"]:
        message = tag("div", _cut(error["message"], _MESSAGE), class_="small")
        rows.append(
            tag(
                "tr",
                tag(
                    "td",
                    tag("code", error["method"] or "(connection)"),
                    _peer(error),
                    class_="wide",
                ),
                tag("td", tag("span", error["code"], class_="bad"), message, class_="wide"),
            )
        )
    yield card(tag("table", tag("tbody", *rows)), "long")


def _peer(event: dict[str, Any]) -> Html:
    text = f"{_duration(event['age'])} ago, {event['peer'] or 'unknown peer'}"
    return tag("div", text, class_="soft small")


def _limits(limits: dict[str, Any]) -> Html:
    pairs = (
        tag("div", tag("dt", name, class_="code"), tag("dd", _limit(name, value), class_="number"))
        for name, value in limits.items()
    )
    return tag("dl", *pairs, class_="limits")


def _pill(health: str) -> Html:
    kind = "good" if health == "serving" else "bad"
    return tag("span", health.replace("_", " "), class_=f"pill {kind}")


# Numbers for people


def _count(number: int) -> str:
    return f"{number:,}"


def _bytes(number: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < 1024:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1024
    return f"{number:,.1f} TiB"


def _seconds(time: float | None) -> str:
    if time is None:
        return _NONE
    for unit, size in (("µs", 1e-6), ("ms", 1e-3), ("s", 1.0)):
        if time < size * (1000 if size < 1 else 100):
            value = time / size
            return (
                f"{value:.{0 if value >= 100 or unit == 'µs' else 1 if value >= 10 else 2}f} {unit}"
            )
    return _duration(time)


def _duration(time: float) -> str:
    minutes, seconds = divmod(int(time), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    parts = [
        f"{value} {unit}" for value, unit in ((days, "d"), (hours, "h"), (minutes, "min")) if value
    ]
    return " ".join([*parts, f"{seconds} s"][:2])


def _limit(name: str, value: Any) -> str:
    if value is None:
        return "none"
    if name in _SIZES:
        return _bytes(value)
    if name.endswith(("_timeout", "_interval")):
        return _seconds(value)
    return _count(value)
