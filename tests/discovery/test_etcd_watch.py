"""A watch of etcd: what is believed of it, and what stays when it is gone."""

import json
import random
from math import inf

import pytest

from rpc_discovery import Node, SourceFailed, SourceReached, StaleChanged, ViewChanged
from rpc_discovery.etcd import EtcdWatch
from rpc_discovery.etcd.operations import (
    Authenticate,
    Authenticated,
    Change,
    Header,
    KeyValue,
    Range,
    Ranged,
    Watch,
    Watched,
    prefix_end,
)
from rpc_fuzz.etcd import URLS, World, held, seen
from support.machines import told

URL = "http://etcd:2379"
A, B, C, D = (f"tcp://{name}:1" for name in "abcd")


def header(revision=10, cluster=7, term=2):
    return Header(cluster, 1, revision, term)


def kv(address, revision=10, lease=5, service="Arith", **more):
    value = json.dumps({"address": address, **more}).encode()
    return KeyValue(f"/rpc/{service}/{address}".encode(), value, revision, lease)


def make(endpoints=(URL,), rng=lambda: 0.5, grace=0.0, **settings):
    return EtcdWatch(endpoints, now=0.0, rng=rng, grace=grace, **settings)


def asked(machine):
    [operation] = machine.operations_to_send()
    return operation


def watching(*kvs, now=0.0, **settings):
    """A watch that has listed these at revision 10 and is there; with its id."""
    machine = make(**settings)
    machine.result(now, asked(machine).id, Ranged(header(), list(kvs)))
    operation = asked(machine)
    assert isinstance(operation.question, Watch)
    machine.message(now, operation.id, Watched(header(), created=True))
    return machine, operation.id


def changed(revision, *kvs, deleted=False):
    changes = [Change(one._replace(revision=revision), deleted) for one in kvs]
    return Watched(header(revision), changes=changes)


def addresses(machine):
    return sorted(node.address for node in machine.view)


def go_on(machine):
    now = machine.next_timeout()
    machine.handle_timeout(now)
    return now


# Listing and watching


def test_list_comes_first_then_the_watch_from_the_next_revision_on():
    machine = make()
    assert machine.age(1.0) == inf
    operation = asked(machine)
    assert operation.question == Range(b"/rpc/", b"/rpc0", limit=500)
    events = told(machine.result, 0.0, operation.id, Ranged(header(10), [kv(A)]))
    assert [type(event) for event in events] == [ViewChanged]
    operation = asked(machine)
    assert operation.question == Watch(b"/rpc/", b"/rpc0", 11)
    events = told(machine.message, 0.0, operation.id, Watched(header(10), created=True))
    assert events == [SourceReached(URL)]


def test_one_service_has_a_prefix_of_its_own():
    operation = asked(make(service="a/b", prefix="/x/"))
    assert operation.question == Range(b"/x/a%2Fb/", b"/x/a%2Fb0", limit=500)


@pytest.mark.parametrize(
    ("prefix", "end"),
    [(b"/rpc/", b"/rpc0"), (b"a\xff", b"b"), (b"a\xff\xff", b"b"), (b"\xff", b"\0"), (b"", b"\0")],
)
def test_end_of_a_prefix_is_the_first_key_behind_it(prefix, end):
    assert prefix_end(prefix) == end


def test_long_list_comes_in_pages_of_one_revision():
    machine = make()
    machine.result(0.0, asked(machine).id, Ranged(header(10), [kv(A)], more=True))
    operation = asked(machine)
    assert operation.question == Range(kv(A).key + b"\0", b"/rpc0", 10, 500)
    assert not machine.ready
    machine.result(0.0, operation.id, Ranged(header(12), [kv(B)]))
    assert addresses(machine) == [A, B]
    assert asked(machine).question.revision == 11


