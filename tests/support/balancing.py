"""Endpoints for tests of balancers, and what came out of many picks."""

import os
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from rpc_discovery import BALANCERS, Balancer, Endpoint, Node, find_balancer

# `make picks` makes a million.
PICKS = int(os.environ.get("PICKS", "100000"))
NAMES = sorted(set(BALANCERS) - {"p2c"})


def endpoint(number: int, weight: float = 1.0, zone: str | None = None, **since: float) -> Endpoint:
    """Make an endpoint whose address has that number."""
    metadata = {} if zone is None else {"zone": zone}
    address = f"tcp://10.0.{number >> 8}.{number & 255}:80"
    return Endpoint(Node(address, ["S"], weight=weight, metadata=metadata), **since)


def endpoints(weights: Iterable[float]) -> list[Endpoint]:
    """Make an endpoint for each weight."""
    return [endpoint(number, weight) for number, weight in enumerate(weights)]


def balancer(name: str, among: Iterable[Endpoint], seed: int = 1, **settings: Any) -> Balancer:
    """Make a balancer with a seeded generator."""
    made = find_balancer(name, rng=random.Random(seed).random, **settings)
    made.rebuild(among, 0.0)
    return made


def keys(count: int) -> Iterator[str]:
    """Give names as people choose them."""
    return (f"user-{number}" for number in range(count))


def counts(made: Balancer, among: Sequence[Endpoint], picks: int, now: float = 0.0) -> list[int]:
    """Pick, each time with another key, and return how often each endpoint was picked."""
    counted = Counter(made.pick(now, key) for key in keys(picks))
    assert set(counted) <= set(among)
    return [counted[endpoint] for endpoint in among]


def chi_square(observed: Sequence[int], weights: Sequence[float]) -> float:
    """Return by how many standard deviations chi-square is over what chance gives."""
    scale = sum(observed) / sum(weights)
    square = sum((o - w * scale) ** 2 / (w * scale) for o, w in zip(observed, weights, strict=True))
    freedom = len(observed) - 1
    return (square - freedom) / (2 * freedom) ** 0.5
