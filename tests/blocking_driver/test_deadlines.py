"""Time limits, and cancellation that flows from caller to handler to the calls it makes."""

import contextlib
import time

import pytest

from blocking_driver.support import (
    LONGEST,
    Echo,
    Gate,
    Running,
    Script,
    accept_and,
    accepted,
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
    DeadlineExceeded,
    ServerConfig,
    current_call,
)
from support.by_hand import CANCEL, ERROR, request


class Relay:
    """Passes a call on to another server, as a handler does."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.outcomes: list[BaseException] = []

    def wait(self) -> str:
        try:
            return self.client.call("Gate.wait")
        except BaseException as error:
            self.outcomes.append(error)
            raise

    def time_left(self) -> float | None:
        return self.client.call("Clock.time_left")


class Clock:
    def time_left(self) -> float | None:
        return current_call().time_left


def test_deadline_shorter_than_the_patience_of_the_reader():
    gate = Gate()
    with pair(gate) as (_, client):
        began = time.monotonic()
        with pytest.raises(DeadlineExceeded):
            client.call("Gate.wait", timeout=0.002)
        assert time.monotonic() - began < 1


def test_timeout_of_the_config_holds_for_calls_that_set_none():
    gate = Gate()
    with serving(gate) as (_, address):
        config = ClientConfig(call_timeout=0.1)
        with Client.connect(address, config=config) as client, pytest.raises(DeadlineExceeded):
            client.call("Gate.wait")


def test_deadline_of_months_does_not_disturb_the_server():
    gate = Gate()
    config = ServerConfig(handshake_timeout=0.1)
    with pair(gate, Echo(), config=config) as (server, client):
        patient = Running(client.call, "Gate.wait", timeout=300 * 86400.0)
        took(gate.started)
        until(lambda: server._keeper._timers[0][0] > time.monotonic() + 86400)
        with Client.connect(client.address, timeout=3) as other:
            assert other.call("Echo.echo", 1) == 1
        gate.open_()
        assert patient.result() == "through"


def test_deadline_of_months_while_the_request_cannot_be_written():
    with (
        Script(accept_and(silence)) as script,
        Client.connect(
            script.address, config=ClientConfig(codec="json", close_timeout=0.1)
        ) as client,
    ):
        stuck = Running(client.call, "Echo.echo", bytes(12_000_000), timeout=300 * 86400.0)
        until(lambda: client._reading.polling)
        client.close()
        assert isinstance(stuck.error(), Cancelled)


def test_time_limit_of_the_server_answers_although_the_handler_goes_on():
    gate = Gate()
    with pair(gate, config=ServerConfig(handling_timeout=0.2)) as (server, client):
        with pytest.raises(DeadlineExceeded):
            client.call("Gate.stubborn", timeout=LONGEST)
        assert server.stats["abandoned"] == server.stats["running"] == 1
        gate.open_()
        until(lambda: idle(server))


def test_deadline_passes_while_the_request_cannot_be_written():
    config = ClientConfig(codec="json", close_timeout=0.1)
    with (
        Script(accept_and(silence)) as script,
        Client.connect(script.address, config=config) as client,
    ):
        began = time.monotonic()
        with pytest.raises(DeadlineExceeded):
            client.call("Echo.echo", bytes(12_000_000), timeout=0.3)
        assert time.monotonic() - began < 2
        assert client.calls_in_flight == 0


def test_deadline_passes_for_a_call_behind_one_that_cannot_be_written():
    config = ClientConfig(codec="json", close_timeout=0.1, high_water=1024)
    with (
        Script(accept_and(silence)) as script,
        Client.connect(script.address, config=config) as client,
    ):
        stuck = Running(client.call, "Echo.echo", bytes(12_000_000))
        until(lambda: client._reading.polling)
        with pytest.raises(DeadlineExceeded):
            client.call("Echo.echo", 1, timeout=0.2)
        client.close()
        assert isinstance(stuck.error(), Cancelled)


def test_deadline_passes_in_the_queue_of_the_server():
    gate = Gate()
    with pair(gate, max_concurrency=1) as (server, client):
        first = Running(client.call, "Gate.wait", 1)
        took(gate.started)
        with pytest.raises(DeadlineExceeded):
            client.call("Gate.wait", timeout=0.2)
        until(lambda: server.stats["queued"] == 0)
        gate.open_()
        assert first.result() == 1
        until(lambda: idle(server))
        assert server.stats["served"] == 1


def test_call_that_waits_for_a_thread_is_cancelled_unrun():
    gate = Gate()
    with pair(gate, threads=1) as (server, client):
        first = Running(client.call, "Gate.wait", 1)
        took(gate.started)
        second = client.start("Gate.wait")
        until(lambda: server.stats["queued"] == 1)
        second.cancel()
        until(lambda: server.stats["queued"] == 0)
        gate.open_()
        assert first.result() == 1
        until(lambda: idle(server))
        assert (server.stats["served"], server.stats["abandoned"]) == (1, 0)


def test_deadline_flows_into_a_call_made_inside_a_handler():
    with (
        pair(Clock()) as (_, inner),
        pair(Relay(inner)) as (_, outer),
    ):
        assert 0 < outer.call("Relay.time_left", timeout=5) <= 5


def test_cancellation_flows_into_a_call_made_inside_a_handler():
    gate = Gate()
    with pair(gate) as (inner_server, inner):
        relay = Relay(inner)
        with pair(relay) as (server, outer):
            pending = outer.start("Relay.wait")
            took(gate.started)
            until(lambda: inner._reading.polling)
            pending.cancel()
            took(gate.cancelled)
            until(lambda: idle(server) and idle(inner_server))
            assert [type(error) for error in relay.outcomes] == [Cancelled]
            assert inner.calls_in_flight == 0


def test_death_of_the_caller_flows_into_a_call_made_inside_a_handler():
    gate = Gate()
    with pair(gate) as (inner_server, inner), serving(Relay(inner)) as (server, address):
        with accepted(address) as wire:
            wire.send(request(1, "Relay.wait"))
            took(gate.started)
            wire.reset()
        took(gate.cancelled)
        until(lambda: idle(server) and idle(inner_server))


def test_caller_that_gives_up_sends_a_cancel():
    frames = []

    def watch(wire):
        frames.append(wire.receive())
        frames.append(wire.receive())

    with (
        Script(accept_and(watch)) as script,
        Client.connect(script.address, codec="json") as client,
    ):
        with pytest.raises(DeadlineExceeded):
            client.call("Gate.wait", timeout=0.1)
        until(lambda: len(frames) == 2)
        assert (frames[1].type, frames[1].call_id) == (CANCEL, frames[0].call_id)


def test_server_answers_at_the_deadline_of_a_client_that_does_not():
    gate = Gate()
    with serving(gate) as (_, address), accepted(address) as wire:
        wire.send(request(1, "Gate.stubborn", timeout=200))
        answer = wire.receive()
        assert (answer.type, answer.call_id) == (ERROR, 1)
        assert answer.value[0] == "deadline_exceeded"


def test_cancellations_that_meet_the_end_of_the_handler_have_one_outcome_each():
    with pair(Echo()) as (server, client):
        for i in range(300):
            pending = client.start("Echo.echo", i)
            cancelling = Running(pending.cancel)
            with contextlib.suppress(Cancelled):
                assert pending.result() == i
            cancelling.result()
        until(lambda: idle(server))
        assert client.calls_in_flight == 0
        assert client.call("Echo.echo", "on") == "on"
