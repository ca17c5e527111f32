"""Streams with interceptors, spans and balanced clients; a million items; what finalizers do."""

import asyncio
import gc
import resource
import threading
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator
from typing import Any

import pytest

import rpc_asyncio
import rpc_blocking
from rpc_discovery import StaticDiscovery
from rpc_proto import Invocation, LocalProtocolError, current_call


class Numbers:
    async def count(self, n: int) -> AsyncIterator[int]:
        for number in range(n):
            yield number

    async def total(self, numbers: AsyncIterable[int]) -> int:
        return sum([number async for number in numbers])

    async def traced(self, n: int) -> AsyncIterator[str]:
        from opentelemetry import trace

        for _ in range(n):
            await asyncio.sleep(0)
            yield format(trace.get_current_span().get_span_context().span_id, "x")

    def threaded(self, n: int) -> Iterator[int]:
        yield from range(n)


class Blocking:
    def count(self, n: int) -> Iterator[int]:
        yield from range(n)

    def total(self, numbers: Iterable[int]) -> int:
        return sum(numbers)

    def who(self, n: int) -> Iterator[str]:
        for _ in range(n):
            yield current_call().metadata["who"]


@pytest.fixture
def blocking() -> Iterator[str]:
    with rpc_blocking.Server() as server:
        server.register(Blocking())
        yield server.start("tcp://127.0.0.1:0")


async def doubling(call: Invocation, proceed: Any) -> Any:
    """At a server: give each item twice."""
    items = await proceed(call)
    if not hasattr(items, "__aiter__"):
        return items

    async def twice() -> AsyncIterator[Any]:
        async for item in items:
            yield item
            yield item

    return twice()


def test_interceptors_of_a_server_wrap_the_items() -> None:
    async def run() -> None:
        async with rpc_asyncio.Server(interceptors=[doubling]) as server:
            server.register(Numbers())
            address = await server.start("tcp://127.0.0.1:0")
            async with rpc_asyncio.Client.connect(address) as client:
                assert [n async for n in client.stream("Numbers.count", 2)] == [0, 0, 1, 1]
                assert await client.call("Numbers.total", iter([1, 2])) == 3
                assert [n async for n in client.stream("Numbers.threaded", 3)] == [0, 1, 2]

    asyncio.run(run())


def test_interceptors_of_a_client_see_the_beginning_of_a_stream(blocking: str) -> None:
    seen: list[Any] = []

    def note(call: Invocation, proceed: Any) -> Any:
        seen.append((call.method, call.args))
        return proceed(call.replace(metadata={"who": "me"}))

    with rpc_blocking.Client.connect(blocking, interceptors=[note]) as client:
        assert list(client.stream("Blocking.who", 2)) == ["me", "me"]
        assert client.call("Blocking.total", iter([1, 2])) == 3
    assert seen == [("Blocking.who", (2,)), ("Blocking.total", ())]


def test_span_of_a_stream_lasts_until_its_last_item() -> None:
    sdk = pytest.importorskip("opentelemetry.sdk.trace")
    export = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter")
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor

    exporter = export.InMemorySpanExporter()
    provider = sdk.TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))

    async def run() -> list[str]:
        async with rpc_asyncio.Server(tracer_provider=provider) as server:
            server.register(Numbers())
            address = await server.start("tcp://127.0.0.1:0")
            async with rpc_asyncio.Client.connect(address) as client:
                return [span async for span in client.stream("Numbers.traced", 3)]

    ids = set(asyncio.run(run()))
    (span,) = exporter.get_finished_spans()
    assert span.name == "Numbers/traced"
    assert ids == {format(span.context.span_id, "x")}
    assert span.attributes["rpc.response.status_code"] == "ok"


