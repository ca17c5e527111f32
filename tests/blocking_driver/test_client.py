"""A client whose server is not there, goes away or hangs; interrupts and forks."""

import os
import signal
import socket
import sys
import threading
import time
from typing import Any, Self

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
    run_python,
    serving,
    silence,
    took,
    until,
)
from rpc_blocking import Client
from rpc_proto import (
    ClientConfig,
    HandshakeError,
    LocalProtocolError,
    ServerConfig,
    Unavailable,
)
from support.by_hand import PREFIX, accept_line
from support.network import black_hole

# From Python 3.12 on a fork of a process with threads warns; this is about what then happens.
pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")

# Connecting


def test_connection_that_is_refused_is_unavailable_and_safe_to_retry():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(Unavailable, match="no connection to") as caught:
        Client.connect(f"tcp://127.0.0.1:{port}")
    assert not caught.value.maybe_executed


def test_missing_unix_socket_is_unavailable(tmp_path):
    with pytest.raises(Unavailable):
        Client.connect(f"unix://{tmp_path}/nobody.sock")


def test_unknown_host_is_unavailable():
    with pytest.raises(Unavailable):
        Client.connect("tcp://host.invalid:1", timeout=5)


def test_silent_server_times_out():
    with Script(silence) as script, pytest.raises(TimeoutError, match=r"within 0\.2 s"):
        Client.connect(script.address, timeout=0.2)


def test_silent_server_times_out_in_the_tls_handshake(authority):
    ssl = authority.client_context()
    with Script(silence) as script, pytest.raises(TimeoutError, match=r"within 0\.2 s"):
        Client.connect(script.address.replace("tcp", "tls"), timeout=0.2, ssl=ssl)


def test_listener_whose_queue_is_full_times_out():
    with black_hole() as address:
        began = time.monotonic()
        with pytest.raises(TimeoutError, match=r"within 0\.2 s"):
            Client.connect(address, timeout=0.2)
        assert time.monotonic() - began < 2


def test_server_that_hangs_up_at_once_is_unavailable():
    with Script(lambda wire: None) as script, pytest.raises((Unavailable, HandshakeError)):
        Client.connect(script.address)


