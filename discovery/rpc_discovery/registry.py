"""The registry: an HTTP application that keeps the list of nodes (docs/discovery.md)."""

from collections import deque
from functools import partial
from heapq import heapify, heappop, heappush
from math import ceil, inf
from typing import Any

from rpc_proto import parse_address
from rpc_proto.http import HttpError, Promise, Request, Response, Router
from rpc_proto.http.making import Making, Shared
from rpc_proto.pages.access import check_access, check_writer

from .documents import (
    LONGEST_TTL,
    LONGEST_WAIT,
    MAX_ANSWER,
    SHORTEST_TTL,
    USUAL_TTL,
    describe_node,
    encode,
    is_epoch,
    parse_json,
    parse_node,
)
from .nodes import MOST_NODES, Node

__all__ = ["Registry"]

MAX_BODY = 64 * 1024  # bytes of a registration

_TICK = 0.25  # seconds by which an expiry may be late, and between two waves of answers
_MOST_CHANGES = 1000  # that can be reported without a full listing
_KEPT_ANSWERS = 8 * MAX_ANSWER  # bytes of cached answers
_REMEMBERED = 600.0  # seconds for which a removed node is remembered, to detect flapping
_FRAME = 200  # bytes of a listing without its nodes


class Entry:
    """A registered node. Times in seconds."""

    __slots__ = ("expires_at", "flaps", "looked_at", "node", "renewed_at", "text", "ttl")

    def __init__(self, node: Node, text: bytes, ttl: float, now: float, flaps: int) -> None:
        self.node = node
        self.text = text  # as it appears in listings
        self.ttl = ttl
        self.renewed_at = now
        self.expires_at = now + ttl
        self.flaps = flaps  # how many times it disappeared and came back
        self.looked_at = inf  # when the timer will check whether it has expired


