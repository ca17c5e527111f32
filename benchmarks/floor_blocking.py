"""The floor: echo with a 4-byte length and msgpack on blocking sockets and threads, no RPC at all.

What is left is what any program pays on this runtime: a thread for each connection on both sides.
Several messages in flight are a pipeline, as `call_many` is: it takes messages one by one from
whoever has them, sends those together for which there is room, and yields the answers one by one.
"""

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice, repeat, takewhile
from typing import Any

import msgpack

_LENGTH = struct.Struct(">I")
_pack = msgpack.Packer().pack


class _Framed:
    def __init__(self, sock: socket.socket) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock = sock
        self.buffer = bytearray(64 * 1024)
        self.view = memoryview(self.buffer)
        self.filled = 0

    def receive(self) -> list[Any]:
        """Return the next messages, at least one; none at the end."""
        view, start = self.view, 0
        messages: list[Any] = []
        filled = self.filled
        while not messages:
            count = self.sock.recv_into(view[filled:])
            if not count:
                return []
            filled += count
            start = 0
            while filled - start >= 4:
                (size,) = _LENGTH.unpack_from(view, start)
                if filled - start - 4 < size:
                    if size + 4 > len(view):
                        grown = bytearray(size + 4)
                        grown[: filled - start] = view[start:filled]
                        self.buffer, self.view = grown, memoryview(grown)
                        view = self.view
                        filled -= start
                        start = 0
                    break
                messages.append(msgpack.unpackb(view[start + 4 : start + 4 + size]))
                start += 4 + size
        rest = filled - start
        if rest and start:
            view[:rest] = bytes(view[start:filled])
        self.filled = rest
        return messages

    def send(self, messages: list[Any]) -> None:
        out = []
        for message in messages:
            body = _pack(message)
            out.append(_LENGTH.pack(len(body)))
            out.append(body)
        if len(out) == 2 and len(out[1]) > 65536:
            sent = self.sock.sendmsg(out)
            data = memoryview(out[1])[sent - 4 :]
            self.sock.sendall(data)
        else:
            self.sock.sendall(b"".join(out))

    def echo_many(self, messages: Iterable[Any], in_flight: int) -> Iterator[Any]:
        """Yield the answers to the messages, of which at most so many are on their way."""
        waiting = 0
        while True:
            batch = list(islice(messages, in_flight - waiting))
            if batch:
                self.send(batch)
                waiting += len(batch)
            if not waiting:
                return
            answers = self.receive()
            if not answers:
                raise ConnectionError("the server went away")
            waiting -= len(answers)
            yield from answers


def _echo(sock: socket.socket) -> None:
    framed = _Framed(sock)
    with sock, contextlib.suppress(ConnectionError):
        while messages := framed.receive():
            framed.send(messages)


def serve(announce: Callable[[Any], None]) -> None:
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    announce(listener.getsockname()[1])
    while True:
        sock, _ = listener.accept()
        threading.Thread(target=_echo, args=(sock,), daemon=True).start()


def load(
    address: str, *, connections: int, in_flight: int, payload: Any, seconds: float
) -> tuple[int, float]:
    """Return the number of echoes, and the seconds they took."""
    framed = [
        _Framed(socket.create_connection(("127.0.0.1", int(address)))) for _ in range(connections)
    ]
    counts: list[int] = []
    start = time.monotonic()
    stop = start + seconds

    def lone(client: _Framed) -> None:
        count = 0
        message = [payload]
        while time.monotonic() < stop:
            client.send(message)
            client.receive()
            count += 1
        counts.append(count)

    def pipelined(client: _Framed) -> None:
        messages = takewhile(lambda _: time.monotonic() < stop, repeat(payload))
        counts.append(sum(1 for _ in client.echo_many(messages, in_flight)))

    caller = lone if in_flight == 1 else pipelined
    threads = [threading.Thread(target=caller, args=(client,)) for client in framed]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    elapsed = time.monotonic() - start
    for client in framed:
        client.sock.close()
    return sum(counts), elapsed
