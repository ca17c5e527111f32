"""Broadcasts, races and hedges as machines: which calls run, and when it is over."""

from typing import Any

import pytest

from rpc_discovery import Node, View
from rpc_discovery.attempts import Wait
from rpc_discovery.groups import Begin, Group, Hedge
from rpc_discovery.pool import BalancedCall, Pool
from rpc_proto import CallCompleted, Unavailable

NODES = [f"tcp://10.0.0.{number}:1" for number in range(1, 5)]


def calls(count: int = 3) -> list[BalancedCall]:
    return [BalancedCall("S", 10.0, node=node) for node in NODES[:count]]


def good(value: Any) -> Any:
    return CallCompleted(None, value, {})  # type: ignore[arg-type]


def bad(text: str = "no") -> Unavailable:
    return Unavailable(text, maybe_executed=False)


def begun(group: Group, now: float = 0.0) -> list[BalancedCall]:
    """Begin all that is to begin now."""
    found = []
    while isinstance(step := group.next(now), Begin):
        found.append(step.call)
    return found


def test_all_calls_run_and_all_results_are_kept() -> None:
    group = Group(calls(), first=False)
    one, two, three = begun(group)
    error = bad()
    group.ended(1.0, two, good(2))
    group.ended(1.0, one, error)
    assert isinstance(group.next(1.0), Wait)
    group.ended(1.0, three, good(3))
    assert group.next(1.0) is None
    assert group.results() == {NODES[1]: 2, NODES[0]: error, NODES[2]: 3}


def test_only_so_many_run_at_once() -> None:
    group = Group(calls(4), first=False, at_once=2)
    one, two = begun(group)
    group.ended(0.0, two, bad())
    [three] = begun(group)
    group.ended(0.0, one, good(1))
    group.ended(0.0, three, good(3))
    [four] = begun(group)
    group.ended(0.0, four, good(4))
    assert group.next(0.0) is None


def test_race_is_over_with_the_first_success() -> None:
    group = Group(calls(), first=True)
    one, two, _ = begun(group)
    group.ended(0.0, one, bad())
    assert isinstance(group.next(0.0), Wait)
    group.ended(0.0, two, good(2))
    assert group.next(0.0) is None
    assert group.winner().value == 2


def test_race_that_nobody_wins_has_the_last_error() -> None:
    group = Group(calls(2), first=True)
    one, two = begun(group)
    group.ended(0.0, two, bad("first"))
    group.ended(0.0, one, bad("last"))
    assert group.next(0.0) is None
    with pytest.raises(Unavailable, match="last"):
        group.winner()


def test_nothing_to_do_is_over_at_once() -> None:
    group = Group([], first=False)
    assert group.next(0.0) is None
    assert group.results() == {}


class Hedged:
    def __init__(self, delay: float | None) -> None:
        self.pool = Pool(now=0.0, rng=lambda: 0.5)
        self.pool.update(View(map(Node, NODES)), 0.0)
        if delay is not None:
            for _ in range(100):
                self.pool.observe("S.m", delay)
        self.call = BalancedCall("S", 10.0)
        self.call.target = self.pool.pick("S", 0.0)
        self.call.tried.add(self.call.target)
        self.group = Hedge(self.pool, self.call, "S.m", 1.0)


def test_second_node_is_asked_when_the_first_takes_longer_than_usual() -> None:
    hedged = Hedged(0.2)
    group = hedged.group
    assert not group.is_alone
    assert begun(group, 1.0) == [hedged.call]
    step = group.next(1.0)
    assert isinstance(step, Wait)
    assert step.seconds == pytest.approx(0.2, rel=0.2)
    [other] = begun(group, 1.0 + step.seconds)
    assert other.tried == hedged.call.tried
    assert begun(group, 9.0) == []
    group.ended(9.0, other, good(1))
    assert group.next(9.0) is None
    assert group.winner().value == 1


def test_no_second_node_is_asked_before_a_method_is_known_or_after_its_end() -> None:
    hedged = Hedged(None)
    assert hedged.group.is_alone
    assert begun(hedged.group, 1.0) == [hedged.call]
    assert begun(hedged.group, 9.0) == []
    hedged = Hedged(0.2)
    begun(hedged.group, 1.0)
    hedged.group.ended(5.0, hedged.call, good(1))
    assert hedged.group.next(9.0) is None


def test_duration_of_a_success_is_observed() -> None:
    hedged = Hedged(None)
    begun(hedged.group, 1.0)
    hedged.group.ended(3.0, hedged.call, good(1))
    for _ in range(50):
        hedged.pool.observe("S.m", 2.0)
    assert hedged.pool.hedge_delay("S.m") == pytest.approx(2.0, rel=0.2)
