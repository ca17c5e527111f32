"""Nodes that die, hang, drain or come back, and what callers see of it."""

import math
import socket
import time

import pytest

from balanced.support import SLACK, Place, runs, stats
from conformance.hosts import HostProcess
from conformance.proxy import proxied
from conformance.runtimes import GAVE_UP, Client, until
from rpc_proto import (
    CallError,
    DeadlineExceeded,
    ResourceExhausted,
    Unavailable,
)
from support.network import black_hole


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def fill(client: Client, host: HostProcess, key: str) -> None:
    """Let a call run and one wait, on a server that takes no more."""
    for _ in range(2):
        client.start("Gate.wait", key, node=host.address())
    host.settle(running=1, queued=1)


# Servers that are killed


def test_kill_between_calls_is_not_noticed_by_idempotent_calls(place: Place, key):
    hosts = place.own_hosts()
    client = place.connected(hosts, idempotent=True)
    hosts[0].kill()
    for number in range(30):
        assert client.call("Basic.count", key, number) == number
    assert sum(runs(hosts[1:], key)) == 30
    assert stats(client)["connected"] == 2


def test_kill_during_calls_is_not_noticed_by_idempotent_calls(place: Place, key):
    hosts = place.own_hosts()
    client = place.connected(hosts)
    calls = [client.start("Gate.wait", key, idempotent=True) for _ in range(12)]
    until(lambda: runs(hosts, key, "started") == [4, 4, 4])
    hosts[1].kill()
    until(lambda: sum(runs([hosts[0], hosts[2]], key, "started")) == 12)
    for host in (hosts[0], hosts[2]):
        host.open(key)
    assert [call.outcome() for call in calls] == ["through"] * 12
    assert stats(client)["failovers"] == 4
    assert stats(client)["in_flight"] == 0
    assert stats(client)["ejected"] == 0  # a lost connection is one failure, not four


def test_kill_during_calls_ends_the_others_as_unavailable_and_nothing_runs_twice(place: Place, key):
    hosts = place.own_hosts()
    client = place.connected(hosts)
    calls = {f"{key}-{n}": client.start("Gate.wait", f"{key}-{n}") for n in range(12)}
    until(lambda: sum(sum(runs(hosts, one, "started")) for one in calls) == 12)
    doomed = {one for one in calls if hosts[1].count("started", one)}
    hosts[1].kill()
    left = [hosts[0], hosts[2]]
    for one, call in calls.items():
        for host in left:
            host.open(one)
        outcome = call.outcome()
        if one in doomed:
            assert isinstance(outcome, Unavailable)
            assert outcome.maybe_executed
            assert hosts[1].address() in outcome.message
        else:
            assert outcome == "through"
    started = {one: sum(runs(left, one, "started")) for one in calls}
    assert started == {one: int(one not in doomed) for one in calls}


def test_calls_that_may_not_be_repeated_run_at_most_once_while_servers_die(place: Place, key):
    hosts = place.own_hosts()
    client = place.connected(hosts)
    hosts[0].kill()
    failed = surely_not = 0
    for _ in range(30):
        try:
            client.call("Basic.count", key)
        except Unavailable as error:
            failed += 1
            surely_not += not error.maybe_executed
    assert failed <= 1  # only what was sent before the client could know
    assert surely_not == 0  # what surely did not run went to another node
    assert sum(runs(hosts[1:], key)) == 30 - failed


def test_last_error_names_all_that_was_tried(place: Place, key):
    hosts = place.own_hosts(2)
    client = place.connected(hosts)
    call = client.start("Gate.wait", key, idempotent=True)
    until(lambda: sum(runs(hosts, key, "started")) == 1)
    first, second = hosts if hosts[0].count("started", key) else hosts[::-1]
    first.kill()
    until(lambda: second.count("started", key) == 1)
    second.kill()
    outcome = call.outcome()
    assert isinstance(outcome, Unavailable)
    assert outcome.maybe_executed
    assert "no node of Gate can be reached" in outcome.message
    assert first.address() in outcome.message
    assert second.address() in outcome.message


def test_server_that_comes_back_gets_calls_again(place: Place, key):
    port = free_port()
    host = place.own_host(0, port=port)
    other = place.own_host(1)
    client = place.connected([host, other], idempotent=True)
    host.kill()
    for _ in range(6):
        client.call("Basic.echo", 1)
    again = place.own_host(2, port=port)
    until(lambda: client.call("Basic.count", key) is None and again.count("runs", key) > 0)
    assert stats(client)["ejected"] == 0


