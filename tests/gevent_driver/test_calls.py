"""Calls between a gevent server and a gevent client: answers, ends, contexts."""

import contextlib
import contextvars
import gc
import logging
from typing import Any

import gevent
import pytest
from gevent.event import Event
from gevent.local import local

from gevent_driver.support import ANY_PORT, LONGEST, Echo, Gate, Wire, pair, serving, until
from rpc_gevent import Client, Server
from rpc_proto import (
    CallError,
    Cancelled,
    DeadlineExceeded,
    HandshakeError,
    LocalProtocolError,
    ServerConfig,
    Unavailable,
    current_call,
)
from support.by_hand import PONG, RESPONSE, request


class Turns:
    """Handlers that end in the order in which their events are set."""

    def __init__(self, count: int) -> None:
        self.events = [Event() for _ in range(count)]
        self.waiting = 0

    def take(self, number: int) -> int:
        self.waiting += 1
        self.events[number].wait()
        return number


@pytest.mark.parametrize("codec", ["msgpack", "json"])
def test_calls(transport: Any, codec: str) -> None:
    listening, dialling = transport
    with (
        serving(Echo(), **listening) as (server, address),
        Client.connect(address, codec=codec, **dialling) as client,
    ):
        assert client.call("Echo.echo", {"a": [1, None, "ü"]}) == {"a": [1, None, "ü"]}
        big = bytes(3_000_000)
        assert client.service("Echo").echo(big) == big
        assert client.request("Echo.echo", 1).value == 1
        client.notify("Echo.echo", 2)
        pending = client.start("Echo.echo", 3)
        assert list(client.call_many("Echo.echo", ((n,) for n in range(300)))) == list(range(300))
        assert pending.result() == 3
        until(lambda: server.stats["served"] == 305)
        with pytest.raises(CallError, match="no method"):
            client.call("Echo.nothing")
    assert client.closed
    with pytest.raises(Unavailable):
        client.call("Echo.echo", 1)


def test_answers_out_of_order() -> None:
    turns = Turns(100)
    with pair(turns) as (server, client):
        callers = [gevent.spawn(client.call, "Turns.take", n) for n in range(100)]
        until(lambda: turns.waiting == 100)
        assert server.stats["greenlets"] == 100
        for number in reversed(range(100)):
            turns.events[number].set()
            assert callers[number].get() == number
        assert server.stats["running"] == server.stats["greenlets"] == 0


def test_a_slow_handler_delays_no_fast_one() -> None:
    gate = Gate()
    with pair(gate, Echo()) as (_, client):
        slow = client.start("Gate.wait", 1)
        assert [client.call("Echo.echo", n) for n in range(100)] == list(range(100))
        # Also when both came in one piece.
        slower, fast = client.start("Gate.wait", 2), client.start("Echo.echo", 3)
        assert fast.result() == 3
        assert not slower.done()
        gate.opened.set()
        assert (slow.result(), slower.result()) == (1, 2)


def test_killing_the_caller_kills_the_handler() -> None:
    gate = Gate()
    with pair(gate) as (server, client):
        caller = gevent.spawn(client.call, "Gate.wait")
        gate.started.wait()
        caller.kill()
        gate.killed.wait()
        until(lambda: server.stats["running"] == 0)
        assert server.stats["cancelled"] == 1
        assert client.calls_in_flight == 0


def test_a_timeout_of_gevent_gives_the_call_up() -> None:
    gate = Gate()
    with pair(gate) as (_, client):
        with pytest.raises(gevent.Timeout), gevent.Timeout(0.05):
            client.call("Gate.wait")
        gate.killed.wait()
        assert client.calls_in_flight == 0


def test_the_deadline_kills_the_handler() -> None:
    gate = Gate()
    with pair(gate) as (server, client):
        with pytest.raises(DeadlineExceeded):
            client.call("Gate.wait", timeout=0.05)
        gate.killed.wait()
        until(lambda: server.stats["running"] == 0)


def test_a_handler_that_swallows_the_kill_keeps_its_slot() -> None:
    gate = Gate()
    with pair(gate, Echo(), max_concurrency=1) as (server, client):
        with pytest.raises(DeadlineExceeded):
            client.call("Gate.stubborn", timeout=0.05)
        gate.killed.wait()
        queued = client.start("Echo.echo", 1)
        until(lambda: server.stats["queued"] == 1)
        assert server.stats["running"] == 1
        gate.opened.set()
        assert queued.result() == 1


