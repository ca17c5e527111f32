"""Measure what a balanced client costs over a plain one: the same calls, to one server.

Each measurement is a fresh client process on one core; the server has the other. Both kinds of
client take turns within one process, in slices of a few hundred calls, so that they see the same
machine. What counts is the CPU time of the client for each call, and the ratio of the medians.

    python benchmarks/balanced_calls.py                 all backends, W1 and W2
    python benchmarks/balanced_calls.py asyncio --slices 60
"""

import argparse
import asyncio
import importlib
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

BACKENDS = ("asyncio", "gevent", "blocking")
WORKLOADS = {"W1": ("one call at a time", 1), "W2": ("64 calls in flight", 64)}
KINDS = ("plain", "balanced")
METHOD, PAYLOAD = "Bench.text", "x" * 32


def _pin(core: int) -> None:
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[core % len(cores)]})


def _serve(backend: str) -> None:
    """Serve until killed."""
    _pin(0)
    contender = importlib.import_module(f"ours_{backend}")
    outcome = contender.serve(lambda address: print(address, flush=True))
    if backend == "asyncio":
        asyncio.run(outcome)


def _measure(work: Callable[[], object]) -> tuple[float, float]:
    """Return the CPU seconds of this process and the seconds that something takes."""
    cpu, clock = time.process_time(), time.monotonic()
    work()
    return time.process_time() - cpu, time.monotonic() - clock


class _InPlace:
    """Calls of the blocking client, from one thread or from several."""

    def __init__(self, addresses: list[str], in_flight: int) -> None:
        module = importlib.import_module("rpc_blocking")
        self.clients = {
            "plain": module.Client.connect(addresses[0]),
            "balanced": module.BalancedClient(addresses),
        }
        self._in_flight = in_flight

    def run(self, kind: str, calls: int) -> tuple[float, float]:
        call = self.clients[kind].call
        each = calls // self._in_flight

        def caller() -> None:
            for _ in range(each):
                call(METHOD, PAYLOAD, timeout=5.0)

        return _measure(lambda: self._together(caller))

    def _together(self, caller: Callable[[], None]) -> None:
        if self._in_flight == 1:
            caller()
            return
        threads = [threading.Thread(target=caller) for _ in range(self._in_flight)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


class _Gevent(_InPlace):
    def __init__(self, addresses: list[str], in_flight: int) -> None:
        module = importlib.import_module("rpc_gevent")
        self.clients = {
            "plain": module.Client.connect(addresses[0]),
            "balanced": module.BalancedClient(addresses),
        }
        self._in_flight = in_flight

    def _together(self, caller: Callable[[], None]) -> None:
        import gevent

        gevent.joinall([gevent.spawn(caller) for _ in range(self._in_flight)])


class _Asyncio:
    def __init__(self, addresses: list[str], in_flight: int) -> None:
        module = importlib.import_module("rpc_asyncio")
        self._loop = asyncio.new_event_loop()
        self.clients = {
            "plain": self._loop.run_until_complete(module.Client.connect(addresses[0])),
            "balanced": module.BalancedClient(addresses),
        }
        self._in_flight = in_flight

    def run(self, kind: str, calls: int) -> tuple[float, float]:
        call = self.clients[kind].call
        each = calls // self._in_flight

        async def caller() -> None:
            for _ in range(each):
                await call(METHOD, PAYLOAD, timeout=5.0)

        async def together() -> None:
            await asyncio.gather(*(caller() for _ in range(self._in_flight)))

        return _measure(lambda: self._loop.run_until_complete(together()))


def _load(backend: str, options: dict[str, Any]) -> None:
    """Print the microseconds of a call: of CPU and of the clock, for each slice and kind."""
    _pin(1)
    in_flight, calls = options["in_flight"], options["calls"]
    kinds: dict[str, type[_InPlace | _Asyncio]] = {
        "asyncio": _Asyncio,
        "gevent": _Gevent,
        "blocking": _InPlace,
    }
    contender = kinds[backend](options["addresses"], in_flight)
    calls -= calls % in_flight
    results: dict[str, list[tuple[float, float]]] = {kind: [] for kind in KINDS}
    for number in range(-3, options["slices"]):  # the first few warm up
        for kind in KINDS if number % 2 else reversed(KINDS):
            cpu, clock = contender.run(kind, calls)
            if number >= 0:
                results[kind].append((cpu / calls * 1e6, clock / calls * 1e6))
    print(json.dumps(results), flush=True)
    os._exit(0)


def _compare(backend: str, workload: str, options: argparse.Namespace) -> Any:
    command = [sys.executable, __file__]
    server = subprocess.Popen([*command, "--serve", backend], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    try:
        load = {
            "addresses": [server.stdout.readline().strip()],
            "in_flight": WORKLOADS[workload][1],
            "calls": options.calls,
            "slices": options.slices,
        }
        done = subprocess.run(
            [*command, "--load", backend, json.dumps(load)],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            timeout=600,
        )
    finally:
        server.kill()
        server.communicate()
    return json.loads(done.stdout)


def main() -> None:
    if sys.argv[1:2] == ["--serve"]:
        _serve(sys.argv[2])
        return
    if sys.argv[1:2] == ["--load"]:
        _load(sys.argv[2], json.loads(sys.argv[3]))
        return
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("backends", nargs="*", default=BACKENDS, metavar="BACKEND")
    parser.add_argument("--slices", type=int, default=30)
    parser.add_argument("--calls", type=int, default=960, help="in each slice")
    options = parser.parse_args()
    print(f"CPython {sys.version.split()[0]}; medians of {options.slices} slices", end=" ")
    print(f"of {options.calls} calls; microseconds of a call at the client, and ratios")
    print(f"{'':12}{'':20}{'CPU':>8}{'ratio':>8}{'clock':>10}{'ratio':>8}")
    for workload, (title, _) in WORKLOADS.items():
        print(f"{workload} {title}")
        for backend in options.backends:
            results = _compare(backend, workload, options)
            plain: tuple[float, float] | None = None
            for kind in KINDS:
                cpu, clock = (
                    statistics.median(column) for column in zip(*results[kind], strict=True)
                )
                plain = plain or (cpu, clock)
                print(
                    f"{backend:>12}  {kind:18}{cpu:8.1f}{cpu / plain[0]:8.2f}"
                    f"{clock:10.1f}{clock / plain[1]:8.2f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
