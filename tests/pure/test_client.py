"""ClientConnection: starting, sending, cancelling and ending calls; liveness and shutdown."""

import math
from typing import Any

import pytest

from rpc_fuzz.pair import Pair, only, outcome, termination
from rpc_fuzz.wire import (
    CANCEL,
    CODECS,
    GOAWAY,
    NAMED,
    NOT_EXECUTED,
    ONE_WAY,
    PING,
    PONG,
    RAW,
    REQUEST,
    START,
    Frame,
    Wire,
    frame,
    frames_in,
    open_client,
)
from rpc_proto import (
    CallCompleted,
    CallFailed,
    Cancelled,
    ClientConfig,
    ClientConnection,
    ConnectionTerminated,
    DataLoss,
    DeadlineExceeded,
    GoAwayReceived,
    InvalidArgument,
    LocalProtocolError,
    NotFound,
    RemoteProtocolError,
    ResourceExhausted,
    State,
    Unavailable,
)
from support.driving import caused

ONE_SLOT = {"header": 16384, "body": 65536, "calls": 1}


def seen(client: ClientConnection) -> Any:
    """All of a client that a command could change."""
    return client.calls_in_flight, client._serial, client.outbound, client.state, len(client._queue)


# Requests on the wire


@pytest.mark.parametrize("codec", CODECS)
def test_call_is_one_request_frame(codec: str) -> None:
    client = open_client(codec=codec)
    call = client.start_call(START, "Arith.add", (1, 2))
    [sent] = frames_in(client.data_to_send())
    wire = Wire(codec)
    assert (sent.type, sent.flags, sent.call_id) == (REQUEST, 0, call.id)
    assert wire.decode(sent.header) == ["Arith.add"]
    assert wire.decode(sent.body) == [1, 2]


@pytest.mark.parametrize("codec", CODECS)
def test_named_arguments_travel_beside_the_others(codec: str) -> None:
    client = open_client(codec=codec)
    client.start_call(START, "Arith.add", (1,), {"b": 2})
    [sent] = frames_in(client.data_to_send())
    assert sent.flags == NAMED
    assert Wire(codec).decode(sent.body) == [[1], {"b": 2}]


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_one_bytes_argument_travels_as_it_is(kind: type, codec: str) -> None:
    client = open_client(codec=codec)
    client.start_call(START, "Blob.put", (kind(b"\xff\x00"),))
    [sent] = frames_in(client.data_to_send())
    assert (sent.flags, sent.body) == (RAW, b"\xff\x00")


def test_large_bytes_argument_is_not_copied() -> None:
    client = open_client()
    body = bytes(100_000)
    client.start_call(START, "Blob.put", (body,))
    client.next_buffer()
    assert client.next_buffer() is body


def test_buffer_that_may_change_is_copied_when_the_call_starts() -> None:
    client = ClientConnection(now=START)
    buffer = bytearray(b"before")
    call = client.start_call(START, "Blob.put", (buffer,))
    buffer[:] = b"after!"
    assert call.body == b"before"


def test_call_without_arguments_has_no_body() -> None:
    client = open_client()
    client.start_call(START, "Arith.add")
    assert frames_in(client.data_to_send())[0].body == b""


def test_deadline_travels_as_the_milliseconds_that_are_left() -> None:
    client = open_client()
    client.start_call(START, "S.m", deadline=START + 1.25)
    client.start_call(START, "S.m", deadline=START + 1e-9)
    client.start_call(START, "S.m", deadline=math.inf)
    headers = [Wire().decode(sent.header) for sent in frames_in(client.data_to_send())]
    assert headers == [["S.m", 1250], ["S.m", 1], ["S.m"]]


def test_time_in_the_queue_is_taken_off_the_timeout_that_travels() -> None:
    pair = Pair()
    pair.down.held = True
    pair.call("S.m", timeout=2.0)
    pair.advance(1.5)
    pair.down.held = False
    pair.pump()
    assert pair.requests()[0].deadline == pair.now + 0.5


def test_metadata_travels_with_the_call() -> None:
    pair = Pair().open()
    _, served = pair.request("S.m", metadata={"trace": "42", "": "\u20ac"})
    assert served.metadata == {"trace": "42", "": "\u20ac"}


def test_large_and_small_buffers_come_out_in_order() -> None:
    client = open_client()
    for size in (10, 70_000, 20, 80_000):
        client.start_call(START, "Blob.put", (bytes(size),))
    sent = frames_in(client.data_to_send())
    assert [len(one.body) for one in sent] == [10, 70_000, 20, 80_000]
    assert client.outbound == 0


