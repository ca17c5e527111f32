"""A backend's balanced clients, and the servers that they call."""

import contextlib
from typing import Any, Self

from conformance.backends import INSTALLED
from conformance.hosts import HostProcess
from conformance.links import Suite
from conformance.runtimes import Client

# Two slow cores may add so much to a time, in seconds.
SLACK = 5.0


class Place:
    """Where a test runs: gives servers, and clients of one backend; closes them at the end."""

    def __init__(self, backend: str, suite: Suite) -> None:
        self.backend = backend
        self.runtime = suite.runtime(backend)
        self.trusting = suite.trusting
        self._suite = suite
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def hosts(self, count: int = 3, **options: Any) -> list[HostProcess]:
        """Give servers that stay as they are, of different backends in turn."""
        return [
            self._stack.enter_context(
                self._suite.hosts.shared(
                    INSTALLED[number % len(INSTALLED)],
                    max_queued=10_000 + number // len(INSTALLED),  # or it would be the same one
                    **options,
                )
            )
            for number in range(count)
        ]

    def own_host(self, number: int = 0, **options: Any) -> HostProcess:
        """Give a server that the test may destroy."""
        backend = INSTALLED[number % len(INSTALLED)]
        return self._stack.enter_context(self._suite.hosts.own(backend, **options))

    def own_hosts(self, count: int = 3, **options: Any) -> list[HostProcess]:
        return [self.own_host(number, **options) for number in range(count)]

    def client(self, nodes: Any, *args: Any, **options: Any) -> Client:
        """Give a client of these hosts, addresses, or of a discovery."""
        if isinstance(nodes, list):
            nodes = [node.address() if isinstance(node, HostProcess) else node for node in nodes]
        client = self.runtime.balance(nodes, *args, **options)
        return self._stack.enter_context(client)

    def connected(self, hosts: list[Any], *args: Any, **options: Any) -> Client:
        """Give a client that is connected to all of these hosts."""
        client = self.client(hosts, *args, **options)
        connect_to_all(client, len(hosts))
        return client


def connect_to_all(client: Client, count: int) -> None:
    results = client.do(lambda real: real.broadcast("Basic.echo", 1))
    assert list(results.values()) == [1] * count


def runs(hosts: list[HostProcess], key: str, what: str = "runs") -> list[int]:
    """Return how often something has happened on each server."""
    return [host.count(what, key) for host in hosts]


def stats(client: Client) -> dict[str, Any]:
    return client._real.stats
