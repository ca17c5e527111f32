"""Several calls for one request, as a machine: broadcasts, races and hedges."""

from collections import deque
from collections.abc import Iterable
from math import inf
from typing import Any, NamedTuple

from rpc_proto import CallCompleted, CallError

from .attempts import Wait
from .pool import BalancedCall, Pool

__all__ = ["Begin", "Group", "Hedge"]


class Begin(NamedTuple):
    """Start a call, do not wait for its end, and ask for the next step."""

    call: BalancedCall


class Group:
    """Calls that run at the same time, at most `at_once` of them.

    A driver calls `next(now)`, does what it returns, and calls it again until it returns None; then
    it cancels what is still running. It reports the end of each call to `ended`. The group is over
    when all calls have ended, or, with `first`, as soon as one has succeeded.
    """

    def __init__(self, calls: Iterable[BalancedCall], *, first: bool, at_once: float = inf) -> None:
        self._waiting = deque(calls)
        self._first = first
        self._at_once = at_once
        self._running = 0
        self._succeeded = False
        self._outcomes: list[tuple[BalancedCall, CallCompleted | CallError]] = []

    @property
    def is_alone(self) -> bool:
        """Whether there is a single call, and no other one will come."""
        return len(self._waiting) + self._running == 1

    def next(self, now: float) -> Begin | Wait | None:
        """Return what to do now; None when the group is over."""
        if self._first and self._succeeded:
            return None
        if self._waiting and self._running < self._at_once:
            self._running += 1
            return Begin(self._waiting.popleft())
        return Wait(inf) if self._running else None

    def ended(self, now: float, call: BalancedCall, outcome: CallCompleted | CallError) -> None:
        """Take the end of a call."""
        self._running -= 1
        self._succeeded = self._succeeded or isinstance(outcome, CallCompleted)
        self._outcomes.append((call, outcome))

    def winner(self) -> CallCompleted:
        """Return the first success, or raise the last error. Call it once."""
        outcomes, self._outcomes = self._outcomes, []
        outcome = error = None
        try:
            while outcomes:
                _, outcome = outcomes.pop(0)
                if isinstance(outcome, CallCompleted):
                    return outcome
                error = outcome
            assert error is not None
            raise error
        finally:
            del outcome, error  # or error, traceback and frame would keep each other alive

    def results(self) -> dict[str, Any]:
        """Return the value or the error of each call that has ended, by its node."""
        return {
            str(call.node): outcome.value if isinstance(outcome, CallCompleted) else outcome
            for call, outcome in self._outcomes
        }


class Hedge(Group):
    """A call, and another to a second node if the first takes longer than usual."""

    def __init__(self, pool: Pool, call: BalancedCall, method: str, now: float) -> None:
        super().__init__([call], first=True)
        call.idempotent = True
        self._pool = pool
        self._call = call
        self._method = method
        self._started = now
        delay = pool.hedge_delay(method)
        self._hedge_at = inf if delay is None else now + delay

    @property
    def is_alone(self) -> bool:
        """Whether there is a single call, and no other one will come."""
        return self._hedge_at == inf and super().is_alone

    def next(self, now: float) -> Begin | Wait | None:
        """Return what to do now; None when the group is over."""
        if self._running and not self._succeeded and now >= self._hedge_at:
            self._hedge_at = inf
            other = self._pool.hedge(self._call, now)
            if other is not None:
                self._waiting.append(other)
        step = super().next(now)
        return Wait(self._hedge_at - now) if isinstance(step, Wait) else step

    def ended(self, now: float, call: BalancedCall, outcome: CallCompleted | CallError) -> None:
        """Take the end of a call."""
        super().ended(now, call, outcome)
        if isinstance(outcome, CallCompleted):
            self._pool.observe(self._method, now - self._started)
