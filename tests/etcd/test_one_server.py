"""Registrations and watches of each backend heal by themselves, whatever happens to one etcd."""

import json
import signal
import time

import pytest

from etcd.actors import describe, is_registered, put, relay
from rpc_discovery import Node, SourceFailed

A, B, C = (f"tcp://10.0.0.{n}:4000" for n in (1, 2, 3))


# Case 1


def test_node_is_listed_watched_and_seen_to_go(etcd, cast, recovered):
    first = cast.register(etcd.endpoints, A)
    watch = cast.watch(etcd.endpoints)
    watch.sees(A)
    began = time.monotonic()
    second = cast.register(etcd.endpoints, B)
    watch.sees(A, B)
    recovered("a node starts", time.monotonic() - began)
    first.tell("update", services=["Arith", "Log"])
    watch.until(lambda machine: any("Log" in node.services for node in machine.view))
    began = time.monotonic()
    second.leave()
    watch.sees(A)
    recovered("a node deregisters", time.monotonic() - began)
    keys = etcd.ctl("get", "--prefix", "--keys-only", cast.prefix).split()
    assert keys == [f"{cast.prefix}/Arith/{A}", f"{cast.prefix}/Log/{A}"]


@pytest.mark.slow
def test_node_that_is_killed_is_gone_after_its_ttl(etcd, cast, node, recovered):
    process = node("serve", etcd.endpoints[0], cast.prefix)
    address = process.stdout.readline().decode().strip()
    watch = cast.watch(etcd.endpoints)
    watch.sees(address)
    process.kill()
    took = watch.sees()
    recovered("a node is killed (ttl 2 s)", took)
    assert took < 2 + 1 + 5  # a second, and what a busy machine takes


def test_nodes_of_one_service_may_be_watched_alone(etcd, cast):
    cast.register(etcd.endpoints, Node(A, {"Arith": "0123456789ab", "Log": ""}, weight=2.0))
    cast.register(etcd.endpoints, Node(B, ["Log"]))
    watch = cast.watch(etcd.endpoints, service="Arith")
    watch.sees(A)
    assert list(watch.machine.view) == [Node(A, {"Arith": "0123456789ab"}, weight=2.0)]


# Cases 2 and 3


@pytest.mark.fault(55)
@pytest.mark.parametrize(
    "how",
    [
        "stop",
        pytest.param("kill", marks=pytest.mark.slow),
        pytest.param("outage", marks=pytest.mark.slow),
    ],
)
def test_restart_of_etcd_loses_nothing_and_shows_no_empty_view(how, etcd, cast, recovered):
    [member] = etcd.members
    first = cast.register(etcd.endpoints, A)
    watch = cast.watch(etcd.endpoints)
    watch.sees(A)
    put(etcd, {f"{cast.prefix}/Arith/{B}".encode(): describe(B)})
    member.stop() if how == "stop" else member.kill()
    if how == "outage":
        watch.until(lambda machine: machine.stale_since is not None)
        time.sleep(5.0)
    member.start()
    began = time.monotonic()
    put(etcd, {f"{cast.prefix}/Arith/{C}".encode(): describe(C)})
    watch.sees(A, B, C)
    first.until(is_registered)
    recovered(
        {"outage": "an outage of 5 s"}.get(how, f"a restart ({how})"), time.monotonic() - began
    )
    watch.until(lambda machine: machine.stale_since is None)
    assert all(len(view) for view in watch.views)
    assert watch.machine.listings == 1


@pytest.mark.fault(60)
@pytest.mark.slow
def test_node_returns_after_etcd_stood_still_for_longer_than_its_ttl(etcd, cast, recovered):
    registration = cast.register(etcd.endpoints, A, ttl=2.0)
    watch = cast.watch(etcd.endpoints)
    watch.sees(A)
    etcd.members[0].freeze()
    registration.until(lambda machine: not is_registered(machine) and machine.failures)
    time.sleep(1.0)
    etcd.members[0].thaw()
    began = time.monotonic()
    registration.until(is_registered)
    watch.sees(A)
    recovered("etcd stood still, longer than the ttl", time.monotonic() - began)
    leases = etcd.ctl("get", f"{cast.prefix}/Arith/{A}", "-w", "json")
    assert json.loads(leases)["kvs"][0]["lease"] == registration.machine.lease


