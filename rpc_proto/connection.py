"""What both ends of a connection share: bytes in and out, time, states, liveness, shutdown.

The protocol itself is in client.py and server.py; docs/protocol.md is its specification.
"""

from abc import ABC, abstractmethod
from typing import Any

from .codecs import WORST_GROWTH, Codec
from .config import _Config
from .errors import (
    HandshakeError,
    LocalProtocolError,
    RemoteProtocolError,
    ResourceExhausted,
    RpcError,
    Unavailable,
)
from .events import ConnectionTerminated, Event, GoAwayReceived
from .frames import Frame, FrameReader, FrameType, encode_prefix
from .handshake import Answer, LineReader
from .headers import Headers
from .states import TRANSITIONS, State, Trigger, Wish
from .timers import Timer, TimerTable
from .typed import decoder

__all__ = ["Connection"]

# Buffers are joined up to this size, in bytes; a larger one is handed out as it is.
_JOINED = 64 * 1024

# What is larger is handed out in pieces of this size: what the transport does not take of a buffer
# is copied by some, so each peer that does not read would cost a copy of all that waits for it.
_LARGEST_PIECE = 256 * 1024

# After the client half-closed nothing more can arrive from it, so only a write can tell whether it
# is still there to read: a kernel whose process is gone answers the first one with a reset.
_PROBE_INTERVAL = 1.0

# Closing while the peer still sends makes a kernel reset the connection, and the last words are
# lost with it: whoever lingers reads on until the peer has sent nothing for so many seconds.
_SILENCE = 0.2

# An attribute of an enum takes longer to look up than a name.
_OPEN = State.OPEN

# Bytes a second, at which a large frame has to arrive at least, and what waits has to leave.
_SLOWEST = 64 * 1024
_SLOWEST_READER = 16 * 1024

_LONGEST_TEXT = 1024  # bytes of a message on the wire

_GOAWAY_BODY = tuple[str, str]
_LARGEST_GOAWAY = 8 * 1024  # bytes


def clip(text: str) -> str:
    """Return the text cut to what may travel; whatever it contains is opaque to the protocol."""
    if len(text) <= _LONGEST_TEXT // 4:
        return text.encode("utf-8", "replace").decode()
    return text.encode("utf-8", "replace")[:_LONGEST_TEXT].decode("utf-8", "ignore")


