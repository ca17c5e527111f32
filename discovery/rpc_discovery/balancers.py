"""The balancers: which of several nodes gets the next call."""

from bisect import bisect, bisect_left
from collections.abc import Callable, Collection
from hashlib import blake2b
from heapq import heapify, heapreplace
from itertools import accumulate
from math import exp
from struct import unpack
from typing import Any
from zlib import crc32

from .balancer import Balancer
from .endpoints import DECAY, Endpoint

__all__ = [
    "BALANCERS",
    "ConsistentHash",
    "LeastLoaded",
    "Random",
    "RoundRobin",
    "WeightedRoundRobin",
    "find_balancer",
]

_CIRCLE = 2**30  # so that a point is an int of one digit, which sorts in half the time
_LOW = _CIRCLE - 1
_LOW_16 = int.from_bytes(_LOW.to_bytes(4, "little") * 16, "little")
_MIX = 0x9E3779B97F4A7C15
_POINTS = 96  # of a node of the mean weight
_MOST_POINTS = 50_000  # of all nodes
_FEW = 4  # calls in flight that are always allowed
_WALK = 1000  # points to look at for a node with room


class Random(Balancer):
    """Each call goes to a node drawn by weight."""

    measures = False

    def arrange(self, now: float) -> None:
        """Sum the weights up."""
        self._sums = list(accumulate(self.weights))
        self._total = self._sums[-1]
        self._last = len(self._sums) - 1

    def choose(self, now: float, key: str | None, avoid: Collection[Endpoint]) -> Endpoint:
        """Draw one."""
        return self.endpoints[bisect(self._sums, self.rng() * self._total, 0, self._last)]


class LeastLoaded(Random):
    """Draws two nodes by weight; the call goes to the one that is likely to answer sooner.

    That is the one with the lower latency * (1 + in flight * mean weight / weight), where the
    latency is `Endpoint.latency` times exp(-age / DECAY), so that a node that was slow once is
    tried again. While one of the two has no latency yet, both count as equally fast. If a node is
    drawn twice, its neighbour gets the call only if it is more than twice as good: nodes that are
    about equal are used roughly by weight, and a bad one is avoided even if there are only two.
    """

    measures = True

    def arrange(self, now: float) -> None:
        """Sum the weights up, and find what a call in flight means to each."""
        super().arrange(now)
        mean = self._total / len(self.weights)
        self._burden = [mean / weight for weight in self.weights]

    def choose(self, now: float, key: str | None, avoid: Collection[Endpoint]) -> Endpoint:
        """Draw two and compare."""
        rng, sums, total, last = self.rng, self._sums, self._total, self._last
        i = bisect(sums, rng() * total, 0, last)
        j = bisect(sums, rng() * total, 0, last)
        twice = i == j
        if twice:
            j = i - 1
        one, other = self.endpoints[i], self.endpoints[j]
        load = 1.0 + one.in_flight * self._burden[i]
        other_load = 1.0 + other.in_flight * self._burden[j]
        if one.latency and other.latency:
            load *= one.latency * exp((one.updated - now) / DECAY)
            other_load *= other.latency * exp((other.updated - now) / DECAY)
        if twice:
            other_load += other_load
        return one if load <= other_load else other


class RoundRobin(Balancer):
    """All nodes in turn, in a random order; weights other than 0 do not matter.

    Each node has a time at which it is due, and is due again 1 / weight later; the earliest is
    next. This spreads turns evenly whatever the weights, and a pick costs O(log n). Nodes keep
    their place when others are added or removed.
    """

    weighted = False
    measures = False

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self._turns: list[tuple[float, int]] = []
        self._order: list[Endpoint] = []
        self._pauses: list[float] = []

    def arrange(self, now: float) -> None:
        """Give new nodes a place between the turns of the others."""
        order, pauses = self._order, self._pauses
        # The node of the last turn became due again at this time plus its pause.
        last = max((at - pauses[i] for at, i in self._turns), default=0.0)
        left = {order[i]: (at - last) / pauses[i] for at, i in self._turns}
        self._order = self.endpoints
        self._pauses = [1 / weight for weight in self.weights]
        self._turns = [
            ((left[endpoint] if endpoint in left else self.rng()) * pause, i)
            for i, (endpoint, pause) in enumerate(zip(self._order, self._pauses, strict=True))
        ]
        heapify(self._turns)

    def choose(self, now: float, key: str | None, avoid: Collection[Endpoint]) -> Endpoint:
        """Return the endpoint that is due."""
        at, i = self._turns[0]
        heapreplace(self._turns, (at + self._pauses[i], i))
        return self.endpoints[i]


class WeightedRoundRobin(RoundRobin):
    """All nodes in turn, those with more weight more often, spread evenly."""

    weighted = True


