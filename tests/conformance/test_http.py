"""HTTP on the port of the calls, by hand, at every server: hostile peers, and well-behaved ones."""

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

from conformance.pages import BIG
from conformance.wire import Peer, accepted, dialled
from rpc_fuzz.wire import RESPONSE, Wire, line, options

HELLO = line(options(codec="json"))
# Two slow cores may add so much to a time, in seconds.
SLACK = 5.0


class Answer(NamedTuple):
    status: int
    fields: dict[str, str]
    body: bytes


def get(path: str, *fields: str, method: str = "GET") -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: x", *fields, "", ""]).encode()


def read_answer(peer: Peer) -> Answer | None:
    """Return the next answer, or None when nothing more comes."""
    first = peer._file.readline()
    if not first:
        return None
    fields = {}
    while (text := peer._file.readline().strip()) != b"":
        name, _, value = text.decode().partition(":")
        fields[name.lower()] = value.strip()
    body = peer._file.read(int(fields.get("content-length", "0")))
    return Answer(int(first.split()[1]), fields, body)


def read_answers(peer: Peer) -> list[Answer]:
    """Return all answers up to the end of the connection."""
    return list(iter(lambda: read_answer(peer), None))


@contextlib.contextmanager
def asked(host: Any, *requests: bytes, **dialling: Any) -> Iterator[Peer]:
    with dialled(host.address(), **dialling) as peer:
        peer.send(b"".join(requests))
        yield peer


# Well-behaved peers


def test_requests_on_one_connection_are_answered_in_order(server_backend, key):
    echo = get("/echo", "Content-Length: 3", method="POST") + b"abc"
    with server_backend() as host, asked(host, get(f"/echo?key={key}"), echo) as peer:
        answers = [read_answer(peer), read_answer(peer)]
        peer.send(get("/echo", "Connection: close"))
        answers += read_answers(peer)
        assert [answer.body for answer in answers] == [b"", b"abc", b""]
        assert host.count("page", key) == 1


def test_many_requests_in_one_segment_are_all_answered_and_calls_go_on(server_backend, key):
    requests = [
        get(f"/echo?key={key}", f"Content-Length: {n % 7}") + b"x" * (n % 7) for n in range(2000)
    ]
    with (
        server_backend() as host,
        accepted(host.address()) as caller,
        asked(host, *requests[:1]) as peer,
    ):
        sending = threading.Thread(target=peer.send, args=(b"".join(requests[1:]),))
        sending.start()
        for number in range(50):
            caller.request(number + 1, "Basic.echo", number)
            assert caller.receive().value == number
        for number in range(2000):
            assert read_answer(peer).body == b"x" * (number % 7)
        sending.join()
        assert host.count("page", key) == 2000


def test_promise_is_answered_when_another_request_settles_it(server_backend, key):
    with (
        server_backend() as host,
        asked(host, get(f"/wait?key={key}")) as waiting,
    ):
        host.wait("promised", key)
        with asked(host, get(f"/settle?key={key}", "Connection: close")) as other:
            assert read_answers(other)[0].body == b"done\n"
        assert read_answer(waiting).body == b"settled\n"


def test_promise_is_given_back_when_its_client_goes(server_backend, key):
    with server_backend() as host:
        with asked(host, get(f"/wait?key={key}")):
            host.wait("promised", key)
        host.wait("abandoned", key)


@pytest.mark.fault(38)
def test_other_method_on_the_path_of_the_calls_and_unknown_path(server_backend):
    requests = [get("/rpc"), get("/rpc", method="POST"), get("/none"), get("/rpc", method="HEAD")]
    with server_backend() as host, asked(host, *requests[:3], get("/echo")) as peer:
        answers = [read_answer(peer) for _ in range(4)]
        assert [answer.status for answer in answers] == [405, 405, 404, 200]
        assert answers[0].fields["allow"] == "CONNECT"
    with server_backend() as host, asked(host, get("/none", method="CONNECT"), HELLO) as peer:
        assert [answer.status for answer in read_answers(peer)] == [404]


# CONNECT


@pytest.mark.fault(41)
@pytest.mark.parametrize("head", [get("x:1", method="CONNECT"), b"CONNECT /rpc HTTP/1.0\n\n"])
def test_bytes_behind_a_connect_that_is_accepted_are_those_of_calls(server_backend, head):
    request = Wire("json").request(1, "Basic.echo", ["through"])
    with server_backend() as host, asked(host, get("/echo"), head + HELLO + request) as peer:
        assert [read_answer(peer).status for _ in range(2)] == [200, 200]
        assert peer.line()["codec"] == "json"
        assert peer.receive() == (RESPONSE, 1, "through")


