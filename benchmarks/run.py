"""Measure rates against the floor of the same runtime, interleaved in one run.

Each measurement is a fresh server process on one core and a fresh client process on another.
Rounds go through all contenders in shuffled order; what counts are the medians and the ratios of
medians within this run, not the absolute figures: machines are shared and noisy. So it is with the
CPU time of both processes for each call, kernel included, in microseconds (W4: for each MiB).

    python benchmarks/run.py                      all workloads, 5 rounds
    python benchmarks/run.py --rounds 3 --seconds 1 W1 W2
"""

import argparse
import asyncio
import importlib
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

WORKLOADS = {
    "W1": ("one call at a time, 32-byte text", "calls/s", 1, 1, 32),
    "W2": ("64 calls in flight, one connection", "calls/s", 1, 64, 32),
    "W3": ("64 connections, one call each", "calls/s", 64, 1, 32),
    "W4": ("one call at a time, 1 MiB echoed", "MiB/s", 1, 1, 1 << 20),
}
TARGETS = {"W1": 0.80, "W2": 0.60, "W3": 0.70, "W4": 0.80}

# name: module, loop, what it is measured against, the workloads that it has, goals of its own
CONTENDERS: dict[str, tuple[str, str | None, str | None, Collection[str], dict[str, float]]] = {
    "asyncio floor": ("floor_asyncio", "asyncio", None, WORKLOADS, {}),
    "asyncio": ("ours_asyncio", "asyncio", "asyncio floor", WORKLOADS, {}),
    "uvloop floor": ("floor_asyncio", "uvloop", None, WORKLOADS, {}),
    "uvloop": ("ours_asyncio", "uvloop", "uvloop floor", WORKLOADS, {}),
    "gevent floor": ("floor_gevent", None, None, WORKLOADS, {}),
    "gevent": ("ours_gevent", None, "gevent floor", WORKLOADS, {}),
    "blocking floor": ("floor_blocking", None, None, WORKLOADS, {}),
    "blocking": ("ours_blocking", None, "blocking floor", WORKLOADS, {"W1": 0.85}),
    "rpyc, 64 threads": ("peer_rpyc", None, None, ("W2",), {}),
    "64 threads": ("ours_blocking_shared", None, "rpyc, 64 threads", ("W2",), {"W2": 1.0}),
}


def _pin(core: int) -> None:
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[core % len(cores)]})


def _run(coroutine: Any, loop: str) -> Any:
    if loop == "none":  # it was no coroutine, and has run
        return coroutine
    if loop == "uvloop":
        import uvloop

        return uvloop.run(coroutine)
    return asyncio.run(coroutine)


def _child(role: str, module: str, loop: str, arguments: str) -> None:
    _pin(0 if role == "serve" else 1)
    contender = importlib.import_module(module)
    if role == "serve":
        _run(contender.serve(lambda address: print(address, flush=True)), loop)
        return
    load = json.loads(arguments)
    size = load.pop("size")
    load["payload"] = "x" * size if size < 65536 else bytes(size)
    address, warm_up, server = load.pop("address"), load.pop("warm_up"), load.pop("server")
    _run(contender.load(address, **{**load, "seconds": warm_up}), loop)
    before = _cpu_time(server)
    result = _run(contender.load(address, **load), loop)
    print(json.dumps([*result, _cpu_time(server) - before]))


def _cpu_time(server: int) -> float:
    """Return the seconds of CPU time that the server and this process have used."""
    with open(f"/proc/{server}/stat") as file:
        user, system = file.read().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK") + time.process_time()


@contextmanager
def started(*arguments: str) -> Iterator[tuple[int, str]]:
    """Run a server with the arguments of a Python; give its process and the address it prints."""
    server = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    try:
        yield server.pid, server.stdout.readline().strip()
    finally:
        server.kill()
        server.communicate()


def result_of(*arguments: str, seconds: float) -> Any:
    """Return what a client that works for so many seconds prints as JSON."""
    client = subprocess.run(
        [sys.executable, *arguments],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=seconds * 4 + 30,
    )
    return json.loads(client.stdout)


def measure(name: str, workload: str, seconds: float) -> tuple[float, float]:
    module, loop = CONTENDERS[name][:2]
    _, unit, connections, in_flight, size = WORKLOADS[workload]
    loop = loop or "none"
    with started(__file__, "--child", "serve", module, loop, "{}") as (server, address):
        load = {
            "address": address,
            "connections": connections,
            "in_flight": in_flight,
            "size": size,
            "seconds": seconds,
            "warm_up": 0.3,
            "server": server,
        }
        count, elapsed, cpu = result_of(
            *(__file__, "--child", "load", module, loop, json.dumps(load)), seconds=seconds
        )
    if unit == "MiB/s":
        count *= size / 2**20
    return count / elapsed, cpu / count * 1e6


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        _child(*sys.argv[2:6])
        return
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("workloads", nargs="*", metavar="W", help="W1 W2 W3 W4; all by default")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--only", help="asyncio, uvloop, gevent, blocking or rpyc")
    options = parser.parse_args()
    print(f"CPython {sys.version.split()[0]}; medians of {options.rounds} rounds", end=" ")
    print(f"of {options.seconds:g} s; ratio to the one before; CPU time, and its ratio")
    for workload in options.workloads or WORKLOADS:
        title, unit = WORKLOADS[workload][:2]
        print(f"{workload} {title}, {unit}")
        names = [
            name
            for name, (module, loop, _, workloads, _) in CONTENDERS.items()
            if workload in workloads and (options.only or "") in (loop or module)
        ]
        measured: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
        for _ in range(options.rounds):
            for name in random.sample(names, len(names)):
                measured[name].append(measure(name, workload, options.seconds))
        medians = {
            name: [statistics.median(row) for row in zip(*measured[name], strict=True)]
            for name in names
        }
        for name in names:
            _, _, base, _, goals = CONTENDERS[name]
            rate, cpu = medians[name]
            if base is not None and base in medians:
                base_rate, base_cpu = medians[base]
                goal = goals.get(workload, TARGETS[workload])
                ratio = f"{rate / base_rate:8.2f}   goal {goal:.2f}{cpu:10.1f}{base_cpu / cpu:8.2f}"
            else:
                ratio = f"{cpu:29.1f}"
            print(f"   {name:18}{rate:12,.0f}{ratio}", flush=True)


if __name__ == "__main__":
    main()