@pytest.mark.parametrize("words", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\0" * 5000, b"{}\n"])
def test_server_that_speaks_something_else_is_a_handshake_error(words):
    def talk(wire):
        wire.line()
        wire.send(words)

    with Script(talk) as script, pytest.raises(HandshakeError):
        Client.connect(script.address)


def test_certificate_that_is_not_trusted_is_named_as_the_reason(authority):
    ssl = authority.server_context()
    with (
        serving(Echo(), address="tls://127.0.0.1:0", ssl=ssl) as (_, address),
        pytest.raises(Unavailable, match="certificate verify failed"),
    ):
        Client.connect(address)


def test_tls_to_a_port_that_knows_none_is_named_as_the_reason(authority):
    with serving(Echo()) as (_, address), pytest.raises(Unavailable, match="no connection to"):
        Client.connect(address.replace("tcp", "tls"), ssl=authority.client_context())


# Losing the server


def test_call_after_the_server_closed_an_idle_connection_is_safe_to_retry():
    config = ServerConfig(idle_timeout=0.1)
    with pair(Echo(), config=config) as (server, client):
        assert client.call("Echo.echo", 1) == 1
        until(lambda: server.stats["connections"] == 0)
        until(lambda: time.monotonic() - client._heard_at > 1)  # it looks before it sends
        with pytest.raises(Unavailable) as caught:
            client.call("Echo.echo", 2)
        assert not caught.value.maybe_executed
        assert client.closed


def test_call_after_the_connection_was_reset_while_idle_is_safe_to_retry():
    gone = threading.Event()

    def reset(wire):
        wire.reset()
        gone.set()

    with (
        Script(accept_and(reset)) as script,
        Client.connect(script.address, codec="json") as client,
    ):
        assert gone.wait(LONGEST)
        until(lambda: time.monotonic() - client._heard_at > 1)
        with pytest.raises(Unavailable) as caught:
            client.call("Echo.echo", 2)
        assert not caught.value.maybe_executed


def test_call_right_after_the_server_stopped_is_safe_to_retry():
    with pair(Echo()) as (server, client):
        assert client.call("Echo.echo", 1) == 1
        server.stop()
        with pytest.raises(Unavailable) as caught:
            client.call("Echo.echo", 2)
        assert not caught.value.maybe_executed


def test_server_that_hangs_up_during_a_call_is_unavailable():
    with (
        Script(accept_and(lambda wire: wire.receive())) as script,
        Client.connect(script.address, codec="json") as client,
    ):
        with pytest.raises(Unavailable) as caught:
            client.call("Echo.echo", 1)
        assert caught.value.maybe_executed
        assert client.closed


def test_answers_that_came_before_the_end_still_count():
    def talk(wire):
        first, _ = wire.receive(), wire.receive()
        wire.send(b"\x02\x00\x00\x00\x00\x00\x00\x01" + first.call_id.to_bytes(8, "big") + b"1")

    with (
        Script(accept_and(talk)) as script,
        Client.connect(script.address, codec="json") as client,
    ):
        first, second = client.start("Echo.echo", 1), client.start("Echo.echo", 2)
        with pytest.raises(Unavailable):
            second.result()
        assert first.result() == 1


def test_closed_client_refuses_calls():
    with pair(Echo()) as (_, client):
        client.close()
        with pytest.raises(Unavailable) as caught:
            client.call("Echo.echo", 1)
        assert not caught.value.maybe_executed


def test_close_twice_is_no_error():
    with pair(Echo()) as (_, client):
        client.close()
        client.close()


def test_close_lets_calls_end_within_the_grace():
    gate = Gate()
    with pair(gate) as (_, client):
        call = Running(client.call, "Gate.wait")
        took(gate.started)
        closing = Running(client.close, LONGEST)
        until(lambda: client.closed)
        gate.open_()
        assert call.result() == "through"
        closing.result()


def test_close_in_the_middle_of_an_upload_leaves_the_server_well():
    config = ClientConfig(close_timeout=0.2)
    with serving(Echo()) as (server, address):
        for _ in range(10):
            client = Client.connect(address, config=config)
            client.start("Echo.echo", bytes(8_000_000))
            client.close()
        until(lambda: server.stats["connections"] == 0 and idle(server))


def test_socket_is_closed_when_connect_fails(recwarn):
    def talk(wire):
        wire.line()
        wire.send(accept_line("msgpack"))  # not what was asked for

    with Script(talk) as script, pytest.raises(HandshakeError):
        Client.connect(script.address, codec="json")


# Interrupts


class Interrupt(BaseException):
    pass


@pytest.fixture
def interrupts():
    """Make SIGUSR1 raise in the main thread, as ctrl-C does."""

    def interrupt(*_):
        raise Interrupt

    before = signal.signal(signal.SIGUSR1, interrupt)
    yield lambda: os.kill(os.getpid(), signal.SIGUSR1)
    signal.signal(signal.SIGUSR1, before)


def test_interrupt_of_the_thread_that_reads_cancels_the_handler(interrupts):
    gate = Gate()
    with pair(gate, Echo()) as (server, client):

        def send():
            took(gate.started)
            until(lambda: client._reading.polling)
            interrupts()

        sending = Running(send)
        with pytest.raises(Interrupt):
            client.call("Gate.wait")
        took(gate.cancelled)
        sending.result()
        until(lambda: idle(server))
        assert client.calls_in_flight == 0
        assert client.call("Echo.echo", "on") == "on"


def test_interrupt_of_a_sleeping_thread_leaves_the_others_alone(interrupts):
    gate = Gate()
    with pair(gate, Echo()) as (_, client):
        reading = Running(client.call, "Gate.wait", "first")
        until(lambda: client._reading.reader)

        over = threading.Event()

        def send():
            took(gate.started, 2)  # one that has not begun would not tell of its end
            until(lambda: client._reading.sleepers)
            interrupts()
            # One that comes just before the thread is asleep is heard at its next awakening only.
            while not over.wait(1.0):
                interrupts()

        sending = Running(send)
        with pytest.raises(Interrupt):
            client.call("Gate.wait", "second")
        over.set()
        sending.result()
        took(gate.cancelled)
        gate.open_()
        assert reading.result() == "first"
        assert client._reading.sleepers == {}


def test_interrupt_of_the_reader_hands_the_role_on(interrupts):
    gate = Gate()
    with pair(gate) as (_, client):
        sleeping = []

        def send():
            until(lambda: client._reading.polling)
            sleeping.append(Running(client.call, "Gate.wait", "second"))
            until(lambda: client._reading.sleepers)
            interrupts()

        sending = Running(send)
        with pytest.raises(Interrupt):
            client.call("Gate.wait", "first")
        sending.result()
        gate.open_()
        assert sleeping[0].result() == "second"


def test_calls_go_on_when_the_process_has_no_descriptor_left():
    printed = run_python(
        """
import resource, socket, threading
from rpc_blocking import Client, Server

class Gate:
    opened = threading.Event()
    def wait(self, value: int) -> int:
        self.opened.wait(10)
        return value
    def open(self, later: int) -> None:
        threading.Timer(later / 1000, self.opened.set).start()

with Server() as server:
    server.register(Gate())
    with Client.connect(server.start("tcp://127.0.0.1:0")) as client:
        with socket.socket() as probe:
            before = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (probe.fileno() + 1, before[1]))
            client.call("Gate.open", 100)
            calls = [client.start("Gate.wait", number) for number in range(3)]
            print(*(call.result() for call in calls))
            resource.setrlimit(resource.RLIMIT_NOFILE, before)
"""
    )
    assert printed.split() == ["0", "1", "2"]


def test_interrupt_of_connect_closes_its_socket(interrupts):
    with Script(silence) as script:
        timer = threading.Timer(0.1, interrupts)
        timer.start()
        with pytest.raises(Interrupt):
            Client.connect(script.address)
        timer.join()


def test_calls_that_are_collected_while_their_thread_has_the_lock_are_given_up():
    gate = Gate()
    with pair(gate) as (server, client):
        calls = client.call_many("Gate.wait", ((i,) for i in range(4)), in_flight=2)
        waiting = Running(next, calls)
        took(gate.started, 2)
        gate.open_()
        assert waiting.result() == 0
        with client._lock:  # as if the collector of garbage had struck here
            calls.close()
        assert client.calls_in_flight == 0
        until(lambda: idle(server))


# Forks


def in_child(function) -> str:
    """Run a function in a child of this process and return what it returned."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(write, str(function()).encode())
        except BaseException as error:
            os.write(write, repr(error).encode())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        said = pipe.read().decode()
    os.waitpid(pid, 0)
    return said


def refusal(function) -> str:
    """Tell how a function ends in a child."""

    def try_it() -> str:
        try:
            function()
        except LocalProtocolError:
            return "refused"
        return "allowed"

    return in_child(try_it)


def test_child_may_not_use_the_client_of_its_parent():
    with pair(Echo()) as (_, client):
        pending = client.start("Echo.echo", "mine")
        assert refusal(lambda: client.call("Echo.echo", 1)) == "refused"
        assert refusal(lambda: client.notify("Echo.echo", 1)) == "refused"
        assert refusal(lambda: client.start("Echo.echo", 1)) == "refused"
        assert refusal(lambda: list(client.call_many("Echo.echo", [(1,)]))) == "refused"
        assert refusal(client.close) == "refused"
        assert refusal(pending.result) == "refused"
        assert refusal(pending.cancel) == "refused"
        assert pending.result() == "mine"


def test_child_may_not_use_the_server_of_its_parent():
    with pair(Echo()) as (server, client):
        assert refusal(server.stop) == "refused"
        assert refusal(lambda: server.start("tcp://127.0.0.1:0")) == "refused"
        assert client.call("Echo.echo", 1) == 1


def test_fork_while_threads_call_leaves_the_parent_alone():
    with pair(Echo()) as (_, client):
        stop = threading.Event()

        def call_often():
            while not stop.is_set():
                assert client.call("Echo.echo", 1) == 1

        calling = [Running(call_often) for _ in range(4)]
        for _ in range(10):
            assert refusal(lambda: client.call("Echo.echo", 1)) == "refused"
        stop.set()
        for call in calling:
            call.result()


def test_child_can_connect_itself():
    with serving(Echo()) as (_, address), Client.connect(address) as client:

        def call() -> str:
            with Client.connect(address) as own:
                return own.call("Echo.echo", "from the child")

        assert in_child(call) == "from the child"
        assert client.call("Echo.echo", 1) == 1


def test_cancel_in_a_child_does_not_reach_the_connection_of_its_parent():
    gate = Gate()
    with pair(gate) as (_, client):
        pending = client.start("Gate.wait")
        took(gate.started)
        assert refusal(pending.cancel) == "refused"
        gate.open_()
        assert pending.result() == "through"


# Signals whose handlers raise, as those of SIGALRM often do


class Alarm:
    """A signal that a thread sends to the main one, whose handler raises."""

    def __init__(self, error: BaseException) -> None:
        self._error = error

    def __enter__(self) -> Self:
        self._before = signal.signal(signal.SIGUSR1, self._raise)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGUSR1, self._before)

    def _raise(self, *_: object) -> None:
        raise self._error

    def send(self) -> None:
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)


@pytest.mark.parametrize("patience", [0.0, 0.1], ids=["soon", "late"])
@pytest.mark.parametrize("kind", [TimeoutError, OSError, ValueError, KeyboardInterrupt])
def test_alarm_ends_the_wait_for_a_call_and_not_the_connection(kind, patience):
    gate = Gate()
    with pair(gate, Echo()) as (_, client), Alarm(kind("time is up")) as alarm:

        def ring() -> None:
            took(gate.started)
            time.sleep(patience)  # after some milliseconds it waits in another way
            alarm.send()

        ringing = Running(ring)
        with pytest.raises(kind, match="time is up"):
            client.call("Gate.wait", timeout=LONGEST)
        ringing.result()
        took(gate.cancelled)
        assert client.call("Echo.echo", 1) == 1


class InterruptedLock:
    """A lock in whose place the handler of a signal raises once, when it is taken back."""

    def __init__(self, lock: Any) -> None:
        self._lock = lock
        self.is_armed = False

    def acquire(self) -> None:
        if self.is_armed:
            self.is_armed = False
            raise KeyboardInterrupt
        self._lock.acquire()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._lock, name)


def test_what_was_read_before_an_interrupt_is_not_lost_for_others():
    with pair(Echo()) as (_, client):
        first, second = client.start("Echo.echo", 1), client.start("Echo.echo", 2)
        sock = client._channel.sock
        answers = 2 * (PREFIX.size + 1)

        def arrived() -> bool:
            try:
                return len(sock.recv(1000, socket.MSG_PEEK)) == answers
            except BlockingIOError:  # its patience is over
                return False

        until(arrived)
        lock = InterruptedLock(client._lock)
        client._lock = client._owned.lock = lock
        lock.is_armed = True
        with pytest.raises(KeyboardInterrupt):
            first.result()
        assert second.done()
        assert second.result() == 2


@pytest.mark.fault(72)
@pytest.mark.parametrize("call", ["first", "last"])
def test_interrupt_on_the_way_back_to_the_lock_does_not_leave_without_it(call):
    with pair(Echo()) as (_, client):
        has_lock = client._owned.is_owned
        answers = [KeyboardInterrupt]

        def interrupted() -> bool:
            owned = has_lock()
            if answers and owned is (call == "last"):  # as a signal's handler does, behind it
                raise answers.pop()
            return owned

        client._owned.is_owned = interrupted
        with pytest.raises(KeyboardInterrupt):
            client.call("Echo.echo", 1)
        assert client.call("Echo.echo", 2) == 2


@pytest.mark.fault(72)
@pytest.mark.parametrize("size", [1, 2**23], ids=["all", "a part"])
def test_interrupt_behind_a_write_leaves_the_connection_as_it_is(size):
    def interrupt(frame: Any, event: str, function: Any) -> None:  # as a signal's handler does
        if event == "c_return" and function.__name__ in ("send", "extend"):
            raise KeyboardInterrupt

    with pair(Echo()) as (_, client):
        value = bytes(size)
        sys.setprofile(interrupt)
        try:
            with pytest.raises(KeyboardInterrupt):
                client.call("Echo.echo", value)
        finally:
            sys.setprofile(None)
        assert client.call("Echo.echo", 2) == 2
