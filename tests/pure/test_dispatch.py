"""Dispatcher: finding, admitting, queueing, cancelling and answering calls, whatever runs them."""

from typing import Any

import pytest

from rpc_fuzz.pair import Host, Pair
from rpc_proto import (
    CallError,
    Cancelled,
    ClientConfig,
    NotFound,
    ServerConfig,
    State,
    Unavailable,
    Unimplemented,
    Unknown,
    current_call,
)
from rpc_proto.service.dispatch import Dispatcher


class Arith:
    def add(self, a: int, b: int) -> int:
        return a + b

    def fail(self, code: str) -> None:
        raise CallError(code, "on purpose", {"a": 1}, maybe_executed=False)

    def crash(self) -> None:
        raise ValueError("by accident")

    def broken(self) -> None:
        class Broken(CallError):
            def __init__(self) -> None:
                pass

        raise Broken


class Other:
    def name(self) -> str:
        return "other"


def hosted(**options: Any) -> tuple[Pair, Host]:
    pair = Pair(ClientConfig(ping_interval=None), ServerConfig(ping_interval=None)).open()
    return pair, Host(pair, Arith(), **options)


SLOW = ["Arith.add"]


def test_call_is_answered_with_what_the_handler_returns() -> None:
    pair, host = hosted()
    assert pair.outcome(pair.call("Arith.add", 1, 2)) == 3
    assert (host.dispatcher.total("served"), host.dispatcher.running) == (1, 0)


def test_call_error_of_a_handler_is_the_answer_and_did_run() -> None:
    pair, host = hosted()
    error = pair.outcome(pair.call("Arith.fail", "not_found"))
    assert type(error) is NotFound
    assert (error.message, error.details, error.maybe_executed) == ("on purpose", {"a": 1}, True)
    assert host.dispatcher.total("failed") == 1


@pytest.mark.parametrize("method", ["crash", "broken"])
def test_other_exception_of_a_handler_is_unknown(method: str) -> None:
    pair, _ = hosted()
    error = pair.outcome(pair.call(f"Arith.{method}"))
    assert type(error) is Unknown
    assert pair.outcome(pair.call("Arith.add", 1, 2)) == 3


def test_exceptions_that_the_operator_should_hear_of() -> None:
    _, host = hosted()
    assert host.dispatcher.is_unexpected(ValueError())
    assert not host.dispatcher.is_unexpected(NotFound())
    assert host.dispatcher.is_unexpected(SystemExit())


class Unprintable(Exception):
    def __str__(self) -> str:
        raise KeyboardInterrupt


@pytest.mark.fault(142)
@pytest.mark.parametrize("debug", [False, True])
@pytest.mark.parametrize("kind", [Unprintable, CallError])
def test_exception_that_cannot_be_printed_is_unknown(kind: Any, debug: bool) -> None:
    pair, host = hosted(debug=debug, slow=SLOW)
    call = pair.call("Arith.add", 1, 2)
    [served] = host.running
    error = kind("code") if kind is CallError else kind()
    error.message = error
    error.__class__ = type(kind.__name__, (kind,), {"__str__": Unprintable.__str__})
    host.dispatcher.finish(served, None, error)
    pair.pump()
    outcome = pair.outcome(call)
    assert (type(outcome), outcome.message) == (Unknown, kind.__name__)
    assert host.dispatcher.running == 0


# Advertisement


def test_service_is_registered_by_the_name_of_its_class_or_another() -> None:
    _, host = hosted()
    assert host.dispatcher.register(Other()) == "Other"
    assert host.dispatcher.register(Other(), "deep.other") == "deep.other"
    assert "deep.other.name" in host.dispatcher.methods


def test_name_that_is_taken_is_refused() -> None:
    _, host = hosted()
    before = host.dispatcher.methods
    with pytest.raises(ValueError, match="'Arith' is registered already"):
        host.dispatcher.register(Other(), "Arith")
    assert host.dispatcher.methods is before


