"""The blocking client: one connection, shared by any number of threads, without one of its own."""

import socket
from collections.abc import Callable, Iterable
from contextlib import suppress
from select import POLLOUT
from ssl import SSLError
from threading import Lock
from time import monotonic
from typing import Any, Self

from rpc_common.client.base import outcome
from rpc_common.client.dialling import Dialling, refusal
from rpc_common.client.streams import OF_STREAMS, Request, SyncRunning
from rpc_common.client.sync import SyncClient, Waiting
from rpc_common.telemetry.log import get_log
from rpc_common.transport.forks import Forks, Owner
from rpc_common.transport.patching import check_patching
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
    State,
)
from rpc_proto.service.context import ambient_call, inherit
from rpc_proto.wire.bounds import MAX_TIMEOUT
from rpc_proto.wire.frames import Flag

from .channel import EARLY, Channel
from .locks import OwnedLock
from .reading import PATIENCE, Election, Waiter
from .runtime import BLOCKING
from .streams import RunningStream

__all__ = ["Client"]

_log = get_log("rpc_blocking")

# After so many seconds without a call the server may have closed the connection unnoticed.
_STALE = 1.0

_CHANGED = object()

# How long to wait for the kernel to take a CANCEL behind the items of its stream, in seconds.
_LAST_WORDS = 0.5

# The events that end the option handshake.
_FIRST = (HandshakeCompleted, ConnectionTerminated)


