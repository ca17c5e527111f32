"""Our codecs against independent ones, and our checks of HTTP heads against h11."""

import datetime
import json
import re
from typing import Any

import h11
import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from budget import spread
from rpc_fuzz.mill import Mill, same
from rpc_fuzz.strategies import http_streams, mutated, values
from rpc_proto import Codec, find_codec
from rpc_proto.http import HttpError
from rpc_proto.http.head import HeadReader

# msgpack


def _unpack(data: bytes) -> Any:
    return msgpack.unpackb(data, strict_map_key=False, timestamp=3)


def _has_other_key(value: Any) -> bool:
    """Whether there is a map of more than 15 entries with other keys than strings and integers."""
    if isinstance(value, dict):
        if len(value) > 15 and not all(type(key) in (str, int) for key in value):
            return True
        return any(_has_other_key(one) for pair in value.items() for one in pair)
    return isinstance(value, (list, tuple)) and any(map(_has_other_key, value))


def _has_extension(value: Any) -> bool:
    if isinstance(value, dict):
        return any(_has_extension(one) for pair in value.items() for one in pair)
    if isinstance(value, (list, tuple)):
        return any(map(_has_extension, value))
    return isinstance(value, (msgpack.ExtType, datetime.datetime))


MSGPACK = Mill(
    find_codec("msgpack"),
    msgpack.packb,
    _unpack,
    # The one extension is the timestamp, of which a sender has three forms.
    refuses=lambda data, value: _has_extension(value) or _has_other_key(value),
)


@spread(0.5)
@given(values("msgpack"))
def test_msgpack_and_its_witness_understand_each_other(value: Any) -> None:
    MSGPACK.check_value(value)


@spread(1)
@given(MSGPACK.data() | mutated(values("msgpack").map(msgpack.packb)))
def test_msgpack_and_its_witness_read_the_same(data: bytes) -> None:
    MSGPACK.check_data(data)


@spread(0.25)
@given(
    st.datetimes(
        datetime.datetime(1970, 1, 1),
        datetime.datetime(9000, 1, 1),
        timezones=st.just(datetime.UTC),
    )
)
def test_timestamps_are_the_same(at: datetime.datetime) -> None:
    assert find_codec("msgpack").decode(msgpack.packb(at, datetime=True)) == at
    assert _unpack(find_codec("msgpack").encode(at)) == at


# JSON


def _refuse(text: str) -> Any:
    raise ValueError(f"{text} is no number of JSON")


def _read_json(data: bytes) -> Any:
    return json.loads(data.decode(), parse_constant=_refuse)


_LONE = re.compile("[\ud800-\udfff]")


def _is_refused(data: bytes, value: Any) -> bool:
    """Whether our reader says that it refuses this: what others would read in another way."""
    text = data.decode()
    numbers = re.findall(r"-?[0-9.eE+-]+", text)
    return (
        bool(_LONE.search(json.dumps(value, ensure_ascii=False)))
        or any(len(number) > 18 for number in numbers)  # more than 64 bits, or than a double holds
        or "e" in text.lower()
        or any(ord(c) < 0x20 and c not in "\t\n\r" for c in text)
    )


JSON = Mill(
    find_codec("json"),
    lambda value: json.dumps(value, allow_nan=False).encode(),
    _read_json,
    refuses=_is_refused,
)


@spread(0.5)
@given(JSON.values())
def test_json_and_its_witness_understand_each_other(value: Any) -> None:
    JSON.check_value(value)


@spread(1)
@given(JSON.data())
def test_json_and_its_witness_read_the_same(data: bytes) -> None:
    JSON.check_data(data)


# Any codec of a user


@spread(0.25)
@given(st.data())
def test_codec_of_a_user_goes_through_the_mill(data: st.DataObject) -> None:
    mill = Mill(
        Codec("own", lambda value: json.dumps(value).encode(), json.loads), JSON._encode, json.loads
    )
    mill.check_value(data.draw(mill.values()))
    mill.check_data(data.draw(mill.data()))


def test_codec_that_forgets_is_found() -> None:
    def forgets(data: bytes) -> Any:
        value = json.loads(data)
        return 0 if value == -0.0 else value

    mill = Mill(
        Codec("bad", lambda value: json.dumps(value).encode(), forgets), JSON._encode, _read_json
    )
    with pytest.raises(AssertionError, match="the codec reads"):
        mill.check_value(-0.0)


def test_same_is_strict() -> None:
    assert same([1, {"a": float("nan")}], [1, {"a": float("nan")}])
    for one, other in ((1, 1.0), (True, 1), ([1], [1, 2]), ({"a": 1}, {"b": 1}), ("a", b"a")):
        assert not same(one, other)


# HTTP


def heads_of(stream: bytes) -> bytes | None:
    """The first head that our check lets pass."""
    reader = HeadReader()
    reader.buffer += stream
    try:
        return reader.take()
    except HttpError:
        return None


@spread(2)
@given(http_streams() | mutated(http_streams()))
def test_what_passes_our_checks_means_one_thing_to_h11(stream: bytes) -> None:
    head = heads_of(stream)
    if head is None:
        return
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
    connection.receive_data(head)
    try:
        request = connection.next_event()
    except h11.RemoteProtocolError:
        return  # h11 has the last word, and refuses more
    assert isinstance(request, h11.Request)
    line, *fields = head.split(b"\r\n")[:-2]
    method, target, version = line.split(b" ")
    assert (request.method, request.target) == (method, target)
    assert version == b"HTTP/" + request.http_version
    # Each line is one field: nothing was folded, joined or lost.
    parts = [field.partition(b":") for field in fields]
    assert [(name.lower(), value.strip(b" \t").lower()) for name, _, value in parts] == [
        (name, value.lower()) for name, value in request.headers
    ]
