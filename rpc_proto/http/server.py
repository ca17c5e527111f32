"""The server's side of HTTP/1.1 (RFC 9112): requests, applications, responses, and CONNECT."""

import re
from collections.abc import Callable
from http import HTTPStatus
from typing import NamedTuple

import h11

from rpc_proto.config import Peer

from .body import BodyReader
from .head import HOST, MAX_HEAD, HeadReader
from .making import Making
from .messages import Application, HttpError, Promise, Request, Response

__all__ = ["RPC_PATH", "Exchange", "HttpServer"]

RPC_PATH = "/rpc"  # the target of a CONNECT that names a path instead of a host and a port

_CLIENT_CLOSED = 499  # for the log, as others write it when the client disconnected

_AUTHORITY = re.compile(rf"(?=[^:]){HOST}:([0-9]{{1,5}})")
_ABSOLUTE = re.compile(rf"(?i:https?)://((?=[^:/?]){HOST}(?::[0-9]*)?)(/[^?#]*)?(\?[^#]*)?")

_CONNECT_ONLY = [("Allow", "CONNECT")]


class Exchange(NamedTuple):
    """A request with its response. Sizes in bytes; `error` is what the application raised."""

    request: str  # method and target, or what came in their place
    status: int
    size: int
    error: BaseException | None


