"""rpc_blocking under the same load: a thread for each connection, and `call_many` for pipelines."""

import threading
import time
from collections.abc import Callable
from itertools import repeat, takewhile
from typing import Any

from rpc_blocking import Client, Server
from rpc_proto import quick


class Bench:
    @quick
    def echo(self, value: bytes) -> bytes:
        return value

    @quick
    def text(self, value: str) -> str:
        return value


def serve(announce: Callable[[Any], None]) -> None:
    server = Server()
    server.register(Bench())
    announce(server.start("tcp://127.0.0.1:0"))
    server.serve_forever()


def load(
    address: str,
    *,
    connections: int,
    in_flight: int,
    payload: Any,
    seconds: float,
    shared: bool = False,
) -> tuple[int, float]:
    """Return the number of calls, and the seconds they took."""
    clients = [Client.connect(address) for _ in range(connections)]
    method = "Bench.text" if isinstance(payload, str) else "Bench.echo"
    counts: list[int] = []
    start = time.monotonic()
    stop = start + seconds

    def lone(client: Client) -> None:
        count = 0
        call = client.call
        while time.monotonic() < stop:
            call(method, payload, timeout=5.0)
            count += 1
        counts.append(count)

    def pipelined(client: Client) -> None:
        calls = takewhile(lambda _: time.monotonic() < stop, repeat((payload,)))
        counts.append(sum(1 for _ in client.call_many(method, calls, timeout=5.0)))

    caller = lone if in_flight == 1 or shared else pipelined
    callers = in_flight if shared else 1
    threads = [
        threading.Thread(target=caller, args=(client,))
        for client in clients
        for _ in range(callers)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    elapsed = time.monotonic() - start
    for client in clients:
        client.close()
    return sum(counts), elapsed
