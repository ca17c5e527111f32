"""Registering a server in registries or in etcd."""

import ssl as ssl_module
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from random import random
from time import monotonic
from typing import Any

from rpc_common.telemetry.log import Log
from rpc_discovery import (
    Node,
    PemFiles,
    Registration,
    SourceFailed,
    SourceReached,
    hash_signatures,
)
from rpc_discovery.documents import USUAL_TTL
from rpc_discovery.machines import Event, Rng
from rpc_discovery.sources import check_transport, flatten
from rpc_proto import Address
from rpc_proto.service.dispatch import Dispatcher

__all__ = ["Advertisement", "EtcdAdvertisement", "Registrations"]

_ANY = ("0.0.0.0", "::")


class Advertisement:
    """Registers a server (`server.start(..., advertise=...)`) in registries at http://host:port.

    `address` is the host, or the whole address, at which callers reach the server; it is required
    if the server listens on all interfaces. `weight`, `metadata`: see `rpc_discovery.Node`. The
    registration lasts `ttl` seconds without a heartbeat. `ssl` is for registries at https://.
    """

    transport: str | None = None

    def __init__(
        self,
        *registries: str | Iterable[str],
        address: str | None = None,
        weight: float = 1.0,
        metadata: Mapping[str, str] | None = None,
        ttl: float = USUAL_TTL,
        token: str | None = None,
        ssl: ssl_module.SSLContext | PemFiles | None = None,
    ) -> None:
        self.where = flatten(registries)
        self.address = address
        self.weight = weight
        self.metadata = metadata
        self.ssl = ssl
        self.settings: dict[str, Any] = {"ttl": ttl, "token": token}

    def node(self, where: Address, services: Mapping[str, str]) -> Node:
        """Return the node to register for an address; ValueError if callers cannot reach that."""
        if self.address is None:
            if where.scheme != "unix" and where.host in _ANY:
                raise ValueError(
                    f"callers cannot reach {where}; "
                    "set the address they can reach (address=, or --advertise)"
                )
            address = str(where)
        elif "://" in self.address:
            address = self.address
        else:
            address = str(where._replace(host=self.address.strip("[]")))
        return Node(address, services, weight=self.weight, metadata=self.metadata)

    def open(self, node: Node, now: float, rng: Rng) -> Any:
        """Return the machine that keeps a node registered."""
        return Registration(node, self.where, now=now, rng=rng, **self.settings)


class EtcdAdvertisement(Advertisement):
    """Registers a server (`server.start(..., advertise=...)`) in etcd, at http(s)://host:port.

    The keys are `PREFIX/SERVICE/ADDRESS` (docs/etcd.md), on a lease of `ttl` seconds. `ssl` is for
    https:// endpoints, with a client certificate if etcd requires one. For `transport` see
    `EtcdDiscovery`; all other arguments are as in `Advertisement`.
    """

    def __init__(
        self,
        *endpoints: str | Iterable[str],
        prefix: str | bytes = "/rpc",
        address: str | None = None,
        weight: float = 1.0,
        metadata: Mapping[str, str] | None = None,
        ttl: float = 10.0,
        user: str | None = None,
        password: str | None = None,
        timeout: float = 2.0,
        ssl: ssl_module.SSLContext | PemFiles | None = None,
        transport: str | None = None,
    ) -> None:
        super().__init__(
            *endpoints, address=address, weight=weight, metadata=metadata, ttl=ttl, ssl=ssl
        )
        check_transport(transport, ssl, self.where)
        self.transport = transport
        self.settings = {
            "prefix": prefix,
            "ttl": ttl,
            "user": user,
            "password": password,
            "timeout": timeout,
        }

    def open(self, node: Node, now: float, rng: Rng) -> Any:
        from rpc_discovery.etcd import EtcdRegistration

        return EtcdRegistration(node, self.where, now=now, rng=rng, **self.settings)


class Registrations:
    """The registrations of one server; `pumps` run them, one for each address."""

    def __init__(self, log: Log, dispatcher: Dispatcher) -> None:
        self.pumps: list[Any] = []
        self._leaving: list[Any] | None = None  # those that deregister, once the server is stopping
        self._log = log
        self._dispatcher = dispatcher

    def check(
        self, advertise: Advertisement | str | Iterable[Advertisement | str], where: Address
    ) -> list[Advertisement]:
        """Return the advertisements of an argument; ValueError if one cannot be registered."""
        given = [advertise] if isinstance(advertise, (Advertisement, str)) else [*advertise]
        checked = [one for one in given if isinstance(one, Advertisement)]
        urls = [one for one in given if not isinstance(one, Advertisement)]
        if urls or not checked:
            checked.append(Advertisement(urls))
        port = where.port or 1  # which one it will be is not known yet
        for advertisement in checked:
            self.machine(advertisement, where._replace(port=port))
        return checked

    def machine(self, advertisement: Advertisement, where: Address) -> Any:
        """Return what registers an address."""
        return advertisement.open(advertisement.node(where, self._describe()), monotonic(), random)

    def add(self, advertisement: Advertisement, where: Address, run: Callable[[Any], Any]) -> None:
        """Register an address, unless the server has left; `run(machine)` returns its pump."""
        if self._leaving is None:
            self.pumps.append(run(self.machine(advertisement, where)))

    def describe_again(self) -> None:
        """Update the registrations after a change of the services."""
        for pump in self.pumps:
            pump.tell(partial(pump.machine.update, services=self._describe()))

    def leave(self) -> list[Any]:
        """Deregister; return the pumps, which end when that is done.

        The second call does not wait for them.
        """
        if self._leaving is not None:
            for pump in self._leaving:
                pump.stop()
            return []
        self._leaving, self.pumps = self.pumps, []
        for pump in self._leaving:
            pump.tell(pump.machine.stop)
        return self._leaving

    def take(self, events: list[Event]) -> None:
        """Log the events of a registration."""
        for event in events:
            if isinstance(event, SourceFailed):
                self._log.warning("registration at %s failed: %s", event.source, event.reason)
            elif isinstance(event, SourceReached):
                self._log.info("registered at %s", event.source)

    def _describe(self) -> dict[str, str]:
        """Return the hash of each service's methods, except built-in services."""
        services: dict[str, dict[str, str]] = {}
        for full, method in self._dispatcher.methods.items():
            name, _, short = full.rpartition(".")
            if not name.startswith("rpc."):
                services.setdefault(name, {})[short] = str(method.signature)
        return {name: hash_signatures(signatures) for name, signatures in services.items()}
