"""Where handlers run, and that a coroutine handler is a Task like any other from its first line."""

import asyncio
import contextlib
import contextvars
import gc
import logging
import threading

import pytest

from asyncio_driver.support import Echo, Gate, accepted, pair, serving, until
from rpc_asyncio import Client, Server
from rpc_proto import (
    CallError,
    Cancelled,
    LocalProtocolError,
    ResourceExhausted,
    ServerConfig,
    Unavailable,
    Unknown,
    current_call,
    quick,
)
from rpc_proto.service.context import Job
from support.by_hand import CANCEL, frame, request


class Kinds:
    async def coroutine(self) -> list:
        return [current_call().cancelled, threading.get_ident()]

    def function(self) -> list:
        return [current_call().cancelled, threading.get_ident()]

    @quick
    def quick_function(self) -> list:
        return [current_call().cancelled, threading.get_ident()]


async def test_each_kind_of_handler_runs_where_it_should():
    here = threading.get_ident()
    async with pair(Kinds()) as (server, client):
        assert await client.call("Kinds.coroutine") == [False, here]
        assert await client.call("Kinds.quick_function") == [False, here]
        cancelled, thread = await client.call("Kinds.function")
        assert cancelled is False
        assert thread != here
        assert server.stats["tasks"] == 0


async def test_pool_is_bounded_and_calls_wait_for_it():
    most = 0
    running = 0
    lock = threading.Lock()
    meet = threading.Barrier(3)

    class Slow:
        def meet(self) -> None:
            nonlocal most, running
            with lock:
                running += 1
                most = max(most, running)
            meet.wait(10)
            with lock:
                running -= 1

    async with pair(Slow(), threads=3) as (_, client):
        await asyncio.gather(*(client.call("Slow.meet") for _ in range(9)))
        assert most == 3


VALUE: contextvars.ContextVar[str] = contextvars.ContextVar("VALUE", default="unset")


class Variables:
    async def at_once(self) -> str:
        seen = VALUE.get()
        VALUE.set("left by a coroutine")
        return seen

    async def waiting(self) -> list:
        seen = [VALUE.get()]
        VALUE.set("left by a coroutine that waits")
        await asyncio.sleep(0)
        seen.append(VALUE.get())
        return seen

    @quick
    def quickly(self) -> str:
        seen = VALUE.get()
        VALUE.set("left by a quick function")
        return seen

    def in_thread(self) -> str:
        seen = VALUE.get()
        VALUE.set("left in a thread")
        return seen


@pytest.mark.fault(94)
async def test_calls_cancelled_while_they_wait_for_a_thread_are_let_go():
    opened, started = threading.Event(), threading.Event()

    class Work:
        def wait(self, value: bytes) -> int:
            started.set()
            opened.wait(20)
            return len(value)

    async with pair(Work(), threads=1) as (server, client):
        running = asyncio.create_task(client.call("Work.wait", b"first"))
        await until(started.is_set)
        waiting = [asyncio.create_task(client.call("Work.wait", bytes(n))) for n in range(50)]
        await until(lambda: server.stats["queued"] == 50)
        for task in waiting:
            task.cancel()
        await until(lambda: server.stats["queued"] == 0)
        kept = [o for o in gc.get_objects() if isinstance(o, Job)]
        assert len(kept) == 1
        opened.set()
        assert await running == 5


async def test_context_variables_of_a_handler_do_not_leak_into_the_next():
    own = "left by a coroutine that waits"
    async with pair(Variables(), threads=1) as (_, client):
        for _ in range(3):
            assert await client.call("Variables.at_once") == "unset"
            assert await client.call("Variables.waiting") == ["unset", own]
            assert await client.call("Variables.quickly") == "unset"
            assert await client.call("Variables.in_thread") == "unset"
    assert VALUE.get() == "unset"


async def test_current_call_works_only_inside_a_handler():
    async with pair(Kinds()) as (_, client):
        await client.call("Kinds.coroutine")
        with pytest.raises(LocalProtocolError):
            current_call()


