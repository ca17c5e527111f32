"""Waiting for signals in the main thread, without handlers that interrupt other code."""

import os
import select
import signal
import socket
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

from rpc_common.server.programs import SIGNALS

__all__ = ["Signals"]


class Signals:
    """Inside `with`, `wait` returns the signals that stop a server; they have no other effect."""

    def __init__(self, stdin: bool) -> None:
        self._stdin = stdin
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        self._ear, self._mouth = socket.socketpair()
        self._ear.setblocking(False)
        self._mouth.setblocking(False)
        self._descriptor = signal.set_wakeup_fd(self._mouth.fileno(), warn_on_full_buffer=False)
        for number in SIGNALS:
            self._before[number] = signal.signal(number, _ignore)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._descriptor)
        self._ear.close()
        self._mouth.close()

    def wait(self) -> int | None:
        """Return the next signal; None for a `ring`, and, once, for the end of standard input."""
        poller = select.poll()
        poller.register(self._ear, select.POLLIN)
        if self._stdin:
            poller.register(0, select.POLLIN)
        self._stdin = False  # the second time it means nothing more
        while True:
            for descriptor, _ in poller.poll():
                if descriptor:
                    for number in self._ear.recv(1):
                        if number in SIGNALS or not number:
                            return number or None
                elif not os.read(0, 4096):
                    return None

    def ring(self) -> None:
        """Make `wait` return; from any thread, even if nobody waits any more."""
        with suppress(OSError):
            self._mouth.send(b"\0")


def _ignore(*_: object) -> None:
    """Do nothing: the signal is read from the descriptor."""
