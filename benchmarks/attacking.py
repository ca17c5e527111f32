"""What the programs that attack share: victims, and connections written by hand.

Everything goes over sockets on 127.0.0.1, to processes that this one has started; each attack ends
when its time is over or the victim holds more than it is allowed to.
"""

import contextlib
import json
import os
import resource
import selectors
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Self

import msgspec

HERE = Path(__file__).parent
MIB = 1024 * 1024
TICKS = os.sysconf("SC_CLK_TCK")
CORES = sorted(os.sched_getaffinity(0))

REQUEST, RESPONSE, ERROR, CANCEL, PING, PONG, GOAWAY = range(1, 8)
IGNORABLE = 0x80
RAW, NAMED, ONE_WAY = 1, 2, 4
MAGIC = 0x52504350
PREFIX = struct.Struct(">BBHIQ")
encode = msgspec.msgpack.encode

OPTIONS = (
    json.dumps(
        {
            "magic": MAGIC,
            "version": 1,
            "codec": "msgpack",
            "limits": {"header": 16384, "body": 16 * MIB},
            "timeouts": {"ping": None},
        }
    ).encode()
    + b"\n"
)
ACCEPTED = (
    json.dumps(
        {
            "magic": MAGIC,
            "version": 1,
            "codec": "msgpack",
            "limits": {"header": 16384, "body": 16 * MIB, "calls": 100_000},
            "timeouts": {"ping": None},
        }
    ).encode()
    + b"\n"
)


def frame(
    kind: int, call_id: int = 0, header: bytes = b"", body: bytes = b"", flags: int = 0
) -> bytes:
    return PREFIX.pack(kind, flags, len(header), len(body), call_id) + header + body


def request(
    call_id: int, method: str, body: bytes = b"", flags: int = 0, metadata: Any = None
) -> bytes:
    header = [method] if metadata is None else [method, None, metadata]
    return frame(REQUEST, call_id, encode(header), body, flags)


def empty_lists(size: int) -> bytes:
    """A body of so many bytes: an array of empty arrays, each of which costs 56 bytes and more."""
    count = size - 5
    return struct.pack(">BI", 0xDD, count) + b"\x90" * count