def test_only_node_that_is_gone_is_said_at_once_and_dialled_again(place: Place):
    port = free_port()
    client = place.client([f"tcp://127.0.0.1:{port}"])
    began = time.monotonic()
    with pytest.raises(Unavailable, match=r"no node of Basic .* no connection .*111") as caught:
        client.call("Basic.echo", 1, timeout=15.0)
    assert time.monotonic() - began < SLACK
    assert not caught.value.maybe_executed
    place.own_host(0, port=port)

    def works() -> bool:
        try:
            return client.call("Basic.echo", 1) == 1
        except Unavailable:
            return False

    until(works)


# Nodes that do not answer


def test_node_that_cannot_be_dialled_stalls_no_call_to_others(place: Place):
    with black_hole() as address:
        client = place.client([address, *place.hosts(2)], connect_timeout=3.0)
        began = time.monotonic()
        for number in range(30):
            assert client.call("Basic.echo", number, timeout=15.0) == number
        assert time.monotonic() - began < 2.5
        client.close()


def test_node_that_cannot_be_dialled_stalls_no_first_call_of_any_kind(place: Place):
    with black_hole() as address:
        nodes = [address, *place.hosts(2)]
        began = time.monotonic()
        for call in (
            lambda client: client.request("Basic.echo", 1).value,
            lambda client: client.call("Basic.echo", 1, hedge=True),
            lambda client: client.call("Basic.echo", 1),
        ):
            client = place.client(nodes, connect_timeout=30.0)
            assert call(client) == 1
            client.close()
        assert time.monotonic() - began < 5.0


def test_deadline_covers_dialling(place: Place):
    with black_hole() as address:
        client = place.client([address], connect_timeout=1.0)
        began = time.monotonic()
        with pytest.raises(DeadlineExceeded, match=f"while {address} was dialled") as caught:
            client.call("Basic.echo", 1, timeout=0.3)
        assert 0.25 < time.monotonic() - began < 0.9
        assert not caught.value.maybe_executed
        with pytest.raises(Unavailable, match="within 1 s"):
            client.call("Basic.echo", 1, timeout=15.0)


def test_deadline_covers_attempts(place: Place, key):
    client = place.connected(place.hosts(2))
    began = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        client.call("Gate.wait", key, timeout=0.3, idempotent=True)
    assert 0.25 < time.monotonic() - began < SLACK


def test_deadline_covers_repetitions(place: Place, key):
    full = place.own_host(0, max_concurrency=1, max_queued=1)
    client = place.connected([full], max_attempts=100, retry_minimum=1000.0)
    fill(client, full, key)
    began = time.monotonic()
    with pytest.raises((DeadlineExceeded, ResourceExhausted)):
        client.call("Basic.echo", 1, timeout=0.4, idempotent=True)
    assert 0.35 < time.monotonic() - began < SLACK


def test_frozen_node_costs_those_calls_alone_that_go_there(place: Place, key):
    hosts = place.own_hosts()
    client = place.connected(hosts)
    hosts[0].freeze()
    calls = [client.start("Basic.echo", n, timeout=15.0) for n in range(12)]
    until(lambda: sum(call.done for call in calls) == 8)
    hosts[0].thaw()
    assert [call.outcome() for call in calls] == list(range(12))


def test_node_that_lets_deadlines_pass_is_ejected(place: Place):
    hosts = place.own_hosts(2)
    client = place.connected(hosts)
    hosts[0].freeze()
    calls = [client.start("Basic.echo", n, timeout=0.3) for n in range(12)]
    outcomes = [call.outcome() for call in calls]
    assert sum(isinstance(outcome, DeadlineExceeded) for outcome in outcomes) == 6
    assert stats(client)["ejected"] == 1
    for number in range(10):
        assert client.call("Basic.echo", number, timeout=15.0) == number
    hosts[0].thaw()


# Nodes that refuse, and drain


def test_node_without_room_passes_calls_on(place: Place, key):
    full = place.own_host(0, max_concurrency=1, max_queued=1)
    other = place.own_host(1)
    client = place.connected([full, other])
    fill(client, full, key)
    for number in range(10):
        assert client.call("Basic.echo", number) == number


