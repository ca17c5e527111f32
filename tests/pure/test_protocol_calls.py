"""docs/protocol.md from "Calls" on: errors, liveness, shutdown and violations, too."""

import json
from collections.abc import Sequence
from typing import Any

import pytest

from rpc_fuzz.pair import only, outcome, termination
from rpc_fuzz.wire import (
    CANCEL,
    CODECS,
    ERROR,
    GOAWAY,
    NAMED,
    NOT_EXECUTED,
    ONE_WAY,
    PING,
    PONG,
    RAW,
    REQUEST,
    RESPONSE,
    START,
    Wire,
    frame,
    frames_in,
    line,
    open_client,
    open_server,
    options,
)
from rpc_proto import (
    CallCancelled,
    CallCompleted,
    CallFailed,
    ClientConfig,
    ConnectionTerminated,
    DataLoss,
    RemoteProtocolError,
    RequestReceived,
    ServerConfig,
    ServerConnection,
    State,
    Wish,
)
from rpc_proto.connection.memory import Memory
from support.driving import caused
from support.protocol_page import (
    WIRE,
    Served,
    check_violation,
    error_of,
    page,
    with_calls,
)

# Calls


@page("1 for its first call and one more for each further one; 1 follows 2^64 - 1")
def test_client_counts_its_calls() -> None:
    client, calls = with_calls(3)
    assert [call.id for call in calls] == [1, 2, 3]
    client._serial = 2**64 - 2
    ids = [client.start_call(START, "S.m").id for _ in range(2)]
    assert ids == [2**64 - 1, 4]  # 1 to 3 are in flight


@page(
    "An id that is 0 or still in flight at the server is a violation; every other id must be "
    "accepted.",
)
def test_server_accepts_every_id_but_those_in_flight() -> None:
    server = open_server(codec="json")
    ids = [77, 5, 2**64 - 1]
    events = caused(server.receive_data, START, b"".join(WIRE.request(one) for one in ids))
    assert [event.call.id for event in events if isinstance(event, RequestReceived)] == ids
    check_violation(
        server, caused(server.receive_data, START, WIRE.request(5)), last_call=2**64 - 1
    )


@page(
    "A server without memory for a call refuses it in the same way, perhaps before the whole "
    "of it has arrived; the client sends the rest all the same.",
)
def test_call_for_which_there_is_no_memory_is_refused_before_its_end() -> None:
    memory = Memory(1024 * 1024)
    server = ServerConnection(ServerConfig(ping_interval=None), now=START, memory=memory)
    server.receive_data(START, line(options(codec="json")))
    server.data_to_send()
    assert memory.take(memory.limit, 0)
    client, _ = with_calls(0)
    call = client.start_call(START, "S.take", [bytes(100_000)])
    first, rest = (data := client.data_to_send())[:50_000], data[50_000:]
    server.receive_data(START, first)
    while server.wish is Wish.PAUSE:
        server.handle_timeout(server.next_timeout() or START)
    (failed,) = caused(client.receive_data, START, server.data_to_send())
    assert isinstance(failed, CallFailed)
    assert failed.call is call
    assert (failed.error.code, failed.error.maybe_executed) == ("resource_exhausted", False)
    assert caused(server.receive_data, START, rest + WIRE.request(2))[0].call.id == 2


SHAPES: dict[str, tuple[str, bytes, int, Any]] = {
    "array": ("S.add", b"[1,2]", 0, 3),
    "named": ("S.add", b'[[1],{"b":2}]', NAMED, 3),
    "nothing": ("S.nothing", b"", 0, None),
    "empty array": ("S.nothing", b"[]", 0, None),
    "nothing named": ("S.nothing", b"[[],{}]", NAMED, None),
    "null": ("S.add", b"null", 0, "invalid_argument"),
    "a map": ("S.add", b'{"a":1}', 0, "invalid_argument"),
    "a string": ("S.add", b'"12"', 0, "invalid_argument"),
    "too few": ("S.add", b"[]", 0, "invalid_argument"),
    "too many": ("S.add", b"[1,2,3]", 0, "invalid_argument"),
    "wrong type": ("S.add", b'["1"]', 0, "invalid_argument"),
    "cut": ("S.add", b"[1,2", 0, "invalid_argument"),
    "bytes behind it": ("S.add", b"[1,2]]", 0, "invalid_argument"),
    "named without a body": ("S.nothing", b"", NAMED, "invalid_argument"),
    "named of one": ("S.add", b"[[1,2]]", NAMED, "invalid_argument"),
    "named of three": ("S.add", b"[[1],{},{}]", NAMED, "invalid_argument"),
    "named twice": ("S.add", b'[[1],{"a":1}]', NAMED, "invalid_argument"),
    "unknown name": ("S.add", b'[[1],{"c":1}]', NAMED, "invalid_argument"),
    "raw for two numbers": ("S.add", b"12", RAW, "invalid_argument"),
    "unknown method": ("S.none", b"[", 0, "unimplemented"),
    "unknown service": ("T.add", b"[1]", 0, "unimplemented"),
    "no dot": ("add", b"[1]", 0, "unimplemented"),
    "empty name": ("", b"[1]", 0, "unimplemented"),
    "name of another case": ("s.add", b"[1]", 0, "unimplemented"),
}


