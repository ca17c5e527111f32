"""Who has a lock: what CPython tells by a name of its own, or, without that, what it documents."""

import os
from collections.abc import Callable
from threading import Condition, RLock
from typing import Any

__all__ = ["has_private_names", "ownership"]


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
    """Return what tells whether this thread has an RLock."""
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
