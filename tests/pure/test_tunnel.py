"""HTTP CONNECT from the client's end: the request, every kind of answer, and the options behind."""

import subprocess
import sys
from base64 import b64encode
from typing import Any

import pytest

from rpc_fuzz.pair import only, outcome, termination
from rpc_fuzz.wire import START, Wire, answer, frames_in, line, server_line
from rpc_proto import (
    CallFailed,
    ClientConnection,
    ConnectionTerminated,
    HandshakeCompleted,
    HandshakeError,
    ServerPort,
    State,
)
from rpc_proto.http.tunnel import MAX_ANSWER, Tunnel
from rpc_proto.trace import Trace, TracedClientConnection, replay
from support.driving import caused

OK = b"HTTP/1.1 200 OK\r\n\r\n"
ACCEPTED = line(answer())


def cuts(data: bytes) -> list[list[bytes]]:
    """The bytes whole, one by one, and in two pieces at every place."""
    pieces = [[data[:at], data[at:]] for at in range(1, len(data))]
    return [[data], [data[at : at + 1] for at in range(len(data))], *pieces]


def ask(pieces: list[bytes], **options: Any) -> bytes | str:
    """What a tunnel makes of an answer in pieces: what came through it, or why there is none."""
    tunnel = Tunnel("example.org:7000", **options)
    try:
        for place, piece in enumerate(pieces):
            behind = tunnel.receive_data(piece)
            if behind is not None:
                return behind + b"".join(pieces[place + 1 :])
        return str(tunnel.receive_eof())
    except HandshakeError as error:
        return str(error)


def refusal(data: bytes, **options: Any) -> str:
    """The error that an answer causes, however it is cut."""
    whole, *others = [ask(pieces, **options) for pieces in cuts(data)]
    assert set(others) == {whole}
    assert isinstance(whole, str)
    return whole


# The request


def test_request_names_host_and_port_twice() -> None:
    request = b"CONNECT example.org:7000 HTTP/1.1\r\nHost: example.org:7000\r\n\r\n"
    assert Tunnel("example.org:7000").request == request


def test_ipv6_address_stands_in_brackets_without_its_zone() -> None:
    assert Tunnel("[fe80::1%eth0]:1").request.startswith(b"CONNECT [fe80::1]:1 HTTP/1.1\r\n")


def test_credentials_travel_in_base64() -> None:
    secret = b"al\xc3\xafce:pass:word\r\n"
    header = b"\r\nProxy-Authorization: Basic " + b64encode(secret) + b"\r\n"
    assert header in Tunnel("h:1", credentials=secret).request


@pytest.mark.parametrize(
    "target", ["", "h", "h:", "h:0", ":1", "h:1/", "h:1\r\nX: y", "h\r\nX: y:1", "a b:1", "u@h:1"]
)
def test_target_that_is_no_host_and_port_is_refused(target: str) -> None:
    with pytest.raises(ValueError, match=r"host|port"):
        Tunnel(target)


# Success


@pytest.mark.parametrize(
    "head",
    [
        OK,
        b"HTTP/1.0 200 Connection established\r\nProxy-agent: tinyproxy\r\n\r\n",
        b"HTTP/1.1 204 Nothing\r\n\r\n",
        b"HTTP/1.1 200\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" + OK,
        b"HTTP/1.1 103 Early Hints\r\nLink: <x>\r\n\r\nHTTP/1.1 102 Wait\r\n\r\n" + OK,
    ],
)
@pytest.mark.fault(42)
def test_bytes_behind_a_success_are_what_came_through(head: bytes) -> None:
    for behind in (b"", b"\x00{", b"5\r\nabcde\r\n0\r\n\r\n", OK):
        assert {ask(pieces) for pieces in cuts(head + behind)} == {behind}


@pytest.mark.fault(42)
def test_bytes_behind_a_success_may_be_many() -> None:
    behind = bytes(range(256)) * 1024
    assert ask([OK + behind]) == behind


@pytest.mark.fault(42)
def test_answer_may_be_as_long_as_the_limit() -> None:
    head = OK[:-2] + b"X: "
    head += b"y" * (MAX_ANSWER - len(head) - 4) + b"\r\n\r\n"
    assert len(head) == MAX_ANSWER
    for size in (1, 1000, len(head) - 1, len(head) + 3):
        data = head + b"rpc"
        assert ask([data[at : at + size] for at in range(0, len(data), size)]) == b"rpc"


# Refusals


@pytest.mark.fault(42)
@pytest.mark.parametrize(
    ("status", "code"),
    [
        ("302 Found", "unavailable"),
        ("400 Bad Request", "unavailable"),
        ("403 Forbidden", "permission_denied"),
        ("404 Not Found", "unavailable"),
        ("405 Method Not Allowed", "unimplemented"),
        ("500 Internal Server Error", "unavailable"),
        ("501 Not Implemented", "unimplemented"),
        ("502 Bad Gateway", "unavailable"),
        ("503 Service Unavailable", "unavailable"),
        ("504 Gateway Timeout", "unavailable"),
        ("600", "unavailable"),
    ],
)
def test_refusal_quotes_the_status(status: str, code: str) -> None:
    text = refusal(f"HTTP/1.1 {status}\r\nContent-Length: 2\r\n\r\nno".encode())
    assert text == f"{code}: the server answered CONNECT example.org:7000 with HTTP {status}"


