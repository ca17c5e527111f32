"""What a driver's server did can be repeated by the core alone, from a saved trace."""

import asyncio
import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import rpc_asyncio
import rpc_blocking
from rpc_proto import CallError, ServerConfig, ServerConnection, ServerPort, quick
from rpc_proto.trace import Trace, replay

try:
    import rpc_gevent

    GEVENT: Any = rpc_gevent.Server
except (ImportError, AttributeError):
    GEVENT = None

CONFIG = ServerConfig(handling_timeout=10.0, high_water=64 * 1024)


class Work:
    def __init__(self) -> None:
        self.lines = 0

    @quick
    def add(self, a: int, b: int) -> int:
        return a + b

    def echo(self, value: Any) -> Any:
        return value

    def count(self, n: int) -> Iterator[int]:
        yield from range(n)

    def fail(self) -> None:
        raise ZeroDivisionError("a bug")

    def slow(self) -> str:
        threading.Event().wait(0.15)
        return "slow"

    def line(self, text: str) -> None:
        self.lines += 1


def traced(kind: Any) -> Any:
    """A server of that kind that keeps the traces of its connections."""

    def make(**settings: Any) -> Any:
        traces: list[Trace] = []
        server = kind(trace=traces.append, **settings)
        server.traces = traces
        return server

    return make


def talk(address: str) -> None:
    """Use a server in every way."""
    for codec in ("msgpack", "json"):
        with rpc_blocking.Client.connect(address, codec=codec) as client:
            assert client.call("Work.add", 1, 2) == 3
            assert client.call("Work.echo", {"a": [1, None]}) == {"a": [1, None]}
            assert len(client.call("Work.echo", bytes(300_000))) == 300_000
            assert list(client.call_many("Work.add", [(i, 1) for i in range(50)]))[-1] == 50
            assert list(client.stream("Work.count", 2000)) == list(range(2000))
            assert next(client.stream("Work.count", 2000)) == 0
            client.notify("Work.line", "text")
            for method, args in (("Work.fail", ()), ("Work.nope", ()), ("Work.add", ("x", "y"))):
                with pytest.raises(CallError):
                    client.call(method, *args)
            with pytest.raises(CallError):
                client.call("Work.slow", timeout=0.05)
            calls = [
                threading.Thread(target=client.call, args=("Work.echo", "x" * 50_000))
                for _ in range(8)
            ]
            for call in calls:
                call.start()
            for call in calls:
                call.join()
            pending = client.start("Work.slow")
            pending.cancel()
    reset(address)


def reset(address: str) -> None:
    port = int(address.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port)) as sock:
        sock.sendall(b"nonsense\n")
        with contextlib.suppress(ConnectionResetError):
            sock.recv(1000)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def serve_blocking() -> list[Trace]:
    with traced(rpc_blocking.Server)(config=CONFIG) as server:
        server.register(Work())
        talk(server.start("tcp://127.0.0.1:0"))
        while server.stats["running"]:  # the end of a handler is a step, too
            time.sleep(0.01)
    return server.traces


def serve_asyncio() -> list[Trace]:
    async def serve() -> list[Trace]:
        async with traced(rpc_asyncio.Server)(config=CONFIG) as server:
            server.register(Work())
            address = await server.start("tcp://127.0.0.1:0")
            await asyncio.to_thread(talk, address)
            while server.stats["running"]:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        return server.traces

    return asyncio.run(serve())


def serve_gevent() -> list[Trace]:
    if GEVENT is None:
        pytest.skip("gevent is not installed")
    gevent = pytest.importorskip("gevent")

    class SlowWork(Work):
        def slow(self) -> str:
            gevent.sleep(0.15)
            return "slow"

    server = traced(GEVENT)(config=CONFIG)
    server.register(SlowWork(), "Work")
    address = server.start("tcp://127.0.0.1:0")
    gevent.get_hub().threadpool.apply(talk, (address,))
    while server.stats["running"]:
        gevent.sleep(0.01)
    server.stop()
    return server.traces


@pytest.mark.parametrize("serve", [serve_asyncio, serve_blocking, serve_gevent])
def test_server_is_repeated_by_the_core_alone(serve: Callable[[], list[Trace]]) -> None:
    traces = serve()
    assert len(traces) == 3
    for trace in traces:
        loaded = Trace.from_lines(list(trace.to_lines()))
        again = replay(loaded)
        for before, after in zip(trace.steps, again.steps, strict=True):
            assert before == after
    done = [step["do"] for step in traces[0].steps]
    assert {"receive_data", "send_response", "next_buffer"} <= set(done)


@pytest.mark.parametrize("kind", [rpc_asyncio.Server, rpc_blocking.Server])
def test_servers_without_a_trace_use_plain_connections(kind: Any) -> None:
    connection = kind().make_connection(("127.0.0.1", 1), None, 0.0)
    assert type(connection) is ServerPort
    assert type(connection.connection) is ServerConnection
