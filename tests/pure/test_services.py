"""Reflection and typed arguments: by position and by name, in both codecs."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from enum import Enum, IntEnum
from functools import cached_property, partial, partialmethod, wraps
from typing import (
    Annotated,
    Any,
    ClassVar,
    Generic,
    Literal,
    NamedTuple,
    NoReturn,
    Protocol,
    TypedDict,
    TypeVar,
)

import msgspec
import pytest

from rpc_fuzz.pair import Host, Pair
from rpc_fuzz.wire import CODECS, NAMED, RAW, START, open_client
from rpc_proto import InvalidArgument, expose, find_codec, quick
from rpc_proto.service.methods import Method, annotated_methods, reflect, service_name

Item = TypeVar("Item")


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Size(IntEnum):
    SMALL = 1


@dataclass
class Point:
    x: int
    y: int = 0


@dataclass
class Page(Generic[Item]):
    items: list[Item]
    next: "Page[Item] | None" = None
    tags: dict[str, str] = field(default_factory=dict)


class Range(NamedTuple):
    low: int
    high: int


class Options(TypedDict, total=False):
    deep: bool


class Record(msgspec.Struct):
    name: str


NOON = datetime(2024, 2, 29, 12, tzinfo=UTC)


class Kinds:
    """One method for each kind of parameter."""

    def nothing(self) -> str:
        return "nothing"

    def plain(self, a: int, b: str) -> list:
        return [a, b]

    def default(self, a: int, b: str = "b", *, c: bool = True) -> list:
        return [a, b, c]

    def rest(self, first: int, *rest: Point) -> int:
        assert all(type(point) is Point for point in rest)
        return first + sum(point.x for point in rest)

    def keywords(self, a: int = 0, **named: Colour) -> list:
        assert all(type(colour) is Colour for colour in named.values())
        return [a, sorted(named)]

    def positional(self, a: int, /, **named: int) -> list:
        return [a, named]

    def keyword_only(self, *, a: int) -> int:
        return a

    def untyped(self, a, b=None):
        return [a, b]

    def point(self, point: Point) -> str:
        return f"{type(point).__name__} {point.x} {point.y}"

    def maybe(self, point: Point | None = None, text: str | None = "t") -> list:
        return [point is None, text]

    def pages(self, pages: list[Page[int]]) -> int:
        assert all(type(page) is Page for page in pages)
        return sum(sum(page.items) for page in pages)

    def generic(self, page: Page[Item]) -> list:
        return page.items

    def union(self, value: int | str | list[int]) -> str:
        return type(value).__name__

    def colour(self, colour: Colour, size: Size = Size.SMALL) -> str:
        return f"{colour.name} {size.name}"

    def literal(self, mode: Literal["r", "w"]) -> str:
        return mode

    def times(self, at: datetime, day: date, after: timedelta) -> str:
        assert type(at) is datetime
        return (at + after).isoformat() + " " + day.isoformat()

    def data(self, data: bytes, more: bytes = b"") -> bytes:
        assert type(data) is bytes
        return data + more

    def containers(
        self, a: set[int], b: frozenset[str], c: tuple[int, ...], d: dict[int, Point]
    ) -> list:
        return [sorted(a), sorted(b), list(c), {str(k): v.x for k, v in d.items()}]

    def other(self, a: Range, b: Options, c: Record) -> list:
        return [a.high, b.get("deep"), c.name]

    def small(self, value: Annotated[int, msgspec.Meta(gt=0, lt=10)]) -> int:
        return value

    @staticmethod
    def static(a: int) -> int:
        return a

    @classmethod
    def of_class(cls, a: int) -> str:
        return f"{cls.__name__} {a}"


GOOD: list[tuple[str, tuple, dict, Any]] = [
    ("nothing", (), {}, "nothing"),
    ("plain", (1, "x"), {}, [1, "x"]),
    ("plain", (1,), {"b": "x"}, [1, "x"]),
    ("plain", (), {"b": "x", "a": 1}, [1, "x"]),
    ("default", (1,), {}, [1, "b", True]),
    ("default", (1, "x"), {"c": False}, [1, "x", False]),
    ("default", (), {"a": 1, "c": False}, [1, "b", False]),
    ("rest", (1,), {}, 1),
    ("rest", (1, Point(2), {"x": 3, "y": 4}), {}, 6),
    ("keywords", (), {}, [0, []]),
    ("keywords", (5,), {"one": Colour.RED, "two": "blue"}, [5, ["one", "two"]]),
    ("positional", (1,), {"a": 2}, [1, {"a": 2}]),
    ("keyword_only", (), {"a": 7}, 7),
    ("untyped", (1,), {"b": [None, {"x": 1.5}]}, [1, [None, {"x": 1.5}]]),
    ("point", (Point(1, 2),), {}, "Point 1 2"),
    ("point", ({"x": 1},), {}, "Point 1 0"),
    ("point", (), {"point": Point(3)}, "Point 3 0"),
    ("maybe", (), {}, [True, "t"]),
    ("maybe", (None, None), {}, [True, None]),
    ("maybe", (Point(1),), {"text": "x"}, [False, "x"]),
    ("pages", ([Page([1, 2], Page([3])), {"items": [4]}],), {}, 7),
    ("generic", (Page(["a", 1]),), {}, ["a", 1]),
    ("union", (5,), {}, "int"),
    ("union", ("5",), {}, "str"),
    ("union", ([5],), {}, "list"),
    ("colour", (Colour.RED,), {}, "RED SMALL"),
    ("colour", ("blue", 1), {}, "BLUE SMALL"),
    ("literal", ("w",), {}, "w"),
    (
        "times",
        (NOON, date(2024, 1, 1), timedelta(hours=1)),
        {},
        "2024-02-29T13:00:00+00:00 2024-01-01",
    ),
    ("data", (b"\xff\x00",), {}, b"\xff\x00"),
    ("data", (b"\xff", b"\x00"), {}, b"\xff\x00"),
    ("data", (), {"data": b"\xff"}, b"\xff"),
    (
        "containers",
        ([2, 1, 2], ["a"], [1, 2], {1: Point(5)}),
        {},
        [[1, 2], ["a"], [1, 2], {"1": 5}],
    ),
    ("other", (Range(1, 2), {"deep": True}, {"name": "n"}), {}, [2, True, "n"]),
    ("small", (9,), {}, 9),
    ("static", (3,), {}, 3),
    ("of_class", (3,), {}, "Kinds 3"),
]


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize(("method", "args", "kwargs", "result"), GOOD)
def test_arguments_arrive_as_the_annotated_types(
    method: str, args: tuple, kwargs: dict, result: Any, codec: str
) -> None:
    pair = Pair(codec=codec).open()
    Host(pair, Kinds())
    assert pair.outcome(pair.call(f"Kinds.{method}", *args, kwargs=kwargs)) == result


BAD: list[tuple[str, tuple, dict, str]] = [
    ("nothing", (1,), {}, "takes 0 arguments, got 1"),
    ("plain", (), {}, "missing required arguments 'a', 'b'"),
    ("plain", (1,), {}, "takes 2 arguments (a, b), got 1"),
    ("plain", (1, "x", 3), {}, "takes 2 arguments (a, b), got 3"),
    ("plain", ("1", "x"), {}, "`a`"),
    ("plain", (1.5, "x"), {}, "`a`"),
    ("plain", (True, "x"), {}, "`a`"),
    ("plain", (1, 2), {}, "`b`"),
    ("plain", (None, "x"), {}, "`a`"),
    ("plain", (1,), {"b": 2}, "`b`"),
    ("plain", (1,), {"a": 1, "b": "x"}, "two values for a"),
    ("plain", (1,), {"c": 1}, "no parameter 'c'"),
    ("plain", (), {"a": 1}, "missing required argument 'b'"),
    ("default", (1, "x", True), {}, "takes 1 to 2 arguments (a, b), got 3"),
    ("rest", (), {}, "missing required argument 'first'"),
    ("rest", (), {"first": "x"}, "`first`"),
    ("rest", (1, {"x": "no"}), {}, "rest[0]"),
    ("keywords", (), {"one": "green"}, "`one`"),
    ("positional", (), {"a": 1}, "missing required argument 'a'"),
    ("keyword_only", (7,), {}, "takes 0 arguments"),
    ("keyword_only", (), {}, "missing required argument 'a'"),
    ("point", ({},), {}, "`point"),
    ("point", ({"x": "one"},), {}, "`point.x`"),
    ("point", (), {"point": {"x": "one"}}, "`point.x`"),
    ("point", ([1, 2],), {}, "`point`"),
    ("pages", ([{"items": [1]}, {"items": [1, "2"]}],), {}, "`pages[1].items[1]`"),
    ("union", (1.5,), {}, "`value`"),
    ("colour", ("green",), {}, "`colour`"),
    ("literal", ("x",), {}, "`mode`"),
    ("times", ("yesterday", "2024-01-01", "PT1H"), {}, "`at`"),
    ("small", (10,), {}, "`value`"),
]


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize(("method", "args", "kwargs", "says"), BAD)
def test_mismatch_is_invalid_argument_that_names_the_value(
    method: str, args: tuple, kwargs: dict, says: str, codec: str
) -> None:
    pair = Pair(codec=codec).open()
    Host(pair, Kinds())
    error = pair.outcome(pair.call(f"Kinds.{method}", *args, kwargs=kwargs))
    assert type(error) is InvalidArgument
    assert f"Kinds.{method}" in error.message
    assert says in error.message
    assert error.maybe_executed is False


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize(
    ("method", "fits"),
    [("data", True), ("untyped", True), ("plain", False), ("point", False), ("nothing", False)],
)
def test_raw_argument_is_converted_and_checked_like_others(
    method: str, fits: bool, codec: str
) -> None:
    made = reflect(Kinds())[f"Kinds.{method}"]
    if fits:
        assert made.decode(find_codec(codec), RAW, b"\xff") == ((b"\xff",), {})
    else:
        with pytest.raises(InvalidArgument):
            made.decode(find_codec(codec), RAW, b"\xff")


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("body", [[], [[]], [[], {}, 1], [{}, []], [1, {}], {"a": 1}, None])
def test_body_of_named_arguments_is_a_list_and_a_map(body: Any, codec: str) -> None:
    made = reflect(Kinds())["Kinds.untyped"]
    with pytest.raises(InvalidArgument):
        made.decode(find_codec(codec), NAMED, find_codec(codec).encode(body))


# Reflection


class Mixed:
    """Some of this is public."""

    attribute = 5

    def public(self) -> int:
        """Return one."""
        return 1

    def _private(self) -> None: ...

    def __dunder__(self) -> None: ...

    @property
    def risky(self) -> int:
        raise AssertionError("a property was touched")

    class Inner: ...


class Marked:
    @expose
    def open(self) -> int:
        return 1

    def closed(self) -> int:
        return 2


class Child(Marked):
    @expose
    def more(self) -> int:
        return 3


class Timed:
    async def later(self) -> int:
        return 1

    @quick
    def now(self) -> int:
        return 2

    def slow(self) -> int:
        return 3


def test_public_methods_are_offered_and_nothing_else() -> None:
    assert list(reflect(Mixed())) == ["Mixed.public"]


def test_marked_methods_are_the_only_ones_where_any_is_marked() -> None:
    assert list(reflect(Marked())) == ["Marked.open"]
    assert list(reflect(Child())) == ["Child.more", "Child.open"]


def test_kind_of_each_method_is_known() -> None:
    methods = reflect(Timed(), "t")
    assert methods["t.later"].is_async
    assert not methods["t.slow"].is_async
    assert [name for name, method in methods.items() if method.is_quick] == ["t.now"]


def test_method_shows_its_signature_and_its_text() -> None:
    method = reflect(Mixed(), "a.b")["a.b.public"]
    assert method.signature == "() -> int"
    assert method.doc == "Return one."
    assert repr(method) == "<Method a.b.public() -> int>"


@pytest.mark.parametrize(
    "name", ["", "1a", "a b", "a.", ".a", "a..b", "a\n", "\u00e4", "x" * 201, 5]
)
def test_name_of_a_service_is_made_of_dotted_identifiers(name: Any) -> None:
    with pytest.raises(ValueError, match="dotted identifiers"):
        reflect(Mixed(), name)


@pytest.mark.parametrize("service", [Mixed, object()], ids=["class", "bare object"])
def test_what_has_no_methods_cannot_be_registered(service: Any) -> None:
    with pytest.raises(TypeError):
        reflect(service)


class BadType:
    def method(self, a: Point | Page[int]) -> None: ...


class BadName:
    def method(self, a: "Missing") -> None: ...  # type: ignore[name-defined]  # noqa: F821


@pytest.mark.parametrize("kind", [BadType, BadName])
def test_signature_that_cannot_be_served_is_refused_at_once_by_name(kind: type) -> None:
    with pytest.raises(TypeError, match=f"{kind.__name__}.method"):
        reflect(kind())


def test_function_of_any_kind_can_be_a_method() -> None:
    def add(a: int, b: int = 5) -> int:
        return a + b

    codec = find_codec("json")
    assert Method("m", partial(add, b=7)).decode(codec, 0, b"[1]")[0] == (1,)
    assert Method("m", lambda a: a).decode(codec, 0, b'["x"]') == (("x",), {})


def test_annotated_methods_are_those_of_a_class_with_their_results() -> None:
    declared = {method.name: method.returns for method in annotated_methods(Kinds)}
    assert declared["data"] is bytes
    assert declared["untyped"] is None
    with pytest.raises(TypeError):
        annotated_methods("Kinds")


def test_name_of_a_service_is_that_of_its_class() -> None:
    assert service_name(Kinds) == service_name(Kinds()) == "Kinds"


class _Opaque:
    """A class that no codec can make."""


@dataclass
class _Holder:
    inner: "list[_Opaque | None]"
    again: "_Holder | None" = None


@pytest.mark.parametrize("kind", [_Opaque, Callable[[], None], dict[str, _Opaque], _Holder])
def test_parameter_of_a_type_that_cannot_be_decoded_is_refused_at_registration(kind: Any) -> None:
    class Service:
        def method(self, value) -> None: ...

    Service.method.__annotations__["value"] = kind
    with pytest.raises(TypeError, match=r"Service\.method: parameter value: no value can be"):
        reflect(Service())


# Marks


class Shape:
    """No record itself, but its subclasses are."""


@dataclass
class Circle(Shape):
    radius: float


class Sized(Protocol):
    size: int


class Validated:
    """As pydantic's dataclasses are, which msgspec makes without their defaults and checks."""

    __pydantic_fields__: ClassVar[dict] = {}


