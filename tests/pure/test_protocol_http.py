"""docs/protocol.md, "HTTP CONNECT": what leads to the option handshake, and what does not."""

import json

import pytest

from rpc_fuzz.pair import termination
from rpc_fuzz.wire import (
    PING,
    PONG,
    START,
    frame,
    frames_in,
    server_line,
)
from rpc_proto import (
    ClientConfig,
    ClientConnection,
    ServerConfig,
    ServerPort,
    State,
)
from support.driving import caused
from support.protocol_page import (
    options_with,
    page,
)

# HTTP CONNECT


@page(
    "Any 2xx accepts, whatever `Content-Length` or `Transfer-Encoding` it has: from the "
    "byte after its empty line on, the connection is as described on this page, and the "
    "client sends its option line.",
    "The client skips informational answers (1xx) before it.",
    "It must send nothing after the empty line before the answer.",
)
def test_client_sends_nothing_behind_connect_before_the_answer() -> None:
    client = ClientConnection(now=START, connect="x:1")
    assert client.data_to_send() == b"CONNECT x:1 HTTP/1.1\r\nHost: x:1\r\n\r\n"
    client.start_call(START, "S.m")
    assert client.data_to_send() == b""
    client.receive_data(START, b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.0 299 Fine\r\n")
    assert client.data_to_send() == b""
    client.receive_data(START, b"Content-Length: 9\r\n\r\n")
    assert client.data_to_send().startswith(b'{"magic"')


@page("a client must keep the bytes that follow that answer.")
def test_client_keeps_what_follows_the_answer_to_connect() -> None:
    client = ClientConnection(ClientConfig(codec="json"), now=START, connect="x:1")
    refused = b'{"magic":1380991824,"error":{"code":"unavailable","message":""}}\n'
    events = caused(client.receive_data, START, b"HTTP/1.1 200 Connected\r\n\r\n" + refused)
    assert termination(events).code == "unavailable"


@page(
    "An answer that begins with `{` is the line of a server that refuses before it has read",
)
def test_line_instead_of_an_answer_to_connect_is_a_refusal() -> None:
    client = ClientConnection(now=START, connect="x:1")
    line_of_a_full_server = b'{"magic":1380991824,"error":{"code":"unavailable","message":""}}\n'
    assert (
        termination(caused(client.receive_data, START, line_of_a_full_server)).code == "unavailable"
    )


@page("A client should limit the answer (32 KiB for all of it) and the time it takes")
def test_client_limits_the_answer_to_connect() -> None:
    client = ClientConnection(now=START, connect="x:1")
    events = caused(client.receive_data, START, b"HTTP/1.1 200 Fine\r\n" + b"A: b\r\n" * 6000)
    assert termination(events).code == "invalid_argument"
    client = ClientConnection(now=START, connect="x:1")
    assert termination(caused(client.handle_timeout, START + 10)).code == "deadline_exceeded"


def http(data: bytes) -> tuple[bytes, ServerPort]:
    server = ServerPort(now=START)
    server.receive_data(START, data)
    return server.data_to_send(), server


@page(
    "1 200 Connected and an empty line, without any field.",
    "Everything after the empty line of the *request* is then the connection as "
    "described on this page, including what was sent before the answer; so the server's "
    "line follows its 200 only after the client's.",
    "A server accepts a CONNECT whose target is a host (IPv6 in brackets) and a port from 1 to "
    "65535, or the path `/rpc`; it need not compare host and port with its own.",
    "It ignores header fields that it does not know.",
    "lines may end with LF alone in a CONNECT without any CR",
)
@pytest.mark.parametrize(
    "data",
    [
        b"CONNECT x:1 HTTP/1.1\r\nHost: other:9\r\n\r\n",
        b"CONNECT [::1]:65535 HTTP/1.1\r\nHost: x\r\nLater: 1\r\n\r\n",
        b"CONNECT /rpc HTTP/1.1\r\nHost: x\r\n\r\n",
        b"CONNECT /rpc HTTP/1.0\n\n",
    ],
)
def test_connect_is_accepted(data: bytes) -> None:
    out, server = http(data + options_with("") + frame(PING, 3))
    head, _, rest = out.partition(b"\r\n\r\n")
    assert head == b"HTTP/1.1 200 Connected"
    reply, _, frames = rest.partition(b"\n")
    assert json.loads(reply)["codec"] == "json"
    assert [(one.type, one.call_id) for one in frames_in(frames)] == [(PONG, 3)]
    assert server.state is State.OPEN


@page(
    "an upper-case letter after the request is refused like any other byte.",
    "The time for the option handshake starts again with the 200.",
)
def test_http_does_not_come_back_behind_connect() -> None:
    out, server = http(b"CONNECT x:1 HTTP/1.1\r\nHost: x:1\r\n\r\n")
    assert out == b"HTTP/1.1 200 Connected\r\n\r\n"
    assert server.next_timeout() == START + 10
    server.receive_data(START, b"G")
    assert server_line(server.data_to_send())["error"]["code"] == "invalid_argument"


STATUSES = {
    b"CONNECT http://x:1/rpc HTTP/1.1\r\nHost: x:1\r\n\r\n": (400, True),
    b"CONNECT x:0 HTTP/1.1\r\nHost: x:1\r\n\r\n": (400, True),
    b"CONNECT x HTTP/1.1\r\nHost: x:1\r\n\r\n": (400, True),
    b"CONNECT x:1 HTTP/1.1\r\n\r\n": (400, True),
    b"CONNECT x:1 HTTP/1.1\r\nHost: x:1\r\nContent-Length: 1\r\n\r\n": (400, True),
    b"GET / HTTP/1.1\nHost: x\n\n": (400, True),
    b"CONNECT /rpc/ HTTP/1.1\r\nHost: x\r\n\r\n": (404, True),
    b"GET / HTTP/1.1\r\nHost: x\r\n\r\n": (404, False),
    b"GET http://y/none?a=b HTTP/1.1\r\nHost: x\r\n\r\n": (404, False),
    b"GET /rpc HTTP/1.1\r\nHost: x\r\n\r\n": (405, False),
    b"GET http://y/rpc HTTP/1.1\r\nHost: x\r\n\r\n": (405, False),
    b"GET /" + b"x" * 9000: (414, True),
    b"GET / HTTP/1.1\r\nHost: x\r\nExpect: more\r\n\r\n": (417, True),
    b"GET / HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 100 + b"\r\n": (431, True),
    b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n": (501, True),
    b"PRI * HTTP/2.0\r\n\r\n": (505, True),
}


@page(
    "what is not HTTP or could be understood in two ways; a CONNECT with a body or another target",
    "CONNECT to a path other than `/rpc`",
    "another method: there is no page; at `/rpc`, with `Allow: CONNECT`",
    "a request line over 8192 bytes",
    "an `Expect` other than `100-continue`",
    "over 100 fields, or over 32768 bytes of head, with its empty line",
    "a `Transfer-Encoding` other than `chunked`",
    "Before the CONNECT a connection may carry other requests",
    "A method other than CONNECT may name its target as a path or in absolute form",
    "The target of a CONNECT may not be in absolute form.",
    'where the table says "closes" it has `Connection: close`',
)
@pytest.mark.parametrize(("data", "expected"), STATUSES.items())
def test_other_requests_have_the_status_of_the_table(
    data: bytes, expected: tuple[int, bool]
) -> None:
    out, server = http(data)
    head, _, body = out.partition(b"\r\n\r\n")
    closes = server.state is State.CLOSING
    assert (int(head[9:12]), closes) == expected
    assert (b"\r\nConnection: close" in head) is closes
    assert b"\r\nContent-Length: %d" % len(body) in head


@page(
    "A server with too many connections still answers a CONNECT with 200, and refuses at once "
    "after the 200, with a line of the option handshake, so that the client learns the code.",
)
def test_server_with_too_many_connections_refuses_behind_the_200() -> None:
    server = ServerPort(now=START)
    server.turn_away(START, "resource_exhausted", "full")
    server.receive_data(START, b"CONNECT x:1 HTTP/1.1\r\nHost: x:1\r\n\r\n")
    head, _, rest = server.data_to_send().partition(b"\r\n\r\n")
    assert head == b"HTTP/1.1 200 Connected"
    assert server_line(rest)["error"]["code"] == "resource_exhausted"
    server = ServerPort(now=START)
    server.turn_away(START, "resource_exhausted", "full")
    server.receive_data(START, b"GET / HTTP/1.1\r\nHost: x:1\r\n\r\n")
    assert server.data_to_send().startswith(b"HTTP/1.1 503 ")


@page(
    "a request that is not complete in time",
    "A request must be complete within the time for the option handshake, counted from the answer "
    "before; a connection that is silent for that long between requests is closed without an "
    "answer.",
)
def test_request_that_is_late_is_408_and_silence_is_closed_without_an_answer() -> None:
    whole = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
    for part, status in ((whole[:9], b"HTTP/1.1 408 "), (b"", b"")):
        server = ServerPort(ServerConfig(handshake_timeout=2.0), now=START)
        server.receive_data(START + 1, whole)
        assert server.data_to_send().startswith(b"HTTP/1.1 404 ")
        server.receive_data(START + 2, part)
        server.handle_timeout(START + 2.9)
        assert server.state is State.OPEN
        server.handle_timeout(START + 3)
        assert server.data_to_send().startswith(status)
        assert server.state is not State.HANDSHAKE