class Tasks:
    """Does in its first step what needs a real Task."""

    def __init__(self) -> None:
        self.names: list[str] = []

    async def current(self) -> bool:
        first = asyncio.current_task()
        await asyncio.sleep(0)
        return first is not None and first is asyncio.current_task()

    async def current_at_once(self) -> bool:
        return asyncio.current_task() is not None

    async def yield_once(self) -> str:
        await asyncio.sleep(0)
        return "back"

    async def time_out(self) -> str:
        try:
            async with asyncio.timeout(0.02):
                await asyncio.Event().wait()
        except TimeoutError:
            return "timed out"
        return "not reached"

    async def time_out_at_once(self) -> str:
        try:
            async with asyncio.timeout(0):
                await asyncio.sleep(10)
        except TimeoutError:
            return "timed out"
        return "not reached"

    async def in_time(self) -> str:
        async with asyncio.timeout(10):  # noqa: ASYNC100
            return "in time"

    async def wait_for(self) -> str:
        try:
            await asyncio.wait_for(asyncio.Event().wait(), 0.02)
        except TimeoutError:
            return "timed out"
        return "not reached"

    async def group(self) -> list:
        async def double(value: int) -> int:
            await asyncio.sleep(0)
            return 2 * value

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(double(value)) for value in range(3)]
        return [task.result() for task in tasks]

    async def failing_group(self) -> str:
        async def fail() -> None:
            raise KeyError("child")

        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(fail())
                await asyncio.Event().wait()
        except ExceptionGroup as errors:
            return repr(errors.exceptions[0])
        return "not reached"

    async def gather(self) -> list[int]:
        return [*await asyncio.gather(asyncio.sleep(0, 1), asyncio.sleep(0.01, 2))]

    async def shield(self) -> str:
        return await asyncio.shield(asyncio.sleep(0.01, "shielded"))

    async def done_future(self) -> str:
        future = asyncio.get_running_loop().create_future()
        future.set_result("done before")
        return await future

    async def failed_future(self) -> str:
        future = asyncio.get_running_loop().create_future()
        future.set_exception(KeyError("stored"))
        try:
            return await future
        except KeyError as error:
            return repr(error)

    async def wait_and_cancel_itself(self) -> str:
        asyncio.current_task().cancel()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            asyncio.current_task().uncancel()
            await asyncio.sleep(0)
            return "came back"
        return "not reached"

    async def cancel_itself_and_wait(self) -> str:
        asyncio.current_task().cancel()
        await asyncio.sleep(0)
        return "not reached"

    async def cancel_itself_and_return(self) -> str:
        asyncio.current_task().cancel()
        return "returned"

    async def cancel_itself_and_fail(self) -> str:
        asyncio.current_task().cancel()
        raise KeyError("failed")

    async def cancel_itself_and_take_it_back(self) -> str:
        task = asyncio.current_task()
        task.cancel()
        task.uncancel()
        return "returned"

    async def be_cancelled_by_another(self) -> str:
        asyncio.get_running_loop().call_soon(asyncio.current_task().cancel)
        await asyncio.Event().wait()
        return "not reached"

    async def raise_cancelled(self) -> None:
        raise asyncio.CancelledError


EXPECTED = {
    "current": True,
    "current_at_once": True,
    "yield_once": "back",
    "time_out": "timed out",
    "time_out_at_once": "timed out",
    "in_time": "in time",
    "wait_for": "timed out",
    "group": [0, 2, 4],
    "failing_group": "KeyError('child')",
    "gather": [1, 2],
    "shield": "shielded",
    "done_future": "done before",
    "failed_future": "KeyError('stored')",
    "wait_and_cancel_itself": "came back",
    "cancel_itself_and_return": "returned",
    "cancel_itself_and_take_it_back": "returned",
}


@pytest.mark.parametrize("name", sorted(EXPECTED))
@pytest.mark.parametrize("warm", [False, True], ids=["first", "later"])
async def test_handler_is_a_task_from_its_first_line(name, warm):
    async with pair(Tasks(), Echo()) as (server, client):
        if warm:
            await client.call("Echo.echo", 0)
        for turn in range(3):
            assert await client.call(f"Tasks.{name}", timeout=5) == EXPECTED[name]
            assert await client.call("Tasks.current", timeout=5) is True
            assert await client.call("Echo.echo", turn, timeout=5) == turn
        assert server.stats["running"] == server.stats["tasks"] == 0


CANCELLED = ["be_cancelled_by_another", "cancel_itself_and_wait", "raise_cancelled"]


@pytest.mark.parametrize("name", CANCELLED)
@pytest.mark.parametrize("warm", [False, True], ids=["first", "later"])
async def test_handler_that_is_cancelled_from_inside_answers_so(name, warm):
    async with pair(Tasks(), Echo()) as (server, client):
        if warm:
            await client.call("Echo.echo", 0)
        for _ in range(3):
            with pytest.raises(Cancelled):
                await client.call(f"Tasks.{name}", timeout=5)
            assert await client.call("Tasks.current", timeout=5) is True
        assert server.stats["running"] == server.stats["tasks"] == 0


