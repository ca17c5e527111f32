"""The glue between a socket, the hub and a connection: reading, writing, time.

Everything runs in callbacks of the hub, so a connection needs no greenlet of its own.
"""

import ssl as ssl_module
from _socket import SHUT_WR
from _socket import socket as Socket  # noqa: N812 - what monkey-patching leaves alone
from abc import ABC, abstractmethod
from contextlib import suppress
from time import monotonic
from typing import Any
from weakref import WeakKeyDictionary

from rpc_common.transport.forks import Forks
from rpc_common.transport.memory import keep_large_blocks
from rpc_common.transport.tls import Tls
from rpc_common.transport.turns import FIRST_READ, LARGEST_READ, SHORT, Turns, next_read
from rpc_proto import Event, State, Wish
from rpc_proto.connection.base import Connection

__all__ = ["Link", "take_over"]

_TO_READ, _TO_WRITE = 1, 2  # what a watcher of the loop waits for

_READ = Wish.READ  # an attribute of an enum takes longer to look up than a name

# While a large body arrives there is one frame to parse however much is read.
_LARGE_READ_SIZE = 512 * 1024

# So many bytes are sent before the callback is over, so that the peer can work in parallel.
_EARLY = 1024

# The bytes are consumed before the callback returns, so one buffer per hub is enough.
_buffers: WeakKeyDictionary[Any, memoryview] = WeakKeyDictionary()


def take_over(sock: Any) -> Socket:
    """Return the C-level socket of a gevent socket, which must not be used any more."""
    bare = Socket(fileno=sock.detach())
    bare.setblocking(False)
    return bare


