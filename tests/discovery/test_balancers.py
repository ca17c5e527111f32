"""Balancers: who gets the calls, in which shares, and who none."""

import random
from collections import Counter
from math import ceil
from typing import Any

import pytest

from rpc_discovery import (
    Balancer,
    ConsistentHash,
    Endpoint,
    LeastLoaded,
    Node,
    Random,
    RoundRobin,
    WeightedRoundRobin,
    find_balancer,
)
from support.balancing import (
    NAMES,
    PICKS,
    balancer,
    chi_square,
    counts,
    endpoint,
    endpoints,
    keys,
)

MIXED = [1, 1, 2, 3, 5, 8, 0.5] * 5
BY_WEIGHT = ["random", "weighted_round_robin", "least_loaded"]


# Shares


@pytest.mark.parametrize("name", ["random", "least_loaded"])
@pytest.mark.parametrize("weights", [[1] * 100, MIXED])
def test_drawn_shares_are_those_of_the_weights(name: str, weights: list[float]) -> None:
    among = endpoints(weights)
    observed = counts(balancer(name, among), among, PICKS)
    assert abs(chi_square(observed, weights)) < 5


@pytest.mark.parametrize("name", ["round_robin", "weighted_round_robin"])
def test_turns_are_all_alike_with_equal_weights(name: str) -> None:
    among = endpoints([1] * 100)
    rounds = PICKS // 100
    assert counts(balancer(name, among), among, 100 * rounds) == [rounds] * 100


def test_round_robin_does_not_look_at_weights_over_0() -> None:
    among = endpoints([1, 2, 300])
    assert counts(balancer("round_robin", among), among, 300) == [100, 100, 100]


def test_turns_by_weight_are_never_far_from_their_share() -> None:
    among = endpoints(MIXED)
    made = balancer("weighted_round_robin", among)
    had: Counter[Endpoint | None] = Counter()
    for picks in range(1, PICKS + 1):
        picked = made.pick(0.0)
        had[picked] += 1
        assert picked is not None
        assert abs(had[picked] - picks * picked.node.weight / sum(MIXED)) < 2


def test_turns_of_a_heavy_node_are_spread() -> None:
    heavy, *rest = among = endpoints([5, 1, 1])
    made = balancer("weighted_round_robin", among)
    turns = [made.pick(0.0) for _ in range(700)]
    assert all(2 * heavy.node.weight - 2 <= turns[i : i + 14].count(heavy) for i in range(686))
    assert all(1 <= turns[i : i + 9].count(one) <= 3 for one in rest for i in range(686))


def test_two_callers_do_not_go_round_in_step() -> None:
    among = endpoints([1] * 20)
    first = [balancer("round_robin", among, seed).pick(0.0) for seed in range(50)]
    assert len(set(first)) > 10


def test_keys_are_spread_within_a_quarter_over_100_nodes() -> None:
    among = endpoints([1] * 100)
    observed = counts(balancer("consistent_hash", among), among, PICKS)
    assert 0.75 * PICKS / 100 < min(observed) <= max(observed) < 1.25 * PICKS / 100


def test_keys_are_spread_by_weight_within_a_third() -> None:
    weights = [1, 2, 5, 10] * 10
    among = endpoints(weights)
    observed = counts(balancer("consistent_hash", among), among, PICKS)
    for had, weight in zip(observed, weights, strict=True):
        assert had == pytest.approx(PICKS * weight / sum(weights), rel=0.35)


def test_calls_without_a_key_are_spread_like_keys() -> None:
    among = endpoints([1] * 10)
    made = balancer("consistent_hash", among)
    had = Counter(made.pick(0.0) for _ in range(10_000))
    assert all(750 < had[one] < 1250 for one in among)


@pytest.mark.parametrize("name", NAMES)
def test_weight_0_gets_nothing(name: str) -> None:
    among = endpoints([1, 0, 1])
    assert counts(balancer(name, among), among, 1000)[1] == 0


