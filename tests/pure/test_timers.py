"""TimerTable: one entry for each purpose."""

from rpc_proto.connection.timers import Timer, TimerTable


def test_earliest_timer_is_known_at_any_time() -> None:
    timers = TimerTable()
    assert timers.earliest is None
    timers.set(Timer.IDLE, 5.0)
    timers.set(Timer.WRITE, 3.0)
    assert timers.earliest == 3.0
    timers.clear(Timer.WRITE)
    assert timers.earliest == 5.0
    timers.clear_all()
    assert timers.earliest is None


def test_setting_a_timer_again_moves_it() -> None:
    timers = TimerTable()
    timers.set(Timer.IDLE, 1.0)
    timers.set(Timer.IDLE, 9.0)
    assert timers.earliest == 9.0
    assert timers.pop_due(5.0) == []


def test_due_timers_are_taken_away_at_their_very_time() -> None:
    timers = TimerTable()
    timers.set(Timer.IDLE, 1.0)
    timers.set(Timer.GRACE, 2.0)
    timers.set(Timer.CLOSE, 2.5)
    assert set(timers.pop_due(2.0)) == {Timer.IDLE, Timer.GRACE}
    assert Timer.IDLE not in timers
    assert timers.earliest == 2.5


def test_clearing_a_timer_that_is_not_set_is_no_error() -> None:
    TimerTable().clear(Timer.LIVENESS)
