"""What a Task awaits until its call has ended, or something of a stream has come."""

import asyncio
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any

from rpc_common.client.base import outcome
from rpc_proto import CallCompleted

from .internals import HAS_PRIVATE_NAMES, DirectWaiter

__all__ = ["Bell", "Waiter"]


class _PlainWaiter:
    """Waits for the last event of one call by means of a future."""

    __slots__ = ("_future", "event")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._future: asyncio.Future[None] = loop.create_future()
        self.event: Any = None

    def __await__(self) -> Generator[Any, None, CallCompleted]:
        if self.event is None:
            yield from self._future
        # No name for the event: its error would keep this frame alive, and the frame the error.
        return self.event if type(self.event) is CallCompleted else outcome(self)

    def wake(self) -> None:
        """Continue the Task with `event`."""
        self.wake_soon()

    def wake_soon(self) -> None:
        """Continue the Task with `event` in the next turn of the loop."""
        if not self._future.done():
            self._future.set_result(None)


if TYPE_CHECKING or HAS_PRIVATE_NAMES:  # noqa: SIM108 - a type to a type checker
    Waiter = DirectWaiter
else:
    Waiter = _PlainWaiter


class Bell:
    """Wakes the tasks that wait for something; each then looks whether it has come."""

    __slots__ = ("_loop", "_waiting")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: list[asyncio.Future[None]] = []

    def ring(self) -> None:
        """Wake them soon."""
        for future in self._waiting:
            if not future.done():
                future.set_result(None)

    async def wait_until(self, ready: Callable[[], bool]) -> None:
        """Return when `ready()` is true."""
        while not ready():
            future = self._loop.create_future()
            self._waiting.append(future)
            try:
                await future
            finally:
                self._waiting.remove(future)