@pytest.mark.parametrize("name", NAMES)
def test_nobody_to_pick_is_none(name: str) -> None:
    ejected = endpoint(1)
    ejected.ejected_until = 5.0
    assert balancer(name, []).pick(0.0, "key") is None
    assert balancer(name, [endpoint(0, 0), ejected]).pick(0.0, "key") is None


# Load


def busy(seconds: dict[Endpoint, float], made: Balancer, calls: int, flying: int) -> Counter[Any]:
    """Keep calls in flight that take so long at each endpoint; count who got how many."""
    rng = random.Random(7).random
    had: Counter[Any] = Counter()
    ends: list[tuple[float, int, Endpoint, float]] = []
    now = 0.0
    for number in range(calls):
        if len(ends) >= flying:
            ends.sort(reverse=True, key=lambda end: end[:2])
            now, _, done, took = ends.pop()
            done.end(now, took)
        picked = made.pick(now)
        assert picked is not None
        picked.begin(now)
        had[picked] += 1
        took = seconds[picked] * (0.5 + rng())
        ends.append((now + took, number, picked, took))
    return had


def test_slow_node_gets_fewer_calls() -> None:
    among = endpoints([1] * 10)
    seconds = dict.fromkeys(among, 0.01) | {among[0]: 0.1}
    had = busy(seconds, balancer("least_loaded", among), 20_000, 20)
    assert had[among[0]] < 20_000 / 10 / 5
    assert min(had[one] for one in among[1:]) > 20_000 / 10 / 2


@pytest.mark.parametrize("weights", [[1, 1], [1, 2], [1, 1, 4], [1] * 10])
def test_nodes_about_equally_fast_are_used_roughly_by_weight(weights: list[float]) -> None:
    among = endpoints(weights)
    seconds = dict.fromkeys(among, 0.01)  # give or take a half
    had = busy(seconds, balancer("least_loaded", among), 20_000, 1)
    for one, weight in zip(among, weights, strict=True):
        assert had[one] == pytest.approx(20_000 * weight / sum(weights), rel=0.4)


def test_slow_node_of_two_gets_few_calls() -> None:
    slow, quick = among = endpoints([1, 1])
    had = busy({slow: 0.1, quick: 0.01}, balancer("least_loaded", among), 5000, 1)
    assert had[slow] < 5000 / 2 / 10


def test_silent_node_holds_only_a_few_calls() -> None:
    among = endpoints([1] * 10)
    seconds = dict.fromkeys(among, 0.01) | {among[0]: 1e6}
    assert busy(seconds, balancer("least_loaded", among), 5000, 40)[among[0]] < 16


def test_node_that_fails_quickly_attracts_nothing() -> None:
    among = endpoints([1] * 5)
    made = balancer("least_loaded", among)
    had: Counter[Any] = Counter()
    for number in range(5000):
        now = number / 1000
        picked = made.pick(now)
        assert picked is not None
        picked.begin(now)
        failed = picked is among[0]
        picked.end(now, 0.0001 if failed else 0.01, failed)
        had[picked] += 1
    assert had[among[0]] < 5000 / 5 / 10


def test_node_that_was_slow_once_is_tried_again() -> None:
    slow, quick = among = endpoints([1, 1])
    made = balancer("least_loaded", among)
    for one, seconds in ((slow, 1.0), (quick, 0.01)):
        one.begin(0.0)
        one.end(0.0, seconds)
    tried = None
    for second in range(120):
        picked = made.pick(second)
        assert picked is not None
        if picked is slow:
            tried = second
            break
        picked.begin(second)
        picked.end(second, 0.01)
    assert tried is not None
    assert 20 < tried < 60


def test_calls_in_flight_weigh_less_on_a_heavier_node() -> None:
    _, heavy = among = endpoints([1, 3])
    made = balancer("least_loaded", among)
    for _ in range(400):
        picked = made.pick(0.0)
        assert picked is not None
        picked.begin(0.0)
    assert heavy.in_flight == pytest.approx(300, abs=10)


# Keys


