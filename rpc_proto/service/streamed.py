"""Which annotations make a parameter or a result a stream of items."""

import inspect
import typing
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Callable,
    Generator,
    Iterable,
    Iterator,
)
from typing import Any

__all__ = ["NOT_STREAMED", "is_asynchronous", "is_generator", "item_type"]

NOT_STREAMED: Any = object()

_ASYNCHRONOUS = (AsyncIterable, AsyncIterator, AsyncGenerator)
_STREAMS = (Iterable, Iterator, Generator, *_ASYNCHRONOUS)


def item_type(hint: Any) -> tuple[Any, bool]:
    """Return the type of the items of an annotation, and whether it is an asynchronous one.

    NOT_STREAMED for an annotation of one value; a list or another collection is one.
    """
    if typing.get_origin(hint) is typing.Annotated:
        hint = typing.get_args(hint)[0]
    origin = typing.get_origin(hint) or hint
    if origin not in _STREAMS:
        return NOT_STREAMED, False
    arguments = typing.get_args(hint)
    item = arguments[0] if arguments else Any
    return (Any if isinstance(item, typing.TypeVar) else item), origin in _ASYNCHRONOUS


def is_generator(function: Callable[..., Any]) -> bool:
    """Whether a function yields."""
    return inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function)


def is_asynchronous(function: Callable[..., Any]) -> bool:
    """Whether a function is for an event loop: a coroutine function, or an asynchronous stream."""
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        return True
    target = function if hasattr(function, "__annotations__") else type(function).__call__
    hints = typing.get_type_hints(inspect.unwrap(target), include_extras=True)
    return item_type(hints.get("return"))[1]
