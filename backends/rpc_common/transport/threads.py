"""The library's threads, and a bounded pool of them for handlers.

All are daemons, because a handler that never returns must not keep the process alive. But a daemon
that wakes up while the interpreter is torn down may crash it, so at exit they are told to end and
are waited for.
"""

import atexit
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue
from threading import Lock, Thread
from time import monotonic
from typing import Protocol
from weakref import WeakSet

from rpc_common.telemetry.log import get_log

__all__ = ["HelperThread", "Job", "Threads", "end_at_exit"]

_log = get_log("rpc_common")

# How long the process waits for its threads at exit, in seconds.
_PATIENCE = 1.0


class HelperThread(Thread):
    """A thread of the library."""

    def __init__(self, target: Callable[[], object], name: str) -> None:
        super().__init__(target=target, name=name, daemon=True)


class _Owner(Protocol):
    def end_threads(self) -> None:
        """Tell the threads to end, without waiting; the process is about to exit."""


_owners: "WeakSet[_Owner]" = WeakSet()


def end_at_exit(owner: _Owner) -> None:
    """Call `owner.end_threads()` before the interpreter is torn down, if the owner still exists."""
    _owners.add(owner)


def _end_all() -> None:
    until = monotonic() + _PATIENCE
    for owner in list(_owners):
        with suppress(Exception):
            owner.end_threads()
    for thread in threading.enumerate():
        if isinstance(thread, HelperThread):
            thread.join(max(0.0, until - monotonic()))


atexit.register(_end_all)
os.register_at_fork(after_in_child=_owners.clear)  # their threads and sockets are the parent's


class Job:
    """Something to run at most once: the first to claim it decides."""

    __slots__ = ("_claim", "run")

    def __init__(self, run: Callable[[], None]) -> None:
        self.run = run
        self._claim = Lock()

    def claim(self) -> bool:
        """Return True to the first caller: a thread that runs it, or `cancel`."""
        return self._claim.acquire(blocking=False)

    def cancel(self) -> bool:
        """Keep it from running; False if it has started."""
        return self.claim()


def _nothing() -> None:
    """Do nothing."""


class Threads:
    """Runs jobs in at most `count` threads, which are started when needed."""

    def __init__(self, count: int, name: str) -> None:
        if count < 1:
            raise ValueError(f"threads must be 1 or more, not {count}")
        self._count = count
        self._name = name
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._lock = Lock()
        self._started = 0
        self._idle = 0  # waiting threads, less the jobs in the queue

    def submit(self, run: Callable[[], None]) -> Job:
        """Run something as soon as a thread is free; exceptions are logged.

        RuntimeError if there is no thread and none can be started.
        """
        job = Job(run)
        with self._lock:
            self._idle -= 1
            start = self._idle < 0 and self._started < self._count
            if start:
                self._started += 1
                self._idle += 1
        self._jobs.put(job)
        if start:
            end_at_exit(self)
            try:
                HelperThread(self._work, self._name).start()
            except RuntimeError:  # no more threads can be started; the existing ones will do
                with self._lock:
                    self._started -= 1
                    self._idle -= 1
                    if not self._started and job.claim():
                        raise
        return job

    def close(self) -> None:
        """Let the threads end when they are done; jobs that have not started are dropped."""
        with suppress(Empty):
            while True:
                self._jobs.get_nowait()
        for _ in range(self._started):
            self._jobs.put(None)

    def end_threads(self) -> None:
        self.close()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            if job.claim():
                try:
                    job.run()
                except BaseException:  # the next job still needs this thread
                    _log.exception("a job of %s failed", self._name)
            job.run = _nothing  # or a call, its job and what it runs would keep each other alive
            del job  # or it would live until the next one comes
            with self._lock:
                self._idle += 1
