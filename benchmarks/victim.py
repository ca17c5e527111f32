"""A process to attack: `victim.py serve BACKEND` or `victim.py call BACKEND ADDRESS KIND`.

`serve` prints {"tcp": address, "tls": address} as JSON and serves until its standard input ends.
`call` makes calls of a kind (see `CALLS`) to a server that may be hostile, and prints a line when
they have ended.
"""

import argparse
import asyncio
import json
import os
import signal
import ssl
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from rpc_proto import ServerConfig, current_call, quick

BACKENDS = ("asyncio", "gevent", "blocking")
PATIENCE = 30.0  # seconds that a handler waits at most
LONGEST = 600.0  # seconds of a victim's life, whatever becomes of its parent


class _Work:
    def small(self, number: int) -> int:
        return number + 1

    @quick
    def nothing(self) -> None: ...

    def take(self, *values: Any) -> int:
        return len(values)

    def numbers(self, values: list[int]) -> int:
        return len(values)

    def large(self, size: int) -> bytes:
        return bytes(size)


class AsyncioWork:
    @quick
    def nothing(self) -> None: ...

    async def small(self, number: int) -> int:
        return number + 1

    async def take(self, *values: Any) -> int:
        return len(values)

    async def numbers(self, values: list[int]) -> int:
        return len(values)

    async def large(self, size: int) -> bytes:
        return bytes(size)

    async def wait(self, *values: Any) -> None:
        await asyncio.sleep(PATIENCE)

    def occupy(self, *values: Any) -> None:
        _occupy()


class GeventWork(_Work):
    def wait(self, *values: Any) -> None:
        from gevent import sleep

        sleep(PATIENCE)

    occupy = wait


class BlockingWork(_Work):
    def wait(self, *values: Any) -> None:
        _occupy()

    occupy = wait


def _occupy() -> None:
    """Keep a thread until nobody waits for it."""
    call = current_call()
    assert call is not None
    until = time.monotonic() + PATIENCE
    while not call.cancelled and time.monotonic() < until:
        time.sleep(0.02)


def make_server(backend: str, settings: dict[str, Any], nodes: int) -> Any:
    config = ServerConfig(**settings.pop("config", {}))
    if backend == "asyncio":
        from rpc_asyncio import Server

        work: Any = AsyncioWork()
    elif backend == "gevent":
        from rpc_gevent import Server  # type: ignore[assignment]

        work = GeventWork()
    else:
        from rpc_blocking import Server  # type: ignore[assignment]

        work = BlockingWork()
    server = Server(config=config, **settings)
    server.register(work, "Work")
    if nodes:
        from registry_load import describe

        from rpc_discovery.registry import Registry
        from rpc_proto.http import Request

        registry = Registry("attack", max_nodes=nodes)
        for number in range(nodes):
            body = describe(number).replace(b'"ttl": 30.0', b'"ttl": 600')
            registry(
                Request("POST", "/registry/nodes", {"content-type": "application/json"}, body),
                time.monotonic(),
            )
        server.mount(registry)
    return server


def make_context() -> ssl.SSLContext:
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from support.certificates import Authority

    with tempfile.TemporaryDirectory() as folder:
        return Authority(Path(folder)).server_context()


def serve(backend: str, settings: dict[str, Any], nodes: int, tls: bool) -> None:
    context = make_context() if tls else None

    def tell(tcp: str, secure: str | None) -> None:
        print(json.dumps({"tcp": tcp, "tls": secure}), flush=True)

    if backend == "asyncio":

        async def live() -> None:
            server = make_server(backend, settings, nodes)
            tcp = await server.start("tcp://127.0.0.1:0")
            secure = await server.start("tls://127.0.0.1:0", ssl=context) if context else None
            tell(tcp, secure)
            await server.serve_forever()

        asyncio.run(live())
    else:
        server = make_server(backend, settings, nodes)
        tcp = server.start("tcp://127.0.0.1:0")
        secure = server.start("tls://127.0.0.1:0", ssl=context) if context else None
        tell(tcp, secure)
        server.serve_forever()


# What a client asks of a server that is not to be trusted: how many calls, with how large an
# argument.
CALLS = {"few": (8, 0), "many": (256, 0), "large": (10_000, 100_000)}


def call(backend: str, address: str, kind: str) -> None:
    count, size = CALLS[kind]
    argument = bytes(size)
    if backend == "asyncio":
        from rpc_asyncio import Client as AsyncioClient

        async def live() -> None:
            client = await AsyncioClient.connect(address)
            sys.stdin.readline()  # the baseline is measured here
            calls = [client.call("Any.thing", argument, 1, timeout=8.0) for _ in range(count)]
            results = await asyncio.gather(*calls, return_exceptions=True)
            report(results)
            sys.stdin.readline()  # what it holds is measured here
            await client.close()

        asyncio.run(live())
        return
    Client: Any
    if backend == "gevent":
        from rpc_gevent import Client
    else:
        from rpc_blocking import Client
    client = Client.connect(address)
    sys.stdin.readline()
    results: list[Any] = []
    try:
        replies = [client.start("Any.thing", argument, 1, timeout=8.0) for _ in range(count)]
    except Exception as error:
        results.append(error)
        replies = []
    for reply in replies:
        try:
            results.append(reply.result())
        except Exception as error:
            results.append(error)
    report(results)
    sys.stdin.readline()
    client.close()


def report(results: list[Any]) -> None:
    failed = [result for result in results if isinstance(result, Exception)]
    print(json.dumps({"calls": len(results), "failed": len(failed)}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("serve", "call"))
    parser.add_argument("backend", choices=BACKENDS)
    parser.add_argument("address", nargs="?")
    parser.add_argument("kind", nargs="?", choices=CALLS)
    parser.add_argument("--settings", default="{}", help="of the server, as JSON")
    parser.add_argument("--nodes", type=int, default=0, help="of a registry that is mounted")
    parser.add_argument("--tls", action="store_true", help="serve at a tls:// address, too")
    given = parser.parse_args()
    signal.alarm(int(LONGEST))
    if given.what == "call":
        print("ready", flush=True)
        call(given.backend, given.address, given.kind)
        return
    # With the parent the other end of standard input goes, and nothing else may outlive it.
    threading.Thread(target=_end_with_parent, daemon=True).start()
    serve(given.backend, json.loads(given.settings), given.nodes, given.tls)


def _end_with_parent() -> None:
    os.read(0, 1)
    os._exit(0)


if __name__ == "__main__":
    main()
