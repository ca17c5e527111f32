"""A server in a process of its own; the test speaks to it over its standard input and output.

    python -m conformance.host BACKEND OPTIONS

OPTIONS is JSON: addresses, config, server, certificate; files, how many it may open;
verbose, whether it logs what it does; authority, which signs the certificates of its clients;
registry, the epoch of the one to host, or registries to register at, with a ttl. Each line of input
is a command and gets one line of output; both are JSON. The first line of output tells the real
addresses. The end of the input ends the process, so none outlives its test run.
"""

import abc
import importlib
import json
import logging
import os
import resource
import socket
import ssl
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any

from conformance.pages import Pages
from conformance.services import PLAIN, Counters
from rpc_common.discovery.advertising import Advertisement
from rpc_discovery import Registry
from rpc_proto import ServerConfig


class Host(abc.ABC):
    """What the hosts of the backends have in common: all but how to run, wait and be told."""

    server: Any

    def __init__(self, options: dict[str, Any]) -> None:
        self.counters = Counters()
        self._options = options
        self._stopped = threading.Event()
        self._failure: str | None = None
        if options.get("verbose"):
            logging.basicConfig(level=logging.INFO)
        if "files" in options:
            resource.setrlimit(resource.RLIMIT_NOFILE, (options["files"],) * 2)

    # What a backend supplies

    @abc.abstractmethod
    def run(self) -> None:
        """Run a server for ever; call `serving` when it listens."""

    @abc.abstractmethod
    def ask(self, function: Callable[[], Any]) -> Any:
        """Return what the function returns where the server lives; for the control thread."""

    @abc.abstractmethod
    def open(self, key: str) -> None:
        """Open a gate; for the control thread."""

    @abc.abstractmethod
    def begin_stop(self, grace: float) -> None:
        """Begin to stop the server and tell `stopped` of the end; for the control thread."""

    # Shared

    def make_server(self, kind: Any, services: list[Any]) -> None:
        config = ServerConfig(**self._options.get("config", {}))
        self.server = kind(config=config, **self._options.get("server", {}))
        for service in services:
            self.server.register(service)
        Pages(self.counters, self.server.http)
        if "registry" in self._options:
            self.server.mount(Registry(self._options["registry"]))

    def plain_services(self) -> list[Any]:
        return [make(self.counters) for make in PLAIN]

    def addresses(self) -> list[dict[str, Any]]:
        """Return the arguments of `start` for each address; registries hear of the tcp one."""
        return [
            {
                "address": address,
                "ssl": self._context() if address.startswith("tls:") else None,
                "advertise": self._registering() if address.startswith("tcp:") else None,
            }
            for address in self._options["addresses"]
        ]

    def _registering(self) -> Advertisement | None:
        registries = self._options.get("registries")
        return Advertisement(registries, ttl=self._options["ttl"]) if registries else None

    def _context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self._options["certificate"])
        if "authority" in self._options:  # of the clients' certificates
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(self._options["authority"])
        return context

    def serving(self, addresses: list[str]) -> None:
        _say(addresses)
        threading.Thread(target=self._control, name="control", daemon=True).start()

    def stop(self, grace: float) -> None:
        """Stop a server whose `stop` blocks, and tell."""
        try:
            self.server.stop(grace)
        except BaseException as error:
            self.stopped(error)
        else:
            self.stopped()

    def stopped(self, failure: BaseException | None = None) -> None:
        if failure is not None:
            self._failure = "".join(traceback.format_exception(failure))
        self._stopped.set()

    def _control(self) -> None:
        for line in sys.stdin:
            command, *arguments = json.loads(line)
            try:
                answer = {"value": getattr(self, f"do_{command}")(*arguments)}
            except Exception:
                answer = {"failure": traceback.format_exc()}
            _say(answer)
        os._exit(0)

    # Commands

    def do_count(self, name: str) -> int:
        return self.counters.get(name)

    def do_wait(self, name: str, least: int, timeout: float) -> int:
        """Wait until a counter is at least so much; return what it is."""
        return self.counters.wait(name, least, timeout)

    def do_settle(self, wanted: dict[str, int], timeout: float) -> dict[str, int]:
        """Wait until the server's counters are those wanted; return what they are."""
        end = time.monotonic() + timeout
        while True:
            stats = self.ask(lambda: dict(self.server.stats))
            if all(stats[name] == value for name, value in wanted.items()):
                return stats
            if time.monotonic() > end:
                return stats
            time.sleep(0.005)  # no event tells of these

    def do_snapshot(self) -> dict[str, Any]:
        return self.ask(self.server.snapshot)

    def do_no_delay(self) -> list[bool]:
        """Return whether TCP_NODELAY is set, for each connection."""
        return self.ask(lambda: [has_no_delay(link.fileno()) for link in self.server.links])

    def do_set_health(self, service: str, serving: bool) -> None:
        self.ask(lambda: self.server.set_health(service, serving))

    def do_open(self, key: str) -> None:
        self.open(key)

    def do_stop(self, grace: float) -> None:
        self.begin_stop(grace)

    def do_stopped(self, timeout: float) -> list[Any]:
        """Wait for the end of `stop`; return whether it ended, and how it failed."""
        return [self._stopped.wait(timeout), self._failure]


def has_no_delay(descriptor: int) -> bool:
    """Whether small messages leave a socket at once."""
    with socket.socket(fileno=os.dup(descriptor)) as copy:
        return bool(copy.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))


def _say(value: Any) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    backend = importlib.import_module(f"conformance.host_{sys.argv[1]}")
    backend.HOST(json.loads(sys.argv[2])).run()
