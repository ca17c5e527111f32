"""What a Task waits for until its call has ended.

It does what a Task needs of a future and one thing that a future does not: the Task goes on inside
the callback that received the answer, not in the next turn of the loop.
"""

import asyncio
from collections.abc import Callable, Generator
from contextvars import Context
from typing import Any

from rpc_common.client import outcome
from rpc_proto import CallCompleted

__all__ = ["Waiter"]


class Waiter:
    """Waits for the last event of one call, for one Task."""

    __slots__ = ("_asyncio_future_blocking", "_cancelled", "_context", "_loop", "_wakeup", "event")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._asyncio_future_blocking = True  # how a Task knows a future
        self._cancelled: tuple[Any, ...] | None = None  # what the CancelledError says
        self._wakeup: Callable[[Any], Any] | None = None
        self.event: Any = None

    def __await__(self) -> Generator[Any, None, CallCompleted]:
        if self.event is None:
            yield self
        # No name for the event: its error would keep this frame alive, and the frame the error.
        return self.event if type(self.event) is CallCompleted else outcome(self)

    def wake(self) -> None:
        """Let the Task go on with `event`, here and now; no other Task may be running."""
        wakeup = self._wakeup
        if wakeup is not None:
            self._wakeup = None
            try:
                self._context.run(wakeup, self)
            finally:
                wakeup = None  # or error, frames and Task would keep each other alive

    def wake_soon(self) -> None:
        """Let the Task go on with `event` in the next turn of the loop."""
        wakeup = self._wakeup
        if wakeup is not None:
            self._wakeup = None
            self._loop.call_soon(wakeup, self, context=self._context)

    # What a Task asks of a future

    def add_done_callback(self, wakeup: Callable[[Any], Any], *, context: Context) -> None:
        self._wakeup = wakeup
        self._context = context
        if self._cancelled is not None or self.event is not None:
            self.wake_soon()

    def cancel(self, msg: Any = None) -> bool:
        if self._cancelled is not None or self.event is not None:
            return False
        self._cancelled = () if msg is None else (msg,)
        self.wake_soon()
        return True

    def result(self) -> None:
        if self._cancelled is not None:
            raise asyncio.CancelledError(*self._cancelled)
