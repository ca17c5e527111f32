"""Views: what is believed of a registry's answers, and what stays when there are none."""

import json
import random

import pytest

from rpc_discovery import (
    FileRead,
    FileView,
    HttpResponse,
    Node,
    RegistryWatch,
    SourceFailed,
    SourceReached,
    StaleChanged,
    StaticDiscovery,
    ViewChanged,
)
from rpc_fuzz.registries import Cluster, seen, truth
from support.machines import told

URL = "http://registry:9999"


def make(registries=(URL,), rng=lambda: 0.5, **settings):
    return RegistryWatch(registries, now=0.0, rng=rng, **settings)


def listing(*addresses, epoch="e", revision=1, **more):
    nodes = [{"address": address, "services": {"S": ""}} for address in addresses]
    return json.dumps({"epoch": epoch, "revision": revision, "nodes": nodes, **more}).encode()


def answer(watch, body, now=None, status=200):
    """Answer the next question of a watch at its time."""
    while not (requests := watch.operations_to_send()):
        now = watch.next_timeout() if now is None else max(now, watch.next_timeout())
        watch.handle_timeout(now)
    [request] = requests
    return told(watch.result, now or 0.0, request.id, HttpResponse(status, body))


def holds(view, data):
    """Let a file hold these bytes when it is read next."""
    while not (reads := view.operations_to_send()):
        view.handle_timeout(view.next_timeout())
    [read] = reads
    return told(view.result, float(read.id), read.id, FileRead(read.id, data))


def addresses(watch):
    return sorted(node.address for node in watch.view)


A, B, C, D, E = (f"tcp://{name}:1" for name in "abcde")


# Questions


def test_first_question_wants_a_listing_and_states_its_limits():
    [request] = make(service="S", token="secret").operations_to_send()
    assert request.method == "GET"
    assert request.url == "http://registry:9999/registry/nodes?service=S"
    assert dict(request.headers)["Authorization"] == "Bearer secret"
    assert request.timeout == 5.0
    assert request.max_answer == 1024 * 1024


def test_next_question_waits_for_what_is_newer():
    watch = make()
    answer(watch, listing(A, revision=7))
    watch.handle_timeout(0.2)
    [request] = watch.operations_to_send()
    assert request.url.endswith("/nodes?epoch=e&revision=7&wait=30")
    assert dict(request.headers)["If-None-Match"] == '"e-7"'
    assert request.timeout == 35.0


def test_without_long_polls_it_asks_from_time_to_time():
    watch = make(wait=0, refresh=10.0)
    answer(watch, listing(A))
    assert watch.next_timeout() == 9.0
    watch.handle_timeout(9.0)
    [request] = watch.operations_to_send()
    assert request.url.endswith("/nodes?epoch=e&revision=1")
    watch.result(9.0, request.id, HttpResponse(304, b""))
    assert watch.next_timeout() == 18.0


def test_registry_that_does_not_wait_is_not_hammered():
    watch = make()
    answer(watch, listing(A))
    now = 0.0
    for _ in range(20):
        now = watch.next_timeout()
        answer(watch, b"", now, status=304)
    assert now > 20 * 4.0 - 5


@pytest.mark.fault(62)
def test_registry_that_changes_all_the_time_is_asked_ten_times_a_second_at_most():
    watch = make(rng=lambda: 0.0)
    now = 0.0
    for revision in range(1, 101):
        answer(watch, listing(*([A, B] if revision % 2 else [A]), revision=revision), now)
        now = watch.next_timeout()
    assert now >= 9.99


# Answers


def test_first_listing_makes_the_view():
    watch = make()
    assert not watch.ready
    reached, changed = answer(watch, listing(A, B))
    assert reached == SourceReached(URL)
    assert isinstance(changed, ViewChanged)
    assert changed.view is watch.view
    assert ([node.address for node in changed.added], changed.removed) == ([A, B], [])
    assert watch.ready
    assert watch.stale_since is None


