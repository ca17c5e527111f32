"""The requests and responses of HTTP applications (RFC 9110)."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, unquote

from rpc_proto.config import Peer

if TYPE_CHECKING:
    from .making import Making

__all__ = ["Application", "HttpError", "Promise", "Request", "Response"]

_LONGEST_QUERY_FIELDS = 100


class HttpError(Exception):
    """Ends a request with this status; raised by applications and for invalid requests."""

    def __init__(self, status: int, message: str, headers: Sequence[tuple[str, str]] = ()) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.headers = headers


class Request:
    """An HTTP request.

    `path` is decoded and has no query; `query` maps each name to its last value; `headers` maps
    names in lower case to values, several of one name joined by ", " (RFC 9110, 5.3).
    """

    __slots__ = ("body", "headers", "method", "path", "peer", "query", "target")

    def __init__(
        self,
        method: str,
        target: str,
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
        peer: Peer | None = None,
    ) -> None:
        self.method = method
        self.target = target
        path, _, query = target.partition("?")
        self.path = unquote(path)
        try:
            fields = parse_qsl(query, keep_blank_values=True, max_num_fields=_LONGEST_QUERY_FIELDS)
        except ValueError:
            raise HttpError(
                400, f"a query may have at most {_LONGEST_QUERY_FIELDS} fields"
            ) from None
        self.query = dict(fields)
        self.headers = headers or {}
        self.body = body
        self.peer = peer or Peer()

    def __repr__(self) -> str:
        return f"<Request {self.method} {self.target}>"


class Response:
    """An HTTP response: status, body as bytes, and headers except Content-Length and Date.

    Without an `ETag` or a `Cache-Control` of its own it is sent with `Cache-Control: no-store`.
    With an ETag it becomes a 304 if the client has it already. `X-Content-Type-Options: nosniff` is
    always added.
    """

    __slots__ = ("body", "headers", "status")

    def __init__(
        self,
        status: int = 200,
        body: bytes = b"",
        headers: Sequence[tuple[str, str]] = (),
    ) -> None:
        self.status = status
        self.body = body
        self.headers = list(headers)

    def __repr__(self) -> str:
        return f"<Response {self.status}, {len(self.body)} bytes>"

    @classmethod
    def text(
        cls, text: str, status: int = 200, headers: Sequence[tuple[str, str]] = ()
    ) -> "Response":
        """Return plain text; a newline is added."""
        kind = ("Content-Type", "text/plain; charset=utf-8")
        return cls(status, text.encode("utf-8", "replace") + b"\n", [kind, *headers])

    @classmethod
    def html(
        cls, text: str, status: int = 200, headers: Sequence[tuple[str, str]] = ()
    ) -> "Response":
        """Return an HTML page."""
        kind = ("Content-Type", "text/html; charset=utf-8")
        return cls(status, text.encode("utf-8", "replace"), [kind, *headers])

    @classmethod
    def json(
        cls, value: Any, status: int = 200, headers: Sequence[tuple[str, str]] = ()
    ) -> "Response":
        """Return a value as JSON; ValueError or TypeError if it cannot be encoded."""
        body = json.dumps(value, allow_nan=False, separators=(",", ":")).encode() + b"\n"
        return cls(status, body, [("Content-Type", "application/json"), *headers])


class Promise:
    """A response that will be available later, at the latest at `deadline` (absolute seconds).

    Its creator calls `settle` once; if it has not by the deadline, `late(now)` returns the
    response. `on_abandoned` is called if the client disconnects before.
    """

    __slots__ = ("_late", "_on_settled", "abandoned", "deadline", "on_abandoned", "response")

    def __init__(
        self,
        deadline: float,
        late: Callable[[float], Response],
        on_abandoned: Callable[[], None] | None = None,
    ) -> None:
        self.deadline = deadline
        self.response: Response | None = None
        self.abandoned = False
        self.on_abandoned = on_abandoned
        self._late = late
        self._on_settled: Callable[[], None] | None = None

    def settle(self, response: Response) -> None:
        """Set the response; does nothing if there is one already, or nobody waits any more."""
        if self.response is None and not self.abandoned:
            self.response = response
            wake, self._on_settled = self._on_settled, None
            if wake is not None:
                wake()

    def settle_late(self, now: float) -> None:
        """Use the response of `late`, if the deadline has passed."""
        if self.response is None and now >= self.deadline:
            self._on_settled = None
            self.response = self._late(now)

    def abandon(self) -> None:
        """Record that nobody waits any more."""
        if self.response is None and not self.abandoned:
            self.abandoned = True
            self._on_settled = None
            if self.on_abandoned is not None:
                self.on_abandoned()

    def on_settled(self, wake: Callable[[], None]) -> None:
        """Call `wake()` where the promise is settled, or now; the connection is then due."""
        self._on_settled = wake
        if self.response is not None and self._on_settled is not None:
            self._on_settled = None
            wake()


Application = Callable[[Request, float], "Response | Promise | Making"]