def allow_descriptors(count: int) -> int:
    """Raise the limit of open files as far as it goes; how many there may be now."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < count:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(count, hard), hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


class Victim:
    """A process of victim.py. `memory` and `cpu` read what the kernel says of it.

    Its log is shown where the environment variable VICTIM_LOG is set.
    """

    def __init__(self, *arguments: str, core: int | None = None) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "victim.py"), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if os.environ.get("VICTIM_LOG") else subprocess.DEVNULL,
            preexec_fn=None if core is None else lambda: os.sched_setaffinity(0, {core}),
        )
        self.pid = self.process.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            with contextlib.suppress(OSError):
                pipe.close()

    def line(self) -> bytes:
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def tell(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(b"\n")
        self.process.stdin.flush()

    @property
    def is_alive(self) -> bool:
        return self.process.poll() is None

    def memory(self, field: str = "VmRSS") -> int:
        """Bytes that are resident, or with "VmHWM" the most that were since `reset_peak`."""
        try:
            with open(f"/proc/{self.pid}/status") as status:
                lines = status.readlines()
        except (FileNotFoundError, ProcessLookupError):  # it has ended
            return 0
        return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))

    def reset_peak(self) -> None:
        with open(f"/proc/{self.pid}/clear_refs", "w") as file:
            file.write("5")

    def cpu(self) -> float:
        """Seconds of a core that it has taken."""
        try:
            with open(f"/proc/{self.pid}/stat") as stat:
                fields = stat.read().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):  # it has ended
            return 0.0
        return (int(fields[11]) + int(fields[12])) / TICKS


class Server(Victim):
    """A server to attack, at `tcp` and, if it is asked for, `tls`: (host, port)."""

    def __init__(
        self,
        backend: str,
        settings: dict[str, Any] | None = None,
        nodes: int = 0,
        tls: bool = False,
        core: int | None = None,
    ) -> None:
        arguments = ["--settings", json.dumps(settings or {}), "--nodes", str(nodes)]
        super().__init__("serve", backend, *arguments, *(["--tls"] if tls else []), core=core)
        try:
            addresses = json.loads(self.line())
        except BaseException:
            self.__exit__()
            raise
        self.backend = backend
        self.nodes = nodes
        self.tcp = _where(addresses["tcp"])
        self.tls = _where(addresses["tls"]) if tls else self.tcp


Where = tuple[str, int]


def _where(address: str) -> Where:
    host, _, port = address.rpartition("//")[2].rpartition(":")
    return host, int(port)


class Peer:
    """A connection that sends what `source` yields; what comes back it drops, or does not read.

    Where peers are replaced it leaves when all is "sent", when the first bytes are "answered", or
    only when the other end closes: "never".
    """

    def __init__(
        self, where: Where, source: Iterable[bytes], reads: bool = True, leaves: str = "never"
    ) -> None:
        self.reads = reads
        self.leaves = leaves
        self._source = iter(source)
        self._data = memoryview(b"")
        self.sock = socket.socket()
        self.sock.setblocking(False)
        # Little of what is sent may wait in the kernel, or nobody knows what the other end has had.
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 64 * 1024)
        if not reads:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        with contextlib.suppress(BlockingIOError):
            self.sock.connect(where)

    def send(self) -> int | None:
        """Send as much as the kernel takes, up to 1 MiB; how much, or None behind the end."""
        if not self._data:
            for data in self._source:
                if data:
                    self._data = memoryview(data)
                    break
            else:
                return None
        try:
            count = self.sock.send(self._data[:MIB])
        except BlockingIOError:
            return 0
        self._data = self._data[count:]
        return count


class Drive:
    """Lets peers send and read until the time is over, `stop()` is true, or nothing happens.

    With `renew` a peer that was disconnected, or leaves, is replaced.
    """

    def __init__(self, peers: Iterable[Peer] = (), renew: Callable[[], Peer] | None = None) -> None:
        self.sent = 0  # bytes
        self.ended = 0  # connections
        self._renew = renew
        self._selector = selectors.DefaultSelector()
        self._scratch = bytearray(256 * 1024)
        self.peers: set[Peer] = set()
        for peer in peers:
            self.add(peer)

    def run(self, seconds: float, stop: Callable[[], bool] = lambda: False) -> None:
        until = time.monotonic() + seconds
        look_at = 0.0
        while (now := time.monotonic()) < until:
            if now >= look_at:
                if stop():
                    return
                look_at = now + 0.02
            for key, ready in self._selector.select(min(0.02, until - now)):
                self._serve(key.data, ready, key.events)

    def close(self) -> None:
        for peer in self.peers:
            peer.sock.close()
        self.peers.clear()
        self._selector.close()

    def add(self, peer: Peer) -> None:
        self.peers.add(peer)
        events = selectors.EVENT_WRITE | (selectors.EVENT_READ if peer.reads else 0)
        self._selector.register(peer.sock, events, peer)

    def _serve(self, peer: Peer, ready: int, events: int) -> None:
        try:
            if ready & selectors.EVENT_READ and (
                not peer.sock.recv_into(self._scratch) or peer.leaves == "answered"
            ):
                raise ConnectionResetError
            if ready & selectors.EVENT_WRITE:
                count = peer.send()
                if count is not None:
                    self.sent += count
                elif peer.leaves == "sent":
                    raise ConnectionAbortedError
                elif peer.reads:
                    self._selector.modify(peer.sock, selectors.EVENT_READ, peer)
                else:
                    self._selector.unregister(peer.sock)
        except BlockingIOError:
            pass
        except OSError:
            self._selector.unregister(peer.sock)
            self.peers.discard(peer)
            peer.sock.close()
            self.ended += 1
            if self._renew is not None:
                self.add(self._renew())


def table(rows: list[list[str]]) -> str:
    """The rows, the first of which is the head, in Markdown."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    rows = [rows[0], ["-" * width for width in widths], *rows[1:]]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in rows
    )
