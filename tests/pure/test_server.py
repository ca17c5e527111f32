"""ServerConnection: taking calls in, answering, limits, liveness, idleness and shutdown."""

from typing import Any

import pytest

from rpc_fuzz.pair import Pair, only, termination
from rpc_fuzz.wire import (
    CODECS,
    ERROR,
    GOAWAY,
    NOT_EXECUTED,
    ONE_WAY,
    PING,
    PONG,
    RAW,
    RESPONSE,
    START,
    Frame,
    Wire,
    frame,
    frames_in,
    open_server,
)
from rpc_proto import (
    CallCancelled,
    CallError,
    ClientConfig,
    ConnectionTerminated,
    DeadlineExceeded,
    NotFound,
    RequestReceived,
    ServerConfig,
    State,
    Unavailable,
    Wish,
)
from support.driving import caused

QUIET = ServerConfig(ping_interval=None)


def arrive(server: Any, *requests: bytes, now: float = START) -> list[Any]:
    events = caused(server.receive_data, now, b"".join(requests))
    return [event.call for event in events if isinstance(event, RequestReceived)]


# Requests and answers


@pytest.mark.parametrize("codec", CODECS)
def test_request_is_reported_with_all_that_it_says(codec: str) -> None:
    wire = Wire(codec)
    data = wire.request(7, "S.m", [1], timeout=1500, metadata={"k": "v"}, flags=0)
    [call] = arrive(open_server(codec=codec), data)
    assert (call.id, call.method, call.deadline) == (7, "S.m", START + 1.5)
    assert call.metadata == {"k": "v"}
    assert wire.decode(call.body) == [1]
    assert not call.one_way


def test_metadata_cannot_be_changed() -> None:
    [call] = arrive(open_server(), Wire().request(1, metadata={"k": "v"}))
    with pytest.raises(TypeError):
        call.metadata["k"] = "w"


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("value", [0, "", [], {"a": None}, False])
def test_response_carries_the_value(value: Any, codec: str) -> None:
    server = open_server(codec=codec)
    [call] = arrive(server, Wire(codec).request(1))
    server.send_response(START, call, value)
    [sent] = frames_in(server.data_to_send())
    assert (sent.type, sent.flags, sent.call_id, sent.header) == (RESPONSE, 0, 1, b"")
    assert Wire(codec).decode(sent.body) == value
    assert server.calls_in_flight == 0


def test_response_of_none_has_no_body() -> None:
    server = open_server()
    [call] = arrive(server, Wire().request(1))
    server.send_response(START, call, None)
    assert frames_in(server.data_to_send()) == [Frame(RESPONSE, 0, 1, b"", b"")]


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_response_of_bytes_is_the_bytes(kind: type) -> None:
    server = open_server(codec="json")
    [call] = arrive(server, Wire("json").request(1))
    server.send_response(START, call, kind(b"\xff"))
    assert frames_in(server.data_to_send()) == [Frame(RESPONSE, RAW, 1, b"", b"\xff")]


@pytest.mark.parametrize("executed", [True, False])
def test_error_carries_code_message_details_and_whether_it_ran(executed: bool) -> None:
    server = open_server()
    [call] = arrive(server, Wire().request(1))
    server.send_error(START, call, NotFound("no", {"id": 5}, maybe_executed=executed))
    [sent] = frames_in(server.data_to_send())
    assert (sent.type, sent.flags) == (ERROR, 0 if executed else NOT_EXECUTED)
    assert Wire().decode(sent.body) == ["not_found", "no", {"id": 5}]


@pytest.mark.parametrize("how", ["response", "error"])
def test_reply_metadata_travels_with_the_answer(how: str) -> None:
    pair = Pair().open()
    call, served = pair.request("S.m")
    served.reply_metadata = {"took": "5 ms"}
    if how == "response":
        pair.respond(served, 1)
        assert pair.ends(call)[0].metadata == {"took": "5 ms"}
    else:
        pair.server.send_error(pair.now, served, NotFound("no"))
        [sent] = frames_in(pair.server.data_to_send())
        assert Wire().decode(sent.header) == [{"took": "5 ms"}]


def test_reply_metadata_over_the_limit_of_the_caller_costs_the_call() -> None:
    pair = Pair(ClientConfig(max_header=256)).open()
    call, served = pair.request("S.m")
    served.reply_metadata = {"k": "x" * 300}
    pair.respond(served, 1)
    assert pair.outcome(call).code == "resource_exhausted"


def test_reply_metadata_that_cannot_be_encoded_costs_the_call() -> None:
    pair = Pair().open()
    call, served = pair.request("S.m")
    served.reply_metadata = {"k": "\ud800"}
    pair.respond(served, 1)
    assert pair.outcome(call).code == "internal"


