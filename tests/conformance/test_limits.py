"""Limits that are reached, and who is turned away then."""

from typing import Any

import pytest

from conformance.links import Link
from conformance.runtimes import until
from conformance.wire import accepted
from rpc_fuzz.wire import ERROR
from rpc_proto import ClientConfig, DeadlineExceeded, HandshakeError, ResourceExhausted


@pytest.mark.feature("Limits on load: calls, queue, connections, concurrency")
def test_calls_over_the_limit_of_the_connection_wait_for_a_slot(link: Link, key):
    with link.host(config={"max_calls": 3}) as host, link.connect(host) as client:
        calls = [client.start("Gate.wait", key, n) for n in range(8)]
        host.wait("started", key, 3)
        until(lambda: client.calls_in_flight == 8)
        assert host.stats["running"] == 3
        host.open(key)
        assert [call.outcome() for call in calls] == list(range(8))


@pytest.mark.feature("Limits on load: calls, queue, connections, concurrency")
def test_too_many_calls_that_wait_at_the_client_are_refused(link: Link, key):
    config = ClientConfig(max_queued_calls=2)
    with (
        link.host(config={"max_calls": 1}) as host,
        link.connect(host, config=config) as client,
    ):
        calls = [client.start("Gate.wait", key, n) for n in range(3)]
        host.wait("started", key)
        with pytest.raises(ResourceExhausted, match="max_queued_calls") as caught:
            client.call("Gate.wait", key)
        assert not caught.value.maybe_executed
        host.open(key)
        assert [call.outcome() for call in calls] == [0, 1, 2]


@pytest.mark.feature("Limits on load: calls, queue, connections, concurrency")
def test_no_more_handlers_run_at_once_than_allowed(link: Link, key):
    with link.host(max_concurrency=2) as host, link.connect(host) as client:
        calls = [client.start("Gate.wait", key, n) for n in range(6)]
        host.settle(running=2, queued=4)
        host.open(key)
        assert [call.outcome() for call in calls] == list(range(6))
        assert host.count("started", key) == 6


@pytest.mark.feature("Limits on load: calls, queue, connections, concurrency")
def test_full_queue_refuses_and_says_that_nothing_ran(link: Link, key):
    options = {"max_concurrency": 1, "max_queued": 2}
    with link.host(**options) as host, link.connect(host) as client:
        calls = [client.start("Gate.wait", key, n) for n in range(3)]
        host.settle(running=1, queued=2)
        with pytest.raises(ResourceExhausted) as caught:
            client.call("Basic.count", key)
        assert not caught.value.maybe_executed
        host.open(key)
        assert [call.outcome() for call in calls] == [0, 1, 2]
        assert host.count("runs", key) == 0


@pytest.mark.feature("Limits on load: calls, queue, connections, concurrency")
def test_one_connection_more_than_the_limit_is_refused(link: Link):
    with link.host(max_connections=2) as host, link.connect(host) as client:
        with link.connect(host):
            with pytest.raises(HandshakeError) as caught:
                link.connect(host)
            assert caught.value.code == "resource_exhausted"
            assert client.call("Basic.echo", "on") == "on"
        host.settle(connections=1)
        with link.connect(host) as another:
            assert another.call("Basic.echo", "again") == "again"


@pytest.mark.fault(43)
@pytest.mark.feature("Floods are refused, and end the connection at last")
def test_cancelled_calls_hold_their_slots_until_their_handlers_have_ended(server_backend, key):
    with (
        server_backend(config={"max_calls": 4}) as host,
        accepted(host.address()) as peer,
    ):
        for call_id in range(1, 5):
            peer.request(call_id, "Gate.stubborn", key)
        host.wait("started", key, 4)
        for call_id in range(1, 5):
            peer.send(peer.wire.cancel(call_id))
        host.wait("cancelled", key, 4)
        peer.request(5, "Gate.stubborn", key)
        refused = peer.receive()
        assert (refused.type, refused.call_id) == (ERROR, 5)
        assert refused.value[0] == "resource_exhausted"
        host.open(key)
        host.settle(running=0)
        peer.request(6, "Basic.echo", "again")
        assert peer.receive().value == "again"