@page(
    "the body is an array of two: the positional arguments, and a map of the named ones",
    "the handler certainly did not start; a retry is safe",
    "The body of a REQUEST is an array of the positional arguments.",
    "With NAMED it is an array of two, the positional ones (an array) and the named ones "
    "(a map with strings as keys).",
    "Arguments that do not fit are answered with `invalid_argument`, and so is a body "
    "that cannot be decoded: the frame boundary is known, so the connection stays open.",
    "the arguments do not fit the method",
    "no such method, codec or version",
    "Without RAW and NAMED, an empty body means no arguments.",
    "All of these have NOT_EXECUTED.",
    "The server looks up the method by its full name",
)
@pytest.mark.parametrize(("method", "body", "flags", "result"), SHAPES.values(), ids=SHAPES)
def test_body_of_a_request(method: str, body: bytes, flags: int, result: Any) -> None:
    served = Served()
    one = served.ask(json.dumps([method]).encode(), body, flags)
    if isinstance(result, str):
        assert error_of(one) == (result, True)
        assert served.service.ran == []
        [pong] = served.send(frame(PING, 2))  # the connection stays open
        assert pong.type == PONG
    else:
        assert (one.type, json.loads(one.body or b"null")) == (RESPONSE, result)


@page(
    "the body is not encoded: it is the bytes of the one argument, or of the result",
    "With RAW it is the bytes of the only argument.",
    "an empty body without RAW is null.",
)
@pytest.mark.parametrize("data", [b"", b"\x00\xff"])
def test_raw_body_is_the_bytes_themselves(data: bytes) -> None:
    one = Served().ask(b'["S.take"]', data, RAW)
    assert (one.type, one.flags, one.body) == (RESPONSE, RAW, data)
    client, _ = with_calls(2)
    assert (
        outcome(caused(client.receive_data, START, frame(RESPONSE, 1, body=data, flags=RAW)))
        == data
    )
    assert outcome(caused(client.receive_data, START, frame(RESPONSE, 2))) is None


@page(
    "the caller wants no answer",
    "A call that is cancelled or ONE_WAY is not answered at all, whatever happens to it.",
    "A CANCEL for an id that is not in flight, 0 included, is ignored.",
)
def test_calls_that_are_not_answered() -> None:
    served = Served()
    one_way = [
        frame(REQUEST, number, json.dumps([method]).encode(), b"[1]", ONE_WAY)
        for number, method in enumerate(["S.add", "S.none", "S.nothing"], 1)
    ]
    assert served.send(*one_way) == []
    assert served.service.ran == ["add"]
    assert served.send(WIRE.cancel(0), WIRE.cancel(2), WIRE.cancel(99)) == []
    assert served.server.state is State.OPEN


@page("The server then stops the handler, of a ONE_WAY call too, and sends no answer")
@pytest.mark.parametrize("flags", [0, ONE_WAY])
def test_cancel_stops_the_handler_and_nothing_is_answered(flags: int) -> None:
    server = open_server(codec="json")
    [request] = caused(server.receive_data, START, WIRE.request(1, flags=flags))
    assert isinstance(request, RequestReceived)
    [cancelled] = caused(server.receive_data, START, WIRE.cancel(1))
    assert isinstance(cancelled, CallCancelled)
    server.send_response(START, request.call, 3)
    assert server.data_to_send() == b""


@page(
    "When the deadline passes at the server, it answers with `deadline_exceeded` at once and stops "
    "the handler.",
)
def test_deadline_at_the_server_is_answered_and_stops_the_handler() -> None:
    server = open_server(codec="json")
    server.receive_data(START, WIRE.request(1, timeout=1500))
    [cancelled] = caused(server.handle_timeout, START + 1.5)
    assert isinstance(cancelled, CallCancelled)
    [one] = frames_in(server.data_to_send())
    assert error_of(one) == ("deadline_exceeded", False)


