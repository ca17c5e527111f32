"""Runs a machine of rpc_discovery on an event loop: its operations, events and time."""

import asyncio
import ssl as ssl_module
from collections.abc import Callable
from functools import partial
from time import monotonic
from typing import Any

from rpc_common.discovery.carriers import code_of, describe
from rpc_common.telemetry.log import Log
from rpc_discovery import Event, Machine, PemFiles

from .carriers import carriers

__all__ = ["Pump"]


class Pump:
    """Runs a machine, with one Task for each running operation.

    `handle` gets the events. `tell` gives the machine a command. It ends when the machine is
    `done`, or by `stop`. `transport`, for etcd, is "grpc", "gateway", or None for whichever is
    available.
    """

    def __init__(
        self,
        machine: Machine,
        handle: Callable[[list[Event]], None],
        log: Log,
        ssl: ssl_module.SSLContext | PemFiles | None = None,
        transport: str | None = None,
    ) -> None:
        self.machine: Any = machine
        self.ended = asyncio.Event()
        self.died_at: float | None = None  # unlike a thread, it never dies
        self._handle = handle
        self._log = log
        self._loop = asyncio.get_running_loop()
        self._carriers = carriers(ssl, transport)
        self._operations: dict[int, asyncio.Task[None]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._handle(machine.events())
        self._go_on()

    def tell(self, command: Callable[[float], None]) -> None:
        """Give the machine a command: a function of the time."""
        if not self.ended.is_set():
            try:
                command(monotonic())
                self._handle(self.machine.events())
            except Exception:
                self._log.exception("discovery failed")
            self._go_on()

    def stop(self) -> None:
        """End at once and cancel all operations."""
        self.ended.set()
        if self._timer is not None:
            self._timer.cancel()
        for task in self._operations.values():
            task.cancel()
        self._close_carriers()

    async def close(self) -> None:
        """End at once, and wait until nothing is left."""
        self.stop()
        closing = [task for carrier in self._carriers.values() for task in carrier.closing]
        await asyncio.gather(*self._operations.values(), *closing, return_exceptions=True)

    def _close_carriers(self) -> None:
        for carrier in self._carriers.values():
            carrier.close()

    def _carried(self, operation_id: int, _: object) -> None:
        del self._operations[operation_id]
        if self.ended.is_set():
            self._close_carriers()

    def _go_on(self) -> None:
        machine = self.machine
        for operation in machine.operations_to_send():
            task = self._loop.create_task(self._carry(operation))
            self._operations[operation.id] = task
            task.add_done_callback(partial(self._carried, operation.id))
        for operation_id in machine.operations_to_cancel():
            if operation_id in self._operations:
                self._operations[operation_id].cancel()
        if machine.done:
            self.stop()
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        at = machine.next_timeout()
        if at is not None:
            seconds = max(0.0, at - monotonic())
            self._timer = self._loop.call_later(seconds, self.tell, self._due(at))

    def _due(self, at: float) -> Callable[[float], None]:
        # A loop may fire a little early by this clock; the machine must not see that.
        return lambda now: self.machine.handle_timeout(max(at, now))

    async def _carry(self, operation: Any) -> None:
        machine, carrier = self.machine, self._carriers[operation.kind]

        def message(message: Any) -> None:
            self.tell(lambda now: machine.message(now, operation.id, message))

        try:
            result = await carrier.carry(operation, message)
        except Exception as error:  # whatever it is, the machine has to know
            reason, code = describe(error, operation.timeout), code_of(error)
            self.tell(lambda now: machine.failed(now, operation.id, reason, code))
        else:
            self.tell(lambda now: machine.result(now, operation.id, result))
