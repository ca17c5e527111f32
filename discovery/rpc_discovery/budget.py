"""Limits on retries, and the delay before a call is hedged."""

from math import inf

__all__ = ["HedgeDelay", "RetryBudget"]

_BURST = 10.0  # seconds of the minimum that can be saved up
_ENOUGH_CALLS = 20
_STEP = 0.1  # by which the estimate of a delay moves
_SHORTEST = 0.0001  # seconds


class RetryBudget:
    """A token bucket: each call adds `ratio`, each second `minimum`, and a retry takes one.

    It holds ten seconds' worth of the minimum, at least one token, and starts full. Between any two
    times there are at most ratio * calls + minimum * (seconds + 10) retries (one more without a
    minimum), so that retries never multiply the load during an outage.
    """

    def __init__(self, now: float, *, ratio: float = 0.2, minimum: float = 10.0) -> None:
        if not 0 <= ratio < inf or not 0 <= minimum < inf:
            raise ValueError(
                f"ratio and minimum must be numbers from 0 up, not {ratio!r} and {minimum!r}"
            )
        self.ratio = ratio
        self.minimum = minimum
        self._most = max(1.0, minimum * _BURST)
        self._tokens = minimum * _BURST
        self._filled = now

    def deposit(self, calls: int = 1) -> None:
        """Count calls, but not retries."""
        self._tokens = min(self._most, self._tokens + self.ratio * calls)

    def withdraw(self, now: float) -> bool:
        """Take a token for a retry; False if there is none, and the call must not be retried."""
        if now > self._filled:
            gained = (now - self._filled) * self.minimum
            self._tokens = min(self._most, self._tokens + gained)
            self._filled = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


class HedgeDelay:
    """Estimates the time within which most calls end; after it, a second node may be asked.

    `quantile` is the share of faster calls. Each call moves the estimate up or down by a small
    part, and both balance at the quantile. It holds two numbers, and follows a change within a few
    hundred calls.
    """

    def __init__(self, quantile: float = 0.95) -> None:
        if not 0 < quantile < 1:
            raise ValueError(f"quantile must be between 0 and 1, not {quantile!r}")
        self.quantile = quantile
        self.calls = 0
        self._delay = 0.0

    @property
    def seconds(self) -> float | None:
        """Seconds to wait; None until 20 calls have ended."""
        return self._delay if self.calls >= _ENOUGH_CALLS else None

    def observe(self, seconds: float) -> None:
        """Record how long a successful call took."""
        self.calls += 1
        if self.calls <= _ENOUGH_CALLS:
            self._delay = max(self._delay, seconds, _SHORTEST)  # about the quantile of so few
        elif seconds > self._delay:
            self._delay *= 1 + _STEP * self.quantile
        else:
            self._delay = max(_SHORTEST, self._delay * (1 - _STEP * (1 - self.quantile)))
