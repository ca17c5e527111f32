"""Deadlines and cancellation: who is told, when, and how far they reach."""

import asyncio
import math
import threading
import time

import pytest

from asyncio_driver.support import ANY_PORT, Echo, Gate, pair, serving, until
from rpc_asyncio import Client
from rpc_proto import (
    Cancelled,
    DeadlineExceeded,
    ServerConfig,
    current_call,
)


async def test_timeout_fails_the_call_and_cancels_the_handler():
    gate = Gate()
    async with pair(gate, Echo()) as (server, client):
        began = time.monotonic()
        with pytest.raises(DeadlineExceeded) as caught:
            await client.call("Gate.wait", timeout=0.1)
        assert 0.09 < time.monotonic() - began < 1
        assert isinstance(caught.value, TimeoutError)
        assert caught.value.maybe_executed
        await gate.cancelled.wait()
        assert client.calls_in_flight == 0
        await until(lambda: server.stats["running"] == 0)
        assert await client.call("Echo.echo", 1) == 1


async def test_call_without_a_timeout_has_no_deadline():
    class Time:
        async def left(self) -> float | None:
            return current_call().time_left

    async with pair(Time()) as (_, client):
        assert await client.call("Time.left", timeout=math.inf) is None
        assert 59 < await client.call("Time.left") <= 60.1


async def test_handling_timeout_ends_a_call_whatever_its_caller_wants():
    gate = Gate()
    config = ServerConfig(handling_timeout=0.1)
    async with pair(gate, config=config) as (server, client):
        with pytest.raises(DeadlineExceeded):
            await client.call("Gate.wait", timeout=60)
        await gate.cancelled.wait()
        with pytest.raises(DeadlineExceeded):
            await client.call("Gate.wait", timeout=math.inf)
        await until(lambda: server.stats["running"] == 0)


async def test_no_deadline_of_many_is_late():
    gate = Gate()
    async with pair(gate) as (_, client):
        began = time.monotonic()

        async def late(timeout: float) -> float:
            with pytest.raises(DeadlineExceeded):
                await client.call("Gate.wait", timeout=timeout)
            return time.monotonic() - began - timeout

        delays = await asyncio.gather(*(late(0.05 + 0.01 * (i * 7 % 30)) for i in range(90)))
        assert min(delays) > -0.01
        assert max(delays) < 0.5


class Hop:
    """Passes a call on to the next server."""

    def __init__(self, following: Client | None) -> None:
        self.following = following
        self.left: list[float] = []
        self.gate = Gate()

    async def wait(self) -> str:
        if self.following is None:
            return await self.gate.wait()
        self.gate.started.set()
        try:
            return await self.following.call("Hop.wait")
        except (asyncio.CancelledError, DeadlineExceeded):  # both deadlines come at one moment
            self.gate.cancelled.set()
            raise

    async def wait_longer(self) -> str:
        return await self.following.call("Hop.wait", timeout=3600)


async def test_call_inside_a_handler_may_not_outlive_it():
    last = Hop(None)
    async with pair(last) as (_, to_last), pair(Hop(to_last)) as (_, client):
        with pytest.raises(DeadlineExceeded):
            await client.call("Hop.wait_longer", timeout=0.1)
        await last.gate.cancelled.wait()


async def test_caller_that_is_cancelled_cancels_the_handlers_of_every_hop():
    last = Hop(None)
    async with (
        pair(last) as (_, to_last),
        pair(middle := Hop(to_last)) as (_, to_middle),
        pair(Hop(to_middle)) as (_, client),
    ):
        waiting = asyncio.ensure_future(client.call("Hop.wait"))
        await last.gate.started.wait()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await middle.gate.cancelled.wait()
        await last.gate.cancelled.wait()
        assert client.calls_in_flight == to_middle.calls_in_flight == 0


async def test_work_that_outlives_its_handler_has_deadlines_of_its_own():
    done = asyncio.Event()

    class Later:
        def __init__(self) -> None:
            self.client: Client | None = None
            self.tasks: list[asyncio.Task] = []

        async def begin(self) -> str:
            self.tasks.append(asyncio.create_task(self.go_on()))
            return "begun"

        async def go_on(self) -> None:
            await asyncio.sleep(0.15)
            await self.client.call("Echo.echo", 1)
            done.set()

    later = Later()
    async with pair(later, Echo()) as (_, client):
        later.client = client
        assert await client.call("Later.begin", timeout=0.1) == "begun"
        await done.wait()
        await asyncio.gather(*later.tasks)


async def test_timeout_around_a_call_cancels_the_handler():
    gate = Gate()
    async with pair(gate) as (_, client):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await client.call("Gate.wait")
        await gate.cancelled.wait()


async def test_failing_sibling_in_a_task_group_cancels_the_handler():
    gate = Gate()
    async with pair(gate) as (_, client):

        async def fail() -> None:
            await gate.started.wait()
            raise KeyError

        async def call_and_fail() -> None:
            async with asyncio.TaskGroup() as group:
                group.create_task(client.call("Gate.wait"))
                group.create_task(fail())

        with pytest.raises(ExceptionGroup):
            await call_and_fail()
        await gate.cancelled.wait()


async def test_call_that_is_cancelled_before_it_is_sent_is_never_sent():
    gate = Gate()
    async with pair(gate, config=ServerConfig(max_calls=1)) as (_, client):
        first = asyncio.ensure_future(client.call("Gate.wait"))
        await gate.started.wait()
        second = asyncio.ensure_future(client.call("Gate.wait"))
        await until(lambda: client.calls_in_flight == 2)
        second.cancel()
        await asyncio.wait([second])
        assert client.calls_in_flight == 1
        gate.opened.set()
        assert await first == "through"
        assert gate.runs == 1


