"""Raw bytes as docs/protocol.md describes them, for playing one end of a connection by hand."""

import json
import struct
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from rpc_proto import (
    ClientConfig,
    ClientConnection,
    Codec,
    ServerConfig,
    ServerConnection,
    State,
    find_codec,
)
from rpc_proto.wire.frames import FrameReader
from rpc_proto.wire.handshake import MAGIC

REQUEST, RESPONSE, ERROR, CANCEL, PING, PONG, GOAWAY, ITEM, END, CREDIT = range(1, 11)
RAW, NAMED, ONE_WAY, NOT_EXECUTED, CLIENT_STREAM, SERVER_STREAM, MORE = (2**n for n in range(7))
CODECS = ("msgpack", "json")
START = 1000.0  # what the virtual clocks begin with

_PREFIX = struct.Struct(">BBHIQ")


class Frame(NamedTuple):
    """A frame's parts by name."""

    type: int
    flags: int
    call_id: int
    header: bytes
    body: bytes


def prefix(
    kind: int, flags: int = 0, header_size: int = 0, body_size: int = 0, call_id: int = 0
) -> bytes:
    """A frame's first 16 bytes, whatever follows."""
    return _PREFIX.pack(kind, flags, header_size, body_size, call_id)


def frame(
    kind: int, call_id: int = 0, header: bytes = b"", body: bytes = b"", flags: int = 0
) -> bytes:
    """A whole frame."""
    return prefix(kind, flags, len(header), len(body), call_id) + header + body


class Wire:
    """Frames in one codec."""

    def __init__(self, codec: str | Codec = "msgpack") -> None:
        self.codec = find_codec(codec)
        self.encode: Callable[[Any], bytes] = self.codec.encode
        self.decode: Callable[[bytes], Any] = self.codec.decode

    def request(
        self,
        call_id: int,
        method: str = "Arith.add",
        args: Sequence[Any] = (),
        *,
        timeout: Any = None,
        metadata: Any = None,
        body: bytes | None = None,
        flags: int = 0,
    ) -> bytes:
        """A request; `timeout` in milliseconds."""
        fields: list[Any] = [method]
        if timeout is not None or metadata is not None:
            fields.append(timeout)
        if metadata is not None:
            fields.append(metadata)
        if body is None:
            body = self.encode(list(args)) if args else b""
        return frame(REQUEST, call_id, self.encode(fields), body, flags)

    def response(self, call_id: int, value: Any = None, *, metadata: Any = None) -> bytes:
        header = b"" if metadata is None else self.encode([metadata])
        return frame(RESPONSE, call_id, header, b"" if value is None else self.encode(value))

    def error(
        self, call_id: int, code: str, message: str = "", details: Any = None, flags: int = 0
    ) -> bytes:
        return frame(ERROR, call_id, b"", self.encode([code, message, details]), flags)

    def cancel(self, call_id: int) -> bytes:
        return frame(CANCEL, call_id)

    def goaway(self, last_id: int = 0, code: str = "unavailable", message: str = "") -> bytes:
        return frame(GOAWAY, last_id, b"", self.encode([code, message]))


def options(**changes: Any) -> dict[str, Any]:
    """The fields of a client's option line; a change to `...` leaves a field out."""
    fields: dict[str, Any] = {
        "magic": MAGIC,
        "version": 1,
        "codec": "msgpack",
        "limits": {"header": 16384, "body": 16 * 1024 * 1024},
        "timeouts": {"ping": None},
    }
    fields.update(changes)
    return {name: value for name, value in fields.items() if value is not ...}


def answer(**changes: Any) -> dict[str, Any]:
    """The fields of a server's line that accepts."""
    fields = options()
    fields["limits"]["calls"] = 1000
    fields.update(changes)
    return {name: value for name, value in fields.items() if value is not ...}


def line(fields: Any) -> bytes:
    """One line of the handshake."""
    return json.dumps(fields, separators=(",", ":")).encode() + b"\n"


def frames_in(data: bytes) -> list[Frame]:
    """The frames in bytes that an end wrote, all of them whole."""
    reader = FrameReader(65535, 2**32 - 1, streams=True)
    frames = [Frame(*raw) for raw in reader.feed(data)]
    assert reader.error is None
    assert not reader.mid_frame
    return frames


def server_line(data: bytes) -> dict[str, Any]:
    """The one line in bytes that a server wrote."""
    text, newline, rest = data.partition(b"\n")
    assert newline
    assert not rest
    fields: dict[str, Any] = json.loads(text)
    return fields


def open_server(
    config: ServerConfig | None = None, codec: str = "msgpack", now: float = START, **changes: Any
) -> ServerConnection:
    """A server's end behind its handshake with a client that sends what the test writes."""
    server = ServerConnection(config or ServerConfig(ping_interval=None), now=now)
    server.receive_data(now, line(options(codec=codec, **changes)))
    assert server.state is State.OPEN
    server.data_to_send()
    return server


def open_client(
    config: ClientConfig | None = None, codec: str = "msgpack", now: float = START, **changes: Any
) -> ClientConnection:
    """A client's end behind its handshake with a server that sends what the test writes."""
    client = ClientConnection(config or ClientConfig(codec=codec, ping_interval=None), now=now)
    client.receive_data(now, line(answer(codec=codec, **changes)))
    assert client.state is State.OPEN
    client.data_to_send()
    return client
