"""A registration in etcd: one lease, the keys on it, and what becomes of them."""

import json
import re

import pytest

from rpc_discovery import Node, SourceFailed, SourceReached
from rpc_discovery.etcd import EtcdRegistration
from rpc_discovery.etcd.operations import (
    Authenticate,
    Authenticated,
    Grant,
    Granted,
    Header,
    KeepAlive,
    KeptAlive,
    Leased,
    LeaseKeys,
    Revoke,
    Revoked,
    Write,
    Written,
)
from support.machines import told

URL = "http://etcd:2379"
NODE = Node("tcp://a:1", {"Arith": "0123456789ab"})
KEY = b"/rpc/Arith/tcp://a:1"
HEADER = Header(7, 1, 10, 2)


def make(endpoints=(URL,), node=NODE, rng=lambda: 0.5, **settings):
    return EtcdRegistration(node, endpoints, now=0.0, rng=rng, **settings)


def asked(machine):
    """The one operation that is on its way."""
    [operation] = machine.operations_to_send()
    return operation


def same(one, other):
    """Whether these are one question: tuples of different types may be equal."""
    return type(one) is type(other) and one == other


def answer(machine, result, now):
    operation = asked(machine)
    machine.result(now, operation.id, result)
    return operation.question


def registered(now=0.0, lease=5, ttl=9, **settings):
    """A registration whose keys are written, at `now`."""
    machine = make(ttl=ttl, **settings)
    assert same(answer(machine, Granted(HEADER, lease, ttl), now), Grant(ttl))
    assert isinstance(answer(machine, Written(HEADER), now), Write)
    assert machine.registered(now) == [URL]
    return machine


def wait(machine):
    """Let the next thing become due; the time of it."""
    now = machine.next_timeout()
    machine.handle_timeout(now)
    return now


def test_node_is_a_key_for_each_service_with_its_whole_description():
    node = Node("tcp://a:1", {"Arith": "0123456789ab", "a/b%": ""}, weight=2.0)
    machine = make(node=node)
    answer(machine, Granted(HEADER, 5, 10), 0.0)
    question = asked(machine).question
    assert [key for key, _ in question.puts] == [KEY, b"/rpc/a%2Fb%25/tcp://a:1"]
    assert question.lease == 5
    for _, value in question.puts:
        assert json.loads(value) == {
            "address": "tcp://a:1",
            "services": {"Arith": "0123456789ab", "a/b%": ""},
            "weight": 2.0,
        }


def test_node_without_services_has_a_key_nevertheless():
    machine = make(node=Node("tcp://a:1"))
    answer(machine, Granted(HEADER, 5, 10), 0.0)
    assert [key for key, _ in asked(machine).question.puts] == [b"/rpc//tcp://a:1"]


@pytest.mark.parametrize(
    "settings",
    [
        {"endpoints": []},
        {"endpoints": ["etcd:2379"]},
        {"endpoints": ["ftp://etcd"]},
        {"endpoints": ["http://etcd:2379/path"]},
        {"endpoints": ["http://etcd:70000"]},
        {"endpoints": ["http://etcd:2379\r\nx"]},
        {"endpoints": [URL, "http://etcd"]},
        {"endpoints": [f"http://e:{n}" for n in range(1, 18)]},
        {"ttl": 0.9},
        {"ttl": 3601},
        {"timeout": 0},
        {"user": "alice"},
        {"password": "x"},
        {"user": "", "password": "x"},
        {"user": "alice", "password": ""},
        {"prefix": "\udcff"},
        {"prefix": 5},
        {"prefix": "x" * 257},
    ],
)
def test_bad_settings_are_refused(settings):
    with pytest.raises(ValueError, match=r"must|duplicate|needs|endpoints|together"):
        make(**settings)


@pytest.mark.parametrize(
    "url",
    ["http://etcd:", "http://etcd:70000", "http://a:b@etcd", "http://[::1", "http://etcd:1#x"],
)
def test_endpoint_that_is_none_is_named_as_it_was_given(url):
    with pytest.raises(ValueError, match=rf"^an endpoint must be .*, not {re.escape(repr(url))}"):
        make([url])


@pytest.mark.parametrize(
    ("url", "endpoint"),
    [
        ("http://etcd", "http://etcd:2379"),
        ("https://etcd/", "https://etcd:2379"),
        ("http://[::1]", "http://[::1]:2379"),
        ("http://[::1]:4001", "http://[::1]:4001"),
    ],
)
def test_port_is_2379_unless_told_otherwise(url, endpoint):
    assert asked(make([url])).endpoint == endpoint


