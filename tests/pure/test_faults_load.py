"""Faults of load and flow: floods, cancels that race, peers that do not read, half-closed ends."""

from typing import Any

import pytest

from rpc_fuzz.pair import Host, Pair, only, outcome, termination
from rpc_fuzz.wire import (
    CANCEL,
    CODECS,
    ERROR,
    GOAWAY,
    ONE_WAY,
    PING,
    RAW,
    REQUEST,
    RESPONSE,
    START,
    Frame,
    Wire,
    frame,
    frames_in,
    open_client,
    open_server,
)
from rpc_proto import (
    CallCancelled,
    CallError,
    Cancelled,
    ClientConfig,
    ConnectionTerminated,
    DeadlineExceeded,
    RemoteProtocolError,
    RequestReceived,
    ResourceExhausted,
    ServerConfig,
    State,
    Unavailable,
    Wish,
)
from support.driving import caused

KIB = 1024


class Slow:
    def wait(self) -> str:
        return "done"

    def quick(self) -> str:
        return "at once"


def codes_in(data: bytes, codec: str = "msgpack") -> list[str]:
    return [Wire(codec).decode(sent.body)[0] for sent in frames_in(data) if sent.type == ERROR]


# 43, 44: floods


@pytest.mark.fault(43)
def test_cancelled_call_holds_its_slot_until_its_handler_has_ended() -> None:
    server = open_server(ServerConfig(max_calls=1))
    wire = Wire()
    [request] = caused(server.receive_data, START, wire.request(1))
    [cancelled] = caused(server.receive_data, START, wire.cancel(1))
    assert cancelled.call is request.call
    assert caused(server.receive_data, START, wire.request(2)) == []
    assert codes_in(server.data_to_send()) == ["resource_exhausted"]
    server.conclude(START, request.call)
    only(caused(server.receive_data, START, wire.request(3)), RequestReceived)


@pytest.mark.fault(43)
def test_refusal_of_a_call_over_the_limit_says_that_a_retry_is_safe() -> None:
    pair = Pair(server=ServerConfig(max_calls=1)).open()
    first = pair.call("Slow.wait")
    pair.client.cancel(pair.now, first)
    second = pair.call("Slow.wait")
    error = pair.outcome(second)
    assert type(error) is ResourceExhausted
    assert error.maybe_executed is False


@pytest.mark.fault(43)
def test_flood_of_opens_and_cancels_ends_the_connection() -> None:
    server = open_server(ServerConfig(max_calls=10, refusals=100))
    wire = Wire()
    events: list[Any] = []
    number = 0
    while server.state is State.OPEN:
        number += 1
        events += caused(server.receive_data, START, wire.request(number) + wire.cancel(number))
        assert server.calls_in_flight <= 10
    assert number == 10 + 100 + 1
    assert isinstance(termination(events), RemoteProtocolError)
    goaway = frames_in(server.data_to_send())[-1]
    assert goaway.type == GOAWAY
    assert wire.decode(goaway.body)[0] == "resource_exhausted"


@pytest.mark.fault(43)
def test_refusals_are_forgiven_with_time() -> None:
    server = open_server(ServerConfig(max_calls=1, refusals=10))
    wire = Wire()
    server.receive_data(START, wire.request(1))
    for number in range(2, 102):
        server.receive_data(START + number, wire.request(number))
    assert server.state is State.OPEN


def _broken_requests() -> dict[str, bytes]:
    wire = Wire()
    return {
        "unknown method": wire.request(1, "No.such"),
        "bad arguments": wire.request(1, "Slow.wait", body=b"\xc1"),
        "wrong arguments": wire.request(1, "Slow.wait", ["too many"]),
        "no time left": wire.request(1, "Slow.wait", timeout=0),
        "one way": wire.request(1, "No.such", flags=ONE_WAY),
        "one way without time": wire.request(1, "Slow.wait", timeout=0, flags=ONE_WAY),
    }


BROKEN = _broken_requests()


