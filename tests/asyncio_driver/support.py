"""What the tests share: servers and clients as context managers, and peers that speak by hand."""

import asyncio
import contextlib
import json
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from rpc_asyncio import Client, Server
from support.by_hand import PREFIX, Frame, option_line

ANY_PORT = "tcp://127.0.0.1:0"


class Gate:
    """A service whose handler tells when it starts and when it is cancelled, and waits between."""

    def __init__(self) -> None:
        self.running = 0
        self.runs = 0
        self.started = asyncio.Event()
        self.opened = asyncio.Event()
        self.cancelled = asyncio.Event()

    async def wait(self, value: Any = "through") -> Any:
        self.running += 1
        self.runs += 1
        self.started.set()
        try:
            await self.opened.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        finally:
            self.running -= 1
        return value

    async def stubborn(self) -> str:
        """Go on in spite of being cancelled."""
        self.running += 1
        self.started.set()
        while not self.opened.is_set():
            try:
                await self.opened.wait()
            except asyncio.CancelledError:
                self.cancelled.set()
        self.running -= 1
        return "too late"


class Echo:
    async def echo(self, value: Any) -> Any:
        return value


@contextlib.asynccontextmanager
async def serving(
    *services: Any, address: str = ANY_PORT, ssl: Any = None, grace: float = 0.0, **options: Any
) -> AsyncIterator[tuple[Server, str]]:
    """Give a server that offers the services, and its address."""
    server = Server(**options)
    for service in services:
        server.register(service)
    real = await server.start(address, ssl=ssl)
    try:
        yield server, real
    finally:
        await server.stop(grace)


@contextlib.asynccontextmanager
async def pair(*services: Any, **options: Any) -> AsyncIterator[tuple[Server, Client]]:
    """Give a server that offers the services, and a client of it."""
    async with (
        serving(*services, **options) as (server, address),
        await Client.connect(address) as client,
    ):
        yield server, client


async def until(condition: Callable[[], Any]) -> None:
    """Wait for what no event tells; the test's own time limit bounds it."""
    while not condition():  # noqa: ASYNC110
        await asyncio.sleep(0.002)


def in_bytes(server: Server) -> int:
    """Count the bytes that a server holds for its peers."""
    return sum(
        protocol._transport.get_write_buffer_size() + protocol.connection.outbound
        for protocol in server.links
        if protocol._transport is not None
    )


class Wire:
    """One end of a connection whose frames are written and read by hand."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @property
    def socket(self) -> socket.socket:
        return self._writer.get_extra_info("socket")

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def line(self) -> Any:
        return json.loads(await self._reader.readline())

    async def receive(self) -> Frame | None:
        """Return the next frame, or None when the peer sends nothing more."""
        try:
            prefix = await self._reader.readexactly(PREFIX.size)
        except asyncio.IncompleteReadError as end:
            if end.partial:
                raise
            return None
        kind, flags, header, body, call_id = PREFIX.unpack(prefix)
        return Frame(
            kind,
            flags,
            call_id,
            await self._reader.readexactly(header),
            await self._reader.readexactly(body),
        )

    async def receive_all(self) -> list[Frame]:
        """Return the frames up to the end of the connection."""
        frames = []
        with contextlib.suppress(ConnectionResetError):
            while (received := await self.receive()) is not None:
                frames.append(received)
        return frames

    def reset(self) -> None:
        """End the connection with a reset instead of an orderly close."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()

    async def close(self) -> None:
        self._writer.close()
        with contextlib.suppress(ConnectionError):
            await self._writer.wait_closed()


def port_of(address: str) -> int:
    return int(address.rpartition(":")[2])


@contextlib.asynccontextmanager
async def dialled(address: str) -> AsyncIterator[Wire]:
    """Give a client by hand that has not said anything yet."""
    wire = Wire(*await asyncio.open_connection("127.0.0.1", port_of(address)))
    try:
        yield wire
    finally:
        await wire.close()


@contextlib.asynccontextmanager
async def accepted(address: str, **fields: Any) -> AsyncIterator[Wire]:
    """Give a client by hand whose options the server has accepted."""
    async with dialled(address) as wire:
        await wire.send(option_line(**fields))
        assert "error" not in await wire.line()
        yield wire


@contextlib.asynccontextmanager
async def answering(talk: Callable[[Wire], Awaitable[None]]) -> AsyncIterator[str]:
    """Give the address of a server by hand: `talk` is its end of each connection."""
    talks: set[asyncio.Task[None]] = set()

    async def serve(wire: Wire) -> None:
        try:
            await talk(wire)
        except ConnectionError:
            pass
        finally:
            await wire.close()

    def begin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(serve(Wire(reader, writer)))
        talks.add(task)
        task.add_done_callback(talks.discard)

    listener = await asyncio.start_server(begin, "127.0.0.1", 0)
    try:
        yield f"tcp://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    finally:
        listener.close()
        for task in talks:
            task.cancel()
        if talks:
            await asyncio.wait(talks)


async def silence(_: Wire) -> None:
    """Neither read nor write: a peer that hangs."""
    await asyncio.Event().wait()
