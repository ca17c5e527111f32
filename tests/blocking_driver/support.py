"""What the tests share: servers and clients as context managers, and peers that speak by hand."""

import contextlib
import json
import os
import select
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

from rpc_blocking import Client, Server
from rpc_proto import current_call
from support.by_hand import PREFIX, Frame, accept_line, option_line

ANY_PORT = "tcp://127.0.0.1:0"
ROOT = Path(__file__).parents[2]

# No test waits longer for anything, in seconds.
LONGEST = 20.0


class Echo:
    def echo(self, value: Any = None) -> Any:
        return value


class Gate:
    """A service whose handler tells when it starts and when it is cancelled, and waits between."""

    def __init__(self) -> None:
        self.started = threading.Semaphore(0)
        self.cancelled = threading.Semaphore(0)
        self.ended = threading.Semaphore(0)
        self._lock = threading.Lock()
        self._is_open = False
        self._waiting: list[threading.Event] = []

    def open_(self) -> None:
        with self._lock:
            self._is_open = True
            for woken in self._waiting:
                woken.set()

    def wait(self, value: Any = "through") -> Any:
        call = current_call()
        woken = self._get_woken()
        call.on_cancel(woken.set)
        self.started.release()
        woken.wait(LONGEST)
        if call.cancelled:
            self.cancelled.release()
        self.ended.release()
        call.raise_if_cancelled()
        return value

    def stubborn(self) -> str:
        """Go on in spite of being cancelled."""
        woken = self._get_woken()
        current_call().on_cancel(self.cancelled.release)
        self.started.release()
        woken.wait(LONGEST)
        self.ended.release()
        return "too late"

    def _get_woken(self) -> threading.Event:
        woken = threading.Event()
        with self._lock:
            self._waiting.append(woken)
            if self._is_open:
                woken.set()
        return woken


def took(semaphore: threading.Semaphore, count: int = 1) -> None:
    """Wait until something has happened so often."""
    for _ in range(count):
        assert semaphore.acquire(timeout=LONGEST)


def until(condition: Callable[[], Any]) -> None:
    """Wait for what no event tells."""
    deadline = time.monotonic() + LONGEST
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.002)


class Running:
    """A function in a thread of its own, and its outcome."""

    def __init__(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> None:
        self._outcome: Any = None
        self._error: BaseException | None = None

        def run() -> None:
            try:
                self._outcome = function(*arguments, **options)
            except BaseException as error:
                self._error = error

        self.thread = threading.Thread(target=run, daemon=True)
        self.thread.start()

    def result(self) -> Any:
        self.thread.join(LONGEST)
        assert not self.thread.is_alive(), "the thread hangs"
        if self._error is not None:
            try:
                raise self._error
            finally:
                self._error = None
        return self._outcome

    def error(self) -> BaseException | None:
        self.thread.join(LONGEST)
        assert not self.thread.is_alive(), "the thread hangs"
        return self._error


@contextlib.contextmanager
def serving(
    *services: Any, address: str = ANY_PORT, ssl: Any = None, grace: float = 0.0, **options: Any
) -> Iterator[tuple[Server, str]]:
    """Give a server that offers the services, and its address."""
    server = Server(**options)
    for service in services:
        server.register(service)
    real = server.start(address, ssl=ssl)
    try:
        yield server, real
    finally:
        for service in services:
            if isinstance(service, Gate):
                service.open_()
        server.stop(grace)


@contextlib.contextmanager
def pair(*services: Any, **options: Any) -> Iterator[tuple[Server, Client]]:
    """Give a server that offers the services, and a client of it."""
    with serving(*services, **options) as (server, address), Client.connect(address) as client:
        yield server, client


def idle(server: Server) -> bool:
    stats = server.stats
    return not (stats["running"] or stats["queued"] or stats["abandoned"])


def in_bytes(server: Server) -> int:
    """Count the bytes that a server holds for its peers."""
    return sum(
        len(link.channel.unsent) + link.connection.outbound
        for link in list(server.links)
        if link.connection is not None
    )


def run_python(source: str, *arguments: str, timeout: float = LONGEST) -> str:
    """Run Python in a process of its own, with the packages in place; return what it printed."""
    paths = [ROOT, ROOT / "backends", ROOT / "tests"]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", source, *arguments],
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


class Wire:
    """One end of a connection whose frames are written and read by hand."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        sock.settimeout(LONGEST)
        self._file = sock.makefile("rb")

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def line(self) -> Any:
        return json.loads(self._file.readline())

    def receive(self) -> Frame | None:
        """Return the next frame, or None when the peer sends nothing more."""
        prefix = self._file.read(PREFIX.size)
        if not prefix:
            return None
        kind, flags, header, body, call_id = PREFIX.unpack(prefix)
        return Frame(kind, flags, call_id, self._file.read(header), self._file.read(body))

    def receive_all(self) -> list[Frame]:
        """Return the frames up to the end of the connection."""
        frames = []
        with contextlib.suppress(ConnectionResetError):
            while (received := self.receive()) is not None:
                frames.append(received)
        return frames

    def half_close(self) -> None:
        self.socket.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """End the connection with a reset instead of an orderly close."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    def close(self) -> None:
        self._file.close()
        self.socket.close()


def port_of(address: str) -> int:
    return int(address.rpartition(":")[2])


@contextlib.contextmanager
def dialled(address: str) -> Iterator[Wire]:
    """Give a client by hand that has not said anything yet."""
    wire = Wire(socket.create_connection(("127.0.0.1", port_of(address)), LONGEST))
    try:
        yield wire
    finally:
        wire.close()


@contextlib.contextmanager
def accepted(address: str, **fields: Any) -> Iterator[Wire]:
    """Give a client by hand whose options the server has accepted."""
    with dialled(address) as wire:
        wire.send(option_line(**fields))
        assert "error" not in wire.line()
        yield wire


class Script:
    """A server by hand: `talk` is its end of each connection, in a thread."""

    def __init__(self, talk: Callable[[Wire], None]) -> None:
        self._talk = talk
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"
        self._wires: list[Wire] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._threads[0].join(LONGEST)
        self._listener.close()
        for wire in self._wires:
            with contextlib.suppress(OSError):
                wire.socket.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(LONGEST)
            assert not thread.is_alive()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                wire = Wire(self._listener.accept()[0])
                self._wires.append(wire)
                thread = threading.Thread(target=self._serve, args=(wire,), daemon=True)
                self._threads.append(thread)
                thread.start()

    def _serve(self, wire: Wire) -> None:
        try:
            self._talk(wire)
        except (OSError, ValueError):  # the test is over
            pass
        finally:
            wire.close()


def silence(wire: Wire) -> None:
    """Read nothing and write nothing until the test is over: a peer that hangs."""
    poller = select.poll()
    poller.register(wire.socket, select.POLLHUP | select.POLLERR)
    poller.poll(LONGEST * 1000)


def accept_and(then: Callable[[Wire], Any], **limits: int) -> Callable[[Wire], None]:
    """Return a script that accepts a client's options, in JSON, before it goes on."""

    def talk(wire: Wire) -> None:
        wire.line()
        wire.send(accept_line("json", **limits))
        then(wire)

    return talk
