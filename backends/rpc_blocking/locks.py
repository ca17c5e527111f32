"""A lock that is kept whatever a signal handler raises, and that knows its owner."""

import os
from collections.abc import Callable
from threading import Condition, RLock
from typing import Any

__all__ = ["OwnedLock", "has_private_names", "ownership"]


def _check() -> bool:
    lock = RLock()
    try:
        free = lock._is_owned()  # type: ignore[attr-defined]
        with lock:
            return free is False and lock._is_owned() is True  # type: ignore[attr-defined]
    except (AttributeError, TypeError):
        return False


has_private_names = not os.environ.get("RPC_PLAIN") and _check()


def ownership(lock: Any) -> Callable[[], bool]:
    """Return a function that returns whether this thread has an RLock."""
    if has_private_names:
        is_owned: Callable[[], bool] = lock._is_owned
        return is_owned
    condition = Condition(lock)

    def ask() -> bool:
        try:
            condition.notify(0)  # refused to those who do not have the lock
        except RuntimeError:
            return False
        return True

    return ask


class OwnedLock:
    """An RLock, `lock`, that can be taken back for a caller who will release it."""

    __slots__ = ("is_owned", "lock")

    def __init__(self) -> None:
        self.lock: Any = RLock()
        self.is_owned = ownership(self.lock)

    def take_back(self) -> BaseException | None:
        """Take the lock, whatever happens; return what a signal handler raised meanwhile.

        Such a handler may raise before the first line of this, too; then call it again.
        """
        interruption: BaseException | None = None
        while True:
            try:
                while not self.is_owned():
                    self.lock.acquire()
                return interruption
            except BaseException as error:  # of a signal's handler
                interruption = error

    def regain(self) -> None:
        """Take the lock, and only then raise what interrupted that."""
        interruption = self.take_back()
        if interruption is not None:
            raise interruption
