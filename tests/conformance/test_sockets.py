"""What servers do with their sockets: options, limits, shortages."""

import contextlib
import time
from collections.abc import Iterator
from statistics import median

import pytest

from conformance.host import has_no_delay
from conformance.links import Link
from conformance.wire import accepted, dialled

_FULL = "cannot accept connections for now"


@contextlib.contextmanager
def outsiders(address: str, count: int) -> Iterator[None]:
    """Hold connections that say nothing."""
    with contextlib.ExitStack() as stack:
        for _ in range(count):
            stack.enter_context(dialled(address))
        yield


@pytest.mark.fault(97)
def test_small_messages_leave_both_ends_at_once(every_link: Link):
    if every_link.transport == "unix":
        pytest.skip("not over TCP")
    with every_link.host() as host, every_link.connect(host) as client:
        assert client.call("Basic.echo", 1) == 1
        assert client.do(lambda real: [has_no_delay(n) for n in real._descriptors()]) == [True]
        assert host.no_delay() == [True]


@pytest.mark.fault(97)
def test_small_messages_leave_a_client_behind_a_proxy_at_once(tcp_link: Link):
    with (
        tcp_link.host() as host,  # which answers CONNECT as a proxy does
        tcp_link.connect_to("tcp://rpc.invalid:7000", proxy=host.address("http")) as client,
    ):
        assert client.call("Basic.echo", 1) == 1
        assert client.do(lambda real: [has_no_delay(n) for n in real._descriptors()]) == [True]


@pytest.mark.fault(135)
@pytest.mark.fault(50)
@pytest.mark.parametrize("transport", ["tcp", "tls"])
def test_live_calls_go_on_while_no_descriptor_is_left(tcp_link: Link, transport):
    link = tcp_link
    link.transport = transport
    with link.own_host(files=128, max_connections=20_000) as host, link.connect(host) as client:
        assert "max_connections is 20000, but this process may open only 128 files" in host.log()
        with outsiders(host.address(transport), 200):
            began = time.monotonic()
            took = []
            while _FULL not in host.log() or time.monotonic() - began < 1.5:  # and a few pauses
                before = time.monotonic()
                client.call("Basic.echo", 1)
                took.append(time.monotonic() - before)
            assert host.log().count(_FULL) == 1
            assert median(took) < 0.2  # other processes may stop this one now and then
        with link.connect(host, timeout=10.0) as late:
            assert late.call("Basic.echo", 2) == 2


@pytest.mark.fault(135)
def test_a_quarter_of_the_descriptors_is_left_to_the_program(link: Link):
    with link.own_host(files=400) as host:
        assert host.snapshot()["limits"]["max_connections"] == 300
        assert host.log() == ""


@pytest.mark.fault(99)
def test_connections_count_before_their_tls_has_begun(server_backend):
    with server_backend(max_connections=3) as host, accepted(host.address()) as peer:
        with outsiders(host.address("tls"), 150):
            peer.request(1, "Basic.echo", 1)
            assert peer.receive().value == 1
            host.settle(connections=103)  # as many again as 100 are told why
            with dialled(host.address()) as late:
                assert late.socket.recv(1) == b""
        host.settle(connections=1)


@pytest.mark.fault(99)
def test_tls_that_never_begins_has_the_deadline_of_the_handshake(server_backend):
    with server_backend(config={"handshake_timeout": 0.3}) as host:
        with dialled(host.address("tls")) as silent:
            began = time.monotonic()
            assert silent.socket.recv(1) == b""
            assert 0.2 < time.monotonic() - began < 5.0
        host.settle(connections=0)
