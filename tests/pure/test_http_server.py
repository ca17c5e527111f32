"""A server's end that is spoken to in HTTP: requests, responses, promises and CONNECT."""

from typing import Any, cast

import pytest

from rpc_fuzz.wire import line, options
from rpc_proto import (
    ConnectionTerminated,
    HandshakeCompleted,
    HttpServed,
    ResponsePromised,
    ServerConfig,
    ServerPort,
    State,
    Wish,
)
from rpc_proto.http import HttpError, Promise, Request, Response, Router
from support.driving import caused

HOST = b"Host: x\r\n\r\n"


class Pages:
    """An application that remembers what it was asked."""

    def __init__(self, answer: Any = None) -> None:
        self.requests: list[Request] = []
        self._answer = answer or (lambda request, now: Response.text(f"{request.path} at {now:g}"))

    def __call__(self, request: Request, now: float) -> Response | Promise:
        self.requests.append(request)
        return self._answer(request, now)


def serve(answer: Any = None, **config: Any) -> tuple[ServerPort, Pages]:
    pages = Pages(answer)
    return ServerPort(ServerConfig(**config), now=0.0, application=pages), pages


def get(path: str, *fields: str) -> bytes:
    return "\r\n".join([f"GET {path} HTTP/1.1", *fields, "Host: x\r\n\r\n"]).encode()


def statuses(connection: ServerPort) -> list[int]:
    return [
        int(text.split()[1])
        for text in connection.data_to_send().decode("latin-1").split("\r\n")
        if text.startswith("HTTP/1.1 ")
    ]


def exchanges(events: list[Any]) -> list[tuple[str, int]]:
    return [(event.request, event.status) for event in events if isinstance(event, HttpServed)]


def test_a_request_is_answered_by_the_application_with_the_time():
    connection, pages = serve()
    events = caused(connection.receive_data, 3.0, get("/a%20b?x=1&y=%26", "X-A: 1", "x-a: 2"))
    assert exchanges(events) == [("GET /a%20b?x=1&y=%26", 200)]
    assert connection.data_to_send() == (
        b"HTTP/1.1 200 OK\r\nContent-Type: text/plain; charset=utf-8\r\n"
        b"Cache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\n"
        b"Content-Length: 10\r\n\r\n/a b at 3\n"
    )
    (request,) = pages.requests
    assert (request.path, request.query) == ("/a b", {"x": "1", "y": "&"})
    assert request.headers["x-a"] == "1, 2"
    assert connection.state is State.OPEN


def test_bytes_one_at_a_time_give_the_same():
    connection, pages = serve()
    events = []
    for byte in b"POST /a HTTP/1.1\r\nContent-Length: 3\r\n" + HOST + b"abc" + get("/b"):
        events += caused(connection.receive_data, 0.0, bytes([byte]))
    assert exchanges(events) == [("POST /a", 200), ("GET /b", 200)]
    assert [request.body for request in pages.requests] == [b"abc", b""]


def test_a_chunked_body_arrives_whole():
    connection, pages = serve()
    head = b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n" + HOST
    assert exchanges(caused(connection.receive_data, 0.0, head + b"3\r\nabc\r\n2\r\nde\r\n")) == []
    assert exchanges(caused(connection.receive_data, 0.0, b"0\r\n\r\n")) == [("POST /", 200)]
    assert pages.requests[0].body == b"abcde"


def test_head_has_the_length_and_no_body():
    connection, _ = serve()
    connection.receive_data(0.0, b"HEAD / HTTP/1.1\r\n" + HOST)
    sent = connection.data_to_send()
    assert b"Content-Length: 7\r\n" in sent
    assert sent.endswith(b"\r\n\r\n")


def test_who_has_it_already_gets_304_without_a_body():
    page = Response.text("x", headers=[("ETag", '"1"')])
    connection, _ = serve(lambda request, now: page)
    connection.receive_data(0, get("/", 'If-None-Match: "0", W/"1"') + get("/", "If-None-Match: 7"))
    assert statuses(connection) == [304, 200]