@pytest.mark.fault(44)
@pytest.mark.parametrize("request_bytes", BROKEN.values(), ids=BROKEN)
def test_flood_of_requests_that_provoke_errors_ends_the_connection(request_bytes: bytes) -> None:
    pair = Pair(server=ServerConfig(refusals=100, ping_interval=None)).open()
    Host(pair, Slow())
    for _ in range(100):
        pair.server.receive_data(pair.now, request_bytes)
        pair.report(pair.server)
    assert pair.server.state is State.OPEN
    pair.server.receive_data(pair.now, request_bytes)
    pair.report(pair.server)
    pair.server.handle_timeout(pair.now)
    pair.report(pair.server)
    assert pair.server.state is State.CLOSING
    assert isinstance(termination(pair.server_events), RemoteProtocolError)


@pytest.mark.fault(44)
def test_answer_to_each_refused_call_comes_before_the_end() -> None:
    server = open_server(ServerConfig(max_calls=1, refusals=3))
    wire = Wire()
    server.receive_data(START, b"".join(wire.request(number) for number in range(1, 10)))
    sent = frames_in(server.data_to_send())
    assert [(one.type, one.call_id) for one in sent] == [
        (ERROR, 2),
        (ERROR, 3),
        (ERROR, 4),
        (ERROR, 5),
        (GOAWAY, 5),
    ]


# 45: cancel


@pytest.mark.fault(45)
@pytest.mark.parametrize("call_id", [0, 1, 99, 2**64 - 1])
def test_cancel_of_an_unknown_id_is_ignored_and_counted(call_id: int) -> None:
    server = open_server()
    assert caused(server.receive_data, START, Wire().cancel(call_id)) == []
    assert server.ignored == 1
    assert server.state is State.OPEN


@pytest.mark.fault(45)
def test_cancel_behind_the_answer_is_ignored() -> None:
    server = open_server()
    [request] = caused(server.receive_data, START, Wire().request(1))
    server.send_response(START, request.call, 1)
    assert caused(server.receive_data, START, Wire().cancel(1)) == []
    assert len(frames_in(server.data_to_send())) == 1


@pytest.mark.fault(45)
def test_second_cancel_is_ignored() -> None:
    server = open_server()
    server.receive_data(START, Wire().request(1))
    assert len(caused(server.receive_data, START, Wire().cancel(1) * 3)) == 1
    assert server.ignored == 2


@pytest.mark.fault(45)
def test_cancel_that_crosses_the_answer_gives_one_outcome_at_each_end() -> None:
    pair = Pair().open()
    call, served = pair.request("Slow.wait")
    pair.server.send_response(pair.now, served, "done")
    pair.client.cancel(pair.now, call)
    pair.report(pair.client)
    pair.pump()
    assert type(pair.outcome(call)) is Cancelled
    assert not [event for event in pair.server_events if isinstance(event, CallCancelled)]
    assert pair.client.ignored == 1
    assert pair.server.ignored == 1


@pytest.mark.fault(45)
def test_cancel_before_the_answer_gives_one_outcome_at_each_end() -> None:
    pair = Pair().open()
    call, served = pair.request("Slow.wait")
    pair.client.cancel(pair.now, call)
    pair.report(pair.client)
    pair.pump()
    assert only(pair.server_events, CallCancelled).call is served
    pair.server.send_response(pair.now, served, "done")
    assert pair.server.data_to_send() == b""
    assert type(pair.outcome(call)) is Cancelled


# 46, 47: blocked


@pytest.mark.fault(46)
@pytest.mark.parametrize("codec", CODECS)
def test_server_stops_reading_at_the_high_water_mark_and_goes_on_below_it(codec: str) -> None:
    pair = Pair(ClientConfig(codec=codec), ServerConfig(high_water=64 * KIB)).open()
    pair.down.held = True
    call, served = pair.request("Slow.wait")
    pair.respond(served, b"x" * 64 * KIB)
    assert pair.server.wish is Wish.PAUSE
    pair.call("Slow.wait")
    assert len(pair.requests()) == 1
    pair.down.held = False
    pair.pump()
    assert pair.server.wish is Wish.READ
    assert len(pair.requests()) == 2
    assert len(pair.outcome(call)) == 64 * KIB


