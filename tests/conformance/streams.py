"""What the servers of the suite offer as streams, for each kind of function."""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from contextvars import ContextVar
from typing import Any

from conformance.model import Item
from conformance.services import Counters
from rpc_proto import NotFound, current_call

__all__ = ["AsyncStreams", "PlainStreams"]

seen: ContextVar[int] = ContextVar("seen", default=0)


class PlainStreams:
    """Streams of plain functions: `def`, Iterator, Iterable."""

    def __init__(self, counters: Counters, gate: Any, connect: Callable[[str], Any]) -> None:
        self._counters = counters
        self._gate = gate
        self._connect = connect

    def count(self, n: int, key: str = "") -> Iterator[int]:
        try:
            yield from range(n)
        finally:
            self._counters.add("closed", key)

    def zeros(self, n: int, size: int, key: str = "") -> Iterator[bytes]:
        for _ in range(n):
            self._counters.add("made", key)
            yield bytes(size)

    def fails(self, n: int) -> Iterator[int]:
        yield from range(n)
        raise NotFound("no more")

    def waits(self, key: str) -> Iterator[int]:
        """Give one item, and then wait."""
        try:
            yield 1
            self._gate.wait(key)
            yield 2
        finally:
            self._counters.add("closed", key)

    def stubborn(self, key: str) -> Iterator[int]:
        """Go on in spite of being closed, until the gate is open."""
        n = 0
        try:
            while True:
                n += 1
                yield n
        except GeneratorExit:
            self._counters.add("closing", key)
            self._gate.stubborn(key)
            yield -1

    def total(self, numbers: Iterable[int]) -> int:
        return sum(numbers)

    def sizes(self, name: str, chunks: Iterable[bytes], key: str = "") -> list[Any]:
        try:
            return [name, [len(chunk) for chunk in chunks]]
        except BaseException as error:
            self._counters.add(type(error).__name__, key)
            raise

    def first(self, values: Iterable[int], n: int = 1) -> list[int]:
        """Answer before the caller has ended its items."""
        return [value for value, _ in zip(values, range(n), strict=False)]

    def ignores(self, values: Iterable[Any], key: str) -> str:
        """Take nothing."""
        self._gate.wait(key)
        return "done"

    def echo(self, values: Iterable[Any]) -> Iterator[Any]:
        yield from values

    def items(self, items: Iterable[Item]) -> Iterator[Item]:
        for item in items:
            item.count += 1
            yield item

    def bad(self, n: int) -> Iterator[Any]:
        yield from range(n)
        yield object()

    def context(self, n: int) -> Iterator[list[Any]]:
        """Tell what holds from item to item."""
        for _ in range(n):
            call = current_call()
            seen.set(seen.get() + 1)
            call.set_reply_metadata({"seen": str(seen.get())})
            yield [seen.get(), dict(call.metadata)]

    def forward(self, address: str, n: int, key: str) -> Iterator[int]:
        with self._connect(address) as client:
            yield from client.stream("Streams.count", n, key)


class AsyncStreams:
    """The same of coroutine functions."""

    def __init__(self, counters: Counters, gate: Any, connect: Callable[[str], Any]) -> None:
        self._counters = counters
        self._gate = gate
        self._connect = connect

    async def count(self, n: int, key: str = "") -> AsyncIterator[int]:
        try:
            for i in range(n):
                yield i
        finally:
            self._counters.add("closed", key)

    async def zeros(self, n: int, size: int, key: str = "") -> AsyncIterator[bytes]:
        for _ in range(n):
            self._counters.add("made", key)
            yield bytes(size)

    async def fails(self, n: int) -> AsyncIterator[int]:
        for i in range(n):
            yield i
        raise NotFound("no more")

    async def waits(self, key: str) -> AsyncIterator[int]:
        try:
            yield 1
            await self._gate.wait(key)
            yield 2
        finally:
            self._counters.add("closed", key)

    async def stubborn(self, key: str) -> AsyncIterator[int]:
        n = 0
        try:
            while True:
                n += 1
                await asyncio.sleep(0)
                yield n
        except (GeneratorExit, asyncio.CancelledError):
            self._counters.add("closing", key)
            await self._gate.stubborn(key)
            yield -1

    async def total(self, numbers: AsyncIterable[int]) -> int:
        return sum([number async for number in numbers])

    async def sizes(self, name: str, chunks: AsyncIterable[bytes], key: str = "") -> list[Any]:
        try:
            return [name, [len(chunk) async for chunk in chunks]]
        except BaseException as error:
            self._counters.add(type(error).__name__, key)
            raise

    async def first(self, values: AsyncIterable[int], n: int = 1) -> list[int]:
        found: list[int] = []
        async for value in values:
            found.append(value)
            if len(found) == n:
                break
        return found

    async def ignores(self, values: AsyncIterable[Any], key: str) -> str:
        await self._gate.wait(key)
        return "done"

    async def echo(self, values: AsyncIterable[Any]) -> AsyncIterator[Any]:
        async for value in values:
            yield value

    async def items(self, items: AsyncIterable[Item]) -> AsyncIterator[Item]:
        async for item in items:
            item.count += 1
            yield item

    async def bad(self, n: int) -> AsyncIterator[Any]:
        for i in range(n):
            yield i
        yield object()

    async def context(self, n: int) -> AsyncIterator[list[Any]]:
        for _ in range(n):
            call = current_call()
            seen.set(seen.get() + 1)
            call.set_reply_metadata({"seen": str(seen.get())})
            yield [seen.get(), dict(call.metadata)]

    async def forward(self, address: str, n: int, key: str) -> AsyncIterator[int]:
        async with self._connect(address) as client:
            async for value in client.stream("Streams.count", n, key):
                yield value