def test_close_and_http_1_0_end_the_connection_behind_the_response():
    for request in (get("/", "Connection: close"), b"GET / HTTP/1.0\r\n\r\n"):
        connection, _ = serve()
        events = caused(connection.receive_data, 0.0, request + get("/never"))
        assert exchanges(events) == [("GET /", 200)]
        assert isinstance(events[-1], ConnectionTerminated)
        assert events[-1].error is None
        assert b"\r\nConnection: close\r\n" in connection.data_to_send()
        assert connection.state is State.CLOSING


def test_an_absolute_target_is_a_path():
    connection, pages = serve()
    connection.receive_data(0.0, get("http://x:80/a?b=1") + get("HTTP://x"))
    assert [request.path for request in pages.requests] == ["/a", "/"]


def test_pages_without_an_application_do_not_exist():
    connection = ServerPort(now=0.0)
    connection.receive_data(0.0, get("/"))
    assert statuses(connection) == [404]


@pytest.mark.fault(38)
def test_other_methods_at_the_path_of_the_calls_get_405_and_unknown_paths_404():
    router = Router()
    router.add("/known", lambda request, now: Response.text("x"), ["POST"])
    connection, _ = serve(router)
    events = caused(
        connection.receive_data,
        0.0,
        get("/rpc") + b"POST /rpc HTTP/1.1\r\n" + HOST + get("/other") + get("/known"),
    )
    assert [status for _, status in exchanges(events)] == [405, 405, 404, 405]
    sent = connection.data_to_send()
    assert sent.count(b"\r\nAllow: CONNECT\r\n") == 2
    assert b"\r\nAllow: POST\r\n" in sent
    connection.receive_data(0.0, b"CONNECT /other HTTP/1.1\r\n" + HOST)
    assert statuses(connection) == [404]
    assert connection.state is State.CLOSING


@pytest.mark.parametrize(
    "head",
    [
        b"CONNECT x:7000 HTTP/1.1\r\nHost: x:7000\r\n\r\n",
        b"CONNECT /rpc HTTP/1.0\n\n",
        b"CONNECT /rpc HTTP/1.0\r\n\r\n",
        b"CONNECT [::1]:7000 HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n",
    ],
)
@pytest.mark.fault(41)
def test_bytes_behind_a_connect_that_is_accepted_are_those_of_a_call(head):
    connection, _ = serve()
    events = caused(connection.receive_data, 0.0, get("/page") + head + line(options(codec="json")))
    assert exchanges(events)[1][1] == 200
    assert isinstance(events[-1], HandshakeCompleted)
    sent = connection.data_to_send()
    assert b"\r\n\r\n{" in sent
    assert connection.state is State.OPEN


@pytest.mark.fault(41)
def test_the_end_behind_the_bytes_of_a_connect_is_kept():
    connection, _ = serve(high_water=1024)
    head = b"CONNECT x:1 HTTP/1.1\r\n" + HOST
    pages = b"".join(get("/" + "x" * 500) for _ in range(5))
    events = caused(connection.receive_data, 0.0, pages + head + line(options()))
    assert len(exchanges(events)) < 5
    events = caused(connection.receive_eof, 0.0)
    for _ in range(10):
        connection.data_to_send()
        now = connection.next_timeout()
        if now is None:
            break
        events += caused(connection.handle_timeout, now)
        if any(isinstance(event, HandshakeCompleted) for event in events):
            break
    assert any(isinstance(event, HandshakeCompleted) for event in events)
    assert isinstance(events[-1], ConnectionTerminated)
    assert events[-1].error is None


@pytest.mark.fault(41)
def test_bytes_behind_a_connect_that_is_refused_are_not_parsed():
    connection, _ = serve()
    events = caused(
        connection.receive_data,
        0.0,
        b"CONNECT /no HTTP/1.1\r\n" + HOST + line(options()) + get("/"),
    )
    assert [status for _, status in exchanges(events)] == [404]
    events = caused(connection.receive_data, 0.0, get("/"))
    assert events == []
    assert statuses(connection) == [404]


