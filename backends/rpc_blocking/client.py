"""The blocking client: one connection, shared by any number of threads, without one of its own.

Whoever waits and finds nobody reading reads for all, and hands that on when its own call has ended.
"""

import socket
from collections.abc import Iterable
from contextlib import suppress
from select import POLLIN, POLLOUT
from ssl import SSLError
from threading import Lock, RLock, get_ident, main_thread
from time import monotonic
from typing import Any, Self

from rpc_common.client.base import Dialling, SyncClient, Waiting, outcome, refusal
from rpc_common.telemetry.log import get_log
from rpc_common.transport.forks import Forks
from rpc_common.transport.patching import check_patching
from rpc_common.transport.sockets import dial
from rpc_common.transport.tls import Tls
from rpc_proto import (
    CallCompleted,
    CallFailed,
    ClientConfig,
    ClientConnection,
    ConnectionTerminated,
    Event,
    HandshakeCompleted,
    LocalProtocolError,
    ObserverFailed,
    OutboundCall,
    State,
)
from rpc_proto.service.context import ambient_call, inherit
from rpc_proto.wire.bounds import MAX_TIMEOUT
from rpc_proto.wire.frames import Flag

from .channel import EARLY, LONGEST, Channel, is_of_socket
from .locks import ownership
from .runtime import BLOCKING

__all__ = ["Client"]

_log = get_log("rpc_blocking")

# After so many seconds without a call the server may have closed the connection unnoticed.
_STALE = 1.0

# A reader that has waited so long, in seconds, can from then on be woken by other threads. Most
# answers come sooner, for the price of one system call less.
_PATIENCE = 0.008

# A signal that comes just before the main thread falls asleep does not wake it, so that thread does
# not sleep for longer than this, in seconds.
_DEAF = 1.0

# What tells whether the server has accepted the options.
_FIRST = (HandshakeCompleted, ConnectionTerminated)


class _Waiter:
    """What waits for a call: `event` when it has ended; `lock` if it sleeps while another reads."""

    __slots__ = ("event", "lock", "taken")

    def __init__(self) -> None:
        self.event: Event | None = None
        self.taken = False  # by the one thread that may wait for it
        self.lock: Lock | None = None

    def wake(self) -> None:
        if self.lock is not None:
            self.lock.release()
            self.lock = None


