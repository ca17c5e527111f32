"""A bounded pool of threads for handlers.

Unlike those of concurrent.futures its threads are daemons: a handler that never ends must not keep
the process from ending.
"""

from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue
from threading import Lock, Thread

__all__ = ["Job", "Threads"]


class Job:
    """Something to run once, or never: whoever claims it first decides."""

    __slots__ = ("_claim", "run")

    def __init__(self, run: Callable[[], None]) -> None:
        self.run = run
        self._claim = Lock()

    def claim(self) -> bool:
        """Return True to the first who asks: a thread to run it, or `cancel`."""
        return self._claim.acquire(blocking=False)

    def cancel(self) -> bool:
        """Keep it from running; False if it has begun."""
        return self.claim()


def _nothing() -> None:
    """Do nothing."""


class Threads:
    """Runs jobs in at most `count` threads, which are started when they are needed."""

    def __init__(self, count: int, name: str) -> None:
        if count < 1:
            raise ValueError(f"threads must be 1 or more, not {count}")
        self._count = count
        self._name = name
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._lock = Lock()
        self._started = 0
        self._idle = 0  # those that wait, less the jobs that have been put for them

    def submit(self, run: Callable[[], None]) -> Job:
        """Run something as soon as a thread is free; it must not raise.

        RuntimeError if there is no thread and none can be had.
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
            try:
                Thread(target=self._work, name=self._name, daemon=True).start()
            except RuntimeError:  # no more threads can be had; those that there are will do
                with self._lock:
                    self._started -= 1
                    self._idle -= 1
                    if not self._started and job.claim():
                        raise
        return job

    def close(self) -> None:
        """Let the threads end when they are done; jobs that have not begun are dropped."""
        with suppress(Empty):
            while True:
                self._jobs.get_nowait()
        for _ in range(self._started):
            self._jobs.put(None)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            if job.claim():
                job.run()
            job.run = _nothing  # or a call, its job and what it runs would keep each other alive
            del job  # or it would live until the next one comes
            with self._lock:
                self._idle += 1
