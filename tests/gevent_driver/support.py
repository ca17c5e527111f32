"""What the tests share: services, servers and clients as context managers, a peer by hand."""

import contextlib
import json
from collections.abc import Callable, Iterator
from typing import Any, Self

import gevent
from gevent import socket
from gevent.event import Event

from asyncio_driver.support import port_of
from rpc_gevent import Client, Server
from support.by_hand import PREFIX, Frame, option_line

ANY_PORT = "tcp://127.0.0.1:0"

# No test may take longer, in seconds, whatever it waits for.
LONGEST = 30.0


class Echo:
    def echo(self, value: Any) -> Any:
        return value


class Gate:
    """A service whose handler tells when it starts and when it is killed, and waits between."""

    def __init__(self) -> None:
        self.running = 0
        self.runs = 0
        self.started = Event()
        self.opened = Event()
        self.killed = Event()

    def wait(self, value: Any = "through") -> Any:
        self.running += 1
        self.runs += 1
        self.started.set()
        try:
            self.opened.wait()
        except gevent.GreenletExit:
            self.killed.set()
            raise
        finally:
            self.running -= 1
        return value

    def stubborn(self) -> str:
        """Go on in spite of being killed."""
        self.running += 1
        self.started.set()
        while not self.opened.is_set():
            try:
                self.opened.wait()
            except gevent.GreenletExit:
                self.killed.set()
        self.running -= 1
        return "too late"


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
        server.stop(grace)


@contextlib.contextmanager
def pair(*services: Any, **options: Any) -> Iterator[tuple[Server, Client]]:
    """Give a server that offers the services, and a client of it."""
    with serving(*services, **options) as (server, address), Client.connect(address) as client:
        yield server, client


def until(condition: Callable[[], Any]) -> None:
    """Wait for what no event tells; the test's own time limit bounds it."""
    while not condition():
        gevent.sleep(0.002)


class Wire:
    """A client whose frames are written and read by hand."""

    def __init__(self, address: str) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port_of(address)))

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def accepted(self) -> "Wire":
        self.send(option_line())
        assert "error" not in self.line()
        return self

    def line(self) -> Any:
        return json.loads(self._until_newline())

    def _until_newline(self) -> bytes:
        line = b""
        while not line.endswith(b"\n"):
            line += self._exactly(1)
        return line

    def _exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            part = self.socket.recv(count - len(data))
            if not part:
                raise EOFError
            data += part
        return data

    def receive(self) -> Frame | None:
        """Return the next frame, or None when the peer sends nothing more."""
        try:
            kind, flags, header, body, call_id = PREFIX.unpack(self._exactly(PREFIX.size))
        except EOFError:
            return None
        return Frame(kind, flags, call_id, self._exactly(header), self._exactly(body))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()
