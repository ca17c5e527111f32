"""Calls over real sockets: every way to make one, and what comes back."""

import dataclasses
import threading

import pytest

from blocking_driver.support import (
    Echo,
    Gate,
    Running,
    Script,
    accept_and,
    idle,
    pair,
    serving,
    silence,
    took,
    until,
)
from rpc_blocking import Client
from rpc_proto import (
    Cancelled,
    ClientConfig,
    LocalProtocolError,
    NotFound,
    ServerConfig,
    Unimplemented,
    current_call,
)


@dataclasses.dataclass
class Point:
    x: int
    y: int


class Work:
    def __init__(self) -> None:
        self.lines = threading.Semaphore(0)
        self.heard: list[str] = []

    def add(self, a: int, b: int) -> int:
        return a + b

    def mirror(self, point: Point) -> Point:
        return Point(point.y, point.x)

    def fail(self) -> None:
        raise NotFound("nothing here", {"key": 1})

    def fail_at(self, value: int, bad: int) -> int:
        if value == bad:
            raise NotFound(f"no {value}")
        return value

    def size(self, body: bytes) -> int:
        return len(body)

    def zeros(self, size: int) -> bytes:
        return bytes(size)

    def meta(self) -> dict[str, str]:
        call = current_call()
        call.set_reply_metadata({"seen": "yes"})
        return dict(call.metadata)

    def line(self, text: str) -> None:
        self.heard.append(text)
        self.lines.release()

    def who(self) -> dict:
        return dict(current_call().peer.certificate or {})


def test_call_on_every_transport(transport):
    listening, connecting = transport
    with (
        serving(Work(), **listening) as (_, address),
        Client.connect(address, **connecting) as client,
    ):
        assert client.call("Work.add", 1, 2) == 3


def test_bodies_of_megabytes_on_every_transport(transport):
    listening, connecting = transport
    with (
        serving(Work(), **listening) as (_, address),
        Client.connect(address, **connecting) as client,
    ):
        assert client.call("Work.size", bytes(12_000_000)) == 12_000_000
        assert len(client.call("Work.zeros", 12_000_000)) == 12_000_000


def test_big_bodies_both_ways_at_once():
    with pair(Echo()) as (_, client):
        bodies = [bytes([digit]) * 6_000_000 for digit in range(6)]
        calls = [Running(client.call, "Echo.echo", body) for body in bodies]
        assert all(call.result() == body for call, body in zip(calls, bodies, strict=True))


def test_tls_connects_without_waiting_for_a_timeout(authority):
    ssl = authority.server_context()
    with (
        serving(Work(), address="tls://127.0.0.1:0", ssl=ssl) as (_, address),
        Client.connect(address, timeout=1.0, ssl=authority.client_context()) as client,
    ):
        assert client.call("Work.add", 1, 2) == 3


def test_mutual_tls_shows_the_certificate_to_the_handler(authority):
    ssl = authority.server_context(client_certificates=True)
    with (
        serving(Work(), address="tls://127.0.0.1:0", ssl=ssl) as (_, address),
        Client.connect(address, ssl=authority.client_context(certificate=True)) as client,
    ):
        assert client.call("Work.who")["subject"] == [[["commonName", "alice"]]]


def test_json_codec():
    with serving(Work()) as (_, address), Client.connect(address, codec="json") as client:
        assert client.call("Work.add", a=1, b=2) == 3


def test_result_takes_the_type_that_was_asked_for():
    with pair(Work()) as (_, client):
        assert client.call("Work.mirror", Point(1, 2), returns=Point) == Point(2, 1)


def test_typed_proxy_converts_results():
    with pair(Work()) as (_, client):
        assert client.service(Work).mirror(Point(1, 2)) == Point(2, 1)


def test_error_of_a_handler_arrives_whole():
    with pair(Work()) as (_, client):
        with pytest.raises(NotFound, match="nothing here") as caught:
            client.call("Work.fail")
        assert caught.value.details == {"key": 1}


def test_unknown_method_is_unimplemented():
    with pair(Work()) as (_, client), pytest.raises(Unimplemented):
        client.call("Work.nope")


def test_request_brings_metadata_both_ways():
    with pair(Work()) as (_, client):
        reply = client.request("Work.meta", metadata={"k": "v"})
        assert (reply.value, reply.metadata) == ({"k": "v"}, {"seen": "yes"})


def test_submitted_calls_run_at_the_same_time():
    gate = Gate()
    with pair(gate) as (_, client):
        pending = [client.start("Gate.wait", i) for i in range(5)]
        took(gate.started, 5)
        assert not pending[0].done()
        gate.open_()
        assert [call.result() for call in pending] == list(range(5))
        assert pending[0].done()


def test_submitted_call_can_be_cancelled():
    gate = Gate()
    with pair(gate) as (server, client):
        pending = client.start("Gate.wait")
        took(gate.started)
        pending.cancel()
        with pytest.raises(Cancelled):
            pending.result()
        took(gate.cancelled)
        until(lambda: idle(server))


