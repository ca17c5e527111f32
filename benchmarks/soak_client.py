"""One process of the soak: a balanced client whose workers call until the time is over.

python benchmarks/soak_client.py BACKEND REGISTRY SECONDS SEED WORKERS RESULTS

The file RESULTS gets what became of each call, and when which node was sent an attempt.
"""

import asyncio
import importlib
import json
import random
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from rpc_discovery import RegistryDiscovery
from rpc_proto import CallError

TIMEOUT = 5.0  # seconds, of each call
LATE = 3.0  # seconds that workers have for their last call besides
KINDS = ("get", "hedged", "put")
OPTIONS: dict[str, dict[str, Any]] = {
    "get": {"idempotent": True},
    "hedged": {"idempotent": True, "hedge": True},
    "put": {},
}


class Worker:
    """Draws calls, and keeps what became of them. Times in seconds of the system's clock."""

    def __init__(self, backend: str, number: int, seed: int) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.unfinished: str | None = None
        self._rng = random.Random(f"{seed}/{backend}/{number}")
        self._name = f"{backend}-{number}"

    def draw(self) -> tuple[str, str, float, float]:
        """Return a call's id and kind, and the seconds that it works and is waited after it."""
        (kind,) = self._rng.choices(KINDS, (4, 1, 5))
        slow = self._rng.random() < 0.03
        seconds = self._rng.uniform(0.1, 0.4) if slow else self._rng.uniform(0.0, 0.01)
        call_id = self.unfinished = f"{self._name}-{len(self.calls)}"
        return call_id, kind, seconds, self._rng.uniform(0.0, 0.02)

    def ended(self, call_id: str, kind: str, began: float, error: BaseException | None) -> None:
        code: str | None = None
        maybe = True
        if isinstance(error, CallError):
            code, maybe = error.code, error.maybe_executed
        elif error is not None:
            code = f"{type(error).__name__}: {error}"
        told = None if error is None else str(error)
        self.calls.append((call_id, kind, began, time.monotonic(), code, maybe, told))
        self.unfinished = None


def make_client(backend: str, registry: str) -> tuple[Any, list[tuple[str, float]]]:
    """Return a client, and the list that gets the node and the time of each attempt."""
    client = importlib.import_module(f"rpc_{backend}").BalancedClient(
        RegistryDiscovery(registry), connect_timeout=1.0, attempt_timeout=1.0, max_attempts=5
    )
    attempts: list[tuple[str, float]] = []
    pool = client._pool
    succeeded, failed = pool.succeeded, pool.failed

    def note_success(target: Any, started: float, now: float) -> None:
        attempts.append((target.node.address, started))
        succeeded(target, started, now)

    def note_failure(call: Any, target: Any, error: Any, started: float, *rest: Any) -> Any:
        attempts.append((target.node.address, started))
        return failed(call, target, error, started, *rest)

    pool.succeeded, pool.failed = note_success, note_failure
    return client, attempts


async def run_asyncio(client: Any, workers: list[Worker], until: float) -> dict[str, Any]:
    async def run(worker: Worker) -> None:
        while time.monotonic() < until:
            call_id, kind, seconds, pause = worker.draw()
            began, error = time.monotonic(), None
            try:
                await client.call("Work.work", call_id, seconds, timeout=TIMEOUT, **OPTIONS[kind])
            except Exception as raised:
                error = raised
            worker.ended(call_id, kind, began, error)
            del error
            await asyncio.sleep(pause)

    tasks = [asyncio.create_task(run(worker)) for worker in workers]
    await asyncio.wait(tasks, timeout=until - time.monotonic() + TIMEOUT + LATE)
    stats: dict[str, Any] = client.stats
    await client.close()
    return stats


def run_in_place(
    client: Any, workers: list[Worker], until: float, spawn: Callable[..., Any], sleep: Any
) -> dict[str, Any]:
    def run(worker: Worker) -> None:
        while time.monotonic() < until:
            call_id, kind, seconds, pause = worker.draw()
            began, error = time.monotonic(), None
            try:
                client.call("Work.work", call_id, seconds, timeout=TIMEOUT, **OPTIONS[kind])
            except Exception as raised:
                error = raised
            worker.ended(call_id, kind, began, error)
            del error
            sleep(pause)

    running = [spawn(run, worker) for worker in workers]
    for each in running:
        each.join(max(0.0, until - time.monotonic() + TIMEOUT + LATE))
    stats: dict[str, Any] = client.stats
    client.close()
    return stats


def start_thread(function: Callable[..., Any], *args: Any) -> threading.Thread:
    thread = threading.Thread(target=function, args=args, daemon=True)
    thread.start()
    return thread


def main() -> None:
    backend, registry, seconds, seed, count, results = sys.argv[1:]
    workers = [Worker(backend, number, int(seed)) for number in range(int(count))]
    until = time.monotonic() + float(seconds)
    client, attempts = make_client(backend, registry)
    if backend == "asyncio":
        stats = asyncio.run(run_asyncio(client, workers, until))
    elif backend == "gevent":
        import gevent

        stats = run_in_place(client, workers, until, gevent.spawn, gevent.sleep)
    else:
        stats = run_in_place(client, workers, until, start_thread, time.sleep)
    told = {
        "calls": [call for worker in workers for call in worker.calls],
        "unfinished": [worker.unfinished for worker in workers if worker.unfinished],
        "attempts": attempts,
        "stats": stats,
        "cpu": time.process_time(),
    }
    with open(results, "w") as file:
        json.dump(told, file)


if __name__ == "__main__":
    main()
