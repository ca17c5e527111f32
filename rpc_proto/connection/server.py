"""The server's end of a connection (docs/protocol.md, "Calls")."""

from collections.abc import Iterable
from typing import Any

from rpc_proto.config import Peer, ServerConfig
from rpc_proto.errors import (
    CallError,
    Cancelled,
    DeadlineExceeded,
    HandshakeError,
    Internal,
    InvalidArgument,
    LocalProtocolError,
    ResourceExhausted,
    RpcError,
    Unavailable,
)
from rpc_proto.wire.codecs import SMALL, explain, find_codec
from rpc_proto.wire.frames import BYTES, PREFIX_SIZE, STREAMS, Flag, Frame, FrameType, encode_prefix
from rpc_proto.wire.handshake import (
    Answer,
    agree_features,
    agree_ping,
    encode_accept,
    encode_refusal,
    parse_options,
)
from rpc_proto.wire.headers import LONGEST_CACHED, NO_METADATA, HeaderError

from .base import Connection, clip
from .budget import PATIENCE, Budgeted
from .calls import CallTable, InboundCall, InboundStream
from .events import CallCancelled, HandshakeCompleted, RequestReceived, SendBufferDrained
from .memory import Memory
from .observers import Observer, Observers
from .states import State, Trigger
from .streams.halves import WINDOW, ReceiveHalf, SendHalf
from .timers import Timer

__all__ = ["ServerConnection"]

_OPEN = State.OPEN
_new = object.__new__
_RAW = Flag.RAW
_REQUEST = int(FrameType.REQUEST)
_RESPONSE = int(FrameType.RESPONSE)
_CANCEL = int(FrameType.CANCEL)
_ITEM = int(FrameType.ITEM)

_REFUSED_BYTES = 256 * 1024  # of a refused call, which count as much as another one


_METADATA = 8 * 1024  # bytes that the entries take, apart from their texts