def test_same_key_same_node_in_every_process_and_order() -> None:
    among = endpoints([1] * 20)
    expected = [16, 11, 18, 3, 9]
    for order in (among, among[::-1]):
        made = balancer("consistent_hash", order, seed=len(order))
        picked = [made.pick(0.0, key) for key in ("", "a", "user-1", "user-2", "Zürich \ud800")]
        assert [among.index(one) for one in picked if one] == expected


def homes(among: list[Endpoint], count: int = 5000) -> list[Endpoint | None]:
    made = balancer("consistent_hash", among)
    return [made.pick(0.0, key) for key in keys(count)]


@pytest.mark.parametrize("number", [2, 3, 10, 100, 520])
def test_only_the_keys_of_the_node_that_goes_move(number: int) -> None:
    among = endpoints([1] * number)
    gone = among[number // 2]
    before, after = homes(among), homes([one for one in among if one is not gone])
    moved = [old for old, new in zip(before, after, strict=True) if old is not new]
    assert set(moved) <= {gone}
    assert len(moved) <= 5000 * (1 / number + 0.05)


@pytest.mark.parametrize("weights", [[1, 2] * 10, MIXED * 3, [1] * 1500, [1, 3] * 1000])
def test_few_keys_move_with_any_weights_and_numbers(weights: list[float]) -> None:
    among = endpoints(weights)
    before = homes(among)
    for i in (0, 1):
        after = homes(among[:i] + among[i + 1 :])
        moved = sum(old is not new for old, new in zip(before, after, strict=True))
        assert moved <= 5000 * (1 / len(weights) + 0.05)


def test_ejection_moves_only_the_keys_of_the_ejected() -> None:
    among = endpoints(MIXED)
    before = homes(among)
    among[3].ejected_until = 5.0
    moved = [old for old, new in zip(before, homes(among), strict=True) if old is not new]
    assert set(moved) == {among[3]}
    among[3].ejected_until = None
    assert homes(among) == before


@pytest.mark.parametrize("weights", [[1] * 10, [1, 2, 3, 4]])
def test_hot_key_fills_no_node_beyond_the_bound(weights: list[float]) -> None:
    among = endpoints(weights)
    made = balancer("consistent_hash", among, load=1.25)
    for calls in range(1, 2001):
        picked = made.pick(0.0, "hot")
        assert picked is not None
        picked.begin(0.0)
        share = picked.node.weight / sum(weights)
        assert picked.in_flight <= max(4, ceil(1.25 * calls * share))


def test_bound_follows_the_calls_that_have_ended() -> None:
    among = endpoints([1] * 10)
    made = balancer("consistent_hash", among)
    flying: list[Endpoint] = []
    for calls in range(3000):
        picked = made.pick(0.0, "hot")
        assert picked is not None
        # Calls are counted once in ten picks: ten may have ended since.
        if not 1000 <= calls < 1010:
            assert picked.in_flight < max(4, 1.25 * (len(flying) + 11) / 10)
        picked.begin(0.0)
        flying.append(picked)
        while len(flying) > (1000 if calls < 1000 else 100):
            flying.pop(0).end(0.0, 0.1)


def test_key_stays_while_its_node_has_few_calls() -> None:
    among = endpoints([1] * 100)
    made = balancer("consistent_hash", among)
    for _ in range(4):
        picked = made.pick(0.0, "key")
        assert picked is not None
        picked.begin(0.0)
    assert picked.in_flight == 4
    assert made.pick(0.0, "key") is not picked


def test_key_stays_whatever_the_load_without_a_bound() -> None:
    among = endpoints([1] * 10)
    made = balancer("consistent_hash", among, load=float("inf"))
    for _ in range(100):
        picked = made.pick(0.0, "key")
        assert picked is not None
        picked.begin(0.0)
    assert picked.in_flight == 100


def test_second_choice_of_a_key_is_always_the_same() -> None:
    among = endpoints([1] * 20)
    made = balancer("consistent_hash", among)
    first = made.pick(0.0, "key")
    assert first is not None
    second = {made.pick(0.0, "key", [first]) for _ in range(20)}
    assert len(second) == 1
    assert second != {first}


def test_key_that_is_no_string_is_refused() -> None:
    key: Any = 7
    with pytest.raises(TypeError, match="a key must be a string, not 7"):
        balancer("consistent_hash", endpoints([1])).pick(0.0, key)


# Slow start


@pytest.mark.parametrize("name", NAMES)
def test_weight_of_a_new_node_grows_in_the_slow_start(name: str) -> None:
    picks = PICKS // 10
    among = [*endpoints([1] * 9), endpoint(9, since=100.0)]
    made = balancer(name, among, slow_start=20.0)
    made.rebuild(among, 100.0)
    shares = {}
    for after, weight in ((0, 0.1), (1, 0.1), (5, 0.25), (10, 0.5), (15, 0.75), (20, 1), (99, 1)):
        shares[after] = counts(made, among, picks, 100.0 + after)[9] / picks
        # A circle of few points is uneven; the others are not.
        slack = 0.35 if name == "consistent_hash" else 0.1
        assert shares[after] == pytest.approx(weight / (9 + weight), rel=slack, abs=0.005)
    assert list(shares.values()) == pytest.approx(sorted(shares.values()), abs=0.01)


@pytest.mark.parametrize("name", NAMES)
def test_slow_start_of_0_gives_all_at_once(name: str) -> None:
    among = [*endpoints([1] * 9), endpoint(9, since=0.0)]
    assert counts(balancer(name, among, slow_start=0), among, 10_000)[9] > 700


def test_slow_start_ends_without_a_rebuild_and_then_costs_nothing() -> None:
    arranged = []

    class Watched(Random):
        def arrange(self, now: float) -> None:
            arranged.append(now)
            super().arrange(now)

    made = find_balancer(Watched, rng=random.Random(1).random, slow_start=30.0)
    made.rebuild([endpoint(0), endpoint(1, since=0.0)], 0.0)
    for tenth in range(1000):
        made.pick(tenth / 10)
    assert 15 <= len(arranged) <= 22
    assert arranged[-1] < 33


# Zones


def zones(near: int, far: int, ejected: int) -> list[Endpoint]:
    among = [endpoint(i, zone="here" if i < near else "there") for i in range(near + far)]
    for one in among[:ejected]:
        one.ejected_until = 99.0
    return among


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("ejected", "share"), [(0, 1.0), (4, 1.0), (5, 1.0), (6, 0.8), (8, 0.4), (9, 0.2), (10, 0.0)]
)
def test_calls_leave_the_zone_only_when_half_of_it_is_ejected(
    name: str, ejected: int, share: float
) -> None:
    among = zones(10, 20, ejected)
    observed = counts(balancer(name, among, zone="here"), among, PICKS // 10)
    slack = 0.15 if name == "consistent_hash" else 0.02
    inside = sum(observed[:10]) / sum(observed)
    assert inside == pytest.approx(share, abs=slack if 0 < share < 1 else 0)
    assert sum(observed[:ejected]) == 0


@pytest.mark.parametrize("zone", ["elsewhere", None])
def test_zone_without_nodes_is_served_by_all(zone: str | None) -> None:
    among = [*zones(2, 2, 0), endpoint(4)]
    assert min(counts(balancer("round_robin", among, zone=zone), among, 500)) == 100


def test_zone_alone_does_not_need_others() -> None:
    among = zones(4, 0, 3)
    assert counts(balancer("round_robin", among, zone="here"), among, 100) == [0, 0, 0, 100]


@pytest.mark.parametrize("name", NAMES)
def test_other_zones_come_before_what_was_tried(name: str) -> None:
    among = zones(2, 2, 0)
    made = balancer(name, among, zone="here")
    for _ in range(50):
        tried: list[Endpoint] = []
        for _ in among:
            picked = made.pick(0.0, "key", tried)
            assert picked is not None
            tried.append(picked)
        assert set(tried[:2]) == set(among[:2])
        assert set(tried) == set(among)


# Choices


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("weights", [[1] * 5, [1000, 1, 1, 1, 0.01]])
def test_tried_endpoints_come_last(name: str, weights: list[float]) -> None:
    among = endpoints(weights)
    made = balancer(name, among)
    for number in range(100):
        tried: set[Endpoint] = set()
        for _ in among:
            picked = made.pick(0.0, f"key-{number}", tried)
            assert picked is not None
            tried.add(picked)
        assert tried == set(among)
        assert made.pick(0.0, "key", tried) in tried


@pytest.mark.parametrize("name", NAMES)
def test_one_endpoint_is_tried_again(name: str) -> None:
    (only,) = among = endpoints([1])
    assert balancer(name, among).pick(0.0, "key", among) is only


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.fault(62)
def test_node_that_flaps_is_never_picked_while_it_is_gone(name: str) -> None:
    steady = endpoints([1, 2, 3])
    made = balancer(name, steady)
    for tenth in range(600):
        now = tenth / 10
        flapping = [endpoint(9, since=now)] if tenth % 2 else []
        made.rebuild([*steady, *flapping], now)
        picked = {made.pick(now, f"{tenth} {number}") for number in range(20)}
        assert picked <= {*steady, *flapping}
    held = [len(value) for value in vars(made).values() if hasattr(value, "__len__")]
    assert sum(held) < 4 * 3 * 96 * 2


def test_turns_go_on_when_others_come_and_go() -> None:
    steady = endpoints([1] * 10)
    made = balancer("round_robin", steady, slow_start=0)
    had: Counter[Any] = Counter()
    for step in range(1000):
        made.rebuild([*steady, endpoint(99)] if step % 2 else steady, 0.0)
        had[made.pick(0.0)] += 1
    each = [had[one] for one in steady]
    assert max(each) - min(each) <= 2


def test_many_changes_before_a_pick_are_one_rebuild() -> None:
    arranged = []

    class Watched(RoundRobin):
        def arrange(self, now: float) -> None:
            arranged.append(now)
            super().arrange(now)

    made = Watched(rng=random.Random(1).random)
    for number in range(1, 100):
        made.rebuild(endpoints([1] * number), 0.0)
    assert made.pick(0.0) is not None
    assert len(arranged) == 1


def test_changed_weight_counts_from_the_rebuild_on() -> None:
    among = endpoints([1, 1])
    made = balancer("weighted_round_robin", among)
    assert counts(made, among, 100) == [50, 50]
    among[0].node = Node(among[0].node.address, weight=4)
    made.rebuild(among, 0.0)
    assert counts(made, among, 100) == pytest.approx([80, 20], abs=1)


# Names


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("random", Random),
        ("round_robin", RoundRobin),
        ("weighted_round_robin", WeightedRoundRobin),
        ("least_loaded", LeastLoaded),
        ("p2c", LeastLoaded),
        ("consistent_hash", ConsistentHash),
        (RoundRobin, RoundRobin),
    ],
)
def test_balancer_is_found_by_name_or_class(name: Any, kind: type[Balancer]) -> None:
    assert type(find_balancer(name, rng=random.Random(1).random, zone="z")) is kind


@pytest.mark.parametrize("name", ["", "fastest", None, 7, int])
def test_unknown_balancer_is_refused(name: Any) -> None:
    with pytest.raises(ValueError, match="balancer must be a class or one of random, round_robin"):
        find_balancer(name, rng=random.Random(1).random)


@pytest.mark.parametrize("setting", [{"slow_start": -1}, {"slow_start": float("nan")}, {"load": 1}])
def test_bad_setting_is_refused(setting: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"slow_start must|load must"):
        find_balancer("consistent_hash", rng=random.Random(1).random, **setting)


def test_balancer_of_ones_own_needs_one_method() -> None:
    class Cheapest(Balancer):
        def choose(self, now: float, key: str | None, avoid: Any) -> Endpoint:
            return min(self.endpoints, key=lambda one: one.node.metadata["price"])

    among = [
        Endpoint(Node(f"tcp://a:{1 + i}", metadata={"price": price}))
        for i, price in enumerate("321")
    ]
    made = find_balancer(Cheapest, rng=random.Random(1).random)
    made.rebuild(among, 0.0)
    assert made.pick(0.0) is among[2]
    assert made.pick(0.0, avoid=[among[2]]) in among[:2]
