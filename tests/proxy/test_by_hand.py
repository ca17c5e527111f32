"""Peers that answer CONNECT by hand: as the server itself, and as a proxy on the way."""

import asyncio
import contextlib
import socket
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from blocking_driver.support import LONGEST, Script, Wire
from conformance.runtimes import Runtime
from rpc_proto import HandshakeError, Unavailable
from support.by_hand import RESPONSE, accept_line, frame
from support.network import black_hole

OK = b"HTTP/1.1 200 OK\r\n\r\n"

# What the test may take when nothing is to be waited for, in seconds.
SOON = 5.0

Options = dict[str, Any]


@pytest.fixture(params=["http", "proxy", "https proxy"])
def through(request: pytest.FixtureRequest) -> Callable[[str], Options]:
    """How to connect so that the peer at an address is asked for a tunnel first."""
    if request.param == "http":
        return lambda address: {"address": address.replace("tcp:", "http:")}
    target = "tcp://rpc.invalid:7000" if request.param == "proxy" else "https://rpc.invalid"
    return lambda address: {"address": target, "proxy": address.replace("tcp:", "http:")}


class Peer:
    """A script that reads the request first, and tells how the connection ended."""

    def __init__(self, answer: Callable[[Wire], None]) -> None:
        self._answer = answer
        self.requests: list[bytes] = []
        self.ended = threading.Semaphore(0)

    def __call__(self, wire: Wire) -> None:
        lines = list(iter(wire._file.readline, b"\r\n"))
        self.requests.append(b"".join(lines))
        try:
            self._answer(wire)
            assert wire._file.read() == b""  # not a byte more comes
        finally:
            self.ended.release()


@contextlib.contextmanager
def saying(*pieces: bytes) -> Iterator[tuple[Peer, str]]:
    """Give a peer that answers with these bytes, and its address."""

    def answer(wire: Wire) -> None:
        for piece in pieces:
            wire.send(piece)

    with answering(answer) as both:
        yield both


@contextlib.contextmanager
def answering(answer: Callable[[Wire], None]) -> Iterator[tuple[Peer, str]]:
    """Give a peer that answers like this, and its address."""
    peer = Peer(answer)
    with Script(peer) as script:
        yield peer, script.address


def assert_refused(
    client_backend: Runtime, options: Options, peer: Peer, match: str, **more: Any
) -> HandshakeError:
    """The client says why, at once, and leaves nothing open."""
    began = time.monotonic()
    with pytest.raises(HandshakeError, match=match) as caught:
        client_backend.connect(**options, **more)
    assert time.monotonic() - began < SOON
    assert peer.ended.acquire(timeout=LONGEST)
    return caught.value


@pytest.mark.fault(42)
@pytest.mark.parametrize(
    ("status", "code"),
    [
        ("400 Bad Request", "unavailable"),
        ("403 Filtered", "permission_denied"),
        ("405 Method Not Allowed", "unimplemented"),
        ("503 Service Unavailable", "unavailable"),
    ],
)
def test_refusal_is_a_connect_error_that_quotes_the_status(client_backend, through, status, code):
    with saying(f"HTTP/1.1 {status}\r\nContent-Length: 2\r\n\r\nno".encode()) as (peer, address):
        error = assert_refused(client_backend, through(address), peer, f"with HTTP {status}$")
        assert error.code == code


@pytest.mark.fault(42)
def test_endless_answer_is_given_up(client_backend, through):
    flood = b"HTTP/1.1 200 OK\r\n" + b"X-More: and more\r\n" * 100_000
    with saying(flood) as (peer, address):
        assert_refused(client_backend, through(address), peer, "is longer than 32768 bytes")


@pytest.mark.fault(42)
def test_answer_that_is_no_http_is_refused(client_backend, through):
    with saying(b"SSH-2.0-OpenSSH_9.2\r\n") as (peer, address):
        assert_refused(client_backend, through(address), peer, "is not HTTP: b'SSH")


@pytest.mark.fault(42)
def test_peer_that_hangs_up_instead_of_an_answer_is_said(client_backend, through):
    with answering(lambda wire: wire.half_close()) as (peer, address):
        assert_refused(
            client_backend, through(address), peer, "closed the connection without an answer"
        )


@pytest.mark.fault(42)
def test_peer_that_hangs_up_within_its_answer_is_said(client_backend, through):
    def cut(wire: Wire) -> None:
        wire.send(OK[:-4])
        wire.half_close()

    with answering(cut) as (peer, address):
        assert_refused(client_backend, through(address), peer, "within its answer, b'HTTP/1.1 200")