@pytest.mark.fault(43)
@pytest.mark.feature("Floods are refused, and end the connection at last")
def test_flood_of_opened_and_cancelled_calls_ends_the_connection(server_backend, key):
    config = {"max_calls": 4, "refusals": 50}
    with server_backend(config=config) as host, accepted(host.address()) as peer:
        for call_id in range(1, 5):
            peer.request(call_id, "Gate.stubborn", key)
        host.wait("started", key, 4)
        flood = [
            peer.wire.request(n, "Gate.stubborn", [key]) + peer.wire.cancel(n)
            for n in range(5, 500)
        ]
        peer.send(b"".join(flood))
        answers = peer.receive_all()
        assert {answer.value[0] for answer in answers} == {"resource_exhausted"}
        assert len(answers) <= 51
        assert host.count("started", key) == 4
        host.open(key)


@pytest.mark.fault(44)
@pytest.mark.feature("Floods are refused, and end the connection at last")
def test_flood_of_requests_that_provoke_errors_ends_only_its_own_connection(server_backend):
    with (
        server_backend(config={"refusals": 50}) as host,
        accepted(host.address()) as other,
        accepted(host.address()) as peer,
    ):
        peer.send(b"".join(peer.wire.request(n, "Basic.missing") for n in range(1, 500)))
        assert 50 <= len(peer.receive_all()) <= 51
        other.request(1, "Basic.echo", "on")
        assert other.receive().value == "on"


@pytest.mark.fault(43)
@pytest.mark.feature("Floods are refused, and end the connection at last")
def test_cancel_behind_its_request_in_one_segment_leaves_nothing_behind(server_backend, key):
    with server_backend() as host, accepted(host.address()) as peer:
        both = [
            peer.wire.request(n, "Gate.wait", [key]) + peer.wire.cancel(n) for n in range(1, 101)
        ]
        peer.send(b"".join(both) + peer.wire.request(101, "Basic.echo", ["on"]))
        answer = peer.receive()
        assert (answer.call_id, answer.value) == (101, "on")
        host.settle(running=0, queued=0)


FAIRNESS = "One connection cannot keep the others from being served"


@pytest.mark.fault(96)
@pytest.mark.feature(FAIRNESS)
def test_calls_that_wait_on_one_connection_leave_others_a_place(server_backend, key):
    options = {"max_concurrency": 16}
    with server_backend(**options) as host, accepted(host.address()) as greedy:
        for call_id in range(1, 101):
            greedy.request(call_id, "Gate.wait", key)
        host.settle(running=12, queued=88)
        with accepted(host.address()) as other:
            other.request(1, "rpc.Health.check")
            assert other.receive().value == "serving"
            other.request(2, "Basic.echo", "on")
            assert other.receive().value == "on"
        host.open(key)
        assert len({greedy.receive().call_id for _ in range(100)}) == 100


@pytest.mark.fault(95)
@pytest.mark.feature(FAIRNESS)
def test_peer_that_does_not_read_gets_no_more_calls_begun(server_backend, key):
    """Each answer alone fills the buffer; those of handlers that run already still come."""
    size = 2 * 1024 * 1024
    with (
        server_backend(max_concurrency=16) as host,
        accepted(host.address(), receive_buffer=4096) as peer,
    ):
        peer.send(b"".join(peer.wire.request(n, "Basic.zeros", [size, key]) for n in range(1, 201)))
        host.wait("runs", key)
        with accepted(host.address()) as other:
            other.request(1, "Basic.echo", "on")
            assert other.receive().value == "on"
        host.settle(running=0)
        assert host.count("runs", key) <= 16
        assert len({peer.receive().call_id for _ in range(200)}) == 200
        assert host.count("runs", key) == 200


@pytest.mark.feature("A connection may be silent for longer than pings are apart")
def test_silent_connection_is_still_good_after_some_intervals_of_pings(link: Link, key):
    """Two intervals of silence would be the end of a peer that was asked to answer pings."""
    config: dict[str, Any] = {"ping_interval": 1.0}
    options = ClientConfig(**config)
    with (
        link.host(config=config) as host,
        link.connect(host, config=options) as idle,
        link.connect(host, config=options) as busy,
    ):
        with pytest.raises(DeadlineExceeded):
            busy.call("Gate.wait", key, timeout=2.5)
        assert idle.call("Basic.echo", "on") == "on"