Validated = dataclass(Validated)  # type: ignore[misc]


def returning(kind: Any) -> Any:
    def method() -> None: ...

    method.__annotations__["return"] = kind
    return method


@pytest.mark.fault(88)
@pytest.mark.parametrize(
    "kind",
    [
        _Opaque,
        list[_Opaque],
        _Opaque | None,
        Point | Record | _Opaque,
        _Holder,
        Exception,
    ],
)
def test_result_of_a_type_that_cannot_be_encoded_is_refused_at_registration(kind: Any) -> None:
    with pytest.raises(TypeError, match=r"S\.m: result: no value of .* can be encoded"):
        Method("S.m", returning(kind))


@pytest.mark.fault(88)
@pytest.mark.parametrize(
    "kind",
    [
        object,
        Any,
        Item,
        Shape,
        Sized,
        Validated,
        Point | Record,
        list[object],
        NoReturn,
        OrderedDict,
    ],
)
def test_result_of_a_type_that_may_stand_for_others_is_served(kind: Any) -> None:
    assert Method("S.m", returning(kind)).returns == kind


@pytest.mark.fault(88)
def test_type_that_would_be_made_without_its_checks_is_no_argument() -> None:
    def method(value: Any) -> None: ...

    method.__annotations__["value"] = list[Validated]
    with pytest.raises(TypeError, match=r"parameter value: no value can be decoded as .*Validated"):
        Method("S.m", method)


