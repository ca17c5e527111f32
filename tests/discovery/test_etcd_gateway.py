"""etcd's JSON gateway: operations as HTTP requests, and both dialects of its answers."""

import json
import random
import time
from base64 import b64encode

import pytest

from rpc_discovery import HttpResponse, Node, OperationFailed
from rpc_discovery.etcd import EtcdRegistration, EtcdWatch
from rpc_discovery.etcd.gateway import Exchange

URL = "http://etcd:2379"
HEADER = {"cluster_id": "14841639068965178418", "member_id": "1", "revision": "7", "raft_term": "2"}
A = "tcp://a:1"


def text(data):
    return b64encode(data).decode()


def kv(address, revision="7", **more):
    value = json.dumps({"address": address}).encode()
    key = text(f"/rpc/Arith/{address}".encode())
    return {"key": key, "mod_revision": revision, "value": text(value), "lease": "5", **more}


class Gateway:
    """Carries a machine's operations as a driver does, but for the network."""

    def __init__(self, machine):
        self.machine = machine
        self._exchanges = {}

    def requests(self):
        operations = self.machine.operations_to_send()
        self._exchanges |= {operation.id: Exchange(operation) for operation in operations}
        return [self._exchanges[operation.id].request for operation in operations]

    def part(self, now, request_id, data):
        if request_id not in self._exchanges:  # its connection is closed
            return
        try:
            for message in self._exchanges[request_id].part(data):
                self.machine.message(now, request_id, message)
        except OperationFailed as error:
            del self._exchanges[request_id]
            self.machine.failed(now, request_id, str(error), error.code)

    def respond(self, now, request_id, status, body):
        if request_id not in self._exchanges:
            return
        if status == 200 and self._exchanges[request_id].request.stream:
            self.part(now, request_id, body + b"\n")
        exchange = self._exchanges.pop(request_id, None)
        if exchange is None:  # its last message was bad
            return
        try:
            result = exchange.finish(HttpResponse(status, body))
        except OperationFailed as error:
            self.machine.failed(now, request_id, str(error), error.code)
        else:
            self.machine.result(now, request_id, result)


def carry_watch(**settings):
    machine = EtcdWatch([URL], now=0.0, rng=lambda: 0.5, grace=0.0, **settings)
    return machine, Gateway(machine)


def carry_registration(**settings):
    node = Node(A, ["Arith"])
    machine = EtcdRegistration(node, [URL], now=0.0, rng=lambda: 0.5, **settings)
    return machine, Gateway(machine)


def sent(gateway):
    [request] = gateway.requests()
    return request


def say(gateway, value, status=200, now=0.0):
    """Answer the request that is on its way."""
    request = sent(gateway)
    gateway.respond(now, request.id, status, json.dumps(value).encode())
    return request


def watching():
    """A watch that has been asked for."""
    machine, gateway = carry_watch()
    say(gateway, {"header": HEADER, "kvs": [kv(A)], "count": "1"})
    return machine, gateway, sent(gateway).id


def line(**result):
    header = {**HEADER, "revision": "9"}
    return json.dumps({"result": {"header": header, **result}}).encode() + b"\n"


CREATED = line(created=True)


# Requests


def test_questions_leave_out_what_is_zero():
    _, gateway = carry_watch()
    request = sent(gateway)
    assert (request.method, request.url) == ("POST", f"{URL}/v3/kv/range")
    assert json.loads(request.body) == {
        "key": text(b"/rpc/"),
        "range_end": text(b"/rpc0"),
        "limit": 500,
    }
    assert dict(request.headers)["Grpc-Metadata-Hasleader"] == "true"
    assert (request.keep, request.stream, request.timeout) == (True, False, 2.0)


def test_watch_is_a_stream_from_a_revision_on():
    _, gateway = carry_watch()
    say(gateway, {"header": HEADER})
    request = sent(gateway)
    assert request.url == f"{URL}/v3/watch"
    assert json.loads(request.body)["create_request"]["start_revision"] == 8
    assert request.stream


