"""Measure how long a well-behaved peer waits while another one does its worst.

python benchmarks/fairness.py [--backend asyncio] [--input TEXT] [--seconds 3] [--rounds 3]

A table: input, backend, CPU seconds of the server for each MB sent, and the 99th percentile of a
small call that a neighbour makes each 5 ms: while nothing else happens, and beside the input. The
server has one core, the neighbour and the attacker the other, where the neighbour goes first. Each
figure is the median of the rounds. The last two columns say for the same calls how much CPU time
the server spent from the request to the answer, on whatever: these hold with other work on the
machine, too.
"""

import argparse
import contextlib
import itertools
import json
import math
import os
import selectors
import socket
import ssl
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from attacking import (
    CANCEL,
    CORES,
    HERE,
    IGNORABLE,
    MIB,
    ONE_WAY,
    OPTIONS,
    PING,
    PREFIX,
    Drive,
    Peer,
    Server,
    allow_descriptors,
    empty_lists,
    encode,
    frame,
    request,
    table,
)
from victim import BACKENDS

INTERVAL = 0.005  # seconds between the neighbour's calls
PATIENCE = 10.0  # seconds for the last answers
NODES = 10_000

# Inputs: each returns one connection's peer; when that is disconnected or leaves, the next.

Input = Callable[[Server], Callable[[], Peer]]


def _endless(chunk: bytes) -> Input:
    """The same frames over and over."""
    return lambda server: (
        lambda: Peer(server.tcp, itertools.chain([OPTIONS], itertools.repeat(chunk)))
    )


