"""The floor: echo with a 4-byte length and msgpack on asyncio, no RPC at all.

No ids, no method names, no futures, no tasks: the client sends its next message from the callback
that received the last one. What an RPC over asyncio costs is to be measured against this.
"""

import asyncio
import struct
import time

import msgpack

_LENGTH = struct.Struct(">I")


class _Framed(asyncio.BufferedProtocol):
    def __init__(self):
        self.buffer = bytearray(64 * 1024)
        self.view = memoryview(self.buffer)
        self.filled = 0

    def connection_made(self, transport):
        self.transport = transport

    def get_buffer(self, sizehint):
        return self.view[self.filled :]

    def buffer_updated(self, nbytes):
        self.filled += nbytes
        filled = self.filled
        view = self.view
        start = 0
        messages = []
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

    def send(self, messages):
        out = []
        for message in messages:
            body = msgpack.packb(message)
            out.append(_LENGTH.pack(len(body)))
            out.append(body)
        if len(out) == 2 and len(out[1]) > 65536:
            self.transport.write(out[0])
            self.transport.write(out[1])
        else:
            self.transport.write(b"".join(out))


class _Server(_Framed):
    def received(self, messages):
        self.send(messages)


class _Client(_Framed):
    def __init__(self, payload, in_flight, stop):
        super().__init__()
        self.payload = payload
        self.in_flight = in_flight
        self.stop = stop
        self.count = 0
        self.done = asyncio.get_running_loop().create_future()

    def connection_made(self, transport):
        super().connection_made(transport)
        self.send([self.payload] * self.in_flight)

    def received(self, messages):
        self.count += len(messages)
        if time.monotonic() < self.stop:
            self.send([self.payload] * len(messages))
        else:
            self.in_flight -= len(messages)
            if not self.in_flight and not self.done.done():
                self.done.set_result(None)


async def serve(announce):
    loop = asyncio.get_running_loop()
    server = await loop.create_server(_Server, "127.0.0.1", 0)
    announce(server.sockets[0].getsockname()[1])
    await server.serve_forever()


async def load(address, *, connections, in_flight, payload, seconds):
    """Return the number of echoes, and the seconds they took."""
    loop = asyncio.get_running_loop()
    start = time.monotonic()
    clients = []
    for _ in range(connections):
        _, client = await loop.create_connection(
            lambda: _Client(payload, in_flight, start + seconds), "127.0.0.1", int(address)
        )
        clients.append(client)
    for client in clients:
        await client.done
        client.transport.close()
    return sum(client.count for client in clients), time.monotonic() - start
