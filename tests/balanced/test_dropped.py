"""Clients that nobody closed, and those that are made before a fork and used behind it."""

import gc
import os
import subprocess
import sys

import pytest

from balanced.support import Place
from conformance.runtimes import until
from rpc_discovery import FileDiscovery, RegistryDiscovery
from rpc_proto import Unavailable


def drop(place: Place, make, match: str) -> None:
    """Make a client where it can be used, use it, and let go of it: it says so, and closes."""

    def forget() -> None:
        place.runtime.do(make)
        gc.collect()

    with pytest.warns(ResourceWarning, match=match):
        forget()


@pytest.mark.fault(141)
def test_client_that_is_dropped_warns_and_closes(place: Place):
    host = place.own_host(0)
    address = host.address()
    kind = place.runtime.kind
    if place.backend == "asyncio":

        async def use() -> None:
            client = await kind.connect(address)
            await client.call("Basic.echo", 1)

    else:

        def use() -> None:
            kind.connect(address).call("Basic.echo", 1)

    drop(place, use, f"unclosed <rpc_{place.backend}.Client of {address}, open, 0 calls in flight>")
    host.settle(connections=0)


@pytest.mark.fault(141)
@pytest.mark.parametrize("source", ["list", "file", "registry"])
def test_balanced_client_that_is_dropped_warns_and_closes(place: Place, source, tmp_path):
    registry = place.own_host(0, registry="epoch")
    host = place.own_host(0, registries=[registry.address("http")], ttl=5.0)
    address = host.address()
    path = tmp_path / "nodes.json"
    path.write_text(f'["{address}"]')
    nodes = {
        "list": [address],
        "file": FileDiscovery(str(path), interval=0.01),
        "registry": RegistryDiscovery(registry.address("http"), refresh=0.1, wait=0.0),
    }[source]
    client = place.client(nodes)

    def registered() -> bool:
        try:
            return client.call("Basic.echo", 1, timeout=15.0) == 1
        except Unavailable:
            return False

    until(registered)
    kind = place.runtime.module.BalancedClient
    if place.backend == "asyncio":

        async def use() -> None:
            await kind(nodes).call("Basic.echo", 1)

    else:

        def use() -> None:
            kind(nodes).call("Basic.echo", 1)

    before = host.stats["connections"]
    drop(place, use, f"unclosed <rpc_{place.backend}.BalancedClient>")
    until(lambda: host.stats["connections"] <= before)


FORK = """
import asyncio, os, sys
from rpc_{backend} import BalancedClient
from rpc_discovery import FileDiscovery

client = BalancedClient(FileDiscovery(sys.argv[1]))

async def use():
    print(await client.call("Basic.echo", "async"), flush=True)
    await client.close()

for _ in range(2):
    if not (child := os.fork()):
        if "{backend}" == "asyncio":
            asyncio.run(use())
        else:
            with client:
                print(client.call("Basic.echo", "sync"), flush=True)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
"""


@pytest.mark.fault(85)
def test_client_that_was_not_used_before_a_fork_may_be_used_in_each_child(place: Place, tmp_path):
    path = tmp_path / "nodes.json"
    path.write_text(f'["{place.hosts(1)[0].address()}"]')
    done = subprocess.run(
        [sys.executable, "-c", FORK.format(backend=place.backend), str(path)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env={"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    word = "async" if place.backend == "asyncio" else "sync"
    assert done.stdout.split() == [word, word], done.stderr
