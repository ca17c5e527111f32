"""What a runtime that waits in place supplies to code that is written once for all of them."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from queue import Empty
from typing import Any

__all__ = ["Runtime"]


class Runtime(ABC):
    """Threads or greenlets, and the sockets that suit them."""

    socket: Any  # the module

    @abstractmethod
    def spawn(self, function: Callable[[], Any]) -> Any:
        """Run a function beside all others; it does not keep the process alive.

        RuntimeError when no more threads can be had.
        """

    @abstractmethod
    def kill(self, spawned: Any) -> None:
        """End what was spawned, if this runtime can do that."""

    def end_at_exit(self, owner: Any) -> None:  # noqa: B027 - not all have threads
        """See to it that threads end before the interpreter does: see `.threads`."""

    @abstractmethod
    def here(self) -> Any:
        """Return what tells the hub of this thread from others; None where threads are alike."""

    @abstractmethod
    def make_event(self) -> Any:
        """Return something with `set()` and `wait(timeout)`."""

    @abstractmethod
    def make_queue(self) -> Any:
        """Return a queue with `put(item)`, which any thread may call."""

    def get(self, queue: Any, seconds: float | None) -> Any:
        """Take the next item out of a queue; None if there is none for so many seconds."""
        try:
            return queue.get(timeout=seconds)
        except Empty:
            return None

    @abstractmethod
    def sleep(self, seconds: float) -> None:
        """Wait."""

    @abstractmethod
    def look_up(self, host: str, port: int, deadline: float) -> Any:
        """Call getaddrinfo, for no longer than until the deadline."""
