"""Methods with streams: which annotations make one, and what a call of one needs."""

from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Generator,
    Iterable,
    Iterator,
    Sequence,
)
from dataclasses import dataclass
from typing import Annotated, Any

import pytest

from rpc_fuzz.pair import Pair, only, outcome
from rpc_proto import CallFailed, InvalidArgument
from rpc_proto.service.dispatch import Dispatcher
from rpc_proto.service.methods import Method, annotated_methods, expose, quick, reflect
from rpc_proto.wire.codecs import find_codec
from support.protocol_page import page


@dataclass
class Line:
    text: str


class Logs:
    async def tail(self, name: str) -> AsyncIterator[Line]:
        yield Line(name)

    async def upload(self, chunks: AsyncIterable[bytes]) -> int:
        return 0

    async def chat(self, said: AsyncIterable[Line], room: str = "") -> AsyncGenerator[Line, None]:
        async for line in said:
            yield line

    def lines(self) -> Iterator[Line]:
        yield Line("")

    def untyped(self):
        yield 1

    def total(self, numbers: Iterable[int], start: int = 0) -> int:
        return sum(numbers, start)

    def pairs(self, *, numbers: Annotated[Iterator[int], "any"]) -> Generator[int, None, None]:
        yield from numbers

    def plain(self, numbers: Sequence[int]) -> list[int]:
        return list(numbers)


METHODS = reflect(Logs())


@pytest.mark.parametrize(
    ("name", "kind", "takes", "returns", "is_async"),
    [
        ("tail", "server_stream", None, Line, True),
        ("upload", "client_stream", bytes, int, True),
        ("chat", "bidirectional", Line, Line, True),
        ("lines", "server_stream", None, Line, False),
        ("untyped", "server_stream", None, None, False),
        ("total", "client_stream", int, int, False),
        ("pairs", "bidirectional", int, int, False),
        ("plain", "unary", None, list[int], False),
    ],
)
def test_annotations_tell_what_a_method_is(
    name: str, kind: str, takes: Any, returns: Any, is_async: bool
) -> None:
    method = METHODS[f"Logs.{name}"]
    assert method.kind == kind
    assert (method.takes.type if method.takes else None) == takes
    assert method.returns == returns
    assert method.is_async is is_async


def test_items_are_no_argument_of_the_wire() -> None:
    codec = find_codec("json")
    total = METHODS["Logs.total"]
    assert total.decode(codec, 0, b"[]") == ((), {})
    assert total.decode(codec, 0, b"[7]") == ((7,), {})
    with pytest.raises(InvalidArgument, match=r"takes 0 to 1 argument \(start\), got 2"):
        total.decode(codec, 0, b"[1,2]")


@pytest.mark.parametrize(
    ("function", "args", "kwargs", "expected"),
    [
        (lambda a, items, b: None, (1, 2), {}, ((1, "items", 2), {})),
        (lambda a, items, b: None, (1,), {"b": 2}, ((1, "items"), {"b": 2})),
        (lambda a, items: None, (), {"a": 1}, ((), {"a": 1, "items": "items"})),
        (lambda *, items: None, (), {}, ((), {"items": "items"})),
    ],
)
def test_items_come_in_their_place(function: Any, args: Any, kwargs: Any, expected: Any) -> None:
    function.__annotations__ = {"items": Iterable[int]}
    assert Method("S.m", function).with_stream(args, kwargs, "items") == expected


def two(one: Iterable[int], other: Iterable[int]) -> None: ...
def several(*items: Iterable[int]) -> None: ...
async def mixed(items: Iterable[int]) -> None: ...
def mixed_too(items: AsyncIterable[int]) -> None: ...
def opaque(items: Iterable[object]) -> Iterator[Exception]: ...
def hidden(a: int = 1, items: Iterable[int] = (), /) -> None: ...


@pytest.mark.parametrize(
    ("function", "why"),
    [
        (two, "only one parameter can be a stream"),
        (several, "only one parameter can be a stream"),
        (mixed, "its parameter items must be an AsyncIterable"),
        (mixed_too, "its parameter items must be an Iterable"),
        (opaque, "items of items: no value can be decoded"),
        (hidden, "stands behind optional ones"),
    ],
)
def test_stream_that_cannot_be_served_is_refused_at_registration(function: Any, why: str) -> None:
    with pytest.raises(TypeError, match=why):
        Method("S.m", function)


def test_stream_is_not_quick() -> None:
    class Service:
        @quick
        @expose
        def count(self) -> Iterator[int]:
            yield 1

    with pytest.raises(TypeError, match=r"Service\.count has a stream, .* not quick"):
        reflect(Service())


def test_class_declares_its_streams_for_proxies() -> None:
    declared = {method.name: method for method in annotated_methods(Logs)}
    assert declared["chat"].takes is not None
    assert declared["chat"].takes.place == 0
    assert declared["pairs"].returns is int
    assert declared["plain"].streams == 0


@page(
    "The flags are what the client offers.",
    "A method that takes items needs CLIENT_STREAM, and one that sends items SERVER_STREAM; "
    "without it the call is answered with `invalid_argument` and NOT_EXECUTED.",
)
@pytest.mark.parametrize(
    ("method", "options", "why"),
    [
        ("Logs.lines", {}, "Logs.lines sends items: it has to be called as a stream"),
        ("Logs.lines", {"client_stream": True}, "Logs.lines sends items"),
        ("Logs.total", {}, "Logs.total takes items: it has to be called as a stream"),
        ("Logs.total", {"server_stream": True}, "Logs.total takes items"),
    ],
)
def test_stream_called_otherwise_is_refused(method: str, options: Any, why: str) -> None:
    pair = Pair().open()
    dispatcher = Dispatcher(clock=lambda: pair.now)
    dispatcher.register(Logs())
    call = pair.client.start_call(pair.now, method, **options)
    pair.pump()
    assert dispatcher.receive(pair.server_events) == []
    pair.pump()
    failed = only(pair.client_events, CallFailed)
    assert failed.call is call
    assert isinstance(failed.error, InvalidArgument)
    assert why in failed.error.message
    assert not failed.error.maybe_executed


def test_unary_method_may_be_called_as_a_stream() -> None:
    pair = Pair().open()
    dispatcher = Dispatcher(clock=lambda: pair.now)
    dispatcher.register(Logs())
    call = pair.client.start_call(
        pair.now, "Logs.plain", ([1],), client_stream=True, server_stream=True
    )
    pair.pump()
    dispatcher.serve(pair.server_events)
    pair.pump()
    assert outcome(pair.ends(call)) == [1]