def test_lease_is_renewed_each_third_of_its_ttl_or_a_little_sooner():
    machine = registered(ttl=9, rng=lambda: 0.999)
    assert wait(machine) == pytest.approx(2.4, abs=0.01)
    assert same(asked(machine).question, KeepAlive(5))


def test_lease_counts_from_the_time_at_which_it_was_asked_for_and_its_renewal_was_sent():
    machine = make(ttl=9)
    answer(machine, Granted(HEADER, 5, 9), 1.9)
    answer(machine, Written(HEADER), 1.9)
    assert machine.registered(8.9) == [URL]
    assert machine.registered(9.1) == []
    sent = wait(machine)
    assert sent == pytest.approx(2.7)
    operation = asked(machine)
    machine.result(sent + 1.9, operation.id, KeptAlive(HEADER, 9))
    assert machine.registered(sent + 8.9) == [URL]
    assert machine.registered(sent + 9.1) == []


def test_lease_has_the_time_that_etcd_gives_it_and_not_the_one_that_was_asked_for():
    machine = make(ttl=1.5)
    assert same(answer(machine, Granted(HEADER, 5, 4), 0.0), Grant(2))
    answer(machine, Written(HEADER), 0.0)
    assert machine.registered(3.9) == [URL]
    assert machine.registered(4.0) == []
    now = wait(machine)
    answer(machine, KeptAlive(HEADER, 3), now)
    assert machine.registered(now + 2.9) == [URL]
    assert machine.registered(now + 3.0) == []


@pytest.mark.fault(60)
@pytest.mark.parametrize("ttl", [0, -1])
def test_lease_without_time_left_is_gone_and_not_used_again(ttl):
    machine = registered()
    now = wait(machine)
    operation = asked(machine)
    assert same(operation.question, KeepAlive(5))
    events = told(machine.result, now, operation.id, KeptAlive(HEADER, ttl))
    assert events == [SourceFailed(URL, "the lease is gone")]
    assert machine.registered(now) == []
    assert same(answer(machine, Granted(HEADER, 6, 9), now), Grant(9))
    question = answer(machine, Written(HEADER), now)
    assert (question.lease, [key for key, _ in question.puts]) == (6, [KEY])
    assert machine.registered(now) == [URL]
    assert machine.operations_to_send() == []  # there is nothing to revoke


@pytest.mark.fault(60)
def test_lease_that_etcd_does_not_know_is_gone():
    machine = registered()
    machine.update(0.0, weight=2.0)
    operation = asked(machine)
    events = told(machine.failed, 0.0, operation.id, "etcdserver: requested lease not found", 5)
    assert events == [SourceFailed(URL, "the lease is gone")]
    assert same(asked(machine).question, Grant(9))


@pytest.mark.parametrize(("lease", "ttl"), [(0, 9), (-1, 9), (5, 0), (5, -1)])
def test_lease_that_is_none_is_a_failure(lease, ttl):
    machine = make(ttl=9)
    [event] = told(machine.result, 0.0, asked(machine).id, Granted(HEADER, lease, ttl))
    assert event == SourceFailed(URL, f"lease {lease} of {ttl} s is not valid")
    assert machine.operations_to_send() == []
    wait(machine)
    assert same(asked(machine).question, Grant(9))


@pytest.mark.fault(60)
def test_lease_that_could_not_be_renewed_in_time_is_replaced_and_revoked():
    machine = registered(ttl=9)
    now = 0.0
    while now < 9.0:
        for operation in machine.operations_to_send():
            assert same(operation.question, KeepAlive(5))
            machine.failed(now, operation.id, "connection refused")
        now = wait(machine)
    assert same(answer(machine, Granted(HEADER, 6, 9), now), Grant(9))
    assert answer(machine, Written(HEADER), now).lease == 6
    # Or a write that hangs somewhere would yet hang the keys on the old lease.
    assert same(answer(machine, Revoked(HEADER), now), Revoke(5))
    assert machine.operations_to_send() == []


def test_of_leases_to_revoke_those_are_kept_that_live_longest():
    machine = registered(lease=1, ttl=9)
    now = 0.0
    for lease in range(2, 8):
        now += 9.0
        machine.handle_timeout(now)
        answer(machine, Granted(HEADER, lease, 9), now)
        answer(machine, Written(HEADER), now)
        machine.failed(now, asked(machine).id, "connection refused")  # revoking
    wait(machine)
    revoked = [answer(machine, Revoked(HEADER), now).lease for _ in range(4)]
    assert revoked == [3, 4, 5, 6]
    assert machine.operations_to_send() == []


