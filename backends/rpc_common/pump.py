"""Runs a machine of rpc_discovery: carries its requests, and tells it of answers and time."""

import logging
import ssl as ssl_module
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from socket import SHUT_RDWR
from threading import Lock
from time import monotonic
from typing import Any

from rpc_proto.http.client import Fetch

from .fetch import fetch
from .runtime import Runtime

__all__ = ["Pump", "describe"]

_LONGEST = 3600.0  # seconds; not every runtime waits longer at a time

Input = Callable[[float], list[Any]]  # what is told the machine, given the time


class Pump:
    """One thread or greenlet for a machine, and one for each request that is on its way.

    `handle` gets the events. `tell` gives the machine a command, from any thread. It ends when the
    machine is `done`, or by `stop`.
    """

    def __init__(
        self,
        machine: Any,
        handle: Callable[[list[Any]], None],
        runtime: Runtime,
        log: logging.Logger,
        ssl: ssl_module.SSLContext | None = None,
    ) -> None:
        self.machine = machine
        self.ended = runtime.make_event()
        self._handle = handle
        self._runtime = runtime
        self._log = log
        self._ssl = ssl
        self._inbox = runtime.make_queue()
        self._sockets: set[Any] = set()
        self._lock = Lock()  # of the sockets
        self._stopped = False
        runtime.spawn(self._run)

    def tell(self, command: Input) -> None:
        """Give the machine a command: a function of the time that returns its events."""
        self._inbox.put(command)

    def stop(self) -> None:
        """End at once; what is on its way is given up."""
        self._stopped = True
        self._inbox.put(self.machine.handle_timeout)
        with self._lock:
            for sock in self._sockets:
                with suppress(OSError):
                    sock.shutdown(SHUT_RDWR)

    def _run(self) -> None:
        machine, runtime = self.machine, self._runtime
        try:
            while not self._stopped and not getattr(machine, "done", False):
                for request in machine.requests_to_send():
                    runtime.spawn(partial(self._carry, request))
                now = monotonic()
                at = machine.next_timeout()
                seconds = _LONGEST if at is None else max(0.0, min(at - now, _LONGEST))
                told = runtime.get(self._inbox, seconds)
                now = monotonic()
                self._handle(machine.handle_timeout(now) if told is None else told(now))
        except Exception:
            self._log.exception("discovery failed")
        finally:
            self.ended.set()

    def _carry(self, request: Any) -> None:
        what: Fetch | None = None
        machine = self.machine
        try:
            what = Fetch(
                request.method,
                request.url,
                request.headers,
                request.body,
                max_answer=request.max_answer,
            )
            fetch(what, request.timeout, self._runtime, self._ssl, self._opened)
            status, body = what.status, what.body
        except (OSError, ValueError) as error:
            reason = describe(error, request.timeout)
            self.tell(lambda now: machine.failed(request.id, reason, now))
        else:
            self.tell(lambda now: machine.response(request.id, status, body, now))

    def _opened(self, sock: Any) -> None:
        with self._lock:
            self._sockets = {known for known in self._sockets if known.fileno() >= 0} | {sock}
            if self._stopped:
                sock.shutdown(SHUT_RDWR)


def describe(error: Exception, timeout: float) -> str:
    """Return why a request failed."""
    if isinstance(error, TimeoutError):
        return f"no answer within {timeout:g} s"
    return str(error) or type(error).__name__
