"""Faults in headers and call ids: names, ids that are reused, unknown or wrong, deadlines."""

import math
from typing import Any

import msgspec
import pytest

from rpc_fuzz.pair import Host, Pair, only, outcome, termination
from rpc_fuzz.wire import (
    CODECS,
    ERROR,
    NAMED,
    ONE_WAY,
    RAW,
    REQUEST,
    RESPONSE,
    START,
    Wire,
    frame,
    frames_in,
    open_client,
    open_server,
)
from rpc_proto import (
    CallCancelled,
    CallCompleted,
    CallError,
    CallFailed,
    ClientConfig,
    DeadlineExceeded,
    RemoteProtocolError,
    RequestReceived,
    ServerConfig,
    State,
    Unimplemented,
)
from rpc_proto.wire.bounds import MAX_TIMEOUT
from support.driving import caused


class Arith:
    """What the calls here are made to."""

    secret = "an attribute"

    def __init__(self) -> None:
        self.calls = 0

    def add(self, a: int, b: int) -> int:
        self.calls += 1
        return a + b

    def _private(self) -> str:
        raise AssertionError("called from outside")


def violation(events: list) -> RemoteProtocolError:
    error = termination(events)
    assert isinstance(error, RemoteProtocolError)
    return error


NAMES = {
    "empty": "",
    "no dot": "add",
    "only a dot": ".",
    "with NUL": "Arith.add\0",
    "4 KiB long": "A" * 4096,
    "dunder": "Arith.__class__",
    "dunder path": "Arith.__class__.__mro__",
    "init": "Arith.__init__",
    "private": "Arith._private",
    "attribute": "Arith.secret",
    "path through a method": "Arith.add.__func__",
    "wrong case": "arith.add",
    "trailing space": "Arith.add ",
    "format string": "%s%n{0}",
    "right to left": "Arith.\u202eadd",
}


@pytest.mark.fault(19)
@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_name_that_was_not_registered_does_not_exist(name: str, codec: str) -> None:
    pair = Pair(codec=codec).open()
    Host(pair, Arith())
    pair.up.data += Wire(codec).request(1, name)
    pair.client._serial = 1  # the request above
    pair.pump()
    assert not pair.server.calls_in_flight
    assert pair.server.state is State.OPEN
    call = pair.call("Arith.add", 1, 2)
    assert pair.outcome(call) == 3


@pytest.mark.fault(19)
def test_caller_of_an_unknown_name_gets_unimplemented_as_safe_to_retry() -> None:
    pair = Pair().open()
    Host(pair, Arith())
    error = pair.outcome(pair.call("Arith._private"))
    assert type(error) is Unimplemented
    assert error.maybe_executed is False


@pytest.mark.fault(20)
@pytest.mark.parametrize("codec", CODECS)
def test_body_of_a_call_to_an_unknown_method_is_consumed(codec: str) -> None:
    pair = Pair(codec=codec, chunk=7).open()
    Host(pair, Arith())
    unknown = pair.call("Nobody.home", "x" * 10_000, [1, 2, 3])
    known = pair.call("Arith.add", 1, 2)
    assert pair.outcome(unknown).code == "unimplemented"
    assert pair.outcome(known) == 3


HOSTILE = "%s %n {0} \x1b[31mred\x1b[0m\r\nX-Injected: 1\0"


@pytest.mark.fault(21)
@pytest.mark.parametrize("codec", CODECS)
def test_text_of_an_error_is_opaque(codec: str) -> None:
    pair = Pair(codec=codec).open()
    call, served = pair.request("Arith.add")
    pair.fail(served, CallError("aborted", HOSTILE))
    assert pair.outcome(call).message == HOSTILE


@pytest.mark.fault(21)
@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("letter", ["x", "\u20ac", "\U0001f600", "\0", "\ud800"])
def test_text_of_an_error_takes_at_most_a_kibibyte_on_the_wire(letter: str, codec: str) -> None:
    pair = Pair(codec=codec).open()
    call, served = pair.request("Arith.add")
    pair.fail(served, CallError("aborted", letter * 100_000))
    message = pair.outcome(call).message
    assert 1020 <= len(message.encode()) <= 1024


