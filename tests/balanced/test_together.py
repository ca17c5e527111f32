"""Calls that go to several nodes: broadcast, fork, hedge."""

import pytest

from balanced.support import Place, runs, stats
from conformance.runtimes import GAVE_UP, until
from rpc_common.balanced.base import BroadcastFailed
from rpc_discovery import Node
from rpc_proto import Aborted, CallError, DeadlineExceeded, NotFound, Unavailable

GONE = "tcp://127.0.0.1:1"
SOUND = 25  # calls after which it is known how long they take


def broadcast(client, *args, **named):
    return client.do(lambda real: real.broadcast(*args, **named))


# Broadcast


@pytest.mark.parametrize("policy", ["each", "all", "any"])
def test_broadcast_asks_all_nodes(place: Place, key, policy):
    hosts = place.hosts()
    client = place.client(hosts)
    results = broadcast(client, "Basic.count", key, 3, policy=policy)
    assert results == {host.address(): 3 for host in hosts}
    assert runs(hosts, key) == [1, 1, 1]


def test_broadcast_to_each_tells_who_failed(place: Place):
    hosts = place.hosts(2)
    results = broadcast(place.client([*hosts, GONE]), "Basic.echo", 1)
    failed = results.pop(GONE)
    assert isinstance(failed, Unavailable)
    assert not failed.maybe_executed
    assert list(results.values()) == [1, 1]


def test_broadcast_to_all_fails_if_one_does_and_holds_the_results(place: Place):
    hosts = place.hosts(2)
    with pytest.raises(BroadcastFailed, match=r"1 of 3 nodes failed: tcp://.*:1: ") as caught:
        broadcast(place.client([*hosts, GONE]), "Basic.echo", 1, policy="all")
    assert caught.value.code == "aborted"
    assert isinstance(caught.value, CallError)
    assert not isinstance(caught.value, Aborted)
    assert caught.value.results[hosts[0].address()] == 1


def test_broadcast_to_any_is_content_with_one(place: Place):
    client = place.client([*place.hosts(1), GONE])
    assert 1 in broadcast(client, "Basic.echo", 1, policy="any").values()
    with pytest.raises(BroadcastFailed, match="2 of 2 nodes failed"):
        broadcast(client, "Failing.not_found", "k", policy="any")


def test_broadcast_for_the_first_cancels_the_others(place: Place, key):
    hosts = place.hosts()
    client = place.connected(hosts)
    pending = client.spawn(lambda real: real.broadcast("Gate.wait", key, policy="first"))
    until(lambda: runs(hosts, key, "started") == [1, 1, 1])
    hosts[1].open(key)
    assert pending.result(15) == {hosts[1].address(): "through"}
    hosts[0].wait("cancelled", key)
    hosts[2].wait("cancelled", key)
    until(lambda: stats(client)["in_flight"] == 0)


def test_broadcast_for_the_first_fails_when_all_do(place: Place):
    with pytest.raises(BroadcastFailed, match="2 of 2"):
        broadcast(place.client(place.hosts(2)), "Failing.own_code", policy="first")


def test_broadcast_has_one_deadline(place: Place, key):
    hosts = place.hosts()
    results = broadcast(place.connected(hosts), "Gate.wait", key, timeout=0.3)
    assert {type(result) for result in results.values()} == {DeadlineExceeded}


def test_broadcast_to_more_nodes_than_are_asked_at_a_time(place: Place, key):
    host = place.hosts(1)[0]
    schemes = [host.address("tcp"), host.address("unix")]
    dead = [f"tcp://127.0.0.1:{port}" for port in range(1, 100)]
    results = broadcast(place.client([*dead, *schemes]), "Basic.echo", 1)
    assert len(results) == 101
    assert [results[address] for address in schemes] == [1, 1]


def test_broadcast_of_a_service_that_nobody_offers(place: Place):
    nodes = [Node(host.address(), ["Basic"]) for host in place.hosts(1)]
    with pytest.raises(Unavailable, match="no node offers 'Nobody'"):
        broadcast(place.client(nodes), "Nobody.asks")


def test_policy_that_there_is_not(place: Place):
    with pytest.raises(ValueError, match="policy must be one of each, all, any, first, not 'most'"):
        broadcast(place.client([GONE]), "Basic.echo", policy="most")


# Fork


