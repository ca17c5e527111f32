"""Tests of orders.py: no socket, no sleeping. `pytest` finds the fixture by itself."""

import pytest
from orders import Orders, place

from rpc_proto import DeadlineExceeded
from rpc_testing import AsyncioRig


async def test_sum(asyncio_rig: AsyncioRig) -> None:
    client = await asyncio_rig.connect(Orders())
    assert await client.call("Orders.place", "a", 500) == 500
    assert await client.call("Orders.place", "b", 250) == 750


async def test_deadline(asyncio_rig: AsyncioRig) -> None:
    address = await asyncio_rig.serve(Orders())
    asyncio_rig.network.slow(latency=5)
    with pytest.raises(DeadlineExceeded):
        await place(address, "a", 500, timeout=2)
    assert asyncio_rig.clock.now == 2


async def test_lost_answer(asyncio_rig: AsyncioRig) -> None:
    address = await asyncio_rig.serve(Orders())
    asyncio_rig.network.drop_answer()
    assert await place(address, "a", 500) == 500
    assert [call.args for call in asyncio_rig.calls] == [("a", 500), ("a", 500)]
    assert asyncio_rig.clock.now == pytest.approx(1.4)  # two handlers, and the pause