class HttpServer:
    """Turns bytes into requests, and the responses of an application into bytes.

    It serves one request at a time: while `promise` is set it waits for the response, while
    `making` is set it is building it, and bytes that arrive meanwhile are kept. `step` does the
    next piece of work. If `tunnel` is not None, a CONNECT was accepted, and it has the bytes after
    it; if `closing` is True, nothing more is read. Responses have no Date, because a pure machine
    has no clock (RFC 9110, 6.6.1).
    """

    def __init__(self, application: Application | None, peer: Peer, max_body: int) -> None:
        self.promise: Promise | None = None
        self.making: Making | None = None
        self.turn: float | None = None  # when its turn is, if it waits for one
        self.tunnel: bytes | None = None
        self.closing = False
        self.refusal: HttpError | None = None  # why, if that is the peer's fault
        self.unavailable: str | None = None  # why there is nothing but CONNECT, if so
        self.began = 0.0  # when the head of the last request was complete
        self._application = application
        self._peer = peer
        self._max_body = max_body
        self._head = HeadReader()
        self._buffer = self._head.buffer  # of everything received and not yet parsed
        self._request: h11.Request | None = None  # being received or answered
        self._target = ""  # its path and query
        self._host: str | None = None  # that its target named
        self._body: BodyReader | None = None
        self._connection = _make_connection()
        self._error: BaseException | None = None  # what made a promise fail
        self._stuck = False  # until there are more bytes

    @property
    def idle(self) -> bool:
        """Whether no byte has arrived since the last response."""
        return self._request is None and not self._buffer

    @property
    def held(self) -> int:
        """Bytes received and not answered yet."""
        return len(self._buffer) + (len(self._body.data) if self._body is not None else 0)

    @property
    def ready(self) -> bool:
        """Whether `step` has something to do."""
        if self.promise is not None:
            return self.promise.response is not None
        if self.making is not None:
            return True
        return not self._stuck and not self.closing and self.tunnel is None

    @property
    def wants_data(self) -> bool:
        """Whether to read on; False while too many requests are waiting."""
        return len(self._buffer) <= MAX_HEAD or not (self.ready or self.promise is not None)

    def receive_data(self, data: bytes | bytearray | memoryview) -> None:
        """Take bytes."""
        if not self.closing:
            self._buffer += data
            self._stuck = False

    def step(self, now: float, send: Callable[[bytes], None]) -> Exchange | None:
        """Do the next piece of work; return the exchange it finished, or None."""
        try:
            if self.promise is not None:
                return self._fulfil(self.promise, send)
            if self.making is not None:
                return self._make_on(self.making, now, send)
            if self._request is None and not self._begin(now, send):
                self._stuck = True
                return None
            if self._body is None:
                return self._connect(send)
            if self.unavailable is not None:
                raise HttpError(503, self.unavailable)
            if not self._body.complete:
                self._stuck = self._body.read()
                if not self._body.complete:
                    return None
            return self._answer(now, send)
        except h11.RemoteProtocolError as error:
            return self._refuse(HttpError(error.error_status_hint, str(error)), send)
        except HttpError as error:  # of the head or the body: where the next begins is unknown
            return self._refuse(error, send)

    def expire(self, now: float) -> None:
        """Settle the promise if its time has come."""
        assert self.promise is not None
        try:
            self.promise.settle_late(now)
            if self.promise.response is None and now >= self.promise.deadline:
                raise TypeError("a promise was settled with None")
        except BaseException as error:
            self._error = error
            self.promise.settle(_failure())

    def abandon(self) -> Exchange | None:
        """Tell the application that nobody waits for its promise any more, if there is one."""
        promise = self.promise
        if promise is None or promise.response is not None:
            return None
        self.promise = None
        self.closing = True
        error: BaseException | None = None
        try:
            promise.abandon()
        except BaseException as raised:
            error = raised
        return Exchange(self._described(), _CLIENT_CLOSED, 0, error)

    def give_up(self, status: int, message: str, send: Callable[[bytes], None]) -> Exchange | None:
        """Answer the current request with this status, and close."""
        if self.promise is not None:
            self.promise.settle(Response.text(message, status))
            self.closing = True
            return self._fulfil(self.promise, send)
        if self.making is not None:
            self.making = None
            self.closing = True
            return self._respond(Response.text(message, status), send)
        if self.idle:
            self.closing = True
            return None
        return self._refuse(HttpError(status, message), send)

    # Requests

    def _begin(self, now: float, send: Callable[[bytes], None]) -> bool:
        """Take the head of the next request; return whether there is one."""
        self.began = now
        head = self._head.take()
        if head is None:
            return False
        self._connection.receive_data(head)
        event = self._connection.next_event()
        assert isinstance(event, h11.Request)
        self._request = event
        fields = dict(event.headers)
        chunked = b"transfer-encoding" in fields
        length = int(fields.get(b"content-length", b"0"))
        target = event.target.decode()
        if event.method == b"CONNECT":
            if length or chunked:
                raise HttpError(400, "CONNECT has no body (RFC 9110, 9.3.6)")
            _check_authority(target)
            return True
        self._target, self._host = _read_target(target, event.method)
        self._body = BodyReader(self._buffer, None if chunked else length, self._max_body)
        if self._connection.they_are_waiting_for_100_continue and not self._body.complete:
            self._say(h11.InformationalResponse(status_code=100, headers=[]), send)
        return True

    def _connect(self, send: Callable[[bytes], None]) -> Exchange:
        send(b"HTTP/1.1 200 Connected\r\n\r\n")
        self.tunnel = bytes(self._buffer)
        self._buffer.clear()
        return Exchange(self._described(), 200, 0, None)

    def _make_request(self) -> Request:
        assert self._request is not None
        assert self._body is not None
        headers: dict[str, str] = {}
        for name, value in self._request.headers:
            field, text = name.decode(), value.decode("latin-1")
            headers[field] = f"{headers[field]}, {text}" if field in headers else text
        if self._host is not None:
            headers["host"] = self._host  # whatever Host said: RFC 9112, 3.2.2
        method = self._request.method.decode()
        return Request(method, self._target, headers, bytes(self._body.data), self._peer)

    # Responses

    def _answer(self, now: float, send: Callable[[bytes], None]) -> Exchange | None:
        request = self._make_request()
        error: BaseException | None = None
        try:
            outcome = self._apply(request, now)
        except HttpError as raised:
            outcome = _explain(raised)
        except BaseException as raised:
            error = raised
            outcome = _failure()
        if isinstance(outcome, Promise):
            self.promise = outcome
            return None
        if isinstance(outcome, Making):
            self.making = outcome
            return None
        return self._respond(outcome, send, error)

    def _make_on(
        self, making: Making, now: float, send: Callable[[bytes], None]
    ) -> Exchange | None:
        making.advance(now)
        if not making.ready:
            return None
        self.making = None
        if making.response is not None:
            return self._respond(making.response, send)
        return self._respond(_failure(), send, making.error)

    def _apply(self, request: Request, now: float) -> Response | Promise | Making:
        if request.path == RPC_PATH:
            raise HttpError(405, "to make calls, use CONNECT", _CONNECT_ONLY)
        if self._application is None:
            raise HttpError(404, "this server has no pages")
        outcome = self._application(request, now)
        if not isinstance(outcome, (Response, Promise, Making)):
            raise TypeError(f"{request!r} was answered with {type(outcome).__name__}")
        if isinstance(outcome, Promise) and not outcome.deadline < float("inf"):
            raise ValueError(f"a promise needs a deadline, not {outcome.deadline!r}")
        return outcome

    def _fulfil(self, promise: Promise, send: Callable[[bytes], None]) -> Exchange:
        assert promise.response is not None
        self.promise = None
        error, self._error = self._error, None
        return self._respond(promise.response, send, error)

    def _refuse(self, error: HttpError, send: Callable[[bytes], None]) -> Exchange:
        """Answer an invalid request; nothing after it is read."""
        self.closing = True
        self.refusal = error
        return self._respond(_explain(error), send)

    def _respond(
        self, response: Response, send: Callable[[bytes], None], error: BaseException | None = None
    ) -> Exchange:
        try:
            head, body = self._encode(response)
        except BaseException as wrong:  # what cannot be sent
            error = wrong
            head, body = self._encode(_failure())
        self._say(head, send)
        request = self._request
        if body and not (request is not None and request.method == b"HEAD"):
            self._say(h11.Data(data=body), send)
        self._say(h11.EndOfMessage(), send)
        exchange = Exchange(self._described(), head.status_code, len(body), error)
        self._next()
        return exchange

    def _encode(self, response: Response) -> tuple[h11.Response, bytes]:
        """Return the encoded response; raises if it cannot be encoded."""
        status, body, headers = response.status, response.body, list(response.headers)
        if not isinstance(body, bytes):
            raise TypeError(f"the body of a response must be bytes, not {type(body).__name__}")
        known = {name.lower(): value for name, value in headers}
        if known.keys() & {"content-length", "transfer-encoding"}:
            raise ValueError("an application must not set Content-Length or Transfer-Encoding")
        request = self._request
        if status == 200 and request is not None and _is_fresh(request, known.get("etag")):
            status, body = 304, b""
        if not known.keys() & {"cache-control", "etag"}:
            headers.append(("Cache-Control", "no-store"))
        if "x-content-type-options" not in known:
            headers.append(("X-Content-Type-Options", "nosniff"))
        if status not in (204, 304):
            headers.append(("Content-Length", str(len(body))))
        elif body:
            raise ValueError(f"a response with status {status} has no body")
        if self.closing:
            headers.append(("Connection", "close"))
        return h11.Response(status_code=status, headers=headers, reason=_reason(status)), body

    def _described(self) -> str:
        request = self._request
        return f"{request.method.decode()} {request.target.decode()}" if request else "-"

    def _say(self, event: h11.Event, send: Callable[[bytes], None]) -> None:
        for data in self._connection.send_with_data_passthrough(event) or ():
            if data:
                send(data)  # a body is not copied, since many connections may share it

    def _next(self) -> None:
        """Get ready for the next request, if there can be one."""
        if self._connection.our_state is not h11.DONE:
            self.closing = True
        self._connection = _make_connection()
        self._request = None
        self._body = None
        self._stuck = self.closing


