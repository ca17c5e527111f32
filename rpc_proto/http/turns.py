"""Whose turn it is: the time that all HTTP connections of a server may take together."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

__all__ = ["HttpTurns"]

_LENGTH = 0.002  # seconds at a stretch, of all connections together
_REST = 0.5  # seconds of rest for each second of work
_REQUESTS = 16  # how many take as long, for who has no clock
_SENDING = 1e-9  # seconds for each byte that is sent: copied, encrypted and given away
_SHORTEST = 0.0001  # seconds between the turns of two connections that wait


class HttpTurns:
    """Lets the HTTP connections of a server work one after the other, with rests between.

    Whatever they are asked for, they take about 2 ms at a stretch, or as long as one step takes.
    Then they rest for half as long as they worked, and the others are served. Who comes meanwhile
    gets a time to come again, one after the other, and goes before who came later.

    `clock()` returns the time in seconds; without one each request counts as an eighth of a
    millisecond. `lock` is for servers whose connections have threads.
    """

    def __init__(self, clock: Callable[[], float] | None = None, lock: Any = None) -> None:
        self._clock = clock
        self._lock: Any = lock or nullcontext()
        self._opened = float("-inf")  # when the stretch began
        self._worked = 0.0  # in it
        self._rested_at = float("-inf")  # when the next one may begin
        self._began: float | None = None  # the turn that somebody has
        self._requests = 0  # in that turn
        self._average = _SHORTEST  # of a turn, with its rest
        self._last = float("-inf")  # the latest time that was given to somebody new
        self._again = float("-inf")  # and to somebody who had one before

    def begin(self, now: float, given: float | None) -> float | None:
        """Begin a turn, and return None; or return when to ask again, with that time as `given`."""
        with self._lock:
            if self._clock is not None:
                now = max(now, self._clock())
            others_wait = given is None and self._last > now
            if self._began is None and self._rested_at <= now and not others_wait:
                if now - self._opened >= _LENGTH:
                    self._opened = now
                    self._worked = 0.0
                self._began = now
                self._requests = 0
                return None
            if given is None:
                return self._queue(now)
            self._again = max(self._again, now, self._rested_at) + self._average
            return self._again

    def _queue(self, now: float) -> float:
        self._last = max(self._last, now, self._rested_at) + self._average
        return self._last

    @property
    def goes_on(self) -> bool:
        """Whether there is time for one more step in the turn that was begun."""
        return self._time() - self._opened < _LENGTH

    def count(self) -> None:
        """Record a step."""
        self._requests += 1

    def end(self, size: int) -> None:
        """End the turn, in which so many bytes were made ready to be sent."""
        with self._lock:
            assert self._began is not None
            now = self._time()
            spent = now - self._began + size * _SENDING
            self._began = None
            self._worked += spent
            self._average += (max(spent * (1 + _REST), _SHORTEST) - self._average) / 8
            if max(now - self._opened, self._worked) >= _LENGTH:
                self._rested_at = now + self._worked * _REST
                self._opened = float("-inf")

    def queue(self, now: float) -> float:
        """Return when to ask again, for who has had a turn and wants one more."""
        with self._lock:
            return self._queue(now)

    def _time(self) -> float:
        assert self._began is not None
        if self._clock is None:
            return self._began + self._requests * (_LENGTH / _REQUESTS)
        return self._clock()
