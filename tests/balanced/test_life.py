"""What is left behind, who may use a client, and calls inside of handlers."""

import asyncio
import gc
import os
import socket
import subprocess
import sys
import threading
from typing import Any

import pytest

import rpc_asyncio
import rpc_blocking
from balanced.support import Place, runs, stats
from conformance.runtimes import until
from rpc_discovery import FileDiscovery, RegistryDiscovery
from rpc_proto import CallError, DeadlineExceeded, LocalProtocolError, Unavailable
from support.network import black_hole

THREADS = 32


def greenlets() -> int:
    import gevent

    return sum(isinstance(o, gevent.Greenlet) and not o.dead for o in gc.get_objects())


def at_work(place: Place):
    """Return what tells of tasks, threads and greenlets that are there."""
    if place.backend == "asyncio":
        return lambda: place.runtime.do(lambda: len(asyncio.all_tasks()))
    if place.backend == "gevent":
        return lambda: place.runtime.do(greenlets)
    return lambda: sum(thread.name.startswith("rpc-") for thread in threading.enumerate())


@pytest.mark.parametrize("source", ["list", "file", "registry"])
def test_nothing_is_left_of_a_client_that_was_closed(place: Place, tmp_path, source, key):
    count = at_work(place)
    registry = place.own_host(0, registry="epoch")
    hosts = [place.own_host(n, registries=[registry.address("http")], ttl=5.0) for n in range(2)]
    nodes: Any = [host.address() for host in hosts]
    if source == "file":
        path = tmp_path / "nodes.json"
        path.write_text("[" + ",".join(f'"{node}"' for node in nodes) + "]")
        nodes = FileDiscovery(str(path), interval=60.0)
    elif source == "registry":
        nodes = RegistryDiscovery(registry.address("http"))
    until(lambda: count() == count())
    before = count()
    client = place.client(nodes)
    call = client.call
    until(lambda: call("Basic.echo", 1, timeout=15.0) and stats(client)["nodes"] == 2)
    for _ in range(5):
        client.do(lambda real: real.broadcast("Basic.echo", 1))
        client.do(lambda real: real.race("Basic.echo", 1))
        client.call("Basic.echo", 1, hedge=True)
    client.close()
    until(lambda: count() <= before)
    for host in hosts:
        host.settle(connections=0, running=0)


def test_dials_under_way_are_over_soon_after_the_end(place: Place):
    count = at_work(place)
    before = count()
    with black_hole() as address:
        client = place.client([address, *place.hosts(1)], connect_timeout=1.0)
        client.call("Basic.echo", 1)
        client.close()
        until(lambda: count() <= before)


def test_errors_leave_no_garbage(place: Place):
    dead = [f"tcp://127.0.0.1:{port}" for port in (1, 2)]
    client = place.client(dead, idempotent=True)
    live = place.client(place.hosts(2))

    def fail(real, method, *args, **named):
        with pytest.raises(CallError):
            real(method, *args, **named)

    async def fail_async(real, method, *args, **named):
        with pytest.raises(CallError):
            await real(method, *args, **named)

    act = fail_async if place.backend == "asyncio" else fail
    live.call("Basic.echo", 1)

    def errors() -> int:
        return sum(isinstance(o, CallError) for o in gc.get_objects())

    gc.collect()
    gc.disable()
    try:
        before = errors()
        for _ in range(5):
            client.do(lambda real: act(real.call, "Basic.echo", 1, timeout=9.0))
            client.do(lambda real: act(real.race, "Basic.echo", 1, timeout=9.0))
            live.do(lambda real: act(real.call, "Failing.not_found", "k"))
            live.do(lambda real: act(real.call, "Failing.not_found", "k", hedge=True))
            live.do(lambda real: act(real.race, "Failing.not_found", "k"))
            live.do(lambda real: act(real.broadcast, "Failing.not_found", "k", policy="all"))
        assert errors() - before <= 2
    finally:
        gc.enable()


# Who may use it


def test_asyncio_client_belongs_to_the_loop_that_uses_it_first(place: Place):
    if place.backend != "asyncio":
        pytest.skip("only asyncio has event loops")
    client = place.connected(place.hosts(1))

    async def elsewhere(act) -> None:
        with pytest.raises(LocalProtocolError, match="belongs to another event loop"):
            await act()

    real = client._real
    asyncio.run(elsewhere(lambda: real.call("Basic.echo", 1)))
    asyncio.run(elsewhere(lambda: real.call("Basic.echo", 1, hedge=True)))
    asyncio.run(elsewhere(real.close))
    assert stats(client)["in_flight"] == 0
    assert client.call("Basic.echo", 1) == 1


def test_asyncio_client_may_be_made_outside_of_any_loop(place: Place):
    host = place.hosts(1)[0]
    client = rpc_asyncio.BalancedClient([host.address()])

    async def use() -> None:
        async with client:
            assert await client.call("Basic.echo", 1) == 1

    asyncio.run(use())


def test_gevent_client_belongs_to_the_hub_that_uses_it_first(place: Place):
    if place.backend != "gevent":
        pytest.skip("only gevent has hubs")
    client = place.connected(place.hosts(1))
    for act in (
        lambda: client._real.call("Basic.echo", 1),
        lambda: client._real.broadcast("Basic.echo", 1),
        client._real.close,
    ):
        with pytest.raises(LocalProtocolError, match="belongs to another"):
            act()
    assert client.call("Basic.echo", 1) == 1


