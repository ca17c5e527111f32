"""Lines and frames in JSON, for tests that play one end of a connection over a real socket."""

import json
import struct
from typing import Any, NamedTuple

REQUEST, RESPONSE, ERROR, CANCEL, PING, PONG, GOAWAY = range(1, 8)
RAW, NAMED, ONE_WAY, NOT_EXECUTED = 1, 2, 4, 8
MAGIC = 0x52504350
PREFIX = struct.Struct(">BBHIQ")


class Frame(NamedTuple):
    type: int
    flags: int
    call_id: int
    header: bytes
    body: bytes

    @property
    def value(self) -> Any:
        return json.loads(self.body) if self.body else None


def option_line(codec: str = "json", **fields: Any) -> bytes:
    """Return what a client says first."""
    line = {"magic": MAGIC, "version": 1, "codec": codec, **fields}
    return json.dumps(line).encode() + b"\n"


def accept_line(codec: str = "msgpack", **limits: int) -> bytes:
    """Return what a server says first."""
    sizes = {"header": 16384, "body": 1 << 24, "calls": 1024, **limits}
    line = {"magic": MAGIC, "version": 1, "codec": codec, "limits": sizes}
    return json.dumps(line).encode() + b"\n"


def frame(
    kind: int, call_id: int = 0, body: bytes = b"", *, header: bytes = b"", flags: int = 0
) -> bytes:
    """Return one frame."""
    return PREFIX.pack(kind, flags, len(header), len(body), call_id) + header + body


def request(call_id: int, method: str, *args: Any, timeout: int | None = None) -> bytes:
    """Return a REQUEST in JSON; the timeout is in milliseconds."""
    header = json.dumps([method] if timeout is None else [method, timeout]).encode()
    return frame(REQUEST, call_id, json.dumps(args).encode() if args else b"", header=header)
