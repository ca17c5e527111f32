"""What all balancers share: which nodes may be picked, and with what weight."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Sequence
from math import inf

from .endpoints import Endpoint

__all__ = ["Balancer"]

_FLOOR = 0.1  # the share of its weight with which a node begins its slow start
_STEPS = 20  # in which it gets the rest
_ENOUGH = 0.5  # the share of a zone that must be in service for it to serve itself
_TRIES = 4  # to find an endpoint that is not to be avoided, before looking at all of them


class Balancer(ABC):
    """Picks an endpoint for each call.

    To write your own, override `choose`, and `arrange` if it has to prepare anything. It is not
    thread-safe: threads that share it need a lock.

    `rng` returns random numbers from 0 to 1, 1 excluded, such as `random.random`.

    A new node starts with a tenth of its weight and reaches all of it within `slow_start` seconds,
    in 20 steps; 0 turns that off.

    With a `zone`, nodes whose metadata have the same "zone" get all calls as long as those in
    service have at least half the weight of all of them; ejected ones are not in service. Below
    that the other nodes get the rest: of a zone with the share s in service, 1 - 2s of the calls
    leave it, so no node gets more than twice what it gets when all are well. If none is in
    service, all calls leave.
    """

    weighted = True  # whether weights matter, apart from 0: such nodes get nothing
    measures = True  # whether `choose` uses latencies; if not, they need not be measured

    def __init__(
        self, *, rng: Callable[[], float], zone: str | None = None, slow_start: float = 10.0
    ) -> None:
        if not 0 <= slow_start < inf:
            raise ValueError(f"slow_start must be from 0 seconds up, not {slow_start!r}")
        self.rng = rng
        self.zone = zone
        self.slow_start = slow_start
        self.known: Sequence[Endpoint] = ()
        self.endpoints: list[Endpoint] = []
        self.weights: list[float] = []
        self.due = inf  # when `pick` has more to do than `choose`

    def rebuild(self, endpoints: Iterable[Endpoint], now: float) -> None:
        """Replace the endpoints, including ejected ones.

        Call it when nodes are added, removed, ejected or restored, or when weights change. The work
        is done at the next pick, once for any number of changes.
        """
        self.known = tuple(endpoints)
        self.due = -inf

    def pick(
        self, now: float, key: str | None = None, avoid: Collection[Endpoint] = ()
    ) -> Endpoint | None:
        """Return an endpoint for a call, or None if no node in service has a weight.

        `avoid` has those that were tried already: they are returned only if no other is left in any
        zone. `key` is for balancers that send calls with the same key to the same node.
        """
        if now >= self.due:
            self._weigh(now)
        if not self.endpoints:
            return None
        if avoid:
            return self._untried(now, key, avoid)
        return self.choose(now, key, avoid)

    def arrange(self, now: float) -> None:  # noqa: B027 - not all need it
        """Prepare for picks among `endpoints`, at least one, with `weights`, all over 0.

        Called before a pick when they have changed, and for each step of a slow start.
        """

    @abstractmethod
    def choose(self, now: float, key: str | None, avoid: Collection[Endpoint]) -> Endpoint:
        """Return one of `endpoints`; considering `avoid` is optional."""

    def _weigh(self, now: float) -> None:
        """Compute which endpoints may be picked, and their current weights."""
        weighted, slow_start = self.weighted, self.slow_start
        endpoints: list[Endpoint] = []
        weights: list[float] = []
        near: list[bool] = []
        zone_weight = near_weight = 0.0
        self.due = inf
        for endpoint in self.known:
            node = endpoint.node
            weight = node.weight if weighted or not node.weight else 1.0
            if not weight:
                continue
            is_near = self.zone is not None and node.metadata.get("zone") == self.zone
            if is_near:
                zone_weight += weight
            if endpoint.ejected_until is not None:
                continue
            if is_near:
                near_weight += weight
            if now - endpoint.since < slow_start:
                weight *= max(_FLOOR, (now - endpoint.since) / slow_start)
                self.due = now + slow_start / _STEPS
            endpoints.append(endpoint)
            weights.append(weight)
            near.append(is_near)
        if near_weight and not all(near):
            share = min(1.0, near_weight / zone_weight / _ENOUGH)
            inside = sum(weight for weight, is_near in zip(weights, near, strict=True) if is_near)
            outside = sum(weights) - inside
            scale = (1 - share) / share * inside / outside
            weights = [
                w if is_near else w * scale for w, is_near in zip(weights, near, strict=True)
            ]
        self.endpoints = [e for e, weight in zip(endpoints, weights, strict=True) if weight]
        self.weights = [weight for weight in weights if weight]
        if self.endpoints:
            self.arrange(now)

    def _untried(self, now: float, key: str | None, avoid: Collection[Endpoint]) -> Endpoint:
        """Return an endpoint that was not tried, or None."""
        if len(avoid) < len(self.endpoints) or any(e not in avoid for e in self.endpoints):
            for _ in range(_TRIES):
                endpoint = self.choose(now, key, avoid)
                if endpoint not in avoid:
                    return endpoint
        left = [e for e in self.endpoints if e not in avoid] or [
            e for e in self.known if e not in avoid and e.node.weight and e.ejected_until is None
        ]
        return left[int(self.rng() * len(left))] if left else self.choose(now, key, ())