def test_a_tunnel_leads_to_calls_and_not_to_http_again():
    connection, _ = serve()
    events = caused(connection.receive_data, 0.0, b"CONNECT x:1 HTTP/1.1\r\n" + HOST + get("/"))
    assert exchanges(events) == [("CONNECT x:1", 200)]
    assert isinstance(events[-1], ConnectionTerminated)
    assert b'"error"' in connection.data_to_send()


@pytest.mark.parametrize("field", [b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n"])
def test_connect_with_a_body_is_refused(field):
    connection, _ = serve()
    connection.receive_data(0.0, b"CONNECT x:1 HTTP/1.1\r\n" + field + HOST)
    assert statuses(connection) == [400]


# Limits


@pytest.mark.fault(40)
def test_a_request_line_over_8_kib_gets_414():
    connection, _ = serve()
    events = caused(connection.receive_data, 0.0, b"GET /" + b"x" * 8192)
    assert exchanges(events) == [("-", 414)]
    assert statuses(connection) == [414]
    assert connection.state is State.CLOSING


@pytest.mark.fault(40)
def test_over_100_fields_or_over_32_kib_of_head_get_431():
    fields = b"".join(b"X-%d: 1\r\n" % number for number in range(100))
    for head in (
        b"GET / HTTP/1.1\r\n" + fields + HOST,
        b"GET / HTTP/1.1\r\nX: " + b"x" * 32 * 1024,
        b"GET / HTTP/1.1\r\nX: " + b"x" * 32 * 1024 + b"\r\n" + HOST,
    ):
        connection, _ = serve()
        connection.receive_data(0.0, head)
        assert statuses(connection) == [431]
        assert connection.state is State.CLOSING


@pytest.mark.fault(40)
def test_a_head_that_dribbles_in_ends_at_the_deadline():
    connection, _ = serve(handshake_timeout=5.0)
    for second in range(5):
        connection.receive_data(float(second), b"GET"[second : second + 1] or b"x")
    assert connection.next_timeout() == 5.0
    events = caused(connection.handle_timeout, 5.0)
    assert exchanges(events) == [("-", 408)]
    assert isinstance(events[-1], ConnectionTerminated)
    assert statuses(connection) == [408]
    assert connection.state is State.CLOSING


def test_a_connection_that_idles_between_requests_is_closed_without_a_word():
    connection, _ = serve(handshake_timeout=5.0)
    connection.receive_data(3.0, get("/"))
    connection.data_to_send()
    assert connection.next_timeout() == 8.0
    events = caused(connection.handle_timeout, 8.0)
    assert [type(event) for event in events] == [ConnectionTerminated]
    assert connection.data_to_send() == b""


def test_a_body_over_the_limit_gets_413():
    length = b"POST / HTTP/1.1\r\nContent-Length: 11\r\n" + HOST
    chunked = b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n" + HOST
    for request in (length, chunked + b"8\r\n12345678\r\n3\r\nabc\r\n"):
        connection, pages = serve(max_http_body=10)
        connection.receive_data(0.0, request)
        assert statuses(connection) == [413]
        assert pages.requests == []
        assert connection.state is State.CLOSING


def test_a_client_that_asks_first_may_send_its_body():
    connection, pages = serve()
    connection.receive_data(
        0.0, b"POST / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 2\r\n" + HOST
    )
    assert statuses(connection) == [100]
    connection.receive_data(0.0, b"ab")
    assert pages.requests[0].body == b"ab"
    assert statuses(connection) == [200]


def test_many_requests_at_once_are_served_in_parts_and_wait_for_a_peer_that_does_not_read():
    connection, _ = serve(lambda request, now: Response.text("x" * 100_000), high_water=1024 * 1024)
    count = len(exchanges(caused(connection.receive_data, 0.0, get("/") * 40)))
    assert connection.outbound < 1024 * 1024 + 101_000
    assert connection.next_timeout() > 0.0
    assert (connection.wish is Wish.READ) is (connection.outbound < 1024 * 1024)
    now = 0.0
    while count < 40:
        connection.data_to_send()
        now = max(now, connection.next_timeout())
        count += len(exchanges(caused(connection.handle_timeout, now)))
        assert connection.next_timeout() > now
    assert now < 0.1


@pytest.mark.fault(46)
def test_a_peer_that_asks_and_never_reads_is_dropped_at_the_write_timeout():
    connection, pages = serve(
        lambda request, now: Response.text("x" * 100_000),
        high_water=1024 * 1024,
        handshake_timeout=2.0,
        write_timeout=30.0,
    )
    events = caused(connection.receive_data, 0.0, get("/") * 2000)
    while connection.state is not State.CLOSED:
        now = connection.next_timeout()
        assert connection.outbound < 1024 * 1024 + 101_000
        events += caused(connection.handle_timeout, now)
    assert connection.wish is Wish.PAUSE or connection.outbound == 0
    assert 30.0 <= now < 31.0
    assert len(pages.requests) == 1
    assert "did not read" in str(events[-1].error)


def test_a_peer_that_reads_slowly_gets_every_response():
    connection, _ = serve(
        lambda request, now: Response.text("x" * 100_000), high_water=1024, handshake_timeout=2.0
    )
    events = caused(connection.receive_data, 0.0, get("/") * 10)
    for second in range(0, 100, 10):
        for at in range(second, second + 10):
            events += caused(connection.handle_timeout, float(at))
        connection.data_to_send()
    assert [status for _, status in exchanges(events)] == [200] * 10


def test_one_byte_chunks_take_no_more_memory_than_their_body():
    from tracemalloc import get_traced_memory, start, stop

    connection, pages = serve()
    connection.receive_data(0.0, b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n" + HOST)
    now = 0.0
    start()
    for _ in range(100):
        connection.receive_data(now, b"1\r\na\r\n" * 1000)
        while (at := connection.next_timeout()) < now + 0.2:
            now = max(now, at)
            connection.handle_timeout(now)
    _, most = get_traced_memory()
    stop()
    connection.receive_data(now, b"0\r\n\r\n")
    assert pages.requests[0].body == b"a" * 100_000
    assert most < 400_000


def test_tiny_chunks_are_read_in_parts():
    connection, _ = serve()
    connection.receive_data(
        0.0, b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n" + HOST + b"1\r\na\r\n" * 5000
    )
    assert 0.0 < connection.next_timeout() < 0.1


def test_requests_that_wait_for_an_earlier_one_are_bounded():
    connection, _ = serve(lambda request, now: Promise(9.0, lambda now: Response.text("late")))
    connection.receive_data(0.0, get("/"))
    assert connection.wish is Wish.READ
    connection.receive_data(0.0, get("/") * 2000)
    assert connection.wish is Wish.PAUSE


# Those who are too many


def test_a_peer_that_is_turned_away_hears_it_in_its_own_language():
    connection, pages = serve()
    connection.turn_away(0.0, "resource_exhausted", "9 connections")
    events = caused(connection.receive_data, 0.5, get("/") * 2)
    assert exchanges(events) == [("GET /", 503)]
    assert pages.requests == []
    assert connection.data_to_send().endswith(b"\r\n\r\n9 connections\n")
    assert connection.state is State.CLOSING


def test_a_peer_that_connects_is_turned_away_as_a_caller():
    connection, _ = serve()
    connection.turn_away(0.0, "resource_exhausted", "full")
    events = caused(connection.receive_data, 0.5, b"CONNECT x:1 HTTP/1.1\r\n" + HOST)
    assert exchanges(events) == [("CONNECT x:1", 200)]
    assert b'\r\n\r\n{"magic":1380991824,"error":{"code":"resource_exhausted"' in (
        connection.data_to_send()
    )
    assert connection.state is State.CLOSING


@pytest.mark.fault(40)
def test_a_peer_that_is_turned_away_and_dribbles_has_a_second():
    connection, _ = serve()
    connection.turn_away(0.0, "unavailable", "full")
    connection.receive_data(0.5, b"GET / HTTP/1.1\r\n")
    assert exchanges(caused(connection.handle_timeout, 1.0)) == [("-", 503)]
    assert connection.state is State.CLOSING


def test_a_peer_that_speaks_already_is_turned_away_at_once():
    connection, _ = serve()
    connection.receive_data(0.0, b"GET")
    assert exchanges(caused(connection.turn_away, 0.0, "unavailable", "full")) == [("-", 503)]


# Promises


def promised(**config: Any) -> tuple[ServerPort, Promise, list[Any]]:
    promises: list[Promise] = []
    told: list[Any] = []

    def answer(request: Request, now: float) -> Promise:
        promises.append(
            Promise(
                now + 20.0, lambda now: Response.text(f"late at {now:g}"), lambda: told.append(1)
            )
        )
        return promises[0]

    connection, _ = serve(answer, **config)
    events = caused(connection.receive_data, 0.0, get("/"))
    assert [type(event) for event in events] == [ResponsePromised]
    assert events[0].promise is promises[0]
    assert connection.next_timeout() == 20.0
    return connection, promises[0], told


def test_a_promise_is_sent_when_it_is_settled():
    connection, promise, _ = promised()
    woken: list[int] = []
    promise.on_settled(lambda: woken.append(1))
    promise.settle(Response.text("now"))
    promise.settle(Response.text("again"))
    assert woken == [1]
    assert connection.next_timeout() == 0.0
    assert exchanges(caused(connection.handle_timeout, 1.0)) == [("GET /", 200)]
    assert connection.data_to_send().endswith(b"\r\n\r\nnow\n")
    assert connection.next_timeout() == 11.0


def test_a_promise_that_was_settled_already_wakes_at_once():
    promise = Promise(1.0, lambda now: Response())
    promise.settle(Response())
    woken: list[int] = []
    promise.on_settled(lambda: woken.append(1))
    assert woken == [1]


def test_a_promise_is_answered_at_its_deadline():
    connection, _, told = promised()
    assert exchanges(caused(connection.handle_timeout, 20.0)) == [("GET /", 200)]
    assert connection.data_to_send().endswith(b"\r\n\r\nlate at 20\n")
    assert told == []


@pytest.mark.parametrize("end", ["receive_eof", "connection_lost"])
def test_a_promise_is_given_back_when_the_client_goes(end):
    connection, promise, told = promised()
    events = caused(getattr(connection, end), 1.0)
    assert exchanges(events) == [("GET /", 499)]
    assert isinstance(events[-1], ConnectionTerminated)
    assert promise.abandoned
    assert told == [1]
    promise.settle(Response.text("too late"))
    assert connection.data_to_send() == b""


def test_requests_behind_a_promise_are_not_served_when_the_client_has_gone():
    connection, _, told = promised()
    connection.receive_data(0.0, get("/never"))
    events = caused(connection.receive_eof, 1.0)
    assert exchanges(events) == [("GET /", 499)]
    assert told == [1]
    assert connection.state is State.CLOSING
    assert connection.data_to_send() == b""


def test_a_promise_that_is_settled_when_the_client_half_closes_is_sent():
    connection, promise, _ = promised()
    promise.settle(Response.text("now"))
    assert exchanges(caused(connection.receive_eof, 1.0)) == [("GET /", 200)]


def test_promises_that_are_due_at_once_are_answered_at_once():
    connection, _ = serve(lambda request, now: Promise(now, lambda now: Response.text("x")))
    events = caused(connection.receive_data, 7.0, get("/") * 3)
    assert [status for _, status in exchanges(events)] == [200, 200, 200]
    assert connection.next_timeout() > 7.0


def test_a_promise_is_broken_when_the_server_stops():
    connection, _, _ = promised()
    connection.shutdown(1.0, grace=5.0)
    assert statuses(connection) == [503]
    assert connection.state is State.CLOSING


# Applications that fail


def test_an_application_that_raises_gets_500_and_its_error_is_told_here_only():
    def fail(request: Request, now: float) -> Response:
        raise RuntimeError("secret")

    connection, _ = serve(fail)
    (event,) = caused(connection.receive_data, 0.0, get("/"))
    assert (event.status, str(event.error)) == (500, "secret")
    sent = connection.data_to_send()
    assert b"secret" not in sent
    assert connection.state is State.OPEN


@pytest.mark.parametrize(
    "answer",
    [
        lambda request, now: "text",
        lambda request, now: Promise(float("inf"), lambda now: Response()),
        lambda request, now: Response(200, b"", [("X", "a\r\nSet-Cookie: b")]),
        lambda request, now: Response(200, b"", [("X", "\u20ac")]),
        lambda request, now: Response(200, b"", cast(Any, [("X", 5)])),
        lambda request, now: Response(200, cast(Any, "text")),
        lambda request, now: Response(204, b"text"),
        lambda request, now: Response(101),
        lambda request, now: Response(99),
        lambda request, now: Response(200, b"text", [("Content-Length", "5")]),
        lambda request, now: Response(200, b"text", [("transfer-encoding", "chunked")]),
        lambda request, now: Promise(now, lambda now: None),
        lambda request, now: Promise(now, lambda now: cast(Any, "text")),
        lambda request, now: Response.json(float("nan")),
    ],
)
def test_an_application_that_answers_nonsense_gets_500(answer):
    connection, _ = serve(answer)
    *_, event = caused(connection.receive_data, 0.0, get("/"))
    assert event.status == 500
    assert event.error is not None
    sent = connection.data_to_send()
    assert sent.startswith(b"HTTP/1.1 500 ")
    assert b"Set-Cookie" not in sent
    assert connection.state is State.OPEN


def test_an_application_says_what_is_wrong_by_raising():
    def refuse(request: Request, now: float) -> Response:
        raise HttpError(403, "not for you", [("X-Why", "because")])

    connection, _ = serve(refuse)
    (event,) = caused(connection.receive_data, 0.0, get("/"))
    assert (event.status, event.error) == (403, None)
    assert b"\r\nX-Why: because\r\n" in connection.data_to_send()


def test_a_promise_whose_end_fails_gets_500():
    def fail(now: float) -> Response:
        raise RuntimeError("late")

    connection, _ = serve(lambda request, now: Promise(now + 1.0, fail))
    connection.receive_data(0.0, get("/"))
    (event,) = caused(connection.handle_timeout, 1.0)
    assert (event.status, str(event.error)) == (500, "late")


# Router


def test_a_path_with_a_slash_at_its_end_takes_what_is_below_it():
    router = Router()
    router.add("/a/", lambda request, now: Response.text("below a"))
    router.add("/a/b/", lambda request, now: Response.text("below b"))
    router.add("/a/c", lambda request, now: Response.text("c"))

    def body(path: str) -> bytes:
        response = router(Request("GET", path), 0.0)
        assert isinstance(response, Response)
        return response.body

    assert body("/a/") == body("/a/x") == body("/a/cc") == b"below a\n"
    assert body("/a/b/x/y") == b"below b\n"
    assert body("/a/c") == b"c\n"
    for path in ("/a", "/", "", "*"):
        with pytest.raises(HttpError, match="nothing found"):
            router(Request("GET", path), 0.0)


def test_what_cannot_be_routed_is_refused():
    router = Router()
    router.add("/a", lambda request, now: Response())
    with pytest.raises(ValueError, match="GET /a already has an application"):
        router.add("/a", lambda request, now: Response())
    with pytest.raises(ValueError, match="must begin with /"):
        router.add("a", lambda request, now: Response())
    with pytest.raises(ValueError, match="methods are"):
        router.add("/b", lambda request, now: Response(), ["get"])
    router.remove("/a")
    with pytest.raises(ValueError, match="has no application"):
        router.remove("/a")
