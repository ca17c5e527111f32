"""The client's end of a connection (docs/protocol.md, "Calls")."""

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from rpc_proto.config import ClientConfig
from rpc_proto.errors import (
    CallError,
    Cancelled,
    DataLoss,
    DeadlineExceeded,
    HandshakeError,
    InvalidArgument,
    LocalProtocolError,
    ResourceExhausted,
    RpcError,
    Unavailable,
    Unimplemented,
)
from rpc_proto.wire.bounds import MAX_TIMEOUT
from rpc_proto.wire.codecs import SMALL, explain, find_codec
from rpc_proto.wire.frames import BYTES, PREFIX_SIZE, STREAMS, Flag, Frame, FrameType, encode_prefix
from rpc_proto.wire.handshake import FEATURES, Options, agree_features, encode_options, parse_answer
from rpc_proto.wire.headers import NO_METADATA, HeaderError
from rpc_proto.wire.typed import convert, decoder, weight

from .base import Connection, clip
from .calls import IDS, CallTable, OutboundCall, OutboundStream
from .events import CallCompleted, CallFailed, HandshakeCompleted, ObserverFailed
from .observers import Observer, Observers
from .states import State, Trigger
from .streams.halves import WINDOW, Half, ReceiveHalf, SendHalf

if TYPE_CHECKING:
    from rpc_proto.http.tunnel import Tunnel

__all__ = ["ClientConnection"]

_OPEN = State.OPEN
_NEVER = float("inf")
_RAW = Flag.RAW
_NAMED = Flag.NAMED
_ONE_WAY = Flag.ONE_WAY
_CLIENT_STREAM = Flag.CLIENT_STREAM
_SERVER_STREAM = Flag.SERVER_STREAM
_REQUEST = int(FrameType.REQUEST)
_RESPONSE = int(FrameType.RESPONSE)
_ERROR = int(FrameType.ERROR)

_ERROR_BODY = tuple[str, str, Any]


