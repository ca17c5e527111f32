"""The gevent client: one connection, any number of greenlets at once."""

import sys
from collections.abc import Callable, Iterable
from time import monotonic
from typing import Any, Self

from gevent import Timeout, get_hub, getcurrent, socket
from gevent.event import AsyncResult, Event

from rpc_common.client.base import Reply, hand_out, outcome
from rpc_common.client.dialling import Dialling, refusal
from rpc_common.client.streams import OF_STREAMS, Request, SyncRunning
from rpc_common.client.sync import SyncClient, Waiting
from rpc_common.telemetry.log import get_log
from rpc_common.transport.forks import Forks, Owner
from rpc_common.transport.sockets import dial
from rpc_common.transport.tls import Tls
from rpc_proto import (
    CallCompleted,
    CallFailed,
    ClientConfig,
    ClientConnection,
    ConnectionTerminated,
    HandshakeCompleted,
    LocalProtocolError,
    ObserverFailed,
    OutboundCall,
)
from rpc_proto import Event as CoreEvent

from .link import Link, take_over
from .runtime import GEVENT, check_greenlet, get_ident
from .streams import RunningStream

__all__ = ["Client", "Reply"]

_log = get_log("rpc_gevent")

_LONGEST = 1e6  # seconds; not every loop supports longer timers


class _Waiter:
    """Where a greenlet waits for the last event of its call."""

    __slots__ = ("event", "greenlet")

    def __init__(self) -> None:
        self.event: CallCompleted | CallFailed | None = None
        self.greenlet: Any = None

    def wake(self) -> None:
        """Continue the waiting greenlet, if it still waits; only the hub may call this."""
        if self.greenlet is not None:
            self.greenlet.switch()


class _ClientLink(Link):
    __slots__ = ("handshake", "idle", "lost")

    connection: ClientConnection

    def __init__(self, hub: Any, sock: Any, tls: Tls | None, connection: ClientConnection) -> None:
        super().__init__(hub, sock, tls)
        self.connection = connection
        self.handshake = AsyncResult()
        self.lost = Event()
        self.idle = True  # no call waits, and the last answer came alone

    def handle_events(self, events: list[CoreEvent]) -> None:
        self.idle = len(events) <= 1 and not self.connection.calls.by_id
        in_hub = getcurrent() is self._hub
        waiters = hand_out(events, self._handle_other)
        events.clear()
        try:
            for waiter in waiters:
                if type(waiter) is RunningStream:
                    waiter.wake()
                elif waiter.greenlet is None:
                    pass
                elif in_hub:
                    waiter.greenlet.switch()
                else:
                    self._hub.loop.run_callback(waiter.wake)
        except BaseException:  # what ends the process, not just a greenlet; nobody is forgotten
            for waiter in waiters:
                self._hub.loop.run_callback(waiter.wake)
            raise

    def _handle_other(self, event: CoreEvent) -> None:
        if isinstance(event, ObserverFailed):
            _log.error("an observer failed", exc_info=event.error)
        elif type(event) in OF_STREAMS:
            event.call.waiter.wake()  # type: ignore[attr-defined]
        elif self.handshake.ready():
            pass
        elif isinstance(event, HandshakeCompleted):
            self.handshake.set(None)
        elif isinstance(event, ConnectionTerminated):
            self.handshake.set_exception(refusal(event.error))

    def lose(self, error: Exception | None = None) -> None:
        if error is not None and not self.handshake.ready():
            self.handshake.set_exception(error)
        super().lose(error)
        self.lost.set()


class Client(SyncClient):
    """A connection to one server; `Client.connect(address)` makes it.

    It belongs to the hub (the thread) that created it. Any number of greenlets may call at once.
    Killing a greenlet that waits for a call, or a gevent.Timeout in it, cancels the handler.
    """

    _runtime = GEVENT

    def __init__(self, link: _ClientLink, config: ClientConfig, address: str) -> None:
        """Not for users: see `connect`."""
        self._link = link
        self.connection = link.connection
        self._hub = link._hub
        self._owner = Owner("client", "hub", get_ident())
        self.call_timeout = config.call_timeout
        self.address = address
        Forks.watch(self)

    @classmethod
    def _connect(cls, target: Dialling, address: str, timeout: float) -> Self:
        where, config, ssl, new_connection, proxy = target
        connection = new_connection(config, now=monotonic())
        link: _ClientLink | None = None
        limit = min(timeout, _LONGEST)
        try:
            with Timeout(limit, TimeoutError):
                tls = Tls(ssl, server_side=False, hostname=where.host) if ssl else None
                sock = dial(where, proxy, monotonic() + limit, socket, GEVENT.look_up)
                link = _ClientLink(get_hub(), take_over(sock), tls, connection)
                link.open()
                link.handshake.get()
        except BaseException:
            if link is not None:
                link.lose()
            raise
        return cls(link, config, address)

    def _descriptors(self) -> list[int]:
        return [self._link.fileno()]

    def _is_open(self) -> bool:
        return not self._link.closed

    def let_go(self) -> None:
        loop = self._hub.loop
        if loop is None:  # the hub was destroyed before
            return
        if self._owner.place in sys._current_frames():
            loop.run_callback_threadsafe(self._link.lose)
        else:  # the hub's thread has ended, and nothing else will run there
            self._link.lose()

    def close(self, grace: float = 0.0) -> None:
        self._check_owner()
        link = self._link
        self.connection.shutdown(monotonic(), grace)
        link.react()
        link.flush()
        link.lost.wait()

    def _check_owner(self, waits: bool = True) -> None:
        self._owner.check(get_ident())
        if waits:
            check_greenlet(self._hub)

    def begin_call(self, *what: Any, together: bool = False) -> OutboundCall:
        owner = self._owner
        if get_ident() != owner.place or owner.forks != Forks.count or getcurrent() is self._hub:
            self._check_owner()
        call = self._start(monotonic(), _Waiter(), *what)
        link = self._link
        if link.idle and not together:
            link.idle = False
            link.flush()
        else:
            link.wrote()
        return call

    def _begin_all(
        self, waiting: Waiting, calls: Iterable[tuple[Any, ...]], method: str, *options: Any
    ) -> None:
        for args in calls:
            call = self.begin_call(method, args, {}, *options, together=True)
            waiting.append((call, call.waiter))

    def wait_for_call(self, call: OutboundCall, waiter: Any) -> CallCompleted:
        if waiter.event is None:
            self._check_owner()
            if waiter.greenlet is not None:
                raise LocalProtocolError("another greenlet is already waiting for this call")
            waiter.greenlet = getcurrent()
            switch = self._hub.switch
            try:
                while waiter.event is None:  # whatever else may switch here
                    switch()
            except BaseException:  # killed, or a Timeout
                waiter.greenlet = None
                self.give_up_call(call)
                raise
            waiter.greenlet = None
        # No name for the event: its error would keep this frame alive, and the frame the error.
        return waiter.event if type(waiter.event) is CallCompleted else outcome(waiter)

    def _begin_running(
        self,
        request: Request,
        sends: bool,
        takes: bool,
        on_end: Callable[[], object] | None,
    ) -> SyncRunning:
        self._check_owner()
        running = RunningStream(self._link, self._hub)
        running.on_end = on_end
        running.call = self._start_stream(running, request, sends, takes)
        self._link.idle = False
        self._link.flush()
        return running

    def check_here(self) -> None:
        self._check_owner()

    def give_up_call(self, call: OutboundCall) -> None:
        self._check_owner(waits=False)
        self.connection.cancel(monotonic(), call)
        self._link.react()
        self._link.flush_soon()
