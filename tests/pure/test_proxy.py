"""Services that look like objects."""

import copy
from collections.abc import AsyncIterable, AsyncIterator
from typing import Any

import pytest

from rpc_proto.service.stub import ServiceProxy, service_proxy


class ArithApi:
    def add(self, a: int, b: int) -> int: ...

    async def later(self) -> list[int]: ...

    def untyped(self, a): ...

    def _private(self) -> None: ...

    async def lines(self, name: str) -> AsyncIterator[int]:
        yield 1

    async def store(self, name: str, chunks: AsyncIterable[bytes]) -> int: ...


def invoke(kind: str, method: str, args: tuple, kwargs: dict, returns: Any) -> Any:
    return method, args, kwargs, returns, kind


def test_attribute_of_a_proxy_calls_the_method() -> None:
    arith = service_proxy(invoke, "deep.Arith")
    assert arith.add(1, b=2) == ("deep.Arith.add", (1,), {"b": 2}, None, "call")


def test_typed_proxy_says_what_the_results_become() -> None:
    arith = service_proxy(invoke, ArithApi)
    assert arith.add(1, 2) == ("ArithApi.add", (1, 2), {}, int, "call")
    assert arith.later() == ("ArithApi.later", (), {}, list[int], "call")
    assert arith.untyped(1) == ("ArithApi.untyped", (1,), {}, None, "call")


def test_typed_proxy_knows_streams() -> None:
    arith = service_proxy(invoke, ArithApi)
    assert arith.lines("a") == ("ArithApi.lines", ("a",), {}, int, "stream")
    *_, (name, chunks), _, _, kind = arith.store("a", [b"1", b"2"])
    assert (name, list(chunks), kind) == ("a", [b"1", b"2"], "call")
    *_, named, _, _ = arith.store("a", chunks=[b"3"])
    assert list(named["chunks"]) == [b"3"]


@pytest.mark.parametrize("name", ["missing", "_private", "__len__"])
def test_typed_proxy_has_no_other_methods(name: str) -> None:
    with pytest.raises(AttributeError):
        getattr(service_proxy(invoke, ArithApi), name)


def test_proxy_is_not_taken_for_something_else() -> None:
    arith = service_proxy(invoke, "Arith")
    with pytest.raises(AttributeError):
        arith.__deepcopy__  # noqa: B018
    assert repr(arith) == "<ServiceProxy Arith>"
    assert type(copy.copy(arith)) is ServiceProxy


@pytest.mark.parametrize("service", [5, None, ArithApi()], ids=["number", "None", "object"])
def test_service_is_named_by_a_string_or_a_class(service: Any) -> None:
    with pytest.raises(TypeError):
        service_proxy(invoke, service)
