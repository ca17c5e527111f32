"""Electing the thread that reads: one of the waiting threads reads for all of them.

A thread that starts to wait while no other reads becomes the reader. When its own wait is over, it
passes the role to a sleeping thread. So a connection needs no thread of its own.
"""

import socket
from collections.abc import Callable
from contextlib import suppress
from select import POLLIN, POLLOUT
from threading import Lock, get_ident, main_thread
from time import monotonic
from typing import Any, Protocol
from weakref import ref

from .channel import LONGEST, is_of_socket
from .locks import OwnedLock

__all__ = ["PATIENCE", "Election", "Host", "Transport", "Waiter"]

# After waiting for so many seconds, a reader can be woken by other threads. Most answers come
# sooner, which saves a system call.
PATIENCE = 0.008

# A signal that arrives just before the main thread falls asleep does not wake it, so that thread
# sleeps for at most so many seconds.
_DEAF = 1.0


class Waiter:
    """Waits for a call: `event` is set when it has ended; `bed` while the thread sleeps."""

    __slots__ = ("bed", "event", "taken")

    def __init__(self) -> None:
        self.event: Any = None
        self.taken = False  # by the one thread that may wait for it
        self.bed: Lock | None = None

    def wake(self) -> None:
        """Wake the sleeping thread."""
        if self.bed is not None:
            self.bed.release()
            self.bed = None


class Transport(Protocol):
    """What to read from: see `Channel`."""

    unsent: Any

    def receive(self) -> Any:
        """Wait for bytes for at most `PATIENCE`; None when that is over."""

    def wait(self, timeout: float | None, what: int, bell: socket.socket | None = None) -> bool:
        """Wait until there is something to receive, the bell rings, or the time is over."""


class Host(Protocol):
    """The owner of an election, which calls it with the lock held."""

    def take(self, data: Any, failure: OSError | None) -> bool:
        """Take what was read: bytes, None, or a failure; return whether a turn is due."""

    def turn(self) -> None:
        """Do what is due, and write."""

    def next_timeout(self) -> float | None:
        """Return when a turn is due, in absolute seconds."""

    def tidy(self) -> None:
        """Close what can be closed now that nobody reads."""


class Election:
    """Lets threads wait for events while one of them reads for all.

    `lock` guards it and its host. The host calls `settle` with each event.
    """

    def __init__(self, lock: OwnedLock, transport: Transport, host: Host) -> None:
        self.reader: Waiter | None = None  # the waiter of the reading thread
        self.sleepers: dict[Waiter, None] = {}
        self.polling = 0  # what the reader polls for, while it can be woken
        self._bell: tuple[socket.socket, socket.socket] | None = None  # wakes it; made when needed
        self._lock = lock
        self._transport = transport
        # Weak, so that a dropped client is freed at once and not by the garbage collector.
        self._host: Callable[[], Any] = ref(host)

    def wait(self, waiter: Waiter) -> None:
        """Return when `waiter` has its event. The lock is not held."""
        try:
            while waiter.event is None:
                with self._lock.lock:
                    timeout, bed = self._take_part(waiter)
                if bed is not None:
                    # When woken with its event, it does not need the lock again.
                    bed.acquire(timeout=max(0.0, timeout))
        except BaseException:
            with self._lock.lock:
                self.sleepers.pop(waiter, None)
            raise
        finally:
            if self.reader is None and self.sleepers:
                with self._lock.lock:
                    self._hand_on()

    # All below is called with the lock held

    def settle(self, waiter: Waiter, event: Any) -> None:
        """Give a waiter its event, and wake its thread."""
        waiter.event = event
        if waiter is self.reader:
            self.ring()
        else:
            self.sleepers.pop(waiter, None)
            waiter.wake()

    def ring(self) -> None:
        """Let the reader look again, if it is another thread that polls."""
        if self.polling and self._bell is not None:
            self.polling = 0  # once is enough
            self._bell[1].send(b"\0")

    def ring_for_writing(self) -> None:
        """Let a reader that polls for bytes to read see that there are bytes to write, too."""
        if self.polling == POLLIN:
            self.ring()

    def close(self) -> None:
        """Close the bell."""
        if self._bell is not None:
            for end in self._bell:
                end.close()
            self._bell = None

    def time_left(self, until: float | None = None) -> float:
        """Return for how many seconds this thread may wait."""
        at = self._host().next_timeout()
        if until is not None and (at is None or until < at):
            at = until
        left = LONGEST if at is None else min(at - monotonic(), LONGEST)
        return _DEAF if left > _DEAF and get_ident() == main_thread().ident else left

    def read(self, waiter: Waiter, until: float | None) -> None:
        """Read, for all, until `waiter` has its event or the time is over."""
        host, transport, lock = self._host(), self._transport, self._lock
        self.reader = waiter
        waited = False
        try:
            while waiter.event is None:
                timeout = self.time_left(until)
                bell = None
                what = POLLIN | POLLOUT if transport.unsent else POLLIN
                if waited or transport.unsent or timeout < PATIENCE:
                    bell = self._get_bell()
                    self.polling = what
                data: Any = None
                failure: OSError | None = None
                interruption: BaseException | None = None
                try:
                    lock.lock.release()
                    if bell is None or transport.wait(timeout, what, bell):
                        data = transport.receive()
                except OSError as error:
                    if not is_of_socket(error):
                        raise
                    failure = error
                finally:
                    try:
                        interruption = lock.take_back()
                    except BaseException as error:  # of a signal, before its first line
                        lock.take_back()
                        interruption = error
                    self.polling = 0
                waited = data is None
                is_due = host.take(data, failure)
                if interruption is not None:  # but what was read is not lost
                    raise interruption
                if waited and failure is None and until is not None and monotonic() >= until:
                    return
                if is_due:
                    host.turn()
        finally:
            self.reader = None
            self.polling = 0
            self._hand_on()
            host.tidy()

    def _take_part(self, waiter: Waiter) -> tuple[float, Any]:
        """Read for all until the event is there; or return how long to sleep, and on what."""
        if self.sleepers.pop(waiter, self) is None:
            self._host().turn()  # it slept until that is due
        waiter.bed = None
        if waiter.event is None and self.reader is None:
            self.read(waiter, None)
        if waiter.event is not None:
            return 0.0, None
        timeout = self.time_left()
        bed = waiter.bed = Lock()
        bed.acquire()
        self.sleepers[waiter] = None
        return timeout, bed

    def _hand_on(self) -> None:
        """Let one of those that sleep read for the rest."""
        if self.reader is None and self.sleepers:
            self.sleepers.popitem()[0].wake()

    def _get_bell(self) -> socket.socket | None:
        """Return what rings when another thread wants the reader to look again.

        None when the process has no descriptor left: the reader then looks each time its patience
        is over.
        """
        if self._bell is None:
            try:
                self._bell = socket.socketpair()
            except OSError:
                return None
            for end in self._bell:
                end.setblocking(False)
        ear = self._bell[0]
        with suppress(BlockingIOError):
            ear.recv(64)
        return ear
