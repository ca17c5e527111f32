"""The server's side of HTTP/1.1 (RFC 9112): requests, applications, responses, and CONNECT."""

from collections.abc import Callable
from http import HTTPStatus
from typing import NamedTuple

import h11

from rpc_proto.config import Peer

from .head import MAX_HEAD, HeadReader
from .messages import Application, HttpError, Promise, Request, Response

__all__ = ["RPC_PATH", "Exchange", "HttpServer"]

RPC_PATH = "/rpc"  # of a CONNECT that names a path, not a host and a port

_CLIENT_CLOSED = 499  # for the log: what others write of a client that did not wait

_CONNECT_ONLY = [("Allow", "CONNECT")]


class Exchange(NamedTuple):
    """One request that has its response. Sizes in bytes; `error` is what the application raised."""

    request: str  # method and target, or what came in their place
    status: int
    size: int
    error: Exception | None


class HttpServer:
    """Turns bytes into requests, and the responses of an application into bytes.

    One request at a time: while `promise` is set its response is awaited, and what comes meanwhile
    is kept. `step` does the next thing there is to do. When `tunnel` is not None a CONNECT has been
    accepted, and it holds the bytes behind it; when `closing` is True nothing more is read. There
    is no Date in a response: a pure machine has no clock (RFC 9110, 6.6.1).
    """

    def __init__(self, application: Application | None, peer: Peer, max_body: int) -> None:
        self.promise: Promise | None = None
        self.tunnel: bytes | None = None
        self.closing = False
        self.refusal: HttpError | None = None  # why, if that is the peer's fault
        self.eof = False
        self._application = application
        self._peer = peer
        self._max_body = max_body
        self._head = HeadReader()
        self._request: h11.Request | None = None  # whose body is arriving
        self._complete = False  # the request, which then waits for its response
        self._body: list[bytes] = []
        self._size = 0
        self._connection = _make_connection()
        self._error: Exception | None = None  # what made a promise fail
        self._stuck = False  # until there are more bytes

    @property
    def idle(self) -> bool:
        """Whether not a byte of a request has come since the last response."""
        return self._request is None and not len(self._head)

    @property
    def ready(self) -> bool:
        """Whether `step` has something to do."""
        if self.promise is not None:
            return self.promise.response is not None
        return not self._stuck and not self.closing and self.tunnel is None

    @property
    def wants_data(self) -> bool:
        """Whether to read on; False while more requests wait for their turn than there may."""
        return len(self._head) <= MAX_HEAD or not (self.ready or self.promise is not None)

    def receive_data(self, data: bytes | bytearray | memoryview) -> None:
        """Take bytes."""
        if self.closing:
            return
        if self._request is None or self._complete:
            self._head.feed(data)
        else:
            self._connection.receive_data(bytes(data))
        self._stuck = False

    def step(self, now: float, send: Callable[[bytes], None]) -> Exchange | None:
        """Do the next thing; the exchange that this finished, if it did."""
        try:
            if self.promise is not None:
                return self._fulfil(self.promise, send)
            if self._request is None and not self._begin():
                self._stuck = True
                return None
            assert self._request is not None
            if self._request.method == b"CONNECT":
                return self._connect(send)
            if self._connection.they_are_waiting_for_100_continue:
                self._say(h11.InformationalResponse(status_code=100, headers=[]), send)
            request = self._receive_body()
            if request is None:
                self._stuck = True
                return None
            return self._answer(request, now, send)
        except h11.RemoteProtocolError as error:
            return self._refuse(HttpError(error.error_status_hint, str(error)), send)
        except HttpError as error:  # of the head or the body: where the next begins is unknown
            return self._refuse(error, send)

    def expire(self, now: float) -> None:
        """Settle the promise whose time has come."""
        assert self.promise is not None
        try:
            self.promise.settle_late(now)
        except Exception as error:
            self._error = error
            self.promise.settle(_failure())

    def abandon(self) -> Exchange | None:
        """Tell the application that nobody waits for what it promised, if it did."""
        promise, self.promise = self.promise, None
        if promise is None or promise.response is not None:
            return None
        error: Exception | None = None
        try:
            promise.abandon()
        except Exception as raised:
            error = raised
        return Exchange(self._described(), _CLIENT_CLOSED, 0, error)

    def give_up(self, status: int, message: str, send: Callable[[bytes], None]) -> Exchange | None:
        """End what is under way with this status, and close."""
        if self.promise is not None:
            self.promise.settle(Response.text(message, status))
            self.closing = True
            return self._fulfil(self.promise, send)
        if self.idle:
            self.closing = True
            return None
        return self._refuse(HttpError(status, message), send)

    # Requests

    def _begin(self) -> bool:
        """Take the head of the next request; whether it is there."""
        head = self._head.take()
        if head is None:
            return False
        self._connection.receive_data(head)
        event = self._connection.next_event()
        assert isinstance(event, h11.Request)
        self._request = event
        fields = dict(event.headers)
        if event.method == b"CONNECT":
            if fields.get(b"content-length", b"0") != b"0" or b"transfer-encoding" in fields:
                raise HttpError(400, "CONNECT has no body (RFC 9110, 9.3.6)")
            return True
        if int(fields.get(b"content-length", b"0")) > self._max_body:
            raise HttpError(413, f"a body may have {self._max_body} bytes")
        rest = self._head.rest()
        if rest:
            self._connection.receive_data(rest)
        return True

    def _receive_body(self) -> Request | None:
        """Return the request once its body is complete."""
        while True:
            event = self._connection.next_event()
            if isinstance(event, h11.EndOfMessage):
                break
            if event is h11.NEED_DATA:
                return None
            assert isinstance(event, h11.Data)
            self._size += len(event.data)
            if self._size > self._max_body:
                raise HttpError(413, f"a body may have {self._max_body} bytes")
            self._body.append(bytes(event.data))
        self._complete = True
        self._head.feed(self._connection.trailing_data[0])
        assert self._request is not None
        headers: dict[str, str] = {}
        for name, value in self._request.headers:
            field, text = name.decode(), value.decode("latin-1")
            headers[field] = f"{headers[field]}, {text}" if field in headers else text
        target = self._request.target.decode()
        if not target.startswith("/") and target != "*":  # absolute form: RFC 9112, 3.2.2
            scheme, separator, rest = target.partition("://")
            if not separator or scheme.lower() not in ("http", "https"):
                raise HttpError(400, f"the target must be a path or a URL, not {target[:80]!r}")
            target = "/" + rest.partition("/")[2]
        method = self._request.method.decode()
        return Request(method, target, headers, b"".join(self._body), self._peer)

    def _connect(self, send: Callable[[bytes], None]) -> Exchange:
        assert self._request is not None
        target = self._request.target.decode()
        if target.startswith("/") and target != RPC_PATH:
            raise HttpError(404, f"calls are at {RPC_PATH}, not at {target[:80]}")
        self._connection.next_event()  # the end of the request: it has no body
        self._say(h11.Response(status_code=200, headers=[], reason=b"Connected"), send)
        self.tunnel = self._head.rest()
        return Exchange(f"CONNECT {target}", 200, 0, None)

    # Responses

    def _answer(
        self, request: Request, now: float, send: Callable[[bytes], None]
    ) -> Exchange | None:
        error: Exception | None = None
        try:
            outcome = self._apply(request, now)
        except HttpError as raised:
            outcome = _explain(raised)
        except Exception as raised:
            error = raised
            outcome = _failure()
        if isinstance(outcome, Promise):
            self.promise = outcome
            return None
        return self._respond(outcome, send, error)

    def _apply(self, request: Request, now: float) -> Response | Promise:
        if request.path == RPC_PATH:
            raise HttpError(405, "calls begin with CONNECT", _CONNECT_ONLY)
        if self._application is None:
            raise HttpError(404, "there are no pages here")
        outcome = self._application(request, now)
        if not isinstance(outcome, (Response, Promise)):
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
        """Answer what is no proper request; nothing behind it is read."""
        self.closing = True
        self.refusal = error
        return self._respond(_explain(error), send)

    def _respond(
        self, response: Response, send: Callable[[bytes], None], error: Exception | None = None
    ) -> Exchange:
        request = self._request
        status, body, headers = response.status, response.body, list(response.headers)
        known = {name.lower(): value for name, value in headers}
        if status == 200 and request is not None and _is_fresh(request, known.get("etag")):
            status, body = 304, b""
        if not known.keys() & {"cache-control", "etag"}:
            headers.append(("Cache-Control", "no-store"))
        if status not in (204, 304):
            headers.append(("Content-Length", str(len(body))))
        if self.closing:
            headers.append(("Connection", "close"))
        out: list[bytes] = []
        try:
            self._say(
                h11.Response(status_code=status, headers=headers, reason=_reason(status)),
                out.append,
            )
        except h11.LocalProtocolError as wrong:  # a header that cannot be sent
            return self._respond(_failure(), send, wrong)
        if body and not (request is not None and request.method == b"HEAD"):
            self._say(h11.Data(data=body), out.append)
        self._say(h11.EndOfMessage(), out.append)
        for part in out:
            send(part)
        exchange = Exchange(self._described(), status, len(body), error)
        self._next()
        return exchange

    def _described(self) -> str:
        request = self._request
        return f"{request.method.decode()} {request.target.decode()}" if request else "-"

    def _say(self, event: h11.Event, send: Callable[[bytes], None]) -> None:
        data = self._connection.send(event)
        if data:
            send(data)

    def _next(self) -> None:
        """Get ready for the next request, if there can be one."""
        old = self._connection
        if old.our_state is not h11.DONE or old.their_state is not h11.DONE:
            self.closing = True
        self._connection = _make_connection()
        self._request = None
        self._complete = False
        self._body = []
        self._size = 0
        self._stuck = self.closing


def _make_connection() -> h11.Connection:
    # One for each request, so that each head is looked at before this sees it.
    return h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD)


def _explain(error: HttpError) -> Response:
    return Response.text(error.message, error.status, error.headers)


def _failure() -> Response:
    return Response.text("the server failed to answer; its log says more", 500)


def _reason(status: int) -> bytes:
    try:
        return HTTPStatus(status).phrase.encode()
    except ValueError:
        return b""


def _is_fresh(request: h11.Request, etag: str | None) -> bool:
    """Whether the client has this already (RFC 9110, 13.1.2)."""
    if etag is None or request.method not in (b"GET", b"HEAD"):
        return False
    for name, value in request.headers:
        if name == b"if-none-match":
            shown = [tag.strip().removeprefix("W/") for tag in value.decode("latin-1").split(",")]
            return "*" in shown or etag.removeprefix("W/") in shown
    return False