@pytest.mark.parametrize("code", [0, 11], ids=["lost", "compacted"])
def test_long_list_that_breaks_off_begins_anew_after_a_pause(code):
    machine = make()
    machine.result(0.0, asked(machine).id, Ranged(header(10), [kv(A)], more=True))
    error = "etcdserver: mvcc: required revision has been compacted" if code else "connection lost"
    machine.failed(0.0, asked(machine).id, error, code)
    assert machine.operations_to_send() == []
    now = go_on(machine)
    operation = asked(machine)
    assert operation.question == Range(b"/rpc/", b"/rpc0", limit=250)
    machine.result(now, operation.id, Ranged(header(20), [kv(B)]))
    assert addresses(machine) == [B]


def test_pages_of_a_list_are_half_as_long_after_each_failure_down_to_31_keys():
    machine = make()
    limits = []
    for _ in range(6):
        operation = asked(machine)
        limits.append(operation.question.limit)
        machine.failed(
            machine._asked_at, operation.id, "the response is longer than 16777216 bytes"
        )
        go_on(machine)
    assert limits == [500, 250, 125, 62, 31, 31]
    machine.result(machine._asked_at, asked(machine).id, Ranged(header(), []))
    machine.message(90.0, asked(machine).id, Watched(header(), canceled=True, compacted=18))
    assert asked(machine).question.limit == 500


def test_long_list_whose_next_page_is_of_an_older_revision_begins_anew():
    machine = make()
    machine.result(0.0, asked(machine).id, Ranged(header(10), [kv(A)], more=True))
    machine.result(0.0, asked(machine).id, Ranged(header(9), [kv(B)]))
    assert asked(machine).question == Range(b"/rpc/", b"/rpc0", limit=500)


def test_changes_are_applied_one_by_one():
    machine, watch = watching(kv(A))
    machine.message(1.0, watch, changed(11, kv(B)))
    assert addresses(machine) == [A, B]
    machine.message(2.0, watch, changed(12, kv(A), deleted=True))
    assert addresses(machine) == [B]
    assert machine.revision == 12


def test_key_that_is_written_anew_takes_the_place_of_what_it_said():
    machine, watch = watching(kv(A))
    other = kv(A)._replace(value=kv(B).value)
    machine.message(1.0, watch, changed(11, other))
    assert addresses(machine) == [B]
    machine.message(2.0, watch, changed(12, kv(A)._replace(value=b"nonsense")))
    assert addresses(machine) == []
    assert machine.refused_nodes == 1


@pytest.mark.fault(61)
@pytest.mark.parametrize("revision", [9, 10])
def test_changes_that_are_known_already_are_ignored(revision):
    machine, watch = watching(kv(A), kv(B))
    change = Change(kv(A, revision), deleted=True)
    machine.message(1.0, watch, Watched(header(10), changes=[change]))
    assert addresses(machine) == [A, B]
    assert machine.ignored == 1


@pytest.mark.fault(62)
def test_node_that_flaps_costs_ten_views_a_second():
    machine, watch = watching(kv(A))
    views, now = 0, 1.0
    for revision in range(11, 211):
        now += 0.01
        gone = revision % 2 == 1
        events = told(machine.message, now, watch, changed(revision, kv(B), deleted=gone))
        while machine.next_timeout() <= now:
            events += told(machine.handle_timeout, now)
        views += sum(isinstance(event, ViewChanged) for event in events)
    assert views <= 21


def test_change_right_behind_another_one_is_shown_a_tenth_of_a_second_after_it():
    machine, watch = watching(kv(A))
    machine.message(1.0, watch, changed(11, kv(B)))
    assert told(machine.message, 1.01, watch, changed(12, kv(C))) == []
    assert go_on(machine) == pytest.approx(1.1)
    assert addresses(machine) == [A, B, C]


def test_list_is_shown_at_once():
    machine, watch = watching(kv(A))
    machine.message(1.0, watch, changed(11, kv(B)))
    machine.message(1.01, watch, Watched(header(20), canceled=True, compacted=18))
    machine.result(1.02, asked(machine).id, Ranged(header(20), [kv(A), kv(B), kv(C)]))
    assert addresses(machine) == [A, B, C]


