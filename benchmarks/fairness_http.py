"""How long a neighbour's calls take while others ask for pages: python benchmarks/fairness_http.py

For each backend a server with 200 methods and a registry of 10,000 nodes, in a process of its own;
16 connections that pipeline requests for a page; and one that makes a call each 5 ms.
"""

import asyncio
import json
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from importlib import import_module
from typing import Any

PAGES = ("HEAD /debug/rpc", "HEAD /metrics", "GET /registry", "GET /registry/status")
CONNECTIONS = 16
CALLS = 300


def make_server(backend: str) -> Any:
    """Return a server that has something to show."""
    from rpc_discovery import Registry
    from rpc_proto import quick
    from rpc_proto.http import Request

    class Echo:
        @quick
        def echo(self, value: int) -> int:
            return value

    server = import_module(f"rpc_{backend}").Server()
    for number in range(200):
        server.register(Echo(), f"Echo{number}")
    registry = Registry("epoch")
    for number in range(10_000):
        address = f"tcp://10.0.{number // 250}.{number % 250}:9"
        body = json.dumps({"address": address, "services": ["A"], "ttl": 3600}).encode()
        registry(Request("POST", "/registry/nodes", {"content-type": "application/json"}, body), 0)
    server.mount(registry)
    return server


def serve(backend: str) -> None:
    """Serve until stdin ends."""
    server = make_server(backend)
    if backend == "asyncio":

        async def run() -> None:
            print(await server.start("tcp://127.0.0.1:0"), flush=True)
            await asyncio.to_thread(sys.stdin.read)

        asyncio.run(run())
        return
    print(server.start("tcp://127.0.0.1:0"), flush=True)
    if backend == "gevent":
        from gevent import get_hub

        get_hub().threadpool.apply(sys.stdin.read)
    else:
        sys.stdin.read()


def attack(port: int, request: bytes, done: threading.Event, count: list[int]) -> None:
    """Pipeline a request until the end."""
    sock = socket.create_connection(("127.0.0.1", port))

    def read() -> None:
        with suppress(OSError):
            while data := sock.recv(1 << 20):
                count[0] += data.count(b"HTTP/1.1 200")

    threading.Thread(target=read, daemon=True).start()
    while not done.is_set():
        try:
            sock.sendall(request * 20)
        except OSError:
            break


def measure(backend: str, page: str | None) -> str:
    """Return the quantiles of the neighbour's calls, in milliseconds."""
    from rpc_blocking import Client

    command = [sys.executable, __file__, backend]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
    assert process.stdout is not None
    address = process.stdout.readline().strip()
    done, count = threading.Event(), [0]
    try:
        client = Client.connect(address)
        for number in range(200):
            client.call(f"Echo{number}.echo", 1)
        if page is not None:
            request = f"{page} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
            port = int(address.rpartition(":")[2])
            for _ in range(CONNECTIONS):
                given = (port, request, done, count)
                threading.Thread(target=attack, args=given, daemon=True).start()
            time.sleep(0.5)
        times = []
        for _ in range(CALLS):
            start = time.perf_counter()
            client.call("Echo0.echo", 1, timeout=60)
            times.append(1000 * (time.perf_counter() - start))
            time.sleep(0.005)
        times.sort()
        return (
            f"p50 {times[CALLS // 2]:7.2f}  p99 {times[CALLS * 99 // 100]:7.2f}  "
            f"most {times[-1]:7.2f} ms  {count[0]:6d} pages"
        )
    finally:
        done.set()
        process.kill()
        process.wait()


if __name__ == "__main__":
    if len(sys.argv) > 1:
        serve(sys.argv[1])
    else:
        for backend in ("asyncio", "gevent", "blocking"):
            for page in (None, *PAGES):
                print(f"{backend:9}{page or 'nobody else':22}{measure(backend, page)}", flush=True)
