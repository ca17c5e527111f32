"""What strangers send is refused before decoding it can cost much time or memory."""

import re
import struct
import tracemalloc
from dataclasses import dataclass
from decimal import Decimal
from itertools import islice, product
from time import process_time
from typing import Any
from uuid import UUID

import pytest

from rpc_fuzz.pair import Host, Pair, only
from rpc_fuzz.wire import ERROR, GOAWAY, START, Wire, frame, open_client
from rpc_proto import (
    CallError,
    CallFailed,
    ClientConfig,
    Codec,
    GoAwayReceived,
    InvalidArgument,
    ResourceExhausted,
    ServerConfig,
    State,
    find_codec,
)
from rpc_proto.service.methods import Method
from rpc_proto.wire.frames import Flag
from rpc_proto.wire.headers import HeaderError, Headers
from rpc_proto.wire.typed import decoder
from support.driving import caused

MSGPACK, JSON = find_codec("msgpack"), find_codec("json")


@dataclass
class Record:
    name: str = ""


both = pytest.mark.parametrize("codec", [MSGPACK, JSON], ids=repr)

# Powers of two 61 apart have the same hash, and so have tuples of them.
_ALIKE = [2.0 ** (61 * k) for k in range(-16, 17)]


def flood(entries: int) -> bytes:
    """Return a msgpack map with that many keys whose hashes are all the same."""
    keys = [
        b"\x94" + b"".join(b"\xcb" + struct.pack(">d", part) for part in key)
        for key in islice(product(_ALIKE, repeat=4), entries)
    ]
    return b"\xdf" + struct.pack(">I", entries) + b"".join(key + b"\xc0" for key in keys)


def seconds(decode: Any, *arguments: Any) -> float:
    begun = process_time()
    with (
        pytest.raises(ValueError, match="key")
        if len(arguments) == 1
        else pytest.raises(InvalidArgument)
    ):
        decode(*arguments)
    return process_time() - begun


def anything(value: Any) -> None: ...


def named(value: Any = None, **rest: Any) -> None: ...


def identifiers(values: set[UUID]) -> None: ...


def numbers(*values: int) -> None: ...


def few(first: int, second: int = 0) -> None: ...


@pytest.mark.fault(92, 93)
@pytest.mark.parametrize(
    "kind", [None, Any, list[Any], dict[str, Any], tuple[str, str, Any], tuple[list[Any], Any]]
)
@pytest.mark.parametrize("wrap", [b"", b"\x91", b"\x93\xa1a\xa1b", b"\x92\x90", b"\x81\xa1a"])
def test_keys_whose_hashes_a_peer_chose_are_refused(kind: Any, wrap: bytes) -> None:
    decode = MSGPACK.decode if kind is None else decoder(MSGPACK, kind)
    with pytest.raises(ValueError, match=r"key|Expected"):
        decode(wrap + flood(1000))


@pytest.mark.fault(92)
@pytest.mark.parametrize("flags", [0, Flag.NAMED])
@pytest.mark.parametrize("function", [anything, named, few])
def test_a_flood_of_equal_hashes_takes_linear_time(function: Any, flags: int) -> None:
    method = Method("S.m", function)
    body = (b"\x92\x90" if flags else b"\x91") + flood(16_000)
    assert seconds(method.decode, MSGPACK, flags, body) < 0.5  # quadratic, it takes over 3 s


@pytest.mark.fault(92)
def test_large_maps_with_string_and_integer_keys_are_fine() -> None:
    for value in (
        {f"key {number}": [number] for number in range(1000)},
        dict.fromkeys(range(1000), b"bytes"),
        {"deep": [[[[[[[[{str(number): {} for number in range(100)}]]]]]]]]},
    ):
        assert MSGPACK.decode(MSGPACK.encode(value)) == value


@pytest.mark.fault(92)
@both
@pytest.mark.parametrize("kind", [set[UUID], frozenset[Decimal], set[float], dict[float, int]])
def test_bodies_with_keys_of_known_hashes_are_small(codec: Codec, kind: Any) -> None:
    decode = decoder(codec, kind)
    assert decode(codec.encode({} if kind == dict[float, int] else [])) is not None
    with pytest.raises(ValueError, match="the limit is 16384"):
        decode(codec.encode(list(range(20_000))))


