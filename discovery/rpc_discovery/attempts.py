"""A balanced call as a state machine: which node to dial, when to send, wait, or give up."""

from collections.abc import Callable
from typing import NamedTuple

from rpc_proto import CallError, Cancelled

from .pool import MOST_DIALS, MOST_TRIES, BalancedCall, Pool, Target

__all__ = ["Attempts", "Dial", "Fail", "Send", "Step", "Wait"]


class Dial(NamedTuple):
    """Start to dial a node, do not wait for it, and ask for the next step."""

    target: Target


class Send(NamedTuple):
    """Send the call over a node's connection, with this timeout in seconds.

    Then report how it ended: `answered`, `failed` or `cancelled`.
    """

    target: Target
    timeout: float


class Wait(NamedTuple):
    """Wait for at most so many seconds, or until something has changed: see `Attempts`."""

    seconds: float


class Fail(NamedTuple):
    """The call failed with this error."""

    error: CallError


Step = Dial | Send | Wait | Fail


class Attempts:
    """A balanced call, from its start until a node has answered or nothing is left to try.

    A driver calls `next(now)`, does what it returns, and calls it again. While it waits, it calls
    it as soon as a dial has ended, a view has arrived, the pool was closed or the call was
    abandoned. `without_view()` returns the reason to report if the deadline passes before any node
    is known.
    """

    __slots__ = (
        "_error",
        "_pool",
        "_resume_at",
        "_started",
        "_tries",
        "_waiting",
        "_without_view",
        "call",
    )

    def __init__(self, pool: Pool, call: BalancedCall, without_view: Callable[[], str]) -> None:
        self.call = call
        self._pool = pool
        self._without_view = without_view
        self._waiting: Callable[[], str] = str  # describes what was waited for last
        self._tries = 0  # nodes looked at since the last wait
        self._resume_at = 0.0  # a pause after a failure
        self._started = 0.0  # when the current attempt started
        self._error: CallError | None = None  # that stands

    def next(self, now: float) -> Step:
        """Return what to do now."""
        try:
            unseen = self.see(now)
            if unseen is not None:
                return unseen
            if now < self._resume_at:
                return Wait(min(self._resume_at - now, self.call.time_left(now)))
            return self._seek(now)
        except CallError as error:
            return Fail(error)

    def see(self, now: float) -> Wait | Fail | None:
        """Return what to do until there is a view; None once there is one."""
        call, pool = self.call, self._pool
        try:
            error, self._error = self._error, None
            if error is not None:
                return Fail(error)
            if pool.closed or call.abandoned:
                why = (
                    "the client is shutting down"
                    if pool.closed
                    else "the caller cancelled the call"
                )
                return Fail(Cancelled(call.explain(why), maybe_executed=call.maybe_executed))
            left = call.time_left(now, self._waiting)
            if pool.view is None:
                self._waiting = self._without_view
                return Wait(left)
        except CallError as late:
            return Fail(late)
        return None

    def _seek(self, now: float) -> Step:
        """Return the next step towards the node whose turn it is.

        If it is not connected it is dialled, and others with it, so that one unreachable node does
        not keep the call from all of them.
        """
        call, pool = self.call, self._pool
        while True:
            target = pool.pick_for(call, now)
            if target.is_ready():
                self._tries = 0
                self._started = now
                target.in_flight += 1
                return Send(target, min(call.time_left(now), pool.limit(call)))
            first = self._tries == 0
            self._tries += 1
            fixed = call.node is not None or call.key is not None
            if self._tries <= MOST_TRIES and (first or not fixed):
                if target.dialling is None and (first or len(pool.dials) < MOST_DIALS):
                    return Dial(target)
                if not fixed:
                    continue
            self._tries = 0
            # Dials may have ended since they were requested, which would not be reported again.
            if pool.dials:
                break
        self._waiting = target.why_waited_for
        return Wait(call.time_left(now, self._waiting))

    # How an attempt ended

    def answered(self, now: float) -> None:
        """Handle the end of an attempt that the node answered."""
        target = self.call.target
        assert target is not None
        self._pool.succeeded(target, self._started, now)

    def failed(self, now: float, error: CallError, blamed: bool) -> None:
        """Handle the end of an attempt that failed; for `blamed` see `Pool.failed`."""
        target = self.call.target
        assert target is not None
        pause = self._pool.failed(self.call, target, error, self._started, now, blamed)
        self.resume(now, error, pause)

    def resume(self, now: float, error: CallError, pause: float | None) -> None:
        """Retry after so many seconds, or, if None, let the call fail with the error."""
        if pause is None:
            self._error = error
        else:
            self._resume_at = now + pause

    def cancelled(self) -> None:
        """Handle the end of an attempt that the caller cancelled."""
        target = self.call.target
        assert target is not None
        self._pool.cancelled(target)
