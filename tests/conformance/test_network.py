"""What networks and odd peers do: pieces, delays, resets, half-open ends, peers that never read."""

import contextlib
import random
import time

import pytest

from conformance.links import Link
from conformance.proxy import TO_CLIENT, TO_SERVER
from conformance.runtimes import outcome_of, until
from conformance.wire import accepted, dialled, raw_request
from rpc_fuzz.wire import ERROR, GOAWAY, RESPONSE, line, options
from rpc_proto import ClientConfig, DeadlineExceeded, Unavailable

# Two slow cores may add so much to a time, in seconds.
SLACK = 5.0


@pytest.mark.feature("Streams cut into pieces of any size")
def test_handshake_and_call_one_byte_at_a_time(link: Link):
    with link.host() as host, link.through_proxy(host, seed=1, largest=1) as (_, client):
        assert client.call("Typed.add", 1, 2) == 3


@pytest.mark.feature("Streams cut into pieces of any size")
@pytest.mark.parametrize("seed", [1, 2])
def test_calls_in_random_pieces(link: Link, seed):
    data = random.Random(seed).randbytes(200_000)
    with link.host() as host, link.through_proxy(host, seed=seed, largest=3000) as (_, client):
        calls = client.at_once([("Basic.echo", data[: n * 10_000]) for n in range(1, 21)])
        results = [outcome_of(call) for call in calls]
        # In JSON, bytes without a type come back as bytes: they travel beside the text.
        assert results == [data[: n * 10_000] for n in range(1, 21)]


@pytest.mark.fault(47)
@pytest.mark.feature("Deadlines hold while nothing passes on the network")
def test_deadline_fires_while_no_answer_comes_through(link: Link):
    with link.host() as host, link.through_proxy(host) as (proxy, client):
        assert client.call("Basic.echo", 1) == 1
        proxy.stall(TO_CLIENT)
        began = time.monotonic()
        with pytest.raises(DeadlineExceeded):
            client.call("Basic.echo", 2, timeout=0.3)
        assert time.monotonic() - began < SLACK
        proxy.resume(TO_CLIENT)
        assert client.call("Basic.echo", 3) == 3


@pytest.mark.fault(47)
@pytest.mark.feature("Deadlines hold while nothing passes on the network")
def test_deadline_fires_while_sending_is_blocked(link: Link):
    config = ClientConfig(high_water=64 * 1024, close_timeout=0.3)
    with link.host() as host, link.through_proxy(host, config=config) as (proxy, client):
        assert client.call("Basic.echo", 1) == 1
        proxy.stall(TO_SERVER)
        began = time.monotonic()
        calls = [client.start("Basic.echo", bytes(4 << 20), timeout=0.5) for _ in range(6)]
        outcomes = [call.outcome() for call in calls]
        assert [type(outcome) for outcome in outcomes] == [DeadlineExceeded] * 6
        assert time.monotonic() - began < SLACK
        # What could not leave was surely not executed.
        assert not outcomes[-1].maybe_executed
        assert client.calls_in_flight == 0


@pytest.mark.fault(47)
@pytest.mark.feature("Deadlines hold while nothing passes on the network")
def test_what_was_blocked_arrives_when_the_network_is_back(link: Link):
    config = ClientConfig(high_water=64 * 1024)
    with link.host() as host, link.through_proxy(host, config=config) as (proxy, client):
        proxy.stall(TO_SERVER)
        data = bytes(4 << 20)
        calls = [client.start("Basic.echo", data, returns=bytes) for _ in range(4)]
        proxy.resume(TO_SERVER)
        assert all(call.outcome() == data for call in calls)


@pytest.mark.fault(46)
@pytest.mark.feature("Peers that never read are dropped at the write timeout")
def test_client_drops_a_server_that_never_reads(link: Link):
    config = ClientConfig(write_timeout=0.5, high_water=64 * 1024, ping_interval=None)
    with link.host() as host, link.through_proxy(host, config=config) as (proxy, client):
        assert client.call("Basic.echo", 1) == 1
        proxy.stall(TO_SERVER)
        calls = [client.start("Basic.echo", bytes(4 << 20)) for _ in range(4)]
        outcomes = [call.outcome() for call in calls]
        assert {type(outcome) for outcome in outcomes} == {Unavailable}
        assert client.closed


