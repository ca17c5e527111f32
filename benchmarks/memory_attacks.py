"""Measure the memory that a peer can make a server or a client hold.

python benchmarks/memory_attacks.py [--backend asyncio] [--attack TEXT] [--most 2048] [--scale 1.0]

A table: attack, backend, the bound that the README's formula gives, and the most that was resident
at a time, above what the idle process holds. An attack ends after ten seconds, when nothing happens
any more, or when the victim holds more than `--most` MiB, shown as ">".
"""

import argparse
import contextlib
import itertools
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from attacking import (
    ACCEPTED,
    CANCEL,
    ERROR,
    GOAWAY,
    IGNORABLE,
    MIB,
    ONE_WAY,
    OPTIONS,
    PREFIX,
    RAW,
    REQUEST,
    RESPONSE,
    Drive,
    Peer,
    Server,
    Victim,
    allow_descriptors,
    empty_lists,
    encode,
    frame,
    request,
    table,
)
from victim import BACKENDS

from rpc_proto import ServerConfig

SECONDS = 10.0  # that an attack takes at most
LARGEST = 16 * MIB
QUIET = 0.6  # seconds in which neither side does anything, after which it is over


# Bytes of a connection, by docs/limits.md: without TLS, and with it.
CONNECTION = {"asyncio": 24 * 1024, "gevent": 24 * 1024, "blocking": 64 * 1024}
TLS = 24 * 1024
CALLS = 4 * 1024 * (1000 + 10_000)


def bound(backend: str, connections: int, tls: bool = False) -> int:
    """Bytes that a server of default settings may hold above the idle one, by the formula."""
    of_connection = CONNECTION[backend] + (TLS if tls else 0)
    return 2 * ServerConfig().budget + of_connection * connections + CALLS


# Attacks on a server: each returns the peers, given the server and a scale from 0 to 1.

Attack = Callable[[Server, float], Iterable[Peer]]


def raw_bodies(server: Server, scale: float) -> Iterable[Peer]:
    body = bytes(LARGEST)
    calls = (request(n, "Work.wait", body, RAW) for n in range(1, 1 + int(1024 * scale)))
    yield Peer(server.tcp, itertools.chain([OPTIONS], calls))


def growing_bodies(server: Server, scale: float) -> Iterable[Peer]:
    body = empty_lists(max(MIB, int(LARGEST * scale)))
    calls = (request(n, "Work.wait", body) for n in range(1, 1 + int(64 * scale)))
    yield Peer(server.tcp, itertools.chain([OPTIONS], calls))


def growing_bodies_for_nobody(server: Server, scale: float) -> Iterable[Peer]:
    body = empty_lists(max(MIB, int(LARGEST * scale)))
    calls = (request(n, "rpc.Health.check", body) for n in range(1, 1 + int(16 * scale)))
    yield Peer(server.tcp, itertools.chain([OPTIONS], calls))


