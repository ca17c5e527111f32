"""Measure what a registry costs apart from its transport: nodes that renew, and long polls.

python benchmarks/registry_load.py [--nodes 10000] [--polls 1000] [--minutes 1]

The clock is virtual; what is measured is the CPU time of the registry's own code, with the parsing
of each request's target and query, for so many seconds of life.
"""

import argparse
import json
import resource
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

from rpc_discovery.registry import Registry
from rpc_proto.http import Promise, Request

INTERVAL = 10.0  # seconds from one heartbeat of a node to the next: a third of its ttl
JSON = {"content-type": "application/json"}


def describe(number: int, weight: int = 1) -> bytes:
    node = {
        "address": f"tcp://10.{number >> 16}.{number >> 8 & 255}.{number & 255}:50000",
        "services": {f"Service{number % 100}": "0123456789ab"},
        "weight": weight,
        "ttl": 3 * INTERVAL,
    }
    return json.dumps(node).encode()


def post(registry: Registry, body: bytes, now: float) -> None:
    registry(Request("POST", "/registry/nodes", JSON, body), now)


def cpu(work: Callable[[], Any]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def fill(registry: Registry, bodies: list[bytes], start: float = 0.0) -> None:
    for number, body in enumerate(bodies):
        post(registry, body, start + number * INTERVAL / len(bodies))


def live(registry: Registry, bodies: list[bytes], start: float, seconds: float) -> None:
    """Renew each node every ten seconds, and run the timer when it asks for it."""
    step = INTERVAL / len(bodies)
    for number in range(int(seconds / step)):
        now = start + number * step
        due = registry.next_timeout()
        if due is not None and due <= now:
            registry.handle_timeout(now)
        post(registry, bodies[number % len(bodies)], now)


def poll(registry: Registry, polls: int, now: float, known: bool) -> list[Promise]:
    epoch = f"&epoch={registry.epoch}" if known else ""
    target = f"/registry/nodes?wait=30&revision={registry.revision}{epoch}"
    promises = [registry(Request("GET", target), now) for _ in range(polls)]
    assert all(isinstance(promise, Promise) for promise in promises)
    return promises  # type: ignore[return-value]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=10_000)
    parser.add_argument("--polls", type=int, default=1000)
    parser.add_argument("--minutes", type=float, default=1.0)
    given = parser.parse_args()
    bodies = [describe(number) for number in range(given.nodes)]

    tracemalloc.start()
    registry = Registry("bench", max_nodes=given.nodes)
    fill(registry, bodies)
    memory = tracemalloc.get_traced_memory()[0]
    promises = poll(registry, given.polls, INTERVAL, known=True)
    waiting = tracemalloc.get_traced_memory()[0] - memory
    tracemalloc.stop()
    size = len(registry._answer(None, None).body)
    print(f"{given.nodes} nodes: {memory / given.nodes:.0f} bytes each; a listing has {size} bytes")
    print(f"{given.polls} long polls: {waiting / given.polls:.0f} bytes each")
    for promise in promises:
        promise.abandon()

    seconds = 60 * given.minutes
    revision = registry.revision
    spent = cpu(lambda: live(registry, bodies, 2 * INTERVAL, seconds))
    renewals = seconds / INTERVAL * given.nodes
    print(
        f"renewals: {renewals / seconds:.0f} a second, {spent / renewals * 1e6:.1f} us each, "
        f"{spent / seconds:.1%} of a core; revisions meanwhile: {registry.revision - revision}"
    )

    now = 2 * INTERVAL + seconds
    for known, what in ((True, "what changed"), (False, "the whole listing")):
        promises = poll(registry, given.polls, now, known)
        now += 1.0
        body = describe(0, weight=2 + known)
        spent = cpu(lambda body=body, now=now: post(registry, body, now))  # type: ignore[misc]
        told = {id(promise.response) for promise in promises}
        size = len(promises[0].response.body) if promises[0].response else 0
        print(
            f"a change that {given.polls} long polls wait for, answered with {what} "
            f"({size} bytes, encoded {len(told)} time): {spent * 1e3:.1f} ms"
        )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"peak memory of the process: {peak:.0f} MiB")


if __name__ == "__main__":
    main()