def _numbered(make: Callable[[int], bytes], size: int = MIB) -> Callable[[], Iterator[bytes]]:
    """Frames with ids of their own, joined to chunks; the ids begin again with each chunk."""
    count = max(2, size // len(make(1)))
    chunk = b"".join(map(make, range(1, 1 + count)))
    return lambda: itertools.chain([OPTIONS], itertools.repeat(chunk))


def _calls(make: Callable[[int], bytes], size: int = MIB) -> Input:
    source = _numbered(make, size)
    return lambda server: lambda: Peer(server.tcp, source())


def _over_limit(server: Server) -> Callable[[], Peer]:
    waiting = b"".join(request(n, "Work.wait") for n in range(1, 1025))
    more = b"".join(request(n, "Work.wait") for n in range(1025, 3000))
    return lambda: Peer(server.tcp, [OPTIONS, waiting, more])


def _once(data: bytes, leaves: str = "answered") -> Input:
    return lambda server: lambda: Peer(server.tcp, [data], leaves=leaves)


def _pipelined(target: str) -> Input:
    gets = f"GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode() * 1000
    return lambda server: lambda: Peer(server.tcp, itertools.repeat(gets))


def _tls(server: Server) -> Callable[[], Peer]:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(incoming, outgoing).do_handshake()
    hello = outgoing.read()
    return lambda: Peer(server.tls, [hello], leaves="answered")


def _metadata() -> Input:
    """Headers that no cache has seen: 16 KB of metadata, another one each time."""
    entries = {f"{n:x}": "" for n in range(100, 2400)}

    def make(number: int) -> bytes:
        entries["call"] = f"{number:06}"
        return request(number, "Work.nothing", metadata=entries, flags=ONE_WAY)

    assert len(make(1)) < 16_384
    return _calls(make, 4 * MIB)


class Kind(NamedTuple):
    input: Input
    nodes: int = 0
    tls: bool = False


INPUTS: dict[str, Callable[[], Kind]] = {
    "one-way calls of a quick method": lambda: Kind(
        _calls(lambda n: request(n, "Work.nothing", flags=ONE_WAY))
    ),
    "one-way calls": lambda: Kind(
        _calls(lambda n: request(n, "Work.small", encode([1]), flags=ONE_WAY))
    ),
    "calls of a quick method": lambda: Kind(_calls(lambda n: request(n, "Work.nothing"))),
    "ignorable frames": lambda: Kind(_endless(frame(IGNORABLE) * 65_536)),
    "pings": lambda: Kind(_endless(frame(PING) * 65_536)),
    "cancels of unknown ids": lambda: Kind(_calls(lambda n: frame(CANCEL, n))),
    "calls, each cancelled": lambda: Kind(
        _calls(lambda n: request(n, "Work.wait") + frame(CANCEL, n))
    ),
    "unknown methods": lambda: Kind(_calls(lambda n: request(n, "No.method"))),
    "calls over max_calls": lambda: Kind(_over_limit),
    "undecodable bodies": lambda: Kind(_calls(lambda n: request(n, "Work.small", b"\xc1"))),
    "wrong number of arguments, 16 MiB": lambda: Kind(
        _calls(lambda n: request(n, "Work.small", empty_lists(16 * MIB)), MIB)
    ),
    "bodies of 16 MiB of empty lists": lambda: Kind(
        _calls(lambda n: request(n, "Work.take", empty_lists(16 * MIB)), MIB)
    ),
    "bodies of 1 MiB of empty lists": lambda: Kind(
        _calls(lambda n: request(n, "Work.take", empty_lists(MIB)), MIB)
    ),
    "list[int] of 1 MiB": lambda: Kind(
        _calls(lambda n: request(n, "Work.numbers", encode([[1] * MIB])), MIB)
    ),
    "16 KB of metadata": lambda: Kind(_metadata()),
    "handshakes refused": lambda: Kind(
        _once(OPTIONS.replace(b'"version": 1', b'"version": 9'), leaves="never")
    ),
    "handshakes, then closed": lambda: Kind(_once(OPTIONS)),
    "connections opened and closed": lambda: Kind(_once(b"", leaves="sent")),
    "CONNECT, then closed": lambda: Kind(
        _once(b"CONNECT localhost:1 HTTP/1.1\r\nHost: localhost\r\n\r\n")
    ),
    "TLS handshakes begun": lambda: Kind(_tls, tls=True),
    "GET /healthz": lambda: Kind(_pipelined("/healthz")),
    "GET /metrics": lambda: Kind(_pipelined("/metrics")),
    "GET /debug/rpc": lambda: Kind(_pipelined("/debug/rpc")),
    "GET of a path that is not there": lambda: Kind(_pipelined("/nothing")),
    "GET /registry, 10,000 nodes": lambda: Kind(_pipelined("/registry"), nodes=NODES),
    "GET /registry/nodes, 10,000 nodes": lambda: Kind(_pipelined("/registry/nodes"), nodes=NODES),
}


# The neighbour: a process that makes one small call each 5 ms, whatever became of the last.


class Waits(NamedTuple):
    """The 99th percentile of the neighbour's calls, in seconds: by the clock and of CPU time."""

    wall: float
    cpu: float


class Neighbour:
    def __init__(self, server: Server) -> None:
        host, port = server.tcp
        self._process = subprocess.Popen(
            [
                *(sys.executable, str(HERE / "fairness.py")),
                *("--neighbour", f"{host}:{port}:{server.pid}"),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def begin(self, seconds: float) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{seconds}\n".encode())
        self._process.stdin.flush()

    def end(self) -> "Waits":
        assert self._process.stdout is not None
        return Waits(*json.loads(self._process.stdout.readline()))

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def be_neighbour(where: str) -> None:
    host, port, pid = where.split(":")
    clock = (~int(pid) << 3) | 2  # of the CPU time of that process: see clock_getcpuclockid(3)
    sock = socket.create_connection((host, int(port)))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.sendall(OPTIONS)
    while sock.recv(1) != b"\n":
        pass
    sock.setblocking(False)
    selector = selectors.DefaultSelector()
    selector.register(sock, selectors.EVENT_READ)
    ids = itertools.count(1)
    data = b""
    for line in sys.stdin:
        begun: dict[int, tuple[float, float]] = {}
        waits: list[tuple[float, float]] = []
        start = time.monotonic()
        until = start + float(line)
        due = start
        while (now := time.monotonic()) < until or (begun and now < until + PATIENCE):
            if now >= due and now < until:
                call_id = next(ids)
                sock.send(request(call_id, "Work.small", encode([call_id])))
                begun[call_id] = now, time.clock_gettime(clock)
                due = max(due + INTERVAL, now)
            if not selector.select(max(0.0, (due if now < until else until + PATIENCE) - now)):
                continue
            data += sock.recv(65536)
            now, cpu = time.monotonic(), time.clock_gettime(clock)
            while len(data) >= PREFIX.size:
                _, _, header, body, call_id = PREFIX.unpack_from(data)
                size = PREFIX.size + header + body
                if len(data) < size:
                    break
                data = data[size:]
                if call_id in begun:
                    at, spent = begun.pop(call_id)
                    waits.append((now - at, cpu - spent))
        now, cpu = time.monotonic(), time.clock_gettime(clock)
        waits += [(now - at, cpu - spent) for at, spent in begun.values()]
        print(
            json.dumps([percentile(list(kind), 0.99) for kind in zip(*waits, strict=True)]),
            flush=True,
        )


class Figures(NamedTuple):
    """Seconds; `cost` is seconds of CPU for each million bytes sent."""

    cost: float
    quiet: float
    beside: float
    quiet_cpu: float
    beside_cpu: float


def pin(core: int) -> None:
    """Let the neighbour go first on the core that it shares with the attacker, if that is allowed.

    Server and attacker know nothing of it.
    """
    os.sched_setaffinity(0, {core})
    with contextlib.suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))


def measure_one(backend: str, kind: Kind, seconds: float, peers: int) -> Figures:
    with Server(backend, {}, kind.nodes, kind.tls, core=CORES[0]) as server:
        neighbour = Neighbour(server)
        try:
            neighbour.begin(0.3)  # warm
            neighbour.end()
            neighbour.begin(min(seconds, 1.0))
            quiet = neighbour.end()
            make = kind.input(server)
            drive = Drive((make() for _ in range(peers)), renew=make)
            try:
                drive.run(0.2)
                cpu, sent = server.cpu(), drive.sent
                neighbour.begin(seconds)
                drive.run(seconds)
                cpu, sent = server.cpu() - cpu, drive.sent - sent
            finally:
                drive.close()
            beside = neighbour.end()
        finally:
            neighbour.close()
        cost = cpu / sent * 1e6 if sent else math.nan
        return Figures(cost, quiet.wall, beside.wall, quiet.cpu, beside.cpu)


def measure(names: list[str], backends: list[str], seconds: float, rounds: int, peers: int) -> str:
    rows = [["input", "backend", "CPU s/MB", "p99 quiet, ms", "beside, ms", "ratio"]]
    rows[0] += ["CPU quiet, ms", "CPU beside, ms"]
    for name in names:
        kind = INPUTS[name]()
        for backend in backends:
            taken = [measure_one(backend, kind, seconds, peers) for _ in range(rounds)]
            figures = Figures(*(statistics.median(column) for column in zip(*taken, strict=True)))
            ratio = f"{figures.beside / figures.quiet:.0f}"
            milliseconds = [f"{1e3 * seconds:.1f}" for seconds in figures[1:]]
            cells = [f"{figures.cost:.3f}", *milliseconds[:2], ratio, *milliseconds[2:]]
            rows.append([name, backend, *cells])
            print(rows[-1], file=sys.stderr, flush=True)
    return table(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backend", action="append", choices=BACKENDS)
    parser.add_argument("--input", default="", help="only those with this in their names")
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peers", type=int, default=8, help="connections of the attacker")
    parser.add_argument("--neighbour", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.neighbour:
        pin(CORES[-1])
        be_neighbour(given.neighbour)
        return
    os.sched_setaffinity(0, {CORES[-1]})
    allow_descriptors(4096)
    names = [name for name in INPUTS if given.input in name]
    backends = given.backend or list(BACKENDS)
    print(measure(names, backends, given.seconds, given.rounds, given.peers))


if __name__ == "__main__":
    main()