@page(
    "A client must not have more calls in flight than `limits.calls`, not counting ONE_WAY ones.",
    "refuses calls over the limit with `resource_exhausted` and NOT_EXECUTED.",
    "ONE_WAY calls are not refused: while as many of them are running, the server does not read.",
)
def test_calls_over_the_limit_are_refused_and_one_way_calls_stop_the_reading() -> None:
    server = open_server(ServerConfig(max_calls=2), codec="json")
    events = caused(server.receive_data, START, b"".join(WIRE.request(n) for n in (1, 2, 3)))
    assert len(events) == 2
    [one] = frames_in(server.data_to_send())
    assert (one.call_id, error_of(one)) == (3, ("resource_exhausted", True))
    assert server.wish is Wish.READ
    server.receive_data(START, b"".join(WIRE.request(n, flags=ONE_WAY) for n in (4, 5)))
    assert server.data_to_send() == b""
    assert server.wish is Wish.PAUSE


@page(
    "A server may end a connection that keeps causing refusals (GOAWAY with `resource_exhausted`).",
)
def test_too_many_refusals_end_the_connection() -> None:
    server = open_server(ServerConfig(refusals=2), codec="json")
    for number in (1, 2, 3):
        events = caused(server.receive_data, START, WIRE.request(number, timeout=0))
    assert isinstance(termination(events), RemoteProtocolError)
    goaway = frames_in(server.data_to_send())[-1]
    assert (goaway.type, json.loads(goaway.body)[0]) == (GOAWAY, "resource_exhausted")


@page(
    "A client must ignore an answer to an id that it has used and that is no longer in flight: the "
    "call was cancelled, answered or ONE_WAY.",
    "the client ignores one that is already on its way.",
)
def test_answer_to_a_call_that_is_over_is_ignored() -> None:
    client, (cancelled, answered) = with_calls(2)
    client.start_call(START, "S.m", one_way=True)
    client.cancel(START, cancelled)
    client.receive_data(START, WIRE.response(answered.id, 3))
    late = [WIRE.response(n, 4) + WIRE.error(n, "aborted") for n in (1, 2, 3)]
    assert caused(client.receive_data, START, b"".join(late)) == []
    assert client.state is State.OPEN


@page("A client that stops waiting, at its deadline or for another reason, sends CANCEL.")
def test_client_that_stops_waiting_sends_cancel() -> None:
    client = open_client()
    given_up = client.start_call(START, "S.m")
    client.start_call(START, "S.m", deadline=START + 1)
    client.data_to_send()
    client.cancel(START, given_up)
    client.handle_timeout(START + 1)
    assert frames_in(client.data_to_send()) == [(CANCEL, 0, n, b"", b"") for n in (1, 2)]


@page("Back-pressure is that of the stream: a server that cannot send its answers stops reading.")
def test_server_that_cannot_get_its_answers_out_stops_reading() -> None:
    server = open_server(ServerConfig(high_water=1024), codec="json")
    [event] = caused(server.receive_data, START, WIRE.request(1))
    assert isinstance(event, RequestReceived)
    server.send_response(START, event.call, "x" * 2000)
    assert server.wish is Wish.PAUSE
    server.data_to_send()
    assert server.wish is Wish.READ


@page("A client must keep reading while it writes, or both may wait forever.")
def test_client_reads_while_its_output_is_blocked() -> None:
    client = open_client(ClientConfig(codec="json", high_water=1024), codec="json")
    client.start_call(START, "S.m", ("x" * 9000,))
    assert client.outbound > 1024
    assert client.wish is Wish.READ


# Errors

BAD_ERRORS = [
    b"",
    b"null",
    b'"abc"',
    b"[]",
    b'["a"]',
    b'["a","b"]',
    b'["a","b",null,null]',
    b'[1,"b",null]',
    b'["a",null,null]',
    b'{"a":1,"b":2,"c":3}',
    b'["a","b",null',
]


@page(
    "The body of an ERROR is an array of three: the status code (a string), a message",
    "Any other body fails the call with `data_loss`, and the connection stays open.",
)
@pytest.mark.parametrize("flags", [0, NOT_EXECUTED])
@pytest.mark.parametrize("body", BAD_ERRORS)
def test_error_that_is_not_three_fields_is_data_loss(body: bytes, flags: int) -> None:
    client, _ = with_calls(1)
    error = outcome(caused(client.receive_data, START, frame(ERROR, 1, b"", body, flags)))
    assert isinstance(error, DataLoss)
    assert error.maybe_executed is not bool(flags)
    assert client.state is State.OPEN


