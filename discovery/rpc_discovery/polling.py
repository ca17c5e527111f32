"""What registrations and watches share: one request at a time to each registry."""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, Generic, TypeVar

from rpc_proto import parse_address

from .machines import Event, HttpRequest, HttpResponse, Rng, SourceFailed, SourceReached

__all__ = [
    "RegistryPoller",
    "RegistryState",
    "explain",
    "parse_registry",
]

_MOST_REGISTRIES = 16
_FIRST_BACKOFF = 0.5  # seconds; doubled with each failure in a row
_SHORTEST_PAUSE = 0.05  # seconds
_LATE = 1.0  # seconds by which a transport's report may be late
_URL = re.compile(r"(https?)://([^/?#@\s]+?)(/[A-Za-z0-9._~/-]*)?", re.ASCII)


class RegistryState:
    """The state of one registry. Times in absolute seconds."""

    def __init__(self, url: str, now: float) -> None:
        self.url = url
        self.base = parse_registry(url)
        self.due_at: float | None = now  # when to send the next request, unless one is on its way
        self.request: HttpRequest | None = None  # which is on its way
        self.handed_out = False  # to the transport
        self.gives_up_at = 0.0
        self.answered_at: float | None = None  # the last good answer
        self.failures = 0  # in a row
        self.error = ""  # of the last failure


StateType = TypeVar("StateType", bound=RegistryState)


class RegistryPoller(ABC, Generic[StateType]):
    """Sends one request at a time to each registry, with exponential backoff after failures.

    A `Machine` whose operations are `HttpRequest`s. After each input `next_timeout()` is None or
    later than its `now`.
    """

    def __init__(
        self,
        links: Iterable[StateType],
        *,
        token: str | None,
        timeout: float,
        rng: Rng,
    ) -> None:
        self.links: dict[str, StateType] = {}
        for link in links:
            if link.base in {known.base for known in self.links.values()}:
                raise ValueError(f"duplicate registry {link.url!r}")
            self.links[link.url] = link
        if not 0 < len(self.links) <= _MOST_REGISTRIES:
            raise ValueError(f"1 to {_MOST_REGISTRIES} registries, not {len(self.links)}")
        if token is not None and not (token.isascii() and token.isprintable() and token):
            raise ValueError("token must be printable ASCII and not empty")
        if not 0 < timeout <= 3600:
            raise ValueError(f"timeout must be from 0 to 3600 s, not {timeout!r}")
        self.ignored = 0  # reports that were not expected
        self.failed_requests = 0
        self._authorization = (("Authorization", f"Bearer {token}"),) if token else ()
        self._timeout = timeout
        self._rng = rng
        self._serial = 0
        self._events: list[Event] = []

    @property
    def done(self) -> bool:
        """Whether it has nothing left to do."""
        return False

    # Outputs

    def operations_to_send(self) -> list[HttpRequest]:
        """Return the requests to send now, each once."""
        requests = []
        for link in self.links.values():
            if link.request is not None and not link.handed_out:
                link.handed_out = True
                requests.append(link.request)
        return requests

    def operations_to_cancel(self) -> list[int]:
        """Return the ids of the requests to cancel: none."""
        return []

    def events(self) -> list[Event]:
        """Return what happened since the last call, in order."""
        events, self._events = self._events, []
        return events

    def next_timeout(self) -> float | None:
        """Return when to call `handle_timeout`, in absolute seconds; None for never."""
        times = [link.gives_up_at if link.request else link.due_at for link in self.links.values()]
        return min((at for at in (*times, self._also_at()) if at is not None), default=None)

    # Inputs

    def handle_timeout(self, now: float) -> None:
        """Do what is due; calling it too early does nothing."""
        self._finish(now)

    def result(self, now: float, operation_id: int, result: HttpResponse) -> None:
        """Take the answer to a request."""
        link = self._find(operation_id)
        if link is not None:
            sent, link.request = link.request, None
            assert sent is not None
            try:
                pause = self._accept(link, sent, result.status, result.body, now)
            except ValueError as error:
                self._fail(link, str(error), now)
            else:
                if link.failures or link.answered_at is None:
                    self._events.append(SourceReached(link.url))
                link.failures = 0
                link.error = ""
                link.answered_at = now
                if link.due_at is not None:
                    link.due_at = now + pause
        self._finish(now)

    def message(self, now: float, operation_id: int, message: Any) -> None:
        """Ignore a message: no request of a registry is a stream."""
        self.ignored += 1

    def failed(self, now: float, operation_id: int, error: str, code: int = 0) -> None:
        """Record that a request failed; it may or may not have been sent."""
        link = self._find(operation_id)
        if link is not None:
            self._fail(link, str(error)[:200], now)
        self._finish(now)

    # For subclasses

    @abstractmethod
    def _compose(self, link: StateType, now: float) -> HttpRequest:
        """Return the next request for a registry."""

    @abstractmethod
    def _accept(
        self, link: StateType, sent: HttpRequest, status: int, body: bytes, now: float
    ) -> float:
        """Take a response; return the seconds until the next request. ValueError if invalid."""

    @abstractmethod
    def _longest_backoff(self) -> float: ...

    def _also_at(self) -> float | None:
        """Return when something else is due."""
        return None

    def _conclude(self, now: float) -> None:
        """Called after every input, before requests are sent."""

    # The rest

    def _find(self, operation_id: int) -> StateType | None:
        for link in self.links.values():
            if link.request is not None and link.request.id == operation_id:
                return link
        self.ignored += 1
        return None

    def _fail(self, link: StateType, error: str, now: float) -> None:
        if not link.failures:
            self._events.append(SourceFailed(link.url, error))
        link.request = None
        link.error = error
        self.failed_requests += 1
        if link.due_at is not None:
            longest = min(self._longest_backoff(), _FIRST_BACKOFF * 2.0 ** min(link.failures, 30))
            link.due_at = now + max(_SHORTEST_PAUSE, longest * self._rng())
        link.failures += 1

    def _finish(self, now: float) -> None:
        for link in self.links.values():
            if link.request is not None and link.gives_up_at <= now:
                self._fail(link, f"no answer within {link.request.timeout:g} s", now)
        self._conclude(now)
        for link in self.links.values():
            if link.request is None and link.due_at is not None and link.due_at <= now:
                link.request = self._compose(link, now)
                link.gives_up_at = now + link.request.timeout + _LATE
                link.handed_out = False

    def _request(
        self,
        link: StateType,
        method: str,
        query: str = "",
        *,
        timeout: float,
        headers: tuple[tuple[str, str], ...] = (),
        body: bytes = b"",
    ) -> HttpRequest:
        self._serial += 1
        return HttpRequest(
            self._serial,
            link.url,
            method,
            f"{link.base}/nodes{query}",
            (*headers, *self._authorization),
            body,
            timeout,
        )


def explain(status: int, body: bytes) -> str:
    """Return a description of an unsuccessful response."""
    said = "".join(c if c.isprintable() else " " for c in body[:200].decode("utf-8", "replace"))
    return f"HTTP status {status}: {said.strip()}"


def parse_registry(url: str) -> str:
    """Return the URL with its path; ValueError names the value and the rule.

    Without a path, the default prefix of registries is added.
    """
    parts = _URL.fullmatch(url)
    if parts is None:
        raise ValueError(f"a registry must be http(s)://host:port, not {url[:80]!r}")
    scheme, host, path = parts.groups()
    if not re.search(r":[0-9]+\Z", host):
        host += ":443" if scheme == "https" else ":80"
    parse_address(f"tcp://{host}")
    return f"{scheme}://{host}{(path or '').rstrip('/') or '/registry'}"