def test_node_is_what_its_newest_key_says_with_the_services_of_all():
    machine, watch = watching(
        kv(A, 8, services={"Arith": "old"}, weight=1.0, metadata={"zone": "x"}),
        kv(A, 9, service="Log", services={"Log": "hash", "Arith": "new"}, weight=2.0),
    )
    [node] = machine.view
    assert node == Node(A, {"Arith": "old", "Log": "hash"}, weight=2.0)
    machine.message(1.0, watch, changed(11, kv(A, service="Log"), deleted=True))
    assert list(machine.view) == [Node(A, {"Arith": "old"}, metadata={"zone": "x"})]
    machine.message(2.0, watch, changed(12, kv(A), deleted=True))
    assert addresses(machine) == []


def test_key_that_was_written_last_counts_where_two_offer_the_same_service():
    for first, second in ((8, 9), (9, 8)):
        by_hand = kv(A, second, services={"Arith": "by-hand"}, metadata={"zone": str(second)})
        machine, _ = watching(
            kv(A, first, services={"Arith": "its-own"}, metadata={"zone": str(first)}),
            by_hand._replace(key=b"/rpc/Arith/by-hand"),
            kv(A, 7, service="Log"),
        )
        newest = "by-hand" if second == 9 else "its-own"
        assert list(machine.view) == [Node(A, {"Arith": newest, "Log": ""}, metadata={"zone": "9"})]


@pytest.mark.fault(58)
@pytest.mark.parametrize(
    ("key", "value"),
    [
        (b"/rpc/Arith/x", b""),
        (b"/rpc/Arith/x", b"\x00\xff"),
        (b"/rpc/Arith/x", b'{"address":"tcp://a:0"}'),
        (b"/rpc/Arith/x", b'{"address":"tcp://a\\r\\nb:1"}'),
        (b"/rpc/Arith/x", b'{"address":"file:///x"}'),
        (b"/rpc/Arith/x", b"[" * 100_000),
        (b"/rpc/no-node", b'{"address":"tcp://a:1"}'),
        (b"/rpc/\xff/x", b'{"address":"tcp://a:1"}'),
        (b"/rpc/%FF/x", b'{"address":"tcp://a:1"}'),
        (b"/rpc/a%0Ab/x", b'{"address":"tcp://a:1"}'),
    ],
)
def test_key_that_is_not_right_is_left_out_alone(key, value):
    machine, watch = watching(KeyValue(key, value, 9), kv(B))
    assert addresses(machine) == [B]
    assert machine.refused_nodes == 1
    machine.message(1.0, watch, Watched(header(11), changes=[Change(kv(C, 11))]))
    assert addresses(machine) == [B, C]
    machine.message(2.0, watch, Watched(header(12), changes=[Change(KeyValue(key, b"", 12), True)]))
    assert machine.refused_nodes == 0


@pytest.mark.fault(59)
def test_more_nodes_than_a_view_may_have_are_rejected_and_the_last_view_stays():
    machine, watch = watching(kv(A))
    changes = [Change(kv(f"tcp://h{n}:1", 11)) for n in range(10_000)]
    events = told(machine.message, 1.0, watch, Watched(header(11), changes=changes))
    assert events == [StaleChanged(1.0, "there are more than 10000 nodes")]
    assert addresses(machine) == [A]
    machine.message(2.0, watch, changed(12, kv("tcp://h0:1"), deleted=True))
    assert len(machine.view) == 10_000
    assert machine.stale_since is None


def test_nodes_that_are_held_wait_while_there_are_too_many():
    machine, watch = watching(kv(A), kv(B), kv(C), grace=30.0)
    machine.message(1.0, watch, changed(11, kv(A), kv(B), deleted=True))
    changes = [Change(kv(f"tcp://h{n}:1", 12)) for n in range(10_000)]
    machine.message(2.0, watch, Watched(header(12), changes=changes))
    for now in (31.0, 32.0, 33.0):
        machine.message(now, watch, Watched(header(12)))
        assert machine.next_timeout() > now
    assert machine.rejected == 1
    assert addresses(machine) == [A, B, C]


