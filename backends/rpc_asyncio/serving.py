"""Streams at an asyncio server."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from threading import Condition
from time import monotonic
from typing import Any

from rpc_common.server.streams import ServedStream, take_next
from rpc_common.transport.turns import SHORT
from rpc_proto import LocalProtocolError
from rpc_proto.connection.streams.halves import Half, ReceiveHalf, SendHalf
from rpc_proto.service.context import Job, ambient_call
from rpc_proto.service.methods import Method
from rpc_proto.wire.frames import Flag

from .waiters import Bell

__all__ = ["iterating"]

_OPEN = Half.OPEN

# So many items of a thread wait for the loop to send them.
_AHEAD = 64


class TaskStream(AsyncIterator[Any]):
    """A running stream: an iterator of the caller's items, and where to send to."""

    __slots__ = ("_bell", "_connection", "_iterated", "_link", "call", "job")

    def __init__(self, job: Job) -> None:
        self.job = job
        self.call: Any = job.call
        self._link = job.owner
        self._connection = job.call.connection
        self._bell = Bell(asyncio.get_running_loop())
        self._iterated = False

    def __repr__(self) -> str:
        return f"<items of {self.call!r}>"

    def wake(self) -> None:
        """Let those that wait look again."""
        self._bell.ring()

    async def __anext__(self) -> Any:
        half: ReceiveHalf = self.call.receiving
        if not half.items and half.state is _OPEN:
            if self._iterated:
                raise LocalProtocolError(f"{self!r} are iterated by another task already")
            self._iterated = True
            try:
                await self._bell.wait_until(self._is_readable)
            finally:
                self._iterated = False
        try:
            return take_next(self.job, half)
        except StopIteration:
            raise StopAsyncIteration from None
        finally:
            if half.due:
                self._connection.grant(monotonic(), self.call)
                self._link.wrote()

    def over(self) -> None:
        """Let go of the call, or both would keep each other alive."""
        self.call.waiter = None

    async def send_all(self, produced: Any) -> None:
        """Send the items of an asynchronous iterable, and close it."""
        half: SendHalf = self.call.sending
        job, call = self.job, self.call
        send, wrote = self._connection.send_item, self._link.wrote
        iterator = aiter(produced)
        try:
            turn_ends = monotonic() + SHORT
            async for value in iterator:
                if half.waits:
                    await self._bell.wait_until(self._is_writable)
                    turn_ends = monotonic() + SHORT
                if job.error is not None:
                    raise job.error
                now = monotonic()
                send(now, call, value)
                wrote()
                if now > turn_ends:  # a method that never waits must not keep others waiting
                    await asyncio.sleep(0)
                    turn_ends = monotonic() + SHORT
            if half.rest is not None:
                await self._bell.wait_until(self._is_writable)
        finally:
            if hasattr(iterator, "aclose"):
                await iterator.aclose()

    def _is_readable(self) -> bool:
        half = self.call.receiving
        return bool(half.items) or half.state is not _OPEN

    def _is_writable(self) -> bool:
        half = self.call.sending
        return not half.waits or half.state is not _OPEN


class ThreadStream(ServedStream):
    """A running stream of a `def` method, which is iterated in a thread, for the event loop."""

    __slots__ = ("_changed", "_connection", "_failure", "_is_drawn", "_link", "_loop", "_waiting")

    def __init__(self, job: Job) -> None:
        self._loop = asyncio.get_running_loop()
        self._link = job.owner
        self._connection = job.call.connection
        self._changed = Condition()
        self._waiting: deque[Any] = deque()  # items for the loop to send
        self._is_drawn = False  # whether the loop will look at them
        self._failure: BaseException | None = None
        super().__init__(job)

    def wake(self) -> None:
        if self._waiting:
            self._draw()
        with self._changed:
            self._changed.notify_all()

    def wait_until(self, ready: Callable[[], bool]) -> None:
        with self._changed:
            self._changed.wait_for(ready)

    # In the thread

    def send(self, value: Any) -> None:
        self._waiting.append(value)
        if not self._is_drawn:
            self._is_drawn = True
            self._loop.call_soon_threadsafe(self._draw)
        if len(self._waiting) >= _AHEAD or self._failure is not None:
            self._drain(_AHEAD // 2)

    def send_all(self, produced: Any) -> None:
        super().send_all(produced)
        self._drain(0)

    def _drain(self, most: int) -> None:
        """Wait until the loop has sent all but so many items."""
        half: SendHalf = self.call.sending
        job = self.job
        self.wait_until(
            lambda: (
                (len(self._waiting) <= most and (half.rest is None or most > 0))
                or self._failure is not None
                or job.error is not None
            )
        )
        if self._failure is not None:
            raise self._failure

    def _is_writable(self) -> bool:
        return True  # when an item may be sent is for the loop to see

    def grant(self) -> None:
        self._loop.call_soon_threadsafe(self._grant)

    # In the loop

    def _draw(self) -> None:
        """Send what may be sent."""
        self._is_drawn = False
        half: SendHalf = self.call.sending
        waiting = self._waiting
        try:
            while waiting and half.writable:
                self._connection.send_item(monotonic(), self.call, waiting[0])
                waiting.popleft()
        except Exception as error:
            self._failure = error
            waiting.clear()
        self._link.wrote()
        with self._changed:
            self._changed.notify_all()

    def _grant(self) -> None:
        self._connection.grant(monotonic(), self.call)
        self._link.wrote()


def iterating(method: Method, in_thread: bool, beside: Callable[..., Any]) -> Callable[..., Any]:
    """Return what to run in place of a method's function: it returns after the last item.

    `in_thread` is whether the method blocks; `await beside(function, *args, **kwargs)` runs a
    blocking function.
    """
    function = method.function
    blocks = not method.is_async  # interceptors do not
    sends = method.streams & Flag.SERVER_STREAM

    async def run(*args: Any, **kwargs: Any) -> Any:
        job = ambient_call.get()
        assert job is not None
        call: Any = job.call
        stream: Any = ThreadStream(job) if in_thread else TaskStream(job)
        call.waiter = stream
        try:
            if method.takes is not None:
                args, kwargs = method.with_stream(args, kwargs, stream)
            if blocks:
                result = await beside(function, *args, **kwargs)
            else:
                result = function(*args, **kwargs)
                if hasattr(result, "__await__"):
                    result = await result
            if not sends:
                return result
            if hasattr(result, "__aiter__"):
                if in_thread:  # an interceptor wrapped what the method produces
                    stream.over()
                    stream = call.waiter = TaskStream(job)
                await stream.send_all(result)
            else:
                await beside(stream.send_all, result)
        finally:
            stream.over()
        return None

    method.is_async = True
    return run
