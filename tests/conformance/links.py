"""What a test runs with: a pair of backends, a codec and a transport; and what the tests share."""

import contextlib
import os
import ssl
from collections.abc import Iterator
from importlib import import_module
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple
from zlib import crc32

import pytest

from conformance.backends import GUESTS, PAIRS, Pair
from conformance.hosts import HostProcess, Hosts
from conformance.proxy import Proxy, proxied
from conformance.runtimes import RUNTIMES, Client, Runtime
from support.certificates import Authority

# CONFORMANCE_TRANSPORT=http lets every case run over that one instead of one by turns.
TRANSPORTS = ("tcp", "unix", "tls", "http", "https")
ONLY = os.environ.get("CONFORMANCE_TRANSPORT")
COMBINATIONS = list(product(("msgpack", "json"), (ONLY,) if ONLY else TRANSPORTS))


class Combination(NamedTuple):
    """What one test runs with."""

    pair: Pair
    codec: str
    transport: str

    def __str__(self) -> str:
        return f"{self.pair}-{self.codec}-{self.transport}"


class Link:
    """Makes clients of one backend and servers of another, with one codec over one transport."""

    def __init__(self, combination: Combination, suite: "Suite") -> None:
        self.pair, self.codec, self.transport = combination
        self._suite = suite

    def host(self, **options: Any) -> Any:
        """Give a server that stays as it is (a context)."""
        return self._suite.hosts.shared(self.pair.server, **options)

    def own_host(self, **options: Any) -> Any:
        """Give a server that the test may destroy (a context)."""
        return self._suite.hosts.own(self.pair.server, **options)

    def host_of_client_backend(self) -> Any:
        """Give a server of the client's backend (a context)."""
        if self.pair.client in GUESTS:
            pytest.skip("the client's backend has no server")
        return self._suite.hosts.shared(self.pair.client)

    def connect(self, host: HostProcess, **options: Any) -> Client:
        return self.connect_to(host.address(self.transport), **options)

    @contextlib.contextmanager
    def through_proxy(
        self, host: HostProcess, *, seed: int | None = None, largest: int = 1, **options: Any
    ) -> Iterator[tuple[Proxy, Client]]:
        """Give a proxy in front of a server, and a client that goes through it."""
        with (
            proxied(host.address(self.transport), seed=seed, largest=largest) as proxy,
            self.connect_to(proxy.address, **options) as client,
        ):
            yield proxy, client

    def connect_to(self, address: str, **options: Any) -> Client:
        if address.startswith(("tls:", "https:")):
            options.setdefault("ssl", self._suite.trusting)
        options.setdefault("codec", self.codec)
        return self._suite.runtime(self.pair.client).connect(address, **options)


class Suite:
    """What the tests of one process share."""

    def __init__(self, folder: Path) -> None:
        self.authority = Authority(folder)
        self.trusting: ssl.SSLContext = self.authority.client_context()
        self.hosts = Hosts(folder, folder / "server.pem")
        self._runtimes: dict[str, Runtime] = {}

    def runtime(self, backend: str) -> Runtime:
        if backend not in self._runtimes:
            kind = RUNTIMES.get(backend) or import_module(backend).RUNTIME
            self._runtimes[backend] = kind()
        return self._runtimes[backend]

    def close(self) -> None:
        self.hosts.close()
        for runtime in self._runtimes.values():
            runtime.close()


def rotated(case: str) -> list[Combination]:
    """Return one combination for each pair, which follow from the name of the case."""
    offset = crc32(case.encode())
    return [
        Combination(pair, *COMBINATIONS[(offset + index) % len(COMBINATIONS)])
        for index, pair in enumerate(PAIRS)
    ]