@page("A receiver must accept codes that it does not know.")
@pytest.mark.parametrize("code", ["own_code", "", "UNAVAILABLE"])
def test_unknown_code_is_accepted(code: str) -> None:
    client, _ = with_calls(1)
    error = outcome(caused(client.receive_data, START, WIRE.error(1, code, "text", {"a": 1})))
    assert (error.code, error.message, error.details) == (code, "text", {"a": 1})


@page(
    "(a string of at most 1024 bytes in UTF-8) and details (any value, or null).",
    "A server leaves out details that cannot be encoded or are too large for the client.",
)
@pytest.mark.parametrize("details", [object(), "x" * 9000])
def test_details_that_cannot_travel_are_left_out(details: Any) -> None:
    from rpc_proto import NotFound

    server = open_server(codec="json", limits={"header": 256, "body": 8192})
    [event] = caused(server.receive_data, START, WIRE.request(1))
    assert isinstance(event, RequestReceived)
    server.send_error(START, event.call, NotFound("\u20ac" * 1000, details))
    [one] = frames_in(server.data_to_send())
    code, message, left = json.loads(one.body)
    assert (code, left) == ("not_found", None)
    assert len(message.encode()) <= 1024


# Liveness


@page(
    "An end that has received nothing for the ping interval sends PING; one that has received "
    "nothing for twice the interval considers the peer dead and closes the connection.",
)
@pytest.mark.parametrize("end", ["server", "client"])
def test_silence_is_answered_with_ping_and_then_with_the_end(end: str) -> None:
    ping: Any = {"timeouts": {"ping": 2000}}
    connection: Any = (
        open_server(ServerConfig(), **ping) if end == "server" else open_client(**ping)
    )
    connection.handle_timeout(START + 1.9)
    assert connection.data_to_send() == b""
    connection.handle_timeout(START + 2)
    assert [one.type for one in frames_in(connection.data_to_send())] == [PING]
    connection.handle_timeout(START + 4)
    assert connection.state is State.CLOSED


@page("Silence does not count while the end itself does not read.")
def test_silence_does_not_count_while_the_server_does_not_read() -> None:
    config = ServerConfig(high_water=1024, write_timeout=60.0)
    server = open_server(config, codec="json", timeouts={"ping": 2000})
    [event] = caused(server.receive_data, START, WIRE.request(1))
    assert isinstance(event, RequestReceived)
    server.send_response(START, event.call, "x" * 2000)
    assert server.wish is Wish.PAUSE
    for second in range(1, 20):
        server.handle_timeout(START + second)
    assert server.state is State.OPEN
    server.data_to_send()
    server.handle_timeout(START + 30)
    server.handle_timeout(START + 40)
    assert server.state is State.CLOSED


@page("Any received byte is a sign of life.")
@pytest.mark.parametrize("end", ["server", "client"])
def test_any_byte_is_a_sign_of_life(end: str) -> None:
    ping: Any = {"timeouts": {"ping": 2000}}
    connection: Any = (
        open_server(ServerConfig(), **ping) if end == "server" else open_client(**ping)
    )
    piece = frame(0x80, body=b"x" * 9)
    for second, byte in enumerate(piece, 1):
        connection.receive_data(START + second, bytes([byte]))
        connection.handle_timeout(START + second + 0.9)
    assert connection.data_to_send() == b""
    assert connection.state is State.OPEN


@page(
    "An end must answer a PING with a PONG of the same id, but may leave it unanswered while its "
    "output is blocked.",
    "Neither a PONG that nobody asked for nor any number of PINGs is an error.",
)
@pytest.mark.parametrize("end", ["server", "client"])
def test_ping_is_answered_and_pong_is_not(end: str) -> None:
    connection: Any = open_server(codec="json") if end == "server" else open_client(codec="json")
    ids = [0, 1, 1, 2**64 - 1]
    pings = b"".join(frame(PING, one) for one in ids)
    assert caused(connection.receive_data, START, frame(PONG, 5) + pings + frame(PONG, 5)) == []
    assert frames_in(connection.data_to_send()) == [(PONG, 0, one, b"", b"") for one in ids]


# Shutdown


