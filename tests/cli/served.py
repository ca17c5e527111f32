"""Services that the tests of the command serve; found because the server runs in this folder."""

import asyncio
import time
from collections.abc import AsyncIterable, AsyncIterator, Iterable
from typing import Any

from rpc_proto import NotFound, current_call, quick


class Probe:
    """Says what arrives."""

    @quick
    def show(self, *values: Any, **named: Any) -> list[Any]:
        """Return what arrived.

        Both the positional and the named arguments.
        """
        return [list(values), named]

    @quick
    def metadata(self) -> dict[str, str]:
        return dict(current_call().metadata)

    @quick
    def raw(self, data: bytes) -> bytes:
        return data[::-1]

    @quick
    def nothing(self) -> None:
        pass

    @quick
    def fail(self) -> None:
        raise NotFound("first line\nsecond line \x1b[31m", {"key": "value"})

    @quick
    def crash(self) -> None:
        raise KeyError("crashed")

    @quick
    def escapes(self) -> str:
        """Has an \x1b[31m escape code here."""
        return "\x1b[31mred"


class Blocker:
    """Keeps a thread."""

    def block(self, seconds: float) -> None:
        print("blocking", flush=True)
        time.sleep(seconds)


class Other:
    """A second class."""

    async def ping(self) -> str:
        await asyncio.sleep(0)
        return "pong"


class Lines:
    """Streams."""

    async def tail(self, name: str, n: int = 3) -> AsyncIterator[str]:
        for number in range(n):
            yield f"{name} {number}"

    async def total(self, numbers: AsyncIterable[int]) -> int:
        return sum([number async for number in numbers])

    async def shout(self, said: AsyncIterable[str]) -> AsyncIterator[str]:
        async for text in said:
            yield text.upper()


class NeedsArguments:
    def __init__(self, number: int) -> None:
        self.number = number

    def method(self) -> int:
        return self.number


class Mixed:
    def numbers(self, one: Iterable[int], other: Iterable[int]) -> Any: ...


class Waiting:
    """Waits as each runtime does."""

    def __init__(self) -> None:
        self._begun: dict[str, Any] = {}

    def _event(self, runtime: str) -> Any:
        if runtime not in self._begun:
            if runtime == "gevent":
                from gevent.event import Event
            else:
                from threading import Event
            self._begun[runtime] = Event()
        return self._begun[runtime]

    def wait(self, runtime: str, seconds: float) -> str:
        self._event(runtime).set()
        never = type(self._event(runtime))()
        current_call().on_cancel(never.set)
        never.wait(seconds)
        return "waited"

    def started(self, runtime: str) -> bool:
        return self._event(runtime).wait(10.0)