@pytest.mark.fault(60)
@pytest.mark.slow
def test_node_returns_after_it_stood_still_for_longer_than_its_ttl(etcd, cast, node, recovered):
    process = node("serve", etcd.endpoints[0], cast.prefix)
    address = process.stdout.readline().decode().strip()
    watch = cast.watch(etcd.endpoints)
    watch.sees(address)
    process.send_signal(signal.SIGSTOP)
    watch.sees()
    process.send_signal(signal.SIGCONT)
    recovered("a node stood still, longer than its ttl", watch.sees(address))


# Case 5


@pytest.mark.fault(61)
def test_what_was_deleted_and_compacted_meanwhile_is_gone(etcd, cast, between, recovered):
    cast.register(etcd.endpoints, A)
    put(etcd, {f"{cast.prefix}/Arith/{B}".encode(): describe(B)})
    watch = cast.watch([between.endpoint])
    watch.sees(A, B)
    between.cut()
    watch.until(lambda machine: machine.stale_since is not None)
    etcd.ctl("del", f"{cast.prefix}/Arith/{B}")
    put(etcd, {b"/other": b"1"})
    revision = json.loads(etcd.ctl("get", "/other", "-w", "json"))["header"]["revision"]
    etcd.ctl("compact", str(revision))
    between.mend()
    recovered("compacted meanwhile", watch.sees(A))
    assert watch.machine.listings == 2
    assert all(len(view) for view in watch.views)


# Case 6


@pytest.mark.fault(60)
def test_node_returns_when_its_lease_is_revoked_by_somebody(etcd, cast, recovered):
    registration = cast.register(etcd.endpoints, A, ttl=3.0)
    watch = cast.watch(etcd.endpoints)
    watch.sees(A)
    old = registration.machine.lease
    etcd.ctl("lease", "revoke", f"{old:x}")
    watch.sees()
    recovered("a lease is revoked (ttl 3 s)", watch.sees(A))
    assert registration.machine.lease != old
    assert [e.reason for e in registration.events if isinstance(e, SourceFailed)] == [
        "the lease is gone"
    ]


@pytest.mark.slow
def test_node_returns_when_its_key_is_deleted_by_somebody(etcd, cast, recovered):
    cast.register(etcd.endpoints, A, ttl=3.0)
    watch = cast.watch(etcd.endpoints)
    watch.sees(A)
    etcd.ctl("del", f"{cast.prefix}/Arith/{A}")
    watch.sees()
    recovered("a key is deleted (ttl 3 s)", watch.sees(A))


# Case 8


@pytest.mark.fault(54)
@pytest.mark.slow
def test_view_is_rebuilt_when_the_data_of_etcd_are_wiped(etcd, cast, recovered):
    [member] = etcd.members
    registrations = [cast.register(etcd.endpoints, address, ttl=3.0) for address in (A, B)]
    watch = cast.watch(etcd.endpoints, grace=30.0)
    watch.sees(A, B)
    member.stop()
    member.wipe()
    member.start()
    began = time.monotonic()
    for registration in registrations:
        registration.until(is_registered)
    watch.until(lambda machine: machine.stale_since is None and machine.listings > 1)
    recovered("data wiped (ttl 3 s)", time.monotonic() - began)
    watch.sees(A, B)
    assert all(len(view) == 2 for view in watch.views)
    put(etcd, {f"{cast.prefix}/Arith/{C}".encode(): describe(C)})
    watch.sees(A, B, C)


# Case 11


@pytest.mark.parametrize("prefix", [b"/x\xff", b"\xff\xff", "/ü", ""])
def test_prefix_may_be_anything(prefix, etcd, cast):
    cast.prefix = prefix
    start = prefix.encode() if isinstance(prefix, str) else prefix
    put(etcd, {start + b"0/Arith/x": describe(C), start + b"\xff/Arith/x": describe(C)})
    registration = cast.register(etcd.endpoints, A)
    watch = cast.watch(etcd.endpoints, service="Arith")
    watch.sees(A)
    other = cast.register(etcd.endpoints, B)
    watch.sees(A, B)
    registration.leave()
    watch.sees(B)
    other.leave()


def test_keys_and_values_that_are_not_a_nodes_harm_nobody(etcd, cast):
    prefix = cast.prefix.encode()
    bad = {
        prefix + b"/Arith/1": b"",
        prefix + b"/Arith/2": b"\x00\xff\x00binary",
        prefix + b"/Arith/3": b'{"address":"file:///etc/passwd"}',
        prefix + b"/\xff\xfe/4": describe(C),
        prefix + b"/nothing": describe(C),
    }
    put(etcd, bad)
    cast.register(etcd.endpoints, A)
    watch = cast.watch(etcd.endpoints)
    watch.sees(A)
    assert watch.machine.refused_nodes == len(bad)
    put(etcd, {prefix + b"/Log/5": b"[]", prefix + b"/Arith/1": describe(B)})
    watch.sees(A, B)
    assert watch.machine.refused_nodes == len(bad)