@pytest.mark.fault(46)
def test_server_ends_the_connection_of_a_peer_that_never_reads() -> None:
    config = ServerConfig(high_water=64 * KIB, write_timeout=3.0, ping_interval=None)
    pair = Pair(ClientConfig(ping_interval=None), config).open()
    pair.down.held = True
    _, served = pair.request("Slow.wait")
    _, waiting = pair.request("Slow.wait")
    pair.respond(served, b"x" * 64 * KIB)
    pair.advance(2.9)
    assert pair.server.state is State.OPEN
    pair.advance(0.2)
    assert pair.server.state is State.CLOSED
    assert isinstance(termination(pair.server_events), Unavailable)
    assert only(pair.server_events, CallCancelled).call is waiting


@pytest.mark.fault(46)
def test_what_waits_for_a_peer_that_never_reads_is_bounded() -> None:
    server = open_server(ServerConfig(high_water=64 * KIB, max_calls=8, ping_interval=None))
    wire = Wire()
    requests = [
        event.call
        for event in caused(
            server.receive_data, START, b"".join(wire.request(n) for n in range(1, 9))
        )
    ]
    for call in requests:
        server.send_response(START, call, b"x" * 32 * KIB)
    server.receive_data(START, frame(PING) * 1000)
    # Beyond the mark only what the capped table of calls still owed is added.
    assert len(server.data_to_send()) <= 64 * KIB + 8 * (32 * KIB + 16)


@pytest.mark.fault(46)
def test_client_stops_sending_calls_at_the_high_water_mark_and_bounds_its_queue() -> None:
    config = ClientConfig(high_water=64 * KIB, max_queued_calls=3, ping_interval=None)
    client = open_client(config)
    sent = [client.start_call(START, "Log.line", (b"x" * 32 * KIB,)) for _ in range(5)]
    assert [call.sent for call in sent] == [True, True, False, False, False]
    with pytest.raises(ResourceExhausted):
        client.start_call(START, "Log.line")
    assert client.calls_in_flight == 5
    client.data_to_send()
    assert client.next_timeout() <= START
    client.handle_timeout(START)
    assert [call.sent for call in sent] == [True, True, True, True, False]


@pytest.mark.fault(46)
def test_client_ends_the_connection_of_a_server_that_never_reads() -> None:
    config = ClientConfig(high_water=64 * KIB, write_timeout=3.0, ping_interval=None)
    client = open_client(config)
    call = client.start_call(START, "Log.line", (b"x" * 64 * KIB,))
    client.handle_timeout(START)
    events = caused(client.handle_timeout, START + 3.0)
    assert only(events, ConnectionTerminated)
    error = outcome(events)
    assert (error.code, error.maybe_executed) == ("unavailable", call.sent)
    assert client.state is State.CLOSED


@pytest.mark.fault(46)
def test_one_way_calls_that_pile_up_stop_the_reading() -> None:
    server = open_server(ServerConfig(max_calls=2))
    wire = Wire()
    events = caused(
        server.receive_data, START, b"".join(wire.request(n, flags=ONE_WAY) for n in (1, 2))
    )
    assert server.wish is Wish.PAUSE
    server.send_response(START, events[0].call, None)
    assert server.wish is Wish.READ
    assert server.data_to_send() == b""


@pytest.mark.fault(47)
def test_deadline_fires_while_the_sending_of_the_call_is_blocked() -> None:
    pair = Pair(ClientConfig(high_water=64 * KIB)).open()
    pair.up.held = True
    blocking = pair.call("Log.line", b"x" * 64 * KIB, timeout=2.0)
    waiting = pair.call("Log.line", timeout=1.0)
    pair.advance(1.0)
    error = pair.outcome(waiting)
    assert type(error) is DeadlineExceeded
    assert error.maybe_executed is False
    pair.advance(1.0)
    assert pair.outcome(blocking).maybe_executed is True