@pytest.mark.fault(42)
def test_reset_instead_of_an_answer_is_a_connect_error(client_backend, through):
    def reset(wire: Wire) -> None:
        wire.reset()
        raise OSError

    with (
        answering(reset) as (_, address),
        pytest.raises((Unavailable, HandshakeError), match=r"reset|closed the connection"),
    ):
        client_backend.connect(**through(address))


@pytest.mark.fault(9)
def test_connect_timeout_covers_a_peer_that_does_not_answer(client_backend, through):
    with answering(lambda wire: None) as (peer, address):
        began = time.monotonic()
        with pytest.raises(TimeoutError, match=r"no connection to \w+://.* within 0\.3 s"):
            client_backend.connect(**through(address), timeout=0.3)
        assert time.monotonic() - began < SOON
        assert peer.ended.acquire(timeout=LONGEST)


@pytest.mark.fault(9, 42)
def test_connect_timeout_covers_an_answer_that_dribbles(client_backend, through):
    stop = threading.Event()

    def dribble(wire: Wire) -> None:
        wire.send(OK[:-2])
        while not stop.wait(0.0005):
            wire.send(b"X: y\r\n"[:1])

    with answering(dribble) as (peer, address):
        began = time.monotonic()
        with pytest.raises(TimeoutError, match=r"within 0\.3 s"):
            client_backend.connect(**through(address), timeout=0.3)
        assert time.monotonic() - began < SOON
        assert peer.ended.acquire(timeout=LONGEST)  # it could not send any more
        stop.set()


@pytest.mark.fault(9)
def test_connect_timeout_covers_dialling_the_proxy(client_backend):
    with black_hole() as address:
        proxy = address.replace("tcp:", "http:")
        with pytest.raises(TimeoutError, match=rf"through the proxy {proxy} within 0\.3 s"):
            client_backend.connect("tcp://rpc.invalid:1", proxy=proxy, timeout=0.3)


@pytest.mark.fault(9)
def test_connect_timeout_covers_what_is_behind_the_tunnel(client_backend, through):
    hung_up = threading.Event()

    def accept(wire: Wire) -> None:
        wire.send(OK)
        wire._file.read()
        hung_up.set()

    with answering(accept) as (_, address):
        with pytest.raises(TimeoutError, match=r"within 0\.3 s"):
            client_backend.connect(**through(address), timeout=0.3)
        assert hung_up.wait(LONGEST)


def serve_one_call(wire: Wire, prologue: bytes = b"") -> None:
    wire.line()
    wire.send(prologue + accept_line("json"))
    asked = wire.receive()
    assert asked is not None
    wire.send(frame(RESPONSE, asked.call_id, b'"through"'))
    wire._file.read()