class Client(SyncClient):
    """A connection to one server; `Client.connect(address)` makes it.

    Any number of threads may call at once. It has no thread of its own: between calls nobody
    reads, so it does not answer pings, and asks the server for none.
    """

    _runtime = BLOCKING

    def __init__(
        self, channel: Channel, connection: ClientConnection, config: ClientConfig, address: str
    ) -> None:
        """Not for users: see `connect`."""
        self.address = address
        self._channel = channel
        self.connection = channel.connection = connection
        # Of everything below, of the connection and of the channel's writes. It knows its owner: a
        # generator of `call_many` may be collected, and give its calls up, while its thread has it.
        self._lock: Any = RLock()
        self._has_lock = ownership(self._lock)
        self._reader: _Waiter | None = None  # what the thread waits for that reads
        self._sending = False
        self._polling = 0  # what it polls for, if it can be woken
        self._bell: tuple[socket.socket, socket.socket] | None = None  # wakes it; made when needed
        self._seen = -1  # the version of the connection that `_flush` has looked at
        self._outside = 0  # threads that wait for the kernel to take bytes
        self._sleepers: dict[_Waiter, None] = {}
        self._handshake = _Waiter()
        self._ended = _Waiter()
        self._closing = Lock()  # of the right to wait for that
        self._heard_at = monotonic()
        self.call_timeout = config.call_timeout
        self._forks = Forks.count
        Forks.watch(self)
        channel.limit_patience(_PATIENCE)

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
            self._read(self._handshake, deadline)
        event = self._handshake.event
        if event is None:
            raise TimeoutError
        if isinstance(event, ConnectionTerminated):
            failure = self._channel.failure
            raise refusal(failure if isinstance(failure, SSLError) else event.error or failure)

    def _descriptors(self) -> list[int]:
        return [self._channel.sock.fileno()]

    def close(self, grace: float = 0.0) -> None:
        self._check_owner()
        with self._lock:
            self.connection.shutdown(monotonic(), grace)
            self._deliver()
            self._flush()
        with self._closing:
            self._await(self._ended)
        with self._lock:
            self._tidy()

    # Calls

    def begin_call(self, *what: Any) -> OutboundCall:
        self._check_owner()
        now = monotonic()
        with self._lock:
            if now - self._heard_at > _STALE and self._reader is None:
                self._glance(now)
            call = self._start(now, _Waiter(), *what)
            self._flush()
        if self._channel.unsent and call.flags & Flag.ONE_WAY:
            self._push(call.deadline)
        return call

    def _begin_all(
        self, waiting: Waiting, calls: Iterable[tuple[Any, ...]], method: str, *options: Any
    ) -> None:
        returns, timeout, metadata = options
        self._check_owner()
        now = monotonic()
        connection = self.connection
        deadline, metadata = inherit(timeout, self.call_timeout, now, metadata)
        with self._lock:
            if now - self._heard_at > _STALE and self._reader is None:
                self._glance(now)
            for args in calls:
                waiter = _Waiter()
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
            self._check_owner()
            if waiter.taken:
                raise LocalProtocolError(
                    "the result was taken already, or another thread waits for it"
                )
            waiter.taken = True
            ambient = ambient_call.get()
            undo = None
            if ambient is not None and not ambient.answered:
                undo = ambient.on_cancel(lambda: self.give_up_call(call))
            try:
                self._await(waiter)
            except BaseException:  # the user is impatient
                self.give_up_call(call)
                raise
            finally:
                if undo is not None:
                    undo()
        return outcome(waiter)

    def give_up_call(self, call: OutboundCall) -> None:
        self._check_owner()
        nested = self._has_lock()  # where a generator is collected, of `call_many`
        with self._lock:
            self.connection.cancel(monotonic(), call)
            self._deliver()
            if not nested:  # writing lets the lock go once, which would not do
                self._flush()

    def _check_owner(self) -> None:
        if self._forks != Forks.count:
            raise LocalProtocolError(
                "this client belongs to the parent process; connect after the fork"
            )

    # Waiting: each of these is called with the lock held, but for `_await` and `_push`

    def _await(self, waiter: _Waiter) -> None:
        """Return when `waiter` has its event."""
        try:
            while waiter.event is None:
                with self._lock:
                    timeout, bed = self._take_part(waiter)
                if bed is not None:
                    # Woken with its event it need not take the lock again, as all others do.
                    bed.acquire(timeout=max(0.0, timeout))
        except BaseException:
            with self._lock:
                self._sleepers.pop(waiter, None)
            raise
        finally:
            if self._reader is None and self._sleepers:
                with self._lock:
                    self._hand_on()

    def _take_part(self, waiter: _Waiter) -> tuple[float, Any]:
        """Read for all until the event is there; or return how long to sleep, and on what."""
        if self._sleepers.pop(waiter, self) is None:
            self._turn()  # its time is over
        elif self.connection.outbound:
            self._flush()
        waiter.lock = None
        if waiter.event is None and self._reader is None:
            self._read(waiter, None)
        if waiter.event is not None:
            return 0.0, None
        timeout = self._time_left()
        bed = waiter.lock = Lock()
        bed.acquire()
        self._sleepers[waiter] = None
        return timeout, bed

    def _hand_on(self) -> None:
        """Let one of those that sleep read for the rest."""
        if self._reader is None and self._sleepers:
            self._sleepers.popitem()[0].wake()

    def _read(self, waiter: _Waiter, until: float | None) -> None:
        """Read, for all, until `waiter` has its event or the time is over."""
        channel = self._channel
        connection = self.connection
        self._reader = waiter
        waited = False
        try:
            while waiter.event is None:
                timeout = self._time_left(until)
                bell = None
                what = POLLIN | POLLOUT if channel.unsent else POLLIN
                if waited or channel.unsent or (timeout < _PATIENCE):
                    bell = self._get_bell()
                    self._polling = what
                data: Any = None
                failure: OSError | None = None
                interruption: BaseException | None = None
                try:
                    self._lock.release()
                    if bell is None or channel.wait(timeout, what, bell):
                        data = channel.receive()
                except OSError as error:
                    if not is_of_socket(error):
                        raise
                    failure = error
                finally:
                    try:
                        interruption = self._take_back()
                    except BaseException as error:  # of a signal, before its first line
                        self._take_back()
                        interruption = error
                    self._polling = 0
                waited = data is None
                if failure is not None:
                    channel.lose(channel.failure or failure)
                elif data is not None:
                    self._heard_at = monotonic()
                    if not len(data) and channel.failure is not None:
                        channel.lose(channel.failure)
                    else:
                        channel.take(data)
                self._deliver()
                if interruption is not None:  # but what was read is not lost
                    raise interruption
                if waited and failure is None and until is not None and monotonic() >= until:
                    return
                if (
                    data is None
                    or connection.outbound
                    or channel.tls
                    or connection.version != self._seen
                ):
                    self._turn()
        finally:
            self._reader = None
            self._polling = 0
            self._hand_on()
            self._tidy()

    def _get_bell(self) -> socket.socket | None:
        """Return what rings when another thread wants the reader to look again.

        None when the process has no descriptor left: the reader then looks each time its patience
        is over.
        """
        if self._bell is None:
            try:
                self._bell = socket.socketpair()
            except OSError:
                return None
            for end in self._bell:
                end.setblocking(False)
        ear = self._bell[0]
        with suppress(BlockingIOError):
            ear.recv(64)
        return ear

    def _ring(self) -> None:
        if self._polling and self._bell is not None:
            self._polling = 0  # once is enough
            self._bell[1].send(b"\0")

    def _wait_writable(self, timeout: float | None) -> None:
        self._outside += 1
        try:
            self._lock.release()
            self._channel.wait(timeout, POLLOUT)
        finally:
            try:
                self._regain()
            except BaseException:
                self._take_back()
                raise
            finally:
                self._outside -= 1
                self._tidy()

    def _regain(self) -> None:
        """Take the lock back, and only then raise what interrupted that."""
        interruption = self._take_back()
        if interruption is not None:
            raise interruption

    def _take_back(self) -> BaseException | None:
        """Take the lock back, come what may: somebody above us is going to release it.

        The handler of a signal may raise before the first line of this, too; callers then call it
        again.
        """
        interruption: BaseException | None = None
        while True:
            try:
                while not self._has_lock():
                    self._lock.acquire()
                return interruption
            except BaseException as error:  # of a signal's handler
                interruption = error

    def _tidy(self) -> None:
        """Close the socket when the connection has ended, but not while a thread waits on it."""
        if self.connection.state is State.CLOSED and self._reader is None and not self._outside:
            self._close_sockets()

    def _close_sockets(self) -> None:
        self._channel.close()
        if self._bell is not None:
            for end in self._bell:
                end.close()
            self._bell = None

    def _turn(self) -> None:
        """Do what is due, and write."""
        now = monotonic()
        at = self.connection.next_timeout()
        if at is not None and at <= now:
            self.connection.handle_timeout(now)
            self._deliver()
        self._flush()

    def _time_left(self, until: float | None = None) -> float:
        at = self.connection.next_timeout()
        if until is not None and (at is None or until < at):
            at = until
        left = LONGEST if at is None else min(at - monotonic(), LONGEST)
        return _DEAF if left > _DEAF and get_ident() == main_thread().ident else left

    def _flush(self) -> None:
        channel = self._channel
        if self._sending:
            return  # the thread that does takes this along
        if self._reader is None:
            channel.send()
        else:  # there are others, who need not wait for the kernel
            self._sending = True
            try:
                channel.send(self._lock, self._regain)
            except BaseException:
                self._take_back()
                raise
            finally:
                self._sending = False
        if channel.unsent and self._polling == POLLIN:
            self._ring()  # so that the reader looks when the kernel takes bytes again
        connection = self.connection
        if connection.version != self._seen or connection.state is State.CLOSING:
            self._seen = connection.version
            self._deliver()
            if channel.follow(connection.wish) and connection.state is State.CLOSING:
                channel.lose(None)
                self._deliver()
            if connection.state is State.CLOSED and self._ended.event is None:
                self._ended.event = ConnectionTerminated(None)
                self._ended.wake()

    def _push(self, deadline: float | None) -> None:
        """Wait until all is written, or the deadline has passed: nobody will wait for an answer."""
        with self._lock:
            self._turn()
            while self._channel.unsent and (deadline is None or monotonic() < deadline):
                self._wait_writable(self._time_left(deadline))
                self._turn()

    def _glance(self, now: float) -> None:
        """See whether the server has said goodbye while nobody read."""
        self._heard_at = now
        try:
            while (data := self._channel.receive(socket.MSG_DONTWAIT)) is not None:
                self._channel.take(data)
                if not len(data):
                    break
        except OSError as error:
            self._channel.lose(error)
        self._deliver()
        self._turn()

    def _deliver(self) -> None:
        for event in self.connection.events():
            kind = type(event)
            if kind is CallCompleted or kind is CallFailed:
                waiter: _Waiter = event.call.waiter  # type: ignore[attr-defined]
                waiter.event = event
                if waiter is self._reader:
                    self._ring()
                else:
                    self._sleepers.pop(waiter, None)
                    waiter.wake()
            elif self._handshake.event is None and kind in _FIRST:
                self._handshake.event = event
            elif kind is ObserverFailed:
                _log.error("an observer failed", exc_info=event.error)  # type: ignore[attr-defined]