class ClientConnection(Connection):
    """The client's end of a connection.

    Calls may be started immediately; they wait in order until the server has accepted the options,
    and while all slots are taken or the peer reads too slowly. Each call ends with exactly one
    `CallCompleted` or `CallFailed`. A one-way call ends when it is sent: either `start_call`
    returns it with `sent` True, or it waits and ends with an event.

    With `connect="host:port"` the connection begins with HTTP CONNECT to that address; the options
    follow once it is accepted. `observers` are notified of the calls: see `rpc_proto.Observer`.
    """

    __slots__ = ("_items_held", "_max_calls", "_options", "_queued", "_serial", "_tunnel")

    _config: ClientConfig

    def __init__(
        self,
        config: ClientConfig | None = None,
        *,
        now: float,
        connect: str | None = None,
        observers: Iterable[Observer] | Observers = (),
    ) -> None:
        """Raise HandshakeError if the token is too long to send.

        Raises ValueError for an unknown codec, or if `connect` is not a host and a port.
        """
        config = config or ClientConfig()
        super().__init__(config, now, observers)
        self.codec = find_codec(config.codec)
        self.calls: CallTable[OutboundCall] = CallTable()
        self._queue: OrderedDict[int, OutboundCall] = OrderedDict()
        self._queued = 0  # bytes of their arguments
        self._serial = 0  # calls ever started; the id of a call is its serial modulo 2**64
        self._max_calls = 0
        self._items_held = 0  # bytes of the items that wait to be taken
        ping = config.ping_interval
        options = encode_options(
            Options(
                codec=self.codec.name,
                token=config.token,
                max_header=config.max_header,
                max_body=config.max_body,
                ping=None if ping is None else int(ping * 1000),
                features=FEATURES,
            )
        )
        self._tunnel: Tunnel | None = None
        if connect is None:
            self._send_line(options)
        else:
            from rpc_proto.http import tunnel  # with h11, which few need

            self._options = options  # nothing is sent before the server accepts
            self._tunnel = tunnel.Tunnel(connect)
            self._send_line(self._tunnel.request)

    # Getters

    @property
    def calls_in_flight(self) -> int:
        """Number of calls that have not ended, including those that wait to be sent."""
        return len(self.calls)

    # Commands

    def start_call(
        self,
        now: float,
        method: str,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        *,
        deadline: float | None = None,
        metadata: Mapping[str, str] | None = None,
        returns: Any = None,
        one_way: bool = False,
        waiter: Any = None,
        client_stream: bool = False,
        server_stream: bool = False,
        idle_timeout: float | None = None,
    ) -> OutboundCall:
        """Start a call and return it.

        `method` is "Service.method"; `args` and `kwargs` are encoded before this returns;
        `deadline` is in absolute seconds; `returns` is the type of the result, None for whatever
        the codec decodes. With `client_stream` the call has a half for items to send, which follow
        with `send_item`; with `server_stream` it has one for items to receive, of the type
        `returns`. If none moves for `idle_timeout` seconds, the call fails with DeadlineExceeded.
        Raises InvalidArgument if the arguments cannot be encoded, ResourceExhausted if too many
        calls are waiting or the arguments exceed the server's limits, Unimplemented if the server
        has no streams, Unavailable if the connection accepts no more calls, and TypeError if no
        value can be decoded to `returns`; in each case nothing was sent.
        """
        if type(method) is not str or not method:
            raise LocalProtocolError(f'method must be a string "Service.method", not {method!r}')
        if deadline is not None and not deadline < _NEVER:
            if deadline != _NEVER:
                raise LocalProtocolError(f"the deadline must be a time, not {deadline!r}")
            deadline = None
        state = self.state
        if state is not _OPEN and state is not State.HANDSHAKE:
            why = f": {self._reason}" if self._reason else ""
            raise Unavailable(f"the connection is {state.value}{why}", maybe_executed=False)
        if returns is not None:
            decoder(self.codec, returns)  # which refuses some types, before anything is sent
        flags, body = self._encode_arguments(args, kwargs)
        if one_way:
            flags |= _ONE_WAY
        if client_stream or server_stream:
            flags |= self._stream_flags(client_stream, server_stream, one_way, idle_timeout)
        serial = call_id = self._serial + 1
        calls = self.calls
        if serial >= IDS:  # the ids wrapped: leave out 0 and those of calls still in flight
            while serial % IDS == 0 or serial % IDS in calls:
                serial += 1
            call_id = serial % IDS
        if flags & STREAMS:
            call: OutboundCall = self._new_stream(
                idle_timeout,
                (serial, call_id, method, deadline, metadata, returns, flags, body, waiter),
                now,
            )
        else:
            call = OutboundCall(
                serial, call_id, method, deadline, metadata, returns, flags, body, waiter
            )
        observers = self._observers
        if observers.started or observers.carry:
            self._announce(call, now)
        queue = self._queue
        if (
            state is _OPEN
            and not queue
            and (deadline is None or deadline > now)
            and self.outbound < self.high_water
            and len(calls.by_id) < self._max_calls
        ):
            # Taken before it is sent: a signal's handler may raise anywhere, and the next call must
            # not get the answer of this one.
            previous, self._serial = self._serial, serial
            self._now = now
            try:
                self._send_request(call, now)
            except CallError as error:
                self._serial = previous
                if observers.failed:
                    self._tell(observers.failed, call, error, 0)
                raise
            if one_way:
                if observers.answered:
                    self._tell(observers.answered, call, 0)
            elif calls.insert(call):
                self.version += 1
            if self.outbound >= self.high_water:
                self._watch_writing(now)
            return call
        size = len(body)
        full = self._check_queue(size)
        if full is not None:
            body = call.body = b""  # or the error's traceback would keep it for as long as it lives
            if observers.failed:
                self._tell(observers.failed, call, full, 0)
            raise full
        if call.metadata:  # which the caller may change meanwhile
            try:
                call.metadata = self._copy_metadata(call.metadata)
            except InvalidArgument as error:
                if observers.failed:
                    self._tell(observers.failed, call, error, 0)
                raise
        self._serial = serial
        calls.insert(call)
        queue[call_id] = call
        self._queued += size
        self._now = now
        self.version += 1
        return call

    def cancel(self, now: float, call: OutboundCall, error: CallError | None = None) -> None:
        """Cancel a call: it fails with `error`, and the server is told to stop its handler.

        Cancelling a call that has ended does nothing.
        """
        self._now = now
        if self.calls.remove(call):
            reason = "the caller cancelled the call"
            self._abandon(call, error or Cancelled(reason, maybe_executed=call.sent))
            self._settle(now)
            self.version += 1

    # Sending

    def _has_room(self) -> bool:
        return (
            self.state is State.OPEN
            and self.outbound < self.high_water
            and len(self.calls.by_id) - len(self._queue) < self._max_calls
        )

    def _encode_arguments(
        self, args: Sequence[Any], kwargs: Mapping[str, Any] | None
    ) -> tuple[int, bytes]:
        try:
            if kwargs:
                return _NAMED, self.codec.encode([args, kwargs])
            if not args:
                return 0, b""
            if len(args) == 1 and type(args[0]) in BYTES:
                # A copy unless it is immutable: it may still wait when the caller goes on.
                return _RAW, args[0] if type(args[0]) is bytes else bytes(args[0])
            return 0, self.codec.encode(args)
        except Exception as error:  # a codec may raise anything
            raise InvalidArgument(
                f"the arguments cannot be encoded as {self.codec.name}: {explain(error)}",
                maybe_executed=False,
            ) from error

    def _copy_metadata(self, metadata: Mapping[str, str]) -> dict[str, str]:
        try:
            return dict(metadata)
        except (TypeError, ValueError) as error:
            raise InvalidArgument(
                f"metadata must map strings to strings: {error}", maybe_executed=False
            ) from error

    def _send_request(self, call: OutboundCall, now: float) -> None:
        """Send a call whose turn has come; CallError if the server would refuse it."""
        timeout = None
        if call.deadline is not None:
            left = call.deadline - now
            # At least one millisecond: the server refuses calls without any time left.
            timeout = int((left if left < MAX_TIMEOUT else MAX_TIMEOUT) * 1000 + 0.5) or 1
        try:
            if call.flags & STREAMS:
                header = self._check_stream(call, timeout)
            elif call.metadata:
                header = self._headers.request(call.method, timeout, call.metadata)
            else:
                header = self._headers.request_plain(call.method, timeout)
        except CallError:
            raise
        except Exception as error:  # a codec may raise anything
            raise InvalidArgument(
                f"the header cannot be encoded: {error}", maybe_executed=False
            ) from error
        body = call.body
        header_size = len(header)
        body_size = len(body)
        max_header, max_body = self._send_limits
        if header_size > max_header or body_size > max_body:
            raise ResourceExhausted(
                f"the call has a header of {header_size} and a body of {body_size} bytes; "
                f"the server accepts {max_header} and {max_body}",
                maybe_executed=False,
            )
        self._out += (
            encode_prefix(_REQUEST, call.flags, header_size, body_size, call.id),
            header,
            body,
        )
        self.outbound += PREFIX_SIZE + header_size + body_size
        call.sent = True
        call.body = b""
        if call.flags & STREAMS:
            self._begin_stream(call, now)

    def _settle(self, now: float) -> None:
        queue = self._queue
        while queue and self._has_room():
            call = self._next_queued()
            if call.deadline is not None and call.deadline <= now:
                self._expire(call, now)
                continue
            try:
                self._send_request(call, now)
            except CallError as error:
                self.calls.remove(call)
                self._fail(call, error)
                continue
            if call.flags & _ONE_WAY:
                self.calls.remove(call)
                self._complete(call, None, NO_METADATA, 0)
        self._watch_writing(now)
        if self.state is State.DRAINING:
            while queue:  # the server accepts no calls after our GOAWAY
                call = self._next_queued()
                self.calls.remove(call)
                self._abandon(call, Cancelled("the client is shutting down", maybe_executed=False))
            if not len(self.calls):
                self._end(Trigger.DRAINED, None, now)

    def _check_queue(self, size: int) -> ResourceExhausted | None:
        """Return the reason why a call with a body of this size cannot wait; None if it can."""
        queue, config = self._queue, self._config
        if len(queue) < config.max_queued_calls and (
            not queue or self._queued + size <= config.max_queued_bytes
        ):
            return None
        return ResourceExhausted(
            f"{len(queue)} calls with {self._queued} bytes of arguments wait to be sent, and this "
            f"one has {size}; the limits are max_queued_calls, {config.max_queued_calls}, and "
            f"max_queued_bytes, {config.max_queued_bytes}",
            maybe_executed=False,
        )

    def _next_queued(self) -> OutboundCall:
        _, call = self._queue.popitem(last=False)
        self._queued -= len(call.body)
        return call

    def _unqueue(self, call: OutboundCall) -> None:
        if self._queue.pop(call.id, None) is not None:
            self._queued -= len(call.body)

    def _announce(self, call: OutboundCall, now: float) -> None:
        """Notify observers of a call about to be sent; return the metadata with theirs added."""
        self._now = now
        self._tell(self._observers.started, call)
        for carry in self._observers.carry:
            try:
                carried = carry(call)
            except BaseException as error:
                self._events.append(ObserverFailed(error))
                self.version += 1
                continue
            if carried:
                with suppress(InvalidArgument):  # which is raised when the call is sent
                    call.metadata = self._copy_metadata(call.metadata or {}) | dict(carried)

    # Streams

    def _stream_flags(
        self, client_stream: bool, server_stream: bool, one_way: bool, idle_timeout: float | None
    ) -> int:
        if one_way:
            raise LocalProtocolError("a one-way call has no stream")
        if idle_timeout is not None and not idle_timeout > 0:
            raise LocalProtocolError(
                f"idle_timeout must be seconds, more than 0, or None, not {idle_timeout!r}"
            )
        self._check_feature()
        return (_CLIENT_STREAM if client_stream else 0) | (_SERVER_STREAM if server_stream else 0)

    def _check_feature(self) -> None:
        if self.agreed is not None and "streams" not in self.agreed.features:
            raise Unimplemented("the server has no streams", maybe_executed=False)

    def _new_stream(self, idle: float | None, given: Any, now: float) -> OutboundStream:
        call = OutboundStream(*given)
        call.idle_timeout = None if idle is None or idle == _NEVER else idle
        call.sending = call.receiving = None
        if call.flags & _CLIENT_STREAM:
            call.sending = SendHalf(call, 0, now)
            call.sending.waits = True  # until the request is sent
        if call.flags & _SERVER_STREAM:
            returns = call.returns
            decode = self.codec.decode if returns is None else decoder(self.codec, returns)
            half = call.receiving = ReceiveHalf(call, decode, DataLoss, now)
            factor = weight(returns)
            half.check = lambda body: self.check_encoded(body, factor)
            if returns is not None and returns is not bytes:
                half.convert = lambda body: convert(body, returns)
        return call

    def _check_stream(self, call: Any, timeout: int | None) -> bytes:
        """Return the header of a stream whose turn has come; CallError if it cannot be sent."""
        self._check_feature()
        first = call.sending.rest if call.sending is not None else None
        if first is not None and len(first) > self._send_limits[1]:
            raise ResourceExhausted(
                f"item 1 of {call.method} has {len(first)} bytes; "
                f"the peer accepts {self._send_limits[1]}",
                maybe_executed=False,
            )
        idle = call.idle_timeout
        if idle is not None:
            idle = int(min(idle, MAX_TIMEOUT) * 1000 + 0.5) or 1
        return self._headers.stream(call.method, timeout, call.metadata or {}, idle)

    def _begin_stream(self, call: Any, now: float) -> None:
        sending: SendHalf | None = call.sending
        if sending is not None:
            sending.active_at = now
            sending.credit = WINDOW
            if sending.state is Half.OPEN:
                self._queue_turn(sending)
            elif sending.state is Half.ENDED:  # before the request was sent
                self._send(FrameType.END, 0, call.id)
        if call.receiving is not None:
            call.receiving.active_at = now
        self._watch_silence(call, now)
        self._pump()

    def _fail_stream(self, call: Any, error: CallError, now: float) -> None:
        if self.calls.remove(call):
            self._abandon(call, error)
            self.version += 1

    def _count_items(self, call: Any, more: int) -> bool:
        if more > 0 and self._items_held + more > self._config.max_buffered_items:
            return False
        self._items_held += more
        return True

    def _may_grow(self, call: Any, more: int) -> bool:
        return self._items_held + more <= self._config.max_buffered_items // 2

    def _may_hold(self, size: int) -> bool:
        return True  # it was the application's before

    def _is_live(self, call: Any) -> bool:
        sent: bool = call.sent
        return sent

    def _is_past(self, call_id: int) -> bool:
        return call_id not in self.calls and self._was_used(call_id)

    # Ends of calls

    def _complete(
        self, call: OutboundCall, value: Any, metadata: Mapping[str, str], size: int
    ) -> None:
        self._events.append(CallCompleted(call, value, metadata))
        if self._observers.answered:
            self._tell(self._observers.answered, call, size)

    def _fail(self, call: OutboundCall, error: CallError, size: int = 0) -> None:
        if call.flags & STREAMS:
            self._close_stream(call)
        self._events.append(CallFailed(call, error))
        if self._observers.failed:
            self._tell(self._observers.failed, call, error, size)

    def _abandon(self, call: OutboundCall, error: CallError) -> None:
        """Report the end of a call that was removed from the table, and tell the server."""
        if call.sent:
            self._send(FrameType.CANCEL, 0, call.id)
        else:
            self._unqueue(call)
        self._fail(call, error)

    def _expire(self, call: OutboundCall, now: float) -> None:
        self.calls.remove(call)
        where = "its answer came" if call.sent else "it could be sent"
        self._abandon(
            call,
            DeadlineExceeded(
                f"the deadline of {call.method} passed before {where}", maybe_executed=call.sent
            ),
        )

    def _expire_grace(self, now: float) -> None:
        for call in self.calls.clear():
            self._abandon(call, Cancelled("the client is shutting down", maybe_executed=call.sent))

    def _stop(self, error: RpcError | None, now: float) -> None:
        if isinstance(error, HandshakeError):
            code, message = error.code, error.message
        else:
            code, message = "unavailable", str(error or "the connection ended")
            if isinstance(error, CallError):
                message = error.message
        self._queue.clear()
        self._queued = 0
        for call in self.calls.clear():
            self._fail(call, CallError.of(code, message, maybe_executed=call.sent))

    # Receiving

    def receive_eof(self, now: float) -> None:
        """Record that the server sends nothing more (EOF)."""
        if self._tunnel is None or self.state is not State.HANDSHAKE:
            super().receive_eof(now)
            return
        self._note_eof(now)
        self._end(Trigger.LOST, self._tunnel.receive_eof(), now)

    def _receive_early(self, data: bytes | bytearray | memoryview, now: float) -> None:
        tunnel = self._tunnel
        if tunnel is not None and self.state is State.HANDSHAKE:
            if not tunnel.answering and data[:1] == b"{":
                self._tunnel = None  # a server refused the connection without reading anything
                super()._receive_early(data, now)
                return
            try:
                behind = tunnel.receive_data(data)
            except HandshakeError as error:
                self._fail_handshake(error, now)
                return
            if behind is None:
                return
            self._tunnel = None
            self._send_line(self._options)
            data = behind
        super()._receive_early(data, now)

    def _receive_line(self, line: bytes, now: float) -> None:
        answer = parse_answer(line)
        if answer.codec != self.codec.name:
            raise HandshakeError(
                "invalid_argument",
                f"the server chose codec {answer.codec!r}, not {self.codec.name!r}",
            )
        answer = answer._replace(features=agree_features(answer.features))
        self._open(answer, now)
        self._max_calls = answer.max_calls
        self._send_limits = (answer.max_header, answer.max_body)
        self._events.append(HandshakeCompleted(answer))

    def _receive_frame(self, frame: Frame, now: float) -> None:
        kind, flags, call_id, header, body = frame
        if kind != _RESPONSE and kind != _ERROR:
            self._receive_control(frame, now)
            return
        metadata = NO_METADATA
        if header:
            try:
                metadata = self._headers.parse_answer(header)
            except HeaderError as error:
                self._violate(str(error), now)
                return
        calls = self.calls.by_id
        call = calls.get(call_id)
        if call is None or not call.sent:
            # A call may end here while its answer is on the way; an id never used is a violation.
            if call is None and self._was_used(call_id):
                self.ignored += 1
            else:
                self._violate(f"an answer to call {call_id}, which was never made", now)
            return
        del calls[call_id]
        if kind == _ERROR:
            size = PREFIX_SIZE + len(header) + len(body)
            self._fail(call, self._decode_error(flags, body), size)
            return
        try:
            if len(body) > SMALL and not flags & _RAW:
                self.check_encoded(body, weight(call.returns))
            if flags or call.returns is not None:
                if call.flags & _SERVER_STREAM and not body and not flags:
                    value = None  # the items were the result
                else:
                    value = self._decode_result(call.returns, flags, body)
            else:
                value = self.codec.decode(body) if body else None
        except ResourceExhausted as error:
            error.message = f"the result of {call.method} is {error.message}"
            error.__traceback__ = None  # or its frames would keep the body for as long as it lives
            self._fail(call, error, PREFIX_SIZE + len(header) + len(body))
        except Exception as error:  # a codec may raise anything
            bad = DataLoss(f"the result of {call.method} is bad: {explain(error)}")
            self._fail(call, bad, PREFIX_SIZE + len(header) + len(body))
        else:
            if call.flags & STREAMS:
                self._close_stream(call)
            self._events.append(CallCompleted(call, value, metadata))
            if self._observers.answered:
                size = PREFIX_SIZE + len(header) + len(body)
                self._tell(self._observers.answered, call, size)

    def _was_used(self, call_id: int) -> bool:
        return call_id != 0 and (self._serial - call_id) % IDS < self._serial

    def _decode_result(self, returns: Any, flags: int, body: bytes) -> Any:
        if flags & _RAW:
            return body if returns is None else convert(body, returns)
        return decoder(self.codec, returns)(body) if body else convert(None, returns)

    def _decode_error(self, flags: int, body: bytes) -> CallError:
        maybe_executed = not flags & Flag.NOT_EXECUTED
        try:
            self.check_encoded(body)
            code, message, details = decoder(self.codec, _ERROR_BODY)(body)
        except ResourceExhausted as error:
            error.message = f"the server's error is {error.message}"
            error.maybe_executed = maybe_executed
            error.__traceback__ = None  # or its frames would keep the body
            return error
        except Exception as error:  # a codec may raise anything
            return DataLoss(
                f"the server's error is malformed: {explain(error)}", maybe_executed=maybe_executed
            )
        return CallError.of(clip(code)[:64], clip(message), details, maybe_executed=maybe_executed)

    def _receive_half_close(self, now: float) -> None:
        # A server that sends nothing more will not answer either.
        why = f" ({self._reason})" if self._reason else ""  # what its GOAWAY said
        self._end(Trigger.LOST, Unavailable(f"the server closed the connection{why}"), now)

    def _handle_goaway(self, call_id: int, now: float) -> None:
        if call_id and not self._was_used(call_id):
            self._violate(f"GOAWAY after call {call_id}, which was never made", now)
            return
        last = self._serial - (self._serial - call_id) % IDS
        for call in self.calls:
            # Calls in the queue will never be sent; the server never saw them.
            if call.serial > last or not call.sent:
                self.calls.remove(call)
                self._unqueue(call)
                self._fail(call, Unavailable("the server is going away", maybe_executed=False))

    def _last_call_id(self) -> int:
        return 0  # the server makes no calls

    # Shutdown

    def _fail_handshake(self, error: HandshakeError, now: float) -> None:
        self._end(Trigger.REFUSED, error, now)

    def _shut_handshake(self, now: float) -> None:
        self._expire_grace(now)
        self._end(Trigger.SHUTDOWN, None, now)

    def _check_idle(self, now: float) -> None:
        """Do nothing: only servers close idle connections."""
