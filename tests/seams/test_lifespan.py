"""What a server starts before it listens and ends after its last handler."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import pytest

import rpc_asyncio
import rpc_blocking
import rpc_gevent


class Service:
    def add(self, a: int, b: int) -> int:
        return a + b


BACKENDS = {"asyncio": rpc_asyncio, "gevent": rpc_gevent, "blocking": rpc_blocking}


class Life:
    """A lifespan in both colours that notes what happens."""

    def __init__(self, fails: bool = False) -> None:
        self.notes: list[str] = []
        self.fails = fails

    @contextmanager
    def plain(self, server: Any) -> Iterator[None]:
        self.begin(server)
        yield
        self.notes.append("ended")

    @asynccontextmanager
    async def coroutine(self, server: Any) -> AsyncIterator[None]:
        self.begin(server)
        await asyncio.sleep(0)
        yield
        await asyncio.sleep(0)
        self.notes.append("ended")

    def begin(self, server: Any) -> None:
        if self.fails:
            raise RuntimeError("no database")
        assert server.stats["connections"] == 0
        server.register(Service())
        self.notes.append("began")


async def run_async(life: Life, addresses: list[str]) -> None:
    async with rpc_asyncio.Server(lifespan=life.coroutine) as server:
        for address in addresses:
            where = await server.start(address)
        async with rpc_asyncio.Client.connect(where) as client:
            assert await client.call("Service.add", 1, 2) == 3
        life.notes.append("stopping")


def run(backend: str, life: Life, addresses: list[str]) -> None:
    if backend == "asyncio":
        asyncio.run(run_async(life, addresses))
        return
    module: Any = BACKENDS[backend]
    with module.Server(lifespan=life.plain) as server:
        for address in addresses:
            where = server.start(address)
        with module.Client.connect(where) as client:
            assert client.call("Service.add", 1, 2) == 3
        life.notes.append("stopping")


@pytest.mark.parametrize("backend", BACKENDS)
def test_lifespan_begins_once_before_the_first_address_and_ends_last(backend: str) -> None:
    life = Life()
    run(backend, life, ["tcp://127.0.0.1:0", "tcp://127.0.0.1:0"])
    assert life.notes == ["began", "stopping", "ended"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_lifespan_that_cannot_begin_is_raised_by_start(backend: str) -> None:
    life = Life(fails=True)
    with pytest.raises(RuntimeError, match="no database"):
        run(backend, life, ["tcp://127.0.0.1:0"])
    assert life.notes == []


@pytest.mark.parametrize("backend", BACKENDS)
def test_lifespan_ends_when_the_first_address_cannot_be_had(backend: str) -> None:
    life = Life()
    with pytest.raises(OSError, match=r".+"):
        run(backend, life, ["tcp://192.0.2.1:1"])
    assert life.notes == ["began", "ended"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_lifespan_of_another_colour_is_refused(backend: str) -> None:
    life = Life()
    module: Any = BACKENDS[backend]
    wrong = module.Server(lifespan=life.plain if backend == "asyncio" else life.coroutine)

    def start() -> None:
        started = wrong.start("tcp://127.0.0.1:0")
        if backend == "asyncio":
            asyncio.run(started)

    with pytest.raises(TypeError, match=r"lifespan must return something with __a?enter__"):
        start()
