"""The registry as an application: what it accepts, forgets, tells and survives."""

import json

import pytest

from rpc_discovery.documents import parse_view
from rpc_discovery.registry import Registry
from rpc_fuzz.registries import ask
from rpc_proto import Peer
from rpc_proto.http import HttpError, Promise, Request, Router
from rpc_proto.http.server import HttpServer

NODE = {"address": "tcp://a:1", "services": {"Arith": "0123456789ab"}, "ttl": 10}


def register(registry, now, **fields):
    return ask(registry, now, "POST", body=json.dumps({**NODE, **fields}).encode())


def listing(registry, now, query=""):
    return json.loads(ask(registry, now, target=f"/registry/nodes{query}").body)


def addresses(registry, now, query=""):
    return [node["address"] for node in listing(registry, now, query)["nodes"]]


def poll(registry, now, query=""):
    return ask(registry, now, target=f"/registry/nodes?wait=30&revision={registry.revision}{query}")


# Advertisement


def test_registered_node_is_listed_as_it_described_itself():
    registry = Registry("e")
    response = register(registry, 0.0, weight=2, metadata={"zone": "x"}, unknown=1)
    assert (response.status, json.loads(response.body)) == (201, {"epoch": "e", "revision": 1})
    assert listing(registry, 0.0) == {
        "epoch": "e",
        "revision": 1,
        "nodes": [
            {
                "address": "tcp://a:1",
                "services": {"Arith": "0123456789ab"},
                "weight": 2,
                "metadata": {"zone": "x"},
            }
        ],
    }


def test_listing_is_a_document_that_a_file_may_hold():
    registry = Registry("e")
    register(registry, 0.0)
    [node] = parse_view(ask(registry, 0.0).body)
    assert (node.address, dict(node.services)) == ("tcp://a:1", NODE["services"])


def test_renewal_that_changes_nothing_leaves_the_revision_and_the_listing_alone():
    registry = Registry("e")
    register(registry, 0.0)
    before = ask(registry, 0.0)
    for now in range(1, 100):
        assert register(registry, float(now)).status == 200
    assert ask(registry, 100.0) is before
    assert registry.revision == 1


def test_new_description_makes_a_new_revision():
    registry = Registry("e")
    register(registry, 0.0)
    assert register(registry, 1.0, weight=3).status == 200
    assert listing(registry, 1.0)["revision"] == 2
    assert listing(registry, 1.0)["nodes"][0]["weight"] == 3


def test_removed_node_is_gone_at_once():
    registry = Registry("e")
    register(registry, 0.0)
    gone = "/registry/nodes?address=tcp%3A%2F%2Fa%3A1"
    assert ask(registry, 1.0, "DELETE", gone).status == 204
    assert addresses(registry, 1.0) == []
    assert ask(registry, 1.0, "DELETE", gone).status == 404


@pytest.mark.fault(58)
@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"address": "tcp://a:1\r\nHost: b"}, b"host must be a name or an address"),
        ({"address": "tcp://a,b:1"}, b"host must be a name or an address"),
        ({"address": "file:///etc/passwd"}, b"must begin with tcp://"),
        ({"address": "unix:///a\nb"}, b"printable"),
        ({"address": "tcp://a:0"}, b"port must be from 1 to 65535, not 0"),
        ({"address": "tcp://a:70000"}, b"port must be from 1 to 65535, not 70000"),
        ({"address": "tcp://" + "a" * 10_240 + ":1"}, b"host must be"),
        ({"address": None}, b"address must be a string, not None"),
        ({"services": {"x" * 10_240: ""}}, b"a service must be 1 to 256 printable"),
        ({"services": {"S": 5}}, b"the hash of S must be"),
        ({"services": ["S", 5]}, b"services must be an object or a list of names"),
        ({"metadata": {"zone": "<\x00>"}}, b"metadata must be"),
        ({"metadata": [1]}, b"metadata must be an object"),
        ({"weight": "heavy"}, b"weight must be a number, not 'heavy'"),
        ({"weight": -1}, b"weight must be from 0 to 1000, not -1"),
        ({"ttl": 0.5}, b"ttl must be a number from 1 to 3600, not 0.5"),
        ({"ttl": 3601}, b"ttl must be a number from 1 to 3600, not 3601"),
        ({"ttl": True}, b"ttl must be a number from 1 to 3600, not True"),
    ],
)
def test_poisoned_registration_is_refused_with_the_value_and_the_rule(fields, why):
    registry = Registry("e")
    response = register(registry, 0.0, **fields)
    assert response.status == 400
    assert why in response.body
    assert len(response.body) < 500
    assert addresses(registry, 0.0) == []