def test_first_listing_counts_even_if_it_is_empty():
    watch = make()
    assert any(isinstance(event, ViewChanged) for event in answer(watch, listing()))
    assert watch.ready


def test_view_that_changes_has_a_higher_revision_and_keeps_the_nodes_that_stay():
    watch = make()
    answer(watch, listing(A, B))
    before = watch.view
    [changed] = answer(watch, listing(A, C, revision=2))
    assert watch.view.revision == before.revision + 1
    assert [node.address for node in changed.added] == [C]
    assert [node.address for node in changed.removed] == [B]
    kept = {node.address: node for node in before}
    assert next(node for node in watch.view if node.address == A) is kept[A]


def test_changes_are_applied_to_the_listing_before():
    watch = make()
    answer(watch, listing(A, B, C))
    answer(watch, listing(D, revision=4, since=1, gone=[B, "tcp://unknown:1"]))
    assert addresses(watch) == [A, C, D]


def test_changes_that_do_not_follow_are_rejected():
    watch = make()
    answer(watch, listing(A, B))
    answer(watch, listing(C, revision=4, since=3, gone=[]))
    assert addresses(watch) == [A, B]
    assert watch.rejected == 1


def test_same_revision_changes_nothing():
    watch = make()
    answer(watch, listing(A))
    assert answer(watch, b"", 35.0, status=304) == []
    assert answer(watch, listing(A, B), 70.0) == []


def test_revision_that_goes_back_is_rejected_and_in_another_life_is_not():
    watch = make()
    answer(watch, listing(A, B, revision=9))
    answer(watch, listing(A, revision=8))
    assert (watch.rejected, addresses(watch)) == (1, [A, B])
    answer(watch, listing(A, B, C, epoch="f", revision=1))
    assert addresses(watch) == [A, B, C]


@pytest.mark.fault(59)
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[" * 100_000,
        b"null",
        b"[]",
        b"9" * 10_000,
        listing(B, epoch=""),
        listing(B, epoch="a\r\nb"),
        listing(B, epoch=5),
        listing(B, revision=None),
        listing(B, revision=-1),
        listing(B, revision=2**60),
        listing(B, revision=True),
        b'{"epoch":"f","revision":2}',
        b'{"epoch":"f","revision":2,"nodes":{}}',
        b'{"epoch":"f","revision":2,"nodes":[1]}',
        b'{"epoch":"f","revision":2,"nodes":[],"gone":5}',
        b'{"epoch":"f","revision":2,"nodes":[],"since":[]}',
        json.dumps({"epoch": "f", "revision": 2, "nodes": [{}] * 10_001}).encode(),
        listing(B, epoch="f", filler="x" * 1024 * 1024),
    ],
)
def test_bad_answer_is_rejected_as_a_whole_and_the_view_stays(body):
    watch = make()
    answer(watch, listing(A))
    view = watch.view
    events = answer(watch, body)
    assert [type(event) for event in events] == [SourceFailed, StaleChanged]
    assert len(events[0].reason) < 400
    assert watch.view is view
    assert watch.rejected == 1


@pytest.mark.fault(59)
def test_changes_cannot_make_a_view_of_too_many_nodes():
    watch = make()
    answer(watch, listing(*(f"tcp://a:{n}" for n in range(1, 10_001))))
    answer(watch, listing(B, revision=2, since=1, gone=[]))
    assert len(watch.view) == 10_000
    assert watch.rejected == 1


@pytest.mark.fault(58)
@pytest.mark.parametrize(
    "address",
    ["tcp://b:1\r\nHost: x", "tcp://b,c:1", "file:///etc/passwd", "tcp://b:0", "tcp://b:70000",
     "tcp://" + "b" * 10_240 + ":1", "unix:///a\nb", "", None, 5, [], {}],
)  # fmt: skip
def test_poisoned_node_is_left_out_and_the_others_stay(address):
    watch = make()
    answer(watch, listing(A, address, C))
    assert addresses(watch) == [A, C]
    assert watch.refused_nodes == 1


