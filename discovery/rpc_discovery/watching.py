"""Views of the nodes, from registries, files or a list (docs/discovery.md, "Views")."""

from collections.abc import Iterable
from math import inf
from typing import Any
from urllib.parse import urlencode

from .documents import LONGEST_WAIT, MAX_ANSWER, is_epoch, parse_json, parse_node, parse_view
from .machines import Event, FileRead, HttpRequest, ReadFile, Rng
from .nodes import MOST_NODES, Node, View
from .polling import RegistryPoller, RegistryState, explain
from .views import StaleChanged, ViewChanged, ViewKeeper

__all__ = ["FileView", "RegistryWatch", "StaticDiscovery"]

_PAUSE = 0.1  # least seconds from an answer with changes to the next question
_LONGEST_BACKOFF = 5.0  # seconds
_MAX_FILE = 1024 * 1024  # bytes
_READ_TIMEOUT = 10.0  # seconds


class StaticDiscovery:
    """Nodes that never change, given as `Node` or as addresses."""

    def __init__(self, nodes: Iterable[Node | str]) -> None:
        self.view = View([Node(node) if isinstance(node, str) else node for node in nodes], 1)
        self.ready = True
        self.stale_since: float | None = None


class FileView:
    """The nodes in a JSON file, which is checked every `interval` seconds.

    While it cannot be read or is invalid, the last good view stays.
    """

    def __init__(self, path: str, *, now: float, interval: float = 1.0) -> None:
        self.path = path
        self.view = View()
        self.ready = False
        self.stale_since: float | None = None
        self.rejected = 0
        self._interval = interval
        self._serial = 0
        self._reading = False
        self._sent = True
        self._seen: Any = None  # the state of the file when it was last read
        self._read_at = now
        self._events: list[Event] = []
        self.handle_timeout(now)

    @property
    def done(self) -> bool:
        """Whether it has nothing left to do."""
        return False

    # Outputs

    def operations_to_send(self) -> list[ReadFile]:
        """Return the reads to start now, each once."""
        if self._sent:
            return []
        self._sent = True
        return [ReadFile(self._serial, self.path, _MAX_FILE, self._seen, _READ_TIMEOUT)]

    def operations_to_cancel(self) -> list[int]:
        """Return the ids of the reads to cancel: none."""
        return []

    def events(self) -> list[Event]:
        """Return what happened since the last call, in order."""
        events, self._events = self._events, []
        return events

    def next_timeout(self) -> float | None:
        """Return when to read again, in absolute seconds; None during a read."""
        return None if self._reading else self._read_at

    # Inputs

    def handle_timeout(self, now: float) -> None:
        """Read the file if it is due."""
        if not self._reading and now >= self._read_at:
            self._serial += 1
            self._reading, self._sent = True, False

    def result(self, now: float, operation_id: int, result: FileRead) -> None:
        """Take the content of the file."""
        if not self._ends(now, operation_id) or result.data is None:
            return
        self._seen = result.state
        try:
            if len(result.data) > _MAX_FILE:
                raise ValueError(f"{self.path} has more than {_MAX_FILE} bytes")
            view = parse_view(result.data, self.view.revision + 1)
        except ValueError as error:
            self._reject(now, str(error))
            return
        if self.stale_since is not None:
            self.stale_since = None
            self._events.append(StaleChanged(None, ""))
        added, removed = self.view.changes(view)
        if added or removed or not self.ready:
            self.view, self.ready = view, True
            self._events.append(ViewChanged(view, added, removed))

    def message(self, now: float, operation_id: int, message: Any) -> None:
        """Ignore a message: reading a file is not a stream."""

    def failed(self, now: float, operation_id: int, error: str, code: int = 0) -> None:
        """Record that the file could not be read."""
        if self._ends(now, operation_id):
            self._seen = None
            self._reject(now, f"{self.path}: {error}")

    def _ends(self, now: float, operation_id: int) -> bool:
        """Whether this is the current read, which ends with it."""
        if not self._reading or operation_id != self._serial:
            return False
        self._reading, self._read_at = False, now + self._interval
        return True

    def _reject(self, now: float, error: str) -> None:
        self.rejected += 1
        if self.stale_since is None:
            self.stale_since = now
            self._events.append(StaleChanged(now, error))


