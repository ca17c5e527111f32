"""What client and server connections share: frames, liveness, shutdown.

The rest of the protocol is in client.py and server.py; docs/protocol.md specifies it.
"""

from abc import abstractmethod
from collections.abc import Iterable
from typing import Any

from rpc_proto.config import Config
from rpc_proto.errors import (
    HandshakeError,
    LocalProtocolError,
    RemoteProtocolError,
    ResourceExhausted,
    RpcError,
    Unavailable,
)
from rpc_proto.wire.codecs import WORST_GROWTH, Codec
from rpc_proto.wire.frames import Frame, FrameReader, FrameType, encode_prefix
from rpc_proto.wire.handshake import Answer, LineReader
from rpc_proto.wire.headers import Headers
from rpc_proto.wire.typed import decoder

from .events import GoAwayReceived
from .observers import Observer, Observers
from .states import State, Trigger
from .streams.streaming import Streaming
from .timers import Timer

__all__ = ["Connection"]

# Once the client has half-closed, nothing more can arrive from it, and only a write can tell
# whether it still reads: if its process is gone, the kernel answers the first write with a reset.
_PROBE_INTERVAL = 1.0

# An attribute of an enum takes longer to look up than a name.
_OPEN = State.OPEN

_SLOWEST = 64 * 1024  # bytes a second, at which a large frame has to arrive at least

_LONGEST_TEXT = 1024  # bytes of a message on the wire

_OF_STREAMS = frozenset({int(FrameType.ITEM), int(FrameType.END), int(FrameType.CREDIT)})

_GOAWAY_BODY = tuple[str, str]
_LARGEST_GOAWAY = 8 * 1024  # bytes


def clip(text: str) -> str:
    """Return the text, cut to the length that may be sent; the protocol does not interpret it."""
    if len(text) <= _LONGEST_TEXT // 4:
        return text.encode("utf-8", "replace").decode()
    return text.encode("utf-8", "replace")[:_LONGEST_TEXT].decode("utf-8", "ignore")


