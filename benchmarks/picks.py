"""Measure what a balancer costs: CPU time of a pick and of a rebuild, at 3, 100 and 10,000 nodes.

python benchmarks/picks.py
"""

import random
import time
from collections.abc import Callable

from rpc_discovery import BALANCERS, Endpoint, Node, OutlierEjection, RetryBudget, find_balancer

ROUNDS = 7
KEYS = [f"user-{number}" for number in range(5000)]


def _best(work: Callable[[], object], count: int = 1) -> float:
    """Return the least CPU seconds of one of `count` repetitions inside `work`."""
    times = []
    for _ in range(ROUNDS):
        begun = time.process_time()
        work()
        times.append(time.process_time() - begun)
    return min(times) / count


def _endpoints(number: int) -> list[Endpoint]:
    """Make endpoints of different weights, all of which have answered before."""
    made = []
    for i in range(number):
        made.append(Endpoint(Node(f"tcp://10.0.{i >> 8}.{i & 255}:80", weight=1 + i % 5)))
        made[-1].begin(0.0)
        made[-1].end(0.0, random.uniform(0.001, 0.002))
    return made


def _balancer(name: str, number: int) -> tuple[float, float, float]:
    """Return the seconds of a pick, of the first rebuild, and of one after a change."""
    endpoints = _endpoints(number)

    def first() -> None:
        made = find_balancer(name, rng=random.random)
        made.rebuild(endpoints, 0.0)
        made.pick(0.0, "key")

    balancer = find_balancer(name, rng=random.random)
    sets = [endpoints, endpoints[1:]]

    def change() -> None:
        sets.reverse()
        balancer.rebuild(sets[0], 0.0)
        balancer.pick(0.0, "key")

    def picks() -> None:
        pick = balancer.pick
        for key in KEYS:
            pick(1.0, key)

    rebuilt, changed = _best(first), _best(change)
    return _best(picks, len(KEYS)), rebuilt, changed


def _main() -> None:
    print(f"{'':22}{'nodes':>8}{'pick us':>10}{'first rebuild ms':>18}{'rebuild ms':>12}")
    for name in BALANCERS:
        if name == "p2c":  # least_loaded by another name
            continue
        for number in (3, 100, 10_000):
            pick, first, change = _balancer(name, number)
            print(f"{name:22}{number:8}{pick * 1e6:10.2f}{first * 1e3:18.2f}{change * 1e3:12.2f}")
    (endpoint,) = _endpoints(1)
    budget = RetryBudget(0.0)
    ejection = OutlierEjection(rng=random.random)

    def account() -> None:
        for _ in KEYS:
            budget.deposit()
            endpoint.begin(0.0)
            endpoint.end(0.0, 0.001)

    def fail() -> None:
        for _ in KEYS:
            ejection.failed(endpoint, 0.0)

    print(f"begin, end and deposit of a call: {_best(account, len(KEYS)) * 1e6:.2f} us")
    print(f"notice of a failed call: {_best(fail, len(KEYS)) * 1e6:.2f} us")


if __name__ == "__main__":
    _main()
