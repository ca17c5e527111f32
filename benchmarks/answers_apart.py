"""W7: what a call takes beyond its handler, when answers leave at different moments.

One connection with 8 calls in flight, whose handlers wait 1 to 5 ms each; the next 8 begin when all
have ended, so that no request acknowledges an answer. One that waits until the answer before it is
acknowledged (Nagle's algorithm) comes 40 ms late. The figures are p50 and p99 of what the caller
waits beyond the time that the handler measured, in milliseconds.

    python benchmarks/answers_apart.py --seconds 5 asyncio uvloop gevent blocking
"""

import argparse
import asyncio
import random
import statistics
import subprocess
import sys
import time

IN_FLIGHT = 8
SHORTEST, LONGEST = 0.001, 0.005  # seconds
BACKENDS = ("asyncio", "uvloop", "gevent", "blocking")


class Waiting:
    """Takes its time, and tells how much that was."""

    def wait(self, seconds: float) -> float:
        began = time.monotonic()
        time.sleep(seconds)
        return time.monotonic() - began


class AsyncWaiting:
    async def wait(self, seconds: float) -> float:
        began = time.monotonic()
        await asyncio.sleep(seconds)
        return time.monotonic() - began


def say(address: str) -> None:
    print(address, flush=True)


async def serve_asyncio() -> None:
    from rpc_asyncio import Server

    server = Server()
    server.register(AsyncWaiting(), "Waiting")
    say(await server.start("tcp://127.0.0.1:0"))
    await server.serve_forever()


async def load_asyncio(address: str, seconds: float) -> list[float]:
    from rpc_asyncio import Client

    stop = time.monotonic() + seconds
    beyond: list[float] = []

    async def call() -> None:
        began = time.monotonic()
        own = await client.call("Waiting.wait", random.uniform(SHORTEST, LONGEST))
        beyond.append(time.monotonic() - began - own)

    async with Client.connect(address) as client:
        while time.monotonic() < stop:
            await asyncio.gather(*(call() for _ in range(IN_FLIGHT)))
    return beyond


def serve(backend: str) -> None:
    if backend == "gevent":
        from rpc_gevent import Server
    else:
        from rpc_blocking import Server  # type: ignore[assignment]
    server = Server()
    server.register(Waiting())
    say(server.start("tcp://127.0.0.1:0"))
    server.serve_forever()


def load(backend: str, address: str, seconds: float) -> list[float]:
    from concurrent.futures import ThreadPoolExecutor

    if backend == "gevent":
        from rpc_gevent import Client
    else:
        from rpc_blocking import Client  # type: ignore[assignment]
    stop = time.monotonic() + seconds
    beyond: list[float] = []

    def call(_: int) -> None:
        began = time.monotonic()
        own = client.call("Waiting.wait", random.uniform(SHORTEST, LONGEST))
        beyond.append(time.monotonic() - began - own)

    with Client.connect(address) as client, ThreadPoolExecutor(IN_FLIGHT) as threads:
        while time.monotonic() < stop:
            list(threads.map(call, range(IN_FLIGHT)))
    return beyond


def child(role: str, backend: str, address: str, seconds: float) -> None:
    if backend == "gevent":
        from gevent import monkey

        monkey.patch_all()
    if backend in ("asyncio", "uvloop"):
        run = asyncio.run
        if backend == "uvloop":
            import uvloop

            run = uvloop.run
        if role == "serve":
            run(serve_asyncio())
            return
        beyond = run(load_asyncio(address, seconds))
    elif role == "serve":
        serve(backend)
        return
    else:
        beyond = load(backend, address, seconds)
    cuts = statistics.quantiles(beyond, n=100)
    print(f"{len(beyond)} {cuts[49] * 1000:.2f} {cuts[98] * 1000:.2f}")


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        role, backend, address, seconds = sys.argv[2:]
        child(role, backend, address, float(seconds))
        return
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("backends", nargs="*", metavar="BACKEND", help=", ".join(BACKENDS))
    parser.add_argument("--seconds", type=float, default=5.0)
    options = parser.parse_args()
    print("W7: ms beyond the handler's own time    calls       p50       p99")
    for backend in options.backends or BACKENDS:
        command = [sys.executable, __file__, "--child"]
        server = subprocess.Popen(
            [*command, "serve", backend, "", "0"], stdout=subprocess.PIPE, text=True
        )
        try:
            assert server.stdout is not None
            address = server.stdout.readline().strip()
            measured = subprocess.run(
                [*command, "load", backend, address, str(options.seconds)],
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            )
        finally:
            server.kill()
            server.communicate()
        count, p50, p99 = measured.stdout.split()
        print(f"{backend:36}{count:>9}{p50:>10}{p99:>10}", flush=True)


if __name__ == "__main__":
    main()
