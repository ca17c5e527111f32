"""Runs a machine of rpc_discovery: carries its requests, and tells it of answers and time."""

import asyncio
import logging
import ssl as ssl_module
from collections.abc import Callable
from time import monotonic
from typing import Any

from rpc_common.pump import describe
from rpc_proto.http.client import Fetch

__all__ = ["Pump", "fetch"]

_READ_SIZE = 64 * 1024


class Pump:
    """One Task for a machine, and one for each request that is on its way.

    `handle` gets the events. `tell` gives the machine a command. It ends when the machine is
    `done`, or by `stop`.
    """

    def __init__(
        self,
        machine: Any,
        handle: Callable[[list[Any]], None],
        log: logging.Logger,
        ssl: ssl_module.SSLContext | None = None,
    ) -> None:
        self.machine = machine
        self.ended = asyncio.Event()
        self._handle = handle
        self._log = log
        self._ssl = ssl
        self._loop = asyncio.get_running_loop()
        self.requests: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._go_on()

    def tell(self, command: Callable[[float], list[Any]]) -> None:
        """Give the machine a command: a function of the time that returns its events."""
        if not self.ended.is_set():
            try:
                self._handle(command(monotonic()))
            except Exception:
                self._log.exception("discovery failed")
            self._go_on()

    def stop(self) -> None:
        """End at once; what is on its way is given up."""
        self.ended.set()
        if self._timer is not None:
            self._timer.cancel()
        for task in self.requests:
            task.cancel()

    def _go_on(self) -> None:
        machine = self.machine
        for request in machine.requests_to_send():
            task = self._loop.create_task(self._carry(request))
            self.requests.add(task)
            task.add_done_callback(self.requests.discard)
        if getattr(machine, "done", False):
            self.stop()
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        at = machine.next_timeout()
        if at is not None:
            seconds = max(0.0, at - monotonic())
            self._timer = self._loop.call_later(seconds, self.tell, self._due(at))

    def _due(self, at: float) -> Callable[[float], list[Any]]:
        # A loop may fire a little early by this clock; the machine must not see that.
        return lambda now: self.machine.handle_timeout(max(at, now))

    async def _carry(self, request: Any) -> None:
        machine = self.machine
        try:
            what = Fetch(
                request.method,
                request.url,
                request.headers,
                request.body,
                max_answer=request.max_answer,
            )
            async with asyncio.timeout(request.timeout):
                await fetch(what, self._ssl)
        except (OSError, ValueError) as error:
            reason = describe(error, request.timeout)
            self.tell(lambda now: machine.failed(request.id, reason, now))
        else:
            self.tell(lambda now: machine.response(request.id, what.status, what.body, now))


async def fetch(what: Fetch, ssl: ssl_module.SSLContext | None = None) -> None:
    """Send a request and receive the answer into it; OSError or ValueError."""
    where = what.where
    context = (ssl or ssl_module.create_default_context()) if where.has_tls else None
    reader, writer = await asyncio.open_connection(where.host, where.port, ssl=context)
    try:
        writer.write(what.data)
        while not what.receive(await reader.read(_READ_SIZE)):
            pass
    finally:
        writer.transport.abort()