@pytest.mark.fault(21)
@pytest.mark.parametrize("codec", CODECS)
def test_long_method_name_is_quoted_in_part(codec: str) -> None:
    pair = Pair(codec=codec).open()
    Host(pair, Arith())
    assert len(pair.outcome(pair.call("A" * 10_000)).message) < 200


@pytest.mark.fault(22)
def test_id_zero_is_a_violation() -> None:
    violation(caused(open_server().receive_data, START, Wire().request(0)))


@pytest.mark.fault(22)
def test_largest_id_is_accepted() -> None:
    server = open_server()
    event = only(caused(server.receive_data, START, Wire().request(2**64 - 1)), RequestReceived)
    server.send_response(START, event.call, 1)
    assert frames_in(server.data_to_send())[0].call_id == 2**64 - 1


@pytest.mark.fault(22)
def test_ids_that_are_no_unsigned_64_bit_numbers_cannot_be_written() -> None:
    from rpc_proto.wire.frames import encode_prefix

    for wrong in (-1, 2**64, 1.5, "1", None):
        with pytest.raises(Exception, match=r"argument|integer|int|format requires"):
            encode_prefix(REQUEST, 0, 0, 0, wrong)


@pytest.mark.fault(23)
@pytest.mark.parametrize("flags", [0, ONE_WAY])
def test_request_with_an_id_in_flight_is_a_violation_and_overwrites_nothing(flags: int) -> None:
    server = open_server()
    [first] = caused(server.receive_data, START, Wire().request(1, args=["first"]))
    events = caused(server.receive_data, START, Wire().request(1, args=["second"], flags=flags))
    violation(events)
    assert only(events, CallCancelled).call is first.call
    assert not [event for event in events if isinstance(event, RequestReceived)]


@pytest.mark.fault(23)
def test_id_of_a_cancelled_call_is_in_flight_until_its_handler_has_ended() -> None:
    server = open_server()
    wire = Wire()
    [request] = caused(server.receive_data, START, wire.request(1))
    server.receive_data(START, wire.cancel(1))
    server.conclude(START, request.call)
    [request] = caused(server.receive_data, START, wire.request(1))
    server.receive_data(START, wire.cancel(1))
    violation(caused(server.receive_data, START, wire.request(1)))


@pytest.mark.fault(24)
def test_ids_wrap_and_leave_out_zero_and_those_in_flight() -> None:
    pair = Pair().open()
    early = [pair.call("Arith.add") for _ in range(3)]
    assert [call.id for call in early] == [1, 2, 3]
    pair.respond(pair.requests()[1], None)
    pair.client._serial = 2**64 - 2
    late = [pair.call("Arith.add") for _ in range(4)]
    assert [call.id for call in late] == [2**64 - 1, 2, 4, 5]
    for served in pair.requests():
        pair.respond(served, served.id)
    assert [pair.outcome(call) for call in late] == [2**64 - 1, 2, 4, 5]


@pytest.mark.fault(24)
def test_goaway_after_the_wrap_fails_the_calls_that_came_later() -> None:
    client = open_client()
    client._serial = 2**64 - 2
    before, after, last = (client.start_call(START, "Arith.add") for _ in range(3))
    assert (before.id, after.id, last.id) == (2**64 - 1, 1, 2)
    events = caused(client.receive_data, START, Wire().goaway(1))
    assert only(events, CallFailed).call is last


@pytest.mark.fault(25)
@pytest.mark.parametrize("codec", CODECS)
def test_answer_to_a_call_that_ended_is_ignored_and_counted(codec: str) -> None:
    client = open_client(codec=codec)
    call = client.start_call(START, "Arith.add")
    client.cancel(START, call)
    wire = Wire(codec)
    assert caused(client.receive_data, START, wire.response(call.id, 3)) == []
    assert caused(client.receive_data, START, wire.error(call.id, "aborted")) == []
    assert client.ignored == 2
    assert client.state is State.OPEN


