"""The callers of `rpc-proto demo`: the same balanced client in three runtimes."""

import asyncio
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from threading import Thread
from time import monotonic
from typing import Any, NamedTuple

import rpc_asyncio

__all__ = ["RUNTIMES", "Answer", "Load", "call_asyncio"]

RUNTIMES = ("asyncio", "gevent", "blocking")
CALLERS = 4  # in each runtime, at the same time


class Answer(NamedTuple):
    """One call that was answered: when, in which runtime its caller was, and by which process."""

    at: float
    runtime: str
    process: int


class Load:
    """Callers that call on and on, and what became of their calls."""

    def __init__(self, discovery: Any) -> None:
        self.goes_on = True
        self.answers: list[Answer] = []
        self._pairs: set[tuple[str, int]] = set()  # runtime and process
        self.errors: list[str] = []  # of calls that failed; who made one ends
        self.repeated = 0  # calls that were sent to another node after a failure
        self._task = asyncio.create_task(self._run_task(discovery))
        self._threads = [
            Thread(target=self._run, args=(kind, call, discovery), daemon=True)
            for kind, call in (("gevent", _call_gevent), ("blocking", _call_blocking))
        ]
        for thread in self._threads:
            thread.start()

    def answered(self, runtime: str, process: int) -> None:
        """Record an answer."""
        self.answers.append(Answer(monotonic(), runtime, process))
        self._pairs.add((runtime, process))

    def seen(self, runtimes: Iterable[str], processes: Iterable[int]) -> bool:
        """Whether callers in each of these runtimes were answered by each of these processes."""
        return self._pairs.issuperset(product(runtimes, processes))

    async def stop(self) -> None:
        """Let the callers end."""
        self.goes_on = False
        await self._task
        for thread in self._threads:
            await asyncio.to_thread(thread.join, 10.0)

    async def _run_task(self, discovery: Any) -> None:
        try:
            await call_asyncio(discovery, self)
        except Exception as error:
            self.errors.append(f"asyncio: {error}")

    def _run(self, kind: str, call: "Callable[[Any, Load], None]", discovery: Any) -> None:
        try:
            call(discovery, self)
        except Exception as error:
            self.errors.append(f"{kind}: {error}")


async def call_asyncio(discovery: Any, load: Load) -> None:
    """What asyncio's callers do."""
    async with rpc_asyncio.BalancedClient(discovery, idempotent=True, slow_start=2.0) as client:

        async def call_on_and_on() -> None:
            while load.goes_on:
                load.answered("asyncio", await client.call("Work.step", timeout=5.0))

        await asyncio.gather(*(call_on_and_on() for _ in range(CALLERS)))
        load.repeated += client.stats["failovers"]


def _call_gevent(discovery: Any, load: Load) -> None:
    import gevent

    from rpc_gevent import BalancedClient

    with BalancedClient(discovery, idempotent=True, slow_start=2.0) as client:

        def call_on_and_on() -> None:
            while load.goes_on:
                load.answered("gevent", client.call("Work.step", timeout=5.0))

        gevent.joinall([gevent.spawn(call_on_and_on) for _ in range(CALLERS)], raise_error=True)
        load.repeated += client.stats["failovers"]
    gevent.get_hub().destroy()


def _call_blocking(discovery: Any, load: Load) -> None:
    from rpc_blocking import BalancedClient

    with (
        BalancedClient(discovery, idempotent=True, slow_start=2.0) as client,
        ThreadPoolExecutor(CALLERS) as threads,
    ):

        def call_on_and_on() -> None:
            while load.goes_on:
                load.answered("blocking", client.call("Work.step", timeout=5.0))

        for caller in [threads.submit(call_on_and_on) for _ in range(CALLERS)]:
            caller.result()
        load.repeated += client.stats["failovers"]
