"""One end of a connection, played by hand over a blocking socket, with deadlines."""

import json
import socket
import ssl
import struct
import time
from select import select
from typing import Any, NamedTuple, Self

from rpc_fuzz.wire import (
    ERROR,
    GOAWAY,
    ITEM,
    NOT_EXECUTED,
    PING,
    PONG,
    RAW,
    RESPONSE,
    Frame,
    Wire,
    frame,
    line,
    options,
)
from rpc_proto import parse_address
from rpc_proto.wire.handshake import MAGIC

__all__ = ["Failure", "Peer", "Skip", "Target"]

_READ_SIZE = 64 * 1024
_PREFIX = struct.Struct(">BBHIQ")


class Failure(AssertionError):
    """The other end did not do what the page says."""


class Skip(Exception):
    """The case needs what the other end does not offer."""


class Target(NamedTuple):
    """The server to be examined, and what is known about it.

    `echo` is a method that returns its one argument, whatever it is; `echo_stream` one that takes
    items and returns each of them as an item. Times in seconds.
    """

    address: str
    codec: str = "msgpack"
    token: str | None = None
    echo: str | None = None
    echo_stream: str | None = None
    timeout: float = 5.0
    tls: ssl.SSLContext | None = None

    def dial(self) -> socket.socket:
        """Open a connection; with http:// and https:// it is still HTTP."""
        where = parse_address(self.address)
        if where.scheme == "unix":
            sock = socket.socket(socket.AF_UNIX)
            sock.settimeout(self.timeout)
            sock.connect(where.path)
            return sock
        sock = socket.create_connection((where.host, where.port), self.timeout)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if where.has_tls:
            context = self.tls or ssl.create_default_context()
            return context.wrap_socket(sock, server_hostname=where.host)
        return sock


