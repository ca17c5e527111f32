"""Unknown fields of records: refused in arguments, wherever they are; passed over in results."""

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from enum import Enum
from typing import Annotated, Any, Generic, Literal, NamedTuple, TypedDict, TypeVar
from uuid import UUID

import msgspec
import pytest

from rpc_fuzz.pair import only
from rpc_fuzz.wire import NAMED, START, Wire, open_client
from rpc_proto import CallCompleted, Codec, InvalidArgument, find_codec
from rpc_proto.service.methods import Method
from support.driving import caused

Item = TypeVar("Item")


class Colour(Enum):
    RED = "red"


@dataclass(frozen=True)
class Point:
    x: int
    y: int = 0
    norm: int = field(init=False, default=0)


@dataclass
class Tree(Generic[Item]):
    items: list[Item]
    left: "Tree[Item] | None" = None
    tags: dict[str, Any] = field(default_factory=dict)


class Options(TypedDict, total=False):
    point: Point


Dashed = TypedDict("Dashed", {"with-dash": Point})


class Pair(NamedTuple):
    first: Point
    second: Point | None = None


class Leaf(msgspec.Struct, tag="leaf", rename={"point": "p"}):
    point: Point


class Row(msgspec.Struct, tag="row"):
    number: int


class Column(msgspec.Struct, array_like=True):
    point: Point


BAD = {"x": 1, "z": 2}
CASES: list[tuple[Any, Any, Any, str]] = [
    (Point, {"x": 1, "y": 2, "norm": 3}, BAD, "Point has no field 'z' - at `value`"),
    (list[Point], [{"x": 1}], [{"x": 1}, BAD], "Point has no field 'z' - at `value[1]`"),
    (set[Point], [{"x": 1}], [BAD], "Point has no field 'z'"),
    (tuple[int, Point], [1, {"x": 1}], [1, BAD], "Point has no field 'z' - at `value[1]`"),
    (tuple[Point, ...], [{"x": 1}], [BAD], "Point has no field 'z' - at `value[0]`"),
    (dict[str, Point], {"a": {"x": 1}}, {"a": BAD}, "Point has no field 'z' - at `value[...]`"),
    (dict[int, Point], {1: {"x": 1}}, {1: BAD}, "Point has no field 'z'"),
    (dict[UUID, Point], {str(UUID(int=1)): {"x": 1}}, {str(UUID(int=1)): BAD}, "Point has no"),
    (dict[Any, Point], {"a": {"x": 1}}, {"a": BAD}, "Point has no field 'z'"),
    (dict[Literal["a"] | int, Point], {"a": {"x": 1}}, {"a": BAD}, "Point has no field 'z'"),
    (Point | None, None, BAD, "Point has no field 'z' - at `value`"),
    (Point | int | str | list[int], [1], BAD, "Point has no field 'z' - at `value`"),
    (int | list[Point] | dict[str, int], {"a": 1}, [BAD], "Point has no field 'z' - at `value[0]`"),
    (tuple[int, str] | Point, [1, "a"], BAD, "Point has no field 'z' - at `value`"),
    (Colour | int | Point, "red", BAD, "Point has no field 'z' - at `value`"),
    (Decimal | Point | bool, "1.5", BAD, "Point has no field 'z' - at `value`"),
    (timedelta | list[Point], "PT1S", [BAD], "Point has no field 'z' - at `value[0]`"),
    (datetime | Point, "2024-02-29T12:00:00", BAD, "Point has no field 'z' - at `value`"),
    (
        Annotated[Annotated[Point, msgspec.Meta(title="a point")] | None, msgspec.Meta(title="t")],
        {"x": 1},
        BAD,
        "Point has no field 'z' - at `value`",
    ),
    (
        Tree[Point],
        {"items": [], "left": {"items": [{"x": 1}], "tags": {"any": {"z": 1}}}},
        {"items": [], "left": {"items": [], "left": {"items": [BAD]}}},
        "Point has no field 'z' - at `value.left.left.items[0]`",
    ),
    (
        Tree[int],
        {"items": [1], "left": None},
        {"items": [1], "left": {"items": [], "right": 1}},
        "Tree has no field 'right' - at `value.left`",
    ),
    (Options, {"point": {"x": 1}}, {"pt": 1}, "Options has no field 'pt' - at `value`"),
    (Options, {}, {"point": BAD}, "Point has no field 'z' - at `value.point`"),
    (Dashed, {"with-dash": {"x": 1}}, {"with-dash": BAD}, "Point has no field 'z'"),
    (Pair, [{"x": 1}], [{"x": 1}, BAD], "Point has no field 'z' - at `value[1]`"),
    (Pair | int, 5, [BAD], "Point has no field 'z' - at `value[0]`"),
    (Leaf, {"type": "leaf", "p": {"x": 1}, "more": 1}, {"type": "leaf", "p": BAD}, "Point has no"),
    (
        list[Leaf | Row | None],
        [{"type": "row", "number": 1}, None],
        [{"type": "leaf", "p": BAD}],
        "Point has no field 'z' - at `value[0].p`",
    ),
    (Column, [{"x": 1}], [BAD], "Point has no field 'z' - at `value[0]`"),
]