@pytest.mark.fault(59)
def test_more_keys_than_anybody_has_are_rejected_and_the_last_view_stays():
    machine, watch = watching(kv(A))
    keys = [KeyValue(b"/rpc/Arith/%d" % n, b"", 11) for n in range(100_000)]
    machine.message(1.0, watch, Watched(header(11), changes=[Change(one) for one in keys]))
    assert machine.operations_to_cancel() == [watch]
    operation = asked(machine)
    assert operation.question == Range(b"/rpc/", b"/rpc0", limit=500)
    [failed, _] = told(
        machine.result, 1.0, operation.id, Ranged(header(11), [kv(A), *keys], more=True)
    )
    assert failed == SourceFailed(URL, "there are more than 100000 keys")
    assert machine.rejected == 1
    assert addresses(machine) == [A]
    now = go_on(machine)
    assert asked(machine).question == operation.question
    assert now < 3.0


def test_list_that_promises_more_and_gives_nothing_ends():
    machine = make()
    machine.result(0.0, asked(machine).id, Ranged(header(10), [], more=True))
    assert isinstance(asked(machine).question, Watch)


# When it breaks


def resume(machine, answer, now):
    """Let a watch that failed be taken up again; the question whether it is the same store."""
    now = max(now, machine.next_timeout())
    machine.handle_timeout(now)
    operation = asked(machine)
    machine.result(now, operation.id, answer)
    return operation.question


@pytest.mark.fault(55)
def test_watch_that_broke_is_taken_up_again_where_it_ended():
    machine, watch = watching(kv(A, 9), kv(B, 10, lease=6))
    events = told(machine.failed, 1.0, watch, "connection lost")
    assert events == [
        SourceFailed(URL, "connection lost"),
        StaleChanged(0.0, f"{URL}: connection lost"),
    ]
    question = resume(machine, Ranged(header(15), [kv(B, 10, lease=6)]), 1.0)
    assert question == Range(kv(B).key, revision=10)
    operation = asked(machine)
    assert operation.question.revision == 11
    events = told(machine.message, 1.5, operation.id, Watched(header(15), created=True))
    assert events == [SourceReached(URL), StaleChanged(None, "")]
    assert addresses(machine) == [A, B]
    assert (machine.listings, machine.resumed) == (1, 1)


def test_late_word_of_a_watch_that_broke_is_not_heard():
    machine, old = watching(kv(A))
    machine.failed(1.0, old, "connection lost")
    resume(machine, Ranged(header(15), [kv(A)]), 1.0)
    new = asked(machine).id
    machine.message(2.0, old, changed(12, kv(B)))
    assert (machine.revision, machine.ignored) == (10, 1)
    machine.message(2.0, new, Watched(header(15), created=True))
    machine.message(2.0, new, changed(11, kv(C)))
    assert addresses(machine) == [A, C]


@pytest.mark.fault(61)
def test_history_that_is_compacted_away_is_replaced_by_a_list():
    machine, watch = watching(kv(A), kv(B), grace=30.0)
    machine.failed(1.0, watch, "connection lost")
    now = go_on(machine)
    error = "etcdserver: mvcc: required revision has been compacted"
    assert told(machine.failed, now, asked(machine).id, error, 11) == []
    machine.result(now, asked(machine).id, Ranged(header(20), [kv(A)]))
    assert addresses(machine) == [A]  # at once: it is the same store
    assert asked(machine).question.revision == 21


@pytest.mark.fault(61)
def test_watch_that_is_compacted_away_is_replaced_by_a_list():
    machine, watch = watching(kv(A), kv(B))
    machine.message(1.0, watch, Watched(header(20), canceled=True, compacted=18))
    assert isinstance(asked(machine).question, Range)
    assert machine.stale_since is None


def test_watch_that_has_too_much_to_say_is_replaced_by_a_list():
    machine, watch = watching(kv(A))
    machine.failed(1.0, watch, "a message of more than 16777216 bytes", 8)
    now = go_on(machine)
    operation = asked(machine)
    assert operation.question == Range(b"/rpc/", b"/rpc0", limit=500)
    machine.result(now, operation.id, Ranged(header(20), [kv(B)]))
    assert addresses(machine) == [B]