async def test_handler_that_ignores_its_cancellation_keeps_its_slot_until_it_ends():
    gate = Gate()
    async with pair(gate, Echo(), max_concurrency=1) as (server, client):
        with pytest.raises(DeadlineExceeded):
            await client.call("Gate.stubborn", timeout=0.05)
        await gate.cancelled.wait()
        waiting = asyncio.ensure_future(client.call("Echo.echo", "at last"))
        await until(lambda: server.stats["queued"] == 1)
        assert server.stats["running"] == 1
        gate.opened.set()
        assert await waiting == "at last"
        # At most the server's word that it is too late has crossed our own; no answer came.
        assert client.connection.ignored <= 1
        assert server.stats["running"] == server.stats["tasks"] == 0


async def test_call_whose_deadline_passes_in_the_queue_never_runs():
    gate = Gate()
    async with pair(gate, Echo(), max_concurrency=1) as (server, client):
        running = asyncio.ensure_future(client.call("Gate.wait"))
        await gate.started.wait()
        with pytest.raises(DeadlineExceeded):
            await client.call("Gate.wait", timeout=0.05)
        await until(lambda: server.stats["queued"] == 0)
        gate.opened.set()
        assert await running == "through"
        assert await client.call("Echo.echo", 1) == 1
        assert gate.runs == 1


async def test_thread_beyond_its_deadline_is_answered_for_at_the_deadline():
    release = threading.Event()
    left: list[float | None] = []

    class Slow:
        def block(self) -> None:
            left.append(current_call().time_left)
            release.wait(20)

    async with pair(Slow()) as (server, client):
        began = time.monotonic()
        with pytest.raises(DeadlineExceeded):
            await client.call("Slow.block", timeout=0.2)
        assert time.monotonic() - began < 1
        assert 0 < left[0] <= 0.21
        await until(lambda: server.stats["abandoned"] == 1)
        assert server.stats["running"] == 1
        release.set()
        await until(lambda: server.stats["abandoned"] == server.stats["running"] == 0)


async def test_thread_call_that_waits_for_the_pool_never_runs_past_its_deadline():
    release = threading.Event()
    runs = []

    class Slow:
        def block(self) -> None:
            runs.append(1)
            release.wait(20)

    async with pair(Slow(), threads=1) as (server, client):
        calls = [client.call("Slow.block", timeout=0.1) for _ in range(5)]
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} == {DeadlineExceeded}
        await until(lambda: server.stats["running"] == 1)
        assert server.stats["abandoned"] == 1
        release.set()
        await until(lambda: server.stats["running"] == 0)
        assert len(runs) == 1


async def test_notification_has_a_deadline_on_the_server():
    gate = Gate()
    async with pair(gate) as (server, client):
        await client.notify("Gate.wait", timeout=0.05)
        await gate.started.wait()
        await gate.cancelled.wait()
        await until(lambda: server.stats["running"] == 0)


async def test_on_cancel_is_called_when_the_caller_gives_up():
    told = asyncio.Event()

    class Watch:
        async def wait(self) -> None:
            current_call().on_cancel(told.set)
            await asyncio.Event().wait()

    async with pair(Watch()) as (_, client):
        with pytest.raises(DeadlineExceeded):
            await client.call("Watch.wait", timeout=0.05)
        await told.wait()


async def test_on_cancel_that_fails_is_logged_and_disturbs_nothing_else(caplog):
    told = []

    class Watch:
        async def wait(self) -> None:
            call = current_call()
            call.on_cancel(lambda: told.append("first"))
            call.on_cancel(lambda: told[5])
            call.on_cancel(lambda: told.append("last"))
            await asyncio.Event().wait()

    async with pair(Watch(), Echo()) as (server, client):
        with pytest.raises(DeadlineExceeded):
            await client.call("Watch.wait", timeout=0.05)
        await until(lambda: server.stats["running"] == 0)
        assert told == ["first", "last"]
        assert await client.call("Echo.echo", 1) == 1
    (record,) = caplog.records
    assert record.getMessage() == "Watch.wait: a callback of on_cancel() failed"


async def test_handler_learns_why_it_was_cancelled():
    reasons = []
    seen = asyncio.Event()

    class Why:
        async def wait(self) -> None:
            call = current_call()
            try:
                await asyncio.Event().wait()
            finally:
                try:
                    call.raise_if_cancelled()
                except Cancelled as reason:
                    reasons.append(type(reason))
                seen.set()

    async with pair(Why()) as (server, client):
        waiting = asyncio.ensure_future(client.call("Why.wait"))
        await until(lambda: server.stats["tasks"] == 1)
        waiting.cancel()
        await seen.wait()
        assert reasons == [Cancelled]


async def test_connect_timeout_does_not_limit_later_calls():
    async with (
        serving(Gate(), address=ANY_PORT) as (_, address),
        await Client.connect(address, timeout=0.5) as client,
    ):
        began = time.monotonic()
        with pytest.raises(DeadlineExceeded):
            await client.call("Gate.wait", timeout=0.7)
        assert time.monotonic() - began > 0.65


async def test_what_a_cancellation_says_reaches_whoever_is_cancelled():
    gate = Gate()
    async with pair(gate) as (_, client):  # anyio knows its own cancellations by that
        task = asyncio.create_task(client.call("Gate.wait"))
        await gate.started.wait()
        task.cancel("who did it")
        with pytest.raises(asyncio.CancelledError, match="who did it"):
            await task