def method(kind: Any) -> Method:
    def take(value: Any, more: int = 0) -> None: ...

    take.__annotations__ = {"value": kind}
    return Method("S.take", take)


def exact(kind: Any) -> Method:
    def take(value: Any) -> None: ...

    take.__annotations__ = {"value": kind}
    return Method("S.take", take)


OWN = Codec("own", msgspec.msgpack.encode, msgspec.msgpack.decode)


@pytest.mark.fault(87)
@pytest.mark.parametrize("codec", [find_codec("msgpack"), find_codec("json"), OWN], ids=repr)
@pytest.mark.parametrize(("kind", "good", "bad", "text"), CASES, ids=lambda case: str(case)[:30])
def test_unknown_field_of_an_argument_is_named(
    kind: Any, good: Any, bad: Any, text: str, codec: Codec
) -> None:
    ways = (
        (exact(kind), 0, lambda value: [value]),
        (method(kind), 0, lambda value: [value]),
        (method(kind), NAMED, lambda value: [[], {"value": value}]),
    )
    for target, flags, wrap in ways:
        args, kwargs = target.decode(codec, flags, codec.encode(wrap(good)))
        assert [*args, *kwargs.values()] == [msgspec.convert(good, kind, str_keys=True)]
        with pytest.raises(InvalidArgument) as caught:
            target.decode(codec, flags, codec.encode(wrap(bad)))
        assert caught.value.message.startswith(f"S.take: {text}")
        assert caught.value.maybe_executed is False


@pytest.mark.fault(87)
def test_unknown_field_of_the_rest_is_named() -> None:
    def rest(first: int, *points: Point, **named: Point) -> None: ...

    codec = find_codec("json")
    for flags, body, where in (
        (0, b'[1, {"x": 1}, {"x": 1, "z": 2}]', "points[1]"),
        (NAMED, b'[[1], {"a": {"x": 1, "z": 2}}]', "a"),
    ):
        with pytest.raises(InvalidArgument, match="Point has no field 'z'") as caught:
            Method("S.rest", rest).decode(codec, flags, body)
        assert f"`{where}`" in caught.value.message


@pytest.mark.fault(87)
def test_unknown_field_of_a_result_is_passed_over() -> None:
    client = open_client()
    call = client.start_call(START, "S.m", returns=Point)
    events = caused(client.receive_data, START, Wire().response(call.id, {"x": 1, "newer": 2}))
    assert only(events, CallCompleted).value == Point(1)


def test_name_of_an_unknown_field_is_shown_as_far_as_it_is_short() -> None:
    for name in ("z" * 10_000, "` - at `$[5]", "z\n`", ""):
        with pytest.raises(InvalidArgument) as caught:
            exact(Point).decode(OWN, 0, OWN.encode([{"x": 1, name: 2}]))
        assert len(caught.value.message) < 200
        assert "has no field" in caught.value.message