@pytest.mark.fault(47)
def test_deadline_fires_while_the_handshake_is_slow() -> None:
    pair = Pair()
    pair.down.held = True
    call = pair.call("Log.line", timeout=1.0)
    pair.advance(1.0)
    error = pair.outcome(call)
    assert type(error) is DeadlineExceeded
    assert error.maybe_executed is False
    pair.down.held = False
    pair.pump()
    assert pair.client.state is State.OPEN
    assert pair.requests() == []


@pytest.mark.fault(47)
def test_deadline_fires_at_a_server_whose_answers_are_blocked() -> None:
    pair = Pair(server=ServerConfig(high_water=64 * KIB, ping_interval=None)).open()
    _, served = pair.request("Slow.wait")
    _, waiting = pair.request("Slow.wait", timeout=1.0)
    pair.down.held = True
    pair.respond(served, b"x" * 64 * KIB)
    pair.advance(1.0)
    cancelled = only(pair.server_events, CallCancelled)
    assert cancelled.call is waiting
    assert type(cancelled.error) is DeadlineExceeded


# 48: half-closed


@pytest.mark.fault(48)
@pytest.mark.parametrize("codec", CODECS)
def test_calls_of_a_half_closed_client_finish_and_are_flushed_before_the_end(codec: str) -> None:
    server = open_server(codec=codec)
    wire = Wire(codec)
    first, second = (
        event.call
        for event in caused(server.receive_data, START, wire.request(1) + wire.request(2))
    )
    assert caused(server.receive_eof, START) == []
    assert server.state is State.DRAINING
    server.send_response(START, first, 1)
    server.send_response(START, second, 2)
    assert server.state is State.CLOSING
    answers = [one for one in frames_in(server.data_to_send()) if one.type == RESPONSE]
    assert [one.call_id for one in answers] == [1, 2]
    assert termination(server.events()) is None


@pytest.mark.fault(48)
def test_half_closed_client_without_calls_is_closed_at_once() -> None:
    server = open_server()
    assert termination(caused(server.receive_eof, START)) is None
    assert server.state is State.CLOSING


@pytest.mark.fault(48)
def test_server_probes_a_half_closed_client_to_learn_whether_it_still_reads() -> None:
    server = open_server()
    server.receive_data(START, Wire().request(1))
    server.receive_eof(START)
    for second in range(3):
        assert frames_in(server.data_to_send()) == [Frame(PING, 0, 0, b"", b"")]
        assert server.next_timeout() == START + second + 1
        server.handle_timeout(START + second + 1)


@pytest.mark.fault(48)
def test_calls_pending_at_a_server_that_half_closes_fail() -> None:
    client = open_client()
    sent = client.start_call(START, "Slow.wait")
    error = outcome(caused(client.receive_eof, START))
    assert (type(error), error.maybe_executed) == (Unavailable, True)
    assert sent.sent
    assert client.state is State.CLOSED


# 49, its pure part


@pytest.mark.fault(49)
def test_handler_that_outlives_its_deadline_leaves_one_reply_and_no_call() -> None:
    pair = Pair().open()
    host = Host(pair, Slow(), slow=["Slow.wait"])
    call = pair.call("Slow.wait", timeout=1.0)
    pair.advance(1.0)
    assert type(pair.outcome(call)) is DeadlineExceeded
    assert host.stopped == host.running
    assert pair.server.calls_in_flight == 1
    carried = pair.down.carried
    host.finish()
    assert pair.down.carried == carried
    assert pair.server.calls_in_flight == 0
    assert host.dispatcher.running == 0


@pytest.mark.fault(49)
def test_deadline_at_the_server_sends_one_reply_at_that_moment() -> None:
    server = open_server()
    [request] = caused(server.receive_data, START, Wire().request(1, timeout=1000))
    assert server.next_timeout() == START + 1.0
    [cancelled] = caused(server.handle_timeout, START + 1.0)
    assert cancelled.call is request.call
    [reply] = frames_in(server.data_to_send())
    assert (reply.type, reply.call_id) == (ERROR, 1)
    server.send_error(START + 2.0, request.call, CallError("aborted"))
    assert server.data_to_send() == b""