def test_lease_is_renewed_though_its_keys_are_refused():
    machine = registered(ttl=9, rng=lambda: 0.999)
    machine.update(0.0, weight=2.0)
    now, renewed, refused = 0.0, 0, 0
    while now < 60.0:
        for operation in machine.operations_to_send():
            if isinstance(operation.question, KeepAlive):
                renewed += 1
                machine.result(now, operation.id, KeptAlive(HEADER, 9))
            else:
                refused += isinstance(operation.question, Write)
                machine.failed(now, operation.id, "etcdserver: permission denied", 7)
        if not machine._outbox:
            now = wait(machine)
    assert machine.lease == 5
    assert renewed >= 20
    assert refused <= renewed + 5


def test_machine_that_slept_does_not_trust_its_lease():
    machine = registered(ttl=9)
    machine.handle_timeout(3600.0)
    assert same(asked(machine).question, Grant(9))


def test_keys_that_are_not_on_the_lease_any_more_are_written_again():
    machine = registered(ttl=9)
    now = wait(machine)
    while isinstance((operation := asked(machine)).question, KeepAlive):
        machine.result(now, operation.id, KeptAlive(HEADER, 9))
        now = wait(machine)
    assert same(operation.question, LeaseKeys(5))
    assert now == 9.0
    machine.result(now, operation.id, Leased(HEADER, 8, []))
    assert [key for key, _ in asked(machine).question.puts] == [KEY]


def look(machine):
    """Renew the lease until its keys are looked for; that question, and when."""
    while True:
        now = wait(machine)
        operation = asked(machine)
        if isinstance(operation.question, LeaseKeys):
            return operation, now
        machine.result(now, operation.id, KeptAlive(HEADER, 9))


def test_keys_are_looked_for_each_ttl():
    machine = registered(ttl=9)
    for n in range(1, 5):
        operation, now = look(machine)
        assert now == 9.0 * n
        machine.result(now, operation.id, Leased(HEADER, 8, [KEY]))
        assert machine.registered(now) == [URL]


def test_lease_that_is_found_to_be_gone_when_its_keys_are_looked_for_is_replaced():
    machine = registered(ttl=9)
    operation, now = look(machine)
    events = told(machine.result, now, operation.id, Leased(HEADER, -1, []))
    assert events == [SourceFailed(URL, "the lease is gone")]
    assert same(asked(machine).question, Grant(9))


def test_change_while_the_keys_are_looked_for_is_written():
    machine = registered(ttl=9)
    operation, now = look(machine)
    machine.update(now, weight=2.0)
    machine.result(now, operation.id, Leased(HEADER, 8, [KEY]))
    [(key, value)] = asked(machine).question.puts
    assert (key, json.loads(value)["weight"]) == (KEY, 2.0)


def test_service_that_comes_gets_a_key_and_one_that_goes_loses_it():
    machine = registered()
    machine.update(1.0, services={"Log": "", "Arith": "0123456789ab"})
    question = answer(machine, Written(HEADER), 1.0)
    assert [key for key, _ in question.puts] == [b"/rpc/Log/tcp://a:1", KEY]  # described anew
    machine.update(2.0, services=["Log"])
    question = answer(machine, Written(HEADER), 2.0)
    assert [key for key, _ in question.puts] == [b"/rpc/Log/tcp://a:1"]
    assert question.deletes == (KEY,)
    assert machine.registered(2.0) == [URL]


def ask_on(machine):
    """The next question that is no renewal."""
    while True:
        wait(machine)
        operation = asked(machine)
        if not isinstance(operation.question, KeepAlive):
            return operation
        machine.result(machine._asked_at, operation.id, KeptAlive(HEADER, 9))


def test_write_without_an_answer_is_repeated():
    machine = registered()
    machine.update(1.0, weight=2.0)
    operation = asked(machine)
    machine.failed(3.0, operation.id, "no answer")
    assert ask_on(machine).question == operation.question
    assert operation.question.lease == 5


