"""Turns: limiting the time that all HTTP connections of a server take together."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

__all__ = ["HttpTurns"]

_LENGTH = 0.002  # seconds of continuous work, all connections together
_REST = 0.5  # seconds of rest for each second of work
_REQUESTS = 16  # requests that count as one stretch, without a clock
_SENDING = 1e-9  # seconds per byte sent: copied, encrypted and written
_SHORTEST = 0.0001  # seconds between the turns of two waiting connections


class HttpTurns:
    """Lets the HTTP connections of a server work in turns, with pauses between.

    Whatever the requests, they take about 2 ms at a time, or as long as one step takes. Then they
    pause for half as long as they worked, while calls are served. A connection that has to wait
    gets a time at which to ask again, first come, first served.

    `clock()` returns the time in seconds; without one, each request counts as an eighth of a
    millisecond. `lock` is for servers whose connections have threads.
    """

    def __init__(self, clock: Callable[[], float] | None = None, lock: Any = None) -> None:
        self._clock = clock
        self._lock: Any = lock or nullcontext()
        self._opened = float("-inf")  # when the current stretch began
        self._worked = 0.0  # in it
        self._rested_at = float("-inf")  # when the next one may begin
        self._began: float | None = None  # when the current turn began
        self._requests = 0  # in that turn
        self._average = _SHORTEST  # of a turn, with its rest
        self._last = float("-inf")  # the latest time given to a new connection
        self._again = float("-inf")  # and to one that had a turn before

    def begin(self, now: float, given: float | None) -> float | None:
        """Begin a turn and return None, or return when to ask again with that time as `given`."""
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
        """Whether there is time for one more step in this turn."""
        return self._time() - self._opened < _LENGTH

    def count(self) -> None:
        """Record a step."""
        self._requests += 1

    def end(self, size: int) -> None:
        """End the turn, in which so many bytes were prepared for sending."""
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
        """Return when to ask again, after a turn that was not enough."""
        with self._lock:
            return self._queue(now)

    def _time(self) -> float:
        assert self._began is not None
        if self._clock is None:
            return self._began + self._requests * (_LENGTH / _REQUESTS)
        return self._clock()
