"""The client's side of HTTP/1.1 (RFC 9112): one request at a time over one connection."""

from collections.abc import Iterable, Mapping

import h11

from rpc_proto.addresses import parse_address

__all__ = [
    "BodyPart",
    "ClientEvent",
    "Fetch",
    "HttpClient",
    "ResponseEnded",
    "ResponseFailed",
    "Started",
]

_MAX_HEAD = 32 * 1024


class ClientEvent:
    """Base of what an input may cause."""

    __slots__ = ()


class Started(ClientEvent):
    """The head of the response came: the status, and the fields by lower-case name."""

    __slots__ = ("headers", "status")

    def __init__(self, status: int, headers: Mapping[str, str]) -> None:
        self.status = status
        self.headers = headers


class BodyPart(ClientEvent):
    """Some bytes of the body, as they came."""

    __slots__ = ("data",)

    def __init__(self, data: bytes) -> None:
        self.data = data


class ResponseEnded(ClientEvent):
    """The response is complete."""

    __slots__ = ()


class ResponseFailed(ClientEvent):
    """There will be no more of this response, and why. The connection is of no use any more."""

    __slots__ = ("reason",)

    def __init__(self, reason: str) -> None:
        self.reason = reason


class HttpClient:
    """Says requests and understands responses, without any I/O.

    `send` returns the bytes of a request; the inputs return events and never raise. A response
    ends with exactly one `ResponseEnded` or `ResponseFailed`. `reusable` tells whether another
    request may follow on this connection.
    """

    def __init__(self, host: str) -> None:
        """`host` is what the Host field says: "name" or "name:port"."""
        self._host = host
        self._connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=_MAX_HEAD)
        self._waiting = False

    @property
    def reusable(self) -> bool:
        """Whether `send` may be called: at first, and behind a response that allows it."""
        states = self._connection.our_state, self._connection.their_state
        return states == (h11.IDLE, h11.IDLE)

    def send(
        self,
        method: str,
        target: str,
        headers: Iterable[tuple[str, str]] = (),
        body: bytes = b"",
    ) -> bytes:
        """Return what to write for a request; ValueError if it cannot be said in HTTP."""
        fields = [("Host", self._host), *headers]
        if body or method in ("POST", "PUT"):
            fields.append(("Content-Length", str(len(body))))
        try:
            data = self._connection.send(h11.Request(method=method, target=target, headers=fields))
            if body:
                data += self._connection.send(h11.Data(data=body))
            data += self._connection.send(h11.EndOfMessage())
        except h11.LocalProtocolError as error:
            raise ValueError(f"{method} {target!r:.100} cannot be sent: {error}") from None
        self._waiting = True
        return data

    def receive_data(self, data: bytes | bytearray | memoryview) -> list[ClientEvent]:
        """Take bytes from the server."""
        if not len(data):
            return []
        if not self._waiting:
            return [ResponseFailed("the server sent what nobody asked for")]
        return self._receive(bytes(data))

    def receive_eof(self) -> list[ClientEvent]:
        """Take note that the server sends nothing more."""
        if not self._waiting:
            return []
        events = self._receive(b"")
        if self._waiting or isinstance(events[-1], ResponseFailed):
            self._waiting = False
            return [ResponseFailed("the server hung up before the response was complete")]
        return events

    def _receive(self, data: bytes) -> list[ClientEvent]:
        connection = self._connection
        events: list[ClientEvent] = []
        try:
            connection.receive_data(data)
            while self._waiting:
                event = connection.next_event()
                if isinstance(event, h11.Response):
                    events.append(Started(event.status_code, _fields(event)))
                elif isinstance(event, h11.Data):
                    events.append(BodyPart(bytes(event.data)))
                elif isinstance(event, h11.EndOfMessage):
                    self._waiting = False
                    events.append(ResponseEnded())
                    if h11.MUST_CLOSE not in connection.states.values():
                        connection.start_next_cycle()
                elif not isinstance(event, h11.InformationalResponse):
                    break  # NEED_DATA, or PAUSED behind an upgrade that nobody asked for
        except h11.RemoteProtocolError as error:
            self._waiting = False
            events.append(ResponseFailed(f"the response breaks the rules of HTTP: {error}"))
        return events


def _fields(response: h11.Response) -> dict[str, str]:
    fields: dict[str, str] = {}
    for name, value in response.headers:
        field, text = name.decode(), value.decode("latin-1")
        fields[field] = f"{fields[field]}, {text}" if field in fields else text
    return fields


class Fetch:
    """One request on a connection of its own: write `data`, give what arrives to `receive`."""

    def __init__(
        self,
        method: str,
        url: str,
        headers: Iterable[tuple[str, str]] = (),
        body: bytes = b"",
        *,
        max_answer: int = 1024 * 1024,
    ) -> None:
        """ValueError for a URL that is not http(s)://host[:port]/path."""
        scheme, separator, rest = url.partition("://")
        authority, slash, path = rest.partition("/")
        if not separator or scheme not in ("http", "https"):
            raise ValueError(f"a URL must begin with http:// or https://, not {url[:80]!r}")
        self.where = parse_address(f"{scheme}://{authority}")
        self.status = 0
        self._client = HttpClient(authority)
        self._max_answer = max_answer
        self._parts: list[bytes] = []
        self._size = 0
        fields = [*headers, ("Connection", "close")]
        self.data = self._client.send(method, f"{slash or '/'}{path}", fields, body)

    @property
    def body(self) -> bytes:
        """What has come of the body."""
        return b"".join(self._parts)

    def receive(self, data: bytes) -> bool:
        """Take bytes, b"" at their end; whether that is all. ValueError if the response is bad."""
        for event in self._client.receive_data(data) if data else self._client.receive_eof():
            if isinstance(event, Started):
                self.status = event.status
            elif isinstance(event, BodyPart):
                self._parts.append(event.data)
                self._size += len(event.data)
                if self._size > self._max_answer:
                    raise ValueError(f"the answer is longer than {self._max_answer} bytes")
            elif isinstance(event, ResponseFailed):
                raise ValueError(event.reason)
            else:
                return True
        return False
