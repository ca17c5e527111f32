"""What is left when thousands of calls have ended in every way: nothing."""

import asyncio
import contextlib
import gc
import random
import threading
from collections.abc import Awaitable, Callable

import pytest

from asyncio_driver.support import pair, until
from rpc_asyncio import Client
from rpc_proto import CallError, DeadlineExceeded, HandshakeError, ServerConfig, quick


class Work:
    async def at_once(self, value: int) -> int:
        return value

    async def soon(self, value: int) -> int:
        await asyncio.sleep(0)
        return value

    @quick
    def quickly(self, value: int) -> int:
        return value

    async def stubborn(self) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(0.05)
        await asyncio.sleep(0.01)

    async def fails(self) -> None:
        await asyncio.sleep(0)
        raise DeadlineExceeded("of its own")

    def in_thread(self) -> None:
        threading.Event().wait(0.002)

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
            client.connection.calls.deadlines,
            *(protocol.connection.calls.deadlines for protocol in server.links),
        ]
        assert [len(heap) <= 64 + 2 for heap in heaps] == [True, True]
        assert client.connection._queue == {}


class Chaos:
    """A user of a client that does everything wrong, at random."""

    def __init__(self, address: str, seed: int) -> None:
        self.address = address
        self.dice = random.Random(seed)

    async def run(self, rounds: int) -> None:
        for _ in range(rounds):
            with contextlib.suppress(CallError, HandshakeError):
                client = await Client.connect(self.address)
                await self.use(client)

    async def use(self, client: Client) -> None:
        dice = self.dice
        calls = [asyncio.ensure_future(self.call(client)) for _ in range(dice.randrange(40))]
        for call in calls:
            if dice.random() < 0.3:
                await asyncio.sleep(0)
            if dice.random() < 0.3:
                call.cancel()
        end: Callable[[], Awaitable[None]] = dice.choice([client.close, self.wait, self.wait])
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(dice.random() * 0.05):
                await end()
        if dice.random() < 0.5:
            client._protocol._transport.abort()
        if dice.random() < 0.5:
            await asyncio.gather(*calls, return_exceptions=True)
        await client.close(dice.choice([0, 0, 0.02]))
        await asyncio.gather(*calls, return_exceptions=True)
        assert client.calls_in_flight == 0

    async def wait(self) -> None:
        await asyncio.Event().wait()

    async def call(self, client: Client) -> None:
        timeout = self.dice.choice([None, 0, 0.001, 0.01, 0.03])
        name = self.dice.choice(
            ["at_once", "soon", "quickly", "stubborn", "fails", "in_thread", "for_ever", "missing"]
        )
        args = (1,) if name in ("at_once", "soon", "quickly") else ()
        if self.dice.random() < 0.2:
            await client.notify(f"Work.{name}", *args, timeout=timeout or 0.1)
        else:
            await client.call(f"Work.{name}", *args, timeout=timeout)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("concurrency", [3, 1000])
async def test_clients_that_do_everything_wrong_leave_nothing_behind(seed, concurrency):
    config = ServerConfig(max_calls=16, handling_timeout=0.2, refusals=5)
    async with pair(
        Work(), config=config, max_concurrency=concurrency, max_queued=20, threads=2
    ) as (server, client):
        users = [Chaos(client.address, 100 * seed + number) for number in range(8)]
        await asyncio.gather(*(user.run(8) for user in users))
        await until(lambda: server.stats["connections"] == 1)
        await until(lambda: server.stats["running"] == server.stats["queued"] == 0)
        assert server.stats["tasks"] == server.stats["abandoned"] == 0
        assert await client.call("Work.soon", 1) == 1


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


@pytest.mark.parametrize("method", ["Work.at_once", "Work.soon", "Work.quickly"])
async def test_ended_calls_are_freed_without_the_garbage_collector(method):
    """A cycle would keep the arguments and results of thousands of calls until the next sweep."""
    async with pair(Work()) as (_, client):
        for i in range(10):
            await client.call(method, i)
        gc.collect()
        gc.disable()
        try:
            for i in range(100):
                await client.call(method, i)
            await asyncio.gather(*(client.call(method, i) for i in range(100)))
            assert gc.collect() < 50
        finally:
            gc.enable()


async def test_failed_calls_are_freed_without_the_garbage_collector():
    async with pair(Work()) as (_, client):

        async def fail(method: str, *args: object) -> None:
            with contextlib.suppress(CallError):
                await client.call(method, *args)

        for _ in range(10):
            await fail("Work.fails")
        gc.collect()
        gc.disable()
        try:
            for i in range(100):
                await fail("Work.at_once", "no number")
                await fail("Work.unknown", i)
            assert gc.collect() < 50
        finally:
            gc.enable()


@pytest.mark.fault(71)
@pytest.mark.parametrize(
    ("method", "timeout"), [("Work.fails", None), ("Work.none", None), ("Work.for_ever", 0.01)]
)
async def test_tasks_that_end_with_the_error_of_a_call_leave_no_garbage(method, timeout):
    def errors() -> int:
        return sum(isinstance(left, BaseException) for left in gc.get_objects())

    async with pair(Work()) as (server, client):

        async def fail() -> None:
            task = asyncio.create_task(client.call(method, timeout=timeout))
            await asyncio.wait([task])
            assert isinstance(task.exception(), CallError)

        await fail()
        gc.collect()
        gc.disable()
        try:
            before = errors()
            for _ in range(5):
                await fail()
            await until(lambda: not server.stats["running"])
            assert errors() - before <= 1
        finally:
            gc.enable()