class Link(ABC):
    """Feeds a connection and writes its output; the subclass handles its events."""

    __slots__ = (
        "_buffer",
        "_eof",
        "_finished",
        "_forks",
        "_hub",
        "_large_buffer",
        "_read_size",
        "_reader",
        "_seen",
        "_sock",
        "_timer",
        "_timer_at",
        "_tls",
        "_unsent",
        "_waits",
        "_writable",
        "_writer",
        "closed",
        "connection",
        "flush_scheduled",
    )

    connection: Connection
    _turns: Turns | None = None  # of connections whose reads take long, at a server

    def __init__(self, hub: Any, sock: Socket, tls: Tls | None) -> None:
        buffer = _buffers.get(hub)
        if buffer is None:
            keep_large_blocks()
            buffer = _buffers[hub] = memoryview(bytearray(_LARGE_READ_SIZE))
        self._large_buffer = buffer
        self._read_size = LARGEST_READ if self._turns is None else FIRST_READ
        self._buffer = buffer[: self._read_size]
        self._hub = hub
        self._sock = sock
        self._tls = tls
        self._forks = Forks.count
        self._reader = hub.loop.io(sock.fileno(), _TO_READ)
        self._writer = hub.loop.io(sock.fileno(), _TO_WRITE)
        self._timer: Any = None
        self._timer_at = 0.0
        self._unsent: Any = b""  # what the kernel did not take
        self._waits = False  # until it is this connection's turn
        self._writable = True
        self._eof = False  # the peer sends nothing more
        self._finished = False  # nor does this end
        self._seen = -1  # the version of the connection that `_follow` has looked at
        self.flush_scheduled = False
        self.closed = False

    @abstractmethod
    def handle_events(self, events: list[Event]) -> None:
        """Handle events."""

    def established(self, tls: Tls) -> None:  # noqa: B027 - most have nothing to do
        """Record that the TLS handshake is over."""

    def fileno(self) -> int:
        """Return the descriptor of the socket; -1 if it is closed."""
        return self._sock.fileno()

    def open(self) -> None:
        """Start to read and write."""
        self._reader.start(self._readable)
        if self._tls is not None:
            self._push(self._tls.pending())
        self.flush()

    def lose(self, error: Exception | None = None) -> None:
        """Close the socket and tell the connection, which ends its calls."""
        if self.closed:
            return
        self._let_go()
        self._sock.close()
        reason = f"the connection was lost: {error}" if error else "the connection was closed"
        self.connection.connection_lost(monotonic(), reason)
        self.react()

    def react(self) -> bool:
        """Handle the events so far; return whether there were any."""
        events = self.connection.events()
        if events:
            self.handle_events(events)
            return True
        return False

    def look_again(self) -> None:
        """Flush soon, even if the connection's version has not changed."""
        self._seen = -1
        self.flush_soon()

    def flush(self) -> None:
        """Write as much as the kernel takes, then follow the connection's state."""
        self.flush_scheduled = False
        connection = self.connection
        while connection.outbound and self._writable:
            data = connection.next_buffer()
            self._push(data if self._tls is None else self._tls.encrypt(data))
        if connection.version != self._seen and not self.closed:
            self._follow()

    def wrote(self) -> None:
        """Send what a command wrote: at once if enough has accumulated, or soon."""
        if self.connection.outbound >= _EARLY:
            scheduled = self.flush_scheduled
            self.flush()
            self.flush_scheduled = scheduled
        elif not self.flush_scheduled:
            self.flush_soon()

    def flush_soon(self) -> None:
        """Flush once, when the current callbacks and greenlets have yielded."""
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
        connection = self.connection
        data: Any = self._large_buffer[:count]
        began = monotonic()
        if self._tls is not None:
            data = self._decrypt(self._tls, data)
        try:
            connection.receive_data(began, data)
            events = connection.events()
        except BaseException as error:  # of a codec; the hub would not call this again
            self.lose(ConnectionAbortedError(f"{type(error).__name__} while reading"))
            raise
        if events:
            self.flush_scheduled = True  # by the flush below
        try:
            if events:
                self.handle_events(events)
        finally:
            self.flush()
        seconds = monotonic() - began
        if seconds > SHORT or count >= self._read_size:
            self._pace(count, seconds)

    def _pace(self, count: int, seconds: float) -> None:
        """Choose the size of the next read, and let other connections go first."""
        turns = self._turns
        if turns is not None:
            self._read_size = next_read(self._read_size, count, seconds)
        large = self.connection.missing > LARGEST_READ
        self._buffer = self._large_buffer if large else self._large_buffer[: self._read_size]
        if turns is None or seconds <= SHORT or self.closed or not self._reader.active:
            return
        # Data for a closing connection is dropped, so there is no need to wait for it.
        if self.connection.state is not State.CLOSING and turns.are_contended(self):
            self._waits = True
            self._reader.stop()
            if turns.add(self, seconds):
                self._give_turns_soon()

    def _give_turns_soon(self) -> None:
        # A timer: callbacks would run before the hub looks at the sockets again.
        timer = self._hub.loop.timer(0)
        timer.start(self._give_turns, timer)

    def _give_turns(self, timer: Any) -> None:
        timer.close()
        assert self._turns is not None
        link = self._turns.next()
        if link is not None:
            link._take_turn()
            self._give_turns_soon()

    def _take_turn(self) -> None:
        self._waits = False
        if not self.closed and not self._eof and self.connection.wish is not Wish.PAUSE:
            self._reader.start(self._readable)

    def _decrypt(self, tls: Tls, data: memoryview) -> bytes:
        was_established = tls.established
        try:
            plain = tls.decrypt(data)
        except ssl_module.SSLError as error:
            with suppress(OSError):  # the alert that tells the peer why
                self._sock.send(tls.pending())
            self.lose(error)
            return b""
        own = tls.pending()
        if own:  # to send nothing fails, too, once this end has sent its last
            self._push(own)
        if tls.established and not was_established:
            self._seen = -1  # one that is closing had to wait for this
            self.established(tls)
        return plain

    def _receive_eof(self) -> None:
        self._eof = True
        self._reader.stop()
        if self._tls is not None and not self._tls.established:
            self.lose(
                ConnectionResetError("the peer closed the connection during the TLS handshake")
            )
            return
        self.connection.receive_eof(monotonic())
        self.react()
        self.flush()

    def _go_on_writing(self) -> None:
        if self._forks != Forks.count:
            self._let_go()
            return
        unsent, self._unsent = self._unsent, b""
        self.connection.unsent = 0
        self._writable = True
        self._push(unsent)
        if self._writable:
            self._writer.stop()
            self._seen = -1  # one that is closing may be closed now
            self.flush()

    def _timer_fired(self) -> None:
        self._stop_timer()
        if self._forks != Forks.count:
            self._let_go()
            return
        # A loop may fire a little early by this clock; the connection must not see that.
        now = max(self._timer_at, monotonic())
        self.connection.handle_timeout(now)
        self.react()
        tls = self._tls
        if tls is not None and not tls.established and self.connection.state is State.CLOSING:
            self.lose(TimeoutError("it took too long"))  # it cannot even be told
        self.flush()

    def _writing_failed(self, error: OSError) -> None:
        if self._reader.active and not self.closed:
            self._readable()  # what the peer sent before it closed, perhaps the reason
        self.lose(error)

    def _push(self, data: Any) -> None:
        """Write raw bytes; keep what the kernel does not take."""
        if not self._writable:  # TLS's own records cannot wait
            if self._unsent:
                self._unsent = bytes(self._unsent) + data
                self.connection.unsent = len(self._unsent)
            return
        try:
            sent = self._sock.send(data)
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError as error:
            # Not here: events must not occur in the middle of what the caller does.
            self._writable = False
            self._writer.stop()
            self._hub.loop.run_callback(self._writing_failed, error)
            return
        if sent != len(data):
            self._unsent = memoryview(data)[sent:]
            self.connection.unsent = len(self._unsent)
            self._writable = False
            if not self._writer.active:
                self._writer.start(self._go_on_writing)

    # Following the connection's state

    def _follow(self) -> None:
        connection = self.connection
        self._seen = connection.version
        if self.react():  # to what a command caused
            self._seen = -1
            self.flush()
            return
        wish = connection.wish
        if connection.state is not State.OPEN and self._is_over(wish):
            self.lose()
            return
        reads = (wish is _READ or wish is not Wish.PAUSE) and not self._waits
        if not self._eof and reads is not self._reader.active:
            if self._reader.active:
                self._reader.stop()
            else:
                self._reader.start(self._readable)
        at = connection.next_timeout()
        if at is not None:
            self._set_timer(at)

    def _is_over(self, wish: Wish) -> bool:
        """Do what the ending connection wishes; return whether to close the socket."""
        if wish is Wish.ABORT:
            return True
        tls = self._tls
        if not self._writable or (tls is not None and not tls.established):
            return False
        if wish is Wish.READ or wish is Wish.PAUSE:
            return self._eof and tls is not None  # TLS has no half-closed connections
        if not self._finished:
            self._finished = True
            if tls is not None:
                self._push(tls.goodbye())
            with suppress(OSError):
                self._sock.shutdown(SHUT_WR)
        return wish is Wish.CLOSE

    def _set_timer(self, at: float) -> None:
        if self._timer is None or at < self._timer_at:
            self._stop_timer()
            self._timer_at = at
            self._timer = self._hub.loop.timer(max(0.001, at - monotonic()))
            self._timer.start(self._timer_fired)

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
