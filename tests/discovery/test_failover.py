"""Where a call goes next: away from nodes that hang, and to any that is not known to be down."""

import asyncio
import threading
from collections.abc import Iterator
from math import inf
from typing import Any

import pytest

import rpc_asyncio
import rpc_blocking
from rpc_blocking import Server
from rpc_discovery import View
from rpc_discovery.nodes import Node
from rpc_discovery.pool import BalancedCall, Pool
from rpc_proto import DeadlineExceeded, Unavailable

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


def eject(pool: Pool, address: str, now: float) -> None:
    """Let calls to a node fail until it gets no more."""
    target = pool.targets[address]
    for _ in range(5):
        target.begin(now)
        call = BalancedCall("S", now + 5.0, node=address)
        pool.failed(call, target, Unavailable("gone"), now, now)
    assert target.ejected_until is not None


def test_a_node_that_was_ejected_is_better_than_one_that_is_down():
    pool = make_pool()
    eject(pool, NODES[0], 1.0)
    pool.unreachable(pool.targets[NODES[1]], OSError("refused"), 1.0, ready=False)
    assert pool.pick_for(BalancedCall("S", 5.0), 1.0) is pool.targets[NODES[0]]


def test_a_node_that_is_being_dialled_is_better_than_one_that_is_down():
    pool = make_pool()
    pool.dialling(pool.targets[NODES[0]])
    pool.unreachable(pool.targets[NODES[1]], OSError("refused"), 1.0, ready=False)
    picked = {pool.pick_for(BalancedCall("S", 5.0), 1.0) for _ in range(4)}
    assert picked == {pool.targets[NODES[0]]}


def test_a_node_that_was_tried_is_better_than_one_that_is_down():
    pool = make_pool()
    pool.unreachable(pool.targets[NODES[1]], OSError("refused"), 1.0, ready=False)
    call = BalancedCall("S", 5.0)
    call.tried = {pool.targets[NODES[0]]}
    assert pool.pick_for(call, 1.0) is pool.targets[NODES[0]]


def test_when_all_are_down_the_call_says_why():
    pool = make_pool()
    for target in pool.targets.values():
        pool.unreachable(target, OSError("refused"), 1.0, ready=False)
    with pytest.raises(Unavailable, match="refused") as raised:
        pool.pick_for(BalancedCall("S", 5.0), 1.0)
    assert not raised.value.maybe_executed


def test_an_error_tells_what_an_attempt_before_may_have_done():
    pool = make_pool(max_attempts=2)
    call = BalancedCall("S", 5.0, idempotent=True)
    target = pool.pick_for(call, 1.0)
    target.begin(1.0)
    assert pool.failed(call, target, Unavailable("lost"), 1.0, 1.0) == 0.0
    target = pool.pick_for(call, 1.0)
    target.begin(1.0)
    last = Unavailable("goes away", maybe_executed=False)
    assert pool.failed(call, target, last, 1.0, 1.0) is None
    assert last.maybe_executed


def test_an_error_tells_it_when_no_node_is_left_either():
    pool = make_pool()
    call = BalancedCall("S", 5.0, idempotent=True)
    target = pool.pick_for(call, 1.0)
    target.begin(1.0)
    pool.failed(call, target, Unavailable("lost"), 1.0, 1.0)
    pool.update(View(), 1.0)
    with pytest.raises(Unavailable, match="no node offers") as raised:
        pool.pick_for(call, 1.0)
    assert raised.value.maybe_executed


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
    settings: dict[str, Any] = {"idempotent": True, "attempt_timeout": 0.2}
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