@page(
    "Each call is answered with exactly one RESPONSE or ERROR, in any order.",
    "calls sent after it fail as not executed, calls up to it go on.",
    "Until then all other frames mean what they always do.",
)
def test_goaway_fails_the_calls_behind_the_last_one() -> None:
    client, calls = with_calls(3)
    failed = only(caused(client.receive_data, START, WIRE.goaway(2)), CallFailed)
    assert failed.call is calls[2]
    assert (failed.error.code, failed.error.maybe_executed) == ("unavailable", False)
    events = caused(client.receive_data, START, WIRE.response(1, 5) + frame(PING, 8))
    assert outcome(events) == 5
    assert [one.type for one in frames_in(client.data_to_send())] == [PONG]
    with pytest.raises(Exception, match="unavailable"):
        client.start_call(START, "S.m")
    events = caused(client.receive_data, START, WIRE.response(3, 5) + WIRE.response(2, 6))
    assert outcome(events) == 6
    assert termination(events) is None
    assert client.state is State.CLOSING


@page(
    "GOAWAY may come more than once.",
    "A further one with a lower id fails more calls; one with a higher id does not bring any back.",
)
@pytest.mark.parametrize(
    ("ids", "failed"),
    [((2, 2), [3]), ((3, 1), [2, 3]), ((1, 3), [2, 3]), ((2, 1, 3), [3, 2])],
)
def test_second_goaway(ids: Sequence[int], failed: list[int]) -> None:
    client, _ = with_calls(3)
    events = caused(client.receive_data, START, b"".join(WIRE.goaway(one) for one in ids))
    assert [event.call.id for event in events if isinstance(event, CallFailed)] == failed
    assert client.state is State.DRAINING


@page("0 for none")
def test_goaway_with_0_fails_every_call() -> None:
    client, _ = with_calls(2)
    events = caused(client.receive_data, START, WIRE.goaway(0))
    failed = [event for event in events if isinstance(event, CallFailed)]
    assert [event.error.maybe_executed for event in failed] == [False, False]
    assert termination(events) is None


@page(
    "An end that has sent or received GOAWAY starts no new calls",
    "A client's GOAWAY has id 0, which the server does not look at",
    "A server answers a REQUEST that arrives meanwhile with `unavailable` and NOT_EXECUTED.",
    "closes the connection once there are none.",
)
@pytest.mark.parametrize("last", [0, 1, 99])
def test_goaway_of_a_client(last: int) -> None:
    server = open_server(codec="json")
    [event] = caused(server.receive_data, START, WIRE.request(1))
    assert isinstance(event, RequestReceived)
    server.receive_data(START, WIRE.goaway(last) + WIRE.goaway(last) + WIRE.request(2))
    [one] = frames_in(server.data_to_send())
    assert (one.call_id, error_of(one)) == (2, ("unavailable", True))
    server.send_response(START, event.call, 3)
    assert [one.call_id for one in frames_in(server.data_to_send())] == [1]
    assert server.state is State.CLOSING


@page("Nothing that arrives after the connection began to close is answered.")
def test_nothing_is_answered_while_the_connection_closes() -> None:
    server = open_server(codec="json")
    server.receive_data(START, WIRE.goaway() + WIRE.request(1) + frame(PING, 1))
    assert caused(server.receive_data, START, WIRE.request(2) + frame(0x08)) == []
    assert server.data_to_send() == b""


@page("what is still in flight then is answered with `unavailable` and its handlers are stopped.")
def test_calls_in_flight_at_the_end_of_the_grace_are_answered() -> None:
    server = open_server(codec="json")
    server.receive_data(START, WIRE.request(1))
    server.shutdown(START, grace=2.0)
    [goaway] = frames_in(server.data_to_send())
    assert (goaway.type, goaway.call_id, json.loads(goaway.body)[0]) == (GOAWAY, 1, "unavailable")
    events = caused(server.handle_timeout, START + 2.0)
    only(events, CallCancelled)
    [one] = frames_in(server.data_to_send())
    assert error_of(one) == ("unavailable", False)


@page("When the server closes its sending direction, every pending call fails with `unavailable`.")
def test_end_of_the_server_fails_the_calls() -> None:
    client, _ = with_calls(1)
    error = outcome(caused(client.receive_eof, START))
    assert (error.code, error.maybe_executed) == ("unavailable", True)


