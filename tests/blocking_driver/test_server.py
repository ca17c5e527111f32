"""The life of a server: starting, stopping, and peers that misbehave."""

import contextlib
import gc
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from blocking_driver.support import (
    ANY_PORT,
    LONGEST,
    Echo,
    Gate,
    Running,
    accepted,
    dialled,
    idle,
    in_bytes,
    pair,
    serving,
    took,
    until,
)
from rpc_blocking import Client, Server
from rpc_proto import HandshakeError, LocalProtocolError, ServerConfig, Unavailable, quick
from support.by_hand import GOAWAY, frame, option_line, request

# Starting and stopping


def test_server_that_was_never_started_can_be_dropped():
    server = Server()
    server.register(Echo())
    del server
    gc.collect()  # what it had opened would warn


def test_server_that_was_never_started_can_be_stopped():
    Server().stop()


def test_server_listens_on_several_addresses(tmp_path):
    with serving(Echo()) as (server, first):
        second = server.start(f"unix://{tmp_path}/rpc.sock")
        for address in (first, second):
            with Client.connect(address) as client:
                assert client.call("Echo.echo", address) == address


def test_stopped_server_does_not_start_again():
    with serving(Echo()) as (server, _):
        server.stop()
        with pytest.raises(LocalProtocolError, match="stopped"):
            server.start(ANY_PORT)


def test_port_that_is_taken_is_an_error():
    with (
        serving(Echo()) as (server, address),
        pytest.raises(OSError, match=f"in use: '{address}'"),
    ):
        server.start(address)


def test_stop_refuses_new_connections():
    with serving(Echo()) as (server, address):
        server.stop()
        with pytest.raises(Unavailable):
            Client.connect(address)


def test_stop_lets_calls_end_within_the_grace():
    gate = Gate()
    with pair(gate) as (server, client):
        call = Running(client.call, "Gate.wait")
        took(gate.started)
        stopping = Running(server.stop, LONGEST)
        until(lambda: client.closed)
        gate.open_()
        assert call.result() == "through"
        stopping.result()


def test_stop_cancels_calls_after_the_grace():
    gate = Gate()
    with pair(gate) as (server, client):
        call = Running(client.call, "Gate.wait")
        took(gate.started)
        server.stop(grace=0.1)
        assert isinstance(call.error(), Unavailable)
        took(gate.cancelled)


def test_stop_leaves_a_handler_behind_that_does_not_end(caplog):
    gate = Gate()
    with pair(gate) as (server, client):
        call = Running(client.call, "Gate.stubborn")
        took(gate.started)
        server.stop(grace=0.1)
        assert isinstance(call.error(), Unavailable)
        assert "1 handlers still running" in caplog.text
        gate.open_()
        took(gate.ended)
        until(lambda: idle(server))


def test_stop_does_not_wait_for_clients_that_do_nothing():
    with contextlib.ExitStack() as stack:
        server, address = stack.enter_context(serving(Echo()))
        for _ in range(20):
            stack.enter_context(Client.connect(address))
        began = time.monotonic()
        server.stop(grace=LONGEST)
        assert time.monotonic() - began < 3  # close_timeout is 5 s


def test_several_threads_may_stop_a_server():
    for _ in range(30):
        server = Server()
        for _ in range(3):
            server.start(ANY_PORT)
        stopping = [Running(server.stop) for _ in range(4)]
        for stop in stopping:
            stop.result()


def test_serve_forever_returns_when_the_server_is_stopped():
    server = Server()
    server.start(ANY_PORT)
    serving_ = Running(server.serve_forever)
    server.stop()
    serving_.result()


def test_serve_forever_returns_at_once_when_the_server_was_stopped_before():
    with serving(Echo()) as (server, _):
        server.stop()
        Running(server.serve_forever).result()


def test_interrupt_ends_serve_forever_and_the_process():
    source = """
import sys, threading
from rpc_blocking import Server
class Main:
    def waits(self) -> bool:
        frame = sys._current_frames()[threading.main_thread().ident]
        return frame.f_code.co_name == "wait"
server = Server()
server.register(Main())
print(server.start("tcp://127.0.0.1:0"), flush=True)
try:
    server.serve_forever()
except KeyboardInterrupt:
    print("interrupted", server.stats["connections"])
"""
    paths = [path for path in sys.path if path]
    process = subprocess.Popen(
        [sys.executable, "-c", source],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
    )
    with process:
        address = process.stdout.readline().strip()
        with Client.connect(address) as client:
            until(lambda: client.call("Main.waits"))
            process.send_signal(signal.SIGINT)
            assert process.communicate(timeout=LONGEST)[0] == "interrupted 0\n"