class ServerConnection(Budgeted, Connection):
    """The server's end of a connection for calls. Use a ServerPort to serve HTTP as well.

    Connections that share `memory`, a rpc_proto.connection.memory.Memory, stay within one budget;
    without it a connection has a budget of its own, `ServerConfig.memory`. `preface` is sent before
    anything else.

    Answer each `RequestReceived` with `send_response` or `send_error`, or give it up with
    `conclude`. Until then the call holds one of the connection's slots, even after a
    `CallCancelled`.

    `observers` are notified of the calls: see `rpc_proto.Observer`.
    """

    _bad_item = Internal

    __slots__ = (
        "_given_up",
        "_handling_timeout",
        "_idle_since",
        "_last_id",
        "_max_calls",
        "_one_way",
        "_refusal",
        "_refusals",
        "_refused_at",
        "peer",
    )

    def __init__(
        self,
        config: ServerConfig | None = None,
        *,
        now: float,
        peer: Peer | None = None,
        memory: Memory | None = None,
        preface: bytes = b"",
        observers: Iterable[Observer] | Observers = (),
    ) -> None:
        config = config or ServerConfig()
        super().__init__(config, now, observers)
        if preface:
            self._send_line(preface)
        self.peer = peer or Peer()
        self.calls: CallTable[InboundCall] = CallTable()
        self._handling_timeout = config.handling_timeout
        self._max_calls = config.max_calls
        self._given_up = 0  # calls in the table that nobody waits for any more
        self._one_way = 0  # one-way calls whose handler has not ended
        self._last_id = 0
        self._refusals = 0.0
        self._refused_at = now
        self._idle_since = now
        self._open_account(memory)
        self._refusal: HandshakeError | None = None  # for a peer that has said nothing yet

    # Getters

    @property
    def calls_in_flight(self) -> int:
        """Number of calls whose handlers have not ended."""
        return len(self.calls)

    # Commands

    def turn_away(self, now: float, code: str, message: str) -> None:
        """Refuse the peer before it has sent its options, for example because there are too many.

        The first bytes it sends decide whether the refusal is JSON or a 503; it has a second for
        it.
        """
        if self.state is not State.HANDSHAKE:
            raise LocalProtocolError("a peer can be turned away only during the option handshake")
        self._now = now
        self._refusal = HandshakeError(code, message)
        if self.outbound or (self._line is not None and self._line.started):  # it has spoken
            self._fail_handshake(self._refusal, now)
        else:
            self._set_timer(Timer.HANDSHAKE, now + PATIENCE)

    def send_response(self, now: float, call: InboundCall, value: Any) -> None:
        """Answer a call; if it has ended already, nothing is sent.

        A value that cannot be encoded, or is larger than the caller accepts, becomes an error. If a
        codec raises a BaseException that is not an Exception, it is raised after that answer.
        """
        if call.ended or call.one_way:
            if self._conclude(call, now):
                if self._observers.answered:
                    self._tell(self._observers.answered, call, 0)
                if self.state is not State.OPEN:
                    self._settle(now)
            return
        if call.flags & STREAMS:
            self._finish_stream(call)
        del self.calls.by_id[call.id]  # one that has not ended is there
        call.ended = True
        if call.cost:
            self._uncount(call)
        self._now = self._idle_since = now
        flags = 0
        header = b""
        try:
            if value is None:
                body = b""
            elif type(value) in BYTES:
                flags = _RAW
                body = value if type(value) is bytes else bytes(value)
            else:
                encode = self.codec.encode
                body = encode(value)
            if call.reply_metadata:
                header = self._headers.answer(call.reply_metadata)
        except BaseException as error:  # a codec may raise anything
            self._fail(
                call,
                Internal(
                    f"the result of {call.method} cannot be encoded as {self.codec.name}: "
                    f"{explain(error)}"
                ),
            )
            if not isinstance(error, Exception):
                self._settle(now)
                raise
        else:
            header_size = len(header)
            body_size = len(body)
            size = PREFIX_SIZE + header_size + body_size
            max_header, max_body = self._send_limits
            if body_size > max_body or header_size > max_header:
                self._fail(
                    call,
                    ResourceExhausted(
                        f"the answer of {call.method} has a header of {header_size} and a body of "
                        f"{body_size} bytes; the caller accepts {max_header} and {max_body}"
                    ),
                )
            elif self.outbound + size >= self._room and not self._afford(size):
                self._fail(
                    call,
                    ResourceExhausted(
                        f"the server has no memory to send the {body_size} bytes that "
                        f"{call.method} returned"
                    ),
                )
            else:
                prefix = encode_prefix(_RESPONSE, flags, header_size, body_size, call.id)
                self._out += (prefix, header, body)
                self.outbound += size
                if self._observers.answered:
                    self._tell(self._observers.answered, call, size)
        if self.state is not _OPEN or self.outbound >= self._room:
            self._settle(now)

    def send_error(self, now: float, call: InboundCall, error: CallError) -> None:
        """Answer a call with an error; if it has ended already, nothing is sent.

        The caller gets the code, the message (at most 1 KiB), the details, and `maybe_executed` if
        it is False.
        """
        if self._conclude(call, now):
            self._fail(call, error)
            self._settle(now)

    def refuse(self, now: float, call: InboundCall, error: CallError) -> None:
        """Answer a call that no handler gets with an error; too many end the connection."""
        error.maybe_executed = False
        self.send_error(now, call, error)
        self._count_refusal(call, now)

    def conclude(self, now: float, call: InboundCall) -> None:
        """Free the slot of a call whose handler has ended; if it has no answer, send an error."""
        self.send_error(now, call, Internal("the handler ended without answering"))

    def reserve(self, call: InboundCall, decoded: int) -> None:
        """Count a call at the size of its decoded arguments, in bytes.

        `decoded` is the result of `check_encoded`. ResourceExhausted if there is not enough memory.
        """
        body = call.body
        account = self._account
        if account.calls + decoded > account.most // 4 or not account.memory.has_plenty(decoded):
            decoded = min(decoded, self.codec.growth(body))
        more = max(0, decoded - len(body))
        if not self._count(more):
            raise ResourceExhausted(
                f"a body of {len(body)} bytes may take {decoded} bytes when decoded; "
                "the server has no memory for that now"
            )
        call.cost += more

    # Memory

    def _held(self) -> int:
        """Return how many bytes are held for the peer."""
        held = self._account.calls + self.outbound + self._unsent + self._resting
        if self._reader is not None:
            held += self._reader.arrived
        return held

    def _wants_data(self) -> bool:
        return (
            self.outbound < self.high_water
            and self._one_way < self._max_calls
            and not self._account.waits
        )

    def _count(self, size: int) -> bool:
        """Count the bytes of a call, if there is memory for them."""
        self._account.calls += size
        if self._cover():
            return True
        self._account.calls -= size
        self._cover()
        return False

    def _uncount(self, call: InboundCall) -> None:
        """Stop counting the bytes of a call: its handler has ended."""
        self._account.calls -= call.cost
        call.cost = 0
        if self.state is State.CLOSED:  # no timer will look
            self._cover()

    def _afford(self, size: int) -> bool:
        """Whether so many more bytes may be queued for sending."""
        return self.state is not State.CLOSED and self._cover(size)

    def _give_something_up(self, now: float) -> bool:
        """Drop something; return whether reading may go on."""
        reader = self._reader
        if reader is None or not reader.arrived:
            return False  # what waits to be sent has a time of its own
        size = reader.arrived + reader.missing
        kind, flags, call_id = reader.skip()
        if kind == _REQUEST:
            if self._is_taken(call_id, now):
                return True
            call = InboundCall(self, call_id, "", None, NO_METADATA, flags, b"", now)
            error = ResourceExhausted(
                f"the server has no memory for a call of {size} bytes now", maybe_executed=False
            )
            self._fail(call, error)
            self._last_id = call_id
            self._count_refusal(call, now)
        elif kind == _ITEM:
            stream = self.calls.get(call_id)
            if stream is not None and not stream.ended:
                why = f"the server has no memory for an item of {size} bytes now"
                self._fail_stream(stream, ResourceExhausted(why), now)
        return self._cover()

    def _drained(self) -> None:
        super()._drained()
        if len(self.calls):
            self._events.append(SendBufferDrained())

    # Answers

    def _conclude(self, call: InboundCall, now: float) -> bool:
        """Remove the call from the table; return whether its caller is still waiting."""
        calls = self.calls.by_id
        if call.flags & STREAMS:
            self._close_stream(call)
        if call.cost:
            self._uncount(call)
        if calls.get(call.id) is not call:
            return False
        del calls[call.id]
        self._now = self._idle_since = now
        if call.one_way:
            self._one_way -= 1
            self.version += 1
        if call.ended:
            self._given_up -= 1
            return False
        call.ended = True
        return True

    def _fail(self, call: InboundCall, error: CallError) -> None:
        """End a call with an error."""
        before = self.outbound
        self._answer_error(call, error)
        if self._observers.failed:
            self._tell(self._observers.failed, call, error, self.outbound - before)

    def _answer_error(self, call: InboundCall, error: CallError) -> None:
        if not call.one_way:
            header = b""
            if call.reply_metadata:
                try:
                    header = self._headers.answer(call.reply_metadata)
                except BaseException:  # the error matters more than its metadata
                    header = b""
            self._send_error(call.id, error, header)

    def _send_error(self, call_id: int, error: CallError, header: bytes = b"") -> None:
        flags = 0 if error.maybe_executed else Flag.NOT_EXECUTED
        max_header, max_body = self._send_limits
        fields = [clip(str(error.code))[:64], clip(str(error.message)), error.details]
        try:
            body = self.codec.encode(fields)
        except BaseException:  # details that cannot be encoded must not cost the caller the code
            body = b""
        if not body or len(body) > max_body:
            body = self.codec.encode([*fields[:2], None])
        self._send(
            FrameType.ERROR, flags, call_id, header if len(header) <= max_header else b"", body
        )

    def _end_call(self, call: InboundCall, error: CallError, size: int = 0) -> None:
        """Tell the driver that nobody waits for this call any more; `size` is the answer's."""
        call.ended = True
        self._given_up += 1
        if call.flags & STREAMS:
            self._close_stream(call)
        if self._observers.failed:
            self._tell(self._observers.failed, call, error, size)
        self._events.append(CallCancelled(call, error))

    def _count_refusal(self, call: InboundCall, now: float) -> None:
        limit = self._config.refusals
        forgiven = (now - self._refused_at) * limit / 10
        self._refused_at = now
        weight = 1 + len(call.body) // _REFUSED_BYTES
        self._refusals = max(0.0, self._refusals - forgiven) + weight
        if self._refusals > limit:
            self._violate(f"more than {limit} refused calls", now, "resource_exhausted")

    # Receiving

    def _receive_line(self, line: bytes, now: float) -> None:
        config = self._config
        options = parse_options(line)
        for codec in config.codecs:
            if (codec if isinstance(codec, str) else codec.name) == options.codec:
                self.codec = find_codec(codec)
                break
        else:
            raise HandshakeError(
                "unimplemented", f"codec {options.codec!r:.40} is not supported here"
            )
        self._authenticate(options.token)
        agreed = Answer(
            codec=self.codec.name,
            max_header=config.max_header,
            max_body=config.max_body,
            max_calls=config.max_calls,
            ping=agree_ping(config.ping_interval, options.ping),
            features=agree_features(options.features),
        )
        self._send_line(encode_accept(agreed))
        self._send_limits = (options.max_header, options.max_body)
        self._open(agreed, now)
        self._idle_since = now
        if config.idle_timeout is not None:
            self._set_timer(Timer.IDLE, now + config.idle_timeout)
        self._events.append(HandshakeCompleted(agreed))

    def _authenticate(self, token: str | None) -> None:
        config = self._config
        if config.authenticate is not None:
            try:
                identity = config.authenticate(token, self.peer)
                if hasattr(identity, "__await__"):  # a coroutine is true and would let everybody in
                    raise TypeError("authenticate must be a plain function, not a coroutine")
            except BaseException as error:
                # The text of the exception is not for strangers.
                raise HandshakeError("internal", "the token could not be checked") from error
            if not identity:
                raise HandshakeError("unauthenticated", "the token was refused")
            if identity is not True:
                self.peer = Peer(self.peer.address, self.peer.certificate, identity)
        elif config.token is not None:
            from hmac import compare_digest

            if token is None:
                raise HandshakeError("unauthenticated", "a token is required; none was shown")
            shown = token.encode("utf-8", "surrogatepass")
            if not compare_digest(shown, config.token.encode("utf-8", "surrogatepass")):
                raise HandshakeError("unauthenticated", "the token was refused")

    def _receive_frame(self, frame: Frame, now: float) -> None:
        kind, flags, call_id, header, body = frame
        if kind != _REQUEST:
            if kind == _CANCEL:
                self._receive_cancel(call_id)
            else:
                self._receive_control(frame, now)
            return
        try:
            headers = self._headers
            if flags & STREAMS:
                (method, timeout, metadata), idle = headers.parse_stream(header)
            elif len(header) <= LONGEST_CACHED:  # what parse_request does, without the way there
                parse = headers.parse_cached
                method, timeout, metadata = parse(header)
            else:
                method, timeout, metadata = headers.parse_request(header)
        except HeaderError as error:
            self._violate(str(error), now)
            return
        in_flight = self.calls.by_id
        if (call_id == 0 or call_id in in_flight) and self._is_taken(call_id, now):
            return
        deadline = None if timeout is None else now + timeout
        limit = self._handling_timeout
        if limit is not None and (deadline is None or deadline > now + limit):
            deadline = now + limit
        if flags & STREAMS:
            call: InboundCall = self._new_stream(
                idle, (self, call_id, method, deadline, metadata, flags, body, now), now
            )
        else:
            call = InboundCall(self, call_id, method, deadline, metadata, flags, body, now)
        if (
            self.state is not _OPEN
            or (timeout is not None and timeout <= 0)
            or (len(in_flight) - self._one_way >= self._max_calls and not call.one_way)
        ):
            self._refuse_arrival(call, now)
            return
        if len(body) > SMALL or metadata is not NO_METADATA:
            cost = len(body)
            if metadata is not NO_METADATA:
                cost += _METADATA + 2 * len(header)
            if not self._count(cost):
                self._refuse_arrival(call, now)
                return
            call.cost = cost
        self._last_id = call_id
        self._idle_since = now
        if self.calls.insert(call):
            self.version += 1
        if call.one_way:
            self._one_way += 1
            self.version += 1
        elif flags & STREAMS:
            self._watch_silence(call, now)
        if self._observers.started:
            self._tell(self._observers.started, call)
        event = _new(RequestReceived)  # in half the time, since no __init__ is called
        event.call = call
        self._events.append(event)

    # Streams

    def _new_stream(self, idle: float | None, given: Any, now: float) -> InboundStream:
        call = InboundStream(*given)
        call.idle_timeout = idle
        call.sending = call.receiving = call.waiter = None
        if call.flags & Flag.SERVER_STREAM:
            call.sending = SendHalf(call, WINDOW, now)
        if call.flags & Flag.CLIENT_STREAM:
            call.receiving = ReceiveHalf(call, self.codec.decode, InvalidArgument, now)
            call.receiving.check = self.check_encoded
        return call

    def _finish_stream(self, call: InboundCall) -> None:
        if call.sending is not None and call.sending.rest is not None:
            raise LocalProtocolError(
                f"an item of {call!r} still waits to be sent; wait for Writable"
            )
        self._close_stream(call)

    def _fail_stream(self, call: Any, error: CallError, now: float) -> None:
        self._end_with_answer(call, error)
        if not isinstance(error, DeadlineExceeded):
            self._count_refusal(call, now)

    def _count_items(self, call: Any, more: int) -> bool:
        if more > 0 and not self._count(more):
            return False
        if more < 0:
            self._account.calls += more
        call.cost += more
        return True

    def _may_grow(self, call: Any, more: int) -> bool:
        account = self._account
        return account.calls + more <= account.most // 4 and account.memory.has_plenty(more)

    def _may_hold(self, size: int) -> bool:
        return self._afford(size)

    def _is_live(self, call: Any) -> bool:
        return not call.ended

    def _is_past(self, call_id: int) -> bool:
        return True

    def _is_taken(self, call_id: int, now: float) -> bool:
        """Whether no new call may have this id, which is a violation."""
        if call_id and call_id not in self.calls:
            return False
        why = f"call {call_id} is in flight already" if call_id else "0 is not a call id"
        self._violate(why, now)
        return True

    def _refuse_arrival(self, call: InboundCall, now: float) -> None:
        """Answer a call that was not accepted."""
        if self.state is not State.OPEN:
            error: CallError = Unavailable("the server is shutting down", maybe_executed=False)
        elif call.deadline is not None and call.deadline <= now:
            error = DeadlineExceeded("the call arrived after its deadline", maybe_executed=False)
        elif len(self.calls) - self._one_way >= self._max_calls and not call.one_way:
            error = ResourceExhausted(
                f"{self._max_calls} calls are in flight on this connection; that is the limit",
                maybe_executed=False,
            )
        else:
            error = ResourceExhausted(
                f"the server has no memory for a body of {len(call.body)} bytes now",
                maybe_executed=False,
            )
        self._fail(call, error)
        if self.state is State.OPEN:
            self._last_id = call.id
            self._count_refusal(call, now)

    def _receive_cancel(self, call_id: int) -> None:
        call = self.calls.get(call_id)
        if call is None or call.ended:
            self.ignored += 1  # its answer is on the way
        else:
            self._end_call(call, Cancelled("the caller cancelled the call"))

    def _receive_half_close(self, now: float) -> None:
        self._move(Trigger.HALF_CLOSED)
        for call in self.calls:
            if call.flags & STREAMS and not call.ended:
                self._cut_items(call, Unavailable("the caller ended the connection before END"))
                self._credit_unbounded(call)
        self._pump()
        if self._has_callers():
            # Ping even if pings are off: only a write can tell whether the caller still reads.
            self._ping = self._ping or 1.0
            self._check_liveness(now)

    def _handle_goaway(self, call_id: int, now: float) -> None:
        """Do nothing more: the client will start no more calls, which the state shows already."""

    def _last_call_id(self) -> int:
        return self._last_id

    def _receive_early(self, data: bytes | bytearray | memoryview, now: float) -> None:
        if self._refusal is not None and self._line is not None and len(data):
            self._fail_handshake(self._refusal, now)
        super()._receive_early(data, now)

    def _handle_timer(self, timer: Timer, now: float) -> None:
        if timer is Timer.HANDSHAKE and self._refusal is not None:
            self._fail_handshake(self._refusal, now)
        elif timer is Timer.MEMORY:
            self._balance(now)
        else:
            super()._handle_timer(timer, now)

    # Ends

    def _has_callers(self) -> bool:
        """Whether anybody waits for an answer, or for the end of a one-way call."""
        return len(self.calls) > self._given_up

    def _settle(self, now: float) -> None:
        self._balance(now)
        self._watch_writing(now)
        if self.state is State.DRAINING and not self._has_callers():
            self._end(Trigger.DRAINED, None, now)

    def _expire(self, call: InboundCall, now: float) -> None:
        if not call.ended:
            error = DeadlineExceeded(f"the deadline of {call.method} passed before it ended")
            self._end_with_answer(call, error)

    def _expire_grace(self, now: float) -> None:
        for call in self.calls:
            if not call.ended:
                self._end_with_answer(call, Unavailable("the server is shutting down"))

    def _end_with_answer(self, call: InboundCall, error: CallError) -> None:
        before = self.outbound
        self._answer_error(call, error)
        self._end_call(call, error, self.outbound - before)

    def _stop(self, error: RpcError | None, now: float) -> None:
        reason = Unavailable(str(error or "the connection ended"))
        for call in self.calls.clear():
            if not call.ended:
                self._end_call(call, reason)
        self._given_up = 0

    def _end(self, trigger: Trigger, error: RpcError | None, now: float) -> None:
        super()._end(trigger, error, now)
        self._balance(now)

    def _fail_handshake(self, error: HandshakeError, now: float) -> None:
        codecs = [codec if isinstance(codec, str) else codec.name for codec in self._config.codecs]
        self._send_line(encode_refusal(error.code, error.message, codecs))
        self._end(Trigger.REFUSED, error, now)

    def _shut_handshake(self, now: float) -> None:
        self._fail_handshake(HandshakeError("unavailable", "the server is shutting down"), now)

    def _check_idle(self, now: float) -> None:
        limit = self._config.idle_timeout
        assert limit is not None
        idle_at = (now if len(self.calls) else self._idle_since) + limit
        if idle_at > now:
            self._set_timer(Timer.IDLE, idle_at)
        else:
            self._send_goaway("unavailable", f"no call for {limit:g} s")
            self._move(Trigger.SHUTDOWN)
