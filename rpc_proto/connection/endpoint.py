"""One end of a connection, whatever the protocol: bytes in and out, time, and closing."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any

from rpc_proto.config import Config
from rpc_proto.errors import RpcError, Unavailable

from .events import ConnectionTerminated, Event
from .memory import Account
from .observers import NOBODY, Observer, Observers, tell
from .states import TRANSITIONS, State, Trigger, Wish
from .timers import Timer, TimerTable

__all__ = ["Endpoint"]

# Buffers up to this size, in bytes, are joined; a larger one is returned as it is.
_JOINED = 65 * 1024  # a part of an item, and its prefix

# Larger buffers are returned in pieces of this size: some transports copy the part of a buffer that
# they could not send, so each peer that does not read would cost a copy of everything unsent.
_LARGEST_PIECE = 256 * 1024

# If a socket is closed while the peer still sends, the kernel resets the connection and our last
# bytes are lost. A lingering end reads until the peer has been silent for so many seconds.
_SILENCE = 0.2

# An attribute of an enum takes longer to look up than a name.
_OPEN = State.OPEN
_READ = Wish.READ

_SLOWEST_READER = 16 * 1024  # bytes a second, the slowest acceptable rate of sending


class Endpoint(ABC):
    """One end of a connection, without any I/O, whatever the protocol on it.

    Times are absolute seconds of one monotonic clock, which the embedder reads and passes in as
    `now`. There are five kinds of attribute, used in this order:

    - inputs: `receive_data`, `receive_eof`, `connection_lost`, `handle_timeout`. They return
      nothing and never raise, whatever the peer sent.
    - commands: `shutdown` and those of the subclass. They return only what they create. Misuse
      raises LocalProtocolError before anything is changed.
    - outputs: after any input or command, handle `events()`, write what `data_to_send` or
      `next_buffer` returns, do what `wish` says, and call `handle_timeout` at `next_timeout`.
    - getters: `state`, `outbound`, `high_water`, `agreed`, `ignored`, `received`, `sent`, and
      `version`, a number. While it stays the same, there are no events except those of the last
      input, `state` and `wish` have not changed, and `next_timeout` is not earlier.
    - `unsent`, to be set by the embedder: the bytes that it took but could not write yet. When it
      becomes less, there may be more to send, as after an input.

    `now` is the first argument of every input and command. Calling `handle_timeout` too early does
    nothing.
    """

    __slots__ = (
        "_account",
        "_config",
        "_eof",
        "_events",
        "_now",
        "_observers",
        "_out",
        "_received_at",
        "_room",
        "_silent",
        "_terminated",
        "_timers",
        "_turns",
        "_unsent",
        "_watched",
        "high_water",
        "outbound",
        "received",
        "sent",
        "state",
        "version",
    )

    _account: Account  # for a server's end, which is limited to its share of the memory budget
    _config: Config
    _lingers = False  # whether to read until the peer is silent before closing

    def __init__(
        self, config: Config, now: float, observers: Iterable[Observer] | Observers
    ) -> None:
        self._config = config
        self._observers = Observers.of(observers) if observers else NOBODY
        self.state = State.HANDSHAKE  # for looking; a plain attribute, as are the other getters
        self.version = 0
        self._now = now
        self._received_at = now
        self._events: list[Event] = []
        self._out: list[bytes | memoryview] = []
        self._turns: Any = ()  # what waits to be sent when little is outbound: see `_pump`
        self.outbound = 0  # bytes that `data_to_send` would return
        self._unsent = 0
        self.high_water = config.high_water
        self._room = config.high_water  # outbound bytes from which on `_settle` is to be called
        self._watched = 0  # what `sent` was when Timer.WRITE was set
        self._timers = TimerTable()
        self._eof = False  # the peer sends nothing more
        self._silent = False  # or seems to, after our last bytes
        self._terminated = False
        self.received = 0  # bytes in total; `sent` counts those taken to be written
        self.sent = 0

    # Getters

    @property
    def wish(self) -> Wish:
        """What the transport should do now."""
        state = self.state
        if state is _OPEN or (state is not State.CLOSING and state is not State.CLOSED):
            return _READ if self._wants_data() else Wish.PAUSE
        if state is State.CLOSED:
            return Wish.ABORT
        if self.outbound:
            return Wish.READ  # what it says is dropped
        return Wish.HALF_CLOSE if self._lingers and not (self._eof or self._silent) else Wish.CLOSE

    @property
    def missing(self) -> int:
        """Bytes still missing of what is arriving: a hint for the size of the next read."""
        return 0

    @property
    def unsent(self) -> int:
        """Bytes that the embedder took but could not write yet."""
        return self._unsent

    @unsent.setter
    def unsent(self, size: int) -> None:
        self._unsent = size
        if self._turns:
            self._pump()

    # Inputs

    @abstractmethod
    def receive_data(self, now: float, data: bytes | bytearray | memoryview) -> None:
        """Take bytes from the peer; the caller may reuse the buffer afterwards."""

    @abstractmethod
    def receive_eof(self, now: float) -> None:
        """Record that the peer sends nothing more (EOF); it may still read."""

    @abstractmethod
    def connection_lost(self, now: float, reason: str = "the connection was lost") -> None:
        """Record that the transport is closed in both directions; nothing more can be sent."""

    def handle_timeout(self, now: float) -> None:
        """Do what is due; afterwards `next_timeout()` is None or later than `now`."""
        self._now = now
        self.version += 1
        for timer in self._timers.pop_due(now):
            if self.state is not State.CLOSED:
                self._handle_timer(timer, now)
        if self.state is not State.CLOSED:
            self._pass_time(now)

    # Commands

    @abstractmethod
    def shutdown(self, now: float, grace: float = 0.0) -> None:
        """Close the connection gracefully: nothing new, and `grace` seconds for the rest."""

    # Outputs

    def events(self) -> list[Event]:
        """Return the events since the last call, in order."""
        events = self._events
        if events:
            self._events = []
        return events

    def data_to_send(self) -> bytes:
        """Return all bytes to write now; b"" if there are none."""
        data = self._take_out(len(self._out))
        while self._out:  # more, in its turn
            data = b"".join((data, self._take_out(len(self._out))))
        return bytes(data)

    def next_buffer(self) -> bytes | memoryview:
        """Return the next bytes to write: up to 256 KiB of a large body, or 64 KiB of small ones.

        Large bodies are not copied. `outbound` is not 0 while there is more: stop when the
        transport is full.
        """
        out = self._out
        if self.outbound <= _JOINED and self.outbound < self._room:
            self._out = []
            self.outbound = 0
            data = b"".join(out)
            self.sent += len(data)
            if self._turns:
                self._pump()
            return data
        size = 0
        for count, chunk in enumerate(out):
            size += len(chunk)
            if size > _JOINED:
                if count == 0 and size > _LARGEST_PIECE:
                    whole = memoryview(chunk)
                    out[:1] = whole[:_LARGEST_PIECE], whole[_LARGEST_PIECE:]
                return self._take_out(count or 1)
        return self._take_out(len(out))

    def next_timeout(self) -> float | None:
        """Return when to call `handle_timeout`, in absolute seconds; None for never.

        It is never earlier than the `now` of the last input or command.
        """
        at = self._timers.earliest
        return at if at is None or at > self._now else self._now

    # Differs by protocol

    def _pump(self) -> None:  # noqa: B027 - HTTP has nothing there
        """Queue more of what waits in `_turns`."""

    @abstractmethod
    def _settle(self, now: float) -> None:
        """Send what waits, arm the write timer, and close what has drained."""

    @abstractmethod
    def _pass_time(self, now: float) -> None:
        """Do what is due apart from timers, then settle."""

    @abstractmethod
    def _stop(self, error: RpcError | None, now: float) -> None:
        """End what is in progress: the connection has ended, for this reason if there is one."""

    def _wants_data(self) -> bool:
        return True

    # Shared inner workings

    def _tell(self, methods: tuple[Any, ...], *what: Any) -> None:
        """Notify observers; what one raises becomes an event."""
        before = len(self._events)
        tell(self._events, methods, self._now, *what)
        if len(self._events) != before:
            self.version += 1

    def _note_eof(self, now: float) -> None:
        self._now = now
        self._eof = True
        self.version += 1

    def _move(self, trigger: Trigger) -> None:
        self.state = TRANSITIONS[self.state, trigger]
        self.version += 1

    def _set_timer(self, timer: Timer, at: float) -> None:
        self._timers.set(timer, at)
        self.version += 1

    def _take_out(self, count: int) -> bytes | memoryview:
        out = self._out
        data: bytes | memoryview
        if count == len(out):
            data = out[0] if count == 1 else b"".join(out)
            self._out = []
        else:
            data = out[0] if count == 1 else b"".join(out[:count])
            del out[:count]
        before = self.outbound
        self.outbound = before - len(data)
        self.sent += len(data)
        if self.state is State.CLOSING:
            if before and not self.outbound:
                self._linger(self._now)
        elif before >= self._room > self.outbound or before >= self.high_water > self.outbound:
            self._drained()
        if self._turns:
            self._pump()
        return data

    def _send_line(self, line: bytes) -> None:
        self._out.append(line)
        self.outbound += len(line)

    def _drained(self) -> None:
        """Continue what waited for the outbound bytes to fall below the high-water mark."""
        self._timers.clear(Timer.WRITE)
        self.version += 1

    def _watch_writing(self, now: float) -> None:
        """Limit how long outbound bytes may stay above the high-water mark."""
        if (
            self._is_full()
            and Timer.WRITE not in self._timers
            and self.state not in (State.CLOSING, State.CLOSED)
        ):
            self._watched = self.sent
            self._set_timer(Timer.WRITE, now + self._config.write_timeout)

    def _is_full(self) -> bool:
        waiting = self.outbound + self._unsent
        return waiting >= self._room and waiting > 0

    def _end(self, trigger: Trigger, error: RpcError | None, now: float) -> None:
        self._move(trigger)
        self._timers.clear_all()
        if self.state is State.CLOSING:
            self._set_timer(Timer.CLOSE, now + self._config.close_timeout)
            self._room = 0  # so that the driver notices when the last byte is taken
            if not self.outbound:
                self._linger(now)
        else:
            self._out.clear()  # there is nowhere to send it
            self.outbound = 0
        if not self._terminated:
            self._terminated = True
            if error is not None:
                # Its frames refer to this connection, so keeping the error would keep everything
                # alive.
                error.__traceback__ = None
                if error.__cause__ is None:
                    error.__context__ = None
            self._stop(error, now)
            self._events.append(ConnectionTerminated(error))

    def _linger(self, now: float) -> None:
        """All bytes were taken: read until the peer is silent, if we linger."""
        self.version += 1
        if self._lingers and not self._eof:
            # What the transport has not written yet, the peer cannot have answered.
            at = (now if self._unsent else self._received_at) + _SILENCE
            if at > now:
                self._set_timer(Timer.LINGER, at)
            else:
                self._silent = True

    def _handle_timer(self, timer: Timer, now: float) -> None:
        if timer is Timer.LINGER:
            self._linger(now)
        elif timer is Timer.CLOSE:
            self._end(Trigger.LATE, None, now)
        elif timer is Timer.WRITE:
            seconds = self._config.write_timeout
            if self.sent - self._watched >= seconds * _SLOWEST_READER or not self._is_full():
                return  # if it is still full it is watched from now on
            self._end(
                Trigger.LOST, Unavailable(f"the peer did not read enough for {seconds:g} s"), now
            )