class Registry:
    """Keeps nodes for as long as they renew their registrations, and lists them to readers.

    `registry(request, now)` is an application as described in rpc_proto.http, for all paths at and
    below `prefix`; `mount` adds them to a server's router. Call `handle_timeout(now)` at
    `next_timeout()`, which changes with every request.

    `epoch` distinguishes the lives of a registry, because revisions restart: 1 to 64 letters and
    digits that were never used before, from a source of randomness. `token` is required of writers,
    and with `protect_reads` also of readers. A listing never exceeds `max_answer` bytes: a node
    that would make it longer, or exceed `max_nodes`, is refused.

    Memory: about 2 KiB plus the description for each node, the same for each waiting reader, 8 MiB
    of cached answers, and the names of at most `max_nodes` removed nodes.
    """

    def __init__(
        self,
        epoch: str,
        *,
        prefix: str = "/registry",
        token: str | None = None,
        protect_reads: bool = False,
        max_nodes: int = MOST_NODES,
        max_waiting: int = 2000,
        max_answer: int = MAX_ANSWER,
    ) -> None:
        if not is_epoch(epoch):
            raise ValueError(f"epoch must be 1 to 64 letters and digits, not {epoch[:80]!r}")
        if not prefix.startswith("/") or prefix.endswith("/"):
            raise ValueError(f"prefix must begin with / and not end with it, not {prefix!r}")
        if token == "" or (protect_reads and token is None):
            raise ValueError("protect_reads needs a token that is not empty")
        self.epoch = epoch
        self.prefix = prefix
        self.revision = 0
        self.entries: dict[str, Entry] = {}
        self._token = token
        self._protect_reads = protect_reads
        self._max_nodes = max_nodes
        self._max_waiting = max_waiting
        self._max_answer = max_answer
        self._size = _FRAME  # bytes of the listing of all
        self._expiries: list[tuple[float, str]] = []  # a heap; only a node's last entry counts
        self._departed: dict[str, tuple[float, int]] = {}  # when, and how many flaps
        self._changed: deque[str] = deque(maxlen=_MOST_CHANGES)  # one address for each revision
        self._answers: dict[tuple[str | None, int | None], Response] = {}  # of this revision
        self._answers_size = 0
        self._receipts: dict[int, Response] = {}  # of this revision, by status
        self._waiting: dict[int, tuple[Promise, str | None, int | None, int | None]] = {}
        self._serial = 0
        self._shared = Shared()
        self._touched: set[str] = set()  # services whose nodes changed since the last wave
        self._told = 0  # the revision of the last wave of answers
        self._told_at = -inf
        self._tell_at: float | None = None
        self._router = Router()
        self._router.add(prefix, self._show)
        self._router.add(f"{prefix}/nodes", self._list)
        self._router.add(f"{prefix}/nodes", self._register, ["POST"])
        self._router.add(f"{prefix}/nodes", self._remove, ["DELETE"])
        self._router.add(f"{prefix}/status", self._report)

    # The application

    def __call__(self, request: Request, now: float) -> Response | Promise | Making:
        """Answer a request; HttpError for one that is refused."""
        self.handle_timeout(now)
        return self._router(request, now)

    def mount(self, router: Router) -> None:
        """Add the registry's paths to a server's router."""
        router.add(self.prefix, self)
        for path in ("nodes", "status"):
            methods = ("GET", "POST", "DELETE") if path == "nodes" else ("GET",)
            router.add(f"{self.prefix}/{path}", self, methods)

    # Time

    def next_timeout(self) -> float | None:
        """Return when to call `handle_timeout`, in absolute seconds; None for never."""
        due = [self._expiries[0][0]] if self._expiries else []
        if self._tell_at is not None:
            due.append(self._tell_at)
        return min(due, default=None)

    def handle_timeout(self, now: float) -> None:
        """Remove expired nodes, and answer the readers that wait for changes."""
        expiries = self._expiries
        while expiries and expiries[0][0] <= now:
            at, address = heappop(expiries)
            entry = self.entries.get(address)
            if entry is None or entry.looked_at != at:
                continue
            if entry.expires_at <= now:
                self._depart(address, now)
            else:
                self._look_later(entry)
        if self._tell_at is not None and self._tell_at <= now:
            self._tell(now)

    def _look_later(self, entry: Entry) -> None:
        """Check this entry when it expires; a renewal changes that time, not the heap."""
        entry.looked_at = ceil(entry.expires_at / _TICK) * _TICK
        heappush(self._expiries, (entry.looked_at, entry.node.address))
        if len(self._expiries) > 2 * len(self.entries) + 64:
            self._expiries = [(e.looked_at, a) for a, e in self.entries.items()]
            heapify(self._expiries)

    # Writing

    def _register(self, request: Request, now: float) -> Response:
        self._authorise(request, writing=True)
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":  # which a foreign web page cannot send without a preflight
            raise HttpError(415, f"Content-Type must be application/json, not {kind[:80]!r}")
        if len(request.body) > MAX_BODY:
            raise HttpError(413, f"a registration may have at most {MAX_BODY} bytes")
        try:
            value = parse_json(request.body)
            node = parse_node(value)
            ttl = _check_ttl(value.get("ttl", USUAL_TTL))
        except ValueError as error:
            raise HttpError(400, str(error)) from None
        known = self.entries.get(node.address)
        if known is not None and known.node == node:
            known.ttl, known.renewed_at, known.expires_at = ttl, now, now + ttl
            if known.expires_at < known.looked_at - _TICK:  # a shorter ttl than before
                self._look_later(known)
            return self._receipt(200)
        self._admit(node, ttl, now)
        return self._receipt(201 if known is None else 200)

    def _admit(self, node: Node, ttl: float, now: float, flaps: int = 0) -> None:
        """Add a node, or change its description; HttpError if there is no room for it."""
        address = node.address
        known = self.entries.get(address)
        if known is None and len(self.entries) >= self._max_nodes:
            raise HttpError(507, f"the registry is full: the limit is {self._max_nodes} nodes")
        text = encode(describe_node(node))
        size = self._size + len(text) + 1 - (len(known.text) + 1 if known else 0)
        if size > self._max_answer:
            raise HttpError(
                507,
                f"the description has {len(text)} bytes, and with it the listing would have "
                f"{size}; the limit is {self._max_answer}",
            )
        if known is not None:
            flaps = known.flaps
            self._touched.update(known.node.services)
        elif address in self._departed:
            flaps = self._departed.pop(address)[1] + 1
        self._size = size
        entry = self.entries[address] = Entry(node, text, ttl, now, flaps)
        self._look_later(entry)
        self._change(node, now)

    def _remove(self, request: Request, now: float) -> Response:
        self._authorise(request, writing=True)
        try:
            address = str(parse_address(request.query.get("address", "")))
        except ValueError as error:
            raise HttpError(400, f"?address=: {error}") from None
        if address not in self.entries:
            raise HttpError(404, f"{address} is not registered")
        self._depart(address, now)
        return Response(204)

    def _depart(self, address: str, now: float) -> None:
        entry = self.entries.pop(address)
        self._size -= len(entry.text) + 1
        departed = self._departed
        departed[address] = (now, entry.flaps)
        while len(departed) > self._max_nodes or departed[next(iter(departed))][0] < (
            now - _REMEMBERED
        ):
            del departed[next(iter(departed))]
        self._change(entry.node, now)

    def _change(self, node: Node, now: float) -> None:
        """Start a new revision; waiting readers get the first change at once, then in waves."""
        self.revision += 1
        self._changed.append(node.address)
        self._touched.update(node.services)
        self._answers.clear()
        self._answers_size = 0
        self._receipts.clear()
        if now - self._told_at >= _TICK:
            self._tell(now)
        else:
            self._tell_at = self._told_at + _TICK

    def _receipt(self, status: int) -> Response:
        receipt = self._receipts.get(status)
        if receipt is None:
            told = {"epoch": self.epoch, "revision": self.revision}
            receipt = self._receipts[status] = Response.json(told, status)
        return receipt

    # Reading

    def _list(self, request: Request, now: float) -> Response | Promise:
        self._authorise(request)
        query = request.query
        service = query.get("service")
        wait = _read_number("wait", query.get("wait", "0"), LONGEST_WAIT)
        revision = None
        if "revision" in query:
            revision = int(_read_number("revision", query["revision"], 2**53, whole=True))
        same = query.get("epoch", self.epoch) == self.epoch
        current = same and revision is not None and self._told <= revision <= self.revision
        since = revision if same and "epoch" in query else None
        if not wait or not current or (self._tell_at is None and revision != self.revision):
            return self._answer(service, since)
        if len(self._waiting) >= self._max_waiting:  # a stopping server settles them itself
            self._waiting = {
                serial: reader for serial, reader in self._waiting.items() if not reader[0].response
            }
        if len(self._waiting) >= self._max_waiting:
            raise HttpError(
                503, f"the limit is {self._max_waiting} waiting readers", [("Retry-After", "5")]
            )
        self._serial += 1
        promise = Promise(
            now + wait,
            partial(self._answer_late, self._serial),
            partial(self._forget, self._serial),
        )
        self._waiting[self._serial] = (promise, service, since, revision)
        return promise

    def _answer_late(self, serial: int, now: float) -> Response:
        _, service, since, _ = self._waiting.pop(serial)
        self.handle_timeout(now)
        return self._answer(service, since)

    def _forget(self, serial: int) -> None:
        self._waiting.pop(serial, None)

    def _tell(self, now: float) -> None:
        """Answer all readers that wait for the change."""
        self._tell_at = None
        self._told_at = now
        self._told = self.revision
        touched, self._touched = self._touched, set()
        for serial, (promise, service, since, revision) in list(self._waiting.items()):
            # Readers that came after the change know it, and would misread an empty answer.
            if revision != self.revision and (service is None or service in touched):
                del self._waiting[serial]
                promise.settle(self._answer(service, since))

    def _answer(self, service: str | None, since: int | None) -> Response:
        """Return a listing, or the changes since a revision; cached per revision."""
        answer = self._answers.get((service, since))
        if answer is None:
            etag = f'"{self.epoch}-{self.revision}"'
            body = self._tell_changes(service, since) or self._tell_all(service)
            answer = Response(200, body, [("Content-Type", "application/json"), ("ETag", etag)])
            if self._answers_size > _KEPT_ANSWERS:
                self._answers.clear()
                self._answers_size = 0
            self._answers[service, since] = answer
            self._answers_size += len(body) + len(service or "") + _FRAME
        return answer

    def _tell_all(self, service: str | None) -> bytes:
        texts = [
            entry.text
            for entry in self.entries.values()
            if service is None or service in entry.node.services
        ]
        return b'{"epoch":"%s","revision":%d,"nodes":[%s]}\n' % (
            self.epoch.encode(),
            self.revision,
            b",".join(texts),
        )

    def _tell_changes(self, service: str | None, since: int | None) -> bytes | None:
        """Return the changes; None if they are not known or too many."""
        if since is None or not 0 <= self.revision - since <= len(self._changed):
            return None
        first = len(self._changed) - (self.revision - since)
        changed = dict.fromkeys(self._changed[i] for i in range(first, len(self._changed)))
        nodes: list[bytes] = []
        gone: list[str] = []
        for address in changed:
            entry = self.entries.get(address)
            if entry is not None and (service is None or service in entry.node.services):
                nodes.append(entry.text)
            else:
                gone.append(address)
        body = b'{"epoch":"%s","revision":%d,"since":%d,"nodes":[%s],"gone":%s}\n' % (
            self.epoch.encode(),
            self.revision,
            since,
            b",".join(nodes),
            encode(gone),
        )
        return body if len(body) <= self._max_answer else None

    # Pages

    @property
    def waiting(self) -> int:
        """Number of readers that wait for a change."""
        return len(self._waiting)

    def _show(self, request: Request, now: float) -> Response | Making:
        from .registry_page import show_registry

        self._authorise(request)
        service = request.query.get("service")
        key = (show_registry, service, self.revision)
        return self._shared.ask(key, now, lambda: show_registry(self, service, now))

    def _report(self, request: Request, now: float) -> Response | Making:
        from .registry_page import report_registry

        self._authorise(request)
        service = request.query.get("service")
        key = (report_registry, service, self.revision)
        return self._shared.ask(key, now, lambda: report_registry(self, service, now))

    def _authorise(self, request: Request, *, writing: bool = False) -> None:
        if writing:
            check_writer(request, self._token is not None)
        if self._token is not None and (writing or self._protect_reads):
            check_access(request, "token", self._token)

    # Surviving a restart

    def snapshot(self, now: float) -> dict[str, Any]:
        """Return the state to keep over a restart, as JSON-able values: ages, not times."""
        return {
            "format": 1,
            "revision": self.revision,
            "nodes": [
                {
                    **describe_node(entry.node),
                    "ttl": entry.ttl,
                    "age": max(0.0, now - entry.renewed_at),
                    "flaps": entry.flaps,
                }
                for entry in self.entries.values()
            ],
        }

    def restore(self, snapshot: Any, now: float) -> None:
        """Restore a snapshot; each node then has its full ttl to renew itself.

        The registry must be empty. ValueError if the snapshot is invalid; then nothing changes.
        """
        if self.entries:
            raise ValueError(f"the registry already has {len(self.entries)} nodes")
        if not isinstance(snapshot, dict) or snapshot.get("format") != 1:
            raise ValueError("a snapshot must be an object of format 1")
        revision, saved = snapshot.get("revision"), snapshot.get("nodes")
        if type(revision) is not int or not 0 <= revision < 2**53 or not isinstance(saved, list):
            raise ValueError("a snapshot must have a revision from 0 to 2**53 and a list of nodes")
        found: list[tuple[Node, float, float, int]] = []
        for place, value in enumerate(saved):
            try:
                node = parse_node(value)
                ttl = _check_ttl(value.get("ttl"))
                age = _check_range("age", value.get("age"), 0, 2**53)
                flaps = int(_check_range("flaps", value.get("flaps"), 0, 2**53))
            except ValueError as error:
                raise ValueError(f"nodes[{place}]: {error}") from None
            found.append((node, ttl, age, flaps))
        spare = Registry(self.epoch, max_nodes=self._max_nodes, max_answer=self._max_answer)
        try:
            for node, ttl, _, flaps in found:
                spare._admit(node, ttl, now, flaps)
        except HttpError as error:
            raise ValueError(error.message) from None
        self.revision = revision
        for node, ttl, age, flaps in found:
            self._admit(node, ttl, now, flaps)
            self.entries[node.address].renewed_at = now - age


def _check_range(name: str, value: Any, low: float, high: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise ValueError(f"{name} must be a number from {low:g} to {high:g}, not {value!r:.40}")
    return value


def _check_ttl(value: Any) -> float:
    return float(_check_range("ttl", value, SHORTEST_TTL, LONGEST_TTL))


def _read_number(name: str, text: str, high: float, *, whole: bool = False) -> float:
    """Return a number of a query; HttpError if it is invalid or out of bounds."""
    try:
        value: float = int(text) if whole and text.isascii() else float(text)
    except ValueError:
        value = -1
    if not 0 <= value <= high:
        unit = "a whole number" if whole else "a number"
        raise HttpError(400, f"?{name}= must be {unit} from 0 to {high:g}, not {text[:40]!r}")
    return value
