"""Endpoints: what the ends of calls make of latency and errors."""

from math import exp

import pytest

from rpc_discovery.endpoints import DECAY, Endpoint
from support.balancing import endpoint


def ended(one: Endpoint, now: float, seconds: float, failed: bool = False) -> float:
    one.begin(now)
    one.end(now, seconds, failed)
    return one.latency


def test_calls_in_flight_are_counted() -> None:
    one = endpoint(0)
    one.begin(0.0)
    one.begin(0.0)
    one.end(1.0, 1.0)
    assert one.in_flight == 1


def test_slower_call_is_the_latency_at_once() -> None:
    one = endpoint(0)
    assert ended(one, 0.0, 0.01) == 0.01
    assert ended(one, 0.001, 0.5) == 0.5


def test_faster_call_pulls_the_latency_down_by_the_time_between() -> None:
    one = endpoint(0)
    ended(one, 0.0, 1.0)
    left = exp(-5.0 / DECAY)
    assert ended(one, 5.0, 0.2) == pytest.approx(left * 1.0 + (1 - left) * 0.2)
    assert ended(one, 5.0, 0.1) == one.latency
    assert ended(one, 1000.0, 0.1) == pytest.approx(0.1)


def test_clock_that_stands_or_jumps_back_does_no_harm() -> None:
    one = endpoint(0)
    ended(one, 100.0, 1.0)
    assert ended(one, -1e6, 0.5) == 1.0
    assert ended(one, 1e9, 0.5) == 0.5


def test_quick_failure_doubles_the_latency_up_to_10_seconds() -> None:
    one = endpoint(0)
    ended(one, 0.0, 0.01)
    assert ended(one, 0.0, 0.001, failed=True) == pytest.approx(0.02)
    for _ in range(50):
        ended(one, 0.0, 0.001, failed=True)
    assert one.latency == 10.0
    assert ended(one, 0.0, 30.0, failed=True) == 30.0


def test_errors_are_those_since_the_last_success() -> None:
    one = endpoint(0)
    for _ in range(3):
        ended(one, 0.0, 0.1, failed=True)
    assert one.errors == 3
    ended(one, 0.0, 0.1)
    assert one.errors == 0
