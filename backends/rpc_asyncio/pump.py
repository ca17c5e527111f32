"""Runs a machine of rpc_discovery: carries its requests, and tells it of answers and time."""

import asyncio
import ssl as ssl_module
import sys
from collections.abc import Callable
from functools import partial
from time import monotonic
from typing import Any

from rpc_common.discovery.pump import carrier_of, context_of, describe, fetch_of
from rpc_common.telemetry.log import Log
from rpc_common.transport.forks import Forks
from rpc_discovery import PemFiles
from rpc_proto.http.client import Fetch

__all__ = ["Pump", "check_source", "fetch"]

_READ_SIZE = 64 * 1024
# Seconds after which another address of a host is tried beside one that is silent (RFC 8305).
_NEXT_ADDRESS = 0.25

# A connection that may be used again, by its origin.
Idle = dict[str, tuple[asyncio.StreamReader, asyncio.StreamWriter]]
_NONE: Any = (None, None)


class Pump:
    """One Task for a machine, and one for each request that is on its way.

    `handle` gets the events. `tell` gives the machine a command. It ends when the machine is
    `done`, or by `stop`. `transport` is how etcd is spoken to: "grpc", "gateway", or None for what
    there is.
    """

    def __init__(
        self,
        machine: Any,
        handle: Callable[[list[Any]], None],
        log: Log,
        ssl: ssl_module.SSLContext | PemFiles | None = None,
        transport: str | None = None,
    ) -> None:
        self.machine = machine
        self.ended = asyncio.Event()
        self._handle = handle
        self._log = log
        self._ssl = context_of(ssl)
        self._loop = asyncio.get_running_loop()
        self._grpc = _grpc_for(machine, ssl, transport)
        self._carrier = self._grpc or carrier_of(machine)
        self._requests: dict[int, asyncio.Task[None]] = {}
        self._idle: Idle = {}
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
        for task in self._requests.values():
            task.cancel()
        self._hang_up()

    async def close(self) -> None:
        """End at once, and wait until nothing is left."""
        self.stop()
        closing = self._grpc.closing if self._grpc is not None else ()
        await asyncio.gather(*self._requests.values(), *closing, return_exceptions=True)

    def _carried(self, request_id: int, _: object) -> None:
        del self._requests[request_id]
        if self.ended.is_set():
            self._hang_up()

    def _hang_up(self) -> None:
        if self._grpc is not None:
            self._grpc.close()
        while self._idle:
            _, (_, writer) = self._idle.popitem()
            writer.transport.abort()

    def _go_on(self) -> None:
        carrier = self._carrier
        for request in carrier.requests_to_send():
            carried = self._grpc.carry(request, self.tell) if self._grpc else self._carry(request)
            task = self._loop.create_task(carried)
            self._requests[request.id] = task
            task.add_done_callback(partial(self._carried, request.id))
        for request_id in carrier.requests_to_cancel():
            if request_id in self._requests:
                self._requests[request_id].cancel()
        if getattr(carrier, "done", False):
            self.stop()
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        at = carrier.next_timeout()
        if at is not None:
            seconds = max(0.0, at - monotonic())
            self._timer = self._loop.call_later(seconds, self.tell, self._due(at))

    def _due(self, at: float) -> Callable[[float], list[Any]]:
        # A loop may fire a little early by this clock; the machine must not see that.
        return lambda now: self._carrier.handle_timeout(max(at, now))

    async def _carry(self, request: Any) -> None:
        carrier = self._carrier
        try:
            what = fetch_of(request)
            async with asyncio.timeout(request.timeout) as limit:

                def part(data: bytes) -> None:
                    limit.reschedule(None)
                    self.tell(lambda now: carrier.part(request.id, data, now))

                await fetch(what, self._ssl, self._idle, part if request.stream else None)
        except Exception as error:  # whatever it is, the machine has to know
            reason = describe(error, request.timeout)
            self.tell(lambda now: carrier.failed(request.id, reason, now))
        else:
            self.tell(lambda now: carrier.response(request.id, what.status, what.body, now))


def check_source(source: Any) -> None:
    """Check the TLS files and the transport that users gave: OSError, ImportError, RuntimeError."""
    if getattr(source, "transport", None) == "grpc":
        _load_grpc()
    context_of(getattr(source, "ssl", None))


def _load_grpc() -> Any:
    try:
        from . import etcd_grpc
    except ImportError as error:
        raise ImportError("transport 'grpc' needs: pip install 'rpc-proto[etcd]'") from error
    if Forks.count != etcd_grpc.BORN:
        raise RuntimeError("transport 'grpc' cannot be used in the child of a process that used it")
    return etcd_grpc.Grpc


def _grpc_for(
    machine: Any, ssl: ssl_module.SSLContext | PemFiles | None, transport: str | None
) -> Any:
    """Return what carries a machine's operations over gRPC, or None if HTTP does."""
    if not hasattr(machine, "operations_to_send") or transport == "gateway":
        return None
    if transport is None:
        if not isinstance(ssl, PemFiles) and (
            ssl is not None or any(url.startswith("https:") for url in machine.endpoints)
        ):
            return None
        # What gevent has patched, gRPC would block. Another thread may be just importing gevent.
        is_patched = getattr(sys.modules.get("gevent.monkey"), "is_module_patched", None)
        if is_patched is not None and is_patched("socket"):
            return None
    try:
        return _load_grpc()(machine, ssl)
    except (ImportError, RuntimeError):
        if transport is not None:
            raise
        return None


async def fetch(
    what: Fetch,
    ssl: ssl_module.SSLContext | None = None,
    idle: Idle | None = None,
    part: Callable[[bytes], None] | None = None,
) -> None:
    """Send a request and receive the answer into it; OSError or ValueError.

    `idle` is where connections are that may be used again. `part(data)` gets a good answer as it
    comes, piece by piece.
    """
    where = what.where
    reader, writer = (idle or {}).pop(what.origin, _NONE)
    if writer is not None and (writer.is_closing() or reader.at_eof()):
        writer.transport.abort()
        writer = None
    if writer is None:
        context = (ssl or ssl_module.create_default_context()) if where.has_tls else None
        racing: dict[str, Any] = {}
        loop = asyncio.get_running_loop()
        # Other loops may not have it, and with eager tasks it hangs in some versions of Python.
        if isinstance(loop, asyncio.BaseEventLoop) and loop.get_task_factory() is None:
            racing = {"happy_eyeballs_delay": _NEXT_ADDRESS}
        reader, writer = await asyncio.open_connection(
            where.host, where.port, ssl=context, **racing
        )
    try:
        complete = False
        writer.write(what.data)
        while not complete:
            complete = what.receive(await reader.read(_READ_SIZE))
            if part is not None and what.status == 200 and (data := what.take()):
                part(data)
    finally:
        if idle is not None and what.reusable and what.origin not in idle:
            idle[what.origin] = reader, writer
        else:
            writer.transport.abort()
