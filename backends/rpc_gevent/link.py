"""The glue between a socket, the hub and a connection of the core: read, write, clock, timer.

All of it happens in callbacks of the hub, so a connection needs no greenlet of its own.
"""

import ssl as ssl_module
from _socket import SHUT_WR
from _socket import socket as Socket  # noqa: N812 - what monkey-patching leaves alone
from abc import ABC, abstractmethod
from contextlib import suppress
from time import monotonic
from typing import Any
from weakref import WeakKeyDictionary

from rpc_common.forks import Forks
from rpc_common.tls import Tls
from rpc_proto import Event, State
from rpc_proto.connection import Connection

__all__ = ["Link", "take_over"]

_READ, _WRITE = 1, 2  # what a watcher of the loop waits for

# A read takes no more than this, or many tiny frames would keep the hub for long. While a large
# body arrives there is one frame to parse however much is read.
_READ_SIZE = 64 * 1024
_LARGE_READ_SIZE = 512 * 1024

# So many bytes leave before the callback is over: the peer can begin on them meanwhile.
_EARLY = 1024

# What was read has been taken out when the callback returns, so one buffer does for a hub.
_buffers: WeakKeyDictionary[Any, memoryview] = WeakKeyDictionary()


def take_over(sock: Any) -> Socket:
    """Return the C-level socket in place of a gevent one, which is of no use any more."""
    bare = Socket(fileno=sock.detach())
    bare.setblocking(False)
    return bare


