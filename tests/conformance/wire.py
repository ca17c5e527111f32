"""A client whose frames are written and read by hand, over a plain socket."""

import contextlib
import json
import socket
from collections.abc import Iterator
from ssl import SSLContext
from typing import Any, NamedTuple

from conformance.hosts import LIMIT
from rpc_fuzz.wire import ERROR, RAW, REQUEST, RESPONSE, Frame, Wire, frame, line, options
from rpc_proto import parse_address

__all__ = ["Peer", "accepted", "dialled"]

_PREFIX = 16


class Answer(NamedTuple):
    """What the server sent about a call."""

    type: int
    call_id: int
    value: Any


class Peer:
    """One end of a connection, in JSON."""

    def __init__(self, plain: socket.socket) -> None:
        self.socket = plain
        self._file = plain.makefile("rb")
        self.wire = Wire("json")

    def line(self) -> Any:
        return json.loads(self._file.readline())

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def request(self, call_id: int, method: str, *args: Any, timeout: int | None = None) -> None:
        self.send(self.wire.request(call_id, method, args, timeout=timeout))

    def frame(self) -> Frame | None:
        """Return the next frame, or None when nothing more comes."""
        prefix = self._file.read(_PREFIX)
        if not prefix:
            return None
        sizes = int.from_bytes(prefix[2:4]), int.from_bytes(prefix[4:8])
        header, body = (self._file.read(size) for size in sizes)
        return Frame(prefix[0], prefix[1], int.from_bytes(prefix[8:]), header, body)

    def frames(self) -> list[Frame]:
        """Return the frames up to the end of the connection."""
        return list(iter(self.frame, None))

    def receive(self) -> Answer | None:
        """Return the next answer, or None when nothing more comes."""
        while one := self.frame():
            if one.type in (RESPONSE, ERROR):
                value = one.body if one.flags & RAW else json.loads(one.body or b"null")
                return Answer(one.type, one.call_id, value)
        return None

    def receive_all(self) -> list[Answer]:
        """Return the answers up to the end of the connection."""
        return list(iter(self.receive, None))

    def half_close(self) -> None:
        self.socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self._file.close()
        self.socket.close()


def raw_request(call_id: int, method: str, body: bytes) -> bytes:
    """Return a request whose one argument is these bytes."""
    return frame(REQUEST, call_id, json.dumps([method]).encode(), body, RAW)


@contextlib.contextmanager
def dialled(
    address: str, *, receive_buffer: int | None = None, tls: SSLContext | None = None
) -> Iterator[Peer]:
    """Give a peer that has said nothing yet."""
    where = parse_address(address)
    unix = where.scheme == "unix"
    plain = socket.socket(socket.AF_UNIX if unix else socket.AF_INET)
    plain.settimeout(LIMIT)
    if receive_buffer is not None:
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    with plain:
        plain.connect(where.path if unix else (where.host, where.port))
        peer = Peer(plain if tls is None else tls.wrap_socket(plain, server_hostname=where.host))
        try:
            yield peer
        finally:
            peer.close()


@contextlib.contextmanager
def accepted(address: str, **dialling: Any) -> Iterator[Peer]:
    """Give a peer whose options the server has accepted."""
    with dialled(address, **dialling) as peer:
        peer.send(line(options(codec="json")))
        assert "error" not in peer.line()
        yield peer