async def test_handler_that_cancels_itself_and_fails_answers_with_its_failure(caplog):
    async with pair(Tasks()) as (_, client):
        with pytest.raises(CallError, match="KeyError"):
            await client.call("Tasks.cancel_itself_and_fail")
        assert await client.call("Tasks.current", timeout=5) is True


async def test_mixed_handlers_at_once_do_not_mix_their_tasks():
    async with pair(Tasks(), Echo()) as (server, client):
        names = sorted(EXPECTED) * 20
        outcomes = await asyncio.gather(*(client.call(f"Tasks.{name}") for name in names))
        assert outcomes == [EXPECTED[name] for name in names]
        assert server.stats["running"] == server.stats["tasks"] == 0


async def test_task_of_a_waiting_handler_is_named_after_its_method():
    gate = Gate()
    async with pair(gate) as (_, client):
        waiting = asyncio.ensure_future(client.call("Gate.wait"))
        await gate.started.wait()
        assert "rpc handler Gate.wait" in {task.get_name() for task in asyncio.all_tasks()}
        gate.opened.set()
        await waiting


async def test_cancel_before_the_task_saw_what_its_handler_waits_for():
    gate = Gate()
    async with serving(gate) as (server, address), accepted(address) as wire:
        await wire.send(request(1, "Gate.wait"))
        # The handler starts inside the read; the cancel may be read in the very next turn.
        await gate.started.wait()
        await wire.send(frame(CANCEL, 1))
        await gate.cancelled.wait()
        await until(lambda: server.stats["running"] == 0)


async def test_handler_whose_call_is_cancelled_by_the_same_bytes_does_not_run():
    gate = Gate()
    async with serving(gate, Echo()) as (server, address), accepted(address) as wire:
        await wire.send(
            request(1, "Gate.wait") + frame(CANCEL, 1) + request(2, "Echo.echo", "next")
        )
        assert (await wire.receive()).value == "next"
        assert gate.runs == 0
        assert server.stats["running"] == 0


async def test_queued_coroutine_starts_when_a_waiting_one_ends():
    gate = Gate()
    async with pair(gate, Tasks(), max_concurrency=1) as (server, client):
        first = asyncio.ensure_future(client.call("Gate.wait"))
        await gate.started.wait()
        queued = [asyncio.ensure_future(client.call("Tasks.current")) for _ in range(500)]
        await until(lambda: server.stats["queued"] == 500)
        gate.opened.set()
        assert await first == "through"
        assert await asyncio.gather(*queued) == [True] * 500


async def test_queued_calls_run_in_the_order_of_their_arrival():
    gate = Gate()
    order = []

    class Order:
        async def note(self, number: int) -> None:
            order.append(number)

    async with pair(gate, Order(), max_concurrency=1) as (server, client):
        first = asyncio.ensure_future(client.call("Gate.wait"))
        await gate.started.wait()
        queued = [asyncio.ensure_future(client.call("Order.note", i)) for i in range(100)]
        await until(lambda: server.stats["queued"] == 100)
        gate.opened.set()
        await asyncio.gather(first, *queued)
        assert order == list(range(100))


async def test_caller_that_gives_up_leaves_the_queue():
    gate = Gate()
    async with pair(gate, max_concurrency=1) as (server, client):
        running = asyncio.ensure_future(client.call("Gate.wait"))
        await gate.started.wait()
        queued = asyncio.ensure_future(client.call("Gate.wait"))
        await until(lambda: server.stats["queued"] == 1)
        queued.cancel()
        await until(lambda: server.stats["queued"] == 0)
        gate.opened.set()
        await running
        assert gate.runs == 1


async def test_handler_may_stop_its_own_server(caplog):
    class Control:
        def __init__(self) -> None:
            self.server: Server | None = None

        async def stop(self) -> None:
            await self.server.stop(0)

    control = Control()
    server = Server()
    server.register(control)
    control.server = server
    address = await server.start("tcp://127.0.0.1:0")
    serving_on = asyncio.ensure_future(server.serve_forever())
    await asyncio.sleep(0)
    async with Client.connect(address) as client:
        with pytest.raises(Unavailable):
            await client.call("Control.stop")
    await serving_on
    assert not caplog.records
    assert server.stats["running"] == server.stats["connections"] == 0