class Link(ABC):
    """Feeds a connection and writes what it says; the subclass handles its events."""

    __slots__ = (
        "_buffer",
        "_eof",
        "_forks",
        "_hub",
        "_large_buffer",
        "_reader",
        "_sock",
        "_timer",
        "_timer_at",
        "_tls",
        "_unsent",
        "_writable",
        "_writer",
        "closed",
        "connection",
        "flush_scheduled",
    )

    connection: Connection

    def __init__(self, hub: Any, sock: Socket, tls: Tls | None) -> None:
        buffer = _buffers.get(hub)
        if buffer is None:
            buffer = _buffers[hub] = memoryview(bytearray(_LARGE_READ_SIZE))
        self._large_buffer = buffer
        self._buffer = buffer[:_READ_SIZE]
        self._hub = hub
        self._sock = sock
        self._tls = tls
        self._forks = Forks.count
        self._reader = hub.loop.io(sock.fileno(), _READ)
        self._writer = hub.loop.io(sock.fileno(), _WRITE)
        self._timer: Any = None
        self._timer_at = 0.0
        self._unsent: Any = b""  # what the kernel did not take
        self._writable = True
        self._eof = False  # the peer sends nothing more
        self.flush_scheduled = False
        self.closed = False

    @abstractmethod
    def handle_events(self, events: list[Event]) -> None:
        """Act on what an input caused."""

    def established(self, tls: Tls) -> None:
        """Take note that the TLS handshake is over."""

    def open(self) -> None:
        """Begin to read and write."""
        self._reader.start(self._readable)
        if self._tls is not None:
            self._write(self._tls.pending())
        self.flush()

    def lose(self, error: Exception | None = None) -> None:
        """Close the socket and tell the connection, whose calls end with that."""
        if self.closed:
            return
        self._let_go()
        self._sock.close()
        reason = f"the connection was lost: {error}" if error else "the connection was closed"
        self.handle_events(self.connection.connection_lost(monotonic(), reason))

    def flush(self) -> None:
        """Write what there is to write and bring timer and back-pressure up to date."""
        self.flush_scheduled = False
        connection = self.connection
        while connection.outbound and self._writable:
            self._write(connection.next_buffer())
        if connection.changed and not self.closed:
            self._follow()

    def wrote(self) -> None:
        """See to it that what a command wrote leaves: when enough has come together, or soon."""
        connection = self.connection
        if connection.outbound >= _EARLY and self._writable:
            self._write(connection.next_buffer())
        self.flush_soon()

    def flush_soon(self) -> None:
        """Flush once, when what runs now in the hub and in greenlets lets go."""
        if not self.flush_scheduled:
            self.flush_scheduled = True
            self._hub.loop.run_callback(self.flush)

    # Called by the hub

    def _readable(self) -> None:
        if self._forks != Forks.count:
            self._let_go()  # it is the parent's to read
            return
        try:
            count = self._sock.recv_into(self._buffer)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self.lose(error)
            return
        if not count:
            self._receive_eof()
            return
        data: Any = self._large_buffer[:count]
        if self._tls is not None:
            data = self._decrypt(self._tls, data)
        connection = self.connection
        events = connection.receive_data(data, monotonic())
        if events:
            self.flush_scheduled = True  # by the flush below
            try:
                self.handle_events(events)
            finally:
                self.flush()
        elif connection.outbound or connection.changed:
            self.flush()
        if count >= _READ_SIZE:
            large = connection.missing > _READ_SIZE
            self._buffer = self._large_buffer if large else self._large_buffer[:_READ_SIZE]

    def _decrypt(self, tls: Tls, data: memoryview) -> bytes:
        was_established = tls.established
        try:
            plain = tls.decrypt(data)
        except ssl_module.SSLError as error:
            with suppress(OSError):  # the alert that tells the peer why
                self._sock.send(tls.pending())
            self.lose(error)
            return b""
        self._write(tls.pending())
        if tls.established and not was_established:
            self.connection.changed = True  # one that is closing had to wait for this
            self.established(tls)
        return plain

    def _receive_eof(self) -> None:
        self._eof = True
        self._reader.stop()
        if self._tls is not None and not self._tls.established:
            self.lose(ConnectionResetError("the peer hung up during the TLS handshake"))
            return
        self.handle_events(self.connection.receive_eof(monotonic()))
        self.connection.changed = True  # one that is closing waited for this
        self.flush()

    def _go_on_writing(self) -> None:
        if self._forks != Forks.count:
            self._let_go()
            return
        unsent, self._unsent = self._unsent, b""
        self._writable = True
        self._write(unsent)
        if self._writable:
            self._writer.stop()
            self.connection.changed = True  # one that is closing may be closed now
            self.flush()

    def _write(self, data: Any) -> None:
        if self._tls is not None and type(data) is bytes:
            data = self._tls.encrypt(data)
        try:
            sent = self._sock.send(data) if data else 0
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError as error:
            # Not here: the events would come in the middle of what the caller does.
            self._writable = False
            self._writer.stop()
            self._hub.loop.run_callback(self.lose, error)
            return
        if sent < len(data):
            self._unsent = memoryview(data)[sent:]
            if self._writable:
                self._writable = False
                self._writer.start(self._go_on_writing)

    def _timer_fired(self) -> None:
        self._stop_timer()
        if self._forks != Forks.count:
            self._let_go()
            return
        # A loop may fire a little early by this clock; the connection must not see that.
        now = max(self._timer_at, monotonic())
        self.handle_events(self.connection.handle_timeout(now))
        self.flush()

    # What follows from the connection's state

    def _follow(self) -> None:
        connection = self.connection
        connection.changed = False
        if connection.state is not State.OPEN and self._is_over():
            self.lose()
            return
        if not self._eof and connection.wants_data is not self._reader.active:
            if self._reader.active:
                self._reader.stop()
            else:
                self._reader.start(self._readable)
        at = connection.next_timeout()
        if at is not None and (self._timer is None or at < self._timer_at):
            self._stop_timer()
            self._timer_at = at
            self._timer = self._hub.loop.timer(max(0.0, at - monotonic()))
            self._timer.start(self._timer_fired)

    def _is_over(self) -> bool:
        return self.connection.state is State.CLOSED

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.stop()
            self._timer.close()
            self._timer = None

    def _let_go(self) -> None:
        self.closed = True
        self._writable = False
        self._unsent = b""
        self._stop_timer()
        for watcher in (self._reader, self._writer):
            watcher.stop()
            watcher.close()