# Misuse


MISUSE: dict[str, tuple[dict[str, Any], type[Exception]]] = {
    "method empty": ({"method": ""}, LocalProtocolError),
    "method no string": ({"method": b"S.m"}, LocalProtocolError),
    "method None": ({"method": None}, LocalProtocolError),
    "deadline NaN": ({"deadline": math.nan}, LocalProtocolError),
    "arguments not encodable": ({"args": (object(),)}, InvalidArgument),
    "named arguments not encodable": ({"kwargs": {"a": object()}}, InvalidArgument),
    "arguments no sequence": ({"args": 5}, InvalidArgument),
    "method not encodable": ({"method": "S.\ud800"}, InvalidArgument),
    "metadata value no string": ({"metadata": {"k": 1}}, InvalidArgument),
    "metadata key no string": ({"metadata": {1: "v"}}, InvalidArgument),
    "metadata no mapping": ({"metadata": 5}, InvalidArgument),
    "body too large": ({"args": ("x" * 70_000,)}, ResourceExhausted),
    "header too large": ({"metadata": {"k": "x" * 20_000}}, ResourceExhausted),
}


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize(("wrong", "kind"), MISUSE.values(), ids=MISUSE)
def test_misuse_raises_before_anything_is_changed(
    wrong: dict[str, Any], kind: type[Exception], codec: str
) -> None:
    client = open_client(codec=codec, limits={"header": 16384, "body": 65536, "calls": 9})
    before = seen(client)
    arguments = {"method": "S.m", "now": START, **wrong}
    with pytest.raises(kind) as caught:
        client.start_call(**arguments)
    assert getattr(caught.value, "maybe_executed", False) is False
    assert seen(client) == before
    assert client.data_to_send() == b""
    assert client.start_call(START, "S.m").id == 1


@pytest.mark.parametrize("grace", [-1.0, math.nan])
def test_grace_that_is_no_time_is_refused(grace: float) -> None:
    client = open_client()
    with pytest.raises(LocalProtocolError):
        client.shutdown(START, grace)
    assert client.state is State.OPEN


@pytest.mark.parametrize("end", ["shutdown", "loss", "goaway", "violation"])
def test_connection_that_ends_takes_no_more_calls(end: str) -> None:
    client = open_client()
    client.start_call(START, "S.m")
    if end == "shutdown":
        client.shutdown(START, 5.0)
    elif end == "loss":
        client.connection_lost(START)
    elif end == "goaway":
        client.receive_data(START, Wire().goaway(1))
    else:
        client.receive_data(START, b"\0" * 16)
    with pytest.raises(Unavailable) as caught:
        client.start_call(START, "S.m")
    assert caught.value.maybe_executed is False


# Ends of calls


@pytest.mark.parametrize("codec", CODECS)
def test_answer_completes_the_call_and_gives_the_waiter_back(codec: str) -> None:
    client = open_client(codec=codec)
    waiter = object()
    call = client.start_call(START, "S.m", waiter=waiter)
    [event] = caused(client.receive_data, START, Wire(codec).response(call.id, {"a": [1]}))
    assert isinstance(event, CallCompleted)
    assert event.call is call
    assert event.call.waiter is waiter
    assert event.value == {"a": [1]}
    assert client.calls_in_flight == 0


def test_answers_may_come_in_any_order() -> None:
    pair = Pair().open()
    calls = [pair.call("S.m", number) for number in range(5)]
    for served in reversed(pair.requests()):
        pair.respond(served, served.id * 10)
    assert [pair.outcome(call) for call in calls] == [10, 20, 30, 40, 50]


@pytest.mark.parametrize("flags", [0, NOT_EXECUTED])
def test_error_fails_the_call_with_its_class(flags: int) -> None:
    client = open_client()
    call = client.start_call(START, "S.m")
    [event] = caused(
        client.receive_data, START, Wire().error(call.id, "not_found", "no", [1], flags)
    )
    assert type(event.error) is NotFound
    assert (event.error.message, event.error.details) == ("no", [1])
    assert event.error.maybe_executed is (flags == 0)


@pytest.mark.parametrize("codec", CODECS)
def test_result_becomes_the_type_that_was_asked_for(codec: str) -> None:
    client = open_client(codec=codec)
    wire = Wire(codec)
    good = client.start_call(START, "S.m", returns=set[int])
    bad = client.start_call(START, "S.m", returns=set[int])
    nothing = client.start_call(START, "S.m", returns=int | None)
    data = wire.response(good.id, [1, 1]) + wire.response(bad.id, ["x"]) + wire.response(nothing.id)
    first, second, third = caused(client.receive_data, START, data)
    assert first.value == {1}
    assert type(second.error) is DataLoss
    assert third.value is None