@pytest.mark.fault(25)
@pytest.mark.parametrize("call_id", [0, 3, 2**63, 2**64 - 1])
def test_answer_to_an_id_that_was_never_used_ends_the_connection(call_id: int) -> None:
    client = open_client()
    first, second = (client.start_call(START, "Arith.add") for _ in range(2))
    wire = Wire()
    events = caused(
        client.receive_data, START, wire.response(first.id, 1) + wire.response(call_id, 3)
    )
    assert isinstance(events[0], CallCompleted)
    assert events[0].call is first
    failed = only(events, CallFailed)
    assert failed.call is second
    assert (failed.error.code, failed.error.maybe_executed) == ("unavailable", True)
    violation(events)


@pytest.mark.fault(25)
def test_answer_to_a_call_that_still_waits_to_be_sent_ends_the_connection() -> None:
    client = open_client(limits={"header": 16384, "body": 65536, "calls": 1})
    client.start_call(START, "Arith.add")
    waiting = client.start_call(START, "Arith.add")
    assert not waiting.sent
    violation(caused(client.receive_data, START, Wire().response(waiting.id, 1)))


@pytest.mark.fault(25)
def test_answer_to_a_one_way_call_is_ignored() -> None:
    client = open_client()
    call = client.start_call(START, "Log.line", one_way=True)
    assert caused(client.receive_data, START, Wire().response(call.id, 1)) == []
    assert client.ignored == 1


@pytest.mark.fault(26)
@pytest.mark.parametrize("second", ["response", "error"])
def test_second_answer_to_a_call_is_ignored(second: str) -> None:
    client = open_client()
    wire = Wire()
    call = client.start_call(START, "Arith.add")
    again = wire.response(call.id, 4) if second == "response" else wire.error(call.id, "aborted")
    events = caused(client.receive_data, START, wire.response(call.id, 3) + again)
    assert outcome(events) == 3
    assert client.ignored == 1
    assert client.state is State.OPEN


@pytest.mark.fault(26)
def test_server_answers_a_call_once_whatever_the_handler_does() -> None:
    server = open_server()
    [request] = caused(server.receive_data, START, Wire().request(1))
    server.send_response(START, request.call, 1)
    server.send_response(START, request.call, 2)
    server.send_error(START, request.call, CallError("aborted"))
    server.conclude(START, request.call)
    assert len(frames_in(server.data_to_send())) == 1


@pytest.mark.fault(27)
@pytest.mark.parametrize("kind", [RESPONSE, ERROR])
def test_answer_from_a_client_is_a_violation(kind: int) -> None:
    error = violation(caused(open_server().receive_data, START, frame(kind, 1)))
    assert "direction" in str(error)


@pytest.mark.fault(27)
def test_request_from_a_server_is_a_violation() -> None:
    error = violation(caused(open_client().receive_data, START, Wire().request(1)))
    assert "direction" in str(error)


@pytest.mark.fault(27)
def test_cancel_from_a_server_is_a_violation() -> None:
    client = open_client()
    call = client.start_call(START, "Arith.add")
    violation(caused(client.receive_data, START, Wire().cancel(call.id)))


@pytest.mark.fault(28)
@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("timeout", [0, -1, 0.0, -0.5, -(2**60), -1e300])
def test_deadline_at_or_under_zero_is_exceeded_and_no_handler_runs(
    timeout: float, codec: str
) -> None:
    server = open_server(codec=codec)
    assert caused(server.receive_data, START, Wire(codec).request(1, timeout=timeout)) == []
    [answer] = frames_in(server.data_to_send())
    code, _, _ = Wire(codec).decode(answer.body)
    assert (answer.type, answer.call_id, code) == (ERROR, 1, "deadline_exceeded")
    assert server.state is State.OPEN


@pytest.mark.fault(28)
@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("timeout", [2**63, 2**64 - 1, 1e300])
def test_huge_deadline_is_clipped(timeout: float, codec: str) -> None:
    server = open_server(codec=codec)
    [request] = caused(server.receive_data, START, Wire(codec).request(1, timeout=timeout))
    assert request.call.deadline == START + MAX_TIMEOUT


@pytest.mark.fault(28)
def test_deadline_of_a_thousand_digits_is_clipped() -> None:
    server = open_server(codec="json")
    header = b'["Arith.add",' + b"9" * 1000 + b"]"
    [request] = caused(server.receive_data, START, frame(REQUEST, 1, header))
    assert request.call.deadline == START + MAX_TIMEOUT


