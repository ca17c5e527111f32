"""Many threads on one client: who reads, who waits, and that nothing is lost between them."""

import os
import random
import threading
import time

import pytest

from blocking_driver.support import (
    LONGEST,
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
    CallError,
    Cancelled,
    ClientConfig,
    DeadlineExceeded,
    ServerConfig,
    Unavailable,
    quick,
)
from support.by_hand import accept_line

STRESS_SECONDS = float(os.environ.get("STRESS_SECONDS", "2"))


def test_slow_call_does_not_keep_the_fast_call_of_another_thread_waiting():
    gate = Gate()
    with pair(gate, Echo()) as (_, client):
        slow = Running(client.call, "Gate.wait")
        took(gate.started)
        until(lambda: client._reading.reader)
        began = time.monotonic()
        assert client.call("Echo.echo", "fast") == "fast"
        assert time.monotonic() - began < 1
        assert slow.thread.is_alive()
        gate.open_()
        assert slow.result() == "through"


def test_thread_that_reads_may_leave_first():
    first, second = Gate(), Gate()
    with serving() as (server, address), Client.connect(address) as client:
        server.register(first, "First")
        server.register(second, "Second")
        reading = Running(client.call, "First.wait", 1)
        until(lambda: client._reading.reader)
        sleeping = Running(client.call, "Second.wait", 2)
        until(lambda: client._reading.sleepers)
        first.open_()
        assert reading.result() == 1
        until(lambda: client._reading.reader)  # the other took over
        second.open_()
        assert sleeping.result() == 2


def test_thread_that_reads_may_leave_last():
    first, second = Gate(), Gate()
    with serving() as (server, address), Client.connect(address) as client:
        server.register(first, "First")
        server.register(second, "Second")
        reading = Running(client.call, "First.wait", 1)
        until(lambda: client._reading.reader)
        sleeping = Running(client.call, "Second.wait", 2)
        until(lambda: client._reading.sleepers)
        second.open_()
        assert sleeping.result() == 2
        assert client._reading.reader is not None
        first.open_()
        assert reading.result() == 1


def test_deadline_of_a_sleeping_thread_passes_while_another_reads():
    gate = Gate()
    with pair(gate) as (_, client):
        reading = Running(client.call, "Gate.wait")
        until(lambda: client._reading.reader)
        began = time.monotonic()
        with pytest.raises(DeadlineExceeded):
            client.call("Gate.wait", timeout=0.2)
        assert 0.15 < time.monotonic() - began < 2
        gate.open_()
        assert reading.result() == "through"


def test_reader_that_gives_up_hands_the_role_on():
    gate = Gate()
    with pair(gate) as (_, client):
        pending = client.start("Gate.wait")
        reading = Running(pending.result)
        until(lambda: client._reading.reader)
        sleeping = Running(client.call, "Gate.wait", "second")
        until(lambda: client._reading.sleepers)
        pending.cancel()
        assert isinstance(reading.error(), Cancelled)
        gate.open_()
        assert sleeping.result() == "second"


def test_loss_of_the_connection_wakes_every_thread():
    def hang_up(wire):
        for _ in range(10):
            wire.receive()

    with (
        Script(accept_and(hang_up)) as script,
        Client.connect(script.address, codec="json") as client,
    ):
        calls = [Running(client.call, "Gate.wait") for _ in range(10)]
        errors = [call.error() for call in calls]
        assert {type(error) for error in errors} == {Unavailable}
        assert all(error.maybe_executed for error in errors)


def test_close_wakes_every_thread():
    gate = Gate()
    with serving(gate) as (_, address):
        client = Client.connect(address)
        calls = [Running(client.call, "Gate.wait") for _ in range(10)]
        took(gate.started, 10)
        client.close()
        assert {type(call.error()) for call in calls} == {Cancelled}


def test_several_threads_may_close_at_once():
    gate = Gate()
    with serving(gate) as (_, address):
        client = Client.connect(address)
        call = Running(client.call, "Gate.wait")
        took(gate.started)
        closing = [Running(client.close, 5.0) for _ in range(4)]
        until(lambda: client.closed)
        gate.open_()
        for close in closing:
            close.result()
        assert call.result() == "through"


def test_close_with_bytes_that_nobody_reads_frees_the_reader():
    config = ClientConfig(codec="json", close_timeout=0.2)
    with Script(accept_and(silence)) as script:
        client = Client.connect(script.address, config=config)
        reading = Running(client.call, "Gate.wait")
        until(lambda: client._reading.polling)
        client.start("Echo.echo", bytes(12_000_000))
        assert client._channel.unsent
        client.close()
        assert isinstance(reading.error(), Cancelled)


def test_answer_reaches_its_thread_while_bytes_of_another_are_stuck():
    ask, answered = threading.Event(), threading.Event()

    def answer_without_reading_on(wire):
        asked = wire.receive()
        ask.wait(LONGEST)
        wire.send(b"\x02\x00\x00\x00\x00\x00\x00\x02" + asked.call_id.to_bytes(8, "big") + b"42")
        answered.wait(LONGEST)

    config = ClientConfig(codec="json", close_timeout=0.1)
    with (
        Script(accept_and(answer_without_reading_on)) as script,
        Client.connect(script.address, config=config) as client,
    ):
        fast = client.start("Echo.echo", 42)
        stuck = [Running(client.call, "Echo.echo", bytes(9_000_000)) for _ in range(2)]
        until(lambda: client._channel.unsent and client._reading.sleepers)
        waiting = Running(fast.result)
        ask.set()
        assert waiting.result() == 42
        answered.set()
        assert {type(call.error()) for call in stuck} == {Unavailable}


