"""Outlier ejection: who gets no calls, for how long, and how it comes back."""

import random
from collections.abc import Callable
from typing import Any

import pytest

from rpc_discovery import Endpoint, Node, OutlierEjection
from support.balancing import NAMES, balancer, endpoints


def ejection(among: list[Endpoint], rng: Callable[[], float] = lambda: 0.0, **settings: Any) -> Any:
    made = OutlierEjection(rng=rng, **settings)
    made.update(among, 0.0)
    return made


def fail(made: OutlierEjection, one: Endpoint, now: float, times: int = 5) -> bool:
    ejected = []
    for _ in range(times):
        one.begin(now)
        one.end(now, 0.01, failed=True)
        ejected.append(made.failed(one, now))
    return any(ejected)


def succeed(one: Endpoint, now: float) -> None:
    one.begin(now)
    one.end(now, 0.01)


def test_fifth_error_in_a_row_ejects_for_30_seconds() -> None:
    one, *_ = among = endpoints([1] * 4)
    made = ejection(among)
    assert not fail(made, one, 10.0, times=4)
    assert made.next_timeout() is None
    assert fail(made, one, 10.0, times=1)
    assert made.next_timeout() == one.ejected_until == 40.0


def test_success_in_between_starts_the_count_anew() -> None:
    one, *_ = among = endpoints([1] * 4)
    made = ejection(among)
    for _ in range(10):
        assert not fail(made, one, 10.0, times=4)
        succeed(one, 10.0)


def test_time_grows_with_each_ejection_up_to_5_minutes() -> None:
    one, *_ = among = endpoints([1] * 4)
    made = ejection(among)
    now, times = 0.0, []
    for _ in range(12):
        assert fail(made, one, now)
        times.append(made.next_timeout() - now)
        now = made.next_timeout()
        assert made.handle_timeout(now)
    assert times == [30, 60, 90, 120, 150, 180, 210, 240, 270, 300, 300, 300]


def test_long_service_makes_earlier_ejections_forgotten() -> None:
    one, *_ = among = endpoints([1] * 4)
    made = ejection(among)
    for after, seconds in ((0.0, 30), (299.0, 60), (300.0, 30)):
        now = (0.0 if one.ejections == 0 else one.since) + after
        succeed(one, now)
        assert fail(made, one, now)
        assert one.ejected_until == now + seconds
        made.handle_timeout(now + seconds)


def test_nodes_ejected_together_return_at_different_times() -> None:
    among = endpoints([1] * 20)
    made = ejection(among, random.Random(1).random)
    for one in among[:10]:
        fail(made, one, 0.0)
    times = [one.ejected_until for one in among[:10]]
    assert len(set(times)) == 10
    assert all(time is not None and 24 < time <= 30 for time in times)


def test_returned_node_has_a_slow_start_and_one_try() -> None:
    one, *_ = among = endpoints([1] * 4)
    made = ejection(among)
    fail(made, one, 0.0)
    assert not made.handle_timeout(29.9)
    assert made.handle_timeout(30.0)
    assert one.ejected_until is None
    assert one.since == 30.0
    assert fail(made, one, 31.0, times=1)


def test_success_after_the_return_gives_all_tries_back() -> None:
    one, *_ = among = endpoints([1] * 4)
    made = ejection(among)
    fail(made, one, 0.0)
    made.handle_timeout(30.0)
    succeed(one, 31.0)
    assert not fail(made, one, 31.0, times=4)


def test_failures_of_calls_begun_before_the_ejection_change_nothing() -> None:
    one, *_ = among = endpoints([1] * 4)
    made = ejection(among)
    fail(made, one, 0.0)
    assert not fail(made, one, 5.0, times=20)
    assert one.ejected_until == 30.0


@pytest.mark.parametrize(
    ("weights", "share", "most"),
    [
        ([1], 0.5, 0),
        ([1, 1], 0.5, 1),
        ([1, 1, 1], 0.5, 1),
        ([1] * 10, 0.5, 5),
        ([1] * 10, 0.0, 0),
        ([1] * 10, 1.0, 9),
        ([1, 0, 0], 1.0, 0),
    ],
)
def test_no_more_than_the_share_is_ejected(weights: list[float], share: float, most: int) -> None:
    among = endpoints(weights)
    made = ejection(among, share=share)
    for one in among:
        fail(made, one, 0.0)
    assert sum(one.ejected_until is not None for one in among) == len(made.ejected) == most


def test_node_that_found_no_room_goes_when_there_is_some() -> None:
    first, second = among = endpoints([1, 1])
    made = ejection(among)
    assert fail(made, first, 0.0)
    assert not fail(made, second, 0.0)
    made.handle_timeout(30.0)
    assert fail(made, second, 30.0, times=1)


def test_departures_bring_back_who_would_return_first() -> None:
    among = endpoints([1] * 8)
    made = ejection(among)
    for number, one in enumerate(among[:4]):
        fail(made, one, float(number))
    assert made.update(among[:6], 10.0)
    assert [one.ejected_until is None for one in among[:4]] == [True, False, False, False]
    assert made.next_timeout() == 31.0
    assert not made.update(among[:6], 10.0)


def test_departed_node_is_forgotten() -> None:
    among = endpoints([1] * 8)
    made = ejection(among)
    fail(made, among[0], 0.0)
    made.update(among[1:], 1.0)
    assert made.next_timeout() is None
    assert not made.ejected
    assert not made.handle_timeout(100.0)


def test_node_without_weight_is_not_ejected_for_ever() -> None:
    one, *_ = among = endpoints([1] * 4)
    made = ejection(among)
    fail(made, one, 0.0)
    weight, one.node = one.node, Node(one.node.address, weight=0)
    assert made.update(among, 1.0)
    one.node = weight
    assert not made.update(among, 2.0)
    assert one.ejected_until is None


@pytest.mark.parametrize(
    "setting",
    [
        {"errors": 0},
        {"errors": 1.5},
        {"base": 0},
        {"base": 400},
        {"longest": float("inf")},
        {"share": 1.1},
        {"share": float("nan")},
    ],
)
def test_bad_setting_is_refused(setting: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be"):
        OutlierEjection(rng=lambda: 0.0, **setting)


@pytest.mark.parametrize("name", NAMES)
def test_hour_with_a_node_that_fails_and_recovers(name: str) -> None:
    """Ten calls a second; one node of five fails all its calls for 40 minutes."""
    rng = random.Random(5).random
    bad, *_ = among = endpoints([1] * 5)
    made = ejection(among, rng)
    picker = balancer(name, among)
    had = {True: [0] * 60, False: [0] * 60}
    for tenth in range(36_000):
        now = tenth / 10
        at = made.next_timeout()
        if at is not None and at <= now and made.handle_timeout(now):
            picker.rebuild(among, now)
        later = made.next_timeout()
        assert later is None or later > now
        picked = picker.pick(now, f"key-{tenth % 997}")
        assert picked is not None
        assert picked.ejected_until is None
        had[picked is bad][tenth // 600] += 1
        picked.begin(now)
        failed = picked is bad and now < 2400
        picked.end(now, 0.01, failed)
        if failed and made.failed(picked, now):
            picker.rebuild(among, now)
    calls_to_it = had[True]
    assert sum(calls_to_it[:40]) < 40  # of 24,000
    assert sum(calls_to_it[-5:]) > 300  # of 3,000: a fifth, when it is back in full
