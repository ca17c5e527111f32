"""Calls over many nodes: which one gets them, and what callers can say."""

import pytest

from balanced.support import SLACK, Place, runs, stats
from conformance.model import Colour, Typed
from conformance.runtimes import until
from rpc_discovery import Node
from rpc_proto import (
    CallError,
    Cancelled,
    HandshakeError,
    InvalidArgument,
    LocalProtocolError,
    NotFound,
    Unavailable,
)
from support.network import black_hole

GONE = "tcp://127.0.0.1:1"


def test_calls_are_spread_over_the_nodes(place: Place, key):
    hosts = place.hosts()
    client = place.connected(hosts)
    for _ in range(30):
        client.call("Basic.count", key)
    assert runs(hosts, key) == [10, 10, 10]
    assert stats(client)["in_flight"] == 0


def test_first_calls_do_not_wait_for_all_nodes(place: Place, key):
    hosts = place.hosts()
    client = place.client(hosts)
    assert client.call("Basic.echo", "first") == "first"
    until(lambda: stats(client)["connected"] == 3)


def test_weights_count(place: Place, key):
    hosts = place.hosts(2)
    nodes = [Node(hosts[0].address(), weight=3), Node(hosts[1].address(), weight=1)]
    client = place.connected(nodes, "weighted_round_robin")
    for _ in range(40):
        client.call("Basic.count", key)
    assert runs(hosts, key)[0] == pytest.approx(30, abs=1)


def test_only_nodes_that_offer_the_service_are_asked(place: Place, key):
    hosts = place.hosts()
    nodes = [Node(host.address(), ["Other"]) for host in hosts[:2]]
    client = place.client([*nodes, Node(hosts[2].address(), ["Basic"])])
    for _ in range(6):
        client.call("Basic.count", key)
    assert runs(hosts, key) == [0, 0, 6]
    with pytest.raises(Unavailable, match="no node offers 'Nobody'"):
        client.call("Nobody.asks")


def test_keys_stay_on_their_node(place: Place, key):
    hosts = place.hosts()
    client = place.connected(hosts, "consistent_hash")
    for number in range(20):
        for _ in range(3):
            client.call("Basic.count", f"{key}-{number}", key=f"user-{number}")
    counted = [runs(hosts, f"{key}-{number}") for number in range(20)]
    assert all(sorted(one) == [0, 0, 3] for one in counted)
    assert all(sum(one[i] for one in counted) for i in range(3))


def test_keys_stay_on_their_node_from_the_first_call_on(place: Place, key):
    hosts = place.hosts()
    client = place.client(hosts, "consistent_hash")
    for _ in range(5):
        client.call("Basic.count", key, key="user-1")
    assert sorted(runs(hosts, key)) == [0, 0, 5]


def test_one_node_can_be_asked(place: Place, key):
    hosts = place.hosts()
    client = place.client(hosts)
    for _ in range(4):
        client.call("Basic.count", key, node=hosts[1].address())
    assert runs(hosts, key) == [0, 4, 0]
    with pytest.raises(Unavailable, match=r"no node 'tcp://127.0.0.1:1' is known"):
        client.call("Basic.count", key, node=GONE)


def test_errors_of_handlers_come_through(place: Place):
    client = place.client(place.hosts())
    for _ in range(6):
        with pytest.raises(NotFound) as caught:
            client.call("Failing.not_found", "k")
        assert caught.value.details == {"key": "k"}
    with pytest.raises(CallError, match="short and stout"):
        client.call("Failing.own_code")
    with pytest.raises(CallError, match="no method"):
        client.call("Basic.missing")
    with pytest.raises(InvalidArgument, match="cannot be encoded"):
        client.call("Basic.echo", object())
    assert stats(client)["in_flight"] == 0
    assert stats(client)["ejected"] == 0


def test_metadata_goes_both_ways(place: Place):
    client = place.client(place.hosts())
    reply = client.request("Basic.exchange", metadata={"name": "abc"})
    assert reply.value == {"name": "abc"}
    assert reply.metadata["name"] == "cba"


def test_notify_reaches_one_node(place: Place, key):
    hosts = place.hosts()
    client = place.connected(hosts)
    for _ in range(6):
        client.notify("Basic.count", key)
    until(lambda: runs(hosts, key) == [2, 2, 2])
    assert stats(client)["in_flight"] == 0


