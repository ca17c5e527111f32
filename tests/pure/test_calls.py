"""CallTable: calls by id and by deadline."""

from typing import Any

import pytest

from rpc_proto import InboundCall, OutboundCall
from rpc_proto.connection.calls import CallTable


def make(number: int, deadline: float | None = None) -> OutboundCall:
    return OutboundCall(number, number, "S.m", deadline, None, None, 0, b"", None)


def table(*calls: OutboundCall) -> CallTable[OutboundCall]:
    made: CallTable[OutboundCall] = CallTable()
    for call in calls:
        made.insert(call)
    return made


def test_call_is_found_by_its_id_until_it_is_removed() -> None:
    call = make(1)
    calls = table(call)
    assert calls.get(1) is call
    assert 1 in calls
    assert calls.remove(call) is True
    assert calls.get(1) is None
    assert calls.remove(call) is False
    assert len(calls) == 0


def test_another_call_with_the_same_id_is_not_removed() -> None:
    calls = table(make(1))
    assert calls.remove(make(1)) is False
    assert 1 in calls


def test_calls_may_be_removed_while_the_table_is_walked() -> None:
    calls = table(make(1), make(2), make(3))
    assert [call.id for call in calls if calls.remove(call)] == [1, 2, 3]
    assert len(calls) == 0


def test_clear_returns_the_calls_in_the_order_of_their_arrival() -> None:
    calls = table(make(3, 1.0), make(1, 0.5), make(2))
    assert [call.id for call in calls.clear()] == [3, 1, 2]
    assert len(calls) == 0
    assert not calls.deadlines


def test_expired_calls_come_earliest_first_once_and_stay_in_the_table() -> None:
    calls = table(make(1, 3.0), make(2, 1.0), make(3), make(4, 2.0))
    assert [call.id for call in calls.expire(2.0)] == [2, 4]
    assert calls.expire(2.0) == []
    assert len(calls) == 4
    assert calls.deadlines[0][0] == 3.0


def test_call_that_ended_does_not_expire() -> None:
    calls = table(make(1, 1.0), make(2, 2.0))
    calls.remove(calls.by_id[1])
    assert [call.id for call in calls.expire(5.0)] == [2]
    assert not calls.deadlines


def test_id_that_is_used_again_expires_by_its_new_deadline() -> None:
    calls = table(make(1, 1.0))
    calls.remove(calls.by_id[1])
    again = make(1, 3.0)
    calls.insert(again)
    assert calls.expire(2.0) == []
    assert calls.expire(3.0) == [again]


def test_id_that_is_used_again_with_the_same_deadline_expires_once() -> None:
    calls = table(make(1, 1.0))
    for _ in range(3):
        calls.remove(calls.by_id[1])
        calls.insert(make(1, 1.0))
    assert calls.expire(1.0) == [calls.by_id[1]]
    assert calls.expire(1.0) == []


@pytest.mark.parametrize("pinned", [False, True])
def test_heap_stays_small_under_many_fast_calls(pinned: bool) -> None:
    calls: CallTable[Any] = CallTable()
    if pinned:
        calls.insert(make(10**9, 0.5))  # the earliest of all, so that nothing falls off the top
    for number in range(100_000):
        call = make(number, 60.0 + number)
        calls.insert(call)
        assert len(calls.deadlines) <= 2 * len(calls) + 65
        calls.remove(call)


def test_heap_stays_small_while_many_calls_overlap() -> None:
    calls: CallTable[Any] = CallTable()
    for number in range(20_000):
        calls.insert(make(number, 60.0 + number))
        assert len(calls.deadlines) <= 2 * len(calls) + 65
        if number >= 100:
            calls.remove(calls.by_id[number - 100])


def test_calls_show_their_id_and_method() -> None:
    assert repr(make(7)) == "<OutboundCall 7 S.m>"
    assert repr(InboundCall(None, 8, "S.m", None, {}, 0, b"", 0.0)) == "<InboundCall 8 S.m>"
