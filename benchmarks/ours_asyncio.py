"""rpc_asyncio under the same load: real calls by name, with ids, deadlines, limits and errors."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

from rpc_asyncio import Client, Server


class Bench:
    async def echo(self, value: bytes) -> bytes:
        return value

    async def text(self, value: str) -> str:
        return value


async def serve(announce: Callable[[Any], None]) -> None:
    server = Server()
    server.register(Bench())
    announce(await server.start("tcp://127.0.0.1:0"))
    await server.serve_forever()


async def load(
    address: str, *, connections: int, in_flight: int, payload: Any, seconds: float
) -> tuple[int, float]:
    """Return the number of calls, and the seconds they took."""
    clients = [await Client.connect(address) for _ in range(connections)]
    method = "Bench.text" if isinstance(payload, str) else "Bench.echo"
    count = 0
    start = time.monotonic()
    stop = start + seconds

    async def caller(client: Client) -> None:
        nonlocal count
        call = client.call
        while time.monotonic() < stop:
            await call(method, payload, timeout=5.0)
            count += 1

    await asyncio.gather(*(caller(client) for client in clients for _ in range(in_flight)))
    elapsed = time.monotonic() - start
    for client in clients:
        await client.close()
    return count, elapsed
