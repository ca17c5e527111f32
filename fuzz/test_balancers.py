"""Balancers and ejection in any order of arrivals, departures, failures and jumps of the clock."""

from random import Random

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from budget import EXAMPLES, spread
from rpc_discovery import Balancer, Endpoint, Node, OutlierEjection, RetryBudget, find_balancer
from support.balancing import NAMES

ZONES = st.sampled_from(["here", "there", None])
WEIGHTS = st.sampled_from([1, 1, 1, 0, 0.5, 2, 1000])
SECONDS = st.sampled_from([0.0, 0.001, 0.1, 1.0, 10.0, 60.0, 4000.0, 1e9])
NUMBERS = st.integers(0, 12)


def node(number: int, weight: float, zone: str | None) -> Node:
    metadata = {} if zone is None else {"zone": zone}
    return Node(f"tcp://host:{number + 1}", weight=weight, metadata=metadata)


class Cluster(RuleBasedStateMachine):
    """What a pool does with its endpoints, and all balancers beside each other."""

    @initialize(
        seed=st.integers(0, 100),
        zone=st.sampled_from(["here", None]),
        slow_start=st.sampled_from([0.0, 30.0]),
        share=st.sampled_from([0.0, 0.3, 0.5, 1.0]),
    )
    def begin(self, seed: int, zone: str | None, slow_start: float, share: float) -> None:
        self.now = 1000.0
        self.share = share
        self.endpoints: dict[int, Endpoint] = {}
        self.flying: list[Endpoint] = []
        rng = Random(seed).random
        self.ejection = OutlierEjection(rng=rng, share=share, errors=2)
        self.budget = RetryBudget(self.now)
        self.calls = self.retries = 0
        self.balancers: list[Balancer] = [
            find_balancer(name, rng=rng, zone=zone, slow_start=slow_start) for name in NAMES
        ]

    def changed(self) -> None:
        self.ejection.update(self.endpoints.values(), self.now)
        self.rebuild()

    def rebuild(self) -> None:
        for balancer in self.balancers:
            balancer.rebuild(self.endpoints.values(), self.now)

    @rule(number=NUMBERS, weight=WEIGHTS, zone=ZONES)
    def arrive(self, number: int, weight: float, zone: str | None) -> None:
        known = self.endpoints.get(number)
        if known:
            known.node = node(number, weight, zone)
        else:
            self.endpoints[number] = Endpoint(node(number, weight, zone), self.now)
        self.changed()

    @rule(weights=st.lists(WEIGHTS, max_size=8))
    def arrive_all(self, weights: list[float]) -> None:
        self.endpoints = {i: Endpoint(node(i, weight, None)) for i, weight in enumerate(weights)}
        self.changed()

    @rule(number=NUMBERS)
    def depart(self, number: int) -> None:
        if self.endpoints.pop(number, None):
            self.changed()

    @rule(number=NUMBERS, times=st.integers(1, 30))
    def flap(self, number: int, times: int) -> None:
        for _ in range(times):
            self.depart(number)
            self.endpoints[number] = Endpoint(node(number, 1, "here"), self.now)
            self.changed()
            self.now += 0.05

    @rule(number=NUMBERS, times=st.integers(1, 4))
    def fail(self, number: int, times: int) -> None:
        endpoint = self.endpoints.get(number)
        for _ in range(times if endpoint else 0):
            assert endpoint is not None
            endpoint.begin(self.now)
            endpoint.end(self.now, 0.01, failed=True)
            if self.ejection.failed(endpoint, self.now):
                self.rebuild()
            self.retries += self.budget.withdraw(self.now)

    @rule(seconds=SECONDS)
    def wait(self, seconds: float) -> None:
        self.now += seconds
        at = self.ejection.next_timeout()
        if at is not None and at <= self.now:
            assert self.ejection.handle_timeout(self.now)
            self.rebuild()
        later = self.ejection.next_timeout()
        assert later is None or later > self.now

    @rule(
        which=st.integers(0, len(NAMES) - 1),
        key=st.none() | st.text(max_size=3),
        tried=st.sets(NUMBERS, max_size=4) | st.just(set(range(13))),
        times=st.integers(1, 20),
    )
    def call(self, which: int, key: str | None, tried: set[int], times: int) -> None:
        usable = {
            endpoint
            for endpoint in self.endpoints.values()
            if endpoint.node.weight and endpoint.ejected_until is None
        }
        avoid = [self.endpoints[number] for number in tried if number in self.endpoints]
        for _ in range(times):
            picked = self.balancers[which].pick(self.now, key, avoid)
            if not usable:
                assert picked is None
                return
            assert picked in usable
            assert picked not in avoid or usable <= set(avoid)
            picked.begin(self.now)
            self.flying.append(picked)
            self.calls += 1
            self.budget.deposit()

    @rule(failed=st.booleans(), seconds=st.sampled_from([0.0, 0.01, 5.0]), count=st.integers(0, 50))
    def end(self, failed: bool, seconds: float, count: int) -> None:
        for endpoint in self.flying[:count]:
            endpoint.end(self.now, seconds, failed)
            assert 0 <= endpoint.latency <= 20
            if endpoint in self.endpoints.values() and self.ejection.failed(endpoint, self.now):
                self.rebuild()
        del self.flying[:count]

    @invariant()
    def share_of_the_ejected_is_respected(self) -> None:
        able = [endpoint for endpoint in self.endpoints.values() if endpoint.node.weight]
        ejected = [endpoint for endpoint in able if endpoint.ejected_until is not None]
        assert set(ejected) == set(self.ejection.ejected)
        assert len(ejected) <= self.share * len(able)
        assert len(ejected) < len(able) or not able

    @invariant()
    def retries_are_in_the_budget(self) -> None:
        assert self.retries <= 0.2 * self.calls + 10 * (self.now - 1000 + 10)

    @invariant()
    def nothing_grows(self) -> None:
        for balancer in self.balancers:
            balancer.pick(self.now)
            for value in vars(balancer).values():
                assert not hasattr(value, "__len__") or len(value) <= 13 * 100


TestCluster = Cluster.TestCase
TestCluster.settings = settings(
    spread(), max_examples=max(60, EXAMPLES // 100), stateful_step_count=40
)
