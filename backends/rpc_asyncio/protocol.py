"""The glue between an asyncio transport and a connection: reading, writing, time."""

import asyncio
import ssl as ssl_module
from abc import ABC, abstractmethod
from contextlib import suppress
from time import monotonic
from typing import Any
from weakref import WeakKeyDictionary

from rpc_common.transport.memory import keep_large_blocks
from rpc_common.transport.tls import Tls
from rpc_common.transport.turns import FIRST_READ, LARGEST_READ, SHORT, Turns, next_read
from rpc_proto import Event, State, Wish
from rpc_proto.connection.base import Connection

__all__ = ["ConnectionProtocol"]

_READ = Wish.READ  # an attribute of an enum takes longer to look up than a name

# While a large body arrives there is just one frame to parse, so a read may be larger.
_LARGE_READ_SIZE = 512 * 1024


# Once so many bytes have accumulated, they are sent before the turn of the loop is over, so that
# the peer can work on them in parallel.
_EARLY = 1024


# The bytes are consumed before the callback returns, so all connections of a loop share a buffer.
_buffers: WeakKeyDictionary[asyncio.AbstractEventLoop, memoryview] = WeakKeyDictionary()


def _shared_buffer(loop: asyncio.AbstractEventLoop) -> memoryview:
    buffer = _buffers.get(loop)
    if buffer is None:
        keep_large_blocks()
        buffer = _buffers[loop] = memoryview(bytearray(_LARGE_READ_SIZE))
    return buffer