def test_stale_unix_socket_is_replaced(tmp_path):
    path = f"{tmp_path}/rpc.sock"
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(path)
    with (
        serving(Echo(), address=f"unix://{path}") as (_, address),
        Client.connect(address) as client,
    ):
        assert client.call("Echo.echo", 1) == 1
    assert not os.path.exists(path)


def test_unix_socket_of_a_live_server_is_left_alone(tmp_path):
    with serving(Echo(), address=f"unix://{tmp_path}/rpc.sock") as (_, address):
        with pytest.raises(OSError, match="in use"):
            Server().start(address)
        with Client.connect(address) as client:
            assert client.call("Echo.echo", 1) == 1


# Connections


def test_one_connection_too_many_is_told_so():
    with (
        serving(Echo(), max_connections=2) as (_, address),
        Client.connect(address) as first,
        Client.connect(address) as second,
    ):
        with pytest.raises(HandshakeError) as caught:
            Client.connect(address)
        assert caught.value.code == "resource_exhausted"
        assert first.call("Echo.echo", 1) == second.call("Echo.echo", 1) == 1


def test_of_many_that_connect_at_once_only_the_surplus_is_turned_away():
    with serving(Echo(), max_connections=20) as (server, address):
        for _ in range(10):
            connecting = [Running(Client.connect, address) for _ in range(24)]
            for attempt in connecting:
                attempt.thread.join(LONGEST)
            clients = [attempt.result() for attempt in connecting if not attempt.error()]
            # One that is told to go counts until it has gone, but turns nobody else away.
            count = len(clients)
            for client in clients:
                client.close()
            assert count == 20
            until(lambda: server.stats["connections"] == 0)


def test_a_thousand_idle_connections_work_at_once():
    with contextlib.ExitStack() as stack:
        server, address = stack.enter_context(serving(Echo()))
        clients = [stack.enter_context(Client.connect(address)) for _ in range(1000)]
        names = [thread.name for thread in threading.enumerate()]
        assert names.count("rpc-connection") == server.stats["connections"] == 1000
        pending = [client.start("Echo.echo", i) for i, client in enumerate(clients)]
        assert [call.result() for call in pending] == list(range(1000))


def test_ended_connections_are_not_kept():
    with pair(Echo()) as (server, client):
        for _ in range(200):
            with Client.connect(client.address) as other:
                assert other.call("Echo.echo", 1, timeout=3600) == 1
        until(lambda: server.stats["connections"] == 1)
        gc.collect()
        links = [thing for thing in gc.get_objects() if type(thing).__name__ == "_Link"]
        assert len([link for link in links if link._server is server]) <= 2
        assert len(server._keeper._timers) < 150


def test_peer_that_dies_between_a_write_and_its_watching_does_not_end_the_keeper():
    with pair(Echo()) as (server, client):
        busy, go_on = threading.Event(), threading.Event()

        def hold_up() -> None:
            busy.set()
            go_on.wait(LONGEST)

        server._keeper.call_at(0.0, hold_up)
        assert busy.wait(LONGEST)
        read, write = socket.socketpair()
        server._keeper.watch(write.fileno(), hold_up)
        server._keeper.forget(write.fileno())
        read.close()
        write.close()
        go_on.set()
        with Client.connect(client.address, timeout=3) as other:
            assert other.call("Echo.echo", 1) == 1


def test_peer_that_never_reads_takes_little_memory_and_no_time_of_others():
    class Large:
        def zeros(self, size: int) -> bytes:
            return bytes(size)

    config = ServerConfig(write_timeout=0.5, max_calls=16)
    with pair(Large(), Echo(), config=config) as (server, client), accepted(client.address) as wire:
        wire.socket.settimeout(0.2)
        with contextlib.suppress(TimeoutError, ConnectionError):
            for call_id in range(1, 2000):
                wire.send(request(call_id, "Large.zeros", 500_000))
                assert in_bytes(server) < 20 * 600_000 + 2_000_000
                assert client.call("Echo.echo", call_id) == call_id
        until(lambda: server.stats["connections"] == 1)
        assert client.call("Echo.echo", 1) == 1
        until(lambda: idle(server))


