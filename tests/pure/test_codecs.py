"""The codecs: what they carry, what they refuse, and values as types."""

import math
import uuid
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from enum import Enum, IntEnum
from typing import Any

import msgspec
import pytest

from rpc_fuzz.wire import CODECS
from rpc_proto import Codec, find_codec
from rpc_proto.wire.typed import convert, decoder


class Colour(Enum):
    RED = "red"


class Size(IntEnum):
    SMALL = 1


@dataclass
class Point:
    x: int
    y: float = 0.5


NOON = datetime(2024, 2, 29, 12, tzinfo=UTC)
TYPED: list[tuple[Any, Any]] = [
    (None, None),
    (True, bool),
    (-(2**63), int),
    (2**64 - 1, int),
    (0.1, float),
    ("h\u00e9\0\U0001f600", str),
    (b"\xff\x00", bytes),
    ([1, 2], list[int]),
    ((1, "a"), tuple[int, str]),
    ({1, 2}, set[int]),
    ({"a": [1]}, dict[str, list[int]]),
    (Point(1, 2.5), Point),
    ([Point(1)], list[Point]),
    (Colour.RED, Colour),
    (Size.SMALL, Size),
    (NOON, datetime),
    (None, datetime | None),
    (uuid.UUID(int=5), uuid.UUID),
    (Decimal("1.50"), Decimal),
    ({1: 2}, dict[int, int]),
    ({uuid.UUID(int=5): 1}, dict[uuid.UUID, int]),
    ({Colour.RED: [Point(1)]}, dict[Colour, list[Point]]),
    ({"a": {NOON.date(): 1}}, dict[str, dict[date, int]]),
]


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize(("value", "kind"), TYPED, ids=lambda value: repr(value)[:40])
def test_value_comes_through_as_its_type(value: Any, kind: Any, name: str) -> None:
    codec = find_codec(name)
    decoded = decoder(codec, kind)(codec.encode(value))
    assert decoded == value
    assert type(decoded) is type(value)


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize(
    "value", [object(), int, lambda: 0, 1j, [object()]], ids=lambda v: type(v).__name__
)
def test_value_that_no_codec_carries_is_refused(value: Any, name: str) -> None:
    with pytest.raises(Exception, match=r"."):
        find_codec(name).encode(value)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, [math.nan], Point(1, math.nan)])
def test_json_refuses_what_is_no_number_in_json(value: Any) -> None:
    with pytest.raises(ValueError):
        find_codec("json").encode(value)


@pytest.mark.parametrize("value", [math.inf, -math.inf])
def test_msgpack_carries_infinity(value: float) -> None:
    codec = find_codec("msgpack")
    assert codec.decode(codec.encode(value)) == value


@pytest.mark.parametrize("name", CODECS)
def test_value_that_contains_itself_is_refused(name: str) -> None:
    value: list[Any] = []
    value.append(value)
    with pytest.raises((RecursionError, ValueError)):
        find_codec(name).encode(value)


@pytest.mark.fault(35)
@pytest.mark.parametrize("code", [0, 1, 5, 127, -2, -128])
def test_msgpack_extension_is_refused_with_and_without_a_type(code: int) -> None:
    codec = find_codec("msgpack")
    data = msgspec.msgpack.encode(msgspec.msgpack.Ext(code, b"os.system"))
    for decode in (codec.decode, decoder(codec, Any), decoder(codec, list[int])):
        with pytest.raises((ValueError, msgspec.ValidationError)):
            decode(data)


@pytest.mark.parametrize("name", ["pickle", "", "MSGPACK", None, 7])
def test_codec_of_an_unknown_name_is_not_found(name: Any) -> None:
    with pytest.raises(ValueError, match="msgpack, json"):
        find_codec(name)


def test_codec_is_found_as_it_is() -> None:
    codec = Codec("own", str.encode, bytes.decode)
    assert find_codec(codec) is codec
    assert repr(codec) == "<Codec own>"


@pytest.mark.parametrize("name", ["", "x" * 33, "n\u00e4me", None, b"own"])
def test_name_of_a_codec_is_short_ascii(name: Any) -> None:
    with pytest.raises(ValueError, match="codec name"):
        Codec(name, str.encode, bytes.decode)


def test_codec_of_the_user_decodes_into_types_too() -> None:
    import json

    codec = Codec("own", lambda value: json.dumps(value).encode(), json.loads)
    assert decoder(codec, Point)(b'{"x": 1, "y": 2}') == Point(1, 2.0)
    assert decoder(codec, dict[int, int])(b'{"1": 2}') == {1: 2}


def test_type_that_cannot_be_hashed_is_decoded_too() -> None:
    from typing import Annotated

    assert decoder(find_codec("json"), Annotated[int, ["unhashable"]])(b"5") == 5


def test_conversion_says_where_a_value_does_not_fit() -> None:
    with pytest.raises(ValueError, match=r"\$\[0\]\.x"):
        convert([{"x": "one"}], list[Point])