def test_metadata_of_the_answer_comes_with_it() -> None:
    client = open_client()
    call = client.start_call(START, "S.m")
    [event] = caused(client.receive_data, START, Wire().response(call.id, 1, metadata={"k": "v"}))
    assert event.metadata == {"k": "v"}


def test_one_way_call_has_ended_when_it_is_sent() -> None:
    client = open_client()
    call = client.start_call(START, "Log.line", ("text",), one_way=True)
    assert call.sent
    assert client.calls_in_flight == 0
    [sent] = frames_in(client.data_to_send())
    assert sent.flags == ONE_WAY


def test_cancel_fails_the_call_and_tells_the_server() -> None:
    client = open_client()
    call = client.start_call(START, "S.m")
    client.data_to_send()
    error = outcome(caused(client.cancel, START, call))
    assert type(error) is Cancelled
    assert error.maybe_executed is True
    assert frames_in(client.data_to_send()) == [Frame(CANCEL, 0, call.id, b"", b"")]


def test_cancel_of_a_call_that_was_not_sent_tells_nobody() -> None:
    client = open_client(limits=ONE_SLOT)
    first, second = (client.start_call(START, "S.m") for _ in range(2))
    client.data_to_send()
    error = outcome(caused(client.cancel, START, second))
    assert error.maybe_executed is False
    assert client.data_to_send() == b""
    assert client.calls_in_flight == 1
    assert first.sent


def test_cancel_may_name_the_error() -> None:
    client = open_client()
    call = client.start_call(START, "S.m")
    reason = DeadlineExceeded("the caller's own limit")
    assert outcome(caused(client.cancel, START, call, reason)) is reason


def test_cancel_of_a_call_that_ended_changes_nothing() -> None:
    client = open_client()
    call = client.start_call(START, "S.m")
    client.receive_data(START, Wire().response(call.id, 1))
    client.data_to_send()
    assert caused(client.cancel, START, call) == []
    assert client.data_to_send() == b""


def test_deadlines_fire_in_order_by_one_timer() -> None:
    client = open_client(ClientConfig(ping_interval=None))
    calls = [client.start_call(START, "S.m", deadline=START + at) for at in (3.0, 1.0, 2.0)]
    order = []
    while (at := client.next_timeout()) is not None:
        order += [event.call for event in caused(client.handle_timeout, at)]
        later = client.next_timeout()
        assert later is None or later > at
    assert order == [calls[1], calls[2], calls[0]]


def test_early_and_repeated_wake_ups_are_harmless() -> None:
    client = open_client(ClientConfig(ping_interval=None))
    client.start_call(START, "S.m", deadline=START + 5.0)
    for _ in range(3):
        assert caused(client.handle_timeout, START + 1.0) == []
    assert client.next_timeout() == START + 5.0


# Slots


def test_call_over_the_agreed_number_waits_for_a_slot() -> None:
    client = open_client(limits=ONE_SLOT)
    first, second, third = (client.start_call(START, "S.m") for _ in range(3))
    assert [call.sent for call in (first, second, third)] == [True, False, False]
    client.receive_data(START, Wire().response(first.id, 1))
    assert [call.sent for call in (second, third)] == [True, False]
    client.cancel(START, second)
    assert third.sent


def test_call_does_not_overtake_those_that_wait() -> None:
    client = open_client(limits=ONE_SLOT)
    calls = [client.start_call(START, "S.m") for _ in range(3)]
    late = client.start_call(START, "Log.line", one_way=True)
    client.receive_data(START, Wire().response(calls[0].id))
    assert not late.sent


def test_waiting_call_whose_deadline_passes_never_leaves() -> None:
    client = open_client(ClientConfig(ping_interval=None), limits=ONE_SLOT)
    first = client.start_call(START, "S.m")
    second = client.start_call(START, "S.m", deadline=START + 1.0)
    client.data_to_send()
    assert client.next_timeout() == START + 1.0
    events = caused(client.receive_data, START + 1.0, Wire().response(first.id))
    assert isinstance(events[0], CallCompleted)
    assert type(only(events, CallFailed).error) is DeadlineExceeded
    assert client.data_to_send() == b""
    assert not second.sent


# Liveness