@pytest.mark.parametrize(
    "answer",
    [
        Ranged(header(15), []),
        Ranged(header(15), [kv(A, 9, lease=5)]),
        Ranged(header(15), [kv(A, 10, lease=99)]),
        Ranged(header(9), [kv(A)]),
        Ranged(header(15, cluster=8), [kv(A)]),
        Ranged(header(15, term=1), [kv(A)]),
    ],
    ids=["key", "revision-of-key", "lease-of-key", "revision", "cluster", "term"],
)
def test_another_store_is_listed_anew_and_what_it_lacks_is_held(answer):
    machine, watch = watching(kv(A), kv(B, 9), grace=30.0)
    machine.failed(1.0, watch, "connection lost")
    resume(machine, answer, 1.0)
    operation = asked(machine)
    assert operation.question == Range(b"/rpc/", b"/rpc0", limit=500)
    machine.result(2.0, operation.id, Ranged(answer.header, [kv(A, 2)]))
    assert addresses(machine) == [A, B]
    assert machine.held == 1
    assert asked(machine).question.revision == answer.header.revision + 1


def test_store_that_has_all_nodes_again_is_believed_from_then_on():
    machine, watch = watching(kv(A), kv(B), kv(C), grace=30.0)
    machine.message(1.0, watch, Watched(header(9)))
    machine.result(1.0, asked(machine).id, Ranged(header(9), [kv(A, 2), kv(B, 3), kv(C, 4)]))
    watch = asked(machine).id
    machine.message(1.0, watch, Watched(header(9), created=True))
    machine.message(2.0, watch, changed(10, kv(A), deleted=True))
    assert addresses(machine) == [B, C]
    assert machine.held == 0


def test_what_is_held_goes_when_its_time_is_over():
    machine, watch = watching(kv(A), kv(B), kv(C), grace=30.0)
    machine.message(1.0, watch, changed(11, kv(A), kv(B), deleted=True))
    assert addresses(machine) == [A, B, C]
    now = 1.0
    while machine.held:
        now = go_on(machine)
        for operation in machine.operations_to_send():
            machine.result(now, operation.id, Ranged(header(11), []))
    assert now == 31.0
    assert addresses(machine) == [C]
    assert machine.stale_since is None


@pytest.mark.parametrize("told", [header(9), header(15, cluster=8)], ids=["revision", "cluster"])
def test_watch_of_another_store_is_not_believed(told):
    machine, watch = watching(kv(A), grace=30.0)
    machine.message(1.0, watch, Watched(told, changes=[Change(kv(B, 15))]))
    assert machine.operations_to_cancel() == [watch]
    assert asked(machine).question == Range(b"/rpc/", b"/rpc0", limit=500)
    assert addresses(machine) == [A]


def test_revision_that_is_still_to_come_means_another_store():
    machine, watch = watching(kv(A), kv(B), grace=30.0)
    machine.failed(1.0, watch, "connection lost")
    now = go_on(machine)
    error = "etcdserver: mvcc: required revision is a future revision"
    machine.failed(now, asked(machine).id, error, 11)
    operation = asked(machine)
    assert operation.question == Range(b"/rpc/", b"/rpc0", limit=500)
    machine.result(now, operation.id, Ranged(header(3), [kv(A, 2)]))
    assert addresses(machine) == [A, B]
    assert machine.held == 1


def test_keys_without_a_lease_do_not_prove_that_the_store_is_the_same():
    machine, watch = watching(kv(A, lease=0))
    machine.failed(1.0, watch, "connection lost")
    go_on(machine)
    assert asked(machine).question == Range(b"/rpc/", b"/rpc0", limit=500)