class Peer:
    """An end of a connection. What does not come in time is a Failure."""

    def __init__(self, sock: socket.socket, codec: str, timeout: float) -> None:
        self.codec = codec
        self.wire = Wire(codec)
        self.timeout = timeout
        self.sock = sock
        self._data = bytearray()
        self._until = time.monotonic() + timeout
        self._pings = 0xABC0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    # Sending

    def send(self, *pieces: bytes) -> None:
        """Send bytes, each piece in a segment of its own."""
        for piece in pieces:
            try:
                self.sock.sendall(piece)
            except OSError:
                return  # what it said before it closed is there to be read

    def end(self) -> None:
        """Send nothing more."""
        try:
            self.sock.shutdown(socket.SHUT_WR)
        except OSError as error:
            raise Failure(f"the connection is gone: {error}") from None

    # Receiving

    def more(self) -> bool:
        """Wait for more bytes; False at the end of the stream."""
        self.sock.settimeout(max(0.001, self._until - time.monotonic()))
        try:
            data = self.sock.recv(_READ_SIZE)
        except TimeoutError:
            raise Failure(f"nothing came within {self.timeout:g} s") from None
        except OSError:
            return False
        self._data += data
        return bool(data)

    def has_more_within(self, seconds: float) -> bool:
        """Whether bytes come within so many seconds."""
        if self._data:
            return True
        ready, _, _ = select([self.sock], [], [], seconds)
        return bool(ready)

    def renew(self) -> None:
        """Begin the time anew, for the next thing to wait for."""
        self._until = time.monotonic() + self.timeout

    def rest(self) -> bytes:
        """Return all that comes until the end of the stream."""
        self.renew()
        while self.more():
            pass
        return bytes(self._data)

    def line(self) -> dict[str, Any]:
        """Return the next line, a JSON object."""
        self.renew()
        while b"\n" not in self._data:
            if not self.more():
                raise Failure(f"the connection ended before a line came, after {self._quote()}")
        text, _, rest = bytes(self._data).partition(b"\n")
        self._data[:] = rest
        try:
            value = json.loads(text)
        except ValueError:
            raise Failure(f"the line is not JSON: {text[:80]!r}") from None
        if not isinstance(value, dict):
            raise Failure(f"the line is no object: {text[:80]!r}")
        return value

    def frame(self) -> Frame | None:
        """Return the next frame; None at the end of the stream."""
        self.renew()
        while len(self._data) < _PREFIX.size:
            if not self.more():
                if self._data:
                    raise Failure(f"the stream ends inside a frame: {self._quote()}")
                return None
        kind, flags, header_size, body_size, call_id = _PREFIX.unpack_from(self._data)
        end = _PREFIX.size + header_size + body_size
        while len(self._data) < end:
            if not self.more():
                raise Failure(f"the stream ends inside a frame: {self._quote()}")
        header = bytes(self._data[_PREFIX.size : _PREFIX.size + header_size])
        body = bytes(self._data[_PREFIX.size + header_size : end])
        del self._data[:end]
        return Frame(kind, flags, call_id, header, body)

    def expect(self, kind: int, call_id: int | None = None) -> Frame:
        """Return the next frame that is not about pings, which must be of a type."""
        while True:
            got = self.frame()
            if got is None:
                raise Failure(f"the connection ended instead of a frame of type {kind}")
            if got.type == PING:
                self.send(frame(PONG, got.call_id))
                continue
            if got.type >= 0x80:
                continue
            if got.type != kind or call_id not in (None, got.call_id):
                whom = "" if call_id is None else f" for call {call_id}"
                raise Failure(f"expected a frame of type {kind}{whom}, and not {self._tell(got)}")
            return got

    def expect_end(self) -> None:
        """Wait for the end of the stream, and nothing before it."""
        got = self.frame()
        while got is not None and got.type in (PING, PONG):
            got = self.frame()
        if got is not None:
            raise Failure(f"expected the end of the connection, and not {self._tell(got)}")

    def expect_violation(self) -> None:
        """Wait for GOAWAY with `invalid_argument`, and the end."""
        got = self.expect(GOAWAY)
        said = self.decode(got.body)
        if not isinstance(said, list) or len(said) != 2 or said[0] != "invalid_argument":
            raise Failure(f"the GOAWAY says {said!r:.80}, and not invalid_argument")
        self.expect_end()

    def expect_silence(self) -> None:
        """Make sure that the other end has said all it wants to: the next thing is a PONG."""
        self._pings += 1
        self.send(frame(PING, self._pings))
        got = self.expect(PONG)
        if got.call_id != self._pings:
            raise Failure(f"the PONG has id {got.call_id}, and the PING had {self._pings}")

    def expect_no_items(self) -> None:
        """Make sure that no item comes before the answer to a PING."""
        self._pings += 1
        self.send(frame(PING, self._pings))
        while (got := self.frame()) is not None and got.type != PONG:
            if got.type == ITEM:
                raise Failure("an item came, though there is no credit")

    def expect_http(self, status: int) -> None:
        """Wait for the head of a response with a status, and drop its body."""
        self.renew()
        while b"\r\n\r\n" not in self._data:
            if not self.more():
                raise Failure(f"the connection ended before a response: {self._quote()}")
            if self._data.startswith(b"{"):
                raise Skip("the server does not speak HTTP")
        head, _, rest = bytes(self._data).partition(b"\r\n\r\n")
        self._data[:] = rest
        words = head.split(b" ", 2)
        if len(words) < 2 or not words[0].startswith(b"HTTP/1.") or words[1] != b"%d" % status:
            raise Failure(f"the response is {head[:60]!r}, and not {status}")

    def decode(self, body: bytes) -> Any:
        """Return the value in a body."""
        try:
            return self.wire.decode(body)
        except Exception as error:
            raise Failure(f"a body that {self.codec} does not decode: {error}") from None

    def expect_error(self, call_id: int, code: str, executed: bool | None = None) -> None:
        """Wait for the ERROR of a call, with a code; `executed` is what it says of the handler."""
        got = self.expect(ERROR, call_id)
        value = self.decode(got.body)
        if not isinstance(value, list) or len(value) != 3:
            raise Failure(f"the body of an ERROR is an array of three, not {value!r:.80}")
        if value[0] != code:
            raise Failure(f"the code is {value[0]!r}, and not {code!r}: {value[1]!r:.80}")
        if executed is not None and executed is bool(got.flags & NOT_EXECUTED):
            ran, says = ("ran", "says") if executed else ("did not run", "does not say")
            raise Failure(f"the handler {ran}, and the ERROR {says} NOT_EXECUTED")

    def expect_result(self, call_id: int, value: Any) -> Frame:
        """Wait for the RESPONSE of a call, with a value."""
        got = self.expect(RESPONSE, call_id)
        result = got.body if got.flags & RAW else self.decode(got.body) if got.body else None
        if result != value:
            raise Failure(f"the result is {result!r:.80}, and not {value!r:.80}")
        return got

    def _quote(self) -> str:
        return repr(bytes(self._data[:60]))

    def _tell(self, got: Frame) -> str:
        said = (
            f" {self.decode(got.body)!r:.120}" if got.type in (ERROR, GOAWAY) and got.body else ""
        )
        return f"one of type {got.type} for call {got.call_id}{said}"

    # The handshake, as a client

    def hello(self, token: str | None = None, **changes: Any) -> dict[str, Any]:
        """Shake hands, and return the answer, which must accept."""
        if token is not None:
            changes.setdefault("token", token)
        self.send(line(options(**{"codec": self.codec, **changes})))
        answer = self.line()
        if "error" in answer:
            raise Failure(f"refused: {answer['error']!r:.120}")
        return answer

    def expect_refusal(self, code: str) -> dict[str, Any]:
        """Wait for the line of a refusal with a code, and the end."""
        answer = self.line()
        error = answer.get("error")
        if not isinstance(error, dict):
            raise Failure(f"accepted, and not refused with {code}: {answer!r:.120}")
        if answer.get("magic") != MAGIC:
            raise Failure(f"the refusal has the magic {answer.get('magic')!r}")
        if error.get("code") != code or not isinstance(error.get("message"), str):
            raise Failure(f"refused with {error!r:.120}, and not with {code}")
        if self.rest():
            raise Failure(f"after the refusal came {self._quote()}")
        return answer