@pytest.mark.parametrize(
    "body",
    [b"{", b"\xff", b"[]", b"1", b"[" * 60_000, b"9" * 5000, b'{"address":"tcp://a:1","ttl":NaN}'],
)
def test_what_is_no_registration_is_refused(body):
    assert ask(Registry("e"), 0.0, "POST", body=body).status == 400


def test_body_that_is_too_long_is_refused():
    registry = Registry("e")
    body = json.dumps(NODE).encode()
    assert ask(registry, 0.0, "POST", body=body + b" " * (65_536 - len(body))).status == 201
    assert ask(registry, 0.0, "POST", body=body + b" " * (65_537 - len(body))).status == 413


def test_registration_that_any_page_could_send_is_refused():
    kind = {"content-type": "text/plain"}
    response = ask(Registry("e"), 0.0, "POST", body=json.dumps(NODE).encode(), headers=kind)
    assert response.status == 415


@pytest.mark.fault(59)
def test_node_beyond_the_limit_is_refused_and_the_others_may_renew():
    registry = Registry("e", max_nodes=3)
    for port in range(1, 4):
        assert register(registry, 0.0, address=f"tcp://a:{port}").status == 201
    assert register(registry, 0.0, address="tcp://a:4").status == 507
    assert register(registry, 0.0, address="tcp://a:3").status == 200


@pytest.mark.fault(59)
def test_node_that_would_make_the_listing_too_long_is_refused():
    registry = Registry("e", max_answer=1000)
    statuses = [register(registry, 0.0, address=f"tcp://a:{n}").status for n in range(1, 100)]
    assert statuses[0] == 201
    assert statuses[-1] == 507
    assert 750 < len(ask(registry, 0.0).body) <= 1000
    assert register(registry, 0.0, metadata={"a": "b" * 250}).status == 507
    assert len(ask(registry, 1.0).body) <= 1000


def test_ten_thousand_usual_nodes_fit():
    registry = Registry("e")
    for n in range(10_000):
        address = f"tcp://10.0.{n // 250}.{n % 250}:50000"
        assert register(registry, 0.0, address=address).status == 201
    assert len(ask(registry, 0.0).body) < 1024 * 1024


# Expiry


def test_node_expires_on_its_timer_when_it_does_not_renew():
    registry = Registry("e")
    register(registry, 0.0)
    register(registry, 5.0)
    while (at := registry.next_timeout()) is not None:
        assert at <= 15.25
        registry.handle_timeout(at)
    assert registry.entries == {}


def test_node_expires_on_reading_when_no_timer_ran():
    registry = Registry("e")
    register(registry, 0.0)
    assert addresses(registry, 9.9) == ["tcp://a:1"]
    assert addresses(registry, 10.25) == []


def test_shorter_ttl_counts_at_once():
    registry = Registry("e")
    register(registry, 0.0, ttl=3600)
    register(registry, 1.0, ttl=1)
    assert addresses(registry, 2.25) == []


@pytest.mark.fault(52)
def test_only_the_given_time_counts_wherever_it_begins():
    for start in (0.0, 86400.0 * 365, -5000.0):
        registry = Registry("e")
        register(registry, start)
        assert addresses(registry, start + 9.9) == ["tcp://a:1"]
        assert addresses(registry, start + 10.25) == []


def test_changing_ttl_for_ever_does_not_grow_the_timers():
    registry = Registry("e")
    for now in range(2000):
        register(registry, now / 10, ttl=1 if now % 2 else 3600)
    assert len(registry._expiries) <= 66


# Flapping


@pytest.mark.fault(62)
def test_flapping_node_is_counted_and_answers_come_in_waves():
    registry = Registry("e")
    answered = 0
    promise = None
    for step in range(200):  # ten seconds, up and down ten times a second
        now = step / 20
        registry.handle_timeout(now)
        if promise is None or promise.response is not None:
            promise = ask(
                registry,
                now,
                target=f"/registry/nodes?wait=30&epoch=e&revision={registry.revision}",
            )
            answered += 1
        if step % 2 == 0:
            register(registry, now)
        else:
            ask(registry, now, "DELETE", "/registry/nodes?address=tcp://a:1")
    assert registry.revision == 200
    assert answered <= 42
    register(registry, 10.0)
    assert (
        json.loads(ask(registry, 10.0, target="/registry/status").body)["entries"][0]["flaps"]
        == 100
    )
    assert len(registry._departed) <= 1
    assert len(registry._expiries) <= 66