def test_name_that_is_the_start_of_another_is_free() -> None:
    _, host = hosted()
    host.dispatcher.register(Other(), "Arith.add")
    assert "Arith.add.name" in host.dispatcher.methods
    host.dispatcher.unregister("Arith")
    assert list(host.dispatcher.methods) == ["Arith.add.name"]


def test_service_may_be_registered_while_calls_run() -> None:
    pair, host = hosted(slow=SLOW)
    running = pair.call("Arith.add", 1, 2)
    before = pair.call("Other.name")
    host.dispatcher.register(Other())
    after = pair.call("Other.name")
    host.finish()
    assert type(pair.outcome(before)) is Unimplemented
    assert pair.outcome(after) == "other"
    assert pair.outcome(running) == 3


def test_running_call_of_a_service_that_is_taken_away_goes_on() -> None:
    pair, host = hosted(slow=SLOW, max_concurrency=1)
    running = pair.call("Arith.add", 1, 2)
    queued = pair.call("Arith.add", 3, 4)
    host.dispatcher.unregister("Arith")
    late = pair.call("Arith.add", 5, 6)
    host.finish()
    host.finish()
    assert pair.outcome(running) == 3
    assert pair.outcome(queued) == 7
    assert type(pair.outcome(late)) is Unimplemented


def test_service_that_is_not_there_cannot_be_taken_away() -> None:
    _, host = hosted()
    with pytest.raises(ValueError, match="no service or method named"):
        host.dispatcher.unregister("Nobody")


def test_service_may_be_replaced() -> None:
    pair, host = hosted()
    host.dispatcher.unregister("Arith")
    host.dispatcher.register(Other(), "Arith")
    assert pair.outcome(pair.call("Arith.name")) == "other"


# Admission


def test_calls_over_the_concurrency_wait_in_order() -> None:
    pair, host = hosted(slow=SLOW, max_concurrency=2)
    calls = [pair.call("Arith.add", number, 0) for number in range(5)]
    assert (len(host.running), host.dispatcher.queued) == (2, 3)
    for _ in range(5):
        host.finish()
    assert [pair.outcome(call) for call in calls] == [0, 1, 2, 3, 4]
    assert (host.dispatcher.running, host.dispatcher.queued) == (0, 0)


def test_call_over_the_queue_is_refused_as_safe_to_retry() -> None:
    pair, host = hosted(slow=SLOW, max_concurrency=1, max_queued=1)
    for _ in range(2):
        pair.call("Arith.add", 1, 2)
    error = pair.outcome(pair.call("Arith.add", 1, 2))
    assert (error.code, error.maybe_executed) == ("resource_exhausted", False)
    assert host.dispatcher.total("refused") == 1
    assert pair.server.calls_in_flight == 2


def test_queued_call_whose_deadline_passes_leaves_without_being_run() -> None:
    pair, host = hosted(slow=SLOW, max_concurrency=1)
    pair.call("Arith.add", 1, 2)
    queued = pair.call("Arith.add", 3, 4, timeout=1.0)
    pair.advance(1.0)
    assert pair.outcome(queued).code == "deadline_exceeded"
    assert host.dispatcher.queued == 0
    assert pair.server.calls_in_flight == 1
    host.finish()
    assert host.ran == ["Arith.add"]


def test_queued_call_that_is_cancelled_leaves_without_being_run() -> None:
    pair, host = hosted(slow=SLOW, max_concurrency=1)
    pair.call("Arith.add", 1, 2)
    queued = pair.call("Arith.add", 3, 4)
    pair.client.cancel(pair.now, queued)
    pair.report(pair.client)
    pair.pump()
    assert host.dispatcher.queued == 0
    assert host.stopped == []
    host.finish()
    assert len(host.ran) == 1


