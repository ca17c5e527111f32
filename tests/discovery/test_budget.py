"""The retry budget and the delay of hedged calls."""

import random

import pytest

from rpc_discovery import HedgeDelay, RetryBudget


def taken(budget: RetryBudget, now: float, tries: int) -> int:
    return sum(budget.withdraw(now) for _ in range(tries))


def test_ten_seconds_of_the_minimum_are_there_at_first() -> None:
    assert taken(RetryBudget(0.0), 0.0, 1000) == 100


def test_each_second_gives_the_minimum() -> None:
    budget = RetryBudget(0.0)
    taken(budget, 0.0, 100)
    assert [taken(budget, second, 100) for second in (1.0, 2.0, 2.5)] == [10, 10, 5]


def test_each_call_gives_its_ratio() -> None:
    budget = RetryBudget(0.0)
    taken(budget, 0.0, 100)
    for _ in range(100):
        budget.deposit()
    assert taken(budget, 0.0, 100) == pytest.approx(20, abs=1)


def test_what_can_be_saved_up_is_ten_seconds_of_the_minimum() -> None:
    budget = RetryBudget(0.0)
    for _ in range(10_000):
        budget.deposit()
    assert taken(budget, 1e6, 10_000) == 100


def test_an_outage_is_not_made_worse_by_more_than_the_ratio() -> None:
    budget = RetryBudget(0.0)
    calls = retries = 0
    for millisecond in range(60_000):
        calls += 1
        budget.deposit()
        retries += taken(budget, millisecond / 1000, 3)
    assert 0.99 * (0.2 * calls + 600) < retries <= 0.2 * calls + 10 * (60 + 10)


def test_clock_that_jumps_back_gives_nothing() -> None:
    budget = RetryBudget(100.0)
    taken(budget, 100.0, 100)
    assert taken(budget, 0.0, 10) == 0
    assert taken(budget, 101.0, 100) == 10


def test_budget_of_nothing_allows_no_retry() -> None:
    budget = RetryBudget(0.0, ratio=0, minimum=0)
    budget.deposit()
    assert not budget.withdraw(1e9)


def test_ratio_alone_allows_one_retry_after_enough_calls() -> None:
    budget = RetryBudget(0.0, ratio=0.25, minimum=0)
    allowed = []
    for _ in range(8):
        budget.deposit()
        allowed.append(budget.withdraw(0.0))
    assert allowed == [False, False, False, True] * 2


@pytest.mark.parametrize("setting", [{"ratio": -1}, {"minimum": float("nan")}])
def test_bad_budget_is_refused(setting: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="ratio and minimum must be numbers from 0 up"):
        RetryBudget(0.0, **setting)


def test_no_hedge_before_20_calls_have_ended() -> None:
    delay = HedgeDelay()
    for _ in range(19):
        delay.observe(0.01)
    assert delay.seconds is None
    delay.observe(0.01)
    assert delay.seconds == 0.01


@pytest.mark.parametrize("quantile", [0.5, 0.9, 0.95, 0.99])
def test_share_of_calls_beyond_the_delay_is_that_of_the_quantile(quantile: float) -> None:
    rng = random.Random(3)
    delay = HedgeDelay(quantile)
    beyond = 0
    for number in range(40_000):
        seconds = rng.lognormvariate(-4.0, 1.0)
        beyond += number >= 20_000 and seconds > (delay.seconds or 0.0)
        delay.observe(seconds)
    assert beyond / 20_000 == pytest.approx(1 - quantile, rel=0.2)


@pytest.mark.parametrize("factor", [10.0, 0.1])
def test_delay_follows_a_change(factor: float) -> None:
    delay = HedgeDelay()
    rng = random.Random(3)
    for _ in range(1000):
        delay.observe(rng.uniform(0.01, 0.02))
    before = delay.seconds
    for _ in range(1000):
        delay.observe(factor * rng.uniform(0.01, 0.02))
    assert before is not None
    assert delay.seconds == pytest.approx(before * factor, rel=0.2)


def test_calls_that_take_no_time_leave_a_delay_that_can_grow() -> None:
    delay = HedgeDelay()
    for _ in range(1000):
        delay.observe(0.0)
    for _ in range(1000):
        delay.observe(1.0)
    assert delay.seconds == pytest.approx(1.0, rel=0.2)


@pytest.mark.parametrize("quantile", [0, 1, float("nan")])
def test_bad_quantile_is_refused(quantile: float) -> None:
    with pytest.raises(ValueError, match="quantile must be between 0 and 1"):
        HedgeDelay(quantile)