def test_balanced_client_stays_at_the_node_of_a_stream(blocking: str) -> None:
    with rpc_blocking.Server() as other:
        other.register(Blocking())
        nodes = [blocking, other.start("tcp://127.0.0.1:0")]
        with rpc_blocking.BalancedClient(StaticDiscovery(nodes)) as client:
            for node in nodes:  # connect both: one that is being dialled is passed over
                assert list(client.stream("Blocking.count", 1, node=node)) == [0]
            streams = [client.stream("Blocking.count", 10**6) for _ in range(4)]
            assert [next(stream) for stream in streams] == [0] * 4
            assert client.stats["in_flight"] == 4
            for n in range(1, 5000):
                assert [next(stream) for stream in streams] == [n] * 4
            assert other.stats["running"] == 2
            assert client.call("Blocking.total", iter([1, 2])) == 3
            assert client.service(Blocking).total([3, 4]) == 7
            streams.clear()
            gc.collect()
            assert list(client.stream("Blocking.count", 2)) == [0, 1]
            assert client.stats["in_flight"] == 0


def test_balanced_client_of_asyncio_has_streams() -> None:
    async def run() -> None:
        async with rpc_asyncio.Server() as server:
            server.register(Numbers())
            address = await server.start("tcp://127.0.0.1:0")
            async with rpc_asyncio.BalancedClient(StaticDiscovery([address])) as client:
                assert [n async for n in client.stream("Numbers.count", 2, node=address)] == [0, 1]
                assert await client.call("Numbers.total", iter([1, 2])) == 3
                async with client.stream("Numbers.count", 10**9) as stream:
                    assert await anext(stream) == 0
                    assert client.stats["in_flight"] == 1
                assert client.stats["in_flight"] == 0
                with pytest.raises(LocalProtocolError, match="idempotent does not work"):
                    client.with_options(idempotent=True).stream("Numbers.count", 1)

    asyncio.run(run())


@pytest.mark.fault(123)
def test_a_million_items_take_linear_time_and_flat_memory() -> None:
    async def run() -> None:
        loop = asyncio.get_running_loop()
        async with rpc_asyncio.Server() as server:
            server.register(Numbers())
            address = await server.start("tcp://127.0.0.1:0")
            async with rpc_asyncio.Client.connect(address) as client:
                count = 0
                times = []
                begun = loop.time()
                before = 0
                async for _ in client.stream("Numbers.count", 1_000_000):
                    count += 1
                    if count % 250_000 == 0:
                        times.append(loop.time() - begun)
                        begun = loop.time()
                    if count == 250_000:
                        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
                assert count == 1_000_000
                grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
                assert grown < 8 * 1024  # KiB
                assert max(times[1:]) < 5 * min(times)

    asyncio.run(run())


@pytest.mark.fault(132)
def test_stream_that_is_garbage_in_a_thread_that_has_the_lock_is_cancelled(blocking: str) -> None:
    with rpc_blocking.Client.connect(blocking) as client:
        streams = [client.stream("Blocking.count", 10**9) for _ in range(3)]
        for stream in streams:
            next(stream)
        with client._lock:  # as in a finalizer that runs in the middle of another call
            streams.pop()
            stream = streams.pop()
            del stream
        thread = threading.Thread(target=streams.clear)  # and one in any other thread
        thread.start()
        thread.join(5.0)
        assert not thread.is_alive()
        assert client.call("Blocking.total", iter([1])) == 1
        assert client.calls_in_flight == 0


@pytest.mark.fault(132)
def test_stream_that_is_garbage_after_its_loop_was_closed_is_no_error() -> None:
    async def run() -> Any:
        async with rpc_asyncio.Server() as server:
            server.register(Numbers())
            address = await server.start("tcp://127.0.0.1:0")
            client = await rpc_asyncio.Client.connect(address)
            stream = client.stream("Numbers.count", 10**9)
            assert await anext(stream) == 0
            await client.close()
            return stream

    left = asyncio.run(run())
    del left
    gc.collect()


@pytest.mark.fault(130)
def test_stream_belongs_to_its_loop() -> None:
    async def begin() -> Any:
        async with rpc_asyncio.Server() as server:
            server.register(Numbers())
            async with rpc_asyncio.Client.connect(
                await server.start("tcp://127.0.0.1:0")
            ) as client:
                stream = client.stream("Numbers.count", 10**9)
                await anext(stream)

                def elsewhere() -> BaseException | None:
                    try:
                        asyncio.run(stream.send(1))
                    except BaseException as error:
                        return error
                    return None

                error = await asyncio.to_thread(elsewhere)
                assert isinstance(error, LocalProtocolError)
                assert "belongs to another event loop" in str(error)
                stream.close()

    asyncio.run(begin())
