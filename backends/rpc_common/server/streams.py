"""Streams at a server whose handlers block: the caller's items, and sending a method's own.

What a method returns is iterated where its handler runs, in the handler's context, until the last
item; then the handler has ended. Whatever ends the call first closes the iterator.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any

from rpc_proto import Cancelled, LocalProtocolError
from rpc_proto.connection.streams.halves import Half, ReceiveHalf, SendHalf
from rpc_proto.service.context import Job, ambient_call
from rpc_proto.service.methods import Method
from rpc_proto.wire.frames import Flag

__all__ = ["ServedStream", "iterating", "take_next"]

_OPEN = Half.OPEN


def take_next(job: Job, half: ReceiveHalf) -> Any:
    """Take an item that has arrived; StopIteration if none will come, or what ended the items."""
    if job.error is not None:
        raise job.error
    if half.items:
        return half.take()
    if half.error is not None:
        raise type(half.error)(half.error.message)
    raise StopIteration


class ServedStream(Iterator[Any], ABC):
    """A running stream: an iterator of the caller's items, and where to send to.

    It is the `waiter` of its call, which the connection's events wake.
    """

    __slots__ = ("_iterated", "_undo", "call", "job")

    def __init__(self, job: Job) -> None:
        self.job = job
        self.call: Any = job.call
        self._iterated = False
        self._undo: Callable[[], Any] | None = job.on_cancel(self.wake)

    def __repr__(self) -> str:
        return f"<items of {self.call!r}>"

    def __iter__(self) -> "ServedStream":
        return self

    def __next__(self) -> Any:
        half: ReceiveHalf = self.call.receiving
        if not half.items and half.state is _OPEN:
            if self._iterated:
                raise LocalProtocolError(f"{self!r} are iterated somewhere else already")
            self._iterated = True
            try:
                self.wait_until(self._is_readable)
            finally:
                self._iterated = False
        try:
            return take_next(self.job, half)
        finally:
            if half.due:
                self.grant()

    def over(self) -> None:
        """Let go of the call, or both would keep each other alive."""
        if self._undo is not None:
            self._undo()
        self._undo = self.call.waiter = None

    def send_all(self, produced: Any) -> None:
        """Send the items of an iterable, and close it."""
        iterator = iter(produced)
        half: SendHalf = self.call.sending
        job = self.job
        try:
            for value in iterator:
                if half.waits:
                    self.wait_until(self._is_writable)
                if job.error is not None:
                    raise job.error
                self.send(value)
            if half.rest is not None:
                self.wait_until(self._is_writable)
        finally:
            if hasattr(iterator, "close"):
                iterator.close()

    def _is_readable(self) -> bool:
        half = self.call.receiving
        return bool(half.items) or half.state is not _OPEN or self.job.error is not None

    def _is_writable(self) -> bool:
        half = self.call.sending
        return not half.waits or half.state is not _OPEN or self.job.error is not None

    @abstractmethod
    def wake(self) -> None:
        """Let those that wait look again."""

    @abstractmethod
    def wait_until(self, ready: Callable[[], bool]) -> None:
        """Wait until `ready()` is true."""

    @abstractmethod
    def send(self, value: Any) -> None:
        """Send an item, whose half is writable."""

    @abstractmethod
    def grant(self) -> None:
        """Give the peer credit."""


def iterating(method: Method, serve: Callable[[Job], ServedStream]) -> Callable[..., Any]:
    """Return what to run in place of a method's function: it returns after the last item."""
    function = method.function
    sends = method.streams & Flag.SERVER_STREAM

    def run(*args: Any, **kwargs: Any) -> Any:
        job = ambient_call.get()
        assert job is not None
        if job.error is not None:
            raise Cancelled("cancelled before it ran")
        call: Any = job.call
        stream = call.waiter = serve(job)
        try:
            if method.takes is not None:
                args, kwargs = method.with_stream(args, kwargs, stream)
            result = function(*args, **kwargs)
            if not sends:
                return result
            stream.send_all(result)
        finally:
            stream.over()
        return None

    return run