def test_bytes_left_by_submit_leave_while_another_thread_reads():
    arrived = threading.Event()
    resume = threading.Event()

    def read_late(wire):
        wire.receive()
        resume.wait(LONGEST)
        assert len(wire.receive().body) == 12_000_000
        arrived.set()
        silence(wire)

    with (
        Script(accept_and(read_late)) as script,
        Client.connect(script.address, codec="json") as client,
    ):
        reading = Running(client.call, "Gate.wait")
        until(lambda: client._reading.polling)
        client.start("Echo.echo", bytes(12_000_000))
        assert client._channel.unsent
        resume.set()
        assert arrived.wait(LONGEST)
        client.close()
        assert isinstance(reading.error(), Cancelled)


def test_connect_with_a_handshake_in_pieces():
    def dribble(wire):
        wire.line()
        for byte in accept_line("json"):
            wire.send(bytes([byte]))
        asked = wire.receive()
        answer = b"\x02\x00\x00\x00\x00\x00\x00\x01" + asked.call_id.to_bytes(8, "big") + b"7"
        for byte in answer:
            wire.send(bytes([byte]))

    with Script(dribble) as script, Client.connect(script.address, codec="json") as client:
        assert client.call("Echo.echo", 7) == 7


class Mixed:
    """Handlers of every kind, each of which shows whose answer it gives."""

    @quick
    def at_once(self, value: int) -> int:
        return -value

    def soon(self, value: int) -> int:
        return -value

    def later(self, value: int) -> int:
        threading.Event().wait(value % 7 / 1000)
        return -value

    def large(self, value: int) -> list:
        return [-value, "x" * (value % 50 * 1000)]


class User(threading.Thread):
    """Uses a client in every way, at random, and checks each answer against its question."""

    def __init__(self, client: Client, number: int, until: float) -> None:
        super().__init__(daemon=True)
        self.dice = random.Random(number)
        self.client = client
        self.number = number * 1_000_000
        self.until = until
        self.calls = 0
        self.given_up = 0
        self.problem: BaseException | None = None

    def run(self) -> None:
        try:
            while time.monotonic() < self.until:
                self.use()
        except BaseException as problem:
            self.problem = problem

    def use(self) -> None:
        dice, client = self.dice, self.client
        self.calls += 1
        value = self.number + self.calls
        way = dice.randrange(6)
        method = dice.choice(["Mixed.at_once", "Mixed.soon", "Mixed.later"])
        try:
            if way == 0:
                many = [(value + i,) for i in range(dice.randrange(30))]
                results = list(client.call_many(method, many, in_flight=8))
                assert results == [-args[0] for args in many]
            elif way == 1:
                pending = client.start(method, value, timeout=dice.choice([0.001, 0.01, 30]))
                if dice.random() < 0.5:
                    pending.cancel()
                assert pending.result() == -value
            elif way == 2:
                assert client.call("Mixed.large", value)[0] == -value
            elif way == 3:
                client.notify(method, value)
            else:
                timeout = dice.choice([0.0005, 0.002, 0.005, 30, 30])
                assert client.call(method, value, timeout=timeout) == -value
        except (Cancelled, DeadlineExceeded):
            self.given_up += 1


def test_sixty_four_threads_lose_no_call_and_mix_no_answers():
    # Given up, a call takes a slot at the server for as long as its handler goes on.
    config = ServerConfig(max_calls=20_000)
    with pair(Mixed(), config=config) as (server, client):
        stop_at = time.monotonic() + STRESS_SECONDS
        users = [User(client, number, stop_at) for number in range(64)]
        for user in users:
            user.start()
        for user in users:
            user.join(STRESS_SECONDS + 60)
        assert [user for user in users if user.is_alive()] == []
        assert [user.problem for user in users if user.problem] == []
        assert all(user.calls for user in users)
        assert sum(user.given_up for user in users) > 0
        until(lambda: idle(server))
        link = next(iter(server.links))
        assert (client.calls_in_flight, len(client.connection._queue)) == (0, 0)
        assert (client._reading.sleepers, client._reading.reader, client._outside) == ({}, None, 0)
        until(lambda: len(link.connection.calls) == 0)
        assert client.call("Mixed.soon", 1) == -1
        assert len(link.connection.calls.deadlines) <= 64 + 3


def test_threads_that_lose_their_connection_all_get_an_error():
    with serving(Mixed()) as (_, address):
        for seed in range(15):
            client = Client.connect(address)
            users = [User(client, number, time.monotonic() + LONGEST) for number in range(8)]
            for user in users:
                user.start()
            dice = random.Random(seed)
            until(lambda: all(user.calls > dice.randrange(20) for user in users))  # noqa: B023
            client.close(dice.choice([0, 0.01]))
            for user in users:
                user.join(LONGEST)
                assert not user.is_alive()
                assert isinstance(user.problem, CallError)
                user.problem = None
            assert client._channel.sock.fileno() == -1
