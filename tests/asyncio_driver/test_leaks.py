"""What is left when thousands of calls have ended in every way: nothing."""

import asyncio
import random

import pytest
from asyncio_driver.support import pair, until

from rpc_proto import DeadlineExceeded, ServerConfig, quick


class Work:
    async def at_once(self, value: int) -> int:
        return value

    async def soon(self, value: int) -> int:
        await asyncio.sleep(0)
        return value

    @quick
    def quickly(self, value: int) -> int:
        return value

    async def for_ever(self) -> None:
        await asyncio.Event().wait()


async def test_thousands_of_calls_that_end_in_every_way_leave_nothing_behind():
    dice = random.Random(1)
    config = ServerConfig(max_calls=20_000)
    loop = asyncio.get_running_loop()
    async with pair(Work(), config=config, max_concurrency=2000) as (server, client):
        answered = [
            asyncio.ensure_future(
                client.call(dice.choice(["Work.at_once", "Work.soon", "Work.quickly"]), i)
            )
            for i in range(3400)
        ]
        late = [
            asyncio.ensure_future(client.call("Work.for_ever", timeout=dice.uniform(0.01, 1.0)))
            for _ in range(3300)
        ]
        given_up = [asyncio.ensure_future(client.call("Work.for_ever")) for _ in range(3300)]
        for call in given_up:
            loop.call_later(dice.uniform(0.01, 1.0), call.cancel)
        outcomes = await asyncio.gather(*answered, *late, *given_up, return_exceptions=True)

        assert outcomes[:3400] == list(range(3400))
        assert {type(outcome) for outcome in outcomes[3400:6700]} == {DeadlineExceeded}
        assert {type(outcome) for outcome in outcomes[6700:]} == {asyncio.CancelledError}
        assert client.calls_in_flight == 0
        await until(lambda: server.stats["running"] == server.stats["queued"] == 0)
        assert server.stats["tasks"] == server.stats["abandoned"] == 0
        assert await client.call("Work.at_once", 1) == 1
        heaps = [
            client._connection._calls._heap,
            *(protocol.connection._calls._heap for protocol in server._connections),
        ]
        assert [len(heap) <= 64 + 2 for heap in heaps] == [True, True]
        assert client._connection._queue == {}


async def test_connections_that_come_and_go_leave_nothing_behind():
    async with pair(Work()) as (server, client):
        for _ in range(100):
            other = await type(client).connect(client.address)
            assert await other.call("Work.soon", 1) == 1
            await other.close()
        await until(lambda: server.stats["connections"] == 1)


@pytest.mark.plain_loop
async def test_closing_cancels_the_timers_of_calls_that_wait():
    async with pair(Work()) as (server, client):
        waiting = asyncio.ensure_future(client.call("Work.for_ever", timeout=3600))
        await until(lambda: server.stats["tasks"] == 1)
    assert waiting.done()
    assert waiting.exception().code == "cancelled"
    timers = asyncio.get_running_loop()._scheduled
    # All that is left is the time limit of this test.
    assert len([timer for timer in timers if not timer.cancelled()]) == 1