class ConnectionProtocol(asyncio.BufferedProtocol, ABC):
    """Feeds a connection and writes its output; the subclass handles its events."""

    __slots__ = (
        "_buffer",
        "_failure",
        "_finished",
        "_large_buffer",
        "_loop",
        "_read_size",
        "_reading",
        "_seen",
        "_timer",
        "_timer_at",
        "_tls",
        "_transport",
        "_waits",
        "_writable",
        "_write",
        "closed",
        "connection",
        "flush_scheduled",
    )

    connection: Connection
    _turns: Turns | None = None  # of connections whose reads take long, at a server

    def __init__(self, loop: asyncio.AbstractEventLoop, tls: Tls | None = None) -> None:
        self._loop = loop
        self._tls = tls
        self._failure: Exception | None = None  # what went wrong with it
        self._large_buffer = _shared_buffer(loop)
        self._read_size = LARGEST_READ if self._turns is None else FIRST_READ
        self._buffer = self._large_buffer[: self._read_size]
        self._transport: Any = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._reading = True
        self._waits = False  # until it is this connection's turn
        self._writable = True
        self._finished = False  # this end sends nothing more
        self._seen = -1  # the version of the connection that `_follow` has looked at
        self.flush_scheduled = False
        self.closed = False

    @abstractmethod
    def handle_events(self, events: list[Event]) -> None:
        """Handle events."""

    def established(self, tls: Tls) -> None:
        """Record that the TLS handshake is over."""

    # Called by the transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        if self._tls is None:
            self._write = self._transport.write
        else:
            self._write = self._encrypt
            self._write_own(self._tls)
        self.flush()

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        connection = self.connection
        began = monotonic()
        data: Any = self._large_buffer[:nbytes]
        if self._tls is not None:
            data = self._decrypt(self._tls, data)
        connection.receive_data(began, data)
        events = connection.events()
        if events:
            self.flush_scheduled = True  # by the flush below
            self.handle_events(events)
        self.flush()
        seconds = monotonic() - began
        if seconds > SHORT or nbytes >= self._read_size:
            self._pace(nbytes, seconds)

    def _decrypt(self, tls: Tls, data: memoryview) -> bytes:
        was_established = tls.established
        try:
            plain = tls.decrypt(data)
        except ssl_module.SSLError as error:
            self._write_own(tls)  # the alert that tells the peer why
            self.fail(error)
            return b""
        self._write_own(tls)
        if tls.established and not was_established:
            self._seen = -1  # one that is closing had to wait for this
            self.established(tls)
        return plain

    def _encrypt(self, data: bytes | memoryview) -> None:
        assert self._tls is not None
        self._transport.write(self._tls.encrypt(data))

    def _write_own(self, tls: Tls) -> None:
        own = tls.pending()
        if own and not self.closed:
            self._transport.write(own)

    def fail(self, error: Exception) -> None:
        """Close the transport after a TLS error; it may still send the alert."""
        self._failure = self._failure or error
        self._transport.close()

    def _pace(self, nbytes: int, seconds: float) -> None:
        """Choose the size of the next read, and let other connections go first."""
        turns = self._turns
        if turns is not None:
            self._read_size = next_read(self._read_size, nbytes, seconds)
        # A client reads more at a time, too, while large items keep coming.
        quick = turns is None and nbytes >= self._read_size and seconds <= SHORT
        large = quick or self.connection.missing > LARGEST_READ
        self._buffer = self._large_buffer if large else self._large_buffer[: self._read_size]
        if turns is None or seconds <= SHORT or not self._reading:
            return
        # Data for a closing connection is dropped, so there is no need to wait for it.
        if self.connection.state is not State.CLOSING and turns.are_contended(self):
            self._waits = True
            self._turn_reading()
            if turns.add(self, seconds):
                self._loop.call_soon(self._give_turns)

    def _give_turns(self) -> None:
        assert self._turns is not None
        protocol = self._turns.next()
        if protocol is not None:
            protocol._take_turn()
            self._loop.call_soon(self._give_turns)

    def _take_turn(self) -> None:
        self._waits = False
        if not self.closed and self.connection.wish is not Wish.PAUSE:
            self._turn_reading()

    def eof_received(self) -> bool:
        if self._tls is not None and not self._tls.established:
            self.fail(
                ConnectionResetError("the peer closed the connection during the TLS handshake")
            )
            return False
        self.connection.receive_eof(monotonic())
        self.react()
        self.flush()
        return self._tls is None  # TLS has no half-closed connections

    def pause_writing(self) -> None:
        self._writable = False
        self.connection.unsent = self._transport.get_write_buffer_size()

    def resume_writing(self) -> None:
        self._writable = True
        self.connection.unsent = 0
        self._seen = -1  # one that is closing may be closed once it is written out
        self.flush()

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        self._write = self._transport.write  # and no method of its own, which would keep it
        exc = self._failure or exc
        reason = f"the connection was lost: {exc}" if exc else "the connection was closed"
        self.connection.connection_lost(monotonic(), reason)
        self.react()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # Called by the driver

    def abort(self) -> None:
        """Close the transport, if there is one, and drop unwritten data."""
        if self._transport is not None:
            self._transport.abort()

    def fileno(self) -> int:
        """Return the descriptor of the socket."""
        number: int = self._transport.get_extra_info("socket").fileno()
        return number

    def react(self) -> bool:
        """Handle the events so far; return whether there were any."""
        events = self.connection.events()
        if events:
            self.handle_events(events)
            return True
        return False

    def flush(self) -> None:
        """Write all output, and update the timer and back-pressure."""
        self.flush_scheduled = False
        connection = self.connection
        if connection.outbound:
            self._write_out(connection)
        if connection.version != self._seen:
            self._follow()

    def look_again(self) -> None:
        """Flush soon, even if the connection's version has not changed."""
        self._seen = -1
        self.flush_soon()

    def _follow(self) -> None:
        connection = self.connection
        self._seen = connection.version
        if self.react():  # to what a command caused
            self._seen = -1
            self.flush()
            return
        wish = connection.wish
        if wish is not _READ and wish is not Wish.PAUSE:
            self._finish(wish)
            if self.closed:
                return
        if ((wish is _READ or wish is not Wish.PAUSE) and not self._waits) is not self._reading:
            self._turn_reading()
        at = connection.next_timeout()
        if at is not None and (self._timer is None or at < self._timer_at):
            self._set_timer(at)

    def wrote(self) -> None:
        """Send what a command wrote: at once if enough has accumulated, or soon."""
        connection = self.connection
        if connection.outbound >= _EARLY:
            self._write_out(connection)
        if not self.flush_scheduled:
            self.flush_soon()

    def _write_out(self, connection: Connection) -> None:
        # A loop logs a warning for each write after one that failed, and tells it only later.
        while connection.outbound and self._writable and not self._transport.is_closing():
            self._write(connection.next_buffer())

    def flush_soon(self) -> None:
        """Flush once when this turn of the loop is over, whatever else is written until then."""
        if not self.flush_scheduled:
            self.flush_scheduled = True
            self._loop.call_soon(self.flush)

    def _finish(self, wish: Wish) -> None:
        transport, tls = self._transport, self._tls
        if self.closed:
            return
        if wish is Wish.ABORT:
            transport.abort()
        elif tls is not None and not tls.established:
            self._failure = self._failure or TimeoutError("it took too long")
            transport.abort()  # it cannot even be told
        elif self._writable and not transport.is_closing():
            # Only if the transport has nothing left, so that errors are raised here.
            unsent = self.connection.unsent = transport.get_write_buffer_size()
            if not self._finished and (wish is Wish.CLOSE or not unsent):
                self._finished = True
                if tls is not None:
                    transport.write(tls.goodbye())
                if wish is Wish.HALF_CLOSE:
                    with suppress(OSError):  # the peer was quicker
                        transport.write_eof()
            if wish is Wish.CLOSE:
                transport.close()

    def _turn_reading(self) -> None:
        if not self._transport.is_closing():
            self._reading = not self._reading
            if self._reading:
                self._transport.resume_reading()
            else:
                self._transport.pause_reading()

    def _set_timer(self, at: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = at
        self._timer = self._loop.call_later(at - monotonic(), self._timer_fired)

    def _timer_fired(self) -> None:
        self._timer = None
        # A loop may fire a little early by this clock; the connection must not see that.
        now = max(self._timer_at, monotonic())
        self.connection.handle_timeout(now)
        self.react()
        self.flush()