def test_ping_goes_out_after_silence_and_the_peer_is_dead_after_twice_as_much() -> None:
    client = open_client(timeouts={"ping": 4000})
    call = client.start_call(START, "S.m")
    client.data_to_send()
    assert client.next_timeout() == START + 4.0
    assert caused(client.handle_timeout, START + 4.0) == []
    assert frames_in(client.data_to_send()) == [Frame(PING, 0, 0, b"", b"")]
    assert client.next_timeout() == START + 8.0
    events = caused(client.handle_timeout, START + 8.0)
    assert only(events, CallFailed).call is call
    assert isinstance(termination(events), Unavailable)
    assert client.state is State.CLOSED


@pytest.mark.parametrize("data", [frame(PONG), frame(0x80), frame(PING)[:5]])
def test_any_byte_is_a_sign_of_life(data: bytes) -> None:
    client = open_client(timeouts={"ping": 4000})
    client.handle_timeout(START + 4.0)
    client.receive_data(START + 7.0, data)
    assert caused(client.handle_timeout, START + 8.0) == []
    assert client.next_timeout() == START + 11.0


def test_ping_is_answered_with_its_id() -> None:
    client = open_client()
    client.receive_data(START, frame(PING, 77))
    assert frames_in(client.data_to_send()) == [Frame(PONG, 0, 77, b"", b"")]


def test_without_an_agreed_interval_there_is_no_ping() -> None:
    assert open_client(ClientConfig(ping_interval=3.0)).next_timeout() is None


# GOAWAY and shutdown


def test_goaway_names_the_last_call_that_is_served() -> None:
    client = open_client()
    calls = [client.start_call(START, "S.m") for _ in range(3)]
    events = caused(client.receive_data, START, Wire().goaway(2, "unavailable", "bye"))
    assert isinstance(events[0], GoAwayReceived)
    assert events[0].message == "bye"
    failed = only(events, CallFailed)
    assert failed.call is calls[2]
    assert (failed.error.code, failed.error.maybe_executed) == ("unavailable", False)
    assert client.state is State.DRAINING
    wire = Wire()
    events = caused(client.receive_data, START, wire.response(1, "a") + wire.response(2, "b"))
    assert [event.value for event in events[:2]] == ["a", "b"]
    assert termination(events) is None
    assert client.state is State.CLOSING


def test_goaway_fails_all_that_waits_to_be_sent() -> None:
    client = open_client(limits=ONE_SLOT)
    sent, waiting = (client.start_call(START, "S.m") for _ in range(2))
    # A server that names an id which it cannot have seen does not hold the call up either.
    events = caused(client.receive_data, START, Wire().goaway(2))
    failed = only(events, CallFailed)
    assert failed.call is waiting
    assert failed.error.maybe_executed is False
    assert sent.id in client.calls


def test_goaway_without_calls_closes_at_once() -> None:
    client = open_client()
    assert termination(caused(client.receive_data, START, Wire().goaway())) is None
    assert client.state is State.CLOSING


@pytest.mark.parametrize("last", [1, 5, 2**64 - 1])
def test_goaway_after_a_call_that_was_never_made_is_a_violation(last: int) -> None:
    events = caused(open_client().receive_data, START, Wire().goaway(last))
    assert isinstance(termination(events), RemoteProtocolError)


def test_shutdown_lets_calls_end_within_the_grace() -> None:
    client = open_client()
    call = client.start_call(START, "S.m")
    client.data_to_send()
    assert caused(client.shutdown, START, 5.0) == []
    assert frames_in(client.data_to_send())[0].type == GOAWAY
    assert client.state is State.DRAINING
    events = caused(client.receive_data, START + 1.0, Wire().response(call.id, 1))
    assert outcome(events) == 1
    assert termination(events) is None


def test_shutdown_cancels_what_is_left_after_the_grace() -> None:
    client = open_client()
    call = client.start_call(START, "S.m")
    client.shutdown(START, 5.0)
    client.data_to_send()
    events = caused(client.handle_timeout, START + 5.0)
    assert type(outcome(events)) is Cancelled
    assert termination(events) is None
    assert frames_in(client.data_to_send()) == [Frame(CANCEL, 0, call.id, b"", b"")]


def test_shutdown_without_grace_cancels_at_once() -> None:
    client = open_client()
    client.start_call(START, "S.m")
    events = caused(client.shutdown, START)
    assert type(outcome(events)) is Cancelled
    assert client.state is State.CLOSING


def test_shutdown_fails_at_once_what_waits_to_be_sent() -> None:
    client = open_client(limits=ONE_SLOT)
    sent, waiting = (client.start_call(START, "S.m") for _ in range(2))
    failed = only(caused(client.shutdown, START, 5.0), CallFailed)
    assert failed.call is waiting
    assert failed.error.maybe_executed is False
    assert client.calls_in_flight == 1
    assert sent.sent


