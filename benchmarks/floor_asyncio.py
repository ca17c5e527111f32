"""The floor: echo with a 4-byte length and msgpack on asyncio, no RPC at all.

What is left is what any program pays that waits for answers on this runtime: its callers are
coroutines, and each waits for a future. No ids (answers come in order), no method names, no errors,
no timeouts, no limits.
"""

import asyncio
import struct
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import msgpack

_LENGTH = struct.Struct(">I")
_pack = (
    msgpack.Packer().pack
)  # one for all: a Packer of its own for each message takes twice the time


class _Framed(asyncio.BufferedProtocol):
    transport: asyncio.Transport

    def __init__(self) -> None:
        self.buffer = bytearray(64 * 1024)
        self.view = memoryview(self.buffer)
        self.filled = 0

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def get_buffer(self, sizehint: int) -> memoryview:
        return self.view[self.filled :]

    def buffer_updated(self, nbytes: int) -> None:
        self.filled += nbytes
        filled = self.filled
        view = self.view
        start = 0
        messages: list[Any] = []
        while filled - start >= 4:
            (size,) = _LENGTH.unpack_from(view, start)
            if filled - start - 4 < size:
                if size + 4 > len(view):
                    grown = bytearray(size + 4)
                    grown[: filled - start] = view[start:filled]
                    self.buffer, self.view = grown, memoryview(grown)
                    self.filled = filled - start
                    if messages:
                        self.received(messages)
                    return
                break
            messages.append(msgpack.unpackb(view[start + 4 : start + 4 + size]))
            start += 4 + size
        if start:
            rest = filled - start
            if rest:
                view[:rest] = bytes(view[start:filled])
            self.filled = rest
        if messages:
            self.received(messages)

    def received(self, messages: list[Any]) -> None:
        raise NotImplementedError

    def send(self, messages: list[Any]) -> None:
        out = []
        for message in messages:
            body = _pack(message)
            out.append(_LENGTH.pack(len(body)))
            out.append(body)
        if len(out) == 2 and len(out[1]) > 65536:
            self.transport.write(out[0])
            self.transport.write(out[1])
        else:
            self.transport.write(b"".join(out))


class _Server(_Framed):
    def received(self, messages: list[Any]) -> None:
        self.send(messages)


class _Client(_Framed):
    """Answers come in order, so each goes to the caller that has waited longest."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.get_running_loop()
        self.waiters: deque[asyncio.Future[Any]] = deque()
        self.unsent: list[Any] = []

    def call(self, message: Any) -> asyncio.Future[Any]:
        waiter = self.loop.create_future()
        self.waiters.append(waiter)
        if len(self.waiters) == 1:
            self.send([message])
        else:
            if not self.unsent:
                self.loop.call_soon(self.flush)
            self.unsent.append(message)
        return waiter

    def flush(self) -> None:
        self.send(self.unsent)
        self.unsent.clear()

    def received(self, messages: list[Any]) -> None:
        for message in messages:
            self.waiters.popleft().set_result(message)


async def serve(announce: Callable[[Any], None]) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(_Server, "127.0.0.1", 0)
    announce(server.sockets[0].getsockname()[1])
    await server.serve_forever()


async def load(
    address: str, *, connections: int, in_flight: int, payload: Any, seconds: float
) -> tuple[int, float]:
    """Return the number of echoes, and the seconds they took."""
    loop = asyncio.get_running_loop()
    clients = [
        (await loop.create_connection(_Client, "127.0.0.1", int(address)))[1]
        for _ in range(connections)
    ]
    count = 0
    start = time.monotonic()
    stop = start + seconds

    async def caller(client: _Client) -> None:
        nonlocal count
        call = client.call
        while time.monotonic() < stop:
            await call(payload)
            count += 1

    await asyncio.gather(*(caller(client) for client in clients for _ in range(in_flight)))
    elapsed = time.monotonic() - start
    for client in clients:
        client.transport.close()
    return count, elapsed