class Connection(ABC):
    """One end of a connection, without any I/O; use ClientConnection or ServerConnection.

    Times are absolute seconds of one monotonic clock, which the embedder reads and passes in as
    `now`. The kinds of method, and the order of calling them:

    - inputs: `receive_data`, `receive_eof`, `connection_lost`, `handle_timeout`. They return
      nothing and never raise, whatever the peer sent.
    - commands: `shutdown` and those of the subclass. They return what they create, if anything,
      and raise LocalProtocolError before anything is changed when they are used wrongly.
    - outputs: after any input or command, act on `events()`, write what `data_to_send` or
      `next_buffer` returns, do what `wish` says and arrange to be woken at `next_timeout`.
    - getters: `state`, `outbound`, `high_water`, `agreed`, `ignored`, `received`, `sent`; and
      `version`, a number: as long as it stays the same, no events wait but for those of an input,
      `state` and `wish` are what they were, and `next_timeout` has not come nearer.
    - `unsent`, for the embedder to set: bytes that it took and could not write yet.

    `now` comes first in every input and command. Calling `handle_timeout` too early is harmless.
    """

    __slots__ = (
        "_config",
        "_eof",
        "_events",
        "_harmless",
        "_headers",
        "_line",
        "_now",
        "_out",
        "_ping",
        "_pinged_at",
        "_queue",
        "_reader",
        "_reason",
        "_received_at",
        "_room",
        "_send_limits",
        "_silent",
        "_terminated",
        "_timed_frame",
        "_timers",
        "_watched",
        "agreed",
        "calls",
        "codec",
        "high_water",
        "ignored",
        "outbound",
        "received",
        "sent",
        "state",
        "unsent",
        "version",
    )

    _config: _Config
    calls: Any  # a CallTable; its calls are the subclass's
    codec: Codec
    _headers: Headers
    _lingers = False  # whether to hear the peer out before the transport is closed

    def __init__(self, config: _Config, now: float) -> None:
        self._config = config
        self.state = State.HANDSHAKE  # for looking; a plain attribute, as are the other getters
        self.version = 0
        self._now = now
        self._received_at = now
        self._events: list[Event] = []
        self._out: list[bytes | memoryview] = []
        self.outbound = 0  # bytes that `data_to_send` would return
        self.unsent = 0
        self.high_water = config.high_water
        self._room = config.high_water  # outbound bytes from which on `_settle` is to be called
        self._watched = 0  # what `sent` was when Timer.WRITE was set
        # Bodies up to this size keep both limits, whatever is in them.
        self._harmless = min(config.max_encoded, config.max_decoded // WORST_GROWTH)
        self._queue: Any = ()  # calls that wait to be sent; a server has none
        self._timers = TimerTable()
        self._set_timer(Timer.HANDSHAKE, now + config.handshake_timeout)
        self._line: LineReader | None = LineReader()
        self._reader: FrameReader | None = None
        self._timed_frame = 0  # which frame Timer.FRAME is about, by FrameReader.begun
        self._send_limits = (0, 0)  # what the peer accepts: header, body
        self._ping: float | None = None
        self._pinged_at = now
        self._eof = False  # the peer sends nothing more
        self._silent = False  # nor does it seem to, after our last words
        self._terminated = False
        self._reason = ""
        self.agreed: Answer | None = None
        self.ignored = 0
        self.received = 0  # bytes, in all; `sent` are those that were taken to be written
        self.sent = 0

    # Getters

    @property
    def wish(self) -> Wish:
        """What the transport is to do now."""
        if self.state is State.CLOSED:
            return Wish.ABORT
        if self.state is not State.CLOSING:
            return Wish.READ if self._wants_data() else Wish.PAUSE
        if self.outbound:
            return Wish.READ  # what it says is dropped
        return Wish.HALF_CLOSE if self._lingers and not (self._eof or self._silent) else Wish.CLOSE

    @property
    def missing(self) -> int:
        """Bytes still to come of the frame that is arriving: a hint for the size of a read."""
        return self._reader.missing if self._reader is not None else 0

    # Inputs

    def receive_data(self, now: float, data: bytes | bytearray | memoryview) -> None:
        """Take bytes from the peer; the buffer may be reused when this returns."""
        self._now = self._received_at = now
        self.received += len(data)
        reader = self._reader
        if reader is None:
            self._receive_early(data, now)
            return
        for frame in reader.feed(data):
            self._receive_frame(frame, now)
            if self.state is not _OPEN:
                self._settle(now)  # so that it matters not which frames came together
                if self._reader is None:  # that frame ended the connection
                    break
        else:
            if reader.error is not None:
                self._violate(reader.error, now)
        if reader.lacking or self._timed_frame:
            self._time_frame(reader, now)
            self._settle(now)
        elif self._queue or self.outbound >= self._room or self.state is not _OPEN:
            self._settle(now)

    def receive_eof(self, now: float) -> None:
        """Record that the peer sends nothing more; it may still read."""
        self._note_eof(now)
        if self.state is State.HANDSHAKE:
            quiet = self._line is not None and not self._line.started
            self._end(Trigger.LOST, None if quiet else self._cut_handshake(), now)
        elif self.state in (State.OPEN, State.DRAINING):
            if self._reader is not None and self._reader.mid_frame:
                self._violate("the connection ended inside a frame", now)
            else:
                self._receive_half_close(now)
        self._settle(now)

    def connection_lost(self, now: float, reason: str = "the connection was lost") -> None:
        """Take note that the transport is gone in both directions; nothing more can be sent."""
        self._now = now
        if self.state is State.HANDSHAKE:
            self.receive_eof(now)
            return
        if self._reader is not None and self._reader.mid_frame:
            reason = f"{reason}, inside a frame"
        self._end(Trigger.LOST, Unavailable(reason), now)

    def handle_timeout(self, now: float) -> None:
        """Do what is due; afterwards `next_timeout()` is None or later than `now`."""
        self._now = now
        self.version += 1
        for timer in self._timers.pop_due(now):
            self._handle_timer(timer, now)
        if self.state is not State.CLOSED:
            for call in self.calls.expire(now):
                self._expire(call, now)
            self._settle(now)

    # Commands

    def shutdown(self, now: float, grace: float = 0.0) -> None:
        """End the connection in order: no new calls; those in flight get `grace` seconds."""
        if not grace >= 0:
            raise LocalProtocolError(f"grace must be seconds, 0 or more, not {grace!r}")
        self._now = now
        state = self.state
        if state is State.HANDSHAKE:
            self._shut_handshake(now)
        elif state in (State.OPEN, State.DRAINING):
            if state is State.OPEN:
                self._send_goaway("unavailable", "shutting down")
            self._move(Trigger.SHUTDOWN)
            self._set_timer(Timer.GRACE, now + grace)
            if grace == 0:
                self._timers.clear(Timer.GRACE)
                self._expire_grace(now)
            self._settle(now)

    def check_encoded(self, body: bytes, weight: int = 1) -> int:
        """Return an upper bound of the memory that decoding the body takes, in bytes.

        `weight` is that of the type it is decoded as. Raises ResourceExhausted if that would break
        a limit of the config.
        """
        size = len(body)
        if size <= self._harmless:
            return size * WORST_GROWTH
        config = self._config
        if size > config.max_encoded:
            raise ResourceExhausted(
                f"an encoded body of {size} bytes; the limit is {config.max_encoded}; "
                "one bytes value alone travels unencoded"
            )
        growth = self.codec.growth(body) * weight
        if growth > config.max_decoded:
            raise ResourceExhausted(
                f"a body of {size} bytes may take {growth} bytes when it is decoded; "
                f"the limit is {config.max_decoded}"
            )
        return growth

    # Outputs

    def events(self) -> list[Event]:
        """Return what has happened since the last call of this, in order."""
        events = self._events
        if events:
            self._events = []
        return events

    def data_to_send(self) -> bytes:
        """Return all that is to be written now; b"" when there is nothing."""
        return bytes(self._take_out(len(self._out)))

    def next_buffer(self) -> bytes | memoryview:
        """Return what to write next: up to 256 KiB of a large body uncopied, or what fits in 64.

        For a driver that stops when the transport is full: `outbound` tells whether there is more.
        """
        out = self._out
        if self.outbound <= _JOINED and self.outbound < self._room:
            self._out = []
            self.outbound = 0
            data = b"".join(out)
            self.sent += len(data)
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
        """Return when to call `handle_timeout`, in absolute seconds, or None for never.

        It is never before the `now` of the last input or command.
        """
        if self._queue and self._has_room():
            return self._now  # what waits can be sent by now
        at = self._timers.earliest
        deadlines = self.calls.deadlines
        if deadlines and (at is None or deadlines[0][0] < at):
            at = deadlines[0][0]
        return at if at is None or at > self._now else self._now

    def _wants_data(self) -> bool:
        return True

    def _has_room(self) -> bool:
        return False

    def _drained(self) -> None:
        """Let what waited for the outbound bytes to sink below the high-water mark go on."""
        self._timers.clear(Timer.WRITE)
        self.version += 1

    # What the two ends do differently

    @abstractmethod
    def _receive_line(self, line: bytes, now: float) -> None: ...

    @abstractmethod
    def _receive_frame(self, frame: Frame, now: float) -> None: ...

    @abstractmethod
    def _receive_half_close(self, now: float) -> None: ...

    @abstractmethod
    def _fail_handshake(self, error: HandshakeError, now: float) -> None: ...

    @abstractmethod
    def _shut_handshake(self, now: float) -> None: ...

    @abstractmethod
    def _expire(self, call: Any, now: float) -> None: ...

    @abstractmethod
    def _expire_grace(self, now: float) -> None: ...

    @abstractmethod
    def _end_calls(self, error: RpcError | None, now: float) -> None: ...

    @abstractmethod
    def _settle(self, now: float) -> None:
        """Bring about what follows from the last input or command."""

    @abstractmethod
    def _last_call_id(self) -> int: ...

    @abstractmethod
    def _handle_goaway(self, call_id: int, now: float) -> None: ...

    @abstractmethod
    def _check_idle(self, now: float) -> None: ...

    # Shared inner workings

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

    def _time_frame(self, reader: FrameReader, now: float) -> None:
        """Limit how long a frame takes to arrive: what there is of it is held for so long."""
        if not reader.lacking:
            self._timed_frame = 0
            self._timers.clear(Timer.FRAME)
        elif self._timed_frame != reader.begun and self._reader is not None:
            self._timed_frame = reader.begun
            seconds = self._config.frame_timeout + reader.missing / _SLOWEST
            self._set_timer(Timer.FRAME, now + seconds)

    def _receive_early(self, data: bytes | bytearray | memoryview, now: float) -> None:
        """Take bytes while there is no reader for frames: in the handshake, or after the end."""
        if self._line is not None:
            try:
                found = self._line.feed(data)
                if found is not None:
                    line, rest = found
                    self._receive_line(line, now)
                    self._settle(now)  # before the frames behind the line, as if they came alone
                    self.received -= len(rest)  # which are counted again
                    self.receive_data(now, rest)
            except HandshakeError as error:
                self._fail_handshake(error, now)

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
        return data

    def _send(
        self, kind: int, flags: int, call_id: int, header: bytes = b"", body: bytes = b""
    ) -> None:
        self._out += (encode_prefix(kind, flags, len(header), len(body), call_id), header, body)
        self.outbound += 16 + len(header) + len(body)

    def _send_line(self, line: bytes) -> None:
        self._out.append(line)
        self.outbound += len(line)

    def _send_goaway(self, code: str, message: str) -> None:
        body = self.codec.encode([code, clip(message)])
        self._send(FrameType.GOAWAY, 0, self._last_call_id(), b"", body)

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
        waiting = self.outbound + self.unsent
        return waiting >= self._room and waiting > 0

    def _open(self, agreed: Answer, now: float) -> None:
        self._move(Trigger.ACCEPTED)
        self.agreed = agreed
        self._line = None
        self._reader = FrameReader(self._config.max_header, self._config.max_body)
        self._headers = Headers.of(self.codec)
        self._timers.clear(Timer.HANDSHAKE)
        if agreed.ping:
            self._ping = agreed.ping / 1000
            self._set_timer(Timer.LIVENESS, now + self._ping)

    def _receive_control(self, frame: Frame, now: float) -> None:
        """Handle the frames that may come in either direction; anything else is a violation."""
        kind, _, call_id, _, body = frame
        if kind == FrameType.PING:
            if self.outbound >= self.high_water:
                self.ignored += 1  # it would have to read first
            else:
                self._send(FrameType.PONG, 0, call_id)
        elif kind == FrameType.PONG:
            pass  # any received byte counts as a sign of life
        elif kind == FrameType.GOAWAY:
            self._receive_goaway(call_id, body, now)
        elif kind >= 0x80:
            self.ignored += 1
        else:
            self._violate(f"{FrameType(kind).name} in the wrong direction", now)

    def _receive_goaway(self, call_id: int, body: bytes, now: float) -> None:
        try:
            if len(body) > _LARGEST_GOAWAY:
                raise ValueError(f"{len(body)} bytes; the limit is {_LARGEST_GOAWAY}")
            code, message = map(clip, decoder(self.codec, _GOAWAY_BODY)(body))
        except Exception as error:  # a codec may raise anything
            self._violate(f"malformed GOAWAY: {error}", now)
            return
        self._move(Trigger.GOAWAY)
        self._reason = f"{code}: {message}"
        self._events.append(GoAwayReceived(code, message))
        self._handle_goaway(call_id, now)

    def _violate(self, message: str, now: float, code: str = "invalid_argument") -> None:
        if self._reader is not None:
            self._send_goaway(code, message)
            self._end(Trigger.VIOLATION, RemoteProtocolError(message), now)

    def _cut_handshake(self) -> HandshakeError:
        return HandshakeError("unavailable", "the connection ended during the option handshake")

    def _end(self, trigger: Trigger, error: RpcError | None, now: float) -> None:
        self._move(trigger)
        self._line = None
        self._reader = None
        self._timers.clear_all()
        if self.state is State.CLOSING:
            self._set_timer(Timer.CLOSE, now + self._config.close_timeout)
            self._room = 0  # so that the last byte that is taken does not go unnoticed
            if not self.outbound:
                self._linger(now)
        else:
            self._out.clear()  # there is nowhere to send it
            self.outbound = 0
        if not self._terminated:
            self._terminated = True
            self._reason = str(error or self._reason or "it was shut down")
            if error is not None:
                # Its frames hold this connection: what keeps the error would keep all of it.
                error.__traceback__ = None
                if error.__cause__ is None:
                    error.__context__ = None
            self._end_calls(error, now)
            self._events.append(ConnectionTerminated(error))

    def _linger(self, now: float) -> None:
        """Take note that all was handed out; hear the peer out, if that is our way."""
        self.version += 1
        if self._lingers and not self._eof:
            # What the transport has not written yet, the peer cannot have answered.
            at = (now if self.unsent else self._received_at) + _SILENCE
            if at > now:
                self._set_timer(Timer.LINGER, at)
            else:
                self._silent = True

    def _handle_timer(self, timer: Timer, now: float) -> None:
        if self.state is State.CLOSED:
            return
        if timer is Timer.LIVENESS:
            self._check_liveness(now)
        elif timer is Timer.HANDSHAKE:
            seconds = self._config.handshake_timeout
            self._fail_handshake(
                HandshakeError("deadline_exceeded", f"no option handshake within {seconds:g} s"),
                now,
            )
        elif timer is Timer.FRAME:
            self._timed_frame = 0
            if self._wants_data():
                self._violate("a frame took too long to arrive", now, "deadline_exceeded")
            elif self._reader is not None:  # it may be ours to read
                self._time_frame(self._reader, now)
        elif timer is Timer.GRACE:
            self._expire_grace(now)
        elif timer is Timer.LINGER:
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
        elif timer is Timer.IDLE:
            self._check_idle(now)

    def _check_liveness(self, now: float) -> None:
        assert self._ping is not None
        if self._eof:
            self._send(FrameType.PING, 0, 0)
            self._set_timer(Timer.LIVENESS, now + _PROBE_INTERVAL)
            return
        if not self._wants_data():
            self._received_at = now  # the silence is of our own making
        ping_at = self._received_at + self._ping
        dead_at = ping_at + self._ping
        if now >= dead_at:
            self._end(
                Trigger.LOST,
                Unavailable(f"nothing was heard of the peer for {2 * self._ping:g} s"),
                now,
            )
        elif now >= ping_at:
            if self._pinged_at <= self._received_at:
                self._pinged_at = now
                self._send(FrameType.PING, 0, 0)
            self._set_timer(Timer.LIVENESS, dead_at)
        else:
            self._set_timer(Timer.LIVENESS, ping_at)