def race(client, *args, **named):
    return client.do(lambda real: real.race(*args, **named))


def test_fork_takes_the_first_answer_and_cancels_the_other_calls(place: Place, key):
    hosts = place.hosts()
    client = place.connected(hosts)
    pending = client.spawn(lambda real: real.race("Gate.wait", key, count=2))
    until(lambda: sum(runs(hosts, key, "started")) == 2)
    first, second = (host for host in hosts if host.count("started", key))
    second.open(key)
    assert pending.result(15) == "through"
    first.wait("cancelled", key)
    until(lambda: stats(client)["in_flight"] == 0)


def test_fork_is_content_with_fewer_nodes(place: Place, key):
    hosts = place.hosts(2)
    assert race(place.client(hosts), "Basic.count", key, 1, count=5) == 1


def test_fork_survives_a_node_that_is_gone(place: Place):
    client = place.client([GONE, *place.hosts(1)])
    for number in range(5):
        assert race(client, "Basic.echo", number) == number


def test_fork_that_fails_everywhere_raises_what_the_last_one_did(place: Place):
    with pytest.raises(NotFound):
        race(place.client(place.hosts(2)), "Failing.not_found", "k")


def test_fork_wants_a_number_of_nodes(place: Place):
    with pytest.raises(ValueError, match="count must be a whole number from 1 up, not 0"):
        race(place.client([GONE]), "Basic.echo", count=0)


def test_fork_that_is_given_up_cancels_its_calls(place: Place, key):
    if place.backend == "blocking":
        pytest.skip("a thread cannot be interrupted from outside")
    hosts = place.hosts(2)
    client = place.connected(hosts)
    give_up = place.runtime.start(_Forking(client._real), "Gate.wait", (key,), {})
    until(lambda: runs(hosts, key, "started") == [1, 1])
    give_up.cancel()
    assert give_up.outcome() == GAVE_UP
    for host in hosts:
        host.wait("cancelled", key)
    until(lambda: stats(client)["in_flight"] == 0)


class _Forking:
    """A client whose calls are forks."""

    def __init__(self, real):
        self.call = real.race


# Hedging


def make_sound(client):
    """Make known how long calls take, which is nearly no time."""
    for number in range(SOUND):
        assert client.call("Gate.wait", "open", number, hedge=True) == number


@pytest.fixture
def hedging(place: Place):
    hosts = place.own_hosts(2)
    for host in hosts:
        host.open("open")
    client = place.connected(hosts)
    make_sound(client)
    return hosts, client


def test_second_node_is_asked_when_the_first_is_late_and_the_loser_is_cancelled(hedging, key):
    hosts, client = hedging
    before = runs(hosts, "open", "started")
    pending = client.start("Gate.wait", key, hedge=True)
    until(lambda: runs(hosts, key, "started") == [1, 1])
    hosts[1].open(key)
    assert pending.outcome() == "through"
    hosts[0].wait("cancelled", key)
    assert runs(hosts, "open", "started") == before
    until(lambda: stats(client)["in_flight"] == 0)


def test_hedge_that_fails_everywhere_raises_the_last_error(hedging):
    _, client = hedging
    with pytest.raises(NotFound):
        client.call("Failing.not_found", "k", hedge=True)


def test_second_attempts_are_in_the_budget(place: Place, key):
    hosts = place.own_hosts(2)
    for host in hosts:
        host.open("open")
    client = place.connected(hosts, retry_ratio=0.0, retry_minimum=0.0)
    make_sound(client)
    with pytest.raises(DeadlineExceeded):
        client.call("Gate.wait", key, hedge=True, timeout=0.4)
    assert sum(runs(hosts, key, "started")) == 1


def test_hedge_of_one_node_is_one_call(place: Place, key):
    hosts = place.own_hosts(1)
    hosts[0].open("open")
    client = place.connected(hosts)
    make_sound(client)
    with pytest.raises(DeadlineExceeded):
        client.call("Gate.wait", key, hedge=True, timeout=0.4)
    assert runs(hosts, key, "started") == [1]


@pytest.mark.parametrize("options", [{"node": GONE}, {"idempotent": False}])
def test_what_cannot_be_hedged_is_refused(place: Place, options):
    with pytest.raises(ValueError, match=r"hedge .* cannot be combined with"):
        place.client([GONE]).call("Basic.echo", 1, hedge=True, **options)