def half_bodies(server: Server, scale: float) -> Iterable[Peer]:
    part = request(1, "Work.wait", bytes(LARGEST), RAW)[: LARGEST // 2]
    for _ in range(int(5000 * scale)):
        yield Peer(server.tcp, [OPTIONS, part])


def bodies_that_stop(server: Server, scale: float) -> Iterable[Peer]:
    part = request(1, "Work.wait", bytes(LARGEST), RAW)[:-1]
    for _ in range(int(100 * scale)):
        yield Peer(server.tcp, [OPTIONS, part])


def results_unread(server: Server, scale: float) -> Iterable[Peer]:
    size = encode([2_000_000])
    calls = [request(n, "Work.large", size) for n in range(1, 1 + int(1024 * scale))]
    yield Peer(server.tcp, [OPTIONS, b"".join(calls)], reads=False)


def results_unread_by_many(server: Server, scale: float) -> Iterable[Peer]:
    size = encode([2_000_000])
    calls = b"".join(request(n, "Work.large", size) for n in range(1, 17))
    for _ in range(int(512 * scale)):
        yield Peer(server.tcp, [OPTIONS, calls], reads=False)


def one_way_bodies(server: Server, scale: float) -> Iterable[Peer]:
    body = bytes(LARGEST)
    calls = (request(n, "Work.wait", body, RAW | ONE_WAY) for n in range(1, 1 + int(2048 * scale)))
    yield Peer(server.tcp, itertools.chain([OPTIONS], calls))


def cancelled_while_busy(server: Server, scale: float) -> Iterable[Peer]:
    waiting = b"".join(request(n, "Work.occupy") for n in range(1, 17))
    yield Peer(server.tcp, [OPTIONS, waiting])
    yield Peer(server.tcp, [OPTIONS, waiting])  # a connection alone may not take all threads
    body = bytes(LARGEST)

    def calls() -> Iterator[bytes]:
        for n in range(1, 1 + int(512 * scale)):
            yield request(n, "Work.occupy", body, RAW)
            yield frame(CANCEL, n)

    yield Peer(server.tcp, itertools.chain([OPTIONS], calls()))


def refused_bodies(server: Server, scale: float) -> Iterable[Peer]:
    body = bytes(LARGEST)
    calls = (request(n, "No.method", body) for n in range(1, 1 + int(512 * scale)))
    yield Peer(server.tcp, itertools.chain([OPTIONS], calls))


def metadata(server: Server, scale: float) -> Iterable[Peer]:
    entries = {f"key-{n}": "x" * 240 for n in range(63)}
    for _ in range(2):
        calls = []
        for n in range(1, 1 + int(1024 * scale)):
            entries["call"] = str(n)  # else the header comes from the cache
            calls.append(request(n, "Work.wait", metadata=entries))
        yield Peer(server.tcp, itertools.chain([OPTIONS], calls))


def tls_never_begun(server: Server, scale: float) -> Iterable[Peer]:
    for _ in range(int(3000 * scale)):
        yield Peer(server.tls, [])


def http_bodies(server: Server, scale: float) -> Iterable[Peer]:
    size = MIB
    head = (
        "POST /registry/nodes HTTP/1.1\r\nHost: localhost\r\n"
        f"Content-Type: application/json\r\nContent-Length: {size}\r\n\r\n"
    )
    data = head.encode() + b" " * (size - 1)
    for _ in range(int(1000 * scale)):
        yield Peer(server.tcp, [data])


def pages_unread(server: Server, scale: float) -> Iterable[Peer]:
    gets = b"GET /registry/nodes HTTP/1.1\r\nHost: localhost\r\n\r\n" * 500
    for _ in range(int(200 * scale)):
        yield Peer(server.tcp, [gets], reads=False)


def long_polls(server: Server, scale: float) -> Iterable[Peer]:
    target = b"/registry/nodes?wait=60&revision=%d" % server.nodes
    get = b"GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n" % target
    for _ in range(int(3000 * scale)):
        yield Peer(server.tcp, [get])


NODES = 10_000


class Kind(NamedTuple):
    attack: Attack
    connections: int
    nodes: int = 0
    tls: bool = False


SERVER_ATTACKS: dict[str, Kind] = {
    "1,024 calls of 16 MiB RAW": Kind(raw_bodies, 1),
    "64 calls of 16 MiB of empty lists": Kind(growing_bodies, 1),
    "16 calls of 16 MiB of empty lists to rpc.Health": Kind(growing_bodies_for_nobody, 1),
    "5,000 connections with half a body of 16 MiB": Kind(half_bodies, 5000),
    "100 bodies of 16 MiB that stop before their end": Kind(bodies_that_stop, 100),
    "1,024 results of 2 MB, not read": Kind(results_unread, 1),
    "512 connections, 16 results of 2 MB each, not read": Kind(results_unread_by_many, 512),
    "2,048 one-way calls of 16 MiB": Kind(one_way_bodies, 1),
    "512 calls of 16 MiB, cancelled while the threads are busy": Kind(cancelled_while_busy, 3),
    "512 calls of 16 MiB of an unknown method": Kind(refused_bodies, 1),
    "2,048 calls with 16 KB of metadata": Kind(metadata, 2),
    "3,000 TLS handshakes never begun": Kind(tls_never_begun, 3000, tls=True),
    "1,000 POST bodies of 1 MiB that stop before their end": Kind(http_bodies, 1000, nodes=1),
    "200 times 500 GETs of a large listing, not read": Kind(pages_unread, 200, nodes=NODES),
    "3,000 long polls": Kind(long_polls, 3000, nodes=NODES),
}


class Outcome(NamedTuple):
    """Bytes above the idle process: `held` when it ended, `left` when the peers had gone."""

    peak: int
    held: int
    left: int
    sent: int
    stopped: bool  # since it held more than it may
    alive: bool


class Watch:
    """Says when an attack is over: see `is_over`."""

    def __init__(self, victim: Victim, most: int, seconds: float) -> None:
        self._quiet = min(QUIET, seconds / 5)
        self._victim = victim
        self._most = most
        self._moved_at = time.monotonic()
        self._cpu = victim.cpu()
        self._sent = 0
        self.exceeded = False

    def is_over(self, sent: int) -> bool:
        victim = self._victim
        if not victim.is_alive or victim.memory() > self._most:
            self.exceeded = victim.is_alive
            return True
        now = time.monotonic()
        cpu = victim.cpu()
        # Handlers that look each 20 ms whether they are wanted take their time, too.
        if sent != self._sent or cpu - self._cpu > 0.1 * max(self._quiet, now - self._moved_at):
            self._moved_at, self._cpu, self._sent = now, cpu, sent
        return now - self._moved_at > self._quiet


def greet(server: Server) -> None:
    """A call or two, so that what a server makes at its first one counts as idle."""
    with socket.create_connection(server.tcp) as sock:
        sock.sendall(OPTIONS + request(1, "Work.small", encode([1])))
        sock.settimeout(30.0)
        data = b""
        while len(data.partition(b"\n")[2]) <= PREFIX.size:
            part = sock.recv(4096)
            if not part:
                raise ConnectionError("the server closed the connection of a well-behaved peer")
            data += part


def attack_server(
    server: Server, kind: Kind, scale: float, most: int, seconds: float = SECONDS
) -> Outcome:
    greet(server)
    time.sleep(seconds / 20)
    idle = server.memory()
    server.reset_peak()
    drive = Drive()
    watch = Watch(server, idle + most, seconds)
    try:
        # While connections are made, those that are there go on.
        for number, peer in enumerate(kind.attack(server, scale)):
            drive.add(peer)
            if number % 50 == 49:
                drive.run(0.01)
                if server.memory() > idle + most:
                    break
        drive.run(seconds, lambda: watch.is_over(drive.sent))
        held = server.memory() - idle
        peak = server.memory("VmHWM") - idle
    finally:
        drive.close()
    time.sleep(seconds / 20)
    left = server.memory() - idle
    return Outcome(peak, held, left, drive.sent, watch.exceeded, server.is_alive)


# A hostile server: each attack plays it, given the connection behind its handshake.


def _requests(sock: socket.socket, count: int) -> Iterator[int]:
    """The ids of so many calls as they arrive."""
    stream = sock.makefile("rb")
    for _ in range(count):
        prefix = stream.read(PREFIX.size)
        if len(prefix) < PREFIX.size:
            return
        kind, _, header, body, call_id = PREFIX.unpack(prefix)
        stream.read(header + body)
        if kind == REQUEST:
            yield call_id


def growing_results(sock: socket.socket) -> None:
    body = empty_lists(LARGEST)
    for call_id in _requests(sock, 8):
        sock.sendall(frame(RESPONSE, call_id, b"", body))


def growing_details(sock: socket.socket) -> None:
    fields = b"\x93" + encode("internal") + encode("it failed")
    body = fields + empty_lists(LARGEST - len(fields))
    for call_id in _requests(sock, 8):
        sock.sendall(frame(ERROR, call_id, b"", body))


def long_texts(sock: socket.socket) -> None:
    body = encode(["internal", "x" * (LARGEST - 100), None])
    for call_id in _requests(sock, 256):
        sock.sendall(frame(ERROR, call_id, b"", body))


def long_goaway(sock: socket.socket) -> None:
    for _ in _requests(sock, 1):
        body = encode(["unavailable", "x" * (LARGEST - 100)])
        sock.sendall(frame(GOAWAY, 0, b"", body))


def flood_of_answers(sock: socket.socket) -> None:
    body = bytes(LARGEST)
    ids = list(_requests(sock, 8))
    for call_id in itertools.islice(itertools.cycle(ids), 128):
        sock.sendall(frame(RESPONSE, call_id, b"", body, RAW))


def flood_of_ignorable_frames(sock: socket.socket) -> None:
    body = bytes(LARGEST)
    for _ in range(128):
        sock.sendall(frame(IGNORABLE, 0, b"", body))


def large_results(sock: socket.socket) -> None:
    body = bytes(LARGEST)
    for call_id in _requests(sock, 256):
        sock.sendall(frame(RESPONSE, call_id, b"", body, RAW))


def never_reads(sock: socket.socket) -> None:
    time.sleep(SECONDS)


class HostileKind(NamedTuple):
    play: Callable[[socket.socket], None]
    calls: str  # of victim.CALLS


CLIENT_ATTACKS: dict[str, HostileKind] = {
    "client: 8 results of 16 MiB of empty lists": HostileKind(growing_results, "few"),
    "client: 8 errors with details of 16 MiB of empty lists": HostileKind(growing_details, "few"),
    "client: 256 errors with a message of 16 MiB": HostileKind(long_texts, "many"),
    "client: GOAWAY with a text of 16 MiB, 256 calls": HostileKind(long_goaway, "many"),
    "client: 128 answers of 16 MiB to calls that ended": HostileKind(flood_of_answers, "few"),
    "client: 128 ignorable frames of 16 MiB": HostileKind(flood_of_ignorable_frames, "few"),
    "client: 10,000 calls of 100 KB to a server that does not read": HostileKind(
        never_reads, "large"
    ),
}


def attack_client(backend: str, kind: HostileKind, most: int, seconds: float = SECONDS) -> Outcome:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        host, port = listener.getsockname()
        listener.settimeout(10.0)
        with Victim("call", backend, f"tcp://{host}:{port}", kind.calls) as client:
            client.line()
            sock, _ = listener.accept()
            with sock:
                sock.sendall(ACCEPTED)
                line = b""
                while not line.endswith(b"\n"):
                    line += sock.recv(1)
                time.sleep(0.3)
                idle = client.memory()
                client.reset_peak()
                client.tell()
                played = threading.Thread(target=_play, args=(kind.play, sock), daemon=True)
                played.start()
                watch = Watch(client, idle + most, seconds)
                until = time.monotonic() + seconds
                while time.monotonic() < until and not watch.is_over(0):
                    time.sleep(0.02)
                alive = client.is_alive
                held, peak = client.memory() - idle, client.memory("VmHWM") - idle
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)  # wakes the thread
            played.join(5.0)
            return Outcome(peak, held, held, 0, watch.exceeded, alive)


