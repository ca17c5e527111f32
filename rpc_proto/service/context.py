"""Calls being served, what handlers can see of them, and what nested calls inherit."""

import math
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from contextvars import ContextVar
from typing import Any

from rpc_proto.config import Peer
from rpc_proto.connection.calls import InboundCall
from rpc_proto.errors import CallError, LocalProtocolError

from .propagation import merge, trace_context

__all__ = ["CallContext", "Job", "ambient_call", "current_call", "inherit"]


class Job:
    """A call accepted by a Dispatcher, until its handler has ended.

    `call` is the call as it arrived; `method` and its arguments are what to run. `error` is why
    nobody waits for the answer any more, or None. `owner`, `handler` and `began` belong to the
    driver: its object for the connection, whatever runs the handler, and when the handler started,
    which is set only if it did not start at once.
    """

    __slots__ = (
        "_on_cancel",
        "args",
        "began",
        "call",
        "clock",
        "error",
        "flows_on",
        "handler",
        "kwargs",
        "lane",
        "method",
        "owner",
    )

    began: float  # without a value until it is known: that would cost every call something

    def __init__(
        self,
        call: InboundCall,
        method: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        clock: Callable[[], float],
        owner: Any,
    ) -> None:
        self.call = call
        self.method = method  # a Method
        self.args = args
        self.kwargs = kwargs
        self.clock = clock
        self.owner = owner
        self.lane: Any = method.lane  # where it waits for its turn; None if it does not have to
        self.error: CallError | None
        self.flows_on: Mapping[str, str] | None  # metadata for the calls that it makes
        self.handler: Any
        self._on_cancel: list[Callable[[], Any]] | None
        self.error = self.flows_on = self.handler = self._on_cancel = None

    def __repr__(self) -> str:
        return f"<Job {self.call.id} {self.method.name}>"

    def run(self) -> Any:
        """Call the handler; run this in a context of its own: `copy_context().run(job.run)`."""
        ambient_call.set(self)
        return self.method.function(*self.args, **self.kwargs)

    @property
    def answered(self) -> bool:
        """Whether the call has been answered; code still running in its context is independent."""
        return self.call.ended and self.error is None

    def on_cancel(self, callback: Callable[[], Any]) -> Callable[[], Any]:
        """Call `callback()` when the call is cancelled: see `CallContext.on_cancel`."""
        callbacks = self._on_cancel
        if callbacks is None:
            callbacks = self._on_cancel = []
        callbacks.append(callback)

        def undo() -> bool:
            with suppress(ValueError):
                callbacks.remove(callback)
                return True
            return False

        # Checked after the append: a cancellation by another thread either finds the callback or is
        # seen here, or both; whichever removes the callback from the list calls it.
        if self.error is not None and undo():
            callback()
        return undo

    def cancel(self, error: CallError) -> None:
        """Record that nobody waits any more, and why; raises what a callback raises."""
        self.error = error
        callbacks = self._on_cancel
        if callbacks:
            with ExitStack() as stack, suppress(IndexError):  # runs them all, even if one raises
                while True:
                    stack.callback(callbacks.pop())


class CallContext:
    """The call that a handler serves; `current_call()` returns it."""

    __slots__ = ("_job",)

    def __init__(self, job: Job) -> None:
        self._job = job

    def __repr__(self) -> str:
        return f"<CallContext of {self._job.call.method} for {self.peer.address}>"

    @property
    def deadline(self) -> float | None:
        """When the caller stops waiting, in seconds of `time.monotonic()`; None for never."""
        return self._job.call.deadline

    @property
    def time_left(self) -> float | None:
        """Seconds until the deadline, 0 or more; None without one."""
        deadline = self._job.call.deadline
        return None if deadline is None else max(0.0, deadline - self._job.clock())

    @property
    def metadata(self) -> Mapping[str, str]:
        """The metadata that came with the call, read-only."""
        return self._job.call.metadata

    @property
    def peer(self) -> Peer:
        """The caller: address, certificate, and identity (what `authenticate` returned)."""
        peer: Peer = self._job.call.connection.peer
        return peer

    @property
    def cancelled(self) -> bool:
        """Whether nobody waits for the answer any more."""
        return self._job.error is not None

    def raise_if_cancelled(self) -> None:
        """Raise the reason if nobody waits any more; for long loops in `def` handlers."""
        if self._job.error is not None:
            raise self._job.error

    def set_reply_metadata(self, metadata: Mapping[str, str]) -> None:
        """Send this metadata with the answer; replaces what was set before.

        LocalProtocolError if a name or a value is not a string.
        """
        for name, value in metadata.items():
            if not isinstance(name, str) or not isinstance(value, str):
                raise LocalProtocolError(
                    f"reply metadata must map strings to strings, not {name!r} to {value!r}"
                )
        self._job.call.reply_metadata = dict(metadata)

    def on_cancel(self, callback: Callable[[], Any]) -> Callable[[], Any]:
        """Call `callback()` when the call is cancelled; return a function that undoes that.

        If the call is cancelled already, it is called now. It runs wherever the driver learns of
        the cancellation, and must be quick.
        """
        return self._job.on_cancel(callback)


ambient_call: ContextVar[Job | None] = ContextVar("rpc_proto_call", default=None)


def current_call() -> CallContext:
    """Return the call that the running handler serves; LocalProtocolError outside a handler."""
    job = ambient_call.get()
    if job is None:
        raise LocalProtocolError("current_call() works only inside a handler")
    return CallContext(job)


def inherit(
    timeout: float | None, default: float, now: float, metadata: Mapping[str, str] | None
) -> tuple[float | None, Mapping[str, str] | None]:
    """Return the deadline and the metadata of a call that starts now.

    The deadline follows from the caller's timeout, or the default, in seconds. Inside a handler it
    is never later than the deadline of the call being served, whose trace context is added to the
    metadata. ValueError for an invalid timeout.
    """
    if timeout is None:
        timeout = default
    elif not timeout >= 0:
        raise ValueError(f"timeout must be seconds, 0 or more, not {timeout!r}")
    deadline = None if timeout == math.inf else now + timeout
    ambient = ambient_call.get()
    if ambient is not None and not ambient.answered:
        inherited = ambient.call.deadline
        if inherited is not None and (deadline is None or inherited < deadline):
            deadline = inherited
        flows_on = ambient.flows_on
        if flows_on is None:
            flows_on = ambient.flows_on = trace_context(ambient.call.metadata)
        if flows_on:
            metadata = merge(flows_on, metadata)
    return deadline, metadata