class _WatchedRegistry(RegistryState):
    """The last answer of one registry."""

    def __init__(self, url: str, now: float) -> None:
        super().__init__(url, now)
        self.epoch = ""  # "" before the first listing
        self.revision = 0
        self.nodes: dict[str, Node] = {}
        self.removed: dict[str, float] = {}  # when it removed nodes that another one still lists
        self.asked_at = 0.0
        self.waits = 0.0  # how long the registry was asked to wait with its answer


class RegistryWatch(ViewKeeper, RegistryPoller[_WatchedRegistry]):
    """The nodes in one or more registries, kept up to date.

    `view` is the last good view, whatever happens to the registries; `stale_since` is when it was
    last confirmed, None while it is good. With `wait`, registries answer when something changes
    (long polling); otherwise they are asked every `refresh` seconds. See `RegistryPoller` for
    inputs and outputs; events are `ViewChanged`, `StaleChanged`, `SourceReached` and
    `SourceFailed`.

    Several registries are merged: the view has the nodes that any of them lists, as described by
    the first of them in the given order. A failing registry counts with its last listing, but after
    those that answer; nodes that one of these removed since then are dropped.

    A listing is rejected as a whole, and the registry counts as failing, if it is longer than
    1 MiB, has more than 10,000 nodes, or is malformed. An invalid node in it is skipped and counted
    in `refused_nodes`. This bounds the memory: one such listing per registry, and a view of 10,000
    nodes.
    """

    def __init__(
        self,
        registries: Iterable[str],
        *,
        now: float,
        rng: Rng,
        service: str | None = None,
        wait: float = 30.0,
        refresh: float = 5.0,
        grace: float = 30.0,
        share: float = 0.5,
        token: str | None = None,
        timeout: float = 5.0,
    ) -> None:
        if not 0 <= wait <= LONGEST_WAIT:
            raise ValueError(f"wait must be from 0 to {LONGEST_WAIT:g} s, not {wait!r}")
        if not 0.1 <= refresh <= 3600:
            raise ValueError(f"refresh must be from 0.1 to 3600 s, not {refresh!r}")
        links = [_WatchedRegistry(url, now) for url in registries]
        ViewKeeper.__init__(self, grace, share)
        RegistryPoller.__init__(self, links, token=token, timeout=timeout, rng=rng)
        self.rejected = 0  # listings, as a whole
        self.refused_nodes = 0
        self._service = service
        self._wait = wait
        self._refresh = refresh
        self._dirty = False
        self._anew = False  # whether a registry was restarted since the last merge
        self._finish(now)

    # Getters

    def age(self, now: float) -> float:
        """Return how many seconds ago a registry last answered; infinite before the first time."""
        answered = [
            link.answered_at for link in self.links.values() if link.answered_at is not None
        ]
        return max(0.0, now - max(answered)) if answered else inf

    # Questions

    def _compose(self, link: _WatchedRegistry, now: float) -> HttpRequest:
        query: dict[str, Any] = {} if self._service is None else {"service": self._service}
        headers: tuple[tuple[str, str], ...] = (("Accept", "application/json"),)
        # After a failure, find out first whether the registry responds.
        link.waits = self._wait if link.epoch and not link.failures else 0.0
        link.asked_at = now
        if link.epoch:
            query |= {"epoch": link.epoch, "revision": link.revision}
            headers = (*headers, ("If-None-Match", f'"{link.epoch}-{link.revision}"'))
        if link.waits:
            query["wait"] = f"{link.waits:g}"
        text = f"?{urlencode(query)}" if query else ""
        timeout = self._timeout + link.waits
        return self._request(link, "GET", text, timeout=timeout, headers=headers)

    def _longest_backoff(self) -> float:
        return _LONGEST_BACKOFF

    # Answers

    def _accept(
        self, link: _WatchedRegistry, sent: HttpRequest, status: int, body: bytes, now: float
    ) -> float:
        known = (link.epoch, link.revision)
        if status == 200:
            try:
                self._read(link, body, now)
            except ValueError:
                self.rejected += 1
                raise
        elif status != 304 or not link.epoch:
            raise ValueError(explain(status, body))
        if link.failures or link.answered_at is None:
            self._dirty = True  # its listing counts again
        if known != (link.epoch, link.revision):
            return _PAUSE * (1 + self._rng()) if self._wait else self._later()
        if link.waits and now - link.asked_at >= link.waits / 2:
            return _PAUSE * self._rng() + 0.001
        # It answered at once without changes: it was not asked to wait, or does not support it.
        return _PAUSE if self._wait and link.failures else self._later()

    def _later(self) -> float:
        return self._refresh * (1 - 0.2 * self._rng())

    def _read(self, link: _WatchedRegistry, body: bytes, now: float) -> None:
        """Take a listing or changes; ValueError if invalid, and then nothing changes."""
        if len(body) > MAX_ANSWER:
            raise ValueError(f"the answer has {len(body)} bytes; the limit is {MAX_ANSWER}")
        value = parse_json(body)
        if not isinstance(value, dict):
            raise ValueError(f"the answer must be an object, not {value!r:.40}")
        epoch: Any = value.get("epoch")
        revision, since = value.get("revision"), value.get("since")
        listed, gone = value.get("nodes"), value.get("gone", [])
        if not is_epoch(epoch):
            raise ValueError(f"epoch must be 1 to 64 letters and digits, not {epoch!r:.40}")
        if type(revision) is not int or not 0 <= revision <= 2**53:
            raise ValueError(f"revision must be from 0 to 2**53, not {revision!r:.40}")
        if not isinstance(listed, list) or not isinstance(gone, list):
            raise ValueError("nodes and gone must be lists")
        if len(listed) > MOST_NODES:
            raise ValueError(f"the answer has {len(listed)} nodes; the limit is {MOST_NODES}")
        if not all(isinstance(described, dict) for described in listed):
            raise ValueError("each node must be an object")
        if epoch == link.epoch and revision < link.revision:
            raise ValueError(f"revision {revision} is older than {link.revision}, seen before")
        if since is not None and (epoch, since) != (link.epoch, link.revision):
            raise ValueError(f"changes since {since!r:.40} do not follow {link.revision}")
        if (epoch, revision) == (link.epoch, link.revision):
            return
        found: dict[str, Node] = {} if since is None else dict(link.nodes)
        for address in gone:
            found.pop(str(address), None)
        refused = 0
        for described in listed:
            try:
                node = parse_node(described)
            except ValueError:
                refused += 1
                found.pop(str(described.get("address")), None)
                continue
            old = link.nodes.get(node.address)
            found[node.address] = old if old == node and old is not None else node
        if len(found) > MOST_NODES:
            raise ValueError(f"with the changes there are more than {MOST_NODES} nodes")
        self.refused_nodes += refused
        if epoch != link.epoch:
            self._anew = self._anew or bool(link.epoch)
        for address in link.nodes:
            if address not in found:
                link.removed[address] = now
        link.epoch, link.revision, link.nodes = epoch, revision, found
        self._dirty = True

    def _fail(self, link: _WatchedRegistry, error: str, now: float) -> None:
        self._dirty = self._dirty or not link.failures
        super()._fail(link, error, now)

    # The view

    def _also_at(self) -> float | None:
        return self._guard.until

    def _conclude(self, now: float) -> None:
        until = self._guard.until
        if self._dirty or (until is not None and now >= until):
            self._dirty = False
            self._refresh_view(now)
        links = self.links.values()
        reason = ""
        if all(link.failures for link in links):
            reason = "; ".join(f"{link.url}: {link.error}" for link in links)[:400]
        self._events += self._judge(reason, now - self.age(now), now)

    def _refresh_view(self, now: float) -> None:
        """Merge the listings of the registries into the view."""
        links = [link for link in self.links.values() if link.epoch]
        if not links:
            return
        target = self._merge(links)
        if len(target) > MOST_NODES:
            self.rejected += 1
            return
        again, self._anew = self._anew, False
        self._events += self._show(target, again, now)

    def _merge(self, links: list[_WatchedRegistry]) -> dict[str, Node]:
        answering = [link for link in links if not link.failures]
        merged: dict[str, Node] = {}
        for link in answering:
            for address, node in link.nodes.items():
                merged.setdefault(address, node)
        for link in links:
            if link.failures:
                at = link.answered_at or 0.0
                for address, node in link.nodes.items():
                    if not any(other.removed.get(address, -inf) > at for other in answering):
                        merged.setdefault(address, node)
            others = [other for other in links if other is not link]
            link.removed = {
                address: at
                for address, at in link.removed.items()
                if address not in link.nodes and any(address in other.nodes for other in others)
            }
        return merged