@pytest.mark.parametrize("status", [301, 401, 404, 500, 503, 999, 0])
def test_other_status_is_a_failure_that_is_quoted(status):
    watch = make()
    events = answer(watch, b"why\x00", status=status)
    assert events == [SourceFailed(URL, f"HTTP status {status}: why")]


def test_not_modified_without_a_listing_before_is_a_failure():
    watch = make()
    assert isinstance(answer(watch, b"", status=304)[0], SourceFailed)


@pytest.mark.parametrize(
    "settings",
    [{"wait": 61}, {"wait": -1}, {"refresh": 0}, {"grace": -1}, {"share": 0}, {"share": 1}],
)
def test_bad_settings_are_refused(settings):
    with pytest.raises(ValueError, match="must be"):
        make(**settings)


# Outages


@pytest.mark.fault(55)
def test_last_good_view_stays_through_an_outage_and_its_age_is_told():
    watch = make(rng=random.Random(1).random)
    answer(watch, listing(A, B), 1.0)
    view, now, heard = watch.view, 1.0, []
    tries = 0
    while now < 86400.0:
        now = watch.next_timeout()
        heard += told(watch.handle_timeout, now)
        for request in watch.operations_to_send():
            tries += 1
            heard += told(watch.failed, now, request.id, "connection refused")
    assert watch.view is view
    assert watch.stale_since == 1.0
    assert watch.stale_reason == f"{URL}: connection refused"
    assert watch.age(now) == now - 1.0
    assert [type(event) for event in heard] == [SourceFailed, StaleChanged]
    assert tries > 86400 / 5
    events = answer(watch, listing(A, B))
    assert events == [SourceReached(URL), StaleChanged(None, "")]
    assert watch.stale_since is None
    assert watch.view is view


def test_after_an_outage_the_first_answer_is_not_waited_for():
    watch = make()
    answer(watch, listing(A))
    watch.handle_timeout(watch.next_timeout())
    [request] = watch.operations_to_send()
    watch.failed(3.0, request.id, "connection lost")
    watch.handle_timeout(watch.next_timeout())
    [request] = watch.operations_to_send()
    assert "wait" not in request.url
    watch.result(4.0, request.id, HttpResponse(304, b""))
    watch.handle_timeout(watch.next_timeout())
    [request] = watch.operations_to_send()
    assert request.url.endswith("wait=30")


def test_registry_that_is_silent_is_noticed():
    watch = make()
    answer(watch, listing(A))
    watch.handle_timeout(0.2)
    [request] = watch.operations_to_send()
    assert watch.next_timeout() == pytest.approx(36.2)
    assert told(watch.handle_timeout, 36.3)[0] == SourceFailed(URL, "no answer within 35 s")
    assert told(watch.result, 36.3, request.id, HttpResponse(200, listing(B))) == []
    assert addresses(watch) == [A]


# Views that shrink


@pytest.mark.fault(56)
@pytest.mark.parametrize("left", [[], [A]])
def test_nodes_that_go_all_at_once_are_held_for_a_while(left):
    watch = make(grace=30.0)
    answer(watch, listing(A, B, C), 1.0)
    [stale] = answer(watch, listing(*left, revision=2), 2.0)
    assert stale.since == 2.0
    assert "disappeared at once" in stale.reason
    assert addresses(watch) == [A, B, C]
    assert (watch.held, watch.times_held) == (3 - len(left), 1)
    assert watch.next_timeout() <= 32.0
    watch.handle_timeout(31.9)
    assert addresses(watch) == [A, B, C]
    changed, stale = told(watch.handle_timeout, 32.0)
    assert len(changed.removed) == 3 - len(left)
    assert stale == StaleChanged(None, "")
    assert addresses(watch) == left
    assert watch.held == 0