def test_one_way_call_is_never_answered() -> None:
    server = open_server()
    first, second, third = arrive(
        server, *(Wire().request(number, flags=ONE_WAY) for number in (1, 2, 3))
    )
    server.send_response(START, first, 1)
    server.send_error(START, second, NotFound())
    server.conclude(START, third)
    assert server.data_to_send() == b""
    assert server.calls_in_flight == 0


def test_call_that_is_given_up_gets_an_answer_nevertheless() -> None:
    pair = Pair().open()
    call, served = pair.request("S.m")
    pair.server.conclude(pair.now, served)
    pair.pump()
    assert pair.outcome(call).code == "internal"


def test_each_call_ends_once_by_answer_or_by_cancellation() -> None:
    pair = Pair().open()
    calls = [pair.request("S.m", timeout=1.0 if number == 2 else None) for number in range(5)]
    pair.respond(calls[0][1], 1)
    pair.client.cancel(pair.now, calls[1][0])
    pair.report(pair.client)
    pair.advance(1.0)
    pair.shut_server()
    told = [event.call for event in pair.server_events if isinstance(event, CallCancelled)]
    assert told == [served for _, served in calls[1:]]
    for _, served in calls:
        pair.server.send_response(pair.now, served, 1)
    assert pair.server.data_to_send() == b""
    assert [len(pair.ends(call)) for call, _ in calls] == [1] * 5


# Deadlines


def test_handling_timeout_caps_the_deadline() -> None:
    server = open_server(ServerConfig(handling_timeout=2.0, ping_interval=None))
    wire = Wire()
    short, long, none = arrive(
        server, wire.request(1, timeout=1000), wire.request(2, timeout=9000), wire.request(3)
    )
    assert [call.deadline - START for call in (short, long, none)] == [1.0, 2.0, 2.0]
    events = caused(server.handle_timeout, START + 2.0)
    assert [event.call for event in events] == [short, long, none]
    assert all(type(event.error) is DeadlineExceeded for event in events)


def test_answer_in_time_leaves_no_timer() -> None:
    server = open_server(QUIET)
    [call] = arrive(server, Wire().request(1, timeout=1000))
    server.send_response(START, call, 1)
    server.handle_timeout(START)
    assert server.next_timeout() is None


# Liveness


def test_server_pings_and_gives_up() -> None:
    server = open_server(ServerConfig(ping_interval=3.0))
    [call] = arrive(server, Wire().request(1))
    server.handle_timeout(START + 3.0)
    assert frames_in(server.data_to_send()) == [Frame(PING, 0, 0, b"", b"")]
    events = caused(server.handle_timeout, START + 6.0)
    assert only(events, CallCancelled).call is call
    assert isinstance(termination(events), Unavailable)


def test_two_ends_keep_each_other_alive() -> None:
    pair = Pair(ClientConfig(ping_interval=2.0), ServerConfig(ping_interval=5.0)).open()
    pair.advance(600.0)
    assert pair.client.state is State.OPEN
    assert pair.server.state is State.OPEN


def test_silence_of_a_peer_that_is_not_read_counts_for_nothing() -> None:
    config = ServerConfig(ping_interval=1.0, high_water=1024, write_timeout=60.0)
    server = open_server(config)
    [call] = arrive(server, Wire().request(1))
    server.send_response(START, call, b"x" * 2000)
    assert server.wish is Wish.PAUSE
    for second in range(1, 20):
        server.handle_timeout(START + second)
    assert server.state is State.OPEN


# Idleness


def idle_server() -> Any:
    return open_server(ServerConfig(idle_timeout=10.0, ping_interval=None))


def test_connection_without_calls_is_asked_to_leave() -> None:
    server = idle_server()
    assert server.next_timeout() == START + 10.0
    assert termination(caused(server.handle_timeout, START + 10.0)) is None
    [sent] = frames_in(server.data_to_send())
    assert (sent.type, sent.call_id) == (GOAWAY, 0)
    assert server.state is State.CLOSING


def test_pings_do_not_put_idleness_off() -> None:
    server = idle_server()
    server.receive_data(START + 9.0, frame(PING))
    server.handle_timeout(START + 10.0)
    assert server.state is State.CLOSING


def test_running_call_is_no_idleness() -> None:
    server = idle_server()
    arrive(server, Wire().request(1))
    for second in (10, 20, 30):
        server.handle_timeout(START + second)
    assert server.state is State.OPEN


