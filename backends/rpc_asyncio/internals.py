"""Everything that this driver uses of CPython's asyncio beyond its documented interface.

Tasks and futures know each other by names with an underscore. With these, a Task continues inside
the callback that received its answer, and a handler runs at once and becomes a Task only if it has
to wait. If the names are missing, as in another implementation of asyncio, or with RPC_PLAIN=1 in
the environment, `waiters` and `handlers` use the documented interface, one turn of the loop slower.
"""

import asyncio
import os
from collections.abc import Callable, Generator
from contextvars import Context
from typing import Any

from rpc_common.client.base import outcome
from rpc_proto import CallCompleted

__all__ = [
    "HAS_PRIVATE_NAMES",
    "DirectWaiter",
    "enter_task",
    "is_future",
    "leave_task",
    "mark_yielded",
    "will_be_cancelled",
]

enter_task: Callable[[asyncio.AbstractEventLoop, "asyncio.Task[Any]"], None]
leave_task: Callable[[asyncio.AbstractEventLoop, "asyncio.Task[Any]"], None]
enter_task = getattr(asyncio.tasks, "_enter_task", None)  # type: ignore[assignment]
leave_task = getattr(asyncio.tasks, "_leave_task", None)  # type: ignore[assignment]

HAS_PRIVATE_NAMES = (
    not os.environ.get("RPC_PLAIN")
    and callable(enter_task)
    and callable(leave_task)
    and hasattr(asyncio.Future, "_asyncio_future_blocking")
    and hasattr(asyncio.Task, "_must_cancel")
)


def will_be_cancelled(task: "asyncio.Task[Any]") -> bool:
    """Whether a Task has a pending cancellation, which `uncancel` does not undo."""
    return bool(task._must_cancel)  # type: ignore[attr-defined]


def mark_yielded(future: "asyncio.Future[Any]") -> None:
    """Mark a future as yielded, so that the Task waits for it."""
    future._asyncio_future_blocking = True  # as Future.__await__ does


def is_future(yielded: Any) -> bool:
    """Whether a Task would wait for what a coroutine yielded."""
    return hasattr(yielded, "_asyncio_future_blocking")


class DirectWaiter:
    """Waits for the last event of one call, for one Task, like a future.

    But the Task continues inside the callback that received the answer, not in the next turn of the
    loop.
    """

    __slots__ = ("_asyncio_future_blocking", "_cancelled", "_context", "_loop", "_wakeup", "event")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._asyncio_future_blocking = True  # how a Task recognizes a future
        self._cancelled: tuple[Any, ...] | None = None  # the message of the CancelledError
        self._wakeup: Callable[[Any], Any] | None = None
        self.event: Any = None

    def __await__(self) -> Generator[Any, None, CallCompleted]:
        if self.event is None:
            yield self
        # No name for the event: its error would keep this frame alive, and the frame the error.
        return self.event if type(self.event) is CallCompleted else outcome(self)

    def wake(self) -> None:
        """Continue the Task with `event` immediately; no other Task may be running."""
        wakeup = self._wakeup
        if wakeup is not None:
            self._wakeup = None
            try:
                self._context.run(wakeup, self)
            finally:
                wakeup = None  # or error, frames and Task would keep each other alive

    def wake_soon(self) -> None:
        """Continue the Task with `event` in the next turn of the loop."""
        wakeup = self._wakeup
        if wakeup is not None:
            self._wakeup = None
            self._loop.call_soon(wakeup, self, context=self._context)

    # The interface of a future for a Task

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
