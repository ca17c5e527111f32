"""A registration keeps its node known, whatever happens to the registries."""

import json
import random

import pytest

from rpc_discovery import HttpResponse, Node, Registration, SourceFailed, SourceReached
from rpc_fuzz.registries import Cluster, seen, truth
from support.machines import told

URL = "http://registry:9999"
NODE = Node("tcp://a:1", {"Arith": "0123456789ab"})


def make(registries=(URL,), rng=lambda: 0.5, **settings):
    return Registration(NODE, registries, now=0.0, rng=rng, **settings)


def only(requests):
    [request] = requests
    return request


def succeed(registration, now):
    request = only(registration.operations_to_send())
    return told(registration.result, now, request.id, HttpResponse(200, b"{}"))


def test_first_heartbeat_is_sent_at_once_and_says_everything():
    request = only(make(token="secret").operations_to_send())
    assert (request.method, request.url) == ("POST", "http://registry:9999/registry/nodes")
    assert dict(request.headers) == {
        "Content-Type": "application/json",
        "Authorization": "Bearer secret",
    }
    assert json.loads(request.body) == {
        "address": "tcp://a:1",
        "services": {"Arith": "0123456789ab"},
        "ttl": 30.0,
    }
    assert request.timeout == 5.0


@pytest.mark.parametrize(
    ("url", "sent_to"),
    [
        ("http://r", "http://r:80/registry/nodes"),
        ("https://r/", "https://r:443/registry/nodes"),
        ("http://[::1]:99/a/b/", "http://[::1]:99/a/b/nodes"),
    ],
)
def test_registry_may_be_elsewhere(url, sent_to):
    request = only(make([url]).operations_to_send())
    assert (request.registry, request.url) == (url, sent_to)


@pytest.mark.parametrize(
    "url",
    ["r:1", "ftp://r:1", "http://", "http://r:0", "http://r:70000", "http://a@r", "http://r/?x",
     "http://r:1\r\nHost: x", "http://r/\r\n", "http://r,s:1"],
)  # fmt: skip
def test_bad_registry_is_refused(url):
    with pytest.raises(ValueError, match=r"must|needs"):
        make([url])


@pytest.mark.parametrize(
    "settings",
    [
        {"registries": []},
        {"registries": [URL, URL + "/"]},
        {"registries": [f"http://r:{n}" for n in range(1, 18)]},
        {"ttl": 0.9},
        {"ttl": 3601},
        {"token": "a\r\nb"},
        {"timeout": 0},
    ],
)
def test_bad_settings_are_refused(settings):
    with pytest.raises(ValueError, match=r"must be|16 registries|duplicate"):
        make(**settings)


@pytest.mark.parametrize(("drawn", "at"), [(0.0, 10.0), (0.5, 9.0), (0.999, 8.002)])
def test_heartbeats_come_each_third_of_the_ttl_or_a_little_sooner(drawn, at):
    registration = make(rng=lambda: drawn)
    succeed(registration, 0.0)
    assert registration.next_timeout() == pytest.approx(at)
    registration.handle_timeout(at - 0.01)
    assert registration.operations_to_send() == []
    registration.handle_timeout(at + 0.01)
    assert only(registration.operations_to_send()).method == "POST"


@pytest.mark.fault(53)
@pytest.mark.parametrize("how", ["503", "refused", "silence", "garbage", "redirect"])
def test_heartbeat_that_fails_is_tried_again_for_ever(how):
    registration = make(rng=random.Random(1).random)
    now, tries, pauses = 0.0, 0, []
    longest = 10.0 + (6.0 if how == "silence" else 0.0)  # backoff, and until it is given up
    while now < 86400.0:
        for request in registration.operations_to_send():
            tries += 1
            ended = now
            if how == "refused":
                registration.failed(now, request.id, "connection refused")
            elif how != "silence":
                status = {"503": 503, "garbage": 999, "redirect": 302}[how]
                registration.result(now, request.id, HttpResponse(status, b"\xff\x00" * 9999))
        at = registration.next_timeout()
        assert at > now
        pauses.append(at - ended)
        now = at
        registration.handle_timeout(now)
    assert tries > 86400 / longest
    assert max(pauses) <= longest
    assert sum(pauses[-1000:]) / 1000 > 2.0  # it does not hammer either
    while not (requests := registration.operations_to_send()):
        now = registration.next_timeout()
        registration.handle_timeout(now)
    registration.result(now, only(requests).id, HttpResponse(200, b""))
    assert registration.registered(now) == [URL]


