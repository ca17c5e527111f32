"""The client's end of HTTP CONNECT (RFC 9110, section 9.3.6), at a server or at a proxy."""

from base64 import b64encode

import h11

from rpc_proto.addresses import parse_address
from rpc_proto.errors import HandshakeError
from rpc_proto.texts import printable

__all__ = ["MAX_ANSWER", "Tunnel"]

MAX_ANSWER = 32 * 1024  # bytes of the whole answer, informational ones before it included

_BEGINNING = b"HTTP/1."
_QUOTED = 120  # bytes or characters of an answer that an error quotes

_CODES = {
    401: "unauthenticated",
    403: "permission_denied",
    405: "unimplemented",
    407: "unauthenticated",
    501: "unimplemented",
}


class Tunnel:
    """Asks for a tunnel, and reads the answer.

    Write `request` and nothing else; then pass what arrives to `receive_data`, until it returns the
    first bytes from the tunnel.
    """

    __slots__ = ("_has_credentials", "_http", "_peer", "_size", "_start", "_target", "request")

    def __init__(
        self, target: str, *, peer: str = "the server", credentials: bytes | None = None
    ) -> None:
        """`target` is "host:port", an IPv6 address in brackets; ValueError for anything else.

        `peer` is what errors call the other end; `credentials` are "user:password" (RFC 7617).
        """
        self._target = parse_address(f"tcp://{target}").authority
        self._peer = peer
        self._has_credentials = credentials is not None
        self._size = 0
        self._start = bytearray()  # of the answer, to quote in errors
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_ANSWER)
        headers = [(b"Host", self._target.encode())]
        if credentials is not None:
            headers.append((b"Proxy-Authorization", b"Basic " + b64encode(credentials)))
        ask = h11.Request(method=b"CONNECT", target=self._target, headers=headers)
        self.request: bytes = self._http.send(ask) + self._http.send(h11.EndOfMessage())

    @property
    def answering(self) -> bool:
        """Whether any byte of an answer has arrived."""
        return self._size > 0

    def receive_data(self, data: bytes | bytearray | memoryview) -> bytes | None:
        """Return the bytes after the answer once there is a tunnel; None until then.

        Raises HandshakeError, which quotes the answer, if the tunnel is refused.
        """
        data = bytes(data)
        if not data:  # to h11 this would be the end
            return None
        room = MAX_ANSWER - self._size
        self._size += min(room, len(data))
        self._look_at(data)
        self._http.receive_data(data[:room])
        try:
            while (event := self._http.next_event()) is not h11.NEED_DATA:
                # Content-Length and Transfer-Encoding of a success have no meaning; h11 ignores
                # them.
                arrived = self._http.trailing_data[0]
                if isinstance(event, h11.Response):
                    self._check_status(event)
                    return arrived + data[room:]
                self._start.clear()  # that was an informational one
                self._look_at(arrived)
        except h11.RemoteProtocolError as error:
            raise self._fail(f"is not valid HTTP ({error}): {self._quote()}") from None
        if self._size == MAX_ANSWER:
            raise self._fail(f"is longer than {MAX_ANSWER} bytes: {self._quote()}")
        return None

    def receive_eof(self) -> HandshakeError:
        """Return the error if the peer sends nothing more now."""
        when = f"within its answer, {self._quote()}," if self._start else "without an answer"
        message = f"{self._peer} closed the connection {when} to CONNECT {self._target}"
        if not self._start and self._peer == "the server":
            message += "; perhaps only one end uses TLS"
        return HandshakeError("unavailable", message)

    def _look_at(self, data: bytes) -> None:
        """Keep the start of an answer; HandshakeError as soon as it cannot be HTTP."""
        self._start += data[: _QUOTED - len(self._start)]
        if not _BEGINNING.startswith(self._start[: len(_BEGINNING)]):
            tls = " but TLS (use https://)" if self._start[0] == 0x15 else ""
            raise self._fail(f"is not HTTP{tls}: {bytes(self._start)!r}")

    def _check_status(self, answer: h11.Response) -> None:
        status = answer.status_code
        if 200 <= status < 300:
            return
        reason = answer.reason.decode("utf-8", "replace")[:_QUOTED]
        message = f"{self._peer} answered CONNECT {self._target} with HTTP {status} "
        message += printable(reason)
        if status in (401, 407):  # some proxies mix them up
            message += ": it "
            message += (
                "refuses these credentials" if self._has_credentials else "requires credentials"
            )
        raise HandshakeError(_CODES.get(status, "unavailable"), message.rstrip())

    def _quote(self) -> str:
        return repr(bytes(self._start.partition(b"\n")[0].rstrip()))

    def _fail(self, what: str) -> HandshakeError:
        return HandshakeError(
            "invalid_argument", f"the answer of {self._peer} to CONNECT {self._target} {what}"
        )
