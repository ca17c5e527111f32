"""Event loops and processes: each has its own servers and clients."""

import asyncio
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from asyncio_driver.conftest import LOOPS
from asyncio_driver.support import Echo, pair
from rpc_asyncio import Client, Server
from rpc_proto import LocalProtocolError

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", sorted(LOOPS))
def test_loops_in_several_threads_do_not_disturb_each_other(name):
    addresses: dict[int, str] = {}
    meet = threading.Barrier(2, timeout=20)
    results: dict[int, object] = {}

    async def use(own: int) -> None:
        async with Server() as server, asyncio.timeout(20):
            server.register(Echo())
            addresses[own] = await server.start("tcp://127.0.0.1:0")
            await asyncio.to_thread(meet.wait)
            async with (
                await Client.connect(addresses[own]) as to_own,
                await Client.connect(addresses[1 - own]) as to_other,
            ):
                body = bytes([own]) * 100_000
                calls = [
                    client.call("Echo.echo", body)
                    for _ in range(100)
                    for client in (to_own, to_other)
                ]
                results[own] = set(await asyncio.gather(*calls)) == {body}
            await asyncio.to_thread(meet.wait)

    def work(own: int) -> None:
        try:
            with asyncio.Runner(loop_factory=LOOPS[name]) as runner:
                runner.run(use(own))
        except BaseException as error:
            results[own] = error
            meet.abort()

    threads = [threading.Thread(target=work, args=(own,)) for own in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {0: True, 1: True}


async def test_client_and_server_of_another_loop_are_refused():
    async with pair(Echo()) as (server, client):

        async def use_them() -> list[str]:
            told = []
            for use in (
                lambda: client.call("Echo.echo", 1),
                lambda: client.notify("Echo.echo", 1),
                client.close,
                server.stop,
                lambda: server.start("tcp://127.0.0.1:0"),
            ):
                with pytest.raises(LocalProtocolError, match="another event loop") as caught:
                    await use()
                told.append(str(caught.value))
            return told

        assert len(await asyncio.to_thread(asyncio.run, use_them())) == 5
        assert client.calls_in_flight == 0
        assert await client.call("Echo.echo", 1) == 1


FORK = """
import asyncio, os, sys, warnings
warnings.simplefilter("ignore")
from rpc_asyncio import Client, Server
from rpc_proto import LocalProtocolError

class Echo:
    async def echo(self, value):
        return value

async def tell(*attempts):
    for attempt in attempts:
        try:
            await attempt()
        except LocalProtocolError as error:
            print(error, flush=True)

async def main():
    server = Server()
    server.register(Echo())
    client = await Client.connect(await server.start("tcp://127.0.0.1:0"))
    print(await client.call("Echo.echo", "before"), flush=True)
    child = os.fork()
    if not child:
        if sys.argv[1] == "new loop":
            asyncio._set_running_loop(None)
            asyncio.run(tell(lambda: client.call("Echo.echo", 1), client.close, server.stop))
        else:
            await tell(lambda: client.call("Echo.echo", 1), client.close, server.stop)
        os._exit(0)
    os.waitpid(child, 0)
    print(await client.call("Echo.echo", "after"), flush=True)
    await client.close()
    await server.stop()

asyncio.run(main())
"""


@pytest.mark.parametrize("where", ["same loop", "new loop"])
def test_child_of_a_fork_is_refused_and_its_parent_goes_on(where):
    done = subprocess.run(
        [sys.executable, "-c", FORK, where],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env={"PYTHONPATH": f"{ROOT}:{ROOT / 'backends'}"},
    )
    client = "this client belongs to the parent process; create one after the fork"
    server = "this server belongs to the parent process; create one after the fork"
    assert done.stderr == ""
    assert done.stdout.splitlines() == ["before", client, client, server, "after"]


CHILD_OF_ITS_OWN = """
import asyncio, os
from rpc_asyncio import Client, Server

class Echo:
    async def echo(self, value):
        return value

async def main(name):
    async with Server() as server:
        server.register(Echo())
        async with Client.connect(await server.start("tcp://127.0.0.1:0")) as client:
            print(await client.call("Echo.echo", name), flush=True)

asyncio.run(main("parent"))
if os.fork():
    os.wait()
else:
    asyncio.run(main("child"))
"""


def test_child_of_a_fork_may_make_its_own():
    done = subprocess.run(
        [sys.executable, "-c", CHILD_OF_ITS_OWN],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env={"PYTHONPATH": f"{ROOT}:{ROOT / 'backends'}"},
    )
    assert done.stderr == ""
    assert done.stdout.splitlines() == ["parent", "child"]


def test_server_and_client_survive_a_loop_that_is_closed_around_them():
    async def begin() -> None:
        server = Server()
        server.register(Echo())
        client = await Client.connect(await server.start("tcp://127.0.0.1:0"))
        assert await client.call("Echo.echo", 1) == 1
        await client.close()
        await server.stop()

    for make_loop in (*LOOPS.values(), *LOOPS.values()):
        with asyncio.Runner(loop_factory=make_loop) as runner:
            runner.run(begin())
