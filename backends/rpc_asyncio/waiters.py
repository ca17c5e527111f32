"""What a Task awaits until its call has ended."""

import asyncio
from collections.abc import Generator
from typing import TYPE_CHECKING, Any

from rpc_common.client.base import outcome
from rpc_proto import CallCompleted

from .internals import HAS_PRIVATE_NAMES, DirectWaiter

__all__ = ["Waiter"]


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