def test_peer_that_does_not_read_and_dies_is_noticed_at_once():
    class Large:
        def zeros(self, size: int) -> bytes:
            return bytes(size)

    gate = Gate()
    config = ServerConfig(write_timeout=300)
    with serving(Large(), gate, config=config) as (server, address):
        with accepted(address) as wire:
            wire.send(request(1, "Gate.wait") + request(2, "Large.zeros", 12_000_000))
            took(gate.started)
            until(lambda: in_bytes(server) > 1_000_000)
            wire.reset()
        took(gate.cancelled)
        until(lambda: server.stats["connections"] == 0)


def test_peer_that_is_killed_cancels_its_handlers():
    gate = Gate()
    with serving(gate) as (server, address):
        with accepted(address) as wire:
            wire.send(request(1, "Gate.wait"))
            took(gate.started)
            wire.reset()
        took(gate.cancelled)
        until(lambda: server.stats["connections"] == 0 and idle(server))


def test_peer_that_shuts_its_writing_side_still_gets_its_answer():
    gate = Gate()
    with serving(gate) as (_, address), accepted(address) as wire:
        wire.send(request(1, "Gate.wait", "late"))
        took(gate.started)
        wire.half_close()
        gate.open_()
        answers = [answer for answer in wire.receive_all() if answer.call_id == 1]
        assert [answer.value for answer in answers] == ["late"]


def test_peer_that_shut_its_writing_side_and_died_is_noticed():
    gate = Gate()
    with serving(gate) as (server, address):
        with accepted(address) as wire:
            wire.send(request(1, "Gate.wait"))
            took(gate.started)
            wire.half_close()
            until(lambda: next(iter(server.links)).connection._eof)
        # A write that is answered with a reset tells; those come a second apart.
        took(gate.cancelled)
        until(lambda: server.stats["connections"] == 0 and idle(server))


def test_peer_that_says_nothing_is_dropped():
    config = ServerConfig(handshake_timeout=0.2)
    with serving(Echo(), config=config) as (server, address), dialled(address) as wire:
        assert wire.line()["error"]["code"] == "deadline_exceeded"
        until(lambda: server.stats["connections"] == 0)


@pytest.mark.parametrize("words", [b"", b"\x16\x03\x01", b"GET / HTTP/1.1\r\n\r\n"])
def test_peer_that_does_not_finish_tls_is_dropped(authority, words):
    config = ServerConfig(handshake_timeout=0.2)
    ssl = authority.server_context()
    with serving(Echo(), address="tls://127.0.0.1:0", ssl=ssl, config=config) as (server, address):
        with dialled(address) as wire:
            wire.send(words)
            with contextlib.suppress(ConnectionResetError):
                assert len(wire.socket.recv(100)) < 50
        until(lambda: not server.links)
        with Client.connect(address, ssl=authority.client_context()) as client:
            assert client.call("Echo.echo", 1) == 1


def test_violation_is_told_and_ends_the_connection():
    with serving(Echo()) as (server, address), accepted(address) as wire:
        wire.send(frame(0x0C, 1))
        frames = wire.receive_all()
        assert [end.type for end in frames] == [GOAWAY]
        until(lambda: server.stats["connections"] == 0)


def test_quick_call_and_another_right_behind_the_options_are_both_served():
    class Quick:
        @quick
        def echo(self, value: str) -> str:
            return value

    with serving(Echo(), Quick()) as (_, address), dialled(address) as wire:
        wire.send(option_line() + request(1, "Quick.echo", "a") + request(2, "Echo.echo", "b"))
        assert "error" not in wire.line()
        answers = [wire.receive(), wire.receive()]
        assert {answer.call_id: answer.value for answer in answers} == {1: "a", 2: "b"}


def test_random_bytes_do_not_hurt_the_server():
    dice = random.Random(7)
    with pair(Echo()) as (server, client):
        for _ in range(50):
            with dialled(client.address) as wire, contextlib.suppress(ConnectionError):
                if dice.random() < 0.7:
                    wire.send(option_line())
                wire.send(dice.randbytes(dice.randrange(300)))
                if dice.random() < 0.5:
                    wire.half_close()
                elif dice.random() < 0.5:
                    wire.reset()
        assert client.call("Echo.echo", 1) == 1
        until(lambda: server.stats["connections"] == 1)
