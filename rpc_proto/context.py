"""A call at its server, what its handler can know of it, and what flows into calls it makes."""

import math
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from contextvars import ContextVar
from typing import Any

from .config import Peer
from .errors import CallError, LocalProtocolError
from .frames import Flag
from .headers import NO_METADATA
from .propagation import merge, trace_context

__all__ = ["ServerCall", "ambient_call", "current_call", "inherit"]

_ONE_WAY = Flag.ONE_WAY


class ServerCall:
    """One call as its server's end sees it: from the request until the handler has ended.

    `current_call()` returns it inside a handler. `peer` is who calls, `metadata` what came along
    (read-only), `deadline` when the caller stops waiting: absolute seconds of the driver's
    monotonic clock, or None. `ended` tells that the caller has its outcome, so that whatever the
    handler still does is in vain; if it was not an answer, `error` says why.

    `handler` belongs to the driver: what it runs the handler with; `began`, too: when that was, set
    only if it was not at once. `flows_on` is metadata for the calls that the handler makes; None
    until somebody asks what of `metadata` that is. `arrived` is when the request came. The rest is
    a Dispatcher's: `target` is the Method while the call waits for its handler to end, `lane` where
    it waits for its turn.
    """

    __slots__ = (
        "_on_cancel",
        "args",
        "arrived",
        "began",
        "body",
        "clock",
        "connection",
        "cost",
        "deadline",
        "ended",
        "error",
        "flags",
        "flows_on",
        "handler",
        "id",
        "kwargs",
        "lane",
        "metadata",
        "method",
        "one_way",
        "owner",
        "peer",
        "reply_metadata",
        "target",
    )

    # Without values until they are known: they would cost every call something.
    arrived: float
    began: float
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    connection: Any
    lane: Any
    owner: Any
    clock: Callable[[], float]

    def __init__(
        self,
        call_id: int,
        method: str,
        deadline: float | None,
        metadata: Mapping[str, str],
        flags: int,
        body: bytes,
        peer: Peer,
    ) -> None:
        self.id = call_id
        self.method = method
        self.deadline = deadline
        self.metadata = metadata
        self.flags = flags
        self.body = body
        self.peer = peer
        self.cost = 0  # bytes that the connection counts for it
        self.one_way = flags & _ONE_WAY != 0
        self.ended = False
        self.error: CallError | None = None
        self.reply_metadata = NO_METADATA
        self.flows_on: Mapping[str, str] | None = None
        self.handler: Any = None
        self.target: Any = None
        self._on_cancel: list[Callable[[], Any]] | None = None

    def __repr__(self) -> str:
        return f"<ServerCall {self.id} {self.method}>"

    def invoke(self) -> Any:
        """Call the handler, in a context of its own: `copy_context().run(call.invoke)`."""
        ambient_call.set(self)
        return self.target.function(*self.args, **self.kwargs)

    @property
    def time_left(self) -> float | None:
        """Seconds until the deadline, 0 or more; None without one."""
        deadline = self.deadline
        return None if deadline is None else max(0.0, deadline - self.clock())

    @property
    def cancelled(self) -> bool:
        """Whether nobody waits for the answer any more; `error` says why."""
        return self.error is not None

    @property
    def answered(self) -> bool:
        """Whether the call has been answered, so that what goes on in its context is on its own."""
        return self.ended and self.error is None

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
        self.reply_metadata = dict(metadata)

    def on_cancel(self, callback: Callable[[], Any]) -> Callable[[], Any]:
        """Call `callback()` when the call is cancelled, now if it is; return what undoes that.

        It runs wherever the driver learns of the cancellation and must be quick.
        """
        callbacks = self._on_cancel
        if callbacks is None:
            callbacks = self._on_cancel = []
        callbacks.append(callback)

        def undo() -> bool:
            with suppress(ValueError):
                callbacks.remove(callback)
                return True
            return False

        # Looked at behind the append: a cancellation by another thread finds the callback, or is
        # seen here, or both; whoever takes it off the list calls it.
        if self.error is not None and undo():
            callback()
        return undo

    def cancel(self, error: CallError) -> None:
        """For drivers: nobody waits any more, for the reason given; raises what a callback does."""
        self.error = error
        callbacks = self._on_cancel
        if callbacks:
            with ExitStack() as stack, suppress(IndexError):  # runs them all, even if one raises
                while True:
                    stack.callback(callbacks.pop())


ambient_call: ContextVar[ServerCall | None] = ContextVar("rpc_proto_call", default=None)


def current_call() -> ServerCall:
    """Return the call that the running handler serves; LocalProtocolError outside of one."""
    context = ambient_call.get()
    if context is None:
        raise LocalProtocolError("current_call() works only inside a handler")
    return context


def inherit(
    timeout: float | None, default: float, now: float, metadata: Mapping[str, str] | None
) -> tuple[float | None, Mapping[str, str] | None]:
    """Return deadline and metadata of a call that starts now.

    The deadline is that of the caller's timeout, or of the default. Inside a handler it is never
    later than the deadline of the call being served, and the trace context of that goes with the
    metadata. ValueError for a timeout that is no time.
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
            deadline = inherited
        flows_on = ambient.flows_on
        if flows_on is None:
            flows_on = ambient.flows_on = trace_context(ambient.metadata)
        if flows_on:
            metadata = merge(flows_on, metadata)
    return deadline, metadata