@pytest.mark.fault(42)
@pytest.mark.parametrize("status", ["407 Proxy Authentication Required", "401 Unauthorized"])
def test_proxy_that_wants_credentials_and_one_that_refuses_them_differ(status: str) -> None:
    data = f"HTTP/1.1 {status}\r\nProxy-Authenticate: Basic\r\n\r\n".encode()
    quote = f"HTTP {status}: it"
    assert refusal(data).endswith(f"{quote} requires credentials")
    shown = refusal(data, credentials=b"alice:secret", peer="the proxy p")
    assert shown.startswith("unauthenticated: the proxy p answered")
    assert shown.endswith(f"{quote} refuses these credentials")


@pytest.mark.fault(42)
def test_refusal_behind_informational_answers_is_the_one_that_counts() -> None:
    data = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 403 No\r\n\r\n"
    assert "with HTTP 403 No" in refusal(data)


def test_reason_cannot_steer_the_terminal_nor_fill_it() -> None:
    text = refusal(b"HTTP/1.1 403 \x1b[31mred\xff" + b"x" * 300 + b"\r\n\r\n")
    assert text.isprintable()
    assert len(text) < 250


@pytest.mark.fault(42)
@pytest.mark.parametrize(
    "filler", [b"X: y\r\n", b"x", b"\r\nHTTP/1.1 100 Continue\r\n"], ids=["lines", "line", "1xx"]
)
@pytest.mark.parametrize("size", [1, 1000, MAX_ANSWER, 10 * MAX_ANSWER])
def test_endless_answer_is_given_up_at_the_limit(filler: bytes, size: int) -> None:
    data = b"HTTP/1.1 100 Continue\r\n" + filler * (10 * MAX_ANSWER // len(filler))
    pieces = [data[at : at + size] for at in range(0, MAX_ANSWER, size)]
    assert f"is longer than {MAX_ANSWER} bytes" in ask(pieces)


@pytest.mark.fault(42)
@pytest.mark.parametrize(
    "data",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"\x15\x03\x01\x00\x02\x02\x46",
        b'{"magic":1380991824}\n',
        b"\r\n\r\n",
        b"\0",
        b"HTTP/2.0 200 OK\r\n\r\n",
        b"HTTPS",
        b"HTTP/1.1 100 Continue\r\n\r\nSSH-2.0-OpenSSH\r\n",
    ],
)
def test_answer_that_is_no_http_is_refused_at_its_first_wrong_byte(data: bytes) -> None:
    for pieces in cuts(data):
        assert "the answer of the server to CONNECT example.org:7000 is not HTTP" in ask(pieces)


@pytest.mark.fault(42)
@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 2000 OK\r\n\r\n",
        b"HTTP/1.1 OK\r\n\r\n",
        b"HTTP/1.x 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno header\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX : y\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: \0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
        b"HTTP/1.1 099 Early\r\n\r\n",
    ],
)
def test_answer_against_the_rules_is_quoted(data: bytes) -> None:
    text = refusal(data)
    assert "is not valid HTTP" in text
    assert text.endswith(repr(data.partition(b"\r\n")[0]))


@pytest.mark.fault(42)
def test_end_instead_of_an_answer_and_within_it_differ() -> None:
    assert ask([]) == (
        "unavailable: the server closed the connection without an answer to CONNECT "
        "example.org:7000; perhaps only one end uses TLS"
    )
    assert "closed the connection within its answer, b'HTTP/1.1 200 OK', to" in refusal(OK[:-2])


# A connection that begins with CONNECT


def connecting(**options: Any) -> ClientConnection:
    client = ClientConnection(now=START, connect="example.org:7000", **options)
    assert client.data_to_send() == Tunnel("example.org:7000").request
    return client


def test_options_leave_only_when_the_server_has_accepted() -> None:
    client = connecting()
    for piece in (OK[:-1], b""):
        assert caused(client.receive_data, START, piece) == []
        assert client.outbound == 0
    assert caused(client.receive_data, START, OK[-1:]) == []
    assert server_line(client.data_to_send())["version"] == 1
    only(caused(client.receive_data, START, ACCEPTED), HandshakeCompleted)
    assert client.state is State.OPEN