@pytest.mark.fault(92)
def test_sets_of_integers_are_small_where_integers_can_be_long() -> None:
    values = list(range(20_000))
    assert decoder(MSGPACK, set[int])(MSGPACK.encode(values)) == set(values)
    with pytest.raises(ValueError, match="the limit is 16384"):
        decoder(JSON, set[int])(JSON.encode(values))


@pytest.mark.fault(92)
@both
def test_named_arguments_are_no_way_around_that(codec: Codec) -> None:
    body = codec.encode([[], {"values": [str(UUID(int=number)) for number in range(1000)]}])
    with pytest.raises(InvalidArgument, match="the limit is 16384"):
        Method("S.m", identifiers).decode(codec, Flag.NAMED, body)


@pytest.mark.fault(77)
@pytest.mark.parametrize("function", [few, lambda: None])
def test_a_wrong_number_of_arguments_is_refused_before_any_is_made(function: Any) -> None:
    body = b"\xdd" + struct.pack(">I", 1_000_000) + b"\x90" * 1_000_000
    method = Method("S.m", function)
    tracemalloc.start()
    with pytest.raises(InvalidArgument, match=r"got 1000000"):
        method.decode(MSGPACK, 0, body)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000


@pytest.mark.fault(78)
def test_a_million_arguments_are_decoded_at_once() -> None:
    method = Method("S.m", numbers)
    args, _ = method.decode(MSGPACK, 0, MSGPACK.encode([1] * 1_000_000))
    assert args == (1,) * 1_000_000


def test_a_bad_argument_among_the_rest_is_named() -> None:
    def rest(first: int, *values: int) -> None: ...

    with pytest.raises(InvalidArgument, match=r"`values\[1\]`"):
        Method("S.m", rest).decode(MSGPACK, 0, MSGPACK.encode([1, 2, "x"]))
    with pytest.raises(InvalidArgument, match=r"`values\[2\]`"):
        Method("S.m", numbers).decode(MSGPACK, 0, MSGPACK.encode([1, 2, "x"]))


@pytest.mark.fault(78)
@both
@pytest.mark.parametrize(
    "value",
    [
        [[]] * 20_000,
        [{}] * 20_000,
        [f"text {number}" for number in range(20_000)],
        [1.5] * 20_000,
        {str(number): number + 1000 for number in range(20_000)},
        ["x" * 1000] * 100,
        ["\u4e2d" * 1000] * 100,
        [{"id": number, "name": "n" * (number % 50)} for number in range(5_000)],
        list(range(100_000)),
    ],
    ids=lambda value: str(value)[:12],
)
def test_growth_is_an_upper_bound(codec: Codec, value: Any) -> None:
    body = codec.encode(value)
    del value
    codec.decode(body)
    tracemalloc.start()
    decoded = codec.decode(body)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert decoded is not None
    assert peak <= codec.growth(body)


