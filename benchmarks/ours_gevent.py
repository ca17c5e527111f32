"""rpc_gevent under the same load: real calls by name, with ids, deadlines, limits and errors."""

import time
from collections.abc import Callable
from typing import Any

import gevent

from rpc_gevent import Client, Server


class Bench:
    def echo(self, value: bytes) -> bytes:
        return value

    def text(self, value: str) -> str:
        return value


def serve(announce: Callable[[Any], None]) -> None:
    server = Server()
    server.register(Bench())
    announce(server.start("tcp://127.0.0.1:0"))
    server.serve_forever()


def load(
    address: str, *, connections: int, in_flight: int, payload: Any, seconds: float
) -> tuple[int, float]:
    """Return the number of calls, and the seconds they took."""
    clients = [Client.connect(address) for _ in range(connections)]
    method = "Bench.text" if isinstance(payload, str) else "Bench.echo"
    count = 0
    start = time.monotonic()
    stop = start + seconds

    def caller(client: Client) -> None:
        nonlocal count
        call = client.call
        while time.monotonic() < stop:
            call(method, payload, timeout=5.0)
            count += 1

    gevent.joinall([gevent.spawn(caller, client) for client in clients for _ in range(in_flight)])
    elapsed = time.monotonic() - start
    for client in clients:
        client.close()
    return count, elapsed
