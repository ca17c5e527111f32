"""Tests of machines: what a single input brings about."""

from collections.abc import Callable
from typing import Any

__all__ = ["told"]


def told(command: Callable[..., None], *args: Any, **more: Any) -> list[Any]:
    """Call a machine's input or command, and return the events of just that."""
    machine = command.__self__  # type: ignore[attr-defined]
    machine.events()
    command(*args, **more)
    events: list[Any] = machine.events()
    return events
