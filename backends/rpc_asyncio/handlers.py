"""Running coroutine handlers: immediately, and as a Task only if they wait for something.

A handler's first step runs inside the callback that received the call, with a spare Task as
`asyncio.current_task()`. Most handlers end there, and the spare serves the next one. A handler that
waits takes over the spare, which really is its Task, so cancellation, `asyncio.timeout` and task
groups work from its first line on.
"""

import asyncio
from collections.abc import Callable, Coroutine
from contextvars import Context, copy_context
from functools import partial
from typing import TYPE_CHECKING, Any

from rpc_proto.service.context import Job

from .internals import (
    HAS_PRIVATE_NAMES,
    enter_task,
    is_future,
    leave_task,
    mark_yielded,
    will_be_cancelled,
)

__all__ = ["HandlerRunner"]

_NOTHING: Any = object()

# report(job, result, error): a handler ended
Report = Callable[[Job, Any, BaseException | None], None]
# end_process(error): called after the report of a handler that raised this
EndProcess = Callable[[KeyboardInterrupt | SystemExit], None]


class _DirectRunner:
    """Runs the coroutine handlers of one server on one event loop."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, report: Report, end_process: EndProcess
    ) -> None:
        self._loop = loop
        self._report = report
        self._end_process = end_process
        self._spare: _Handler | None = None
        self.tasks: set[asyncio.Task[None]] = set()

    def start(self, job: Job) -> None:
        """Run a handler up to its end or its first wait; report its end, now or later."""
        spare = self._spare
        if spare is None or spare.is_spoilt():
            spare = self._spare = _Handler(self)
        context = copy_context()
        loop = self._loop
        task = spare.task
        enter_task(loop, task)
        try:
            result = context.run(spare.begin, job)
        except BaseException as error:
            leave_task(loop, task)
            spare.coroutine = spare.job = job.handler = None
            self._report(job, None, error)
            if isinstance(error, (KeyboardInterrupt, SystemExit)):
                self._end_process(error)
            return
        leave_task(loop, task)
        if spare.coroutine is None:
            self._report(job, result, None)
        else:
            self._spare = None
            self.tasks.add(task)
            spare.adopt(context, result)

    def cancel(self, job: Job) -> None:
        """Cancel the Task of a handler that waits."""
        job.handler.task.cancel()

    def ended(self, handler: "_Handler", result: Any, error: BaseException | None) -> None:
        """Record the end of a handler that waited."""
        job = handler.job
        assert job is not None
        self.tasks.discard(handler.task)
        # Task and handler, call and context must not keep each other alive.
        del handler.task
        handler.coroutine = handler.context = handler.job = job.handler = None
        self._report(job, result, error)
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            self._end_process(error)

    def close(self) -> None:
        """Cancel the spare Task."""
        if self._spare is not None:
            self._spare.task.cancel()
            self._spare = None


class _PlainRunner:
    """Runs each coroutine handler as a Task, from the next turn of the loop on."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, report: Report, end_process: EndProcess
    ) -> None:
        self._loop = loop
        self._report = report
        self._end_process = end_process
        self.tasks: set[asyncio.Task[Any]] = set()

    def start(self, job: Job) -> None:
        """Run a handler; report its end later."""
        name = f"rpc handler {job.method.name}"
        outcome: list[Any] = []
        job.handler = task = self._loop.create_task(self._run(job, outcome), name=name)
        self.tasks.add(task)
        task.add_done_callback(partial(self._ended, job, outcome))

    async def _run(self, job: Job, outcome: list[Any]) -> None:
        # Not as that of the Task, which a handler that cancels itself would lose, and which would
        # end the process before the call is answered.
        try:
            outcome += await job.run(), None
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            outcome += None, error

    def cancel(self, job: Job) -> None:
        """Cancel the Task of a handler."""
        job.handler.cancel()

    def _ended(self, job: Job, outcome: list[Any], task: "asyncio.Task[Any]") -> None:
        self.tasks.discard(task)
        job.handler = None
        result, error = outcome or (None, asyncio.CancelledError())
        outcome.clear()
        self._report(job, result, error)
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            self._end_process(error)
        error = None  # or error, traceback and frame would keep each other alive

    def close(self) -> None:
        """Do nothing: there is no spare Task."""


if TYPE_CHECKING or HAS_PRIVATE_NAMES:  # noqa: SIM108 - a type to a type checker
    HandlerRunner = _DirectRunner
else:
    HandlerRunner = _PlainRunner


class _Handler(Coroutine[Any, Any, None]):
    """The coroutine of a Task that first waits for a handler to adopt and then is that handler."""

    __slots__ = ("_runner", "_waits_for", "context", "coroutine", "job", "parked", "task")

    def __init__(self, runner: _DirectRunner) -> None:
        self._runner = runner
        self.parked: asyncio.Future[None] | None = None
        self.coroutine: Any = None
        self.context: Context | None = None
        self._waits_for = _NOTHING
        self.job: Job | None = None
        self.task: asyncio.Task[None] = runner._loop.create_task(self, name="rpc handler, spare")

    def is_spoilt(self) -> bool:
        """Whether a handler that ended at its first step cancelled the Task."""
        if self.parked is not None:
            return self.parked.done()
        # Not `cancelling()`: the handler may have taken that back, which does not undo this.
        return self.task.done() or will_be_cancelled(self.task)

    def begin(self, job: Job) -> Any:
        """Run a handler's first step; return its result, or what it waits for: see `coroutine`."""
        self.job = job
        job.handler = self
        self.coroutine = coroutine = job.run()
        try:
            return coroutine.send(None)
        except StopIteration as stop:  # caught here, it costs half of what it does further out
            self.coroutine = self.job = job.handler = None
            return stop.value

    def adopt(self, context: Context, waits_for: Any) -> None:
        """Go on with the handler whose first step yielded `waits_for`."""
        assert self.job is not None
        self.context = context
        self._waits_for = waits_for
        self.task.set_name(f"rpc handler {self.job.method.name}")
        if self.parked is not None and not self.parked.done():
            self.parked.set_result(None)

    def send(self, value: Any) -> Any:
        if self._waits_for is not _NOTHING:
            # What the first step yielded is handed to the Task late, and otherwise untouched.
            waits_for, self._waits_for = self._waits_for, _NOTHING
            return waits_for
        if self.coroutine is None:
            self.parked = self._runner._loop.create_future()
            mark_yielded(self.parked)
            return self.parked
        return self._step(self.coroutine.send, value)

    def throw(self, typ: Any, val: Any = None, tb: Any = None) -> Any:
        error = typ if val is None else val
        typ = val = None
        if self.coroutine is None:
            raise error
        if self._waits_for is not _NOTHING:
            # Cancelled before the Task saw what its handler waits for: do what it would have done.
            waits_for, self._waits_for = self._waits_for, _NOTHING
            if is_future(waits_for) and waits_for.cancel():
                return waits_for
        try:
            return self._step(self.coroutine.throw, error)
        finally:
            error = None  # or error, traceback and frame would keep each other alive

    def _step(self, resume: Callable[[Any], Any], value: Any) -> Any:
        assert self.context is not None
        try:
            return self.context.run(resume, value)
        except StopIteration as stop:
            self._runner.ended(self, stop.value, None)
        except BaseException as error:
            value = None  # or error, traceback and frame would keep each other alive
            self._runner.ended(self, None, error)
            if isinstance(error, asyncio.CancelledError):
                raise
        raise StopIteration

    def close(self) -> None:
        if self.coroutine is not None:
            self.coroutine.close()

    def __await__(self) -> Any:
        return self
