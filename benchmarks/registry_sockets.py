"""Measure a registry behind a real server: nodes that renew, and readers that wait for changes.

python benchmarks/registry_sockets.py [--backend asyncio] [--nodes 10000] [--readers 1000]
                                      [--seconds 20]

The server has one core to itself and the nodes and readers the other, if there are two. benchmarks/
registry_load.py measures the registry alone.
"""

import argparse
import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from registry_load import INTERVAL, describe

HEADERS = {
    "POST": "POST /registry/nodes HTTP/1.1\r\nHost: localhost\r\n"
    "Content-Type: application/json\r\nContent-Length: %d\r\n%s\r\n",
    "GET": "GET /registry/nodes?%s HTTP/1.1\r\nHost: localhost\r\n%s\r\n",
}
CLOSE = "Connection: close\r\n"
PATIENCE = 30.0  # seconds
CORES = sorted(os.sched_getaffinity(0))
TICKS = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")


class Exchange(asyncio.Protocol):
    """Requests over one connection, one at a time. `responses` gets the bytes of each response."""

    def __init__(self) -> None:
        self.responses: asyncio.Queue[bytes] = asyncio.Queue()
        self._transport: Any = None
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def send(self, data: bytes) -> None:
        self._transport.write(data)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, blank, body = self._buffer.partition(b"\r\n\r\n")
        if not blank:
            return
        length = int(head.lower().partition(b"content-length:")[2].split()[0])
        if len(body) >= length:
            self.responses.put_nowait(self._buffer)
            self._buffer = b""

    def connection_lost(self, exc: Exception | None) -> None:
        self.responses.put_nowait(b"")

    def close(self) -> None:
        self._transport.abort()