# Case 12


@pytest.mark.slow
def test_list_of_over_4_megabytes_and_a_burst_of_a_thousand_changes(etcd, cast, between, recovered):
    metadata = {f"m{n}": "x" * 250 for n in range(16)}
    addresses = [f"tcp://10.1.{n // 250}.{n % 250}:4000" for n in range(1100)]
    prefix = cast.prefix.encode() + b"/Arith/"
    put(etcd, {prefix + a.encode(): describe(a, metadata=metadata) for a in addresses[:1050]})
    cast.register(etcd.endpoints, A)
    began = time.monotonic()
    watch = cast.watch([between.endpoint])
    watch.sees(A, *addresses[:1050])
    recovered("a first list of 4.4 MB", time.monotonic() - began)
    between.cut()
    watch.until(lambda machine: machine.stale_since is not None)
    put(etcd, {prefix + a.encode(): describe(a, weight=2) for a in addresses[:950]})
    put(etcd, {prefix + a.encode(): describe(a) for a in addresses[1050:]})
    between.mend()
    recovered("a burst of 1,000 changes", watch.sees(A, *addresses))
    assert sum(node.weight == 2 for node in watch.machine.view) == 950
    assert watch.machine.listings == 1
    etcd.ctl("del", "--prefix", cast.prefix)


@pytest.mark.slow
def test_what_is_too_long_for_one_answer_comes_in_several(etcd, cast, between):
    metadata = {f"{n:02}" + "m" * 250: "x" * 256 for n in range(64)}
    services = {f"{n:02}" + "s" * 250: "" for n in range(40)}
    addresses = [f"tcp://10.1.{n // 250}.{n % 250}:4000" for n in range(400)]
    prefix = cast.prefix.encode() + b"/Arith/"

    def put_all(**more):
        more |= {"services": services, "metadata": metadata}
        put(etcd, {prefix + a.encode(): describe(a, **more) for a in addresses})  # 18 MB

    put_all()
    watch = cast.watch([between.endpoint])
    watch.sees(*addresses)
    between.cut()
    watch.until(lambda machine: machine.stale_since is not None)
    put_all(weight=2)
    between.mend()
    watch.until(lambda machine: all(node.weight == 2 for node in machine.view))
    assert watch.machine.listings == 2  # the second one in place of what the watch had to say
    etcd.ctl("del", "--prefix", cast.prefix)


# Case 13


@pytest.mark.slow
def test_late_answers_to_what_was_given_up_harm_nobody(etcd, cast, recovered):
    other = cast.prefix + "-other"
    with relay(etcd) as one, relay(etcd) as two:
        here = cast.watch([one.endpoint], timeout=0.5)
        there = cast.watch([two.endpoint], timeout=0.5, prefix=other)
        put(etcd, {f"{cast.prefix}/Arith/{A}".encode(): describe(A)})
        put(etcd, {f"{other}/Arith/{B}".encode(): describe(B)})
        here.sees(A)
        there.sees(B)
        for cut in (one, two):
            cut.cut()
        etcd.members[0].freeze()
        for cut in (one, two):
            cut.mend()
        for watch in (here, there):  # dials are answered by the kernel, questions by nobody
            watch.until(lambda machine: machine.failures >= 4)
        etcd.members[0].thaw()
        began = time.monotonic()
        put(etcd, {f"{cast.prefix}/Arith/{C}".encode(): describe(C)})
        here.sees(A, C)
        etcd.ctl("del", f"{other}/Arith/{B}")
        there.sees()
        recovered("answers come late", time.monotonic() - began)
        assert all(B not in view for view in here.views)


# Case 14


def test_process_with_a_watch_ends_when_its_work_is_done(etcd, cast, node):
    served = node("serve", etcd.endpoints[0], cast.prefix)
    assert served.stdout.readline()
    watching = node("watch", etcd.endpoints[0], cast.prefix)
    assert watching.stdout.readline() == b"3\n"
    for process in (watching, served):
        _, errors = process.communicate(timeout=20.0)
        assert (process.returncode, errors) == (0, b"")
    assert etcd.ctl("get", "--prefix", cast.prefix) == ""