@pytest.mark.parametrize("services", [["Arith"], ["Arith", "Time"]])
@pytest.mark.parametrize("code", [None, 0, 14])
def test_write_without_an_answer_that_may_come_late_undoes_nothing(services, code):
    machine = registered()
    machine.update(1.0, services=["Arith", "Log"])
    operation = asked(machine)
    if code is None:
        machine.handle_timeout(4.0)
    else:
        machine.failed(4.0, operation.id, "no answer", code)
    machine.update(4.0, services=services)
    granting = ask_on(machine)
    assert granting.question == Grant(9)
    now = machine._asked_at
    machine.result(now, granting.id, Granted(HEADER, 6, 9))
    writing = asked(machine)
    assert len(writing.question.puts) == len(services)
    assert (writing.question.deletes, writing.question.lease) == ((), 6)
    machine.result(now, writing.id, Written(HEADER))
    assert asked(machine).question == Revoke(5)


def test_write_that_was_refused_needs_no_other_lease():
    machine = registered()
    machine.update(1.0, weight=2.0)
    machine.failed(1.5, asked(machine).id, "etcdserver: permission denied", 7)
    machine.update(2.0, weight=3.0)
    assert ask_on(machine).question.lease == 5


def test_many_services_are_written_in_parts_that_etcd_takes():
    node = Node("tcp://a:1", [f"S{n}" for n in range(250)])
    machine = make(node=node)
    answer(machine, Granted(HEADER, 5, 10), 0.0)
    sizes = [len(answer(machine, Written(HEADER), 0.0).puts) for _ in range(3)]
    assert sizes == [100, 100, 50]
    assert machine.registered(0.0) == [URL]


def test_parts_are_no_longer_than_etcd_takes():
    node = Node("tcp://a:1", [f"{n:03}" + "s" * 250 for n in range(100)])  # 26 kB for each key
    machine = make(node=node)
    answer(machine, Granted(HEADER, 5, 10), 0.0)
    parts = [answer(machine, Written(HEADER), 0.0).puts for _ in range(3)]
    assert machine.registered(0.0) == [URL]
    assert all(sum(len(key + value) for key, value in part) <= 1_000_000 for part in parts)