def test_a_kill_hits_no_other_call() -> None:
    """The cancel and the end of the handler come in one turn of the hub."""
    gate = Gate()
    with pair(gate, Echo()) as (server, client):
        for _ in range(50):
            gate.started.clear()
            gate.opened.clear()
            pending = client.start("Gate.wait")
            gate.started.wait()
            pending.cancel()
            gate.opened.set()
            others = [client.start("Echo.echo", n) for n in range(5)]
            assert [other.result() for other in others] == list(range(5))
            with pytest.raises(Cancelled):
                pending.result()
        until(lambda: server.stats["running"] == 0)


def test_a_call_inside_a_handler_inherits_deadline_and_end() -> None:
    gate = Gate()

    class Hop:
        def on(self) -> Any:
            return client.call("Gate.wait")

        def left(self) -> float | None:
            return current_call().time_left

        def ask(self) -> Any:
            return client.call("Hop.left")

    with pair(gate, Hop()) as (server, client):
        left = client.call("Hop.ask", timeout=5.0)
        assert 0 < left <= 5.0
        pending = client.start("Hop.on")
        gate.started.wait()
        pending.cancel()
        gate.killed.wait()
        until(lambda: server.stats["running"] == 0)


def test_a_call_to_itself_from_a_handler_that_never_blocked_before() -> None:
    class Deep:
        def down(self, levels: int) -> int:
            return 1 + client.call("Deep.down", levels - 1) if levels else 0

    with pair(Deep()) as (server, client):
        assert client.call("Deep.down", 50) == 50
        assert server.stats["running"] == 0


def test_handlers_have_contexts_of_their_own() -> None:
    mark: contextvars.ContextVar[str] = contextvars.ContextVar("mark", default="none")
    own = local()

    class Marks:
        def set(self, value: str) -> str:
            before = mark.get()
            mark.set(value)
            own.value = value
            gevent.sleep(0)
            assert mark.get() == own.value == value
            return before

    mark.set("start")
    with pair(Marks()) as (_, client):
        mark.set("later")
        for value in "abc":
            assert client.call("Marks.set", value) == "start"
    with pytest.raises(LocalProtocolError):
        current_call()


def test_what_gevent_offers_works_in_a_handler() -> None:
    class All:
        def work(self) -> str:
            with gevent.Timeout(0.01, False):
                Event().wait()
            children = [gevent.spawn(lambda n=n: n) for n in range(3)]
            gevent.joinall(children)
            with pytest.raises(gevent.Timeout), gevent.Timeout(0.01):
                gevent.sleep(LONGEST)
            return f"{[child.value for child in children]}"

        def leave_a_timeout(self) -> None:
            gevent.Timeout.start_new(0.01)

    with pair(All(), Echo()) as (server, client):
        assert client.call("All.work") == "[0, 1, 2]"
        client.call("All.leave_a_timeout")
        gevent.sleep(0.05)
        assert client.call("All.work") == "[0, 1, 2]"
        assert server.stats["failed"] == 0


def test_failures_of_handlers(caplog: pytest.LogCaptureFixture) -> None:
    class Bad:
        def fail(self) -> None:
            raise ZeroDivisionError("on purpose")

        def die(self) -> None:
            raise gevent.GreenletExit

    with pair(Bad()) as (_, client):
        with pytest.raises(CallError, match="on purpose") as raised:
            client.call("Bad.fail")
        assert raised.value.code == "unknown"
        with pytest.raises(Cancelled):
            client.call("Bad.die")
    [record] = caplog.records
    assert (record.name, record.getMessage()) == ("rpc_gevent", "Bad.fail failed")


def test_system_exit_in_a_handler_ends_the_main_greenlet() -> None:
    class Exit:
        def leave(self) -> None:
            raise SystemExit(3)

    with pair(Exit(), Echo()) as (_, client):
        pending = client.start("Exit.leave")
        with pytest.raises(SystemExit):
            gevent.sleep(LONGEST)
        with pytest.raises(CallError, match="SystemExit"):
            pending.result()
        assert client.call("Echo.echo", 1) == 1


def test_async_handlers_are_refused() -> None:
    class Async:
        async def echo(self, value: Any) -> Any:
            return value

    with pytest.raises(TypeError, match="rpc_asyncio"):
        Server().register(Async())


def test_token(caplog: pytest.LogCaptureFixture) -> None:
    with serving(Echo(), token="secret") as (_, address):
        with Client.connect(address, token="secret") as client:
            assert client.call("Echo.echo", 1) == 1
        with pytest.raises(HandshakeError, match="token"):
            Client.connect(address, token="wrong")
    assert [r for r in caplog.records if r.levelno > logging.DEBUG] == []