def test_nodes_that_went_are_forgotten():
    registry = Registry("e", max_nodes=10)
    for n in range(1, 100):
        register(registry, float(n), address=f"tcp://a:{n}")
        ask(registry, float(n), "DELETE", f"/registry/nodes?address=tcp://a:{n}")
    assert len(registry._departed) == 10
    register(registry, 1000.0)
    ask(registry, 1000.0, "DELETE", "/registry/nodes?address=tcp://a:1")
    assert len(registry._departed) == 1


# Reading


def test_one_service_is_listed():
    registry = Registry("e")
    register(registry, 0.0)
    register(registry, 0.0, address="tcp://b:1", services=["Log"])
    assert addresses(registry, 0.0, "?service=Log") == ["tcp://b:1"]
    assert addresses(registry, 0.0, "?service=None") == []


def exchange(server, request, now=0.0):
    sent = []
    server.receive_data(request)
    server.step(now, sent.append)
    return b"".join(sent)


def test_listing_that_the_client_has_is_not_sent_again():
    registry = Registry("e")
    server = HttpServer(registry, Peer(), 1 << 20)
    register(registry, 0.0)
    head = b"GET /registry/nodes HTTP/1.1\r\nHost: a\r\n"
    answer = exchange(server, head + b"\r\n")
    assert b'ETag: "e-1"\r\n' in answer.replace(b"etag", b"ETag")
    assert exchange(server, head + b'If-None-Match: "e-1"\r\n\r\n').startswith(b"HTTP/1.1 304 ")
    register(registry, 0.0, weight=2)
    assert exchange(server, head + b'If-None-Match: "e-1"\r\n\r\n').startswith(b"HTTP/1.1 200 ")
    assert exchange(server, head + b'If-None-Match: "f-2"\r\n\r\n').startswith(b"HTTP/1.1 200 ")


def test_who_knows_a_revision_is_told_only_what_changed():
    registry = Registry("e")
    for port in range(1, 5):
        register(registry, 0.0, address=f"tcp://a:{port}")
    ask(registry, 0.0, "DELETE", "/registry/nodes?address=tcp://a:2")
    register(registry, 0.0, address="tcp://a:3", weight=2)
    told = listing(registry, 0.0, "?epoch=e&revision=4")
    assert told["since"] == 4
    assert [node["address"] for node in told["nodes"]] == ["tcp://a:3"]
    assert told["gone"] == ["tcp://a:2"]
    for query in ("?revision=4", "?epoch=other&revision=4", "?epoch=e&revision=99", "?epoch=e"):
        assert "since" not in listing(registry, 0.0, query)


def test_who_fell_too_far_behind_is_told_everything():
    registry = Registry("e")
    for weight in range(1001):
        register(registry, 0.0, weight=weight)
    assert "since" in listing(registry, 0.0, "?epoch=e&revision=1")
    assert "since" not in listing(registry, 0.0, "?epoch=e&revision=0")


def test_node_that_stops_offering_a_service_is_gone_for_its_readers():
    registry = Registry("e")
    register(registry, 0.0)
    register(registry, 0.0, services=["Log"])
    told = listing(registry, 0.0, "?epoch=e&revision=1&service=Arith")
    assert (told["nodes"], told["gone"]) == ([], ["tcp://a:1"])


@pytest.mark.parametrize(
    "query", ["?wait=x", "?wait=-1", "?wait=61", "?wait=nan", "?revision=1.5", "?revision=-1"]
)
def test_bad_query_is_refused_with_the_value_and_the_rule(query):
    response = ask(Registry("e"), 0.0, target=f"/registry/nodes{query}")
    assert response.status == 400
    assert query[1:].partition("=")[2].encode() in response.body


# Long polls


def test_long_poll_is_answered_when_something_changes():
    registry = Registry("e")
    promise = poll(registry, 0.0)
    assert isinstance(promise, Promise)
    assert promise.response is None
    register(registry, 5.0)
    assert json.loads(promise.response.body)["revision"] == 1
    assert registry.waiting == 0


def test_long_poll_ends_at_its_time_with_the_same_revision():
    registry = Registry("e")
    register(registry, 0.0, ttl=3600)
    promise = poll(registry, 0.0)
    assert promise.deadline == 30.0
    promise.settle_late(30.0)
    assert dict(promise.response.headers)["ETag"] == '"e-1"'
    assert registry.waiting == 0