@pytest.mark.fault(56)
def test_nodes_that_lapse_one_after_the_other_are_held_from_the_half_on():
    watch = make()
    names = [f"tcp://a:{n}" for n in range(1, 11)]
    answer(watch, listing(*names))
    for gone in range(1, 11):
        answer(watch, listing(*names[gone:], revision=gone + 1), float(gone))
    assert len(watch.view) == 5
    answer(watch, listing(*names, revision=20), 20.0)
    assert (len(watch.view), watch.held, watch.stale_since) == (10, 0, None)


def test_nodes_that_go_slowly_are_not_held():
    watch = make(grace=30.0)
    names = [f"tcp://a:{n}" for n in range(1, 11)]
    answer(watch, listing(*names))
    for gone in range(1, 9):
        answer(watch, listing(*names[gone:], revision=gone + 1), gone * 31.0)
        assert watch.held == 0
    assert addresses(watch) == sorted(names[8:])


def test_nodes_that_are_replaced_are_not_held():
    watch = make()
    answer(watch, listing(A, B))
    answer(watch, listing(C, D, revision=2))
    assert addresses(watch) == [C, D]


def test_held_node_goes_when_another_takes_its_place_and_new_ones_are_shown():
    watch = make()
    answer(watch, listing(A, B, C, D))
    answer(watch, listing(E, revision=2), 2.0)
    assert addresses(watch) == [A, B, C, D, E]
    answer(watch, listing(D, E, revision=3), 3.0)
    assert addresses(watch) == [D, E]
    assert watch.stale_since is None


def test_view_after_a_hold_is_not_held_again():
    watch = make(grace=5.0)
    answer(watch, listing(A, B, C, D), 1.0)
    answer(watch, listing(A, revision=2), 2.0)
    watch.handle_timeout(7.0)
    answer(watch, listing(A, B, revision=3), 8.0)
    assert (addresses(watch), watch.held, watch.stale_since) == ([A, B], 0, None)


@pytest.mark.fault(54)
def test_registry_that_begins_anew_takes_no_node_away_before_it_could_come_back():
    watch = make(grace=30.0)
    answer(watch, listing(A, B, C, D), 1.0)
    answer(watch, listing(A, B, C, epoch="f", revision=3), 2.0)
    assert addresses(watch) == [A, B, C, D]
    assert watch.stale_since == 2.0
    answer(watch, listing(A, B, C, D, epoch="f", revision=4), 5.0)
    assert (addresses(watch), watch.stale_since) == ([A, B, C, D], None)


@pytest.mark.fault(54)
def test_empty_restart_of_a_registry_is_not_noticed_by_callers():
    cluster = Cluster(seed=2)
    for n in range(1, 21):
        cluster.register(Node(f"tcp://a:{n}", ["S"]))
    watch = cluster.watch()
    cluster.run(30.0)
    before = len(cluster.events["watch"])
    for _ in range(5):
        cluster.kill_registry(cluster.urls[0])
        cluster.run(100.0)
        cluster.start_registry(cluster.urls[0])
        cluster.run(40.0)
    later = cluster.events["watch"][before:]
    assert not any(isinstance(event, ViewChanged) for event in later)
    assert (seen(watch), watch.stale_since) == (truth(cluster), None)


@pytest.mark.fault(56)
def test_registry_that_loses_touch_with_all_nodes_keeps_half_of_them_at_least():
    cluster = Cluster(seed=2)
    for n in range(1, 21):
        cluster.register(Node(f"tcp://a:{n}", ["S"]))
    watch = cluster.watch(grace=60.0)
    cluster.run(30.0)
    cluster.network.cut = {(address, cluster.urls[0]) for address in cluster.registrations}
    cluster.run(40.0)
    assert cluster.registries[cluster.urls[0]].entries == {}
    assert len(watch.view) >= 10
    assert watch.stale_since is not None
    cluster.network.cut = set()
    cluster.run(25.0)
    assert (seen(watch), watch.stale_since) == (truth(cluster), None)