def test_key_that_is_no_nodes_proves_as_well_that_the_store_is_the_same():
    bad = KeyValue(b"/rpc/Arith/x", b"nonsense", 10, lease=5)
    machine, watch = watching(bad)
    machine.failed(1.0, watch, "connection lost")
    question = resume(machine, Ranged(header(15), [bad]), 1.0)
    assert question == Range(bad.key, revision=10)
    assert machine.resumed == 1


@pytest.mark.fault(55)
def test_last_view_outlives_any_outage():
    machine, watch = watching(kv(A))
    machine.failed(1.0, watch, "connection lost")
    now = 1.0
    while now < 86400.0:
        for operation in machine.operations_to_send():
            machine.failed(now, operation.id, "connection refused")
        now = go_on(machine)
    assert addresses(machine) == [A]
    assert machine.age(now) > 86000.0
    assert machine.stale_since == 0.0


# Silence


def test_probe_goes_to_the_endpoint_of_the_watch_when_that_is_silent():
    machine, watch = watching(kv(A), endpoints=["http://a:2379", "http://b:2379"])
    endpoint = machine.endpoint
    now = go_on(machine)
    assert now == pytest.approx(4.5)
    operation = asked(machine)
    assert (operation.question, operation.endpoint) == (Range(b"/rpc/"), endpoint)
    machine.failed(now + 2.0, operation.id, "no answer within 2 s")
    assert machine.operations_to_cancel() == [watch]
    go_on(machine)
    assert asked(machine).endpoint != endpoint


def test_watch_that_speaks_needs_no_probe():
    machine, watch = watching(kv(A))
    for n in range(20):
        machine.message(3.0 * (n + 1), watch, changed(11 + n, kv(B)))
        machine.handle_timeout(3.0 * (n + 1) + 2.9)
        assert machine.operations_to_send() == []


def test_answer_to_a_probe_confirms_the_view():
    machine, _ = watching(kv(A))
    now = go_on(machine)
    probe = asked(machine)
    assert machine.age(now) == now
    machine.result(now, probe.id, Ranged(header(10), []))
    assert machine.age(now) == 0.0


@pytest.mark.parametrize(
    "end",
    [
        Watched(header(20), canceled=True, compacted=20),
        Watched(header(5)),  # of another store
        Watched(header(11), canceled=True, reason="etcdserver: invalid auth token"),
    ],
    ids=["compacted", "another store", "login is over"],
)
def test_answer_to_a_probe_is_not_taken_for_a_listing_when_the_watch_ended_meanwhile(end):
    machine = make(user="alice", password="secret")
    machine.result(0.0, asked(machine).id, Authenticated("token"))
    machine.result(0.0, asked(machine).id, Ranged(header(), [kv(A)]))
    watch = asked(machine).id
    machine.message(0.0, watch, Watched(header(), created=True))
    now = go_on(machine)
    probe = asked(machine)
    machine.message(now + 0.1, watch, end)
    assert {watch, probe.id} <= set(machine.operations_to_cancel())
    machine.result(now + 0.2, probe.id, Ranged(header(20), []))
    assert (machine.listings, machine.ignored) == (1, 1)
    assert addresses(machine) == [A]
    while machine.next_timeout() is not None and machine.next_timeout() < now + 60.0:
        go_on(machine)
    assert addresses(machine) == [A]


def test_answer_to_a_probe_may_be_older_than_what_the_watch_said_meanwhile():
    machine, watch = watching(kv(A))
    now = go_on(machine)
    probe = asked(machine)
    machine.message(now + 0.1, watch, changed(11, kv(B)))
    machine.result(now + 0.2, probe.id, Ranged(header(10), []))
    assert machine.operations_to_send() == []
    assert machine.listings == 1


@pytest.mark.parametrize("said", [header(99), header(10, term=3)], ids=["revision", "term"])
def test_watch_that_says_nothing_of_a_store_that_changes_is_taken_up_again(said):
    machine, _ = watching(kv(A))
    now = 0.0
    while not machine.operations_to_cancel():
        now = go_on(machine)
        for operation in machine.operations_to_send():
            machine.result(now, operation.id, Ranged(said, []))
    assert 60.0 < now < 66.0
    assert machine.stale_since is None
    assert asked(machine).question == Range(kv(A).key, revision=10)


