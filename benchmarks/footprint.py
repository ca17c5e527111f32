"""Measure what the library costs when it does nothing: memory of idle connections, time to import.

python benchmarks/footprint.py
"""

import asyncio
import functools
import gc
import importlib
import os
import resource
import statistics
import subprocess
import sys
import time
from typing import Any

CONNECTIONS = 1000


def _resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def _tell(connections: int) -> None:
    gc.collect()
    print(connections, _resident(), flush=True)


def _serve(backend: str) -> None:
    server = importlib.import_module(f"rpc_{backend}").Server()
    if backend == "asyncio":
        asyncio.run(_serve_asyncio(server))
        return
    print(server.start("tcp://127.0.0.1:0"), flush=True)
    read = sys.stdin.readline
    if backend == "gevent":
        from gevent import get_hub

        read = functools.partial(get_hub().threadpool.apply, sys.stdin.readline)
    while read():
        _tell(server.stats["connections"])


async def _serve_asyncio(server: Any) -> None:
    print(await server.start("tcp://127.0.0.1:0"), flush=True)
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while await reader.readline():
        _tell(server.stats["connections"])


async def _memory(backend: str) -> float:
    """Return bytes of the server's memory for each idle connection."""
    from rpc_asyncio import Client

    server = await asyncio.create_subprocess_exec(
        sys.executable,
        __file__,
        "--serve",
        backend,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert server.stdin is not None
    assert server.stdout is not None
    address = (await server.stdout.readline()).decode().strip()

    stdin, stdout = server.stdin, server.stdout

    async def ask() -> tuple[int, int]:
        stdin.write(b"\n")
        connections, resident = (await stdout.readline()).split()
        return int(connections), int(resident)

    warm = [await Client.connect(address) for _ in range(20)]
    _, before = await ask()
    clients = [await Client.connect(address) for _ in range(CONNECTIONS)]
    connections, after = await ask()
    assert connections == CONNECTIONS + len(warm)
    for client in warm + clients:
        await client.close()
    server.kill()
    await server.wait()
    return (after - before) / CONNECTIONS


def _process(statement: str) -> float:
    # An installed package comes with its bytecode; where writing it is off, it would be missing.
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", statement], check=True, env=environment)
    return time.perf_counter() - start


def main() -> None:
    if sys.argv[1:2] == ["--serve"]:
        _serve(sys.argv[2])
        return
    resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
    for backend in ("asyncio", "gevent", "blocking"):
        kib = statistics.median(asyncio.run(_memory(backend)) for _ in range(3)) / 1024
        print(f"{backend}: {kib:.1f} KiB of the server for each of {CONNECTIONS} idle connections")
    for statement in ("pass", "import rpc_proto", "import asyncio", "import rpc_asyncio"):
        _process(statement)
        milliseconds = statistics.median(_process(statement) for _ in range(21)) * 1000
        print(f"python -c '{statement}': {milliseconds:.1f} ms (median of 21 processes)")


if __name__ == "__main__":
    main()
