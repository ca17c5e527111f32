"""The server's end of a connection (docs/protocol.md, "Calls")."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .calls import CallTable
from .codecs import SMALL, explain, find_codec
from .config import Peer, ServerConfig
from .connection import Connection, clip
from .context import ServerCall
from .errors import (
    CallError,
    Cancelled,
    DeadlineExceeded,
    HandshakeError,
    Internal,
    LocalProtocolError,
    ResourceExhausted,
    RpcError,
    Unavailable,
)
from .events import (
    CallCancelled,
    HandshakeCompleted,
    HttpServed,
    RequestReceived,
    ResponsePromised,
    SendBufferDrained,
)
from .frames import BYTES, PREFIX_SIZE, Flag, Frame, FrameType, encode_prefix
from .handshake import (
    Answer,
    agree_features,
    agree_ping,
    encode_accept,
    encode_refusal,
    parse_options,
)
from .headers import LONGEST_CACHED, NO_METADATA, HeaderError
from .memory import FREE, Account, Memory
from .states import State, Trigger
from .timers import Timer

if TYPE_CHECKING:
    from .http.messages import Application
    from .http.turns import HttpTurns

__all__ = ["ServerConnection"]

_OPEN = State.OPEN
_new = object.__new__
_RAW = Flag.RAW
_REQUEST = int(FrameType.REQUEST)
_RESPONSE = int(FrameType.RESPONSE)
_CANCEL = int(FrameType.CANCEL)

_REFUSED_BYTES = 256 * 1024  # of a refused call, which count as much as another one

_PATIENCE = 1.0  # seconds, with a peer that is turned away as soon as it speaks

_METADATA = 8 * 1024  # bytes that the entries take, apart from their texts

_LOOK = 0.25  # seconds between two looks at what is held, while that is much
_WAIT = 1.0  # seconds for which reading stops, before something is refused
_HTTP_BODY = 8 * 1024  # bytes of a response from which on it is counted once, whoever gets it


class ServerConnection(Connection):
    """The end that is called.

    A peer that begins with HTTP gets its responses from `application` (see rpc_proto.http), and
    becomes a caller like any other by CONNECT. Connections that share `turns`, a
    rpc_proto.http.turns.HttpTurns, together do not keep their server from its calls for long. Those
    that share `memory`, a rpc_proto.memory.Memory, together hold no more than that; without one a
    connection has a budget of its own, of `ServerConfig.memory`.

    Each `RequestReceived` is answered with `send_response` or `send_error`, or given up with
    `conclude`; until then it holds one of the connection's slots, even when a `CallCancelled`
    told that nobody waits for the answer any more.

    `on_error(call, error, now)`, if it is set, is called for each call that ends with an error,
    those included that are refused without an event: for counting.
    """

    __slots__ = (
        "_account",
        "_application",
        "_given_up",
        "_handling_timeout",
        "_http",
        "_idle_since",
        "_last_id",
        "_max_calls",
        "_memory",
        "_one_way",
        "_refusal",
        "_refusals",
        "_refused_at",
        "_response",
        "_tight_since",
        "_turns",
        "_waits",
        "on_error",
        "peer",
    )

    _config: ServerConfig
    _lingers = True

    def __init__(
        self,
        config: ServerConfig | None = None,
        *,
        now: float,
        peer: Peer | None = None,
        application: "Application | None" = None,
        turns: "HttpTurns | None" = None,
        memory: Memory | None = None,
    ) -> None:
        config = config or ServerConfig()
        super().__init__(config, now)
        self.peer = peer or Peer()
        self.on_error: Callable[[ServerCall, CallError, float], None] | None = None
        self.calls: CallTable[ServerCall] = CallTable()
        self._handling_timeout = config.handling_timeout
        self._max_calls = config.max_calls
        self._given_up = 0  # calls in the table for whose answer nobody waits any more
        self._one_way = 0  # one-way calls whose handler has not ended
        self._last_id = 0
        self._refusals = 0.0
        self._refused_at = now
        self._idle_since = now
        self._application = application
        self._turns = turns
        self._memory = memory or Memory(config.budget)
        self._account = Account(self._memory, config.share)
        self._room = min(self.high_water, FREE)
        self._waits = False  # for others to give back what they hold; it does not read meanwhile
        self._tight_since: float | None = None  # since when it holds too much
        self._response: bytes | None = None  # to HTTP, which may be shared
        self._http: Any = None  # an HttpServer as long as HTTP is spoken; False afterwards
        self._refusal: HandshakeError | None = None  # for a peer that has said nothing yet

    # Getters

    @property
    def calls_in_flight(self) -> int:
        """Calls whose handler has not ended."""
        return len(self.calls)

    # Commands

    def turn_away(self, now: float, code: str, message: str) -> None:
        """Refuse the peer before it has shown its options: when there are too many, say.

        What it says tells whether it hears so in JSON or as a 503; it has a second for that.
        """
        if self.state is not State.HANDSHAKE:
            raise LocalProtocolError("only a peer in the option handshake can be turned away")
        self._now = now
        self._refusal = HandshakeError(code, message)
        if self._http or (self._line is not None and self._line.started):
            self._turn_away(self._refusal, now)
        else:
            self._set_timer(Timer.HANDSHAKE, now + _PATIENCE)

    def send_response(self, now: float, call: ServerCall, value: Any) -> None:
        """Answer a call; one that has ended already is no error, and nothing is sent.

        A value that cannot be encoded, or is larger than the caller accepts, becomes an error.
        What a codec raises that is no Exception is raised again, after that answer.
        """
        if call.ended or call.one_way:
            if self._conclude(call, now) and self.state is not State.OPEN:
                self._settle(now)
            return
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
        if self.state is not _OPEN or self.outbound >= self._room:
            self._settle(now)

    def send_error(self, now: float, call: ServerCall, error: CallError) -> None:
        """Answer a call with an error, as `send_response` does with a value.

        The caller gets code, message (1 KiB) and details, and `maybe_executed` if it is False.
        """
        if self._conclude(call, now):
            self._fail(call, error)
            self._settle(now)

    def refuse(self, now: float, call: ServerCall, error: CallError) -> None:
        """Answer with an error a call that no handler will see; too many end the connection."""
        error.maybe_executed = False
        self.send_error(now, call, error)
        self._count_refusal(call, now)

    def conclude(self, now: float, call: ServerCall) -> None:
        """Free the slot of a call whose handler has ended; one without an answer gets an error."""
        self.send_error(now, call, Internal("the handler ended without an answer"))

    def reserve(self, call: ServerCall, decoded: int) -> None:
        """Count a call at what its arguments take when they are decoded, in bytes.

        `decoded` is what `check_encoded` returned. ResourceExhausted if there is no room for it.
        """
        body = call.body
        account = self._account
        if account.calls + decoded > account.most // 4 or not self._memory.has_plenty(decoded):
            decoded = min(decoded, self.codec.growth(body))
        more = max(0, decoded - len(body))
        if not self._count(more):
            raise ResourceExhausted(
                f"a body of {len(body)} bytes may take {decoded} bytes when it is decoded; "
                "the server has no memory for that now"
            )
        call.cost += more

    # Memory

    def _wants_data(self) -> bool:
        return (
            self.outbound < self.high_water
            and self._one_way < self._max_calls
            and not self._waits
            and (not self._http or self._http.wants_data)
        )

    def _held(self) -> int:
        """Return the bytes that are held for the peer."""
        held = self._account.calls + self.outbound + self.unsent
        if self._reader is not None:
            held += self._reader.arrived
        elif self._http:
            held += self._http.held
            if self._response is not None:
                held -= min(len(self._response), self.outbound)
        return held

    def _cover(self, more: int = 0) -> bool:
        """Have memory for what is held and so many bytes more; whether there is that."""
        account = self._account
        held = self._held()
        covered = account.cover(held + more)
        self._room = min(self.high_water, account.leased - held + self.outbound)
        if self.state is State.CLOSING:
            self._room = 0
        elif self._response is not None:
            self._room = 1  # the next request waits until it has left
        if account.leased > FREE and self.state is not State.CLOSED:
            self._look_soon()
        return covered

    def _look_soon(self) -> None:
        if Timer.MEMORY not in self._timers:
            self._set_timer(Timer.MEMORY, self._now + _LOOK)

    def _count(self, size: int) -> bool:
        """Count bytes of a call, if there is memory for them."""
        self._account.calls += size
        if self._cover():
            return True
        self._account.calls -= size
        self._cover()
        return False

    def _uncount(self, call: ServerCall) -> None:
        """Count the bytes of a call no longer: its handler has ended."""
        self._account.calls -= call.cost
        call.cost = 0
        if self.state is State.CLOSED:  # no timer will look
            self._cover()

    def _afford(self, size: int) -> bool:
        """Whether so many more bytes may wait to be sent."""
        return self.state is not State.CLOSED and self._cover(size)

    def _balance(self, now: float) -> None:
        """Read no more while too much is held; when that does not help, give something up."""
        account = self._account
        if self.state is State.CLOSED:
            self.unsent = 0
        if self._response is not None and not self.outbound and not self.unsent:
            self._memory.unshare(self._response)
            self._response = None
        covered = self._cover()
        if self.state is State.CLOSED:
            return
        waits = False
        if covered and account.calls <= account.most * 3 // 4:
            self._tight_since = None
        else:
            self._look_soon()
            if self._tight_since is None:
                self._tight_since = now
            waits = now < self._tight_since + _WAIT
            if not waits and not covered:
                waits = not self._give_something_up(now)
        if waits is not self._waits:
            self._waits = waits
            self.version += 1

    def _give_something_up(self, now: float) -> bool:
        """Hold less; whether it is little enough to go on reading."""
        if self._http:
            self._give_up_http(503, "the server has no memory for this request", now)
            return True
        reader = self._reader
        if reader is None or not reader.arrived:
            return False  # what waits to be sent has a time of its own
        size = reader.arrived + reader.missing
        kind, flags, call_id = reader.skip()
        if kind == _REQUEST:
            if self._is_taken(call_id, now):
                return True
            call = ServerCall(call_id, "", None, NO_METADATA, flags, b"", self.peer)
            call.arrived = now
            error = ResourceExhausted(
                f"the server has no memory for a call of {size} bytes now", maybe_executed=False
            )
            self._fail(call, error)
            self._last_id = call_id
            self._count_refusal(call, now)
        return self._cover()

    def _drained(self) -> None:
        super()._drained()
        if len(self.calls):
            self._events.append(SendBufferDrained())

    # Answers

    def _conclude(self, call: ServerCall, now: float) -> bool:
        """Take the call from the table; whether its caller still waits."""
        calls = self.calls.by_id
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

    def _fail(self, call: ServerCall, error: CallError) -> None:
        """End a call with an error."""
        self._report(call, error)
        self._answer_error(call, error)

    def _report(self, call: ServerCall, error: CallError) -> None:
        if self.on_error is not None:
            self.on_error(call, error, self._now)

    def _answer_error(self, call: ServerCall, error: CallError) -> None:
        if not call.one_way:
            header = b""
            if call.reply_metadata:
                try:
                    header = self._headers.answer(call.reply_metadata)
                except BaseException:  # the error matters more than what was to go with it
                    header = b""
            self._send_error(call.id, error, header)

    def _send_error(self, call_id: int, error: CallError, header: bytes = b"") -> None:
        flags = 0 if error.maybe_executed else Flag.NOT_EXECUTED
        max_header, max_body = self._send_limits
        fields = [clip(str(error.code))[:64], clip(str(error.message)), error.details]
        try:
            body = self.codec.encode(fields)
        except BaseException:  # details that cannot travel must not cost the caller the code
            body = b""
        if not body or len(body) > max_body:
            body = self.codec.encode([*fields[:2], None])
        self._send(
            FrameType.ERROR, flags, call_id, header if len(header) <= max_header else b"", body
        )

    def _end_call(self, call: ServerCall, error: CallError) -> None:
        """Tell the driver that nobody waits for this call any more."""
        call.ended = True
        self._given_up += 1
        self._report(call, error)
        self._events.append(CallCancelled(call, error))

    def _count_refusal(self, call: ServerCall, now: float) -> None:
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
                if hasattr(identity, "__await__"):  # it would let everybody in
                    raise TypeError("authenticate must be a plain function, not a coroutine one")
            except BaseException as error:
                # The text of a failure inside the check is nothing for a stranger to read.
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
            if len(header) <= LONGEST_CACHED:  # what parse_request does, without the way there
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
        call = ServerCall(call_id, method, deadline, metadata, flags, body, self.peer)
        call.arrived = now
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
        event = _new(RequestReceived)  # in half the time, since no __init__ is called
        event.call = call
        self._events.append(event)

    def _is_taken(self, call_id: int, now: float) -> bool:
        """Whether no call may have this id: a violation."""
        if call_id and call_id not in self.calls:
            return False
        why = f"call {call_id} is in flight already" if call_id else "0 is no call id"
        self._violate(why, now)
        return True

    def _refuse_arrival(self, call: ServerCall, now: float) -> None:
        """Answer a call that is not even taken on."""
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
            self._end_call(call, Cancelled("the caller cancelled"))

    def _receive_half_close(self, now: float) -> None:
        self._move(Trigger.HALF_CLOSED)
        if self._has_callers():
            # Ping even if liveness is off: only a write can tell whether the caller still reads.
            self._ping = self._ping or 1.0
            self._check_liveness(now)

    def _handle_goaway(self, call_id: int, now: float) -> None:
        """Do nothing more: the client promised to start no call, and the state says so."""

    def _last_call_id(self) -> int:
        return self._last_id

    # HTTP, before the option handshake

    def receive_eof(self, now: float) -> None:
        """Take note that the peer sends nothing more; it may still read."""
        if not self._http:
            super().receive_eof(now)
            return
        self._note_eof(now)
        self._http.eof = True
        self._note_exchange(self._http.abandon(), now)  # whoever asked has probably gone
        self._settle(now)

    def connection_lost(self, now: float, reason: str = "the connection was lost") -> None:
        """Take note that the transport is gone in both directions; nothing more can be sent."""
        if not self._http:
            super().connection_lost(now, reason)
            return
        self._now = now
        self._end(Trigger.LOST, None, now)

    def _receive_early(self, data: bytes | bytearray | memoryview, now: float) -> None:
        if (
            self._http is None
            and self._line is not None
            and not self._line.started
            and len(data)
            and 0x41 <= data[0] <= 0x5A  # a method begins so
        ):
            from .http.server import HttpServer
            from .http.turns import HttpTurns

            self._turns = self._turns or HttpTurns()
            self._http = self._queue = HttpServer(
                self._application, self.peer, self._config.max_http_body
            )
            if self._refusal is not None:
                self._http.unavailable = self._refusal.message
        if self._http:
            self._http.receive_data(data)
            self._settle(now)
            return
        if self._refusal is not None and self._line is not None and len(data):
            self._fail_handshake(self._refusal, now)
        super()._receive_early(data, now)

    def _has_room(self) -> bool:
        """Whether requests that wait can be served now."""
        ready: bool = self._http.ready
        return (
            ready
            and self.outbound < self.high_water
            and (self._response is None or not (self.outbound or self.unsent))
            and not self._waits
            and Timer.HTTP not in self._timers
        )

    def _serve_http(self, now: float) -> None:
        http = self._http
        self.version += 1
        if self._response is not None:
            self._balance(now)
        if self._has_room():
            self._take_turn(now)
        if http.tunnel is not None:
            self._leave_http()
            if self._refusal is not None:
                self._fail_handshake(self._refusal, now)
            self._receive_early(http.tunnel, now)
            if http.eof and self.state is not State.CLOSED:
                self.receive_eof(now)
        elif http.closing or (http.eof and not http.ready):
            error = http.refusal
            if error is not None:
                error = HandshakeError("invalid_argument", f"HTTP {error.status}: {error.message}")
            self._end(Trigger.SERVED, error, now)

    def _take_turn(self, now: float) -> None:
        http, turns = self._http, self._turns
        assert turns is not None
        http.turn = turns.begin(now, http.turn)
        if http.turn is None:
            before = self.outbound
            goes_on = True
            try:
                while goes_on and self._has_room():
                    exchange = http.step(now, self._send_line)
                    self._note_exchange(exchange, now)
                    if exchange is not None:
                        self._count_response()
                    if http.promise is not None:
                        self._set_timer(Timer.HANDSHAKE, http.promise.deadline)
                        self._events.append(ResponsePromised(http.promise))
                        http.expire(now)  # it may be due already
                    if exchange is not None or http.ready:
                        turns.count()
                    goes_on = turns.goes_on
            finally:
                turns.end(self.outbound - before)
            if not self._has_room():
                return
            http.turn = turns.queue(now)
        self._set_timer(Timer.HTTP, http.turn)

    def _count_response(self) -> None:
        """Count the response that was made if it is large: once, however many get it."""
        body: Any = self._out[-1]
        if len(body) < _HTTP_BODY:
            return
        if self._memory.share(body):
            self._response = body
        else:
            del self._out[-1]
            self.outbound -= len(body)
            self._http.closing = True  # before its end, so that nobody takes it for whole

    def _note_exchange(self, exchange: Any, now: float) -> None:
        if exchange is not None:
            self._events.append(HttpServed(*exchange))
            if self.state is State.HANDSHAKE:
                self._set_timer(Timer.HANDSHAKE, now + self._config.handshake_timeout)

    def _leave_http(self) -> None:
        self._http = False
        self._queue = ()
        self._timers.clear(Timer.HTTP)

    def _give_up_http(self, status: int, message: str, now: float) -> None:
        self._note_exchange(self._http.give_up(status, message, self._send_line), now)
        self._settle(now)

    def _handle_timer(self, timer: Timer, now: float) -> None:
        if timer is Timer.HANDSHAKE and self._refusal is not None:
            self._turn_away(self._refusal, now)
        elif timer is Timer.MEMORY:
            self._balance(now)
        elif timer is not Timer.HANDSHAKE or not self._http:
            super()._handle_timer(timer, now)
        elif self._http.promise is not None:
            self._http.expire(now)
        elif self._http.ready or self.outbound >= self.high_water:
            # It waits for us, or first has to read, for which there is Timer.WRITE.
            self._set_timer(timer, now + self._config.handshake_timeout)
        else:
            seconds = self._config.handshake_timeout
            self._give_up_http(408, f"no request within {seconds:g} s", now)

    # Ends

    def _has_callers(self) -> bool:
        """Whether anybody waits for an answer; or, to a one-way call, for its end."""
        return len(self.calls) > self._given_up

    def _settle(self, now: float) -> None:
        if self._http:
            self._serve_http(now)
        self._balance(now)
        self._watch_writing(now)
        if self.state is State.DRAINING and not self._has_callers():
            self._end(Trigger.DRAINED, None, now)

    def _expire(self, call: ServerCall, now: float) -> None:
        if not call.ended:
            error = DeadlineExceeded(f"the deadline of {call.method} passed before it ended")
            self._answer_error(call, error)
            self._end_call(call, error)

    def _expire_grace(self, now: float) -> None:
        for call in self.calls:
            if not call.ended:
                error = Unavailable("the server is shutting down")
                self._answer_error(call, error)
                self._end_call(call, error)

    def _end_calls(self, error: RpcError | None, now: float) -> None:
        reason = Unavailable(str(error or "the connection ended"))
        for call in self.calls.clear():
            if not call.ended:
                self._end_call(call, reason)
        self._given_up = 0
        if self._http:
            self._note_exchange(self._http.abandon(), now)
            self._leave_http()

    def _end(self, trigger: Trigger, error: RpcError | None, now: float) -> None:
        super()._end(trigger, error, now)
        self._balance(now)

    def _fail_handshake(self, error: HandshakeError, now: float) -> None:
        codecs = [codec if isinstance(codec, str) else codec.name for codec in self._config.codecs]
        self._send_line(encode_refusal(error.code, error.message, codecs))
        self._end(Trigger.REFUSED, error, now)

    def _shut_handshake(self, now: float) -> None:
        self._turn_away(HandshakeError("unavailable", "the server is shutting down"), now)

    def _turn_away(self, refusal: HandshakeError, now: float) -> None:
        if self._http:
            self._give_up_http(503, refusal.message, now)
        else:
            self._fail_handshake(refusal, now)

    def _check_idle(self, now: float) -> None:
        limit = self._config.idle_timeout
        assert limit is not None
        idle_at = (now if len(self.calls) else self._idle_since) + limit
        if idle_at > now:
            self._set_timer(Timer.IDLE, idle_at)
        else:
            self._send_goaway("unavailable", f"no call for {limit:g} s")
            self._move(Trigger.SHUTDOWN)
