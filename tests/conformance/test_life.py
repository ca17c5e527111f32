"""Beginnings and ends: connecting, refusing, draining, and processes that are killed."""

import gc
import math
import socket
import time

import pytest

from conformance.hosts import Process
from conformance.links import Link, Suite
from conformance.proxy import proxied, silent_server
from conformance.runtimes import Runtime, until
from rpc_proto import ClientConnection, HandshakeError, Unavailable
from support.certificates import Authority
from support.network import black_hole

# Two slow cores may add so much to a time, in seconds.
SLACK = 5.0

# Connecting


@pytest.mark.feature("Connecting fails clearly and in time: refused, silent, black hole")
def test_connect_to_a_port_that_nobody_listens_on(client_backend: Runtime):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(Unavailable, match="no connection to") as caught:
        client_backend.connect(f"tcp://127.0.0.1:{port}", timeout=5)
    assert not caught.value.maybe_executed


@pytest.mark.feature("Connecting fails clearly and in time: refused, silent, black hole")
def test_connect_to_a_path_that_does_not_exist(client_backend: Runtime, tmp_path):
    with pytest.raises(Unavailable, match="no connection to"):
        client_backend.connect(f"unix://{tmp_path}/none", timeout=5)


@pytest.mark.feature("Misuse raises before anything is sent")
@pytest.mark.parametrize("timeout", [-1, math.nan, None], ids=str)
def test_connect_timeout_that_is_no_time_is_refused(client_backend: Runtime, timeout):
    with silent_server() as address, pytest.raises(ValueError, match="timeout must be seconds"):
        client_backend.connect(address, timeout=timeout)


@pytest.mark.parametrize("timeout", [math.inf, 1e300], ids=str)
def test_connect_may_have_all_the_time_in_the_world(link: Link, timeout):
    with link.host() as host, link.connect(host, timeout=timeout) as client:
        assert client.call("Basic.echo", "in") == "in"


@pytest.mark.fault(71)
def test_connect_that_is_refused_leaves_nothing_for_the_garbage_collector(
    client_backend: Runtime, server_backend
):
    def left() -> int:
        return sum(isinstance(what, ClientConnection) for what in gc.get_objects())

    def fail() -> None:
        with pytest.raises(HandshakeError, match="the token was refused"):
            client_backend.connect(host.address("tcp"), token="wrong")

    with server_backend(token="right") as host:
        fail()
        gc.collect()
        gc.disable()
        try:
            before = left()
            for _ in range(5):
                fail()
            until(lambda: left() <= before + 1)  # the last one
        finally:
            gc.enable()


@pytest.mark.fault(9)
@pytest.mark.feature("Connecting fails clearly and in time: refused, silent, black hole")
def test_connect_timeout_covers_the_dialling(client_backend: Runtime):
    began = time.monotonic()
    with black_hole() as address, pytest.raises(TimeoutError, match=r"within 0\.3 s"):
        client_backend.connect(address, timeout=0.3)
    assert 0.25 < time.monotonic() - began < SLACK


@pytest.mark.fault(9)
@pytest.mark.feature("Connecting fails clearly and in time: refused, silent, black hole")
def test_connect_timeout_covers_the_option_handshake(client_backend: Runtime):
    began = time.monotonic()
    with silent_server() as address, pytest.raises(TimeoutError, match=r"within 0\.3 s"):
        client_backend.connect(address, timeout=0.3)
    assert 0.25 < time.monotonic() - began < SLACK


@pytest.mark.fault(9)
@pytest.mark.feature("Connecting fails clearly and in time: refused, silent, black hole")
def test_connect_timeout_covers_the_tls_handshake(client_backend: Runtime, suite: Suite):
    began = time.monotonic()
    with silent_server() as address, pytest.raises(TimeoutError, match=r"within 0\.3 s"):
        client_backend.connect(address.replace("tcp", "tls"), timeout=0.3, ssl=suite.trusting)
    assert 0.25 < time.monotonic() - began < SLACK


