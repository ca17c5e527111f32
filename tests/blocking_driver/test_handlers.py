"""Where handlers run, and what becomes of those for whose answer nobody waits."""

import gc
import threading

import pytest

from blocking_driver.support import (
    Echo,
    Gate,
    Running,
    idle,
    pair,
    run_python,
    serving,
    took,
    until,
)
from rpc_blocking import Client, Server
from rpc_proto import (
    DeadlineExceeded,
    ResourceExhausted,
    ServerConfig,
    Unknown,
    current_call,
    quick,
)
from rpc_proto.service.context import Job


class Where:
    @quick
    def quickly(self) -> int:
        return threading.get_ident()

    def usually(self) -> str:
        return threading.current_thread().name


def test_quick_handlers_run_on_the_thread_of_their_connection():
    with pair(Where()) as (_, client), Client.connect(client.address) as other:
        first, second = client.call("Where.quickly"), client.call("Where.quickly")
        assert first == second
        assert other.call("Where.quickly") != first


def test_other_handlers_run_in_the_pool():
    with pair(Where()) as (_, client):
        assert client.call("Where.usually") == "rpc-handler"


def test_pool_is_bounded():
    gate = Gate()
    with pair(gate, threads=3) as (server, client):
        calls = [Running(client.call, "Gate.wait", i) for i in range(10)]
        took(gate.started, 3)
        until(lambda: server.stats["queued"] == 7)
        assert server.stats["running"] == 3
        names = [thread.name for thread in threading.enumerate()]
        assert names.count("rpc-handler") == 3
        gate.open_()
        assert [call.result() for call in calls] == list(range(10))


@pytest.mark.fault(94)
def test_calls_cancelled_while_they_wait_for_a_thread_are_let_go():
    gate = Gate()
    with pair(gate, threads=1) as (server, client):
        running = Running(client.call, "Gate.wait")
        took(gate.started)
        bodies = [client.start("Gate.wait", bytes(n + 1)) for n in range(50)]
        until(lambda: server.stats["queued"] == 50)
        for body in bodies:
            body.cancel()
        until(lambda: server.stats["queued"] == 0)
        kept = [o for o in gc.get_objects() if isinstance(o, Job)]
        assert len(kept) == 1
        gate.open_()
        assert running.result() == "through"


def test_abandoned_handler_keeps_its_slot_until_it_ends():
    gate = Gate()
    with pair(gate, max_concurrency=1, max_queued=1) as (server, client):
        with pytest.raises(DeadlineExceeded):
            client.call("Gate.stubborn", timeout=0.1)
        until(lambda: server.stats["abandoned"] == 1)
        queued = Running(client.call, "Gate.wait", "next")
        until(lambda: server.stats["queued"] == 1)
        with pytest.raises(ResourceExhausted):
            client.call("Gate.wait")
        gate.open_()
        assert queued.result() == "next"
        until(lambda: idle(server))


def test_handler_sees_that_it_was_cancelled():
    seen = threading.Event()
    started = threading.Event()

    class Loop:
        def run(self) -> None:
            call = current_call()
            started.set()
            until(lambda: call.cancelled)
            seen.set()
            call.raise_if_cancelled()

    with pair(Loop()) as (server, client):
        pending = client.start("Loop.run")
        assert started.wait(10)
        pending.cancel()
        assert seen.wait(10)
        until(lambda: idle(server))


def test_coroutine_functions_are_refused():
    class Wrong:
        async def run(self) -> None: ...

    with pytest.raises(TypeError, match=r"Wrong\.run is asynchronous"):
        Server().register(Wrong())


@pytest.mark.parametrize("kind", [ZeroDivisionError, SystemExit, KeyboardInterrupt])
def test_whatever_a_handler_raises_is_an_answer(kind):
    class Broken:
        def run(self) -> None:
            raise kind("broken")

    with pair(Broken(), Echo(), threads=1) as (server, client):
        with pytest.raises(Unknown, match="broken"):
            client.call("Broken.run")
        assert client.call("Echo.echo", 1) == 1
        until(lambda: idle(server))


