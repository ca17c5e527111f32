"""What a handler can know about the call it serves, and what flows from it into calls it makes."""

import math
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from contextvars import ContextVar
from typing import Any

from .calls import ServerCall
from .config import Peer
from .errors import CallError, LocalProtocolError

__all__ = ["CallContext", "ambient_call", "current_call", "pick_deadline"]


class CallContext:
    """The call that is being served; `current_call()` returns it inside a handler."""

    __slots__ = ("_clock", "_on_cancel", "call", "error", "peer")

    def __init__(self, call: ServerCall, peer: Peer, clock: Callable[[], float]) -> None:
        self.call = call
        self._clock = clock
        self._on_cancel: list[Callable[[], Any]] | None = None
        self.peer = peer
        self.error: CallError | None = None

    @property
    def method(self) -> str:
        """The name that was called, "Service.method"."""
        return self.call.method

    @property
    def metadata(self) -> Mapping[str, str]:
        """What the caller sent along; read-only."""
        return self.call.metadata

    @property
    def deadline(self) -> float | None:
        """When the caller stops waiting: absolute seconds of the driver's monotonic clock."""
        return self.call.deadline

    @property
    def time_left(self) -> float | None:
        """Seconds until the deadline, 0 or more; None without one."""
        deadline = self.call.deadline
        return None if deadline is None else max(0.0, deadline - self._clock())

    @property
    def cancelled(self) -> bool:
        """Whether nobody waits for the answer any more; `error` says why."""
        return self.error is not None

    @property
    def answered(self) -> bool:
        """Whether the call has been answered, so that what goes on in its context is on its own."""
        return self.call.ended and self.error is None

    def raise_if_cancelled(self) -> None:
        """Raise the reason if nobody waits any more: for a `def` handler with a long loop."""
        if self.error is not None:
            raise self.error

    def set_reply_metadata(self, metadata: Mapping[str, str]) -> None:
        """Send strings along with the answer, in place of what was set before."""
        for name, value in metadata.items():
            if not isinstance(name, str) or not isinstance(value, str):
                raise LocalProtocolError(
                    f"reply metadata must map strings to strings, not {name!r} to {value!r}"
                )
        self.call.reply_metadata = dict(metadata)

    def on_cancel(self, callback: Callable[[], Any]) -> Callable[[], None]:
        """Call `callback()` when the call is cancelled, now if it is; return what undoes that.

        It runs wherever the driver learns of the cancellation and must be quick.
        """
        if self.error is not None:
            callback()
            return lambda: None
        callbacks = self._on_cancel
        if callbacks is None:
            callbacks = self._on_cancel = []
        callbacks.append(callback)

        def undo() -> None:
            if callback in callbacks:
                callbacks.remove(callback)

        return undo

    def cancel(self, error: CallError) -> None:
        """For drivers: nobody waits any more, for the reason given; raises what a callback does."""
        self.error = error
        callbacks, self._on_cancel = self._on_cancel, None
        if callbacks:
            with ExitStack() as stack:  # runs them all, even if one raises
                for callback in reversed(callbacks):
                    stack.callback(callback)


ambient_call: ContextVar[CallContext | None] = ContextVar("rpc_proto_call", default=None)


def current_call() -> CallContext:
    """Return the call that the running handler serves; LocalProtocolError outside of one."""
    context = ambient_call.get()
    if context is None:
        raise LocalProtocolError("current_call() works only inside a handler")
    return context


def pick_deadline(timeout: float | None, default: float, now: float) -> float | None:
    """Return the deadline of a call that starts now: the caller's timeout, or the default.

    Inside a handler it is never later than the deadline of the call being served. ValueError for a
    timeout that is no time.
    """
    if timeout is None:
        timeout = default
    elif not timeout >= 0:
        raise ValueError(f"timeout must be seconds, 0 or more, not {timeout!r}")
    deadline = None if timeout == math.inf else now + timeout
    ambient = ambient_call.get()
    if ambient is not None and not ambient.answered:
        inherited = ambient.deadline
        if inherited is not None and (deadline is None or inherited < deadline):
            return inherited
    return deadline
