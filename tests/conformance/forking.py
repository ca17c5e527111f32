"""A program that forks while it has a server or a client; the test speaks to it line by line.

    python -m conformance.forking BACKEND [ADDRESS]

With an address it has a client of that, else a server, whose addresses it prints first. "fork"
prints the id of a child, which lives on with copies of all sockets; "stop" stops the server.
"""

import asyncio
import os
import sys
import tempfile
import time
from typing import Any

PATH = f"{tempfile.mkdtemp()}/rpc.sock"
WHERE = ("tcp://127.0.0.1:0", f"unix://{PATH}")
LIFE = 60.0  # of a child, in seconds


def say(what: Any) -> None:
    print(what, flush=True)


def be_a_child() -> None:
    for pipe in (0, 1):  # which tell the test of the end of the parent
        os.close(pipe)


def live_on() -> None:
    time.sleep(LIFE)
    os._exit(0)


def run_blocking(address: str | None) -> None:
    from rpc_blocking import Client, Server

    server = Server()
    client = Client.connect(address) if address else None
    say("connected" if client else " ".join(map(server.start, WHERE)))
    for line in sys.stdin:
        if line == "fork\n":
            child = os.fork()
            if not child:
                be_a_child()
                live_on()
            say(child)
        else:
            server.stop()
            say("stopped")


def run_gevent(address: str | None) -> None:
    import gevent
    from gevent.os import fork

    from rpc_gevent import Client, Server

    server = Server()
    client = Client.connect(address) if address else None
    say("connected" if client else " ".join(map(server.start, WHERE)))
    while line := gevent.get_hub().threadpool.apply(sys.stdin.readline):
        if line == "fork\n":
            child = fork()
            if not child:
                be_a_child()
                gevent.sleep(LIFE)  # in its hub, where the watchers of the parent are, too
                os._exit(0)
            say(child)
        else:
            server.stop()
            say("stopped")


async def run_asyncio(address: str | None) -> None:
    from rpc_asyncio import Client, Server

    server = Server()
    client = await Client.connect(address) if address else None
    say("connected" if client else " ".join([await server.start(where) for where in WHERE]))
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        if line == "fork\n":
            child = os.fork()
            if not child:
                be_a_child()
                if client is not None:  # must not touch the set of sockets that both share
                    client._protocol._transport.abort()
                live_on()
            say(child)
        else:
            await server.stop()
            say("stopped")


if __name__ == "__main__":
    backend, where = sys.argv[1], (*sys.argv[2:], None)[0]
    if backend == "asyncio":
        asyncio.run(run_asyncio(where))
    else:
        {"blocking": run_blocking, "gevent": run_gevent}[backend](where)