@pytest.mark.fault(41)
def test_bytes_behind_a_connect_that_is_refused_are_not_read(server_backend, key):
    request = Wire("json").request(1, "Basic.count", [key])
    behind = HELLO + request + get(f"/echo?key={key}")
    with server_backend() as host:
        with asked(host, get("/no", method="CONNECT") + behind) as peer:
            assert [answer.status for answer in read_answers(peer)] == [404]
        assert host.count("runs", key) == host.count("page", key) == 0


# Hostile ones

SMUGGLED = [
    get("/echo", "Content-Length: 6", "Transfer-Encoding: chunked", method="POST"),
    get("/echo", "Content-Length: 3", "Content-Length: 5", method="POST"),
    get("/echo", "X: a", " b"),
    get("/echo", "X : a"),
    get("/echo", "X: a\rb"),
    get("/echo", "X: a\0b"),
    get("/echo", "Transfer-Encoding: chunked", method="POST") + b"0\r\n\n",
]


@pytest.mark.fault(39)
@pytest.mark.parametrize("head", SMUGGLED)
def test_smuggling_is_answered_though_the_peer_goes_on_sending(server_backend, key, head):
    poison = get(f"/echo?key={key}", "X: " + "x" * 1000)
    with server_backend() as host, asked(host, get("/echo"), head, poison) as peer:
        peer.send(poison * 5000)  # more than the buffers of the kernel hold
        peer.half_close()
        assert [answer.status for answer in read_answers(peer)] == [200, 400]
        assert host.count("page", key) == 0


@pytest.mark.fault(40)
@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET /" + b"a" * 100_000, 414),
        (b"GET / HTTP/1.1\r\n" + b"X: 1\r\n" * 101 + b"\r\n", 431),
        (b"GET / HTTP/1.1\r\nX: " + b"a" * 100_000, 431),
        (
            b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10000000\r\n\r\n" + b"a" * 10_000_000,
            413,
        ),
    ],
)
def test_head_or_body_over_its_limit_is_answered_and_the_connection_closed(
    server_backend, head, status
):
    with server_backend() as host, asked(host, head) as peer:
        peer.half_close()
        assert [answer.status for answer in read_answers(peer)] == [status]


@pytest.mark.fault(40)
@pytest.mark.parametrize(
    ("beginning", "more"),
    [
        (b"G", b"E"),
        (b"GET / HTTP/1.1\r\n", b"X: y\r\n"),
        (get("/echo", "Content-Length: 1000"), b"a"),
        (get("/echo", "Transfer-Encoding: chunked"), b"1\r\na\r\n"),
    ],
)
def test_head_or_body_that_dribbles_in_is_closed_at_the_deadline(server_backend, beginning, more):
    with (
        server_backend(config={"handshake_timeout": 0.5}) as host,
        asked(host, beginning) as peer,
    ):
        began = time.monotonic()
        peer.socket.settimeout(0.05)
        start = b""
        while not start:
            assert time.monotonic() - began < SLACK
            peer.send(more)
            with contextlib.suppress(TimeoutError):
                start = peer.socket.recv(12)
        assert start == b"HTTP/1.1 408"
        assert time.monotonic() - began > 0.4


@pytest.mark.fault(46)
def test_peer_that_asks_for_much_and_reads_nothing_is_dropped_and_costs_little(server_backend, key):
    config = {"write_timeout": 1.0, "handshake_timeout": 0.5, "high_water": 256 * 1024}
    requests = get(f"/big?key={key}") * 3000
    with (
        server_backend(config=config) as host,
        asked(host, requests, receive_buffer=4096),
    ):
        host.settle(connections=0)
        # What the buffers of the kernel hold, and the high-water mark; not 300 MB.
        assert host.count("page", key) * BIG < 20_000_000


def test_peers_over_the_limit_hear_it_in_their_own_language(server_backend):
    with server_backend(max_connections=1) as host, accepted(host.address()) as first:
        with asked(host, get("/echo"), get("/echo")) as peer:
            (answer,) = read_answers(peer)
            assert answer.status == 503
            assert b"1 connections" in answer.body
        with asked(host, get("x:1", method="CONNECT")) as peer:
            assert read_answer(peer).status == 200
            assert peer.line()["error"]["code"] == "resource_exhausted"
        first.request(1, "Basic.echo", "on")
        assert first.receive().value == "on"
