"""The server's end of an HTTP/1.1 connection (RFC 9112)."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from rpc_proto.config import Peer, ServerConfig
from rpc_proto.errors import HandshakeError, RpcError
from rpc_proto.http.server import Exchange, HttpServer
from rpc_proto.http.turns import HttpTurns

from .budget import PATIENCE, Budgeted
from .events import HttpServed, ResponsePromised
from .memory import Memory
from .observers import Observer, Observers
from .states import State, Trigger
from .timers import Timer

if TYPE_CHECKING:
    from rpc_proto.http.messages import Application

__all__ = ["HttpConnection"]

_LARGE = 8 * 1024  # bytes of a response from which on it is counted once, whoever gets it


class HttpConnection(Budgeted):
    """The server's end of an HTTP/1.1 connection (RFC 9112).

    It is driven like any `Endpoint`. `application` answers the requests, one after the other. Once
    a CONNECT has been accepted, `tunnel` holds the bytes after it, and all that is left to do here
    is to send the rest.

    Connections that share `turns`, a rpc_proto.http.turns.HttpTurns, never keep their server from
    its calls for long; those that share `memory` stay within one budget. `observers` are notified
    of each exchange. If `unavailable` is not None, it is the reason why every request except
    CONNECT is answered with 503.
    """

    __slots__ = ("_http", "_response", "_turns", "peer")

    def __init__(
        self,
        config: ServerConfig | None = None,
        *,
        now: float,
        peer: Peer | None = None,
        application: "Application | None" = None,
        turns: HttpTurns | None = None,
        memory: Memory | None = None,
        unavailable: str | None = None,
        observers: Iterable[Observer] | Observers = (),
    ) -> None:
        config = config or ServerConfig()
        super().__init__(config, now, observers)
        self.state = State.OPEN
        self._turns = turns or HttpTurns()
        self.peer = peer or Peer()
        self._http = HttpServer(application, self.peer, config.max_http_body)
        self._http.unavailable = unavailable
        self._response: bytes | None = None  # that is to be sent, and may be others' to send, too
        self._open_account(memory)
        self._await_request(now)

    # Getters

    @property
    def tunnel(self) -> bytes | None:
        """The bytes after an accepted CONNECT; None if there was none."""
        return self._http.tunnel

    @property
    def eof(self) -> bool:
        """Whether the peer sends nothing more."""
        return self._eof

    # Inputs

    def receive_data(self, now: float, data: bytes | bytearray | memoryview) -> None:
        """Take bytes from the peer; the buffer may be reused when this returns."""
        self._now = self._received_at = now
        self.received += len(data)
        if self.state is State.OPEN:
            self._http.receive_data(data)
            self._settle(now)

    def receive_eof(self, now: float) -> None:
        """Record that the peer sends nothing more; it may still read."""
        self._note_eof(now)
        if self.state is State.OPEN:
            self._note(self._http.abandon(), now)  # the client has probably gone
            self._settle(now)

    def connection_lost(self, now: float, reason: str = "the connection was lost") -> None:
        """Record that the transport is gone in both directions; nothing more can be sent."""
        self._now = now
        self._end(Trigger.LOST, None, now)

    # Commands

    def shutdown(self, now: float, grace: float = 0.0) -> None:
        """Answer the current request with 503, and close."""
        self.turn_away(now, "unavailable", "the server is shutting down")

    def turn_away(self, now: float, code: str, message: str) -> None:
        """Answer the current request with 503 and this message, and close."""
        self._now = now
        if self.state is State.OPEN:
            self._give_up(503, message, now)

    # Outputs

    def next_timeout(self) -> float | None:
        """Return when to call `handle_timeout`, in absolute seconds, or None for never."""
        if self.state is State.OPEN and self._can_serve():
            return self._now
        return super().next_timeout()

    # Memory

    def _held(self) -> int:
        held = self.outbound + self._unsent
        if self.state is State.OPEN:
            held += self._http.held
        if self._response is not None:
            held -= min(len(self._response), self.outbound)
        return held

    def _cover(self, more: int = 0) -> bool:
        covered = super()._cover(more)
        if self._response is not None and self._room:
            self._room = 1  # the next request waits until it has been sent
        return covered

    def _balance(self, now: float) -> None:
        if self._response is not None and not self.outbound and not self._unsent:
            self._account.memory.unshare(self._response)
            self._response = None
        super()._balance(now)

    def _give_something_up(self, now: float) -> bool:
        self._give_up(503, "the server has no memory for this request", now)
        return True

    def _wants_data(self) -> bool:
        return self.outbound < self.high_water and not self._account.waits and self._http.wants_data

    # Requests

    def _can_serve(self) -> bool:
        """Whether there is something to do for which this need not wait."""
        return (
            self._http.ready
            and self.outbound < self.high_water
            and (self._response is None or not (self.outbound or self._unsent))
            and not self._account.waits
            and Timer.TURN not in self._timers
        )

    def _settle(self, now: float) -> None:
        http = self._http
        self.version += 1
        if self.state is State.OPEN:
            if self._response is not None:
                self._balance(now)
            if self._can_serve():
                self._take_turn(now)
            if http.tunnel is None and (http.closing or (self._eof and not http.ready)):
                reason: RpcError | None = None
                if http.refusal is not None:
                    why = f"HTTP {http.refusal.status}: {http.refusal.message}"
                    reason = HandshakeError("invalid_argument", why)
                self._end(Trigger.SERVED, reason, now)
        self._balance(now)
        self._watch_writing(now)

    _pass_time = _settle

    def _take_turn(self, now: float) -> None:
        http, turns = self._http, self._turns
        http.turn = turns.begin(now, http.turn)
        if http.turn is None:
            before = self.outbound
            goes_on = True
            try:
                while goes_on and self._can_serve():
                    exchange = http.step(now, self._send_line)
                    self._note(exchange, now)
                    if exchange is not None:
                        self._count_response()
                    if http.promise is not None:
                        self._set_timer(Timer.REQUEST, http.promise.deadline)
                        self._events.append(ResponsePromised(http.promise))
                        http.expire(now)  # it may be due already
                    if exchange is not None or http.ready:
                        turns.count()
                    goes_on = turns.goes_on
            finally:
                turns.end(self.outbound - before)
            if not self._can_serve():
                return
            http.turn = turns.queue(now)
        self._set_timer(Timer.TURN, http.turn)

    def _count_response(self) -> None:
        """Count the response that was made if it is large: once, however many get it."""
        body = self._out[-1]
        if len(body) < _LARGE or not isinstance(body, bytes):
            return
        if self._account.memory.share(body):
            self._response = body
        else:
            del self._out[-1]
            self.outbound -= len(body)
            self._http.closing = True  # before its end, so that nobody takes it for complete

    def _note(self, exchange: Exchange | None, now: float) -> None:
        if exchange is not None:
            event = HttpServed(*exchange, now - self._http.began)
            self._events.append(event)
            if self._observers.served:
                self._tell(self._observers.served, self.peer, event)
            if self.state is State.OPEN:
                self._await_request(now)

    def _await_request(self, now: float) -> None:
        unavailable = self._http.unavailable is not None
        patience = PATIENCE if unavailable else self._config.handshake_timeout
        self._set_timer(Timer.REQUEST, now + patience)

    def _give_up(self, status: int, message: str, now: float) -> None:
        self._note(self._http.give_up(status, message, self._send_line), now)
        self._settle(now)

    def _handle_timer(self, timer: Timer, now: float) -> None:
        if timer is Timer.MEMORY:
            self._balance(now)
        elif timer is Timer.REQUEST:
            self._request_is_late(now)
        elif timer is not Timer.TURN:  # which `_settle` sees to
            super()._handle_timer(timer, now)

    def _request_is_late(self, now: float) -> None:
        if self._http.promise is not None:
            self._http.expire(now)
        elif self._http.unavailable is not None:
            self._give_up(503, self._http.unavailable, now)
        elif self._http.ready or self.outbound >= self.high_water:
            # It waits for us, or first has to read, for which there is Timer.WRITE.
            self._await_request(now)
        else:
            seconds = self._config.handshake_timeout
            self._give_up(408, f"no request within {seconds:g} s", now)

    # Ends

    def _end(self, trigger: Trigger, error: RpcError | None, now: float) -> None:
        super()._end(trigger, error, now)
        self._balance(now)

    def _stop(self, error: RpcError | None, now: float) -> None:
        self._note(self._http.abandon(), now)
