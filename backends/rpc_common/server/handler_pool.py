"""The threads in which blocking handlers run."""

from collections.abc import Callable
from contextvars import copy_context
from time import monotonic
from typing import Any

from rpc_common.telemetry.log import Log
from rpc_common.transport.threads import Job as Task
from rpc_common.transport.threads import Threads
from rpc_proto import Cancelled, ResourceExhausted
from rpc_proto.service.context import Job

__all__ = ["HandlerPool"]

# deliver(job, result, error): called in a thread of the pool when a handler has ended; it must
# have `HandlerPool.ended` called where the server runs.
Deliver = Callable[[Job, Any, BaseException | None], None]


class HandlerPool:
    """Runs handlers in at most `threads` threads, each in a copy of the context.

    A thread cannot be stopped: a handler whose call has ended early is abandoned, and keeps its
    thread until it returns. `answer(job, result, error)` is called for each end.
    """

    def __init__(self, threads: int, answer: Deliver, deliver: Deliver, log: Log) -> None:
        self.abandoned: set[Job] = set()
        self._threads = Threads(threads, "rpc-handler")
        self._answer = answer
        self._deliver = deliver
        self._log = log

    def run(self, job: Job) -> None:
        """Run a handler; ResourceExhausted if there is no thread for it."""
        context = copy_context()

        def work() -> None:
            result, error = None, None
            job.began = monotonic()
            try:
                if job.call.ended:
                    raise Cancelled("cancelled before it ran")
                result = context.run(job.run)
            except BaseException as raised:
                error = raised
            self._deliver(job, result, error)
            del error  # its traceback holds this frame

        job.handler = self.submit(job, work)

    def submit(self, job: Job, work: Callable[[], None]) -> Task:
        """Run a part of a handler; ResourceExhausted if there is no thread for it."""
        try:
            return self._threads.submit(work)
        except RuntimeError as error:
            self._log.error("no thread for %s: %s", job.method.name, error)
            raise ResourceExhausted("the server has no thread for the handler") from None

    def ended(self, job: Job, result: Any, error: BaseException | None) -> None:
        """Answer the call of a handler that has ended."""
        job.handler = None
        self.abandoned.discard(job)
        self._answer(job, result, error)

    def stop(self, job: Job) -> None:
        """Keep a handler from running, or abandon it."""
        if job.handler is None:  # it has ended, or is about to start and will notice
            return
        if job.handler.cancel():
            self.ended(job, None, Cancelled("cancelled before it ran"))
        else:
            self.abandon(job)

    def abandon(self, job: Job) -> None:
        """Record that a handler is still running after its call has ended."""
        self.abandoned.add(job)
        if job.method.streams:  # its iterator is closed as soon as it yields again
            return
        self._log.warning(
            "%s is still running after its call ended (%s); abandoned handlers hold %d threads",
            job.method.name,
            job.error,
            len(self.abandoned),
        )

    def close(self) -> None:
        """Let the threads end when they are done; jobs that have not started are dropped."""
        self._threads.close()