@pytest.mark.fault(42)
@pytest.mark.parametrize(
    "head",
    [
        OK,
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.0 200 Connection established\r\nX: y\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n",
    ],
)
@pytest.mark.parametrize("size", [1, 1000])
@pytest.mark.parametrize("place", ["http", "proxy"])
def test_calls_go_through_the_tunnel(client_backend, place, head, size):
    def answer(wire: Wire) -> None:
        for start in range(0, len(head), size):
            wire.send(head[start : start + size])
        serve_one_call(wire)

    with answering(answer) as (peer, address):
        if place == "http":
            options = {"address": address.replace("tcp:", "http:")}
            target = address.removeprefix("tcp://")
        else:
            target = "rpc.invalid:7000"
            options = {"address": f"tcp://{target}", "proxy": address.replace("tcp:", "http:")}
        with client_backend.connect(**options, codec="json") as client:
            assert client.call("Any.method") == "through"
        assert peer.requests == [f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n".encode()]


def test_http_through_a_proxy_asks_twice(client_backend):
    def answer(wire: Wire) -> None:
        wire.send(OK)
        peer(wire) if len(peer.requests) == 1 else serve_one_call(wire)

    with answering(answer) as (peer, address):
        proxy = address.replace("tcp:", "http:").replace("//", "//alice:secret@")
        with client_backend.connect("http://rpc.invalid", proxy=proxy, codec="json") as client:
            assert client.call("Any.method") == "through"
    at_the_proxy, at_the_server = peer.requests
    assert b"Proxy-Authorization: Basic " in at_the_proxy
    assert at_the_server == b"CONNECT rpc.invalid:80 HTTP/1.1\r\nHost: rpc.invalid:80\r\n"


@pytest.mark.fault(42)
def test_refusal_of_a_server_that_comes_with_the_answer_of_the_proxy_is_heard(client_backend):
    refusal = b'{"magic":1380991824,"error":{"code":"resource_exhausted","message":"full"}}\n'

    def refuse(wire: Wire) -> None:
        wire.send(OK + refusal)
        wire.line()

    with answering(refuse) as (_, address):
        proxy = address.replace("tcp:", "http:")
        with pytest.raises(HandshakeError, match="resource_exhausted: full"):
            client_backend.connect("tcp://rpc.invalid:1", proxy=proxy)


@pytest.mark.parametrize(
    ("user_info", "credentials"),
    [
        ("alice:secret", b"alice:secret"),
        ("alice:se:cr%40et/#?%0D%0A", b"alice:se:cr@et/#?\r\n"),
        ("al%C3%AFce:p\u00e4ss%FF", b"al\xc3\xafce:p\xc3\xa4ss\xff"),
        ("alice:pa@ss", b"alice:pa@ss"),
        ("alice", b"alice:"),
        (":", b":"),
    ],
)
def test_credentials_are_decoded_and_shown_to_the_proxy_only(
    client_backend, user_info, credentials
):
    refusal = b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n"
    with saying(refusal) as (peer, address):
        proxy = address.replace("tcp://", f"http://{user_info}@")
        error = assert_refused(
            client_backend, {"address": "tcp://rpc.invalid:1"}, peer, "refuses these", proxy=proxy
        )
        header = b"Proxy-Authorization: Basic " + b64encode(credentials) + b"\r\n"
        assert peer.requests[0].endswith(header)
        assert "alice" not in str(error)
        assert error.code == "unauthenticated"


def test_proxy_that_is_not_there_is_named_without_its_password(client_backend):
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    with pytest.raises(Unavailable) as caught:
        client_backend.connect("tcp://rpc.invalid:1", proxy=f"http://alice:secret@127.0.0.1:{port}")
    assert str(caught.value).startswith(
        "unavailable: no connection to tcp://rpc.invalid:1 through "
        f"the proxy http://127.0.0.1:{port}: "
    )
    assert not caught.value.maybe_executed


def test_proxy_whose_name_is_unknown_is_unavailable(client_backend):
    with pytest.raises(Unavailable, match=r"through the proxy http://proxy\.invalid:80"):
        client_backend.connect("tcp://rpc.invalid:1", proxy="http://proxy.invalid", timeout=SOON)


@pytest.mark.parametrize(
    "proxy",
    [
        "",
        "proxy.invalid:3128",
        "https://alice:secret@proxy.invalid:3128",
        "socks5://alice:secret@proxy.invalid:1080",
        "http://alice:secret@",
        "http://alice:secret@proxy.invalid:0",
        "http://alice:secret@proxy\r\nX: y:80",
        "http://alice:secret@proxy.invalid:80/path",
        "http://al%3Aice:secret@proxy.invalid",
        "alice:secret@proxy.invalid",
    ],
)
def test_wrong_proxy_is_refused_without_showing_its_password(client_backend, proxy):
    with pytest.raises(ValueError) as caught:
        client_backend.connect("tcp://rpc.invalid:1", proxy=proxy)
    assert "secret" not in str(caught.value)
    assert "alice" not in str(caught.value)


@pytest.mark.parametrize("proxy", ["http://proxy.invalid", "env"])
def test_no_proxy_leads_to_a_unix_socket(client_backend, proxy):
    with pytest.raises(ValueError, match="a proxy cannot be used for unix:///run/rpc"):
        client_backend.connect("unix:///run/rpc.sock", proxy=proxy)


def test_giving_connect_up_closes_the_socket(client_backend, through):
    """Blocking clients have nothing but the timeout."""
    asked = threading.Event()
    with answering(lambda wire: asked.set()) as (peer, address):
        options = through(address)

        async def cancel() -> None:
            task = asyncio.create_task(client_backend.kind.connect(**options))
            await asyncio.to_thread(asked.wait, LONGEST)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

        def kill() -> None:
            greenlet = gevent.spawn(client_backend.kind.connect, **options)
            gevent.get_hub().threadpool.apply(asked.wait, (LONGEST,))
            greenlet.kill()

        if client_backend.name == "gevent":
            import gevent

            client_backend.do(kill)
        elif client_backend.name == "asyncio":
            client_backend.do(cancel)
        else:
            with pytest.raises(TimeoutError):
                client_backend.connect(**options, timeout=0.1)
        assert peer.ended.acquire(timeout=LONGEST)
