"""A service, and a caller that tries again: what tests are written for."""

import asyncio

from rpc_asyncio import Client
from rpc_proto import Unavailable


class Orders:
    def __init__(self) -> None:
        self.placed: dict[str, int] = {}

    async def place(self, number: str, cents: int) -> int:
        """Place an order once, however often it is sent; return the sum of all orders."""
        self.placed[number] = cents
        await asyncio.sleep(0.2)
        return sum(self.placed.values())


async def place(address: str, number: str, cents: int, timeout: float = 2.0) -> int:
    """Place an order; after a broken connection, wait a second and try again."""
    try:
        async with Client.connect(address, timeout=timeout) as client:
            return await client.call("Orders.place", number, cents, timeout=timeout, returns=int)
    except Unavailable:
        await asyncio.sleep(1)
        async with Client.connect(address, timeout=timeout) as client:
            return await client.call("Orders.place", number, cents, timeout=timeout, returns=int)