async def test_thread_sees_that_its_call_was_cancelled():
    seen = threading.Event()
    started = threading.Event()

    class Loop:
        def turn(self) -> None:
            call = current_call()
            started.set()
            while not call.cancelled:
                seen.wait(0.005)
            seen.set()
            call.raise_if_cancelled()

    async with pair(Loop()) as (server, client):
        waiting = asyncio.ensure_future(client.call("Loop.turn"))
        await asyncio.to_thread(started.wait)
        waiting.cancel()
        assert await asyncio.to_thread(seen.wait, 5)
        await until(lambda: server.stats["running"] == server.stats["abandoned"] == 0)


async def test_thread_that_ends_while_its_connection_ends_is_not_counted_as_abandoned():
    release = threading.Event()
    started = threading.Event()

    class Slow:
        def block(self) -> None:
            started.set()
            release.wait(20)

    config = ServerConfig(refusals=1)
    async with serving(Slow(), config=config) as (server, address), accepted(address) as wire:
        await wire.send(request(1, "Slow.block"))
        await asyncio.to_thread(started.wait)
        release.set()
        await wire.send(request(2, "No.method") + request(3, "No.method"))
        await wire.receive_all()
        await until(lambda: server.stats["running"] == 0)
        assert server.stats["abandoned"] == 0


async def test_quick_function_that_fails_answers_with_its_failure(caplog):
    class Quick:
        @quick
        def fail(self) -> None:
            raise KeyError("quick")

    with caplog.at_level(logging.ERROR):
        async with pair(Quick(), Echo()) as (server, client):
            with pytest.raises(CallError, match="KeyError: 'quick'"):
                await client.call("Quick.fail")
            assert server.stats["running"] == 0
            assert await client.call("Echo.echo", 1) == 1


class Quick:
    @quick
    def fail(self, name: str) -> None:
        raise {"CancelledError": asyncio.CancelledError, "GeneratorExit": GeneratorExit}[name]


@pytest.mark.parametrize("name", ["CancelledError", "GeneratorExit"])
async def test_quick_handler_that_raises_more_than_an_exception_fails_only_its_call(name):
    async with pair(Quick(), Echo()) as (server, client):
        with pytest.raises(CallError):
            await client.call("Quick.fail", name)
        assert await client.call("Echo.echo", 1) == 1
        assert server.stats["running"] == 0


class Own(BaseException):
    """What no `except Exception` catches."""


class Beyond:
    def __init__(self, kind: type[BaseException]) -> None:
        self._kind = kind

    @quick
    def quickly(self) -> None:
        raise self._kind

    async def at_once(self) -> None:
        raise self._kind

    async def later(self) -> None:
        await asyncio.sleep(0)
        raise self._kind


@pytest.mark.fault(69)
@pytest.mark.parametrize("method", ["quickly", "at_once", "later"])
def test_system_exit_ends_the_program_once_all_is_answered(method):
    async def calls():
        async with asyncio.timeout(10), pair(Beyond(SystemExit), Echo()) as (_, client):
            methods = (f"Beyond.{method}", "rpc.Health.check")
            return await asyncio.gather(*map(client.call, methods), return_exceptions=True)

    with contextlib.closing(asyncio.new_event_loop()) as loop:
        task = loop.create_task(calls())
        with pytest.raises(SystemExit):
            loop.run_until_complete(task)
        failed, health = loop.run_until_complete(task)
    assert isinstance(failed, Unknown)
    assert health == "serving"


@pytest.mark.fault(69)
async def test_handler_that_waited_and_raises_more_than_an_exception_is_one_line(caplog):
    async with pair(Beyond(Own), Echo()) as (_, client):
        with pytest.raises(Unknown):
            await client.call("Beyond.later")
        await client.call("Echo.echo", 1)
    gc.collect()  # a Task with an exception that nobody fetched would say so now
    assert [record.getMessage() for record in caplog.records] == ["Beyond.later failed"]


async def test_call_for_which_there_is_no_thread_fails_alone(caplog):
    gate = Gate()
    async with pair(Kinds(), gate) as (server, client):
        waiting = asyncio.create_task(client.call("Gate.wait"))
        await gate.started.wait()
        usual = threading.stack_size(2**46)  # more than any machine has
        try:
            with pytest.raises(ResourceExhausted, match="no thread"):
                await client.call("Kinds.function")
        finally:
            threading.stack_size(usual)
        assert "no thread for Kinds.function" in caplog.text
        assert server.stats["running"] == 1
        assert (await client.call("Kinds.function"))[0] is False
        gate.opened.set()
        await waiting