class Connection(Streaming):
    """One end of a connection for calls; use ClientConnection or ServerConnection.

    See `Endpoint` for how to drive it.
    """

    __slots__ = (
        "_harmless",
        "_headers",
        "_line",
        "_ping",
        "_pinged_at",
        "_queue",
        "_reader",
        "_reason",
        "_send_limits",
        "_timed_frame",
        "agreed",
        "calls",
        "codec",
    )

    calls: Any  # a CallTable; its calls are the subclass's
    codec: Codec
    _headers: Headers

    def __init__(
        self, config: Config, now: float, observers: Iterable[Observer] | Observers
    ) -> None:
        super().__init__(config, now, observers)
        # Bodies up to this size stay within both limits whatever they contain.
        self._harmless = min(config.max_encoded, config.max_decoded // WORST_GROWTH)
        self._queue: Any = ()  # calls that wait to be sent; a server has none
        self._set_timer(Timer.HANDSHAKE, now + config.handshake_timeout)
        self._line: LineReader | None = LineReader()
        self._reader: FrameReader | None = None
        self._timed_frame = 0  # the frame that Timer.FRAME limits, counted by FrameReader.begun
        self._send_limits = (0, 0)  # what the peer accepts: header, body
        self._ping: float | None = None
        self._pinged_at = now
        self._reason = ""
        self.agreed: Answer | None = None
        self._open_streams()

    # Getters

    @property
    def missing(self) -> int:
        """Bytes still missing of the incomplete frame: a hint for the size of the next read."""
        return self._reader.missing if self._reader is not None else 0

    # Inputs

    def receive_data(self, now: float, data: bytes | bytearray | memoryview) -> None:
        """Take bytes from the peer; the caller may reuse the buffer afterwards."""
        self._now = self._received_at = now
        self.received += len(data)
        reader = self._reader
        if reader is None:
            self._receive_early(data, now)
            return
        for frame in reader.feed(data):
            self._receive_frame(frame, now)
            if self.state is not _OPEN:
                self._settle(now)  # so that it does not matter which frames arrive together
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
        """Record that the peer sends nothing more (EOF); it may still read."""
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
        """Record that the transport is closed in both directions; nothing more can be sent."""
        self._now = now
        if self.state is State.HANDSHAKE:
            self.receive_eof(now)
            return
        if self._reader is not None and self._reader.mid_frame:
            reason = f"{reason}, inside a frame"
        self._end(Trigger.LOST, Unavailable(reason), now)

    # Commands

    def shutdown(self, now: float, grace: float = 0.0) -> None:
        """Close the connection gracefully: no new calls; calls in flight get `grace` seconds."""
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
        """Return an upper bound, in bytes, of the memory that decoding the body takes.

        `weight` is the weight of the type it is decoded to. Raises ResourceExhausted if a limit of
        the config would be exceeded.
        """
        size = len(body)
        if size <= self._harmless:
            return size * WORST_GROWTH
        config = self._config
        if size > config.max_encoded:
            raise ResourceExhausted(
                f"an encoded body of {size} bytes; the limit is {config.max_encoded}; "
                "a single bytes value is sent unencoded"
            )
        growth = self.codec.growth(body) * weight
        if growth > config.max_decoded:
            raise ResourceExhausted(
                f"a body of {size} bytes may take {growth} bytes when decoded; "
                f"the limit is {config.max_decoded}"
            )
        return growth

    # Outputs

    def next_timeout(self) -> float | None:
        """Return when to call `handle_timeout`, in absolute seconds; None for never."""
        if self._queue and self._has_room():
            return self._now  # what waits can be sent by now
        at = self._timers.earliest
        deadlines = self.calls.deadlines
        if deadlines and (at is None or deadlines[0][0] < at):
            at = deadlines[0][0]
        return at if at is None or at > self._now else self._now

    def _has_room(self) -> bool:
        return False

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
    def _last_call_id(self) -> int: ...

    @abstractmethod
    def _handle_goaway(self, call_id: int, now: float) -> None: ...

    @abstractmethod
    def _check_idle(self, now: float) -> None: ...

    # Shared inner workings

    def _time_frame(self, reader: FrameReader, now: float) -> None:
        """Limit how long a frame may take to arrive, since its first part is held meanwhile."""
        if not reader.lacking:
            self._timed_frame = 0
            self._timers.clear(Timer.FRAME)
        elif self._timed_frame != reader.begun and self._reader is not None:
            self._timed_frame = reader.begun
            seconds = self._config.frame_timeout + reader.missing / _SLOWEST
            self._set_timer(Timer.FRAME, now + seconds)

    def _receive_early(self, data: bytes | bytearray | memoryview, now: float) -> None:
        """Take bytes when there is no frame reader: during the handshake, or after the end."""
        if self._line is not None:
            try:
                found = self._line.feed(data)
                if found is not None:
                    line, rest = found
                    self._receive_line(line, now)
                    self._settle(now)  # as if the frames after the line arrived separately
                    self.received -= len(rest)  # which are counted again
                    self.receive_data(now, rest)
            except HandshakeError as error:
                self._fail_handshake(error, now)

    def _send(
        self, kind: int, flags: int, call_id: int, header: bytes = b"", body: bytes = b""
    ) -> None:
        self._out += (encode_prefix(kind, flags, len(header), len(body), call_id), header, body)
        self.outbound += 16 + len(header) + len(body)

    def _send_goaway(self, code: str, message: str) -> None:
        body = self.codec.encode([code, clip(message)])
        self._send(FrameType.GOAWAY, 0, self._last_call_id(), b"", body)

    def _open(self, agreed: Answer, now: float) -> None:
        self._move(Trigger.ACCEPTED)
        self.agreed = agreed
        self._line = None
        config = self._config
        streams = "streams" in agreed.features
        self._reader = FrameReader(config.max_header, config.max_body, streams=streams)
        self._headers = Headers.of(self.codec)
        self._timers.clear(Timer.HANDSHAKE)
        if agreed.ping:
            self._ping = agreed.ping / 1000
            self._set_timer(Timer.LIVENESS, now + self._ping)

    def _receive_control(self, frame: Frame, now: float) -> None:
        """Handle the frame types that both ends may send; any other is a violation."""
        kind, flags, call_id, header, body = frame
        if kind in _OF_STREAMS:
            if header:
                self._violate(f"ITEM with a header of {len(header)} bytes; it has none", now)
            else:
                self._receive_stream(kind, flags, call_id, body, now)
        elif kind == FrameType.PING:
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
        self._line = None
        self._reader = None
        if not self._terminated:
            self._reason = str(error or self._reason or "it was shut down")
        super()._end(trigger, error, now)

    def _pass_time(self, now: float) -> None:
        for call in self.calls.expire(now):
            self._expire(call, now)
        self._settle(now)

    def _handle_timer(self, timer: Timer, now: float) -> None:
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
        elif timer is Timer.IDLE:
            self._check_idle(now)
        elif timer is Timer.SILENCE:
            self._check_silence(now)
        else:
            super()._handle_timer(timer, now)

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
                Unavailable(f"nothing was received from the peer for {2 * self._ping:g} s"),
                now,
            )
        elif now >= ping_at:
            if self._pinged_at <= self._received_at:
                self._pinged_at = now
                self._send(FrameType.PING, 0, 0)
            self._set_timer(Timer.LIVENESS, dead_at)
        else:
            self._set_timer(Timer.LIVENESS, ping_at)
