"""A connection's timers: a table with one entry per purpose."""

from enum import Enum, auto

__all__ = ["Timer", "TimerTable"]


class Timer(Enum):
    """The purposes of timers; deadlines of calls are separate."""

    __hash__ = object.__hash__  # an Enum's own is written in Python

    HANDSHAKE = auto()
    REQUEST = auto()
    TURN = auto()
    LIVENESS = auto()
    FRAME = auto()
    IDLE = auto()
    WRITE = auto()
    SILENCE = auto()
    MEMORY = auto()
    GRACE = auto()
    LINGER = auto()
    CLOSE = auto()


class TimerTable:
    """Absolute times in seconds by purpose."""

    __slots__ = ("_at", "earliest")

    def __init__(self) -> None:
        self._at: dict[Timer, float] = {}
        self.earliest: float | None = None

    def __contains__(self, timer: Timer) -> bool:
        return timer in self._at

    def set(self, timer: Timer, at: float) -> None:
        """Set or move a timer."""
        self._at[timer] = at
        self.earliest = min(self._at.values())

    def clear(self, timer: Timer) -> None:
        """Remove a timer, if it is set."""
        if self._at.pop(timer, None) is not None:
            self.earliest = min(self._at.values(), default=None)

    def clear_all(self) -> None:
        """Remove all timers."""
        self._at.clear()
        self.earliest = None

    def pop_due(self, now: float) -> list[Timer]:
        """Remove and return the timers that are due."""
        due = [timer for timer, at in self._at.items() if at <= now]
        for timer in due:
            self.clear(timer)
        return due
