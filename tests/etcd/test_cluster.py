"""Three servers: any one may stand still or die, or two of them, and the rest is found."""

import time

import pytest

from etcd.actors import describe, is_registered

A, B, C = (f"tcp://10.0.0.{n}:4000" for n in (1, 2, 3))


def member_of(cluster, machine):
    return cluster.members[cluster.endpoints.index(machine.endpoint)]


def put_elsewhere(cluster, frozen, key, value):
    """Write by a member that lives; while they elect a leader, as often as it takes."""
    [endpoint, *_] = [
        url
        for url, member in zip(cluster.endpoints, cluster.members, strict=True)
        if member is not frozen and member.running
    ]
    deadline = time.monotonic() + 30.0
    while True:
        try:
            cluster.ctl("--command-timeout=1s", "put", key, value.decode(), endpoint=endpoint)
        except RuntimeError:
            assert time.monotonic() < deadline
        else:
            return


# Case 4


@pytest.mark.slow
def test_watched_member_stands_still_and_another_one_is_found(cluster, cast, recovered):
    cast.register(cluster.endpoints, A)
    watch = cast.watch(cluster.endpoints)
    watch.sees(A)
    watch.until(lambda machine: machine._watching)
    frozen = member_of(cluster, watch.machine)
    frozen.freeze()
    began = time.monotonic()
    put_elsewhere(cluster, frozen, f"{cast.prefix}/Arith/{B}", describe(B))
    watch.sees(A, B)
    took = time.monotonic() - began
    recovered("the watched member of three stands still", took)
    assert took < 5 + 2 + 1 + 7  # a probe, its time, a pause; and what a busy machine takes
    assert all(len(view) for view in watch.views)
    watch.until(lambda machine: machine.stale_since is None)


@pytest.mark.slow
def test_member_of_a_registration_stands_still_and_its_lease_is_kept(cluster, cast, recovered):
    registration = cast.register(cluster.endpoints, A, ttl=6.0)
    lease = registration.machine.lease
    member_of(cluster, registration.machine).freeze()
    began = time.monotonic()
    registration.until(lambda machine: machine.failures)
    registration.until(lambda machine: not machine.failures)
    recovered("the member of a registration stands still", time.monotonic() - began)
    assert registration.machine.lease == lease


# Case 7


@pytest.mark.slow
def test_leader_is_killed(cluster, cast, recovered):
    registration = cast.register(cluster.endpoints, A, ttl=6.0)
    watch = cast.watch(cluster.endpoints)
    watch.sees(A)
    leader = cluster.leader()
    leader.kill()
    began = time.monotonic()
    put_elsewhere(cluster, leader, f"{cast.prefix}/Arith/{B}", describe(B))
    watch.sees(A, B)
    registration.until(is_registered)
    recovered("the leader is killed", time.monotonic() - began)
    assert all(len(view) for view in watch.views)


@pytest.mark.fault(55)
@pytest.mark.slow
def test_quorum_is_lost_and_returns(cluster, cast, recovered):
    registration = cast.register(cluster.endpoints, A, ttl=6.0)
    watch = cast.watch(cluster.endpoints)
    watch.sees(A)
    leader = cluster.leader()
    gone = [member for member in cluster.members if member is not leader]
    for member in gone:
        member.kill()
    registration.until(lambda machine: machine.failures)
    watch.until(lambda machine: machine.stale_since is not None)
    time.sleep(3.0)
    assert [node.address for node in watch.machine.view] == [A]
    for member in gone:
        member.launch()
    for member in gone:
        member.await_health()
    put_elsewhere(cluster, None, f"{cast.prefix}/Arith/{B}", describe(B))
    began = time.monotonic()  # it takes writes again: elections may go on behind its health
    watch.sees(A, B)
    registration.until(is_registered)
    watch.until(lambda machine: machine.stale_since is None)
    recovered("quorum lost and back", time.monotonic() - began)
    assert all(len(view) for view in watch.views)


@pytest.mark.slow
def test_first_endpoint_may_be_a_server_that_is_not_there(cluster, cast):
    endpoints = ["http://127.0.0.1:1", *cluster.endpoints[:1]]
    cast.register(endpoints, C)
    watch = cast.watch(endpoints)
    watch.sees(C)
    watch.until(lambda machine: machine.stale_since is None)
