"""The floor: echo with a 4-byte length and msgpack on gevent's sockets, no RPC at all.

What is left is what any program pays on this runtime: a greenlet for each connection on the server.
The client's lone caller reads its own answer; when several share a connection a greenlet reads for
them, and each waits for its turn. No ids (answers come in order), no method names, no errors, no
timeouts, no limits.
"""

import struct
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import msgpack
from gevent import socket
from gevent.hub import Waiter

_LENGTH = struct.Struct(">I")
_pack = msgpack.Packer().pack


def _encode(messages: list[Any]) -> list[bytes]:
    out: list[bytes] = []
    for message in messages:
        body = _pack(message)
        out.append(_LENGTH.pack(len(body)))
        out.append(body)
    return out


def _receive(sock: Any) -> Iterator[list[Any]]:
    """Yield the messages that came together, until the end."""
    view = memoryview(bytearray(64 * 1024))
    filled = 0
    while True:
        try:
            count = sock.recv_into(view[filled:])
        except ConnectionError:
            count = 0
        if not count:
            return
        filled += count
        start = 0
        messages = []
        while filled - start >= 4:
            (size,) = _LENGTH.unpack_from(view, start)
            stop = start + 4 + size
            if filled < stop:
                if size + 4 > len(view):
                    grown = memoryview(bytearray(size + 4))
                    grown[: filled - start] = view[start:filled]
                    view = grown
                    filled -= start
                    start = 0
                break
            messages.append(msgpack.unpackb(view[start + 4 : stop]))
            start = stop
        rest = filled - start
        if start and rest:
            view[:rest] = bytes(view[start:filled])
        filled = rest
        if messages:
            yield messages


def _send(sock: Any, messages: list[Any]) -> None:
    out = _encode(messages)
    if len(out) == 2 and len(out[1]) > 65536:
        sock.sendall(out[0])
        sock.sendall(out[1])
    else:
        sock.sendall(b"".join(out))


def _echo(sock: Any) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with sock:
        for messages in _receive(sock):
            _send(sock, messages)


def serve(announce: Callable[[Any], None]) -> None:
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(1024)
    announce(listener.getsockname()[1])
    while True:
        gevent.spawn(_echo, listener.accept()[0])


class _Shared:
    """A connection that several greenlets share."""

    def __init__(self, sock: Any) -> None:
        self.sock = sock
        self.waiters: deque[Any] = deque()
        self.unsent: list[Any] = []
        self.loop = gevent.get_hub().loop
        self.reader = gevent.spawn(self.read)

    def read(self) -> None:
        for messages in _receive(self.sock):
            for message in messages:
                self.loop.run_callback(self.waiters.popleft().switch, message)

    def call(self, message: Any) -> Any:
        waiter = Waiter()
        self.waiters.append(waiter)
        if not self.unsent:
            self.loop.run_callback(self.flush)
        self.unsent.append(message)
        return waiter.get()

    def flush(self) -> None:
        unsent, self.unsent = self.unsent, []
        self.sock.send(b"".join(_encode(unsent)))


def load(
    address: str, *, connections: int, in_flight: int, payload: Any, seconds: float
) -> tuple[int, float]:
    """Return the number of echoes, and the seconds they took."""
    socks = [socket.create_connection(("127.0.0.1", int(address))) for _ in range(connections)]
    for sock in socks:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    count = 0
    start = time.monotonic()
    stop = start + seconds

    def lone(sock: Any) -> None:
        nonlocal count
        answers = _receive(sock)
        message = [payload]
        while time.monotonic() < stop:
            _send(sock, message)
            next(answers)
            count += 1

    def shared(client: _Shared) -> None:
        nonlocal count
        while time.monotonic() < stop:
            client.call(payload)
            count += 1

    if in_flight == 1:
        gevent.joinall([gevent.spawn(lone, sock) for sock in socks])
    else:
        clients = [_Shared(sock) for sock in socks]
        gevent.joinall([gevent.spawn(shared, c) for c in clients for _ in range(in_flight)])
        for client in clients:
            client.reader.kill()
    elapsed = time.monotonic() - start
    for sock in socks:
        sock.close()
    return count, elapsed