FORK = """
import os, sys
from rpc_{backend} import BalancedClient
from rpc_proto import LocalProtocolError

client = BalancedClient(sys.argv[1:])
print(client.call("Basic.echo", "before"), flush=True)
if not (child := os.fork()):
    for act in (
        lambda: client.call("Basic.echo", 1),
        lambda: client.broadcast("Basic.echo", 1),
        client.close,
    ):
        try:
            print(act(), flush=True)
        except LocalProtocolError as error:
            print(error, flush=True)
    os._exit(0)
os.waitpid(child, 0)
print(client.call("Basic.echo", "after"), flush=True)
client.close()
"""


def test_child_of_a_fork_is_refused_and_its_parent_goes_on(place: Place):
    if place.backend == "asyncio":
        pytest.skip("a child needs a loop of its own, which is another one")
    done = subprocess.run(
        [sys.executable, "-c", FORK.format(backend=place.backend), place.hosts(1)[0].address()],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env={"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    refusal = "this client belongs to the parent process; create one after the fork"
    assert done.stdout.splitlines() == ["before", refusal, refusal, refusal, "after"], done.stderr


def test_many_threads_share_a_client_while_servers_come_and_go(place: Place, key):
    if place.backend != "blocking":
        pytest.skip("only rpc_blocking has clients that threads share")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    steady = place.own_hosts(2)
    flighty = place.own_host(0, port=port)
    addresses = [host.address() for host in (*steady, flighty)]
    client = rpc_blocking.BalancedClient(addresses, idempotent=True, retry_minimum=1000.0)
    stop = threading.Event()
    failures: list[BaseException] = []
    done = [0] * THREADS

    def work(number: int) -> None:
        while not stop.is_set():
            try:
                assert client.call("Basic.echo", [number, done[number]], timeout=20.0) == [
                    number,
                    done[number],
                ]
            except BaseException as error:
                failures.append(error)
                return
            done[number] += 1

    threads = [threading.Thread(target=work, args=(n,), daemon=True) for n in range(THREADS)]
    for thread in threads:
        thread.start()
    for generation in range(3):
        until(lambda: stats_of(client)["connected"] == 3 or failures)
        reached = sum(done)
        until(lambda reached=reached: sum(done) > reached + 200 or failures)
        flighty.kill()
        reached = sum(done)
        until(lambda reached=reached: sum(done) > reached + 200 or failures)
        flighty = place.own_host(generation, port=port)
    stop.set()
    for thread in threads:
        thread.join(20)
    assert not failures
    assert all(done)
    assert stats_of(client)["in_flight"] == 0
    client.close()


def stats_of(real):
    return real.stats


# Inside of handlers


class Front:
    """Calls on, over a balanced client."""

    def __init__(self, client) -> None:
        self._client = client

    def left(self) -> float:
        return self._client.call("Basic.time_left")

    def wait(self, key: str) -> str:
        return self._client.call("Gate.wait", key, idempotent=True)

    def wait_for_dial(self, key: str) -> str:
        return self._client.call("Basic.echo", key)

    def race(self, key: str) -> str:
        return self._client.race("Gate.wait", key)


class AsyncFront(Front):
    async def left(self) -> float:
        return await super().left()

    async def wait(self, key: str) -> str:
        return await super().wait(key)

    async def wait_for_dial(self, key: str) -> str:
        return await super().wait_for_dial(key)

    async def race(self, key: str) -> str:
        return await super().race(key)


@pytest.fixture
def front(place: Place):
    """Give what makes a server whose handlers call these nodes, and a client of it."""
    opened = []

    def make(nodes, **options):
        behind = place.client(nodes, **options)
        kind = AsyncFront if place.backend == "asyncio" else Front
        server = place.runtime.do(place.runtime.module.Server)
        place.runtime.do(lambda: server.register(kind(behind._real), "Front"))
        address = place.runtime.do(lambda: server.start("tcp://127.0.0.1:0"))
        client = place.runtime.connect(address)
        opened.append((client, server))
        return client, behind

    yield make
    for client, server in opened:
        client.close()
        place.runtime.do(lambda server=server: server.stop(0.0))


def test_deadline_of_a_handler_is_that_of_its_calls(place: Place, front):
    client, _ = front(place.hosts(2))
    assert 5.0 < client.call("Front.left", timeout=9.0) <= 9.0


@pytest.mark.parametrize("method", ["wait", "race"])
def test_calls_of_a_handler_that_is_given_up_are_cancelled(place: Place, front, method, key):
    hosts = place.hosts(2)
    client, behind = front(hosts)
    call = client.start(f"Front.{method}", key)
    until(lambda: sum(runs(hosts, key, "started")) == (1 if method == "wait" else 2))
    call.cancel()
    call.outcome()
    until(lambda: runs(hosts, key, "cancelled") == runs(hosts, key, "started"))
    until(lambda: stats(behind)["in_flight"] == 0)


def test_handler_that_is_given_up_waits_for_no_dial(place: Place, front, key):
    with black_hole() as address:
        client, behind = front([address], connect_timeout=2.0)
        call = client.start("Front.wait_for_dial", key)
        until(lambda: behind._real._pool.dials)
        call.cancel()
        call.outcome()
        server_side = client._real.address
        assert server_side
        behind.close()


def test_deadline_of_a_handler_covers_dialling(place: Place, front, key):
    with black_hole() as address:
        client, behind = front([address], connect_timeout=1.0)
        with pytest.raises((DeadlineExceeded, Unavailable)):
            client.call("Front.wait_for_dial", key, timeout=0.3)
        behind.close()
