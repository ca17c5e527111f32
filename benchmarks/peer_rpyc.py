"""A peer under the same load: rpyc, whose connection any number of threads may share."""

import threading
import time
from collections.abc import Callable
from typing import Any

import rpyc
from rpyc.utils.server import ThreadedServer


class _Bench(rpyc.Service):  # type: ignore[misc]  # rpyc has no types
    def exposed_echo(self, value: Any) -> Any:
        return value


def serve(announce: Callable[[Any], None]) -> None:
    server = ThreadedServer(_Bench, hostname="127.0.0.1", port=0)
    announce(server.port)
    server.start()


def load(
    address: str, *, connections: int, in_flight: int, payload: Any, seconds: float
) -> tuple[int, float]:
    """Return the number of calls, and the seconds they took."""
    clients = [rpyc.connect("127.0.0.1", int(address)) for _ in range(connections)]
    counts: list[int] = []
    start = time.monotonic()
    stop = start + seconds

    def caller(client: Any) -> None:
        count = 0
        echo = client.root.echo
        while time.monotonic() < stop:
            echo(payload)
            count += 1
        counts.append(count)

    each = [client for client in clients for _ in range(in_flight)]
    threads = [threading.Thread(target=caller, args=(client,)) for client in each]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    elapsed = time.monotonic() - start
    for client in clients:
        client.close()
    return sum(counts), elapsed
