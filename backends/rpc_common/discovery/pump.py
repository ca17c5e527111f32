"""Runs a machine of rpc_discovery in threads or greenlets: its operations, events and time."""

import ssl as ssl_module
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from socket import SHUT_RDWR
from threading import Lock
from time import monotonic
from typing import Any

from rpc_common.telemetry.log import Log
from rpc_common.transport.runtime import Runtime
from rpc_discovery import Event, Machine, PemFiles

from .carriers import carriers, code_of, describe

__all__ = ["Pump"]

_GIVEN_UP = object()
_LONGEST = 3600.0  # seconds; not every runtime waits longer at a time
_PAUSE = 1.0  # seconds after something failed that should not

Command = Callable[[float], None]  # an input or a command of the machine, given the time


class Pump:
    """One thread or greenlet for a machine, and one for each operation that has to wait.

    `handle` gets the events. `tell` gives the machine a command, from any thread. It ends when the
    machine is `done`, or by `stop`. RuntimeError if no thread can be started; later, an operation
    without a thread fails.
    """

    def __init__(
        self,
        machine: Machine,
        handle: Callable[[list[Event]], None],
        runtime: Runtime,
        log: Log,
        ssl: ssl_module.SSLContext | PemFiles | None = None,
    ) -> None:
        self.machine: Any = machine
        self.ended = runtime.make_event()
        self._handle = handle
        self._runtime = runtime
        self._log = log
        self._carriers = carriers(runtime, ssl)
        self._inbox = runtime.make_queue()
        # Of the operations that are on their way: None before there is one, _GIVEN_UP if it is
        # wanted no more.
        self._sockets: dict[int, Any] = {}
        self._lock = Lock()  # of the sockets
        self._stopped = False
        # When it ended by an error, after which the machine's state is no longer current.
        self.died_at: float | None = None
        runtime.end_at_exit(self)
        runtime.spawn(self._run)

    def tell(self, command: Command) -> None:
        """Give the machine a command: a function of the time."""
        self._inbox.put(command)

    def stop(self) -> None:
        """End at once and cancel all operations."""
        self._stopped = True
        self._inbox.put(self.machine.handle_timeout)
        with self._lock:
            for operation_id in self._sockets:
                self._give_up(operation_id)

    def end_threads(self) -> None:
        self.stop()

    def _run(self) -> None:
        try:
            self._handle(self.machine.events())
            while not self._stopped and not self.machine.done:
                try:
                    self._turn()
                except Exception:  # of one input; the next one may do
                    self._log.exception("discovery failed")
                    self._runtime.sleep(_PAUSE)
        except BaseException:
            if not self._stopped:
                self.died_at = monotonic()
            raise
        finally:
            self.ended.set()
            with self._lock:
                for operation_id in self._sockets:
                    self._give_up(operation_id)
            for carrier in self._carriers.values():
                carrier.close()

    def _turn(self) -> None:
        machine = self.machine
        for operation in machine.operations_to_send():
            self._begin(operation)
        with self._lock:
            for operation_id in machine.operations_to_cancel():
                self._give_up(operation_id)
        now = monotonic()
        at = machine.next_timeout()
        seconds = _LONGEST if at is None else max(0.0, min(at - now, _LONGEST))
        told = self._runtime.get(self._inbox, seconds)
        now = monotonic()
        if told is None:
            machine.handle_timeout(now)
        else:
            told(now)
        self._handle(machine.events())

    def _begin(self, operation: Any) -> None:
        if self._carriers[operation.kind].in_place:
            self._report(operation)
            return
        with self._lock:
            self._sockets[operation.id] = None
        try:
            self._runtime.spawn(partial(self._carry, operation))
        except RuntimeError as error:  # no more threads can be started
            with self._lock:
                del self._sockets[operation.id]
            reason = str(error)
            self.tell(lambda now: self.machine.failed(now, operation.id, reason))

    def _carry(self, operation: Any) -> None:
        try:
            self._report(operation)
        finally:
            with self._lock:
                del self._sockets[operation.id]

    def _report(self, operation: Any) -> None:
        """Carry out an operation, and report its end to the machine."""
        machine, carrier = self.machine, self._carriers[operation.kind]
        message, opened = (partial(to, operation.id) for to in (self._message, self._opened))
        try:
            result = carrier.carry(operation, message, opened)
        except Exception as error:  # whatever it is, the machine has to know
            reason, code = describe(error, operation.timeout), code_of(error)
            self.tell(lambda now: machine.failed(now, operation.id, reason, code))
        else:
            self.tell(lambda now: machine.result(now, operation.id, result))

    def _message(self, operation_id: int, message: Any) -> None:
        """Pass on a message of a stream, and continue once it is handled."""
        taken = self._runtime.make_event()

        def take(now: float) -> None:
            taken.set()
            self.machine.message(now, operation_id, message)

        self.tell(take)
        while not taken.wait(1.0) and not self.ended.is_set():
            pass

    def _opened(self, operation_id: int, sock: Any) -> None:
        with self._lock:
            given_up = self._stopped or self._sockets[operation_id] is _GIVEN_UP
            self._sockets[operation_id] = sock
            if given_up:
                self._give_up(operation_id)

    def _give_up(self, operation_id: int) -> None:
        """Let an operation fail that may be on its way; the lock is held."""
        sock = self._sockets.get(operation_id, _GIVEN_UP)
        if sock is None:
            self._sockets[operation_id] = _GIVEN_UP
        elif sock is not _GIVEN_UP:
            with suppress(OSError):
                sock.shutdown(SHUT_RDWR)
