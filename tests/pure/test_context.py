"""What a handler sees of its call, and what flows from it into calls that it makes."""

import math
from contextvars import copy_context
from typing import Any

import pytest

from rpc_fuzz.pair import Host, Pair
from rpc_proto import (
    Cancelled,
    ClientConfig,
    LocalProtocolError,
    Peer,
    ServerConfig,
    current_call,
)
from rpc_proto.service.context import CallContext, Job, ambient_call, inherit
from support.driving import make_job


class Seen:
    def all(self) -> list[Any]:
        call = current_call()
        return [
            dict(call.metadata),
            call.deadline,
            call.time_left,
            call.peer.address,
            call.peer.identity,
            call.cancelled,
        ]

    def reply(self, metadata: dict[str, str]) -> None:
        current_call().set_reply_metadata(metadata)

    def wait(self) -> None:
        current_call().raise_if_cancelled()


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_handler_sees_method_metadata_deadline_and_peer() -> None:
    config = ServerConfig(authenticate=lambda token, peer: "alice")
    pair = Pair(server=config, peer=Peer("10.0.0.1:99")).open()
    Host(pair, Seen())
    call = pair.call("Seen.all", timeout=2.0, metadata={"k": "v"})
    assert pair.outcome(call) == [
        {"k": "v"},
        pair.now + 2.0,
        2.0,
        "10.0.0.1:99",
        "alice",
        False,
    ]


def test_handler_of_a_call_without_deadline_sees_none() -> None:
    pair = Pair(peer=Peer("x")).open()
    Host(pair, Seen())
    assert pair.outcome(pair.call("Seen.all")) == [{}, None, None, "x", None, False]


def test_time_left_runs_down_to_zero() -> None:
    clock = Clock()
    made = CallContext(make_job(102.0, clock=clock))
    assert made.time_left == 2.0
    clock.now = 101.5
    assert made.time_left == 0.5
    clock.now = 200.0
    assert made.time_left == 0.0


def test_reply_metadata_reaches_the_caller() -> None:
    pair = Pair().open()
    Host(pair, Seen())
    call = pair.call("Seen.reply", {"took": "1", "\u20ac": ""})
    assert pair.ends(call)[0].metadata == {"took": "1", "\u20ac": ""}


@pytest.mark.parametrize("metadata", [{"k": 1}, {1: "v"}, {"k": b"v"}, {"k": None}])
def test_reply_metadata_of_other_than_strings_is_refused(metadata: Any) -> None:
    job = make_job()
    made = CallContext(job)
    made.set_reply_metadata({"kept": "yes"})
    with pytest.raises(LocalProtocolError):
        made.set_reply_metadata(metadata)
    assert job.call.reply_metadata == {"kept": "yes"}


def test_reply_metadata_is_a_copy() -> None:
    job = make_job()
    metadata = {"k": "v"}
    CallContext(job).set_reply_metadata(metadata)
    metadata["k"] = "w"
    assert job.call.reply_metadata == {"k": "v"}


def test_current_call_works_only_inside_a_handler() -> None:
    with pytest.raises(LocalProtocolError):
        current_call()


# Cancellation


def test_cancelled_call_raises_its_reason_where_the_handler_asks() -> None:
    pair = Pair().open()
    host = Host(pair, Seen(), slow=["Seen.wait"])
    call = pair.call("Seen.wait")
    running = CallContext(host.running[0])
    running.raise_if_cancelled()
    pair.client.cancel(pair.now, call)
    pair.report(pair.client)
    pair.pump()
    assert running.cancelled
    with pytest.raises(Cancelled):
        running.raise_if_cancelled()
    host.finish()
    assert host.dispatcher.total("failed") == 1


def test_callbacks_run_once_in_order_when_the_call_is_cancelled() -> None:
    made = make_job()
    ran: list[int] = []
    for number in (1, 2, 3):
        made.on_cancel(lambda number=number: ran.append(number))
    undo = made.on_cancel(lambda: ran.append(4))
    undo()
    undo()
    made.cancel(Cancelled())
    made.cancel(Cancelled())
    assert ran == [1, 2, 3]


def test_callback_of_a_call_that_is_cancelled_already_runs_at_once() -> None:
    made = make_job()
    made.cancel(Cancelled())
    ran: list[int] = []
    made.on_cancel(lambda: ran.append(1))()
    assert ran == [1]


def test_callback_that_fails_does_not_keep_others_from_running() -> None:
    made = make_job()
    ran: list[int] = []
    made.on_cancel(lambda: 1 // 0)
    made.on_cancel(lambda: ran.append(2))
    with pytest.raises(ZeroDivisionError):
        made.cancel(Cancelled())
    assert ran == [2]
    assert CallContext(made).cancelled


# Deadlines of calls made inside a handler


def picked(ambient: Job | None, timeout: float | None, default: float = 60.0) -> Any:
    def inside() -> float | None:
        ambient_call.set(ambient)
        return inherit(timeout, default, 100.0, None)[0]

    return copy_context().run(inside)


@pytest.mark.parametrize(
    ("timeout", "default", "deadline"),
    [
        (None, 60.0, 160.0),
        (5.0, 60.0, 105.0),
        (0, 60.0, 100.0),
        (None, math.inf, None),
        (math.inf, 60.0, None),
    ],
)
def test_deadline_outside_of_a_handler(timeout: Any, default: float, deadline: Any) -> None:
    assert picked(None, timeout, default) == deadline


@pytest.mark.parametrize(
    ("inherited", "timeout", "deadline"),
    [
        (103.0, None, 103.0),
        (103.0, 5.0, 103.0),
        (103.0, math.inf, 103.0),
        (103.0, 1.0, 101.0),
        (None, 5.0, 105.0),
        (None, math.inf, None),
        (99.0, 5.0, 99.0),
    ],
)
def test_deadline_inside_a_handler_is_never_later_than_its_own(
    inherited: Any, timeout: Any, deadline: Any
) -> None:
    assert picked(make_job(inherited), timeout) == deadline


def test_deadline_of_a_call_that_has_been_answered_is_not_inherited() -> None:
    ambient = make_job(103.0)
    ambient.call.ended = True
    assert ambient.answered
    assert picked(ambient, 5.0) == 105.0


def test_deadline_of_a_call_that_was_cancelled_is_inherited() -> None:
    ambient = make_job(103.0)
    ambient.call.ended = True
    ambient.cancel(Cancelled())
    assert not ambient.answered
    assert picked(ambient, 5.0) == 103.0


@pytest.mark.parametrize("timeout", [-1, -0.001, math.nan, -math.inf])
def test_timeout_that_is_no_time_is_refused(timeout: float) -> None:
    with pytest.raises(ValueError, match="timeout"):
        inherit(timeout, 60.0, 100.0, None)


def test_deadline_passes_down_a_chain_of_calls() -> None:
    second = Pair(ClientConfig()).open()
    Host(second, Seen())

    class Front:
        def ask(self) -> float:
            deadline, _ = inherit(None, 60.0, second.now, None)
            call = second.client.start_call(second.now, "Seen.all", deadline=deadline)
            second.pump()
            return second.outcome(call)[1]

    first = Pair().open()
    Host(first, Front())
    assert first.outcome(first.call("Front.ask", timeout=2.0)) == first.now + 2.0