# Several registries

R1, R2 = "http://one:1", "http://two:1"


def two(first, second, **settings):
    watch = make([R1, R2], **settings)
    for request, body in zip(watch.operations_to_send(), (first, second), strict=True):
        watch.result(0.0, request.id, HttpResponse(200, body))
    return watch


def say(watch, url, body, now):
    """Let one registry answer, and the other one be silent."""
    for _ in range(100):
        for request in watch.operations_to_send():
            if request.registry != url:
                continue
            return (
                told(watch.failed, now, request.id, "refused")
                if body is None
                else told(watch.result, now, request.id, HttpResponse(200, body))
            )
        now = max(now, watch.next_timeout())
        watch.handle_timeout(now)
    raise AssertionError(f"{url} was not asked")


@pytest.mark.fault(57)
def test_nodes_of_all_registries_are_seen():
    watch = two(listing(A, B), listing(B, C, epoch="f", revision=9))
    assert addresses(watch) == [A, B, C]
    say(watch, R1, listing(A, revision=2), 1.0)
    assert addresses(watch) == [A, B, C]
    say(watch, R2, listing(C, epoch="f", revision=10), 2.0)
    assert addresses(watch) == [A, C]


@pytest.mark.fault(57)
def test_description_is_that_of_the_first_registry_that_answers():
    def weighted(weight, **more):
        return json.dumps(
            {"epoch": "e", "revision": 1, "nodes": [{"address": A, "weight": weight}], **more}
        ).encode()

    watch = two(weighted(1), weighted(2))
    assert [node.weight for node in watch.view] == [1]
    say(watch, R1, None, 1.0)
    assert [node.weight for node in watch.view] == [2]
    say(watch, R1, weighted(3, revision=2), 2.0)
    assert [node.weight for node in watch.view] == [3]


@pytest.mark.fault(57)
def test_registry_that_fails_keeps_its_nodes_but_those_that_another_took_away():
    watch = two(listing(A, B, C), listing(B, C, epoch="f"))
    say(watch, R1, None, 1.0)
    assert addresses(watch) == [A, B, C]
    say(watch, R2, listing(C, epoch="f", revision=2), 2.0)
    assert addresses(watch) == [A, C]
    say(watch, R1, listing(A, B, C), 9.0)
    assert addresses(watch) == [A, B, C]


def test_view_is_good_as_long_as_one_registry_answers():
    watch = two(listing(A), listing(A, epoch="f"))
    say(watch, R1, None, 1.0)
    assert watch.stale_since is None
    say(watch, R2, None, 2.0)
    assert watch.stale_since == 0.0
    say(watch, R2, listing(A, epoch="f"), 9.0)
    assert watch.stale_since is None


@pytest.mark.fault(57)
def test_registries_that_were_parted_converge():
    cluster = Cluster(registries=2, seed=7)
    for n in range(1, 11):
        cluster.register(Node(f"tcp://a:{n}", ["S"]))
    watches = [cluster.watch(name) for name in ("one", "two")]
    first, second = cluster.urls
    names = list(cluster.registrations)
    cluster.network.cut = {(name, first) for name in names[:5]}
    cluster.network.cut |= {(name, second) for name in names[5:]}
    cluster.run(120.0)
    assert [len(cluster.registries[url].entries) for url in cluster.urls] == [5, 5]
    cluster.registrations[names[0]].update(cluster.now, weight=7)
    cluster.run(1.0)
    for watch in watches:
        assert seen(watch) == truth(cluster)
    cluster.network.cut = set()
    cluster.run(30.0)
    for watch in watches:
        assert seen(watch) == truth(cluster)