def test_every_cut_of_the_bytes_leads_to_the_same_answer() -> None:
    data = b"HTTP/1.1 100 Continue\r\n\r\n" + OK + ACCEPTED + Wire().response(1, 3)
    for pieces in cuts(data):
        client = connecting()
        client.start_call(START, "Arith.add", (1, 2))
        assert (
            outcome(
                [event for piece in pieces for event in caused(client.receive_data, START, piece)]
            )
            == 3
        )
        options, newline, sent = client.data_to_send().partition(b"\n")
        assert server_line(options + newline)["codec"] == "msgpack"
        assert [frame.call_id for frame in frames_in(sent)] == [1]


def test_calls_wait_in_order_until_the_server_has_accepted() -> None:
    client = connecting()
    calls = [client.start_call(START, "S.m") for _ in range(3)]
    client.receive_data(START, OK)
    client.data_to_send()
    client.receive_data(START, ACCEPTED)
    sent = frames_in(client.data_to_send())
    assert [frame.call_id for frame in sent] == [call.id for call in calls]


@pytest.mark.fault(42)
def test_refusal_ends_the_connection_and_its_calls() -> None:
    client = connecting()
    client.start_call(START, "S.m")
    events = caused(client.receive_data, START, b"HTTP/1.1 503 Full\r\n\r\nbody")
    failed = only(events, CallFailed).error
    assert failed.code == "unavailable"
    assert "HTTP 503 Full" in failed.message
    assert not failed.maybe_executed
    assert isinstance(termination(events), HandshakeError)
    assert client.state is State.CLOSING
    assert caused(client.receive_data, START, OK) == []
    assert client.data_to_send() == b""


def test_server_may_refuse_the_options_right_behind_its_success() -> None:
    client = connecting()
    refused = line(
        {"magic": 0x52504350, "error": {"code": "resource_exhausted", "message": "full"}}
    )
    error = termination(caused(client.receive_data, START, OK + refused))
    assert str(error) == "resource_exhausted: full"


@pytest.mark.parametrize("size", [1, 1000])
def test_server_may_turn_a_peer_away_before_it_has_read_anything(size: int) -> None:
    server = ServerPort(now=START)
    server.turn_away(START, "resource_exhausted", "full")
    server.handle_timeout(START + 1)
    data = server.data_to_send()
    client = connecting()
    pieces = [data[at : at + size] for at in range(0, len(data), size)]
    events = [event for piece in pieces for event in caused(client.receive_data, START, piece)]
    error = termination(events)
    assert (error.code, error.message) == ("resource_exhausted", "full")


def test_client_and_server_meet_in_the_tunnel() -> None:
    client, server = ClientConnection(now=START, connect="h:1"), ServerPort(now=START)
    while client.outbound or server.outbound:
        server.receive_data(START, client.data_to_send())
        client.receive_data(START, server.data_to_send())
    assert (client.state, server.state) == (State.OPEN, State.OPEN)


@pytest.mark.fault(42)
@pytest.mark.parametrize("lost", [False, True])
@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 4"])
def test_end_before_the_answer_says_what_was_waited_for(said: bytes, lost: bool) -> None:
    client = connecting()
    client.receive_data(START, said)
    events = caused(client.connection_lost, START) if lost else caused(client.receive_eof, START)
    assert "to CONNECT example.org:7000" in str(termination(events))
    assert client.state is State.CLOSED
    assert caused(client.receive_eof, START) == []


def test_end_behind_the_answer_is_that_of_the_option_handshake() -> None:
    client = connecting()
    client.receive_data(START, OK + b"{")
    assert "during the option handshake" in str(termination(caused(client.receive_eof, START)))


@pytest.mark.fault(9)
def test_handshake_timeout_covers_the_answer() -> None:
    client = connecting()
    client.receive_data(START + 9, OK[:-1])
    assert client.next_timeout() == START + 10
    error = termination(caused(client.handle_timeout, START + 10))
    assert (error.code, client.state) == ("deadline_exceeded", State.CLOSING)


def test_shutdown_before_the_answer_ends_the_connection() -> None:
    client = connecting()
    assert isinstance(caused(client.shutdown, START)[-1], ConnectionTerminated)
    assert caused(client.receive_data, START, OK) == []
    assert client.data_to_send() == b""


@pytest.mark.parametrize("target", ["h", "h:1\r\nX: y"])
def test_connection_to_no_host_and_port_is_not_made(target: str) -> None:
    with pytest.raises(ValueError, match=r"host|port"):
        ClientConnection(now=START, connect=target)


def test_trace_with_a_tunnel_repeats() -> None:
    client = TracedClientConnection(now=START, connect="example.org:7000")
    client.data_to_send()
    client.receive_data(START + 1, OK[:9])
    client.receive_data(START + 2, OK[9:] + ACCEPTED)
    client.data_to_send()
    client.receive_eof(START + 3)
    loaded = Trace.from_lines(client.trace.to_lines())
    assert replay(loaded).steps == client.trace.steps


def test_native_clients_do_not_load_h11() -> None:
    source = (
        "import rpc_proto, sys; rpc_proto.ClientConnection(now=0.0); print('h11' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", source], capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n"
