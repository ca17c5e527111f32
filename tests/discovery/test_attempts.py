"""A balanced call as a machine: its steps, without a connection and without waiting."""

from types import SimpleNamespace
from typing import Any

import pytest

from rpc_discovery import Node, View
from rpc_discovery.attempts import Attempts, Dial, Fail, Send, Wait
from rpc_discovery.pool import BalancedCall, Pool, Target
from rpc_proto import Cancelled, DeadlineExceeded, NotFound, ResourceExhausted, State, Unavailable

A, B, C = (f"tcp://10.0.0.{number}:1" for number in (1, 2, 3))


class Caller:
    """A pool, and what a driver does with the steps of one call."""

    def __init__(self, *addresses: str, **call: Any) -> None:
        self.pool = Pool(now=0.0, rng=lambda: 0.5)
        if addresses:
            self.pool.update(View(map(Node, addresses)), 0.0)
        self.call = BalancedCall("S", call.pop("deadline", 10.0), **call)
        self.attempts = Attempts(self.pool, self.call, lambda: " before any node was known")

    def connect(self, *addresses: str) -> None:
        for address in addresses:
            target = self.pool.targets[address]
            target.dialling = None
            target.client = SimpleNamespace(connection=SimpleNamespace(state=State.OPEN))
            self.pool.connected(target, 0.0)

    def dial(self, target: Target) -> None:
        self.pool.dialling(target)
        target.dialling = object()

    def dials(self, now: float = 0.0) -> list[str]:
        """Do all dials that are asked for; return whom."""
        asked = []
        while isinstance(step := self.attempts.next(now), Dial):
            self.dial(step.target)
            asked.append(step.target.node.address)
        assert isinstance(step, Wait)
        return asked

    def send(self, now: float = 0.0) -> Send:
        step = self.attempts.next(now)
        assert isinstance(step, Send)
        return step

    def error(self, now: float = 0.0) -> Any:
        step = self.attempts.next(now)
        assert isinstance(step, Fail)
        return step.error


def test_call_is_sent_where_a_connection_is() -> None:
    caller = Caller(A)
    caller.connect(A)
    step = caller.send(1.0)
    assert (step.target.node.address, step.timeout) == (A, 9.0)
    assert step.target.in_flight == 1
    caller.attempts.answered(2.0)
    assert step.target.in_flight == 0


def test_nodes_are_dialled_three_at_a_time_before_it_waits() -> None:
    caller = Caller(*(f"tcp://10.0.0.{number}:1" for number in range(9)))
    assert len(caller.dials()) == 3
    step = caller.attempts.next(1.0)
    while isinstance(step, Dial):  # others, once it has waited
        caller.dial(step.target)
        step = caller.attempts.next(1.0)
    assert step == Wait(9.0)


def test_call_goes_where_the_first_dial_succeeds() -> None:
    caller = Caller(A, B)
    assert sorted(caller.dials()) == [A, B]
    caller.connect(B)
    assert caller.send().target.node.address == B


@pytest.mark.parametrize("fixed", [{}, {"key": "k"}])
def test_dials_that_fail_at_once_are_not_waited_for(fixed: dict[str, str]) -> None:
    caller = Caller(*(f"tcp://10.0.0.{number}:1" for number in range(9)), **fixed)
    asked = set()
    while isinstance(step := caller.attempts.next(0.0), Dial):
        caller.dial(step.target)
        step.target.dialling = None
        caller.pool.unreachable(step.target, OSError("refused"), 0.0, ready=False)
        asked.add(step.target.node.address)
    assert len(asked) == 9
    assert isinstance(step, Fail)


@pytest.mark.parametrize("fixed", [{"node": A}, {"key": "k"}])
def test_call_that_is_for_one_node_dials_no_other(fixed: dict[str, str]) -> None:
    caller = Caller(A, B, **fixed)
    assert len(caller.dials()) == 1


def test_call_waits_for_a_view_until_its_deadline() -> None:
    caller = Caller()
    assert caller.attempts.next(4.0) == Wait(6.0)
    error = caller.error(10.0)
    assert type(error) is DeadlineExceeded
    assert "before any node was known" in error.message


def test_deadline_that_passes_while_a_node_is_dialled_names_it() -> None:
    caller = Caller(A)
    assert caller.dials() == [A]
    error = caller.error(10.0)
    assert type(error) is DeadlineExceeded
    assert f"while {A} was dialled" in error.message


def test_failure_that_may_be_repeated_leads_to_another_node() -> None:
    caller = Caller(A, B)
    caller.connect(A, B)
    first = caller.send().target
    caller.attempts.failed(0.0, Unavailable("gone", maybe_executed=False), True)
    second = caller.send().target
    assert {first.node.address, second.node.address} == {A, B}
    assert first.in_flight == 0


def test_only_node_is_asked_again_after_a_pause() -> None:
    caller = Caller(A)
    caller.connect(A)
    caller.send()
    caller.attempts.failed(0.0, Unavailable("busy", maybe_executed=False), True)
    step = caller.attempts.next(0.0)
    assert isinstance(step, Wait)
    assert 0.0 < step.seconds < 0.1
    assert caller.send(step.seconds + 1e-9).target.node.address == A


@pytest.mark.parametrize(
    "error", [NotFound("no"), Unavailable("lost"), ResourceExhausted("full")], ids=repr
)
def test_failure_that_may_not_be_repeated_stands(error: Any) -> None:
    caller = Caller(A, B)
    caller.connect(A, B)
    caller.send()
    caller.attempts.failed(0.0, error, True)
    assert caller.error() is error


def test_call_that_is_given_up_is_counted_nowhere() -> None:
    caller = Caller(A)
    caller.connect(A)
    target = caller.send().target
    caller.attempts.cancelled()
    assert target.in_flight == 0


@pytest.mark.parametrize("how", ["closed", "abandoned"])
def test_end_of_the_pool_or_of_the_call_is_a_cancellation(how: str) -> None:
    caller = Caller(A)
    if how == "closed":
        caller.pool.closed = True
    else:
        caller.call.abandoned = True
    error = caller.error()
    assert type(error) is Cancelled
    assert error.maybe_executed is False


def test_no_node_for_a_service_is_an_error_at_once() -> None:
    caller = Caller()
    caller.pool.update(View([Node(A, {"Other": "1"})]), 0.0)
    assert "no node offers 'S'" in caller.error().message
