"""What a runtime that waits in place supplies to code that is written once for all of them."""

from collections.abc import Callable
from typing import Any, Protocol

__all__ = ["Runtime"]


class Runtime(Protocol):
    """Threads or greenlets, and the sockets that suit them."""

    @property
    def socket(self) -> Any:
        """The module."""

    def spawn(self, function: Callable[[], Any]) -> Any:
        """Run a function beside all others; it does not keep the process alive."""

    def kill(self, spawned: Any) -> None:
        """End what was spawned, if this runtime can do that."""

    def here(self) -> Any:
        """Return what tells the hub of this thread from others; None where threads are alike."""

    def make_event(self) -> Any:
        """Return something with `set()` and `wait(timeout)`."""

    def make_queue(self) -> Any:
        """Return a queue with `put(item)`, which any thread may call."""

    def get(self, queue: Any, seconds: float | None) -> Any:
        """Take the next item out of a queue; None if there is none for so many seconds."""

    def sleep(self, seconds: float) -> None:
        """Wait."""

    def look_up(self, host: str, port: int, deadline: float) -> Any:
        """Call getaddrinfo, for no longer than until the deadline."""