@pytest.mark.fault(53)
def test_pauses_between_tries_grow_and_are_drawn_from_their_whole_length():
    def pauses(drawn):
        registration = make(rng=lambda: drawn)
        found = []
        for _ in range(8):
            now = registration.next_timeout() if found else 0.0
            registration.handle_timeout(now)
            registration.failed(now, only(registration.operations_to_send()).id, "refused")
            found.append(round(registration.next_timeout() - now, 3))
        return found

    assert pauses(1.0) == [0.5, 1.0, 2.0, 4.0, 8.0, 10.0, 10.0, 10.0]
    assert pauses(0.5) == [0.25, 0.5, 1.0, 2.0, 4.0, 5.0, 5.0, 5.0]
    assert pauses(0.0) == [0.05] * 8


def test_failure_and_return_are_told_once():
    registration = make()
    assert succeed(registration, 0.0) == [SourceReached(URL)]
    heard = []
    for _ in range(5):
        now = registration.next_timeout()
        heard += told(registration.handle_timeout, now)
        heard += told(
            registration.failed, now, only(registration.operations_to_send()).id, "refused"
        )
    assert heard == [SourceFailed(URL, "refused")]
    now = registration.next_timeout()
    registration.handle_timeout(now)
    assert succeed(registration, now) == [SourceReached(URL)]


def test_answer_says_why_it_is_none():
    registration = make()
    request = only(registration.operations_to_send())
    [event] = told(
        registration.result, 0.0, request.id, HttpResponse(400, b"ttl\x1b[31m must be\n")
    )
    assert event == SourceFailed(URL, "HTTP status 400: ttl [31m must be")


def test_late_and_unknown_reports_are_ignored():
    registration = make()
    request = only(registration.operations_to_send())
    registration.handle_timeout(6.0)
    for report in (request.id, request.id, 99, -1):
        assert told(registration.result, 7.0, report, HttpResponse(200, b"{}")) == []
        assert told(registration.failed, 7.0, report, "x") == []
    assert registration.ignored == 8
    assert registration.registered(7.0) == []


def test_each_registry_goes_its_own_way():
    urls = [URL, "http://other:1"]
    registration = make(urls)
    good, bad = registration.operations_to_send()
    registration.result(0.1, good.id, HttpResponse(200, b""))
    registration.failed(0.1, bad.id, "refused")
    assert registration.registered(0.1) == [URL]
    registration.handle_timeout(0.4)
    assert only(registration.operations_to_send()).registry == "http://other:1"


@pytest.mark.parametrize("what", ["answer", "failure", "change", "farewell"])
def test_registry_that_is_silent_is_given_up_by_whatever_comes_first(what):
    registration = make([URL, "http://other:1"])
    good, silent = registration.operations_to_send()
    if what == "answer":
        registration.result(7.0, good.id, HttpResponse(200, b""))
    elif what == "failure":
        registration.failed(7.0, good.id, "refused")
    elif what == "change":
        registration.update(7.0, weight=2.0)
    else:
        registration.stop(7.0)
    assert registration.links[silent.registry].error == "no answer within 5 s"
    assert registration.next_timeout() > 7.0


def test_change_is_sent_at_once():
    registration = make()
    succeed(registration, 0.0)
    registration.update(1.0, services=["Log"], weight=3, metadata={"zone": "x"})
    assert registration.registered(1.0) == []
    request = only(registration.operations_to_send())
    assert json.loads(request.body) == {
        "address": "tcp://a:1",
        "services": {"Log": ""},
        "weight": 3,
        "metadata": {"zone": "x"},
        "ttl": 30.0,
    }
    registration.result(1.1, request.id, HttpResponse(200, b""))
    assert registration.registered(1.1) == [URL]
    registration.update(2.0, weight=3)
    assert registration.operations_to_send() == []