def test_proxy_of_a_service(place: Place, key):
    hosts = place.hosts()
    client = place.connected(hosts)
    count = client.do(lambda real: real.service("Basic").count(key, value=5))
    assert count == 5
    # `key` is the method's own here, whatever `call` means by it.
    assert client.do(lambda real: real.service("Basic").count(key=key, value=6)) == 6
    assert sum(runs(hosts, key)) == 2
    with_options = {"node": hosts[2].address(), "timeout": 9.0}
    assert client.do(lambda real: real.service("Basic", **with_options).count(key)) is None
    assert runs(hosts, key)[2] >= 1


def test_typed_proxy(place: Place):
    client = place.client(place.hosts())
    assert client.do(lambda real: real.service(Typed).other(Colour.RED)) is Colour.BLUE


def test_result_is_what_the_caller_asks_for(place: Place):
    client = place.client(place.hosts())
    assert client.call("Typed.other", "red", returns=Colour) is Colour.BLUE


def test_nodes_may_have_different_schemes(place: Place, key):
    hosts = place.hosts(1)
    schemes = ("tcp", "tls", "unix")
    client = place.client([hosts[0].address(scheme) for scheme in schemes], ssl=place.trusting)
    results = client.do(lambda real: real.broadcast("Basic.count", key, 7))
    assert sorted(result for result in results.values()) == [7, 7, 7]
    assert sorted(address.partition(":")[0] for address in results) == sorted(schemes)


def test_token_that_is_wrong_is_said_by_the_server_itself(place: Place):
    hosts = place.hosts(1, token="right")
    client = place.client(hosts, token="wrong")
    with pytest.raises(CallError) as caught:
        client.call("Basic.echo", 1)
    assert caught.value.code == "unauthenticated"
    assert not isinstance(caught.value, HandshakeError)
    assert place.client(hosts, token="right").call("Basic.echo", 1) == 1


# Ends


def test_closed_client_says_so(place: Place):
    client = place.connected(place.hosts())
    client.close()
    client.close()
    for act in (
        lambda real: real.call("Basic.echo", 1),
        lambda real: real.request("Basic.echo", 1),
        lambda real: real.notify("Basic.echo", 1),
        lambda real: real.call("Basic.echo", 1, hedge=True),
        lambda real: real.broadcast("Basic.echo", 1),
        lambda real: real.race("Basic.echo", 1),
    ):
        with pytest.raises(LocalProtocolError, match="this client was closed"):
            client.do(act)


def test_client_that_was_never_used_can_be_closed(place: Place):
    place.client([GONE]).close()


def test_close_cancels_the_calls_in_flight(place: Place, key):
    hosts = place.hosts()
    client = place.connected(hosts)
    calls = [client.start("Gate.wait", key, idempotent=True) for _ in range(6)]
    until(lambda: sum(runs(hosts, key, "started")) == 6)
    client.close()
    assert {type(call.outcome()) for call in calls} == {Cancelled}
    until(lambda: sum(runs(hosts, key, "cancelled")) == 6)


def test_close_lets_calls_end_within_its_grace(place: Place, key):
    hosts = place.hosts()
    client = place.connected(hosts)
    calls = [client.start("Gate.wait", key) for _ in range(6)]
    until(lambda: sum(runs(hosts, key, "started")) == 6)
    closing = client.spawn(lambda real: real.close(grace=15.0))
    until(lambda: client._real.closed)
    for host in hosts:
        host.open(key)
    assert [call.outcome() for call in calls] == ["through"] * 6
    closing.result(15)


def test_close_ends_the_calls_that_wait_for_a_connection(place: Place):
    with black_hole() as address:
        client = place.client([address], connect_timeout=1.0)
        call = client.start("Basic.echo", 1)
        until(lambda: client._real._pool.dials)
        client.close()
        outcome = call.outcome()
    assert isinstance(outcome, Cancelled)
    assert not outcome.maybe_executed


def test_call_that_may_have_run_says_so_when_the_client_is_closed(place: Place, key):
    hosts = place.own_hosts(2)
    client = place.connected(hosts, retry_minimum=100.0)
    call = client.start("Gate.wait", key, idempotent=True)
    until(lambda: sum(runs(hosts, key, "started")) == 1)
    client.close()
    assert call.outcome().maybe_executed


def test_nodes_that_nobody_reaches_delay_no_close(place: Place):
    import time

    with black_hole() as address:
        client = place.client([address, *place.hosts(1)], connect_timeout=30.0)
        client.call("Basic.echo", 1)
        began = time.monotonic()
        client.close()
        assert time.monotonic() - began < SLACK
