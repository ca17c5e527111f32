"""The one thread of a server that waits for everything but the bytes of its connections."""

import logging
import socket
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from heapq import heappop, heappush
from itertools import count
from selectors import EVENT_READ, EVENT_WRITE, DefaultSelector
from threading import Event, Lock, Thread
from time import monotonic

__all__ = ["Keeper"]

# How long nothing is accepted after that failed: file descriptors may have run out.
_PAUSE = 0.2

Callback = Callable[[], None]


class Keeper:
    """Accepts connections, waits for the kernel to take more bytes, and keeps the time.

    What it calls must not wait and must not raise.
    """

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._lock = Lock()  # of the timers and of the start
        self._timers: list[tuple[float, int, Callback]] = []
        self._order = count()
        self._news: deque[Callback] = deque()
        self._selector = DefaultSelector()
        self._ear, self._mouth = socket.socketpair()
        self._ear.setblocking(False)
        self._mouth.setblocking(False)
        self._selector.register(self._ear, EVENT_READ)
        self._thread: Thread | None = None
        self._closed = False

    # From any thread

    def accept(self, listener: socket.socket, accept: Callback) -> None:
        """Call `accept()` when there is a connection to accept; it may raise OSError."""
        self._tell(lambda: self._listen(listener, accept))

    def refuse(self, listener: socket.socket) -> None:
        """Accept no more from a listener; when this returns it may be closed."""
        done = Event()

        def refuse() -> None:
            with suppress(KeyError):
                self._selector.unregister(listener)
            done.set()

        self._tell(refuse)
        done.wait()

    def watch(self, fd: int, writable: Callback) -> None:
        """Call `writable()` once when the kernel takes bytes for a descriptor again."""
        self._tell(lambda: self._watch(fd, writable))

    def forget(self, fd: int) -> None:
        """Watch a descriptor no more; to be called before it is closed."""
        self._tell(lambda: self._forget(fd))

    def call_at(self, at: float, due: Callback) -> None:
        """Call `due()` at that time of the monotonic clock."""
        with self._lock:
            heappush(self._timers, (at, next(self._order), due))
            first = self._timers[0][0] == at
        if first:
            self._wake()

    def close(self) -> None:
        """End the thread."""

        def close() -> None:
            self._closed = True

        self._tell(close)
        if self._thread is not None:
            self._thread.join()
        self._selector.close()
        self._ear.close()
        self._mouth.close()

    def _tell(self, news: Callback) -> None:
        self._news.append(news)
        with self._lock:
            if self._thread is None:
                self._thread = Thread(target=self._run, name="rpc-keeper", daemon=True)
                self._thread.start()
        self._wake()

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
                    key.data()
            while self._news:
                self._news.popleft()()
            for due in self._take_due():
                due()

    def _time_left(self) -> float | None:
        with self._lock:
            return max(0.0, self._timers[0][0] - monotonic()) if self._timers else None

    def _take_due(self) -> list[Callback]:
        now = monotonic()
        due = []
        with self._lock:
            while self._timers and self._timers[0][0] <= now:
                due.append(heappop(self._timers)[2])
        return due

    def _listen(self, listener: socket.socket, accept: Callback) -> None:
        def ready() -> None:
            try:
                accept()
            except (BlockingIOError, ConnectionError):  # it went away before we came
                pass
            except OSError as error:
                self._log.error("no connection can be accepted: %s", error)
                self._selector.unregister(listener)
                again = lambda: self._listen(listener, accept)  # noqa: E731
                self.call_at(monotonic() + _PAUSE, again)

        if listener.fileno() >= 0:  # it was not closed during a pause
            self._selector.register(listener, EVENT_READ, ready)

    def _watch(self, fd: int, writable: Callback) -> None:
        def ready() -> None:
            self._selector.unregister(fd)
            writable()

        with suppress(KeyError):  # it is watched already
            self._selector.register(fd, EVENT_WRITE, ready)

    def _forget(self, fd: int) -> None:
        with suppress(KeyError):
            self._selector.unregister(fd)