def test_deadline_at_the_client_tells_the_server_to_stop() -> None:
    client = open_client()
    call = client.start_call(START, "Slow.wait", deadline=START + 1.0)
    client.data_to_send()
    assert type(outcome(caused(client.handle_timeout, START + 1.0))) is DeadlineExceeded
    assert frames_in(client.data_to_send()) == [Frame(CANCEL, 0, call.id, b"", b"")]


def test_raw_flag_of_a_response_is_the_bytes_themselves() -> None:
    server = open_server(codec="json")
    [request] = caused(server.receive_data, START, Wire("json").request(1))
    server.send_response(START, request.call, b"\xff\x00")
    [answer] = frames_in(server.data_to_send())
    assert (answer.flags, answer.body) == (RAW, b"\xff\x00")


@pytest.mark.fault(104)
def test_bodies_of_refused_calls_count_too() -> None:
    server = open_server(ServerConfig(max_calls=1, refusals=1000))
    wire = Wire()
    server.receive_data(START, wire.request(1))
    body = bytes(16 * 1024 * 1024)
    number = 1
    while server.state is State.OPEN:
        number += 1
        server.receive_data(START, frame(REQUEST, number, wire.encode(["m"]), body, RAW))
        server.data_to_send()
    assert number == 1 + 16  # 65 each


# 101: frames that do not arrive


def _half_open(**config: Any) -> tuple[Pair, bytes]:
    """A connection on which half a frame of 64 KiB has arrived, and the rest of that."""
    server = ServerConfig(frame_timeout=30.0, ping_interval=None, **config)
    pair = Pair(ClientConfig(ping_interval=None), server).open()
    data = frame(REQUEST, 1, Wire().encode(["m"]), bytes(64 * 1024), RAW)
    half = len(data) // 2
    pair.server.receive_data(pair.now, data[:half])
    pair.report(pair.server)
    return pair, data[half:]


@pytest.mark.fault(101)
def test_frame_that_takes_too_long_to_arrive_ends_the_connection() -> None:
    pair, rest = _half_open()
    pair.server.receive_data(pair.now, rest[:1])
    pair.report(pair.server)
    pair.advance(30.4)  # and half a second for the 32 KiB that were missing
    pair.server.receive_data(pair.now, rest[1:2])
    pair.report(pair.server)
    assert pair.server.state is State.OPEN
    pair.advance(0.2)
    error = termination(pair.server_events)
    assert isinstance(error, RemoteProtocolError)
    assert str(error) == "a frame took too long to arrive"


@pytest.mark.fault(101)
def test_frame_that_arrives_in_time_leaves_no_limit_behind() -> None:
    pair, rest = _half_open()
    pair.advance(29.0)
    pair.server.receive_data(pair.now, rest)
    pair.report(pair.server)
    pair.advance(100.0)
    assert pair.server.state is State.OPEN


@pytest.mark.fault(101)
def test_each_frame_has_its_own_time() -> None:
    pair, rest = _half_open(max_calls=2)
    pair.advance(29.0)
    both = rest + frame(REQUEST, 2, Wire().encode(["m"]), bytes(64 * 1024), RAW)
    pair.server.receive_data(pair.now, both[: len(rest) + 100])
    pair.report(pair.server)
    pair.advance(29.0)
    assert pair.server.state is State.OPEN
    pair.advance(3.0)
    assert pair.server.state is not State.OPEN


@pytest.mark.fault(101)
def test_frame_that_we_do_not_read_is_not_late() -> None:
    server = ServerConfig(high_water=1024, write_timeout=1000.0, ping_interval=None)
    pair = Pair(ClientConfig(ping_interval=None), server).open()
    _, served = pair.request("Slow.wait")
    begun = frame(REQUEST, 9, Wire().encode(["m"]), bytes(64 * 1024), RAW)[:1000]
    pair.server.receive_data(pair.now, begun)
    pair.report(pair.server)
    pair.down.held = True
    pair.server.send_response(pair.now, served, bytes(4096))
    assert pair.server.wish is Wish.PAUSE
    pair.advance(100.0)
    assert pair.server.state is State.OPEN