def test_drain_moves_calls_without_a_failure(place: Place, key):
    hosts = place.own_hosts()
    client = place.connected(hosts)
    waiting = [client.start("Gate.wait", key, timeout=20.0) for _ in range(6)]
    until(lambda: runs(hosts, key, "started") == [2, 2, 2])
    hosts[0].begin_stop(grace=15.0)
    for number in range(60):
        assert client.call("Basic.echo", number) == number
    for host in hosts:
        host.open(key)
    assert [call.outcome() for call in waiting] == ["through"] * 6
    assert hosts[0].stopped()
    for number in range(20):
        assert client.call("Basic.echo", number) == number


def test_old_connections_are_replaced_without_a_failed_call(place: Place):
    hosts = place.hosts(2)
    client = place.connected(hosts, max_age=1.0)
    first = {id(target): target.client for target in client._real._pool.targets.values()}

    def replaced() -> bool:
        assert client.call("Basic.echo", 1) == 1
        targets = client._real._pool.targets.values()
        return all(target.client is not first[id(target)] for target in targets)

    until(replaced)
    assert stats(client)["failovers"] == 0
    until(lambda: all(old.closed for old in first.values()))


def test_connections_that_break_are_made_again(place: Place, key):
    host = place.hosts(1)[0]
    with proxied(host.address()) as proxy:
        client = place.client([proxy.address])
        call = client.start("Gate.wait", key, idempotent=True)
        host.wait("started", key)
        proxy.reset()
        host.wait("started", key, 2)
        host.open(key)
        assert call.outcome() == "through"


# Dialling


def test_calls_that_wait_share_one_dial(place: Place, key):
    host = place.own_host()
    client = place.client([host])
    calls = [client.start("Gate.wait", key) for _ in range(20)]
    host.wait("started", key, 20)
    assert host.stats["connections"] == 1
    host.open(key)
    assert [call.outcome() for call in calls] == ["through"] * 20


def test_call_can_be_given_up_while_it_waits_for_a_dial(place: Place):
    if place.backend == "blocking":
        pytest.skip("a thread cannot be interrupted from outside")
    with black_hole() as address:
        client = place.client([address], connect_timeout=1.0)
        call = client.start("Basic.echo", 1)
        until(lambda: client._real._pool.dials)
        began = time.monotonic()
        call.cancel()
        assert call.outcome() == GAVE_UP
        assert time.monotonic() - began < 0.9
        client.close()


def test_call_can_be_given_up_while_it_runs(place: Place, key):
    if place.backend == "blocking":
        pytest.skip("a thread cannot be interrupted from outside")
    hosts = place.hosts()
    client = place.connected(hosts)
    for number in range(3):
        call = client.start("Gate.wait", key, idempotent=True)
        until(lambda n=number: sum(runs(hosts, key, "started")) == n + 1)
        call.cancel()
        assert call.outcome() == GAVE_UP
        until(lambda n=number: sum(runs(hosts, key, "cancelled")) == n + 1)
    assert stats(client)["in_flight"] == 0
    assert stats(client)["failovers"] == 0


def test_call_can_be_given_up_between_attempts(place: Place, key):
    if place.backend == "blocking":
        pytest.skip("a thread cannot be interrupted from outside")
    full = place.own_host(0, max_concurrency=1, max_queued=1)
    client = place.connected([full], max_attempts=100, retry_minimum=1000.0)
    fill(client, full, key)
    call = client.start("Basic.echo", 1, idempotent=True, timeout=math.inf)
    until(lambda: stats(client)["failovers"] > 3)
    call.cancel()
    assert call.outcome() == GAVE_UP
    assert stats(client)["in_flight"] == 2  # what fills the node


def test_nodes_may_be_many_and_mostly_dead(place: Place):
    dead = [f"tcp://127.0.0.1:{port}" for port in range(1, 30)]
    hosts = place.hosts(2)
    client = place.client([*dead, *hosts])
    for number in range(50):
        assert client.call("Basic.echo", number) == number
    connect_to = [host.address() for host in hosts]
    for address in connect_to:
        assert client.call("Basic.echo", 1, node=address) == 1
    with pytest.raises(CallError, match="Errno 111"):
        client.call("Basic.echo", 1, node=dead[0])