@pytest.mark.fault(46)
@pytest.mark.feature("Peers that never read are dropped at the write timeout")
def test_server_drops_a_peer_that_never_reads_and_serves_the_others(tcp_link: Link):
    size = 16 * 1024
    config = {"high_water": 4 * size, "write_timeout": 0.5}
    with tcp_link.host(config=config) as host, tcp_link.connect(host) as client:
        before = host.stats["served"]
        with dialled(host.address(), receive_buffer=4096) as peer:
            peer.send(line(options(codec="json")))
            until(lambda: host.stats["connections"] == 2)
            sent = 0
            with contextlib.suppress(ConnectionError):
                for sent in range(1, 4097):
                    peer.send(raw_request(sent, "Basic.echo", bytes(size)))
            assert sent < 2048  # the server stopped reading, so sending was blocked
            assert client.call("Basic.echo", "on", timeout=5) == "on"
        host.settle(connections=1)
        # What it executed is what it could hold, and what the buffers of the kernel took.
        assert (host.stats["served"] - before) * size < 16 << 20


@pytest.mark.fault(46)
@pytest.mark.feature("Peers that never read are dropped at the write timeout")
def test_other_clients_are_served_while_a_peer_does_not_read(tcp_link: Link, key):
    size = 16 * 1024
    with (
        tcp_link.host(config={"high_water": 4 * size}) as host,
        tcp_link.connect(host) as client,
        dialled(host.address(), receive_buffer=4096) as peer,
    ):
        peer.send(line(options(codec="json")))
        peer.socket.settimeout(0.3)
        flood = b"".join(raw_request(n, "Basic.echo", bytes(size)) for n in range(1, 2049))
        with pytest.raises(TimeoutError):
            peer.send(flood)
        for n in range(20):
            assert client.call("Basic.echo", n, timeout=5) == n


@pytest.mark.fault(15)
@pytest.mark.feature("Resets and half-closed connections")
def test_reset_fails_the_calls_that_wait_and_cancels_their_handlers(link: Link, key):
    with link.host() as host, link.through_proxy(host) as (proxy, client):
        call = client.start("Gate.wait", key)
        host.wait("started", key)
        proxy.reset()
        outcome = call.outcome()
        assert isinstance(outcome, Unavailable)
        assert outcome.maybe_executed
        host.wait("cancelled", key)
        host.settle(connections=0, running=0)
        assert client.closed


@pytest.mark.fault(48)
@pytest.mark.feature("Resets and half-closed connections")
def test_server_that_half_closes_fails_the_calls_that_wait(link: Link, key):
    with link.host() as host, link.through_proxy(host) as (proxy, client):
        call = client.start("Gate.wait", key)
        host.wait("started", key)
        proxy.half_close()
        outcome = call.outcome()
        assert isinstance(outcome, Unavailable)
        assert outcome.maybe_executed
        host.wait("cancelled", key)


@pytest.mark.fault(48)
@pytest.mark.feature("Resets and half-closed connections")
@pytest.mark.parametrize("transport", ["tcp", "unix"])
def test_half_closed_client_gets_its_answers_and_then_the_end(server_backend, key, transport):
    with server_backend() as host, accepted(host.address(transport)) as peer:
        for call_id in (1, 2, 3):
            peer.request(call_id, "Gate.wait", key, call_id * 10)
        peer.half_close()
        host.wait("started", key, 3)
        host.open(key)
        answers = {answer.call_id: answer.value for answer in peer.receive_all()}
        assert answers == {1: 10, 2: 20, 3: 30}
        host.settle(connections=0)


@pytest.mark.fault(48)
@pytest.mark.feature("Resets and half-closed connections")
def test_half_closed_client_without_calls_is_let_go(server_backend):
    with server_backend() as host, accepted(host.address()) as peer:
        peer.half_close()
        assert peer.receive_all() == []
        host.settle(connections=0)


@pytest.mark.fault(1)
@pytest.mark.feature("Handshakes that fail, dribble or carry calls along")
def test_peer_that_leaves_at_once_is_forgotten(server_backend):
    with server_backend() as host:
        with dialled(host.address()):
            host.settle(connections=1)
        host.settle(connections=0)