def test_long_poll_of_an_old_revision_or_another_life_is_answered_at_once():
    registry = Registry("e")
    register(registry, 0.0)
    register(registry, 1.0, weight=2)
    for query in ("revision=1", "revision=2&epoch=f", "revision=3", ""):
        answer = ask(registry, 2.0, target=f"/registry/nodes?wait=30&{query}")
        assert json.loads(answer.body)["revision"] == 2


def test_long_poll_of_a_service_is_not_woken_by_others():
    registry = Registry("e")
    promise = poll(registry, 0.0, "&service=Log")
    register(registry, 1.0)
    assert promise.response is None
    register(registry, 2.0, services=["Log"])
    assert [node["address"] for node in json.loads(promise.response.body)["nodes"]] == ["tcp://a:1"]


def test_many_changes_at_once_make_two_answers():
    registry = Registry("e")
    first = poll(registry, 0.0)
    register(registry, 1.0)
    second = poll(registry, 1.0)
    for port in range(2, 50):
        register(registry, 1.0, address=f"tcp://a:{port}")
    third = ask(registry, 1.0, target="/registry/nodes?wait=30&revision=1")
    assert json.loads(first.response.body)["revision"] == 1
    assert second.response is third.response is None
    assert registry.next_timeout() == 1.25
    registry.handle_timeout(1.25)
    for promise in (second, third):
        assert json.loads(promise.response.body)["revision"] == 49


def test_expiry_answers_long_polls():
    registry = Registry("e")
    register(registry, 0.0)
    promise = poll(registry, 1.0)
    registry.handle_timeout(registry.next_timeout())
    assert json.loads(promise.response.body)["nodes"] == []


def test_too_many_long_polls_are_refused():
    registry = Registry("e", max_waiting=2)
    promises = [poll(registry, 0.0) for _ in range(2)]
    refused = poll(registry, 0.0)
    assert (refused.status, dict(refused.headers)["Retry-After"]) == (503, "5")
    promises[0].abandon()
    assert isinstance(poll(registry, 0.0), Promise)
    promises[1].settle(refused)  # as a server does that stops
    assert isinstance(poll(registry, 0.0), Promise)


# Tokens


def test_token_protects_writing():
    registry = Registry("e", token="secret")
    shown = {"content-type": "application/json", "authorization": "Bearer secret"}
    body = json.dumps(NODE).encode()
    assert ask(registry, 0.0, "POST", body=body).status == 401
    assert ask(registry, 0.0, "DELETE", "/registry/nodes?address=tcp://a:1").status == 401
    wrong = {**shown, "authorization": "Bearer secre"}
    assert ask(registry, 0.0, "POST", body=body, headers=wrong).status == 401
    assert ask(registry, 0.0, "POST", body=body, headers=shown).status == 201
    assert ask(registry, 0.0).status == 200


@pytest.mark.parametrize("path", ["", "/nodes", "/status"])
def test_token_protects_reading_if_that_is_wanted(path):
    registry = Registry("e", token="secret", protect_reads=True)
    response = ask(registry, 0.0, target=f"/registry{path}")
    assert response.status == 401
    assert any(name == "WWW-Authenticate" for name, _ in response.headers)
    shown = {"authorization": "Bearer secret"}
    assert ask(registry, 0.0, target=f"/registry{path}", headers=shown).status == 200


# Restarts


@pytest.mark.fault(54)
def test_snapshot_keeps_nodes_over_a_restart_for_one_ttl():
    old = Registry("one")
    register(old, 1000.0, metadata={"zone": "x"})
    register(old, 1001.0, address="tcp://b:1")
    saved = json.loads(json.dumps(old.snapshot(1003.0)))
    new = Registry("two")
    new.restore(saved, 5.0)
    assert listing(new, 5.0)["nodes"] == listing(old, 1003.0)["nodes"]
    assert new.revision > old.revision
    assert new.snapshot(5.0)["nodes"] == saved["nodes"]
    register(new, 14.0, address="tcp://b:1")
    assert addresses(new, 15.25) == ["tcp://b:1"]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"format": 2}, "format 1"),
        ({"revision": -1}, "revision"),
        ({"nodes": {}}, "list of nodes"),
        ({"nodes": [{**NODE, "age": 0, "flaps": 0, "address": "tcp://a:0"}]}, r"nodes\[0\]: port"),
        ({"nodes": [{**NODE, "flaps": 0}]}, r"nodes\[0\]: age must be"),
        ({"nodes": [{**NODE, "age": 0, "flaps": 0, "ttl": 1e9}]}, r"nodes\[0\]: ttl must be"),
        (
            {"nodes": [{**NODE, "age": 0, "flaps": 0, "address": f"tcp://a:{n}"} for n in (1, 2)]},
            "1 nodes",
        ),
    ],
)
def test_bad_snapshot_is_refused_as_a_whole(change, why):
    registry = Registry("e", max_nodes=1)
    with pytest.raises(ValueError, match=why):
        registry.restore({"format": 1, "revision": 0, "nodes": [], **change}, 0.0)
    assert (registry.revision, registry.entries) == (0, {})