def test_removals_that_are_remembered_are_bounded_by_what_others_show():
    watch = two(listing(A), listing(A, epoch="f"), grace=0)
    for revision in range(2, 50):
        say(watch, R1, listing(f"tcp://a:{revision}", revision=revision), revision * 1.0)
    assert list(watch.links[R1].removed) == [A]


# Lists and files


def test_static_nodes_are_a_view():
    discovery = StaticDiscovery([A, Node(B, ["S"], weight=2)])
    assert [node.address for node in discovery.view] == [A, B]
    assert discovery.ready
    with pytest.raises(ValueError, match="port must be"):
        StaticDiscovery(["tcp://a:0"])


@pytest.mark.parametrize(
    "document",
    ['{"nodes": ["tcp://a:1", {"address": "tcp://b:1", "services": ["S"]}]}',
     '["tcp://a:1", {"address": "tcp://b:1", "services": {"S": "0123"}, "other": 1}]'],
)  # fmt: skip
def test_file_of_nodes_is_a_view(document):
    view = FileView("nodes.json", now=0.0)
    [changed] = holds(view, document.encode())
    assert [node.address for node in changed.added] == [A, B]
    assert view.view is changed.view
    assert holds(view, document.encode()) == []


@pytest.mark.parametrize(
    ("document", "why"),
    [
        (b"", "not JSON"),
        (b"\xff", "not UTF-8"),
        (b"[" * 100_000, "nested too deeply"),
        (b"5", 'must be {"nodes": \\[...\\]} or a list, not 5'),
        (b'["tcp://a:1", "tcp://b:0"]', r"nodes\[1\]: port must be from 1 to 65535, not 0"),
        (b"[5]", r"nodes\[0\]: a node must be an object, not 5"),
        (b'[{"address": "tcp://a:1", "weight": -1}]', r"nodes\[0\]: weight must be"),
        (b'["tcp://a:1", "tcp://a:1"]', r"nodes\[1\]: tcp://a:1 is listed twice"),
        (json.dumps([f"tcp://a:{n}" for n in range(1, 10_002)]).encode(), "at most 10000 nodes"),
    ],
)
def test_bad_file_leaves_the_last_good_view_and_says_why(document, why):
    view = FileView("nodes.json", now=1.0)
    holds(view, b'["tcp://a:1"]')
    [stale] = holds(view, document)
    with pytest.raises(ValueError, match=why):
        raise ValueError(stale.reason)
    assert (view.stale_since, view.rejected, addresses(view)) == (2.0, 1, [A])
    assert holds(view, document) == []
    assert holds(view, b'["tcp://a:1"]') == [StaleChanged(None, "")]


def test_file_is_read_each_interval_but_never_twice_at_a_time():
    view = FileView("nodes.json", now=0.0, interval=5.0)
    [read] = view.operations_to_send()
    assert (read.path, read.seen) == ("nodes.json", None)
    assert view.operations_to_send() == []
    assert view.next_timeout() is None
    view.result(2.0, read.id, FileRead("state", b'["tcp://a:1"]'))
    assert view.next_timeout() == 7.0
    view.handle_timeout(6.9)
    assert view.operations_to_send() == []
    view.handle_timeout(7.0)
    [read] = view.operations_to_send()
    assert read.seen == "state"
    assert told(view.result, 7.0, read.id, FileRead("state", None)) == []
    assert addresses(view) == [A]


def test_file_that_cannot_be_read_is_stale_and_read_again_later():
    view = FileView("nodes.json", now=0.0)
    holds(view, b'["tcp://a:1"]')
    view.handle_timeout(2.0)
    [read] = view.operations_to_send()
    [stale] = told(view.failed, 2.0, read.id, "no such file")
    assert stale == StaleChanged(2.0, "nodes.json: no such file")
    assert told(view.failed, 2.0, read.id, "again") == []
    view.handle_timeout(3.0)
    [read] = view.operations_to_send()
    assert read.seen is None
    assert addresses(view) == [A]