def test_watch_that_has_spoken_lately_is_not_suspect():
    machine, watch = watching(kv(A))
    machine.message(59.0, watch, changed(11, kv(B)))
    now = 59.0
    while now < 110.0:
        now = go_on(machine)
        for operation in machine.operations_to_send():
            machine.result(now, operation.id, Ranged(header(99), []))
    assert machine.operations_to_cancel() == []


def test_watch_of_a_store_that_does_not_change_may_be_silent_for_ever():
    machine, _ = watching(kv(A))
    now = 0.0
    while now < 600.0:
        now = go_on(machine)
        machine.result(now, asked(machine).id, Ranged(header(10), []))
    assert machine.operations_to_cancel() == []


def test_watch_that_does_not_come_is_given_up():
    machine = make(timeout=2.0)
    machine.result(0.0, asked(machine).id, Ranged(header(), [kv(A)]))
    watch = asked(machine)
    assert go_on(machine) == 2.0
    assert machine.operations_to_cancel() == [watch.id]
    machine.message(2.1, watch.id, changed(11, kv(B)))
    assert addresses(machine) == [A]
    assert machine.ignored == 1


def test_watch_is_there_when_etcd_says_so():
    machine = make(timeout=2.0)
    machine.result(0.0, asked(machine).id, Ranged(header(), [kv(A)]))
    watch = asked(machine)
    events = told(machine.message, 1.0, watch.id, Watched(header()))
    assert events == []
    assert machine.next_timeout() == 2.0
    assert told(machine.message, 1.9, watch.id, Watched(header(), created=True)) == [
        SourceReached(URL)
    ]
    assert machine.next_timeout() > 2.0


def test_refused_watch_says_why():
    machine, watch = watching(kv(A))
    machine.failed(1.0, watch, "connection lost")
    resume(machine, Ranged(header(15), [kv(A)]), 1.0)
    watch = asked(machine).id
    machine.message(1.5, watch, Watched(header(15), created=True))
    reason = "rpc error: code = PermissionDenied desc = etcdserver: permission denied"
    events = told(machine.message, 1.5, watch, Watched(header(15), canceled=True, reason=reason))
    assert f"{reason} (without a user, prefix '/rpc')" in machine.stale_reason
    assert len(events) == 2


def test_watch_whose_login_is_over_logs_in_again_without_a_word():
    machine = make(user="alice", password="secret")
    machine.result(0.0, asked(machine).id, Authenticated("token-1"))
    machine.result(0.0, asked(machine).id, Ranged(header(), [kv(A)]))
    watch = asked(machine).id
    reason = "rpc error: code = Unauthenticated desc = etcdserver: invalid auth token"
    events = told(machine.message, 0.0, watch, Watched(header(), canceled=True, reason=reason))
    assert events == []
    assert asked(machine).question == Authenticate("alice", "secret")


# In a world


def test_bound_after_an_outage_is_kept_by_many_watches():
    world = World(seed=5)
    for n in range(8):
        world.register(Node(f"tcp://10.0.0.{n}:1", ["Arith"]))
    for n in range(20):
        world.watch(f"w{n}", grace=0.0)
    world.run(5.0)
    for url in URLS:
        world.stop(url)
    world.run(30.0)
    world.restart()
    world.kill("tcp://10.0.0.7:1")
    world.run(10.1 + 2.5)  # its ttl; and a pause
    for n in range(20):
        assert seen(world.actors[f"w{n}"]) == held(world.store)
        views = [e.view for e in world.events[f"w{n}"] if isinstance(e, ViewChanged)]
        assert len(views[-1]) == 7
        assert len(views[-2]) == 8


def test_watches_of_many_endpoints_do_not_all_begin_with_the_first():
    draw = random.Random(1).random
    urls = ["http://a:2379", "http://b:2379", "http://c:2379"]
    assert {make(urls, rng=draw).endpoint for _ in range(50)} == set(urls)