@pytest.mark.fault(9)
@pytest.mark.feature("Connecting fails clearly and in time: refused, silent, black hole")
def test_connect_through_something_that_forwards_nothing(link: Link):
    with link.host() as host, proxied(host.address(link.transport)) as proxy:
        proxy.swallow()
        with pytest.raises(TimeoutError, match=r"within 0\.3 s"):
            link.connect_to(proxy.address, timeout=0.3)


@pytest.mark.feature("Connecting fails clearly and in time: refused, silent, black hole")
@pytest.mark.parametrize(
    "address",
    [
        "http//x",
        "127.0.0.1:80",
        "ftp://127.0.0.1:1",
        "tcp://127.0.0.1:0",
        "tcp://127.0.0.1:70000",
        "tcp://a\r\nb:1",
        "tcp://a..b:1",
        f"tcp://{'a' * 64}.example:1",
    ],
)
def test_address_that_is_none_is_refused(client_backend: Runtime, address):
    with pytest.raises(ValueError, match=r"address|port|host"):
        client_backend.connect(address)


# Who is let in


@pytest.mark.feature("Tokens")
@pytest.mark.parametrize("token", [None, "", "wrong", "right "])
def test_wrong_token_is_refused(link: Link, token):
    with link.host(token="right") as host:
        with pytest.raises(HandshakeError) as caught:
            link.connect(host, token=token)
        assert caught.value.code == "unauthenticated"


@pytest.mark.feature("Tokens")
def test_right_token_is_let_in(link: Link):
    token = "right \N{KEY}"
    with link.host(token=token) as host, link.connect(host, token=token) as client:
        assert client.call("Basic.echo", "in") == "in"


@pytest.mark.fault(4)
@pytest.mark.feature("Codecs: only those that the server offers")
def test_codec_that_the_server_does_not_offer_is_refused(link: Link):
    with link.host(config={"codecs": ["msgpack"]}) as host:
        with pytest.raises(HandshakeError) as caught:
            link.connect(host, codec="json")
        assert caught.value.code == "unimplemented"
        assert caught.value.supported["codecs"] == ["msgpack"]


@pytest.mark.feature("TLS, and clear errors where it does not fit")
def test_plain_client_to_a_tls_port_fails_clearly(tcp_link: Link):
    with tcp_link.host() as host:
        with pytest.raises((HandshakeError, Unavailable)) as caught:
            tcp_link.connect_to(host.address("tls").replace("tls", "tcp"), timeout=5)
        assert caught.value.code in ("unavailable", "invalid_argument")


@pytest.mark.fault(2)
@pytest.mark.feature("TLS, and clear errors where it does not fit")
def test_tls_client_to_a_plain_port_fails_clearly(tcp_link: Link):
    with tcp_link.host() as host, pytest.raises(Unavailable, match="no connection to tls://"):
        tcp_link.connect_to(host.address("tcp").replace("tcp", "tls"), timeout=5)


@pytest.mark.feature("TLS, and clear errors where it does not fit")
def test_server_whose_certificate_nobody_vouches_for_is_not_trusted(tcp_link: Link, tmp_path):
    stranger = Authority(tmp_path).client_context()
    with tcp_link.host() as host, pytest.raises(Unavailable, match="certificate verify failed"):
        tcp_link.connect_to(host.address("tls"), ssl=stranger, timeout=5)


@pytest.mark.feature("TLS, and clear errors where it does not fit")
def test_context_goes_with_a_tls_address(client_backend: Runtime, suite: Suite):
    with pytest.raises(ValueError, match="ssl needs a tls:// or https:// address"):
        client_backend.connect("tcp://127.0.0.1:1", ssl=suite.trusting)


# Stopping


