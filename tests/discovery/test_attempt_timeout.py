"""A node that hangs costs an idempotent call its share of the time, and not all of it."""

import asyncio
import threading
from collections.abc import Iterator
from math import inf

import pytest

import rpc_asyncio
import rpc_blocking
from rpc_blocking import Server
from rpc_discovery import View
from rpc_discovery.nodes import Node
from rpc_discovery.pool import BalancedCall, Pool
from rpc_proto import DeadlineExceeded

NODES = ("tcp://10.0.0.1:1", "tcp://10.0.0.2:1")


def hang(call: BalancedCall, pool: Pool, now: float) -> float | None:
    """Let an attempt that began a second ago end without an answer."""
    target = pool.pick_for(call, now - 1.0)
    target.begin(now - 1.0)
    return pool.failed(call, target, DeadlineExceeded("1 s"), now - 1.0, now)


def make_pool(**settings: object) -> Pool:
    pool = Pool(now=0.0, rng=lambda: 0.5, **settings)  # type: ignore[arg-type]
    pool.update(View(Node(address, ["S"]) for address in NODES), 0.0)
    return pool


def test_an_idempotent_call_goes_on_and_the_last_attempt_has_the_time_that_is_left():
    pool = make_pool(attempt_timeout=1.0)
    call = BalancedCall("S", 5.0, idempotent=True)
    assert pool.limit(call) == 1.0
    assert hang(call, pool, 1.0) == 0.0
    assert pool.limit(call) == 1.0
    assert hang(call, pool, 2.0) > 0.0  # there is no third node
    assert pool.limit(call) == inf
    assert hang(call, pool, 5.0) is None


def test_a_call_that_may_not_be_repeated_has_no_limit_and_ends_with_its_deadline():
    pool = make_pool(attempt_timeout=1.0)
    call = BalancedCall("S", 5.0)
    assert pool.limit(call) == inf
    assert hang(call, pool, 5.0) is None


def test_without_an_attempt_timeout_a_deadline_is_nobodys_to_repeat():
    pool = make_pool()
    call = BalancedCall("S", 5.0, idempotent=True)
    assert pool.limit(call) == inf
    assert hang(call, pool, 2.0) is None


@pytest.mark.parametrize("value", [0, -1.0, inf, float("nan")])
def test_an_attempt_timeout_is_finite_and_over_zero(value):
    with pytest.raises(ValueError, match="attempt_timeout must be seconds over 0"):
        make_pool(attempt_timeout=value)


class Sleeper:
    """Answers at once, or never while it is told to hang."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.released = threading.Event()
        self.released.set()

    def who(self) -> str:
        self.released.wait(20)
        return self.name


@pytest.fixture
def sleepers() -> Iterator[dict[str, Sleeper]]:
    with Server() as one, Server() as two:
        found = {}
        for server in (one, two):
            sleeper = Sleeper(f"sleeper {len(found)}")
            server.register(sleeper, "Sleeper")
            found[server.start("tcp://127.0.0.1:0")] = sleeper
        yield found
        for sleeper in found.values():
            sleeper.released.set()


@pytest.mark.parametrize("backend", ["asyncio", "gevent", "blocking"])
def test_a_call_leaves_a_node_that_hangs_in_every_backend(backend, sleepers):
    hanging, other = sleepers.values()
    settings = {"idempotent": True, "attempt_timeout": 0.2}
    addresses = list(sleepers)

    async def with_asyncio() -> list[str]:
        async with rpc_asyncio.BalancedClient(addresses, **settings) as client:
            for address in addresses:
                await client.call("Sleeper.who", node=address)
            hanging.released.clear()
            return [await client.call("Sleeper.who", timeout=10.0) for _ in range(4)]

    def in_place() -> list[str]:
        module = pytest.importorskip("rpc_gevent") if backend == "gevent" else rpc_blocking
        with module.BalancedClient(addresses, **settings) as client:
            for address in addresses:
                client.call("Sleeper.who", node=address)
            hanging.released.clear()
            return [client.call("Sleeper.who", timeout=10.0) for _ in range(4)]

    answers = asyncio.run(with_asyncio()) if backend == "asyncio" else in_place()
    assert answers == [other.name] * 4