def test_running_call_that_is_cancelled_is_to_be_stopped_and_holds_its_place() -> None:
    pair, host = hosted(slow=SLOW, max_concurrency=1)
    call = pair.call("Arith.add", 1, 2)
    [running] = host.running
    pair.client.cancel(pair.now, call)
    pair.report(pair.client)
    pair.pump()
    assert host.stopped == [running]
    assert type(running.error) is Cancelled
    assert (host.dispatcher.running, host.dispatcher.total("cancelled")) == (1, 1)
    host.dispatcher.finish(running, None, Cancelled("stopped"))
    assert (host.dispatcher.running, pair.server.calls_in_flight) == (0, 0)


def test_running_call_is_counted_though_a_callback_of_its_cancellation_raises() -> None:
    pair, host = hosted(slow=SLOW)
    call = pair.call("Arith.add", 1, 2)
    [running] = host.running
    running.on_cancel(lambda: 1 / 0)
    pair.client.cancel(pair.now, call)
    pair.report(pair.client)
    pair.pump()
    assert [type(error) for error in host.failures] == [ZeroDivisionError]
    assert host.dispatcher.snapshot(pair.now)["calls"]["in_flight"] == 1
    host.dispatcher.finish(running, None)
    assert host.dispatcher.snapshot(pair.now)["calls"]["in_flight"] == 0


def test_calls_of_a_connection_that_is_lost_are_stopped_and_taken_from_the_queue() -> None:
    pair, host = hosted(slow=SLOW, max_concurrency=1)
    for _ in range(3):
        pair.call("Arith.add", 1, 2)
    pair.lose()
    assert len(host.stopped) == 1
    assert type(host.stopped[0].error) is Unavailable
    assert host.dispatcher.queued == 0
    host.finish()
    assert host.dispatcher.running == 0


def test_call_that_ended_by_the_bytes_that_brought_it_is_not_run() -> None:
    pair, host = hosted()
    call = pair.client.start_call(pair.now, "Arith.add", (1, 2))
    pair.client.cancel(pair.now, call)
    pair.report(pair.client)
    pair.pump()
    assert host.ran == []
    assert pair.server.calls_in_flight == 0


def test_connections_share_the_places() -> None:
    pair, host = hosted(slow=SLOW, max_concurrency=1)
    other, _ = hosted()
    other.on_server_event = lambda event: host.dispatcher.receive([event])
    pair.call("Arith.add", 1, 2)
    queued = other.call("Arith.add", 3, 4)
    host.finish()
    [running] = host.running
    host.finish(running)
    other.pump()
    assert other.outcome(queued) == 7


def test_small_loop_may_have_its_calls_handled_here_and_now() -> None:
    pair = Pair().open()
    dispatcher = Dispatcher(clock=lambda: pair.now)
    dispatcher.register(Arith())
    good, bad, none = (
        pair.request(f"Arith.{name}", *args)
        for name, args in [("add", (1, 2)), ("crash", ()), ("missing", ())]
    )
    dispatcher.serve(pair.server_events)
    pair.pump()
    assert pair.outcome(good[0]) == 3
    assert type(pair.outcome(bad[0])) is Unknown
    assert type(pair.outcome(none[0])) is Unimplemented
    assert pair.server.state is State.OPEN


@pytest.mark.parametrize("value", [0, -1, 1.5, True, None])
@pytest.mark.parametrize("name", ["max_concurrency", "max_queued"])
def test_limit_that_is_no_positive_whole_number_is_refused(name: str, value: Any) -> None:
    limits = {"max_concurrency": 1, "max_queued": 1, name: value}
    with pytest.raises(ValueError, match=name):
        Dispatcher(clock=lambda: 0.0, **limits)


def test_handler_sees_its_own_call_only() -> None:
    class Who:
        def am_i(self) -> str:
            return current_call().metadata["name"]

    pair = Pair().open()
    Host(pair, Who())
    assert pair.outcome(pair.call("Who.am_i", metadata={"name": "me"})) == "me"
    with pytest.raises(Exception, match="inside a handler"):
        current_call()