@pytest.mark.fault(2)
@pytest.mark.feature("Handshakes that fail, dribble or carry calls along")
@pytest.mark.parametrize("garbage", [b"\x16\x03\x01\x02\x00\x01\x00", b"hello\n", b"{}\n"])
def test_garbage_instead_of_options_is_refused(server_backend, garbage):
    with server_backend() as host, dialled(host.address()) as peer:
        peer.send(garbage)
        assert peer.line()["error"]["code"] == "invalid_argument"
        assert peer.receive_all() == []


@pytest.mark.fault(6)
@pytest.mark.feature("Handshakes that fail, dribble or carry calls along")
def test_handshake_that_does_not_end_is_refused_at_its_deadline(server_backend):
    with (
        server_backend(config={"handshake_timeout": 0.3}) as host,
        dialled(host.address()) as peer,
    ):
        began = time.monotonic()
        peer.send(b'{"magic"')
        assert peer.line()["error"]["code"] == "deadline_exceeded"
        assert 0.2 < time.monotonic() - began < SLACK
        host.settle(connections=0)


@pytest.mark.fault(7)
@pytest.mark.feature("Handshakes that fail, dribble or carry calls along")
def test_options_and_calls_in_one_segment_are_all_served(server_backend):
    with server_backend() as host, dialled(host.address()) as peer:
        calls = [peer.wire.request(n, "Basic.echo", [n]) for n in (1, 2)]
        peer.send(line(options(codec="json")) + b"".join(calls))
        assert "error" not in peer.line()
        answers = [peer.receive(), peer.receive()]
        assert {answer.call_id: answer.value for answer in answers} == {1: 1, 2: 2}


@pytest.mark.fault(29, 34)
@pytest.mark.feature("What a peer gets wrong costs its call or its connection, nobody else's")
def test_body_that_cannot_be_decoded_fails_only_its_call(server_backend):
    with server_backend() as host, accepted(host.address()) as peer:
        request = peer.wire.request(1, "Typed.add", body=b"[1, 2")
        peer.send(request + peer.wire.request(2, "Typed.add", [1, 2]))
        answers = {answer.call_id: answer for answer in (peer.receive(), peer.receive())}
        assert (answers[1].type, answers[1].value[0]) == (ERROR, "invalid_argument")
        assert (answers[2].type, answers[2].value) == (RESPONSE, 3)


@pytest.mark.fault(14)
@pytest.mark.feature("What a peer gets wrong costs its call or its connection, nobody else's")
def test_violation_ends_only_its_own_connection(tcp_link: Link, key):
    with tcp_link.host() as host, tcp_link.connect(host) as client:
        call = client.start("Gate.wait", key)
        host.wait("started", key)
        with accepted(host.address()) as peer:
            peer.send(b"\x70" + bytes(15))  # a type of frame that does not exist
            assert peer.receive_all() == []
        host.settle(connections=1)
        host.open(key)
        assert call.outcome() == "through"


@pytest.mark.fault(51)
@pytest.mark.feature("Idle connections are asked to leave")
def test_idle_connection_is_asked_to_leave_at_the_idle_timeout(server_backend):
    with server_backend(config={"idle_timeout": 0.3}) as host, accepted(host.address()) as peer:
        assert [frame.type for frame in peer.frames()] == [GOAWAY]
        host.settle(connections=0)


@pytest.mark.fault(18)
@pytest.mark.feature("What a peer gets wrong costs its call or its connection, nobody else's")
def test_flood_of_tiny_frames_does_not_starve_another_connection(tcp_link: Link):
    """The frames are of a type that is ignored, so that nothing comes back."""
    with (
        tcp_link.host() as host,
        tcp_link.connect(host) as client,
        accepted(host.address()) as peer,
    ):
        calls = client.at_once([("Basic.echo", n) for n in range(20)])
        peer.send((b"\x80" + bytes(15)) * 200_000)
        assert [outcome_of(call) for call in calls] == list(range(20))
        assert client.call("Basic.echo", "on", timeout=5) == "on"