def test_callback_of_on_cancel_that_raises_does_not_hurt_the_server(caplog):
    class Careless:
        def run(self) -> None:
            call = current_call()

            def broken() -> None:
                raise ZeroDivisionError("careless")

            call.on_cancel(broken)
            until(lambda: call.cancelled)

    with pair(Careless(), Echo()) as (server, client):
        with pytest.raises(DeadlineExceeded):
            client.call("Careless.run", timeout=0.05)
        until(lambda: idle(server))
        assert client.call("Echo.echo", 1) == 1
        assert "careless" in caplog.text


def test_calls_of_one_connection_do_not_wait_for_those_of_another():
    gate = Gate()
    with pair(gate, Echo()) as (_, client), Client.connect(client.address) as other:
        slow = Running(client.call, "Gate.wait")
        took(gate.started)
        assert other.call("Echo.echo", 1) == 1
        gate.open_()
        assert slow.result() == "through"


def test_check_of_tokens_that_takes_long_delays_nobody_else():
    entered, release = threading.Event(), threading.Event()

    def authenticate(token, peer):
        if token == "slow":
            entered.set()
            release.wait(10)
        return True

    config = ServerConfig(authenticate=authenticate, handshake_timeout=0.1)
    with serving(Echo(), config=config) as (_, address):
        slow = Running(Client.connect, address, token="slow")
        assert entered.wait(10)
        # Long enough for the time limit of the slow one to come.
        for _ in range(20):
            with Client.connect(address, timeout=1) as client:
                assert client.call("Echo.echo", 1) == 1
            threading.Event().wait(0.01)
        assert slow.thread.is_alive()
        release.set()
        slow.thread.join(10)
        if slow.error() is None:
            slow.result().close()


def test_handler_that_never_ends_does_not_keep_the_process():
    printed = run_python(
        """
import threading
from rpc_blocking import Client, Server
from rpc_proto import DeadlineExceeded

class Stuck:
    def wait(self) -> None:
        threading.Event().wait()

server = Server()
server.register(Stuck())
with Client.connect(server.start("tcp://127.0.0.1:0")) as client:
    try:
        client.call("Stuck.wait", timeout=0.1)
    except DeadlineExceeded:
        print("late")
server.stop(grace=0.1)
print("stopped", server.stats["running"])
"""
    )
    assert printed.split() == ["late", "stopped", "1"]


def test_process_ends_although_nothing_was_closed():
    printed = run_python(
        """
import warnings
from rpc_blocking import Client, Server
warnings.simplefilter("ignore", ResourceWarning)
server = Server()
client = Client.connect(server.start("tcp://127.0.0.1:0"))
print("rpc.Introspection" in client.call("rpc.Introspection.services"))
"""
    )
    assert printed == "True\n"


class Quick:
    @quick
    def fail(self, name: str) -> None:
        raise {"SystemExit": SystemExit, "GeneratorExit": GeneratorExit}[name]


@pytest.mark.parametrize("name", ["SystemExit", "GeneratorExit"])
def test_quick_handler_that_raises_more_than_an_exception_fails_only_its_call(name):
    with pair(Quick(), Echo()) as (server, client):
        with pytest.raises(Unknown, match=name):
            client.call("Quick.fail", name)
        assert client.call("Echo.echo", 1) == 1
        assert server.stats["running"] == 0


def test_call_for_which_there_is_no_thread_fails_alone(caplog):
    with pair(Where(), Echo()) as (server, client):
        client.call("Where.quickly")  # the connection has its thread
        usual = threading.stack_size(2**46)  # more than any machine has
        try:
            with pytest.raises(ResourceExhausted, match="no thread"):
                client.call("Echo.echo", 1)
        finally:
            threading.stack_size(usual)
        assert "no thread for Echo.echo" in caplog.text
        assert server.stats["running"] == 0
        assert client.call("Echo.echo", 2) == 2