def _play(play: Callable[[socket.socket], None], sock: socket.socket) -> None:
    with contextlib.suppress(OSError, ValueError):
        play(sock)


def mib(size: float | None) -> str:
    return "-" if size is None else f"{size / MIB:,.0f}"


def measure(names: Iterable[str], backends: Iterable[str], scale: float, most: int) -> str:
    rows = [["attack", "backend", "bound by formula", "peak", "when it ended", "when peers left"]]
    for name in names:
        for backend in backends:
            limit: int | None = None
            if name in SERVER_ATTACKS:
                kind = SERVER_ATTACKS[name]
                limit = bound(backend, kind.connections, kind.tls)
                with Server(backend, {}, kind.nodes, kind.tls) as server:
                    outcome = attack_server(server, kind, scale, most)
            else:
                outcome = attack_client(backend, CLIENT_ATTACKS[name], most)
            peak = ("> " if outcome.stopped else "") + mib(outcome.peak)
            if not outcome.alive:
                peak += " (dead)"
            rows.append([name, backend, mib(limit), peak, mib(outcome.held), mib(outcome.left)])
            print(rows[-1], f"{outcome.sent / MIB:.0f} MiB sent", file=sys.stderr, flush=True)
    return table(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backend", action="append", choices=BACKENDS)
    parser.add_argument("--attack", default="", help="only those with this in their names")
    parser.add_argument("--most", type=int, default=2048, help="MiB that a victim may hold")
    parser.add_argument(
        "--scale", type=float, default=1.0, help="of the numbers, and of bodies that grow"
    )
    given = parser.parse_args()
    files = allow_descriptors(16_384)
    scale = min(given.scale, (files - 100) / 5000)
    if scale < given.scale:
        print(f"{files} open files are allowed here, so all is {scale:.2f} times as large")
    names = [name for name in (*SERVER_ATTACKS, *CLIENT_ATTACKS) if given.attack in name]
    backends = given.backend or BACKENDS
    print("MiB above the idle process\n")
    print(measure(names, backends, scale, given.most * MIB))


if __name__ == "__main__":
    main()