def test_registration_goes_through_its_questions():
    machine, gateway = carry_registration()
    request = say(gateway, {"header": HEADER, "ID": "7587862094996237830", "TTL": "10"})
    assert (request.url, json.loads(request.body)) == (f"{URL}/v3/lease/grant", {"TTL": 10})
    request = say(gateway, {"header": HEADER, "succeeded": True, "responses": [{}]})
    assert request.url == f"{URL}/v3/kv/txn"
    [step] = json.loads(request.body)["success"]
    assert step["request_put"]["key"] == text(b"/rpc/Arith/tcp://a:1")
    assert step["request_put"]["lease"] == 7587862094996237830
    assert machine.registered(0.0) == [URL]
    machine.handle_timeout(machine.next_timeout())
    request = say(gateway, {"result": {"header": HEADER, "ID": "7587862094996237830", "TTL": "10"}})
    assert request.url == f"{URL}/v3/lease/keepalive"
    machine.stop(3.0)
    request = say(gateway, {"header": HEADER})
    assert request.url == f"{URL}/v3/lease/revoke"
    assert machine.done


@pytest.mark.fault(60)
def test_lease_that_is_dead_has_no_ttl():
    machine, gateway = carry_registration()
    say(gateway, {"header": HEADER, "ID": "5", "TTL": "10"})
    say(gateway, {"header": HEADER, "succeeded": True})
    machine.handle_timeout(machine.next_timeout())
    say(gateway, {"result": {"header": HEADER, "ID": "5"}}, now=3.0)
    assert machine.lease == 0


def test_token_is_shown_without_a_scheme():
    _, gateway = carry_watch(user="alice", password="secret")
    request = say(gateway, {"header": HEADER, "token": "abc.7"})
    assert json.loads(request.body) == {"name": "alice", "password": "secret"}
    assert dict(sent(gateway).headers)["Authorization"] == "abc.7"


# Errors, in both dialects


@pytest.mark.parametrize(
    "body",
    [
        {"error": "etcdserver: no leader", "message": "etcdserver: no leader", "code": 14},
        {"code": 14, "message": "etcdserver: no leader", "details": []},
        {"error": {"grpc_code": 14, "http_code": 503, "message": "etcdserver: no leader"}},
        {"error": {"code": 14, "message": "etcdserver: no leader"}},
    ],
    ids=["v1", "v2", "v1-stream", "v2-stream"],
)
def test_error_is_read_in_any_dialect(body):
    machine, gateway = carry_watch()
    say(gateway, body, 200 if isinstance(body.get("error"), dict) else 503)
    assert machine.error == f"{URL}: etcdserver: no leader"


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (502, b"<html>Bad Gateway"),
        (404, b""),
        (200, b"<html>"),
        (200, b"[]"),
        (200, b"null"),
        (200, b'{"header":[]}'),
        (200, b'{"header":{"revision":"x"}}'),
        (200, b'{"header":{"revision":1.5}}'),
        (200, b'{"header":{"revision":1' + b"0" * 400 + b"}}"),
        (200, b'{"kvs":{}}'),
        (200, b'{"kvs":[5]}'),
        (200, b'{"kvs":[{"key":"?"}]}'),
        (200, b'{"kvs":[{"key":5}]}'),
        (200, b'{"error":5}'),
        (500, b'{"error":null}'),
        (200, b"\xff"),
    ],
)
def test_answer_that_is_not_etcds_is_a_failure(status, body):
    machine, gateway = carry_watch()
    request = sent(gateway)
    gateway.respond(0.0, request.id, status, body)
    assert machine.failures == 1
    assert not machine.ready


@pytest.mark.parametrize("token", [None, 5, "a\r\nb: c", "ü"])
def test_token_that_cannot_be_shown_is_a_failure(token):
    machine, gateway = carry_watch(user="alice", password="secret")
    say(gateway, {"header": HEADER, "token": token})
    assert "token" in machine.error


# Streams


