"""Faults in bodies: what cannot be decoded costs one call, never the connection."""

import tracemalloc
from typing import Any

import pytest

from rpc_fuzz.pair import Host, Pair, only
from rpc_fuzz.wire import (
    CODECS,
    ERROR,
    GOAWAY,
    NAMED,
    RESPONSE,
    START,
    Wire,
    frame,
    frames_in,
    open_client,
)
from rpc_proto import (
    CallFailed,
    ClientConfig,
    DataLoss,
    Internal,
    InvalidArgument,
    ResourceExhausted,
    ServerConfig,
    State,
    Unknown,
)
from support.driving import caused

KIB = 1024


class BadText(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text either")


class Thing:
    """Takes and returns all kinds of values."""

    def __init__(self) -> None:
        self.ran = 0

    def take(self, value: Any) -> str:
        self.ran += 1
        return "taken"

    def number(self, value: int) -> int:
        return value

    def named(self, *, value: int) -> int:
        return value

    def table(self, value: dict[str, int]) -> int:
        return len(value)

    def fails(self) -> None:
        raise KeyError("a secret place")

    def fails_badly(self) -> None:
        raise BadText

    def unencodable(self) -> object:
        return object()

    def huge(self, size: int) -> bytes:
        return b"x" * size

    def deep(self, depth: int) -> Any:
        value: Any = 0
        for _ in range(depth):
            value = [value]
        return value


def bomb(codec: str, depth: int = 100_000) -> bytes:
    return b"\x91" * depth + b"\xc0" if codec == "msgpack" else b"[" * depth + b"]" * depth


BAD_BODIES = {
    "msgpack truncated": ("msgpack", b"\x92\x01"),
    "msgpack trailing bytes": ("msgpack", b"\x91\x01\x00"),
    "msgpack bad UTF-8": ("msgpack", b"\x91\xa2\xff\xfe"),
    "msgpack reserved byte": ("msgpack", b"\x91\xc1"),
    "msgpack no array": ("msgpack", b"\x01"),
    "msgpack nesting bomb": ("msgpack", bomb("msgpack")),
    "msgpack nested maps": ("msgpack", b"\x91" + b"\x81\xa1k" * 100_000 + b"\xc0"),
    "msgpack huge lengths nested": ("msgpack", b"\xdd\xff\xff\xff\xff" * 1000),
    "msgpack huge array": ("msgpack", b"\xdd\xff\xff\xff\xff\x01"),
    "msgpack huge map": ("msgpack", b"\x91\xdf\xff\xff\xff\xff\x01"),
    "msgpack huge string": ("msgpack", b"\x91\xdb\xff\xff\xff\xffab"),
    "msgpack huge binary": ("msgpack", b"\x91\xc6\xff\xff\xff\xffab"),
    "msgpack huge extension": ("msgpack", b"\x91\xc9\xff\xff\xff\xff\x05ab"),
    "msgpack extension type": ("msgpack", b"\x91\xd4\x05a"),
    "msgpack extension named like a type": ("msgpack", b"\x91\xc7\x09\x05os.system"),
    "msgpack timestamp out of range": ("msgpack", b"\x91\xc7\x0c\xff" + b"\xff" * 12),
    "msgpack timestamp in the year 10^10": (
        "msgpack",
        b"\x91\xc7\x0c\xff\x00\x00\x00\x00\x7f\xff\xff\xff\xff\xff\xff\xff",
    ),
    "json truncated": ("json", b"[1,"),
    "json trailing bytes": ("json", b"[1] 2"),
    "json bad UTF-8": ("json", b'["\xff\xfe"]'),
    "json lone surrogate": ("json", b'["\\ud800"]'),
    "json no array": ("json", b'{"value":1}'),
    "json NaN": ("json", b"[NaN]"),
    "json nesting bomb": ("json", bomb("json")),
    "json nested objects": ("json", b"[" + b'{"k":' * 100_000 + b"1" + b"}" * 100_000 + b"]"),
    "json million-digit integer": ("json", b"[" + b"9" * 1_000_000 + b"]"),
    "json million-digit negative integer": ("json", b"[-" + b"9" * 1_000_000 + b"]"),
    "json number out of range": ("json", b"[1e999999]"),
}
_ROWS = {
    "nesting": 30,
    "nested": 30,
    "huge lengths": 31,
    "huge": 32,
    "extension": 35,
    "timestamp": 35,
    "million": 36,
}


def _row(name: str) -> int:
    return next((row for word, row in _ROWS.items() if word in name), 29)


CASES = [
    pytest.param(*case, id=name, marks=pytest.mark.fault(_row(name)))
    for name, case in BAD_BODIES.items()
]


@pytest.mark.parametrize(("codec", "body"), CASES)
def test_bad_arguments_cost_the_call_and_the_next_one_decodes_well(codec: str, body: bytes) -> None:
    pair = Pair(codec=codec).open()
    thing = Thing()
    Host(pair, thing)
    bad = pair.client.start_call(pair.now, "Thing.take")
    pair.client.data_to_send()
    pair.up.data += Wire(codec).request(bad.id, "Thing.take", body=body)
    pair.pump()
    error = pair.outcome(bad)
    assert type(error) is InvalidArgument
    assert error.maybe_executed is False
    assert thing.ran == 0
    assert pair.outcome(pair.call("Thing.take", [1, {"k": "v"}])) == "taken"


@pytest.mark.parametrize("returns", [None, Any, int, dict[str, int]], ids=str)
@pytest.mark.parametrize(("codec", "body"), CASES)
def test_bad_result_costs_the_call_and_the_next_one_decodes_well(
    codec: str, body: bytes, returns: Any
) -> None:
    if body in (b"\x01", b'{"value":1}'):
        body += b"\x01"  # a value by itself is no fault in a result
    client = open_client(codec=codec)
    bad, good = (client.start_call(START, "Thing.take", returns=returns) for _ in range(2))
    data = frame(RESPONSE, bad.id, body=body) + Wire(codec).error(good.id, "aborted", "next")
    first, second = caused(client.receive_data, START, data)
    assert isinstance(first, CallFailed)
    assert type(first.error) is DataLoss
    assert second.error.message == "next"
    assert client.state is State.OPEN


@pytest.mark.parametrize(("codec", "body"), CASES)
def test_bad_error_is_reported_as_data_loss(codec: str, body: bytes) -> None:
    client = open_client(codec=codec)
    call = client.start_call(START, "Thing.take")
    event = only(caused(client.receive_data, START, frame(ERROR, call.id, body=body)), CallFailed)
    assert type(event.error) is DataLoss
    assert client.state is State.OPEN


@pytest.mark.parametrize(("codec", "body"), CASES)
def test_bad_goaway_is_a_violation(codec: str, body: bytes) -> None:
    client = open_client(codec=codec)
    client.receive_data(START, frame(GOAWAY, 0, body=body))
    assert client.state is State.CLOSING


@pytest.mark.fault(30)
@pytest.mark.parametrize("codec", CODECS)
def test_nesting_around_the_limit_of_the_decoder_lets_nothing_escape(codec: str) -> None:
    pair = Pair(codec=codec).open()
    Host(pair, Thing())
    for depth in range(900, 1020):
        bad = pair.client.start_call(pair.now, "Thing.take")
        pair.client.data_to_send()
        pair.up.data += Wire(codec).request(bad.id, "Thing.take", body=bomb(codec, depth))
        pair.pump()
        ended = pair.outcome(bad)
        assert ended == "taken" or type(ended) is InvalidArgument
    assert pair.server.state is State.OPEN


@pytest.mark.fault(30)
@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("depth", [500, 990, 1000, 5000, 100_000])
def test_result_nested_too_deeply_costs_the_call(codec: str, depth: int) -> None:
    pair = Pair(codec=codec).open()
    Host(pair, Thing())
    ended = pair.outcome(pair.call("Thing.deep", depth))
    assert isinstance(ended, (list, Internal, DataLoss))
    assert pair.outcome(pair.call("Thing.number", 1)) == 1


@pytest.mark.fault(31)
@pytest.mark.parametrize(
    "body",
    [
        b"\xdd\xff\xff\xff\xff" * 1000,
        b"\xdf\xff\xff\xff\xff\xa1k" * 1000,
        b"\x91\xdb\xff\xff\xff\xff" + b"x" * 1000,
        b"\x91\xc6\xff\xff\xff\xff" + b"x" * 1000,
    ],
    ids=["arrays", "maps", "string", "binary"],
)
def test_declared_lengths_allocate_no_more_than_the_frame_holds(body: bytes) -> None:
    pair = Pair().open()
    Host(pair, Thing())
    data = Wire().request(1, "Thing.take", body=body)
    pair.server.data_to_send()
    tracemalloc.start()
    try:
        pair.server.receive_data(pair.now, data)
        pair.report(pair.server)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # An empty array costs ten times what declares it, and msgspec starts with room for 16 values.
    assert peak < 256 * KIB
    assert pair.server.state is State.OPEN


@pytest.mark.fault(33)
@pytest.mark.parametrize(
    ("method", "flags", "body"),
    [
        ("Thing.named", NAMED, b"\x92\x90\x81\x01\x02"),
        ("Thing.named", NAMED, b"\x92\x90\x81\xc0\x02"),
        ("Thing.named", NAMED, b"\x92\x90\x81\x90\x02"),
        ("Thing.table", 0, b"\x91\x81\x01\x02"),
        ("Thing.table", 0, b"\x91\x81\xc2\x02"),
        ("Thing.table", NAMED, b"\x92\x90\x81\xa5value\x81\xc4\x01a\x02"),
    ],
)
def test_map_key_that_is_no_string_costs_the_call(method: str, flags: int, body: bytes) -> None:
    pair = Pair().open()
    Host(pair, Thing())
    bad = pair.client.start_call(pair.now, method)
    pair.client.data_to_send()
    pair.up.data += Wire().request(bad.id, method, body=body, flags=flags)
    pair.pump()
    assert type(pair.outcome(bad)) is InvalidArgument
    assert pair.server.state is State.OPEN


@pytest.mark.fault(34)
@pytest.mark.parametrize("codec", CODECS)
def test_decoder_is_fresh_after_each_error(codec: str) -> None:
    pair = Pair(codec=codec).open()
    Host(pair, Thing())
    for _, body in [case for case in BAD_BODIES.values() if case[0] == codec]:
        bad = pair.client.start_call(pair.now, "Thing.table")
        pair.client.data_to_send()
        good = Wire(codec).request(bad.id + 1, "Thing.table", [{"a": 1, "b": 2}])
        pair.up.data += Wire(codec).request(bad.id, "Thing.table", body=body) + good
        pair.client._serial += 1
        pair.pump()
        assert type(pair.outcome(bad)) is InvalidArgument
        assert pair.outcome(pair.call("Thing.table", {"a": 1})) == 1


@pytest.mark.fault(37)
@pytest.mark.parametrize("codec", CODECS)
def test_failure_of_a_handler_is_unknown_without_a_traceback(codec: str) -> None:
    pair = Pair(codec=codec).open()
    Host(pair, Thing())
    error = pair.outcome(pair.call("Thing.fails"))
    assert type(error) is Unknown
    assert error.message == "KeyError: 'a secret place'"
    assert error.details is None
    assert pair.outcome(pair.call("Thing.number", 1)) == 1


@pytest.mark.fault(37)
def test_failure_of_a_handler_carries_its_traceback_only_for_debugging() -> None:
    pair = Pair().open()
    Host(pair, Thing(), debug=True)
    details = pair.outcome(pair.call("Thing.fails")).details
    assert details.startswith("Traceback")
    assert "in fails" in details


@pytest.mark.fault(37)
@pytest.mark.parametrize("debug", [False, True])
def test_failure_whose_text_fails_too_is_unknown(debug: bool) -> None:
    pair = Pair().open()
    Host(pair, Thing(), debug=debug)
    error = pair.outcome(pair.call("Thing.fails_badly"))
    assert type(error) is Unknown
    assert "BadText" in error.message


@pytest.mark.fault(37)
@pytest.mark.parametrize("codec", CODECS)
def test_result_that_cannot_be_encoded_is_an_internal_error(codec: str) -> None:
    pair = Pair(codec=codec).open()
    Host(pair, Thing())
    assert type(pair.outcome(pair.call("Thing.unencodable"))) is Internal
    assert pair.outcome(pair.call("Thing.number", 1)) == 1


@pytest.mark.fault(37)
@pytest.mark.parametrize("codec", CODECS)
def test_result_over_the_limit_of_the_caller_is_resource_exhausted(codec: str) -> None:
    pair = Pair(ClientConfig(codec=codec, max_body=8 * KIB)).open()
    Host(pair, Thing())
    assert len(pair.outcome(pair.call("Thing.huge", 8 * KIB))) == 8 * KIB
    assert type(pair.outcome(pair.call("Thing.huge", 8 * KIB + 1))) is ResourceExhausted
    assert pair.outcome(pair.call("Thing.number", 1)) == 1


@pytest.mark.fault(37)
@pytest.mark.parametrize("codec", CODECS)
def test_arguments_over_the_limit_of_the_server_are_refused_before_they_are_sent(
    codec: str,
) -> None:
    pair = Pair(ClientConfig(codec=codec), ServerConfig(max_body=8 * KIB)).open()
    Host(pair, Thing())
    with pytest.raises(ResourceExhausted) as caught:
        pair.call("Thing.take", "x" * 8 * KIB)
    assert caught.value.maybe_executed is False
    assert pair.outcome(pair.call("Thing.number", 1)) == 1


@pytest.mark.fault(37)
@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize(
    "details", [object(), "x" * 100_000, float], ids=["object", "huge", "type"]
)
def test_error_whose_details_cannot_travel_arrives_without_them(details: Any, codec: str) -> None:
    from rpc_proto import NotFound

    pair = Pair(ClientConfig(codec=codec, max_body=8 * KIB)).open()
    call, served = pair.request("Thing.take", 1)
    pair.fail(served, NotFound("not here", details))
    error = pair.outcome(call)
    assert (type(error), error.message, error.details) == (NotFound, "not here", None)


@pytest.mark.fault(37)
@pytest.mark.parametrize("codec", CODECS)
def test_error_with_the_longest_text_fits_into_the_smallest_body(codec: str) -> None:
    pair = Pair(ClientConfig(codec=codec, max_body=8 * KIB)).open()
    call, served = pair.request("Thing.take", 1)
    pair.server.send_error(pair.now, served, Unknown("\0" * 5000))
    [sent] = frames_in(pair.server.data_to_send())
    assert len(sent.body) <= 8 * KIB
    [event] = caused(pair.client.receive_data, pair.now, frame(ERROR, call.id, body=sent.body))
    assert event.error.message == "\0" * 1024