@pytest.mark.fault(28)
def test_deadline_of_as_many_digits_as_a_header_holds_is_a_violation() -> None:
    server = open_server(ServerConfig(max_header=65535, ping_interval=None), codec="json")
    header = b'["Arith.add",' + b"9" * 65_000 + b"]"
    violation(caused(server.receive_data, START, frame(REQUEST, 1, header)))


def _headers(field: str) -> dict[str, tuple[str, bytes]]:
    packed = msgspec.msgpack.encode
    wrong: dict[str, Any] = {
        "NaN": math.nan,
        "infinity": math.inf,
        "minus infinity": -math.inf,
        "string": "5",
        "bool": True,
        "list": [5],
    }
    cases = {
        f"msgpack {name}": ("msgpack", packed(["Arith.add", value]))
        for name, value in wrong.items()
    }
    for text in ("NaN", "Infinity", "1e999", '"5"', "true", "[5]"):
        cases[f"json {text}"] = ("json", f'["Arith.add",{text}]'.encode())
    return cases


TIMEOUTS = _headers("timeout")


@pytest.mark.fault(28)
@pytest.mark.parametrize(("codec", "header"), TIMEOUTS.values(), ids=TIMEOUTS)
def test_timeout_that_is_no_finite_number_is_a_violation(codec: str, header: bytes) -> None:
    violation(caused(open_server(codec=codec).receive_data, START, frame(REQUEST, 1, header)))


@pytest.mark.fault(28)
def test_caller_whose_deadline_has_passed_gets_its_error_and_nothing_is_sent() -> None:
    pair = Pair().open()
    call = pair.call("Arith.add", 1, 2, timeout=0)
    assert pair.step()
    error = pair.outcome(call)
    assert isinstance(error, DeadlineExceeded)
    assert isinstance(error, TimeoutError)
    assert error.maybe_executed is False
    assert pair.requests() == []


@pytest.mark.fault(28)
def test_huge_deadline_of_a_caller_is_clipped_on_the_wire() -> None:
    pair = Pair(ClientConfig()).open()
    _, served = pair.request("Arith.add", timeout=1e12)
    assert served.deadline == pair.now + MAX_TIMEOUT


BAD_HEADERS = {
    "empty": b"",
    "nil": b"\xc0",
    "empty array": b"\x90",
    "four fields": b"\x94\xa1a\xc0\x80\xc0",
    "a map": b"\x80",
    "method a number": b"\x91\x01",
    "method binary": b"\x91\xc4\x01a",
    "method nil": b"\x91\xc0",
    "truncated": b"\x91\xa5a",
    "trailing byte": b"\x91\xa1a\xc0",
    "method not UTF-8": b"\x91\xa1\xff",
    "metadata a list": b"\x93\xa1a\xc0\x90",
    "metadata value a number": b"\x93\xa1a\xc0\x81\xa1k\x01",
    "metadata key a number": b"\x93\xa1a\xc0\x81\x01\xa1v",
    "extension type": b"\x91\xd4\x05a",
    "nested too deeply": b"\x93\xa1a\xc0" + b"\x91" * 10_000 + b"\xc0",
    "nested in metadata": b"\x93\xa1a\xc0" + b"\x81\xa1k" * 5000 + b"\xc0",
}


@pytest.mark.fault(28)
@pytest.mark.parametrize("header", BAD_HEADERS.values(), ids=BAD_HEADERS)
def test_malformed_request_header_is_a_violation(header: bytes) -> None:
    violation(caused(open_server().receive_data, START, frame(REQUEST, 1, header)))


@pytest.mark.parametrize(
    "header", [b"\xc0", b"\x90", b"\x92\x80\x80", b"\x91\x01", b"\x91\x81\x01\x02"]
)
def test_malformed_answer_header_is_a_violation(header: bytes) -> None:
    client = open_client()
    call = client.start_call(START, "Arith.add")
    events = caused(client.receive_data, START, frame(RESPONSE, call.id, header))
    violation(events)
    assert only(events, CallFailed).call is call


def test_request_with_both_raw_and_named_is_a_violation() -> None:
    violation(
        caused(open_server().receive_data, START, Wire().request(1, body=b"x", flags=RAW | NAMED))
    )
