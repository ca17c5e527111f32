"""Registrations and watches of any backend against real servers, for use from the test's thread."""

import http.client
import json
import socket
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from importlib import import_module
from random import random
from typing import Any

from conformance.runtimes import Runtime
from rpc_common.telemetry.log import get_log
from rpc_discovery import Node, View, ViewChanged
from rpc_discovery.etcd import EtcdRegistration, EtcdWatch
from rpc_testing import Etcd

PATIENCE = 30.0  # seconds


class Actor:
    """A machine and the pump of a backend that runs it; `events` are those of the machine."""

    def __init__(
        self,
        runtime: Runtime,
        make: Callable[[float], Any],
        ssl: Any = None,
        transport: str | None = None,
    ) -> None:
        self.events: list[Any] = []
        self._runtime = runtime
        self._changed = threading.Condition()
        self.machine = make(time.monotonic())
        log = get_log("etcd-tests")
        options = (self.machine, self._take)
        if runtime.name == "asyncio":
            from rpc_asyncio.pump import Pump

            self.pump: Any = runtime.do(lambda: Pump(*options, log, ssl, transport))
        else:
            from rpc_common.discovery.pump import Pump as SyncPump

            where = import_module(f"rpc_{runtime.name}.runtime")
            supplies = getattr(where, runtime.name.upper())
            self.pump = runtime.do(lambda: SyncPump(*options, supplies, log, ssl))

    def _take(self, events: list[Any]) -> None:
        with self._changed:
            self.events += events
            self._changed.notify_all()

    def tell(self, command: str, **settings: Any) -> None:
        """Give the machine a command."""
        method = getattr(self.machine, command)
        self._runtime.do(lambda: self.pump.tell(partial(method, **settings)))

    def until(self, true: Callable[[Any], Any], patience: float = PATIENCE) -> float:
        """Wait until something is true of the machine; return the seconds that it took."""
        began = time.monotonic()
        with self._changed:
            while not true(self.machine):
                waited = time.monotonic() - began
                if waited > patience:
                    raise AssertionError(
                        f"not within {patience:g} s: {list(self.machine.view)} "
                        f"{self.machine.error!r} {self.events[-9:]}"
                        if isinstance(self.machine, EtcdWatch)
                        else f"not within {patience:g} s: {self.machine.error!r} {self.events}"
                    )
                self._changed.wait(0.02)
        return time.monotonic() - began

    def sees(self, *addresses: str) -> float:
        """Wait until the view is made of these."""
        return self.until(lambda watch: {node.address for node in watch.view} == set(addresses))

    @property
    def views(self) -> list[View]:
        return [event.view for event in self.events if isinstance(event, ViewChanged)]

    def stop(self) -> None:
        self._runtime.do(self.pump.stop)

    def leave(self) -> None:
        """Stop a registration in order."""
        self.tell("stop")
        self.until(lambda machine: machine.done)


class Cast:
    """The actors of one test, in one backend, under one prefix; all end with it."""

    def __init__(
        self,
        runtime: Runtime,
        prefix: str | bytes,
        stack: ExitStack,
        transport: str | None = None,
    ) -> None:
        self.runtime = runtime
        self.prefix = prefix
        self.transport = transport
        self._stack = stack

    def watch(self, endpoints: list[str], ssl: Any = None, **settings: Any) -> Actor:
        settings = {"prefix": self.prefix, "grace": 0.0, **settings}
        return self._add(lambda now: EtcdWatch(endpoints, now=now, rng=random, **settings), ssl)

    def register(
        self, endpoints: list[str], node: Node | str, ssl: Any = None, **settings: Any
    ) -> Actor:
        if isinstance(node, str):
            node = Node(node, ["Arith"])
        settings = {"prefix": self.prefix, **settings}
        actor = self._add(
            lambda now: EtcdRegistration(node, endpoints, now=now, rng=random, **settings), ssl
        )
        actor.until(lambda machine: machine.registered(time.monotonic()) or machine.error)
        return actor

    def _add(self, make: Callable[[float], Any], ssl: Any) -> Actor:
        actor = Actor(self.runtime, make, ssl, self.transport)
        self._stack.callback(actor.stop)
        return actor


def is_registered(machine: Any) -> bool:
    return bool(machine.registered(time.monotonic()))


def put(etcd: Etcd, pairs: dict[bytes, bytes], lease: int = 0) -> None:
    """Write many keys in a moment."""
    connection = http.client.HTTPConnection("127.0.0.1", etcd.members[0].port, timeout=PATIENCE)
    for key, value in pairs.items():
        text = {"key": b64encode(key).decode(), "value": b64encode(value).decode()}
        connection.request("POST", "/v3/kv/put", json.dumps({**text, "lease": lease}))
        answer = connection.getresponse()
        assert answer.status == 200, answer.read()
        answer.read()
    connection.close()


def describe(address: str, **more: Any) -> bytes:
    return json.dumps({"address": address, **more}).encode()


class Relay:
    """A port in front of a server, which can be cut off from it."""

    def __init__(self, port: int) -> None:
        self._to = port
        self._pairs: list[socket.socket] = []
        self._cut = False
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """End all connections, and each that comes, until `mend`."""
        with self._lock:
            self._cut = True
            for sock in self._pairs:
                with suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)

    def mend(self) -> None:
        with self._lock:
            self._cut = False

    def close(self) -> None:
        self.cut()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                sock, _ = self._listener.accept()
                with self._lock:
                    if self._cut:
                        sock.close()
                        continue
                    other = socket.create_connection(("127.0.0.1", self._to))
                    self._pairs += [sock, other]
                for ends in ((sock, other), (other, sock)):
                    threading.Thread(target=self._carry, args=ends, daemon=True).start()

    def _carry(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        for sock in (source, sink):
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        with self._lock:
            if source in self._pairs:
                self._pairs.remove(source)
                source.close()


@contextmanager
def relay(etcd: Etcd) -> Iterator[Relay]:
    one = Relay(etcd.members[0].port)
    try:
        yield one
    finally:
        one.close()
