"""The asyncio server of the suite: its handlers are coroutines."""

import asyncio
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from conformance.host import Host
from conformance.host_blocking import Gate as BlockingGate
from conformance.host_blocking import gates as blocking_gates
from conformance.services import LONGEST, PAUSE, Counters, with_coroutines
from conformance.streams import AsyncStreams, PlainStreams
from rpc_asyncio import Client, Server
from rpc_blocking import Client as BlockingClient
from rpc_proto import current_call

__all__ = ["HOST"]

gates: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)


class Gate:
    """Handlers that wait until the test opens their gate."""

    def __init__(self, counters: Counters) -> None:
        self._counters = counters

    async def wait(self, key: str, value: Any = "through") -> Any:
        self._counters.add("started", key)
        try:
            async with asyncio.timeout(LONGEST):
                await gates[key].wait()
        except asyncio.CancelledError:
            self._counters.add("cancelled", key)
            raise
        finally:
            self._counters.add("ended", key)
        return value

    async def stubborn(self, key: str) -> str:
        """Go on in spite of being cancelled."""
        self._counters.add("started", key)
        while not gates[key].is_set():
            try:
                await gates[key].wait()
            except asyncio.CancelledError:
                self._counters.add("cancelled", key)
        self._counters.add("ended", key)
        return "too late"


class Hop:
    """Passes calls on to the addresses given, one after the other."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate

    async def times(self, onward: list[str]) -> list[float | None]:
        await asyncio.sleep(PAUSE)
        times = [current_call().time_left]
        if onward:
            async with Client.connect(onward[0]) as client:
                times += await client.call("Hop.times", onward[1:])
        return times

    async def metadata(self, onward: list[str]) -> list[dict[str, str]]:
        found = [dict(current_call().metadata)]
        if onward:
            async with Client.connect(onward[0]) as client:
                found += await client.call("Hop.metadata", onward[1:])
        return found

    async def wait(self, onward: list[str], key: str) -> Any:
        if not onward:
            return await self._gate.wait(key)
        async with Client.connect(onward[0]) as client:
            return await client.call("Hop.wait", onward[1:], key, timeout=LONGEST)


class AsyncioHost(Host):
    """Runs a server on an event loop in the main thread."""

    _loop: asyncio.AbstractEventLoop

    def run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        gate = Gate(self.counters)
        plain = [with_coroutines(service) for service in self.plain_services()]
        self.make_server(Server, [*plain, gate, Hop(gate)])
        self.server.register(AsyncStreams(self.counters, gate, Client.connect), "Streams")
        # Plain functions run in threads, where gates of the loop cannot be waited for.
        threads = BlockingGate(self.counters)
        plain_streams = PlainStreams(self.counters, threads, BlockingClient.connect)
        self.server.register(plain_streams, "PlainStreams")
        self.serving([await self.server.start(**where) for where in self.addresses()])
        await asyncio.Event().wait()

    def ask(self, function: Callable[[], Any]) -> Any:
        answer: Future[Any] = Future()
        self._loop.call_soon_threadsafe(lambda: answer.set_result(function()))
        return answer.result(LONGEST)

    def open(self, key: str) -> None:
        blocking_gates.open(key)
        self._loop.call_soon_threadsafe(lambda: gates[key].set())

    def begin_stop(self, grace: float) -> None:
        stopping = asyncio.run_coroutine_threadsafe(self.server.stop(grace), self._loop)
        stopping.add_done_callback(lambda done: self.stopped(done.exception()))


HOST = AsyncioHost