@pytest.mark.parametrize("how", ["response", "error", "conclude", "one way"])
def test_idleness_begins_when_the_last_call_ends(how: str) -> None:
    server = idle_server()
    [call] = arrive(server, Wire().request(1, flags=ONE_WAY if how == "one way" else 0))
    if how == "error":
        server.send_error(START + 9.0, call, NotFound())
    elif how == "conclude":
        server.conclude(START + 9.0, call)
    else:
        server.send_response(START + 9.0, call, 1)
    assert caused(server.handle_timeout, START + 10.0) == []
    assert server.next_timeout() == START + 19.0
    server.handle_timeout(START + 19.0)
    assert server.state is State.CLOSING


def test_client_of_an_idle_connection_may_retry_what_crossed_the_goaway() -> None:
    pair = Pair(server=ServerConfig(idle_timeout=10.0)).open()
    pair.up.held = True
    call = pair.call("S.m")
    pair.advance(10.0)
    pair.up.held = False
    pair.pump()
    assert pair.outcome(call).code == "unavailable"
    assert pair.outcome(call).maybe_executed is False
    assert pair.requests() == []


# Shutdown


def test_shutdown_names_the_last_call_and_lets_those_before_it_end() -> None:
    server = open_server(QUIET)
    wire = Wire()
    first, second = arrive(server, wire.request(1), wire.request(2))
    assert caused(server.shutdown, START, 5.0) == []
    [goaway] = frames_in(server.data_to_send())
    assert (goaway.type, goaway.call_id) == (GOAWAY, 2)
    server.send_response(START, first, 1)
    assert server.state is State.DRAINING
    server.send_response(START, second, 2)
    assert server.state is State.CLOSING
    assert termination(server.events()) is None


def test_shutdown_waits_for_one_way_calls_too() -> None:
    server = open_server(QUIET)
    [call] = arrive(server, Wire().request(1, flags=ONE_WAY))
    server.shutdown(START, 5.0)
    assert server.state is State.DRAINING
    server.send_response(START, call, None)
    assert server.state is State.CLOSING


def test_call_behind_the_goaway_is_refused_as_safe_to_retry() -> None:
    server = open_server(QUIET)
    arrive(server, Wire().request(1))
    server.shutdown(START, 5.0)
    server.data_to_send()
    assert caused(server.receive_data, START, Wire().request(2)) == []
    [sent] = frames_in(server.data_to_send())
    assert (sent.type, sent.flags, sent.call_id) == (ERROR, NOT_EXECUTED, 2)
    assert Wire().decode(sent.body)[0] == "unavailable"


def test_calls_left_after_the_grace_are_answered_and_cancelled() -> None:
    server = open_server(QUIET)
    [call] = arrive(server, Wire().request(1))
    server.shutdown(START, 5.0)
    server.data_to_send()
    assert server.next_timeout() == START + 5.0
    events = caused(server.handle_timeout, START + 5.0)
    assert only(events, CallCancelled).call is call
    assert termination(events) is None
    [sent] = frames_in(server.data_to_send())
    assert (sent.type, sent.call_id) == (ERROR, 1)
    assert Wire().decode(sent.body)[0] == "unavailable"


def test_shutdown_without_calls_closes_at_once() -> None:
    server = open_server(QUIET)
    assert termination(caused(server.shutdown, START, 5.0)) is None
    assert server.state is State.CLOSING
    assert server.next_timeout() == START + 5.0


def test_client_that_says_goaway_has_its_calls_answered_first() -> None:
    server = open_server(QUIET)
    [call] = arrive(server, Wire().request(1))
    server.receive_data(START, Wire().goaway())
    assert server.state is State.DRAINING
    server.send_response(START, call, 1)
    assert server.state is State.CLOSING
    assert frames_in(server.data_to_send())[-1].type == RESPONSE


def test_violation_is_told_to_the_peer_behind_what_was_parsed() -> None:
    server = open_server(QUIET)
    events = caused(server.receive_data, START, Wire().request(1) + frame(0x44))
    assert [type(event) for event in events] == [
        RequestReceived,
        CallCancelled,
        ConnectionTerminated,
    ]
    [goaway] = frames_in(server.data_to_send())
    assert Wire().decode(goaway.body) == ["invalid_argument", str(events[-1].error)]
    assert server.state is State.CLOSING


def test_loss_cancels_all_calls_and_late_answers_change_nothing() -> None:
    server = open_server(QUIET)
    calls = arrive(server, *(Wire().request(number) for number in (1, 2)))
    events = caused(server.connection_lost, START)
    assert [event.call for event in events if isinstance(event, CallCancelled)] == calls
    assert server.calls_in_flight == 0
    server.send_response(START, calls[0], 1)
    server.send_error(START, calls[1], CallError("aborted"))
    assert server.data_to_send() == b""


def test_pong_of_a_client_is_no_event() -> None:
    assert caused(open_server().receive_data, START, frame(PONG, 5)) == []