def test_second_shutdown_shortens_the_grace() -> None:
    client = open_client()
    client.start_call(START, "S.m")
    client.shutdown(START, 60.0)
    assert type(outcome(caused(client.shutdown, START + 1.0))) is Cancelled


def test_last_bytes_have_a_time_limit() -> None:
    client = open_client(ClientConfig(close_timeout=2.0))
    client.shutdown(START)
    assert client.state is State.CLOSING
    assert client.next_timeout() == START + 2.0
    assert caused(client.handle_timeout, START + 2.0) == []
    assert client.state is State.CLOSED
    assert client.data_to_send() == b""
    assert client.next_timeout() is None


def test_loss_fails_calls_by_whether_they_were_sent() -> None:
    client = open_client(limits=ONE_SLOT)
    sent, waiting = (client.start_call(START, "S.m") for _ in range(2))
    events = caused(client.connection_lost, START, "cable cut")
    failed = {event.call: event.error for event in events if isinstance(event, CallFailed)}
    assert failed[sent].maybe_executed is True
    assert failed[waiting].maybe_executed is False
    assert "cable cut" in failed[sent].message
    assert isinstance(events[-1], ConnectionTerminated)


def test_inputs_after_the_end_are_harmless() -> None:
    client = open_client()
    call = client.start_call(START, "S.m")
    client.connection_lost(START)
    assert caused(client.receive_data, START, b"anything") == []
    assert caused(client.receive_eof, START) == []
    assert caused(client.connection_lost, START) == []
    assert caused(client.handle_timeout, START) == []
    assert caused(client.shutdown, START) == []
    assert caused(client.cancel, START, call) == []
    assert client.data_to_send() == b""
    assert client.next_timeout() is None


def test_many_fast_calls_leave_nothing_behind() -> None:
    pair = Pair().open()
    slow = pair.call("S.slow", timeout=1.0)
    for _ in range(3000):
        _, served = pair.request("S.m", timeout=60.0)
        for end in (pair.client, pair.server):
            assert len(end.calls.deadlines) <= 2 * len(end.calls) + 65
        pair.respond(served, None)
        pair.server_events.clear()
        pair.client_events.clear()
    pair.advance(1.0)
    assert type(pair.outcome(slow)) is DeadlineExceeded


# What is interrupted, and what changes meanwhile


def test_metadata_of_a_call_that_waits_are_those_of_its_start() -> None:
    client = open_client(limits=ONE_SLOT)
    first = client.start_call(START, "Arith.add", (1, 2))
    metadata = {"k": "before"}
    client.start_call(START, "Arith.add", (3, 4), metadata=metadata)
    metadata["k"] = "after"
    client.data_to_send()
    client.cancel(START, first)
    assert b"before" in client.data_to_send()


@pytest.mark.parametrize("metadata", [5, "ab"])
def test_metadata_that_are_no_map_are_refused_though_the_call_would_wait(metadata: Any) -> None:
    client = open_client(limits=ONE_SLOT)
    client.start_call(START, "Arith.add", (1, 2))
    before = seen(client)
    with pytest.raises(InvalidArgument, match="metadata"):
        client.start_call(START, "Arith.add", (3, 4), metadata=metadata)
    assert seen(client) == before


class Interrupted(list[bytes]):
    """Bytes to be sent, behind whose addition the handler of a signal raises."""

    def __iadd__(self, more: Any) -> Any:
        self.extend(more)
        raise KeyboardInterrupt


def test_call_behind_an_interrupted_one_has_another_id() -> None:
    client = open_client()
    client._out = Interrupted()  # type: ignore[assignment]
    with pytest.raises(KeyboardInterrupt):
        client.start_call(START, "Arith.add", (1, 2))
    client._out = list(client._out)
    client.start_call(START, "Arith.add", (3, 4))
    first, second = frames_in(client.data_to_send())
    assert first.call_id != second.call_id


def test_event_of_another_call_that_a_command_causes_is_not_lost() -> None:
    client = open_client(limits=ONE_SLOT)
    client.events()
    first = client.start_call(START, "S.m")
    second = client.start_call(START, "S.m", deadline=START + 1.0)
    client.cancel(START + 1.5, first)  # its slot comes too late for the second
    assert [(event.call, type(event.error)) for event in client.events()] == [
        (first, Cancelled),
        (second, DeadlineExceeded),
    ]