# The page


def test_page_shows_nodes_services_heartbeats_and_flapping():
    registry = Registry("e")
    register(registry, 0.0)
    ask(registry, 1.0, "DELETE", "/registry/nodes?address=tcp://a:1")
    register(registry, 2.0, services={"<script>alert(1)</script>": ""}, metadata={"'\">": "<i>"})
    page = ask(registry, 9.0, target="/registry")
    text = page.body.decode()
    for part in (
        "tcp://a:1",
        "&lt;script&gt;alert(1)&lt;/script&gt;",
        "7.0 s",
        "10 s",
        "Came back",
    ):
        assert part in text
    assert "<script>alert" not in text
    assert "<i>" not in text
    assert "default-src 'none'" in dict(page.headers)["Content-Security-Policy"]


def test_status_is_the_same_as_json():
    registry = Registry("e")
    register(registry, 2.0)
    assert json.loads(ask(registry, 9.0, target="/registry/status?service=Arith").body) == {
        "epoch": "e",
        "revision": 1,
        "nodes": 1,
        "waiting": 0,
        "omitted": 0,
        "entries": [{**NODE, "ttl": 10.0, "age": 7.0, "flaps": 0}],
    }


def test_page_of_many_nodes_is_bounded():
    registry = Registry("e", max_answer=1 << 30)
    for n in range(1, 3000):
        register(registry, 0.0, address=f"tcp://a:{n}", metadata={"<" * 250: "<" * 250})
    assert json.loads(ask(registry, 1.0, target="/registry/status").body)["omitted"] > 2000
    assert len(ask(registry, 1.0, target="/registry").body) < 4 << 20
    assert len(ask(registry, 1.0, target="/registry/status").body) < 1 << 20


def test_other_paths_and_methods_are_refused():
    registry = Registry("e")
    assert ask(registry, 0.0, target="/registry/other").status == 404
    assert ask(registry, 0.0, "PUT").status == 405


def test_mounted_registry_is_found_by_the_router_of_a_server():
    router = Router()
    registry = Registry("e", prefix="/nodes-of/us")
    registry.mount(router)
    for path in ("", "/nodes", "/status"):
        assert router(Request("GET", f"/nodes-of/us{path}"), 0.0).status == 200


@pytest.mark.parametrize(
    "settings",
    [
        {"epoch": "a b"},
        {"epoch": ""},
        {"prefix": "registry"},
        {"prefix": "/registry/"},
        {"token": ""},
        {"protect_reads": True},
    ],
)
def test_bad_settings_are_refused(settings):
    with pytest.raises(ValueError, match=r"must|needs"):
        Registry(**{"epoch": "e", **settings})


@pytest.mark.fault(138)
@pytest.mark.parametrize("method", ["POST", "DELETE"])
@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"host": "localhost:7000"}, "ok"),
        ({"host": "evil.example"}, 403),
        ({"host": "localhost:7000", "origin": "http://evil.example"}, 403),
    ],
)
def test_no_page_of_a_stranger_can_register_or_remove(method, fields, status):
    registry = Registry("e")
    register(registry, 0.0)
    target = "/registry/nodes" + (f"?address={NODE['address']}" if method == "DELETE" else "")
    body = json.dumps({**NODE, "address": "tcp://b:1"}).encode() if method == "POST" else b""
    request = Request(
        method, target, {"content-type": "application/json", **fields}, body, Peer("127.0.0.1:5")
    )
    before = registry.revision
    if status == "ok":
        registry(request, 1.0)
        assert registry.revision == before + 1
    else:
        with pytest.raises(HttpError) as refused:
            registry(request, 1.0)
        assert refused.value.status == status
        assert registry.revision == before
