"""The client's side of HTTP/1.1 (RFC 9112): one request and its response."""

from collections.abc import Iterable

import h11

from rpc_proto.addresses import parse_address

__all__ = ["Fetch"]

_MAX_HEAD = 32 * 1024


class Fetch:
    """One request, without any I/O: dial `where`, write `data`, pass what arrives to `receive`.

    Then `status` and `body` are the response. With `keep`, a connection to `origin` that served
    another request can be used, and can be used again afterwards if `reusable`.
    """

    def __init__(
        self,
        method: str,
        url: str,
        headers: Iterable[tuple[str, str]] = (),
        body: bytes = b"",
        *,
        max_answer: int = 1024 * 1024,
        keep: bool = False,
    ) -> None:
        """ValueError for a URL that is not http(s)://host[:port]/path, or cannot be sent.

        `max_answer` limits the body of the response, in bytes; its head may have 32 KiB.
        """
        scheme, separator, rest = url.partition("://")
        authority, slash, path = rest.partition("/")
        if not separator or scheme not in ("http", "https"):
            raise ValueError(f"a URL must begin with http:// or https://, not {url[:80]!r}")
        self.where = parse_address(f"{scheme}://{authority}")
        self.origin = f"{scheme}://{authority}"
        self.status = 0
        self._max_answer = max_answer
        self._parts: list[bytes] = []
        self._size = 0
        fields = [("Host", authority), *headers, *([] if keep else [("Connection", "close")])]
        if body or method in ("POST", "PUT"):
            fields.append(("Content-Length", str(len(body))))
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=_MAX_HEAD)
        try:
            asked = h11.Request(method=method, target=f"{slash or '/'}{path}", headers=fields)
            parts = [self._http.send(asked)]
            if body:
                parts.append(self._http.send(h11.Data(data=body)))
            self.data: bytes = b"".join([*parts, self._http.send(h11.EndOfMessage())])
        except (h11.LocalProtocolError, UnicodeError) as error:
            raise ValueError(f"{method} {url[:100]!r} cannot be sent: {error}") from None

    @property
    def body(self) -> bytes:
        """The body, as far as it has arrived."""
        return b"".join(self._parts)

    @property
    def reusable(self) -> bool:
        """Whether the connection may serve another request: nothing followed the response."""
        states = self._http.our_state, self._http.their_state
        return states == (h11.DONE, h11.DONE) and self._http.trailing_data == (b"", False)

    def take(self) -> bytes:
        """Return the part of the body that has arrived and forget it: for streamed bodies."""
        body = self.body
        self._parts, self._size = [], 0
        return body

    def receive(self, data: bytes) -> bool:
        """Take bytes, b"" at EOF; return whether the response is complete. ValueError if malformed.

        Bytes after the response are ignored.
        """
        http = self._http
        try:
            http.receive_data(data)
            while True:
                event = http.next_event()
                if isinstance(event, h11.Response):
                    self.status = event.status_code
                elif isinstance(event, h11.Data):
                    self._take(bytes(event.data))
                elif isinstance(event, h11.EndOfMessage):
                    return True
                elif not isinstance(event, h11.InformationalResponse):
                    break  # NEED_DATA, or PAUSED behind an upgrade that nobody asked for
        except h11.RemoteProtocolError as error:
            if data:
                raise ValueError(f"the response is not valid HTTP: {error}") from None
        if not data:
            raise ValueError("the server closed the connection before the response was complete")
        return False

    def _take(self, data: bytes) -> None:
        self._parts.append(data)
        self._size += len(data)
        if self._size > self._max_answer:
            raise ValueError(f"the response is longer than {self._max_answer} bytes")