@pytest.mark.fault(87)
def test_record_is_no_key_of_a_map() -> None:
    def method(value: Any) -> None: ...

    method.__annotations__["value"] = dict[tuple[Point, int], int]
    with pytest.raises(TypeError, match="a record cannot be the key of a map"):
        Method("S.m", method)


@pytest.mark.fault(88)
@pytest.mark.parametrize("kind", [_Opaque, Validated, list[_Holder], int | Point | Record])
def test_result_that_cannot_be_decoded_is_refused_before_the_call(kind: Any) -> None:
    client = open_client()
    with pytest.raises(TypeError):
        client.start_call(START, "S.m", returns=kind)
    assert client.calls_in_flight == 0


def logged(function: Any) -> Any:
    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return run


def careless(function: Any) -> Any:
    def run(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return run


class Wrapped:
    @expose
    @staticmethod
    def above_static() -> str:
        return "static"

    @staticmethod
    @expose
    def below_static() -> str:
        return "static"

    @expose
    @classmethod
    def above_class(cls) -> str:
        return cls.__name__

    @expose
    @logged
    def above_wraps(self) -> str:
        return "wraps"

    @logged
    @expose
    def below_wraps(self) -> str:
        return "wraps"

    def general(self, value: int) -> int:
        return value

    special = expose(partialmethod(general, 7))  # type: ignore[type-var]

    def secret(self) -> str:
        return "secret"


@pytest.mark.fault(66)
def test_mark_is_found_through_wrappers_and_nothing_else_is_offered() -> None:
    offered = {name.partition(".")[2] for name in reflect(Wrapped(), "m")}
    static = {"above_static", "below_static", "above_class", "above_wraps", "below_wraps"}
    assert offered == static | {"special"}


@pytest.mark.fault(66)
def test_marked_static_and_partial_methods_can_be_called() -> None:
    methods = reflect(Wrapped(), "m")
    assert methods["m.above_static"].function() == "static"
    assert methods["m.above_class"].function() == "Wrapped"
    assert methods["m.special"].function() == 7


@pytest.mark.fault(66)
def test_override_of_a_marked_method_is_marked() -> None:
    class Base:
        @expose
        @quick
        def get(self) -> str:
            return "base"

    class Derived(Base):
        def get(self) -> str:
            return "derived"

        def secret(self) -> str:
            return "secret"

    methods = reflect(Derived(), "d")
    assert list(methods) == ["d.get"]
    assert methods["d.get"].is_quick


@pytest.mark.fault(66)
@pytest.mark.parametrize("mark", [expose, quick])
def test_decorator_that_hides_a_mark_is_refused(mark: Any) -> None:
    class Hidden:
        @careless
        @mark
        def get(self) -> str:
            return "hidden"

    with pytest.raises(TypeError, match=r"Hidden.get: a decorator hides the mark"):
        reflect(Hidden())


@pytest.mark.fault(67)
def test_quick_is_found_through_wrappers() -> None:
    class Quick:
        @quick
        @staticmethod
        def static() -> None: ...

        @quick
        @classmethod
        def of_class(cls) -> None: ...

        @logged
        @quick
        def wrapped(self) -> None: ...

        def slow(self) -> None: ...

    methods = reflect(Quick(), "q")
    assert {name for name, method in methods.items() if not method.is_quick} == {"q.slow"}


@pytest.mark.fault(68)
def test_properties_are_neither_evaluated_nor_offered() -> None:
    class Lazy:
        @cached_property
        def callback(self) -> Any:
            raise AssertionError("evaluated")

        @property
        def value(self) -> Any:
            raise AssertionError("evaluated")

        def get(self) -> str:
            return "got"

    service = Lazy()
    assert list(reflect(service, "l")) == ["l.get"]
    assert "callback" not in vars(service)


@pytest.mark.fault(68)
def test_marked_property_is_refused() -> None:
    class Lazy:
        @expose
        @cached_property
        def callback(self) -> Any:
            raise AssertionError("evaluated")

    with pytest.raises(TypeError, match=r"Lazy.callback is marked but is not a method"):
        reflect(Lazy())
    with pytest.raises(TypeError, match="only a function can be marked"):
        expose(property(lambda self: None))  # type: ignore[type-var]