def _make_connection() -> h11.Connection:
    # One parser per request, so that each head is checked before it.
    return h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD)


def _check_authority(target: str) -> None:
    """Refuse a CONNECT to anything but the calls (RFC 9110, 9.3.6)."""
    if target.startswith("/"):
        if target != RPC_PATH:
            raise HttpError(404, f"calls are at {RPC_PATH}, not at {target[:80]}")
        return
    authority = _AUTHORITY.fullmatch(target)
    if authority is None or not 0 < int(authority[1]) < 65536:
        raise HttpError(400, f"CONNECT needs host:port or {RPC_PATH}, not {target[:80]!r}")


def _read_target(target: str, method: bytes) -> tuple[str, str | None]:
    """Return path and query, and the host if there is one, of any form in RFC 9112, 3.2."""
    if (target.startswith("/") and "#" not in target) or (target == "*" and method == b"OPTIONS"):
        return target, None
    absolute = _ABSOLUTE.fullmatch(target)
    if absolute is None:
        raise HttpError(400, f"the target must be a path or a URL, not {target[:80]!r}")
    return (absolute[2] or "/") + (absolute[3] or ""), absolute[1]


def _explain(error: HttpError) -> Response:
    return Response.text(error.message, error.status, error.headers)


def _failure() -> Response:
    return Response.text("internal error; see the server's log", 500)


def _reason(status: int) -> bytes:
    try:
        return HTTPStatus(status).phrase.encode()
    except ValueError:
        return b""


def _is_fresh(request: h11.Request, etag: str | None) -> bool:
    """Whether the client already has this (RFC 9110, 13.1.2)."""
    if etag is None or request.method not in (b"GET", b"HEAD"):
        return False
    for name, value in request.headers:
        if name == b"if-none-match":
            shown = [tag.strip().removeprefix("W/") for tag in value.decode("latin-1").split(",")]
            return "*" in shown or etag.removeprefix("W/") in shown
    return False