@pytest.mark.feature("Draining: stop lets running calls finish and refuses new ones")
def test_stop_lets_running_calls_finish_and_refuses_new_ones(link: Link, key):
    with link.own_host() as host, link.connect(host) as client:
        running = client.start("Gate.wait", key)
        host.wait("started", key)
        host.begin_stop(grace=15)
        until(lambda: client.closed)
        with pytest.raises(Unavailable) as caught:
            client.call("Basic.count", key)
        assert not caught.value.maybe_executed
        assert not host.stopped(timeout=0)
        host.open(key)
        assert running.outcome() == "through"
        assert host.stopped()
        assert host.stats["connections"] == 0
        assert host.count("runs", key) == 0
        with pytest.raises(Unavailable):
            link.connect(host)


@pytest.mark.feature("Draining: stop lets running calls finish and refuses new ones")
def test_idle_client_learns_of_the_stop_at_its_next_call_at_the_latest(link: Link, key):
    with link.own_host() as host, link.connect(host) as client:
        assert client.call("Basic.echo", 1) == 1
        host.begin_stop(grace=15)
        assert host.stopped()
        with pytest.raises(Unavailable):
            client.call("Basic.echo", 2)
        assert client.closed


@pytest.mark.feature("Draining: stop lets running calls finish and refuses new ones")
def test_stop_serves_the_calls_in_the_queue_within_its_grace(link: Link, key):
    with link.own_host(max_concurrency=1) as host, link.connect(host) as client:
        running = client.start("Gate.wait", key)
        host.wait("started", key)
        queued = [client.start("Basic.echo", n) for n in range(5)]
        host.settle(queued=5)
        host.begin_stop(grace=15)
        until(lambda: client.closed)
        host.open(key)
        assert running.outcome() == "through"
        assert [call.outcome() for call in queued] == list(range(5))
        assert host.stopped()


@pytest.mark.feature("Draining: stop lets running calls finish and refuses new ones")
@pytest.mark.parametrize("grace", [0, 0.3])
def test_grace_that_runs_out_ends_the_calls_that_run(link: Link, key, grace):
    with link.own_host() as host, link.connect(host) as client:
        running = client.start("Gate.wait", key)
        host.wait("started", key)
        began = time.monotonic()
        host.begin_stop(grace)
        outcome = running.outcome()
        assert isinstance(outcome, Unavailable)
        assert outcome.maybe_executed
        host.wait("cancelled", key)
        assert host.stopped()
        assert grace - 0.1 < time.monotonic() - began < SLACK
        host.settle(running=0)


# Ends that nobody announces


@pytest.mark.feature("A server that is killed: every call fails at once")
def test_killed_server_fails_the_calls_that_wait(link: Link, key):
    with link.own_host() as host, link.connect(host) as client:
        calls = [client.start("Gate.wait", key) for _ in range(5)]
        host.wait("started", key, 5)
        host.kill()
        outcomes = [call.outcome() for call in calls]
        assert {type(outcome) for outcome in outcomes} == {Unavailable}
        assert {outcome.maybe_executed for outcome in outcomes} == {True}
        assert client.closed
        with pytest.raises(Unavailable) as caught:
            client.call("Basic.echo", 1)
        assert not caught.value.maybe_executed


@pytest.mark.feature("A server that is killed: every call fails at once")
def test_killed_server_fails_the_next_call_of_an_idle_client(link: Link):
    with link.own_host() as host, link.connect(host) as client:
        assert client.call("Basic.echo", 1) == 1
        host.kill()
        with pytest.raises(Unavailable):
            client.call("Basic.echo", 2, timeout=10)


@pytest.mark.feature("A client that is killed: its handlers are cancelled, its connection goes")
def test_killed_client_has_its_handlers_cancelled(tcp_link: Link, key, tmp_path):
    with tcp_link.host() as host:
        caller = Process(
            tmp_path / "errors.txt", "conformance.caller", tcp_link.pair.client, host.address(), key
        )
        try:
            host.wait("started", key)
        finally:
            caller.kill()
        host.wait("cancelled", key)
        host.settle(connections=0, running=0)