def test_changes_while_a_heartbeat_is_on_its_way_are_sent_behind_it_in_one():
    registration = make()
    for weight in range(100):
        registration.update(0.0, weight=weight)
    request = only(registration.operations_to_send())
    registration.result(0.1, request.id, HttpResponse(200, b""))
    assert registration.registered(0.1) == []
    assert json.loads(only(registration.operations_to_send()).body)["weight"] == 99


def test_bad_change_is_refused_before_anything_is_changed():
    registration = make()
    succeed(registration, 0.0)
    with pytest.raises(ValueError, match="weight must be"):
        registration.update(1.0, services=["Log"], weight=-1)
    assert registration.node == NODE
    assert registration.operations_to_send() == []


# Stopping


def test_stopping_takes_the_node_away():
    registration = make()
    succeed(registration, 0.0)
    registration.stop(1.0)
    request = only(registration.operations_to_send())
    assert request.method == "DELETE"
    assert request.url == "http://registry:9999/registry/nodes?address=tcp%3A%2F%2Fa%3A1"
    assert not registration.done
    registration.result(1.1, request.id, HttpResponse(204, b""))
    assert registration.done
    assert registration.next_timeout() is None
    assert registration.registered(1.1) == []


def test_node_that_is_gone_already_is_no_reason_to_ask_again():
    registration = make()
    succeed(registration, 0.0)
    registration.stop(1.0)
    registration.result(1.1, only(registration.operations_to_send()).id, HttpResponse(404, b""))
    assert registration.done


def test_farewell_waits_for_the_heartbeat_before_it():
    registration = make()
    request = only(registration.operations_to_send())
    registration.stop(0.1)
    assert registration.operations_to_send() == []
    registration.result(0.2, request.id, HttpResponse(200, b""))
    assert only(registration.operations_to_send()).method == "DELETE"


def test_farewell_is_tried_again_until_its_time_is_over():
    registration = make()
    succeed(registration, 0.0)
    registration.stop(1.0, limit=3.0)
    now, tries = 1.0, 0
    while not registration.done:
        for request in registration.operations_to_send():
            tries += 1
            registration.result(now, request.id, HttpResponse(503, b""))
        now = registration.next_timeout()
        assert now <= 4.0
        registration.handle_timeout(now)
    assert now == 4.0
    assert tries > 2
    assert registration.next_timeout() is None
    assert told(registration.update, 5.0, weight=2) == []
    assert registration.operations_to_send() == []


def test_farewell_to_a_registry_that_is_silent_ends_in_time():
    registration = make()
    succeed(registration, 0.0)
    registration.stop(1.0, limit=2.0)
    assert only(registration.operations_to_send()).timeout == 2.0
    assert registration.next_timeout() == 3.0
    registration.handle_timeout(3.0)
    assert registration.done


# With registries


@pytest.mark.fault(54)
def test_all_nodes_are_back_within_one_heartbeat_of_an_empty_restart():
    cluster = Cluster(seed=5)
    for n in range(1, 31):
        cluster.register(Node(f"tcp://a:{n}", ["S"]))
    cluster.run(60.0)
    cluster.kill_registry(cluster.urls[0])
    cluster.run(300.0)
    registry = cluster.start_registry(cluster.urls[0])
    cluster.run(10.0 + 2 * cluster.network.delay)
    assert len(registry.entries) == 30


@pytest.mark.fault(53)
def test_node_stays_registered_over_a_network_that_loses_a_tenth():
    cluster = Cluster(seed=3)
    cluster.register(Node("tcp://a:1", ["S"]))
    cluster.run(60.0)
    cluster.network.loss = 0.1
    registry = cluster.registries[cluster.urls[0]]
    revision = registry.revision
    cluster.run(3600.0)
    assert registry.revision == revision


@pytest.mark.fault(52)
def test_node_that_slept_for_an_hour_comes_back_by_itself():
    cluster = Cluster(seed=4)
    cluster.register(Node("tcp://a:1", ["S"]))
    watch = cluster.watch()
    cluster.run(10.0)
    cluster.jump(3600.0)
    cluster.run(90.0)
    assert seen(watch) == truth(cluster)
    assert len(watch.view) == 1
    assert watch.stale_since is None