def test_cancel_from_another_thread_wakes_the_thread_that_reads():
    gate = Gate()
    with pair(gate) as (_, client):
        pending = client.start("Gate.wait")
        waiting = Running(pending.result)
        took(gate.started)
        until(lambda: client._reading.polling)  # it has begun to wait in earnest
        pending.cancel()
        assert isinstance(waiting.error(), Cancelled)


def test_second_result_of_a_failed_call_is_refused():
    with pair(Work()) as (_, client):
        pending = client.start("Work.fail")
        with pytest.raises(NotFound):
            pending.result()
        with pytest.raises(LocalProtocolError, match="already taken"):
            pending.result()


def test_second_thread_that_waits_for_a_call_is_refused():
    gate = Gate()
    with pair(gate) as (_, client):
        pending = client.start("Gate.wait")
        first = Running(pending.result)
        until(lambda: client._reading.polling)
        with pytest.raises(LocalProtocolError, match="another thread"):
            pending.result()
        gate.open_()
        assert first.result() == "through"


def test_call_many_yields_in_order():
    with pair(Echo()) as (_, client):
        results = list(client.call_many("Echo.echo", ((i,) for i in range(1000))))
        assert results == list(range(1000))


def test_call_many_keeps_the_bound_of_calls_in_flight():
    with pair(Echo()) as (_, client):
        most = 0

        def arguments():
            nonlocal most
            for i in range(100):
                most = max(most, client.calls_in_flight)
                yield (i,)

        assert len(list(client.call_many("Echo.echo", arguments(), in_flight=7))) == 100
        assert most <= 7


def test_call_many_gives_the_rest_up_when_one_fails():
    gate = Gate()
    with pair(gate, Work()) as (server, client):
        calls = client.call_many("Work.fail_at", ((i, 5) for i in range(100)), in_flight=20)
        got = []
        with pytest.raises(NotFound, match="no 5"):
            got.extend(calls)
        assert client.calls_in_flight == 0
        until(lambda: idle(server))


def test_call_many_that_is_left_gives_its_calls_up():
    gate = Gate()
    with pair(gate, Echo()) as (server, client):
        calls = client.call_many("Gate.wait", ((i,) for i in range(8)), in_flight=4)
        waiting = Running(next, calls)
        took(gate.started, 4)
        gate.open_()
        assert waiting.result() == 0
        calls.close()
        assert client.calls_in_flight == 0
        until(lambda: idle(server))


def test_notify_arrives_in_order():
    work = Work()
    with pair(work) as (_, client):
        for i in range(100):
            client.notify("Work.line", str(i))
        took(work.lines, 100)
        assert sorted(work.heard, key=int) == [str(i) for i in range(100)]


def test_notify_waits_for_a_server_that_reads_slowly():
    resume = threading.Event()
    received = []

    def read_late(wire):
        resume.wait(20)
        for _ in range(30):
            received.append(len(wire.receive().body))

    config = ClientConfig(codec="json", high_water=64 * 1024)
    with (
        Script(accept_and(read_late)) as script,
        Client.connect(script.address, config=config) as client,
    ):

        def send_all():
            for _ in range(30):
                client.notify("Log.body", bytes(1_000_000))

        sending = Running(send_all)
        until(lambda: client._channel.unsent)
        assert sending.thread.is_alive()
        resume.set()
        sending.result()
        until(lambda: len(received) == 30)
        assert client.calls_in_flight == 0


def test_notify_gives_up_at_its_deadline_when_nobody_reads():
    config = ClientConfig(codec="json", close_timeout=0.1)
    with (
        Script(accept_and(silence)) as script,
        Client.connect(script.address, config=config) as client,
    ):

        def fill() -> None:
            while True:  # what the kernel takes at first is sent
                client.notify("Log.body", bytes(1_000_000), timeout=0.2)

        with pytest.raises(TimeoutError):
            fill()
        assert client.calls_in_flight == 0


def test_answer_larger_than_the_client_takes_is_an_error_of_that_call_only():
    config = ClientConfig(max_body=100_000)
    with serving(Work()) as (_, address), Client.connect(address, config=config) as client:
        with pytest.raises(Exception, match="resource_exhausted"):
            client.call("Work.zeros", 200_000)
        assert client.call("Work.add", 1, 2) == 3


def test_calls_above_the_limit_of_a_connection_wait_in_the_client():
    gate = Gate()
    with pair(gate, Echo(), config=ServerConfig(max_calls=2)) as (_, client):
        slow = [Running(client.call, "Gate.wait", i) for i in range(2)]
        took(gate.started, 2)
        third = Running(client.call, "Echo.echo", "third")
        until(lambda: client.calls_in_flight == 3)
        gate.open_()
        assert [call.result() for call in slow] == [0, 1]
        assert third.result() == "third"