class Server:
    """The registry's process, and what it costs."""

    def __init__(self, backend: str) -> None:
        command = [sys.executable, "-m", "rpc_cli", "registry", "--listen=tcp://127.0.0.1:0"]
        command.append(f"--backend={backend}")
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        os.sched_setaffinity(self.process.pid, CORES[:1])
        line = self.process.stdout.readline()
        self.port = int(line.split()[2].rpartition(":")[2])

    def cpu(self) -> float:
        with open(f"/proc/{self.process.pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    def memory(self) -> float:
        """Return the resident memory in MiB."""
        with open(f"/proc/{self.process.pid}/statm") as file:
            return int(file.read().split()[1]) * PAGE / 2**20

    @contextmanager
    def watched(self) -> Iterator[Callable[[], tuple[float, float]]]:
        """Give a function that returns the seconds of CPU and of time since then."""
        cpu, began = self.cpu(), time.monotonic()
        yield lambda: (self.cpu() - cpu, time.monotonic() - began)

    async def connect(self) -> Exchange:
        loop = asyncio.get_running_loop()
        _, exchange = await loop.create_connection(Exchange, "127.0.0.1", self.port)
        return exchange

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


class Nodes:
    """Nodes that renew themselves, each over a new connection or over one that is kept."""

    def __init__(self, server: Server, count: int) -> None:
        self.seconds: list[float] = []  # that heartbeats took
        self.failed = 0
        self._server = server
        self._bodies = [describe(number) for number in range(count)]
        self._kept: dict[int, Exchange] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._interval = INTERVAL

    def shrink(self, count: int) -> None:
        """Go on with fewer nodes and as many heartbeats."""
        self._interval *= count / len(self._bodies)
        del self._bodies[count:]

    async def beat(self, number: int, keep: bool, body: bytes | None = None) -> None:
        body = body or self._bodies[number]
        began = time.monotonic()
        try:
            async with asyncio.timeout(PATIENCE):
                exchange = self._kept.pop(number, None) or await self._server.connect()
                exchange.send(
                    (HEADERS["POST"] % (len(body), "" if keep else CLOSE)).encode() + body
                )
                answer = await exchange.responses.get()
        except (OSError, TimeoutError):
            answer = b""
        if answer[9:12] not in (b"200", b"201"):
            self.failed += 1
        if keep:
            self._kept[number] = exchange
        else:
            exchange.close()
        self.seconds.append(time.monotonic() - began)

    async def live(self, seconds: float, keep: bool = False) -> None:
        """Let heartbeats begin evenly spread, as many as there are in so many seconds."""
        self.seconds.clear()
        count = len(self._bodies)
        began = time.monotonic()
        for number in range(int(seconds / self._interval * count)):
            late = time.monotonic() - began - number * self._interval / count
            if late < 0:
                await asyncio.sleep(0.005)
            task = asyncio.create_task(self.beat(number % count, keep))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        while self._tasks:
            await asyncio.wait(self._tasks)

    def told(self) -> str:
        """Return how long the heartbeats of `live` took."""
        ordered = sorted(self.seconds)
        p50, p99 = (ordered[int(len(ordered) * share)] * 1000 for share in (0.5, 0.99))
        return f"p50 {p50:.1f} ms, p99 {p99:.1f} ms, {self.failed} failed"


class Readers:
    """Long polls that begin anew when they are answered."""

    def __init__(self, server: Server, count: int) -> None:
        self.count = count
        self.answers: asyncio.Queue[float] = asyncio.Queue()  # when each came
        self._server = server
        self._tasks: list[asyncio.Task[None]] = []

    async def begin(self) -> None:
        exchanges = [await self._server.connect() for _ in range(self.count)]
        exchanges[0].send((HEADERS["GET"] % ("", "")).encode())
        listing = await exchanges[0].responses.get()
        for exchange in exchanges:
            self._tasks.append(asyncio.create_task(self._read(exchange, listing)))
        await asyncio.sleep(1.0)

    async def _read(self, exchange: Exchange, answer: bytes) -> None:
        while answer:
            start = answer.index(b'"epoch":"') + 9
            epoch = answer[start : answer.index(b'"', start)].decode()
            start = answer.index(b'"revision":') + 11
            revision = int(answer[start : answer.index(b",", start)])
            query = f"wait=60&epoch={epoch}&revision={revision}"
            exchange.send((HEADERS["GET"] % (query, "")).encode())
            answer = await exchange.responses.get()
            self.answers.put_nowait(time.monotonic())


async def measure(server: Server, given: argparse.Namespace) -> None:
    nodes = Nodes(server, given.nodes)
    readers = Readers(server, given.readers)
    rate = given.nodes / INTERVAL
    empty = server.memory()
    print(f"rpc_{given.backend}: {empty:.0f} MiB without nodes")

    with server.watched() as spent:
        for first in range(0, given.nodes, 100):
            last = min(first + 100, given.nodes)
            await asyncio.gather(*(nodes.beat(number, False) for number in range(first, last)))
        cpu, seconds = spent()
    print(
        f"{given.nodes} nodes come at once: {seconds:.1f} s, {cpu / given.nodes * 1e6:.0f} us of "
        f"CPU each; {server.memory():.0f} MiB"
    )

    async def live(what: str, keep: bool) -> None:
        with server.watched() as spent:
            await nodes.live(given.seconds, keep)
            cpu, seconds = spent()
        count = len(nodes.seconds)
        print(
            f"{what}: {count / seconds:.0f} a second (of {rate:.0f}), {cpu / count * 1e6:.0f} us "
            f"of CPU each, {cpu / seconds:.1%} of a core; {nodes.told()}; "
            f"{server.memory():.0f} MiB",
            flush=True,
        )

    await live("heartbeats, each over a new connection", False)
    before = server.memory()
    await readers.begin()
    each = (server.memory() - before) * 1024 / given.readers
    print(f"{given.readers} readers that wait: {each:.1f} KiB each; {server.memory():.0f} MiB")
    slowest: list[float] = []
    with server.watched() as spent:
        for weight in range(2, 12):
            began = time.monotonic()
            await nodes.beat(0, False, describe(0, weight))
            answers = [await readers.answers.get() for _ in range(given.readers)]
            slowest.append(max(answers) - began)
            await asyncio.sleep(0.3)
        cpu, _ = spent()
    print(
        f"a change that they wait for: the last one knows it after {sorted(slowest)[5] * 1000:.0f} "
        f"ms (median of 10), {cpu / 10 * 1000:.0f} ms of CPU",
        flush=True,
    )
    await live("heartbeats beside these readers", False)
    nodes.shrink(given.nodes // 2)  # which renew twice as often, so that connections are not idle
    await nodes.live(INTERVAL / 2, True)  # each opens its connection
    await live("heartbeats, each over a connection that is kept", True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backend", choices=("asyncio", "gevent", "blocking"), default="asyncio")
    parser.add_argument("--nodes", type=int, default=10_000)
    parser.add_argument("--readers", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=20.0)
    given = parser.parse_args()
    server = Server(given.backend)
    try:
        os.sched_setaffinity(0, CORES[-1:])
        print(f"load average before: {os.getloadavg()[0]:.2f}")
        asyncio.run(measure(server, given))
    finally:
        server.end()


if __name__ == "__main__":
    main()