class Client(SyncClient):
    """A connection to one server; `Client.connect(address)` makes it.

    Any number of threads may call at once. It has no thread of its own: between calls it does not
    read, so it cannot answer pings and asks the server not to send any.
    """

    _runtime = BLOCKING

    def __init__(
        self, channel: Channel, connection: ClientConnection, config: ClientConfig, address: str
    ) -> None:
        """Not for users: see `connect`."""
        self.address = address
        self._channel = channel
        self.connection = channel.connection = connection
        # Guards everything below, the connection and the channel's writes. It knows its owner: a
        # generator of `call_many` may be collected, and cancel its calls, in a thread that has it.
        self._owned = OwnedLock()
        self._lock = self._owned.lock
        self._reading = Election(self._owned, channel, self)
        self._sending = False
        self._dropped: list[OutboundCall] = []  # streams to cancel, from finalizers
        self._seen = -1  # the version of the connection that `_flush` has looked at
        self._outside = 0  # threads that wait for the kernel to take bytes
        self._handshake = Waiter()
        self._ended = Waiter()
        self._closing = Lock()  # for waiting for that
        self._heard_at = monotonic()
        self.call_timeout = config.call_timeout
        self._owner = Owner("client")
        Forks.watch(self)
        channel.limit_patience(PATIENCE)

    @classmethod
    def _connect(cls, target: Dialling, address: str, timeout: float) -> Self:
        check_patching("rpc_blocking")
        where, config, ssl, new_connection, proxy = target
        config = config.override(ping_interval=0)
        deadline = monotonic() + min(timeout, MAX_TIMEOUT)
        sock = client = None
        try:
            connection = new_connection(config, now=monotonic())
            sock = dial(where, proxy, deadline, socket, BLOCKING.look_up)
            sock.settimeout(None)
            tls = Tls(ssl, server_side=False, hostname=where.host) if ssl is not None else None
            client = cls(Channel(sock, tls), connection, config, address)
            client._open(deadline)
        except BaseException:
            if client is not None:
                client._close_sockets()
            elif sock is not None:
                sock.close()
            raise
        return client

    def _is_open(self) -> bool:
        return self._channel.sock.fileno() >= 0

    def let_go(self) -> None:
        self._close_sockets()

    def _open(self, deadline: float) -> None:
        with self._lock:
            self._flush()
            self._reading.read(self._handshake, deadline)
        event = self._handshake.event
        if event is None:
            raise TimeoutError
        if isinstance(event, ConnectionTerminated):
            failure = self._channel.failure
            raise refusal(failure if isinstance(failure, SSLError) else event.error or failure)

    def _descriptors(self) -> list[int]:
        return [self._channel.sock.fileno()]

    def close(self, grace: float = 0.0) -> None:
        self._owner.check()
        with self._lock:
            self.connection.shutdown(monotonic(), grace)
            self._deliver()
            self._flush()
        with self._closing:
            self._reading.wait(self._ended)
        with self._lock:
            self.tidy()

    # Calls

    def begin_call(self, *what: Any) -> OutboundCall:
        self._owner.check()
        now = monotonic()
        with self._lock:
            if now - self._heard_at > _STALE and self._reading.reader is None:
                self._glance(now)
            call = self._start(now, Waiter(), *what)
            self._flush()
        if self._channel.unsent and call.flags & Flag.ONE_WAY:
            self._push(call.deadline)
        return call

    def _begin_all(
        self, waiting: Waiting, calls: Iterable[tuple[Any, ...]], method: str, *options: Any
    ) -> None:
        returns, timeout, metadata = options
        self._owner.check()
        now = monotonic()
        connection = self.connection
        deadline, metadata = inherit(timeout, self.call_timeout, now, metadata)
        with self._lock:
            if now - self._heard_at > _STALE and self._reading.reader is None:
                self._glance(now)
            for args in calls:
                waiter = Waiter()
                call = connection.start_call(
                    now,
                    method,
                    args,
                    deadline=deadline,
                    metadata=metadata,
                    returns=returns,
                    waiter=waiter,
                )
                waiting.append((call, waiter))
                if connection.outbound >= EARLY:
                    self._flush()

    def wait_for_call(self, call: OutboundCall, waiter: Any) -> CallCompleted:
        if waiter.event is None:
            self._owner.check()
            if waiter.taken:
                raise LocalProtocolError(
                    "the result was already taken, or another thread waits for it"
                )
            waiter.taken = True
            if self.connection.outbound:  # of `call_many`
                with self._lock:
                    self._flush()
            ambient = ambient_call.get()
            undo = None
            if ambient is not None and not ambient.answered:
                undo = ambient.on_cancel(lambda: self.give_up_call(call))
            try:
                self._reading.wait(waiter)
            except BaseException:  # the user is impatient
                self.give_up_call(call)
                raise
            finally:
                if undo is not None:
                    undo()
        return outcome(waiter)

    def give_up_call(self, call: OutboundCall) -> None:
        self._owner.check()
        nested = self._owned.is_owned()  # when a generator of `call_many` is collected
        with self._lock:
            self.connection.cancel(monotonic(), call)
            self._deliver()
            if not nested:  # writing would release the lock only once
                self._flush()

    # Streams

    _feeds_beside = False

    def _begin_running(
        self,
        request: Request,
        sends: bool,
        takes: bool,
        on_end: Callable[[], object] | None,
    ) -> SyncRunning:
        self._owner.check()
        running = RunningStream(self)
        running.on_end = on_end
        now = monotonic()
        with self._lock:
            if now - self._heard_at > _STALE and self._reading.reader is None:
                self._glance(now)
            running.call = self._start_stream(running, request, sends, takes)
            self._flush()
        return running

    def check_here(self) -> None:
        self._owner.check()

    def wait_until(self, waiters: "list[Waiter]", ready: Callable[[], bool]) -> None:
        """Wait, or read for all, until `ready()` is true; `waiters` has those who wait for it."""
        while True:
            waiter = Waiter()
            with self._lock:
                if ready():
                    return
                waiters.append(waiter)
            try:
                self._reading.wait(waiter)
            finally:
                with suppress(ValueError):
                    waiters.remove(waiter)

    def awaken(self, waiters: "list[Waiter]") -> None:
        """Let those who wait look again; the lock is held."""
        while waiters:
            self._reading.settle(waiters.pop(), _CHANGED)

    def act(self, command: Callable[..., Any], *args: Any) -> None:
        """Give the connection a command about a stream, and write what it makes."""
        nested = self._owned.is_owned()
        with self._lock:
            command(monotonic(), *args)
            self._deliver()
            if not nested:  # writing would release the lock only once
                self._flush()

    def give_up_stream(self, call: OutboundCall) -> None:
        """Cancel a call, and see to it that the server learns of it, unless it does not read."""
        self.give_up_call(call)
        if self._channel.unsent and not self._owned.is_owned():
            self._push(monotonic() + _LAST_WORDS)

    def drop_call(self, call: OutboundCall) -> None:
        """Cancel a call from a finalizer, which must not wait."""
        self._dropped.append(call)
        if not self._owned.is_owned() and self._lock.acquire(blocking=False):
            try:
                self._flush()
            finally:
                self._lock.release()

    def _cancel_dropped(self) -> None:
        while self._dropped:
            self.connection.cancel(monotonic(), self._dropped.pop())
        self._deliver()

    # For the election; the lock is held here and below, except in `_push`

    def take(self, data: Any, failure: OSError | None) -> bool:
        channel = self._channel
        if failure is not None:
            channel.lose(channel.failure or failure)
        elif data is not None:
            self._heard_at = monotonic()
            if not len(data) and channel.failure is not None:
                channel.lose(channel.failure)
            else:
                channel.take(data)
        self._deliver()
        connection = self.connection
        return bool(
            data is None or connection.outbound or channel.tls or connection.version != self._seen
        )

    def turn(self) -> None:
        now = monotonic()
        at = self.connection.next_timeout()
        if at is not None and at <= now:
            self.connection.handle_timeout(now)
            self._deliver()
        self._flush()

    def next_timeout(self) -> float | None:
        return self.connection.next_timeout()

    def tidy(self) -> None:
        """Close the socket when the connection has ended, but not while a thread waits on it."""
        if (
            self.connection.state is State.CLOSED
            and self._reading.reader is None
            and not self._outside
        ):
            self._close_sockets()

    # Writing

    def _close_sockets(self) -> None:
        self._channel.close()
        self._reading.close()

    def _wait_writable(self, timeout: float | None) -> None:
        self._outside += 1
        try:
            self._lock.release()
            self._channel.wait(timeout, POLLOUT)
        finally:
            try:
                self._owned.regain()
            except BaseException:
                self._owned.take_back()
                raise
            finally:
                self._outside -= 1
                self.tidy()

    def _flush(self) -> None:
        if self._dropped:
            self._cancel_dropped()
        channel = self._channel
        if self._sending:
            return  # the thread that does takes this along
        if self._reading.reader is None:
            channel.send()
        else:  # other threads must not wait for the kernel
            self._sending = True
            try:
                channel.send(self._lock, self._owned.regain)
            except BaseException:
                self._owned.take_back()
                raise
            finally:
                self._sending = False
        if channel.unsent:
            self._reading.ring_for_writing()
        connection = self.connection
        if connection.version != self._seen or connection.state is State.CLOSING:
            self._seen = connection.version
            self._deliver()
            if channel.follow(connection.wish) and connection.state is State.CLOSING:
                channel.lose(None)
                self._deliver()
            if connection.state is State.CLOSED and self._ended.event is None:
                self._reading.settle(self._ended, ConnectionTerminated(None))

    def _push(self, deadline: float | None) -> None:
        """Wait until everything is written, or the deadline has passed, for a one-way call."""
        with self._lock:
            self.turn()
            while self._channel.unsent and (deadline is None or monotonic() < deadline):
                self._wait_writable(self._reading.time_left(deadline))
                self.turn()

    def _glance(self, now: float) -> None:
        """Check whether the server has closed the connection while nobody read."""
        self._heard_at = now
        try:
            while (data := self._channel.receive(socket.MSG_DONTWAIT)) is not None:
                self._channel.take(data)
                if not len(data):
                    break
        except OSError as error:
            self._channel.lose(error)
        self._deliver()
        self.turn()

    def _deliver(self) -> None:
        for event in self.connection.events():
            kind = type(event)
            if kind is CallCompleted or kind is CallFailed:
                waiter = event.call.waiter  # type: ignore[attr-defined]
                if type(waiter) is RunningStream:
                    waiter.event = event
                    event.call.waiter = None  # type: ignore[attr-defined]
                    waiter.wake()
                else:
                    self._reading.settle(waiter, event)
            elif kind in OF_STREAMS:
                event.call.waiter.wake()  # type: ignore[attr-defined]
            elif self._handshake.event is None and kind in _FIRST:
                self._handshake.event = event
            elif kind is ObserverFailed:
                _log.error("an observer failed", exc_info=event.error)  # type: ignore[attr-defined]