@pytest.mark.fault(77)
@pytest.mark.parametrize("number", ["1e300", "1.5E-300", "1.5e+0300", "1" * 4000, "0." + "1" * 300])
def test_json_numbers_that_take_long_to_read_count_for_more(number: str) -> None:
    body = ("[" + ",".join([number] * (4_000_000 // len(number))) + "]").encode()
    limit = ServerConfig.max_decoded
    assert JSON.growth(body) > limit
    assert JSON.growth(JSON.encode(["ab12" * 64] * 2_000)) < limit
    assert JSON.growth(JSON.encode([1.2345678901234567e-80] * 100_000)) < limit


def test_growth_of_a_codec_of_ones_own() -> None:
    assert Codec("own", repr, eval, growth=3).growth(b"1234") == 12  # type: ignore[arg-type]


@pytest.mark.fault(76)
@both
def test_values_nested_too_deeply_are_refused_with_one_text(codec: Codec) -> None:
    method = Method("S.m", anything)
    body = b"\x91" * 100_000 + b"\x90" if codec is MSGPACK else b"[" * 100_000 + b"]" * 100_000
    with pytest.raises(InvalidArgument, match="nested too deeply for Python's stack"):
        method.decode(codec, 0, body)


@pytest.mark.fault(100)
@both
def test_metadata_is_bounded_in_entries(codec: Codec) -> None:
    headers = Headers(codec)
    fits = {str(number): "" for number in range(64)}
    assert headers.parse_request(headers.request("S.m", None, fits))[2] == fits
    too_many = {**fits, "64": ""}
    with pytest.raises(TypeError, match="metadata of 65 entries; the limit is 64"):
        headers.request("S.m", None, too_many)
    with pytest.raises(TypeError, match="metadata of 65 entries; the limit is 64"):
        headers.answer(too_many)
    with pytest.raises(HeaderError, match="metadata of 65 entries; the limit is 64"):
        headers.parse_request(codec.encode(["S.m", None, too_many]))
    with pytest.raises(HeaderError, match="metadata of 65 entries; the limit is 64"):
        headers.parse_answer(codec.encode([too_many]))


class Taker:
    def take(self, value: Any) -> Any:
        return value


class Records:
    def put(self, records: list[Record]) -> int:
        return len(records)


@pytest.mark.fault(78)
@both
def test_records_count_twice_because_they_are_read_twice(codec: Codec) -> None:
    config = ServerConfig(max_encoded=100_000, max_decoded=2**20)
    pair = Pair(server=config, codec=codec.name).open()
    Host(pair, Records())
    records = [Record("x")] * 2000
    body = codec.encode([records])
    assert config.max_decoded / 2 < codec.growth(body) < config.max_decoded
    error = pair.outcome(pair.call("Records.put", records))
    assert type(error) is ResourceExhausted
    assert pair.outcome(pair.call("Records.put", records[:1000])) == 1000


@pytest.mark.fault(77, 78)
@both
def test_arguments_over_the_limits_cost_the_call_only(codec: Codec) -> None:
    pair = Pair(
        server=ServerConfig(max_encoded=100_000, max_decoded=2**20), codec=codec.name
    ).open()
    Host(pair, Taker())
    for value, text in (
        ("x" * 100_000, "encoded body of 1000[0-9]{2} bytes; the limit is 100000"),
        ([[]] * 10_000, "bytes when decoded; the limit is 1048576"),
    ):
        error = pair.outcome(pair.call("Taker.take", value))
        assert type(error) is ResourceExhausted
        assert error.maybe_executed is False
        assert re.search(text, error.message)
    assert pair.outcome(pair.call("Taker.take", b"x" * 200_000)) == b"x" * 200_000  # RAW


@pytest.mark.fault(78)
def test_a_result_over_the_limits_costs_the_call_only() -> None:
    client = open_client(ClientConfig(max_encoded=100_000, max_decoded=2**20))
    for value in ("x" * 100_000, [[]] * 10_000):
        call = client.start_call(START, "S.m")
        events = caused(client.receive_data, START, Wire().response(call.id, value))
        error = only(events, CallFailed).error
        assert type(error) is ResourceExhausted
        assert "the limit is" in error.message
    assert client.state is State.OPEN


@pytest.mark.fault(93)
def test_details_with_keys_whose_hashes_the_server_chose_are_refused() -> None:
    client = open_client()
    call = client.start_call(START, "S.m")
    body = b"\x93\xa1c\xa1m" + flood(1000)
    error = only(
        caused(client.receive_data, START, frame(ERROR, call.id, b"", body)), CallFailed
    ).error
    assert error.code == "data_loss"
    assert "malformed" in error.message


@pytest.mark.fault(103)
def test_the_texts_of_a_peer_are_cut_when_they_arrive() -> None:
    client = open_client()
    call = client.start_call(START, "S.m")
    events = caused(client.receive_data, START, Wire().error(call.id, "c" * 9000, "m" * 100_000))
    error: CallError = only(events, CallFailed).error
    assert (error.code, error.message) == ("c" * 64, "m" * 1024)
    goaway = only(
        caused(client.receive_data, START, Wire().goaway(1, "x", "m" * 8000)), GoAwayReceived
    )
    assert goaway.message == "m" * 1024


@pytest.mark.fault(93, 103)
def test_a_goaway_over_8_kib_is_not_decoded() -> None:
    client = open_client()
    client.receive_data(START, frame(GOAWAY, 0, b"", b"\x92\xa1a" + flood(1000)))
    assert client.state is State.CLOSING