@page(
    "When the client closes only its sending direction, the calls in flight are answered and then "
    "the connection is closed.",
)
def test_calls_of_a_half_closed_client_are_answered() -> None:
    server = open_server(codec="json")
    [event] = caused(server.receive_data, START, WIRE.request(1))
    assert isinstance(event, RequestReceived)
    server.receive_eof(START)
    server.data_to_send()
    server.send_response(START, event.call, 3)
    assert [one.type for one in frames_in(server.data_to_send())] == [RESPONSE]
    assert server.state is State.CLOSING


@page("Since a client that is gone looks the same, the server sends a PING now and then")
def test_server_pings_a_half_closed_client() -> None:
    server = open_server(codec="json")
    server.receive_data(START, WIRE.request(1))
    server.receive_eof(START)
    server.data_to_send()
    server.handle_timeout(START + 1)
    assert [one.type for one in frames_in(server.data_to_send())] == [PING]


# Violations


@page("and the end of the stream inside a frame.")
@pytest.mark.fault(82)
@pytest.mark.parametrize("codec", CODECS)
def test_stream_that_ends_inside_a_frame_is_a_violation(codec: str) -> None:
    whole = Wire(codec).request(1, args=[1, 2], timeout=5)
    for cut in range(1, len(whole)):
        server = open_server(codec=codec)
        assert caused(server.receive_data, START, whole[:cut]) == []
        check_violation(server, caused(server.receive_eof, START))
    whole = Wire(codec).response(1, [1, 2])
    for cut in range(1, len(whole)):
        client, _ = with_calls(1, codec)
        assert caused(client.receive_data, START, whole[:cut]) == []
        events = caused(client.receive_eof, START)
        assert outcome(events).maybe_executed
        check_violation(client, events)


@page(
    "It uses nothing of that frame, and reads nothing after it.",
    "All frames before it count, whether they came in the same segment or long before: the answers "
    "among them have arrived, and what was to be sent is sent, ahead of the GOAWAY.",
    "A client fails them with `unavailable`; each whose request was sent may have been executed",
)
@pytest.mark.fault(82)
@pytest.mark.parametrize("apart", [False, True])
def test_client_keeps_what_came_before_a_violation(apart: bool) -> None:
    client, calls = with_calls(3)
    parts = [WIRE.response(1, 5) + frame(PING, 9), frame(0x08) + WIRE.response(2, 6)]
    events = [
        event
        for part in (parts if apart else [b"".join(parts)])
        for event in caused(client.receive_data, START, part)
    ]
    completed = only(events, CallCompleted)
    assert (completed.call, completed.value) == (calls[0], 5)
    failed = [event for event in events if isinstance(event, CallFailed)]
    assert [event.call for event in failed] == calls[1:]
    assert {(event.error.code, event.error.maybe_executed) for event in failed} == {
        ("unavailable", True)
    }
    assert isinstance(events[-1], ConnectionTerminated)
    assert [one.type for one in frames_in(client.data_to_send())] == [PONG, GOAWAY]


@page(
    "Calls still in flight end there.",
    "A server stops their handlers and does not answer them; calls of the same segment may not "
    "have begun at all.",
)
@pytest.mark.fault(82)
@pytest.mark.parametrize("apart", [False, True])
def test_server_does_not_answer_the_calls_before_a_violation(apart: bool) -> None:
    server = open_server(codec="json")
    parts = [frame(PING, 9) + WIRE.request(1) + WIRE.request(2), frame(0x08) + WIRE.request(3)]
    events = [
        event
        for part in (parts if apart else [b"".join(parts)])
        for event in caused(server.receive_data, START, part)
    ]
    calls = [event.call for event in events if isinstance(event, RequestReceived)]
    assert [call.id for call in calls] == [1, 2]
    stopped = [event.call for event in events if isinstance(event, CallCancelled)]
    assert stopped == calls
    for call in calls:
        server.send_response(START, call, 1)
    pong, goaway = frames_in(server.data_to_send())
    assert (pong.type, goaway.type, goaway.call_id) == (PONG, GOAWAY, 2)


@page("unless the server's GOAWAY says that it was not.")
@pytest.mark.fault(82)
def test_goaway_for_a_violation_says_which_calls_were_not_received() -> None:
    client, _ = with_calls(3)
    goaway = WIRE.goaway(2, "invalid_argument", "unknown frame type 0x08")
    events = caused(client.receive_data, START, goaway) + caused(client.receive_eof, START)
    ends = [event for event in events if isinstance(event, CallFailed)]
    assert [(end.call.id, end.error.maybe_executed) for end in ends] == [
        (3, False),
        (1, True),
        (2, True),
    ]
