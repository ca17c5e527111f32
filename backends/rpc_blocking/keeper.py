"""The thread of a server that waits for everything except its connections' bytes."""

import socket
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack, suppress
from heapq import heapify, heappop, heappush
from itertools import count
from selectors import EVENT_READ, EVENT_WRITE, BaseSelector, DefaultSelector
from threading import Event, Lock
from time import monotonic

from rpc_common.telemetry.log import Log
from rpc_common.transport.threads import HelperThread

from .channel import LONGEST

__all__ = ["Appointment", "Keeper"]

# So many cancelled appointments may stay in the heap, or as many as there are others.
_SLACK = 64

Callback = Callable[[], None]


class Appointment:
    """Something to do at some time. When cancelled, it drops its callback."""

    __slots__ = ("due",)

    def __init__(self, due: Callback) -> None:
        self.due: Callback | None = due


class Keeper:
    """Accepts connections, waits for the kernel to take more bytes, and runs timers.

    Its callbacks must not block; their exceptions are logged.
    """

    def __init__(self, log: Log) -> None:
        self._log = log
        self._lock = Lock()  # of the timers and of the start
        self._timers: list[tuple[float, int, Appointment]] = []
        self._cancelled = 0  # of those in the heap
        self._order = count()
        self._news: deque[Callback] = deque()
        self._selector: BaseSelector  # these come with the thread
        self._ear: socket.socket
        self._mouth: socket.socket
        self._thread: HelperThread | None = None
        self._paused: set[int] = set()  # listeners
        self._closed = False

    # From any thread

    def accept(self, listener: int, accept: Callable[[], float]) -> None:
        """Call `accept()` when there is a connection; it returns how long to pause.

        OSError if the thread cannot be started.
        """
        self._tell(lambda: self._listen(listener, accept))

    def refuse(self, listener: int) -> None:
        """Stop accepting from a listener, which may be closed afterwards."""
        done = Event()

        def refuse() -> None:
            self._forget(listener)
            self._paused.discard(listener)
            done.set()

        self._tell(refuse)
        done.wait()

    def watch(self, fd: int, writable: Callback) -> None:
        """Call `writable()` once when the kernel takes bytes for a descriptor again."""
        self._tell(lambda: self._watch(fd, writable))

    def forget(self, fd: int) -> None:
        """Stop watching a descriptor; call it before closing it."""
        self._tell(lambda: self._forget(fd))

    def call_at(self, at: float, due: Callback) -> Appointment:
        """Call `due()` at that time of the monotonic clock."""
        appointment = Appointment(due)
        with self._lock:
            heappush(self._timers, (at, next(self._order), appointment))
            # The thread checks the timers when it starts, too.
            first = self._timers[0][2] is appointment and self._thread is not None
        if first:
            self._wake()
        return appointment

    def cancel(self, appointment: Appointment) -> None:
        """Cancel an appointment, if it is still pending."""
        with self._lock:
            if appointment.due is None:
                return
            appointment.due = None
            self._cancelled += 1
            if self._cancelled > len(self._timers) // 2 + _SLACK:
                self._timers = [entry for entry in self._timers if entry[2].due is not None]
                heapify(self._timers)
                self._cancelled = 0

    def close(self, timeout: float | None = None) -> None:
        """End the thread, and wait for that, at most `timeout` seconds."""
        if self._thread is None:
            return

        def close() -> None:
            self._closed = True

        self._tell(close)
        self._thread.join(timeout)
        if self._thread.is_alive():
            return
        self._selector.close()
        self._ear.close()
        self._mouth.close()

    def _tell(self, news: Callback) -> None:
        with self._lock:
            if self._thread is None:
                self._start()
            self._news.append(news)
        self._wake()

    def _start(self) -> None:
        """Start the thread, or leave everything as it was and raise OSError."""
        with ExitStack() as undo:
            self._selector = undo.enter_context(DefaultSelector())
            self._ear, self._mouth = map(undo.enter_context, socket.socketpair())
            self._ear.setblocking(False)
            self._mouth.setblocking(False)
            self._selector.register(self._ear, EVENT_READ)
            thread = HelperThread(self._run, "rpc-keeper")
            try:
                thread.start()
            except RuntimeError as error:
                raise OSError(f"no thread for the server: {error}") from error
            self._thread = thread
            undo.pop_all()

    def _wake(self) -> None:
        with suppress(OSError):  # full: it will wake; closed: the server has stopped
            self._mouth.send(b"\0")

    # The thread

    def _run(self) -> None:
        while not self._closed:
            for key, _ in self._selector.select(self._time_left()):
                if key.fileobj is self._ear:
                    with suppress(BlockingIOError):
                        self._ear.recv(4096)
                else:
                    self._do(key.data)
            while self._news:
                self._do(self._news.popleft())
            for due in self._take_due():
                self._do(due)

    def _do(self, callback: Callback) -> None:
        try:
            callback()
        except BaseException:  # the other connections still need this thread
            self._log.exception("an error in one connection")

    def _time_left(self) -> float | None:
        with self._lock:
            if not self._timers:
                return None
            return min(max(0.0, self._timers[0][0] - monotonic()), LONGEST)

    def _take_due(self) -> list[Callback]:
        now = monotonic()
        due = []
        with self._lock:
            while self._timers and self._timers[0][0] <= now:
                appointment = heappop(self._timers)[2]
                if appointment.due is None:
                    self._cancelled -= 1
                else:
                    due.append(appointment.due)
                    appointment.due = None
        return due

    def _listen(self, listener: int, accept: Callable[[], float]) -> None:
        def ready() -> None:
            pause = accept()
            if pause:
                self._selector.unregister(listener)
                self._paused.add(listener)
                self.call_at(monotonic() + pause, resume)

        def resume() -> None:
            if listener in self._paused:  # and not refused meanwhile
                self._paused.remove(listener)
                self._selector.register(listener, EVENT_READ, ready)

        self._selector.register(listener, EVENT_READ, ready)

    def _watch(self, fd: int, writable: Callback) -> None:
        def ready() -> None:
            self._selector.unregister(fd)
            writable()

        # It may be watched already; or it was closed before we came, and `forget` follows.
        with suppress(KeyError, OSError):
            self._selector.register(fd, EVENT_WRITE, ready)

    def _forget(self, fd: int) -> None:
        with suppress(KeyError):
            self._selector.unregister(fd)