def test_key_that_is_too_long_is_written_alone_so_that_etcd_can_say_so():
    node = Node("tcp://a:1", [chr(0x1F600 + n // 250) * 250 + f"{n:03}" for n in range(750)])
    machine = make(node=node)
    answer(machine, Granted(HEADER, 5, 10), 0.0)
    [(_, value)] = asked(machine).question.puts
    assert len(value) > 1_500_000


def test_farewell_revokes_the_lease():
    machine = registered()
    machine.stop(1.0)
    assert not machine.done
    assert same(answer(machine, Revoked(HEADER), 1.0), Revoke(5))
    assert machine.done
    assert machine.next_timeout() is None


def test_farewell_waits_for_a_lease_that_is_being_granted():
    machine = make()
    operation = asked(machine)
    machine.stop(0.0)
    machine.result(0.1, operation.id, Granted(HEADER, 5, 10))
    assert same(answer(machine, Revoked(HEADER), 0.1), Revoke(5))
    assert machine.done


def test_farewell_does_not_wait_for_anything_else():
    machine = make()
    answer(machine, Granted(HEADER, 5, 10), 0.0)
    write = asked(machine)
    machine.stop(0.0)
    assert machine.operations_to_cancel() == [write.id]
    assert same(asked(machine).question, Revoke(5))
    machine.result(0.1, write.id, Written(HEADER))
    assert machine.ignored == 1


def test_farewell_does_not_wait_for_a_pause_to_end():
    machine = registered()
    now = wait(machine)
    machine.failed(now, asked(machine).id, "connection refused")
    assert machine.next_timeout() > now
    machine.stop(now)
    assert same(asked(machine).question, Revoke(5))


@pytest.mark.parametrize("code", [5, 7])
def test_lease_that_is_gone_or_not_ours_to_revoke_ends_the_farewell(code):
    machine = registered()
    machine.stop(1.0)
    machine.failed(1.0, asked(machine).id, "etcdserver: no", code)
    assert machine.done


def test_farewell_is_tried_again_until_its_limit_which_another_one_does_not_move():
    machine = registered()
    machine.stop(1.0, limit=5.0)
    now, tries = 1.0, 0
    while not machine.done:
        for operation in machine.operations_to_send():
            tries += 1
            machine.failed(now, operation.id, "connection refused")
            machine.stop(now, limit=5.0)
        now = wait(machine)
    assert now == 6.0
    assert tries > 2


def test_endpoints_take_turns_when_they_fail():
    urls = ["http://a:2379", "http://b:2379", "http://c:2379"]
    machine = make(urls, rng=lambda: 0.0)
    tried, events, now = [], [], 0.0
    for _ in range(6):
        operation = asked(machine)
        tried.append(operation.endpoint)
        events += told(machine.failed, now, operation.id, "connection refused")
        now = wait(machine)
    assert tried == urls * 2
    assert events == [SourceFailed(", ".join(urls), "http://a:2379: connection refused")]


@pytest.mark.fault(53)
def test_failures_are_tried_again_for_ever_after_pauses_that_are_drawn():
    machine = make(rng=lambda: 0.999)
    now, pauses, events = 0.0, [], []
    for _ in range(50):
        events += told(machine.failed, now, asked(machine).id, "connection refused")
        pauses.append(machine.next_timeout() - now)
        now = wait(machine)
    assert pauses[:6] == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 2.0], rel=0.01)
    assert max(pauses) <= 2.0
    assert events == [SourceFailed(URL, "connection refused")]
    answer(machine, Granted(HEADER, 5, 10), now)
    operation = asked(machine)
    assert told(machine.result, now, operation.id, Written(HEADER)) == [SourceReached(URL)]


def test_silence_is_a_failure_after_a_while():
    machine = make(timeout=2.0)
    operation = asked(machine)
    now = wait(machine)
    assert now == 3.0  # the transport reports sooner
    assert machine.operations_to_cancel() == [operation.id]
    wait(machine)
    assert same(asked(machine).question, Grant(10))
    machine.result(3.1, operation.id, Granted(HEADER, 5, 10))
    assert machine.ignored == 1
    assert machine.lease == 0


def test_failure_of_what_was_given_up_is_none_of_what_is_asked_now():
    machine = make()
    operation = asked(machine)
    wait(machine)  # it is given up
    now = wait(machine)
    assert same(asked(machine).question, Grant(10))
    assert told(machine.failed, now, operation.id, "connection lost") == []
    assert (machine.ignored, machine.failed_operations) == (1, 1)


def test_what_goes_well_is_told_once_and_leaves_no_error_behind():
    machine = registered(ttl=9)
    now = wait(machine)
    machine.failed(now, asked(machine).id, "connection refused")
    assert machine.error == f"{URL}: connection refused"
    now = wait(machine)
    events = told(machine.result, now, asked(machine).id, KeptAlive(HEADER, 9))
    assert events == [SourceReached(URL)]
    assert machine.error == ""
    now = wait(machine)
    assert told(machine.result, now, asked(machine).id, KeptAlive(HEADER, 9)) == []


def test_login_comes_first_and_its_token_is_shown():
    machine = make(user="alice", password="secret")
    operation = asked(machine)
    assert operation.question == Authenticate("alice", "secret")
    assert "secret" not in repr(operation)
    machine.result(0.0, operation.id, Authenticated("token-1"))
    operation = asked(machine)
    assert (operation.question, operation.token) == (Grant(10), "token-1")


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (16, "etcdserver: invalid auth token"),
        (7, "etcdserver: permission denied"),
        (3, "etcdserver: user name is empty"),
        (3, "etcdserver: revision of auth store is old"),
    ],
)
def test_token_that_is_old_is_replaced_at_once_but_only_once(code, error):
    machine = make(user="alice", password="secret")
    answer(machine, Authenticated("token-1"), 0.0)
    answer(machine, Granted(HEADER, 5, 10), 0.0)
    assert told(machine.failed, 0.0, asked(machine).id, error, code) == []
    assert isinstance(answer(machine, Authenticated("token-2"), 0.0), Authenticate)
    operation = asked(machine)
    assert operation.token == "token-2"
    [event] = told(machine.failed, 0.0, operation.id, error, code)
    assert event.reason == f"{error} (user 'alice', prefix '/rpc')"
    assert machine.operations_to_send() == []


def test_wrong_password_is_not_tried_often():
    machine = make(user="alice", password="wrong", rng=lambda: 0.999)
    now, tries = 0.0, 0
    while now < 300.0:
        tries += 1
        machine.failed(now, asked(machine).id, "etcdserver: authentication failed", 3)
        now = wait(machine)
    assert tries < 30


def test_etcd_without_authentication_needs_no_login():
    machine = make(user="alice", password="secret")
    machine.failed(0.0, asked(machine).id, "etcdserver: authentication is not enabled", 9)
    operation = asked(machine)
    assert (operation.question, operation.token) == (Grant(10), "")