class ConsistentHash(Balancer):
    """Calls with the same key go to the same node, from every caller, as long as it exists.

    Nodes have points on a circle, in proportion to their weights, and each key has two. The call
    goes to the node whose point most closely follows one of these. (This is multi-probe consistent
    hashing, as even as a circle with three times the points.) When a node is added or removed, only
    its own keys move; with unequal weights, or over 520 nodes, about as many again.

    A node is full when its calls in flight reach `load` times its share, by weight, of all of this
    caller's calls, but never with fewer than 4. Further calls go to the next node that has room.
    `inf` means no bound.

    A call without a key goes to a random point. Next to heavy nodes, a node with less than 1/96 of
    the mean weight (1/5 with 10,000 nodes) may have no keys.
    """

    measures = False

    def __init__(self, *, load: float = 1.25, **settings: Any) -> None:
        super().__init__(**settings)
        if not load > 1:
            raise ValueError(f"load must be over 1, not {load!r}")
        self.load = load
        self._known_points: dict[str, tuple[int, ...]] = {}

    def arrange(self, now: float) -> None:
        """Put the points of all endpoints on the circle."""
        # Of all nodes, with their full weights, so that ejections and slow starts move no other
        # keys.
        present = [e.node.weight for e in self.known if e.node.weight]
        density = min(_POINTS * len(present), _MOST_POINTS) / sum(present)
        known, self._known_points = self._known_points, {}
        places: list[int] = []
        holders: list[int] = []
        # In order of their addresses, so that all callers agree if two points are equal.
        for address, i in sorted((e.node.address, i) for i, e in enumerate(self.endpoints)):
            points = known.get(address) or _points(address, 1)
            # The fraction is rounded by the node's own chance, so that the sum is right.
            count = int(self.weights[i] * density + points[0] / _CIRCLE)
            if count > len(points):
                points = _points(address, count)
            self._known_points[address] = points
            places += points[:count]
            holders += [i] * count
        if not places:
            places = [_points(e.node.address, 1)[0] for e in self.endpoints]
            holders = list(range(len(places)))
        owners = dict(zip(places, holders, strict=True))
        self._owners = owners
        self._circle = sorted(owners)
        first = self._circle[0]
        self._circle.append(first + _CIRCLE)
        owners[first + _CIRCLE] = owners[first]
        scale = self.load / sum(self.weights)
        self._shares = [weight * scale for weight in self.weights]
        # Calls in flight are counted when first needed and then once in as many picks as there are
        # endpoints; in between, each pick counts as one more.
        self._counted = 0
        self._uncounted = len(self.endpoints)

    def choose(self, now: float, key: str | None, avoid: Collection[Endpoint]) -> Endpoint:
        """Return the key's endpoint, or the next one that has room and is not to be avoided."""
        if key is None:
            mixed = int(self.rng() * _CIRCLE) * _MIX
        elif isinstance(key, str):
            mixed = crc32(key.encode("utf-8", "surrogatepass")) * _MIX
        else:
            raise TypeError(f"a key must be a string, not {key!r:.40}")
        circle = self._circle
        probe, other = mixed & _LOW, mixed >> 32 & _LOW
        i, j = bisect_left(circle, probe), bisect_left(circle, other)
        if circle[j] - other < circle[i] - probe:
            i = j
        self._uncounted += 1
        owner = self._owners[circle[i]]
        endpoint = self.endpoints[owner]
        if endpoint.in_flight < _FEW and not avoid:
            return endpoint
        return self._with_room(i, avoid)

    def _with_room(self, i: int, avoid: Collection[Endpoint]) -> Endpoint:
        """Return the first usable endpoint from a place on the circle."""
        if self._uncounted > len(self.endpoints):
            self._counted = sum(endpoint.in_flight for endpoint in self.endpoints)
            self._uncounted = 1
        total = self._counted + self._uncounted
        circle, owners, endpoints, shares = self._circle, self._owners, self.endpoints, self._shares
        full: Endpoint | None = None
        end = len(circle) - 1
        for j in range(i, i + min(end, _WALK)):
            owner = owners[circle[j % end]]
            endpoint = endpoints[owner]
            if endpoint in avoid:
                continue
            if endpoint.in_flight < _FEW or endpoint.in_flight < total * shares[owner]:
                return endpoint
            full = full or endpoint
        return full or endpoints[owners[circle[i]]]


def _points(address: str, count: int) -> tuple[int, ...]:
    """Return at least that many points of a node."""
    points: tuple[int, ...] = ()
    while len(points) < count:
        digest = blake2b(f"{len(points)} {address}".encode()).digest()
        drawn = int.from_bytes(digest, "little") & _LOW_16
        points += unpack("<16I", drawn.to_bytes(64, "little"))
    return points


BALANCERS: dict[str, type[Balancer]] = {
    "random": Random,
    "round_robin": RoundRobin,
    "weighted_round_robin": WeightedRoundRobin,
    "least_loaded": LeastLoaded,
    "p2c": LeastLoaded,
    "consistent_hash": ConsistentHash,
}


def find_balancer(
    balancer: str | type[Balancer], *, rng: Callable[[], float], **settings: Any
) -> Balancer:
    """Return a new balancer, by class or by name (see `BALANCERS`).

    `settings` are the arguments of the class: `zone`, `slow_start`, and `load` for consistent
    hashing. ValueError for an unknown name.
    """
    if isinstance(balancer, type) and issubclass(balancer, Balancer):
        return balancer(rng=rng, **settings)
    if not isinstance(balancer, str) or balancer not in BALANCERS:
        raise ValueError(
            f"balancer must be a class or one of {', '.join(BALANCERS)}, not {balancer!r:.40}"
        )
    return BALANCERS[balancer](rng=rng, **settings)
