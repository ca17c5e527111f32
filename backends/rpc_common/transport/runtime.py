"""The interface of gevent and of threads for code that they share."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from queue import Empty
from typing import Any

__all__ = ["Runtime"]


class Runtime(ABC):
    """Threads or greenlets, and their sockets."""

    socket: Any  # the module

    @abstractmethod
    def spawn(self, function: Callable[[], Any]) -> Any:
        """Run a function concurrently; it does not keep the process alive.

        RuntimeError if no thread can be started.
        """

    @abstractmethod
    def kill(self, spawned: Any) -> None:
        """End what was spawned, if that is possible."""

    def end_at_exit(self, owner: Any) -> None:  # noqa: B027 - not all have threads
        """Make sure that threads end before the interpreter does: see `.threads`."""

    @abstractmethod
    def here(self) -> Any:
        """Return what identifies this thread's hub; None where any thread may be used."""

    @abstractmethod
    def make_event(self) -> Any:
        """Return something with `set()` and `wait(timeout)`."""

    @abstractmethod
    def make_queue(self) -> Any:
        """Return a queue with `put(item)`, which any thread may call."""

    def get(self, queue: Any, seconds: float | None) -> Any:
        """Take the next item from a queue; None if there is none within so many seconds."""
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
