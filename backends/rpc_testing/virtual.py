"""Puts the drivers into virtual time and a network in memory, until that is undone.

The modules of the drivers bind `monotonic`, `random` and the functions that open sockets by name.
Here they are given others, for as long as a test runs. Nothing else in the process is changed, but
for `time.sleep` in the threads that virtual time waits for.
"""

import importlib
import pkgutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from types import ModuleType
from typing import Any

from rpc_common.transport import sockets
from rpc_common.transport.threads import Job, Threads

from .network import Network

__all__ = ["LONGEST", "START", "Deadlock", "Outside", "installed", "replaced", "too_long"]

START = 1000.0  # what the clocks show first

# Who still waits after a week, waits for what does not come, while connections send their pings.
LONGEST = 7 * 86_400.0

_PACKAGES = ("rpc_common", "rpc_asyncio", "rpc_blocking", "rpc_gevent")


class Deadlock(RuntimeError):
    """Everybody waits, and nothing is scheduled: the test would wait for ever."""


def too_long() -> Deadlock:
    """Return the error for those who wait for what does not come."""
    return Deadlock(f"{LONGEST:g} s of virtual time have passed, and the test still waits")


class Outside:
    """Counts the threads that do something at the moment, for which virtual time has to wait."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.busy = 0
        self._waiting: dict[object, Callable[[], bool]] = {}
        self._here = threading.local()

    def enter(self, number: int = 1) -> None:
        with self.changed:
            self.busy += number
            if self.busy <= 0:
                self.changed.notify_all()

    def leave(self) -> None:
        self.enter(-1)

    @property
    def rests(self) -> bool:
        """Whether no thread does anything, or is about to."""
        return self.busy <= 0 and not any(ready() for ready in self._waiting.values())

    @property
    def is_counted(self) -> bool:
        """Whether this thread is one of those for which virtual time waits."""
        return getattr(self._here, "counted", False)

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Count this thread, which has entered, until the end."""
        self._here.counted = True
        try:
            yield
        finally:
            self._here.counted = False
            self.leave()

    @contextmanager
    def waiting(self, ready: Callable[[], bool]) -> Iterator[None]:
        """This thread waits until `ready()` is true."""
        if not self.is_counted:
            yield
            return
        key = object()
        with self.changed:
            self._waiting[key] = ready
        self.leave()
        try:
            yield
        finally:
            self.enter()
            with self.changed:
                del self._waiting[key]

    def threads(self) -> type[Threads]:
        """Return what to use in place of a pool of threads."""
        outside = self

        class Counted(Threads):
            def submit(self, run: Callable[[], None]) -> Job:
                def counted() -> None:
                    with outside.counted():
                        run()

                outside.enter()
                try:
                    return _Leaving(super().submit(counted), outside)
                except BaseException:
                    outside.leave()
                    raise

        return Counted


class _Leaving(Job):
    """A job that also leaves when it is cancelled before it ran."""

    __slots__ = ("_job", "_outside")

    def __init__(self, job: Job, outside: Outside) -> None:
        super().__init__(job.run)
        self._job = job
        self._outside = outside

    def cancel(self) -> bool:
        cancelled = self._job.cancel()
        if cancelled:
            self._outside.leave()
        return cancelled


def _modules() -> list[ModuleType]:
    """Return all modules of the drivers that can be imported here."""
    found = []
    for name in _PACKAGES:
        if name == "rpc_gevent" and name not in sys.modules:
            continue  # importing gevent is for those who use it
        package = importlib.import_module(name)
        found.append(package)
        for info in pkgutil.walk_packages(package.__path__, f"{name}."):
            with suppress(ImportError):  # of an extra that is not installed
                found.append(importlib.import_module(info.name))
    return found


@contextmanager
def replaced(changes: "list[tuple[Any, str, Any]]") -> Iterator[None]:
    """Set attributes, and set them back at the end."""
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in changes]
    try:
        for owner, name, value in changes:
            setattr(owner, name, value)
        yield
    finally:
        for owner, name, value in reversed(before):
            setattr(owner, name, value)


def _sleep(
    real: Callable[[float], None],
    virtual: Callable[[float], None],
    outside: Outside,
    /,
    secs: float,
) -> None:
    (virtual if outside.is_counted else real)(secs)


_installed = threading.Lock()


@contextmanager
def installed(
    monotonic: Callable[[], float],
    network: Network,
    outside: Outside,
    sleep: Callable[[float], None] | None = None,
    random: Callable[[], float] | None = None,
) -> Iterator[None]:
    """Let the drivers use this clock, this network, and this source of numbers from 0 to 1.

    With `sleep`, `time.sleep` of the counted threads is that.
    """
    if not _installed.acquire(blocking=False):
        raise RuntimeError("only one rig at a time: the drivers can live in one virtual time only")

    def listen(where: Any, _sockets: Any, _log: Any) -> Any:
        return network.listen(where)

    threads = outside.threads()
    instead = {
        "monotonic": (time.monotonic, monotonic),
        "listen": (sockets.listen, listen),
        "Threads": (Threads, threads),
    }
    if random is not None:
        import random as dice

        instead["random"] = (dice.random, random)
    try:
        changes = [
            (module, name, new)
            for module in _modules()
            for name, (old, new) in instead.items()
            if module.__dict__.get(name) is old and module.__name__ != Threads.__module__
        ]
        if sleep is not None:
            changes.append((time, "sleep", partial(_sleep, time.sleep, sleep, outside)))
        with replaced(changes):
            yield
    finally:
        _installed.release()