def test_messages_are_lines_however_they_are_cut():
    stream = CREATED + line(events=[{"kv": kv("tcp://b:1", "8")}]) + b"\n"
    stream += line(events=[{"type": "DELETE", "kv": {"key": kv(A)["key"], "mod_revision": "9"}}])
    draw = random.Random(3)
    for _ in range(50):
        machine, gateway, watch = watching()
        rest = stream
        while rest:
            size = draw.choice([1, 2, 7, 100, 1000])
            gateway.part(1.0, watch, rest[:size])
            rest = rest[size:]
        machine.handle_timeout(2.0)
        assert [node.address for node in machine.view] == ["tcp://b:1"]
        assert machine.revision == 9


def test_long_message_in_many_pieces_costs_no_more_than_in_one():
    machine, gateway, watch = watching()
    gateway.part(1.0, watch, CREATED)
    piece, size = b"x" * 1000, 8_000_000
    began = time.process_time()
    for _ in range(size // len(piece)):
        gateway.part(1.0, watch, piece)
    # If each piece cost a copy of those before it, it would be 20 s.
    assert time.process_time() - began < 2.0
    assert machine.failures == 0


def test_message_that_is_too_long_is_not_asked_for_again():
    _, gateway, watch = watching()
    gateway.part(1.0, watch, CREATED)
    gateway.part(1.0, watch, b"x" * (17 * 1024 * 1024))
    gateway.machine.handle_timeout(gateway.machine.next_timeout())
    assert json.loads(sent(gateway).body)["limit"] == 500  # the nodes are listed


def test_last_message_may_lack_its_end_of_line():
    machine, gateway, watch = watching()
    gateway.part(1.0, watch, CREATED)
    error = {"error": {"grpc_code": 14, "http_code": 503, "message": "etcdserver: no leader"}}
    gateway.part(1.0, watch, json.dumps(error).encode())
    assert machine.failures == 0
    gateway.respond(1.0, watch, 200, b"")
    assert machine.error == f"{URL}: etcdserver: no leader"


def test_stream_that_ends_without_a_word_is_a_failure():
    machine, gateway, watch = watching()
    gateway.part(1.0, watch, CREATED)
    gateway.respond(1.0, watch, 200, b"")
    assert machine.error == f"{URL}: etcd ended the watch"


def test_compaction_is_told_by_the_second_message():
    machine, gateway, watch = watching()
    gateway.part(1.0, watch, CREATED + line(canceled=True, compact_revision="7"))
    assert machine.operations_to_cancel() == [watch]
    assert sent(gateway).url == f"{URL}/v3/kv/range"
    assert machine.failures == 0


def test_refused_watch_is_a_good_response_that_says_no():
    machine, gateway, watch = watching()
    reason = "rpc error: code = PermissionDenied desc = etcdserver: permission denied"
    gateway.part(1.0, watch, line(created=True, watch_id="-1"))
    gateway.part(1.0, watch, line(canceled=True, watch_id="-1", cancel_reason=reason))
    assert reason in machine.error


@pytest.mark.parametrize(
    "data",
    [
        b"nonsense\n",
        b"[]\n",
        b'{"result":{"events":5}}\n',
        b'{"result":{"events":[5]}}\n',
        b'{"result":{"events":[{}]}}\n',
        b'{"result":{"events":[{"kv":{"key":"?"}}]}}\n',
        b"x" * (17 * 1024 * 1024),
    ],
    ids=["text", "list", "events", "event", "kv", "key", "endless"],
)
def test_message_that_is_not_etcds_ends_the_watch(data):
    machine, gateway, watch = watching()
    gateway.part(1.0, watch, CREATED)
    gateway.part(1.0, watch, data)
    assert machine.failures == 1
    assert [node.address for node in machine.view] == [A]
    assert machine.operations_to_cancel() == [watch]
    gateway.part(1.0, watch, CREATED)
    gateway.respond(1.0, watch, 200, b"")
    assert machine.failures == 1