def test_connecting_fails_in_time() -> None:
    with pytest.raises(Unavailable):
        Client.connect("tcp://127.0.0.1:1")
    with (
        serving(Echo(), max_connections=1) as (_, address),
        Client.connect(address),
        pytest.raises(HandshakeError, match="limit"),
    ):
        Client.connect(address)
    listener = gevent.socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    with listener, pytest.raises(TimeoutError, match=r"within 0\.1 s"):
        Client.connect(f"tcp://127.0.0.1:{listener.getsockname()[1]}", timeout=0.1)


def test_half_close_is_honoured() -> None:
    gate = Gate()
    with serving(gate) as (_, address), Wire(address).accepted() as wire:
        wire.send(request(1, "Gate.wait", 7))
        wire.socket.shutdown(gevent.socket.SHUT_WR)
        gate.started.wait()
        gate.opened.set()
        frames = []
        while (frame := wire.receive()) is not None:
            frames.append(frame)
        assert [(f.call_id, f.value) for f in frames if f.type == RESPONSE] == [(1, 7)]
        assert {f.type for f in frames} <= {RESPONSE, PONG, 5}


def test_a_peer_that_never_reads() -> None:
    config = ServerConfig(high_water=64 * 1024, write_timeout=0.3, close_timeout=0.2)
    with serving(Echo(), config=config) as (server, address), Wire(address).accepted() as wire:
        data = b"".join(request(n, "Echo.echo", "x" * 100_000) for n in range(1, 400))

        def send() -> str:
            try:
                wire.send(data)
            except ConnectionError:
                return "cut off"
            return "sent"

        sender = gevent.spawn(send)
        with Client.connect(address) as client:
            until(lambda: any(not link._writable for link in server.links))
            assert client.call("Echo.echo", 1) == 1
            until(lambda: server.stats["connections"] == 1)
        assert sender.get() == "cut off"


def test_nothing_is_left_behind() -> None:
    gate = Gate()
    gate.opened.clear()

    class Ends:
        def quick(self, n: int) -> int:
            return n

        def waiting(self, n: int) -> int:
            gevent.sleep(0)
            return n

        def failing(self, n: int) -> None:
            raise CallError.of("not_found", "no")

        def hanging(self, n: int) -> None:
            Event().wait()

    def end(n: int) -> None:
        if n % 6 == 0:
            assert client.call("Ends.quick", n) == n
        elif n % 6 == 1:
            assert client.call("Ends.waiting", n) == n
        elif n % 6 == 2:
            with pytest.raises(CallError):
                client.call("Ends.failing", n)
        elif n % 6 == 3:
            with pytest.raises(DeadlineExceeded):
                client.call("Ends.hanging", n, timeout=0.02)
        elif n % 6 == 4:
            with gevent.Timeout(0.01, False):
                client.call("Ends.hanging", n)
        else:
            client.start("Ends.hanging", n).cancel()

    with pair(Ends()) as (server, client):
        gevent.joinall([gevent.spawn(end, n) for n in range(1000)], raise_error=True)
        until(lambda: server.stats["running"] == 0)
        assert client.calls_in_flight == 0
        [link] = server.links
        assert len(link.connection.calls) == 0
        assert server.stats["greenlets"] == 0
        assert len(server._workers) <= 100
        assert server.stats["abandoned"] == 0
        client_link = client._link
    for closed in (link, client_link):
        assert closed.closed
        assert closed._timer is None
        assert not closed._reader.active
        assert not closed._writer.active
    assert server._workers == []


def test_ended_calls_leave_no_cycles() -> None:
    class Ends:
        def good(self) -> int:
            gevent.sleep(0)
            return 1

        def bad(self) -> None:
            raise CallError.of("not_found", "no")

        def endless(self) -> None:
            Event().wait()

    def one(method: str, timeout: float) -> None:
        with contextlib.suppress(CallError):
            client.call(method, timeout=timeout)

    with pair(Ends()) as (server, client):
        for method, timeout in (("Ends.good", 5), ("Ends.bad", 5), ("Ends.endless", 0.002)):
            one(method, timeout)
            gc.collect()
            gc.disable()
            try:
                for _ in range(50):
                    one(method, timeout)
                until(lambda: server.stats["running"] == 0)
                assert gc.collect() < 50
            finally:
                gc.enable()


def test_the_address_is_free_again() -> None:
    with serving(Echo()) as (_, address):
        pass
    with pytest.raises(Unavailable):
        Client.connect(address)
    with serving(Echo(), address=address) as (_, again):
        assert again == address
    assert address != ANY_PORT
