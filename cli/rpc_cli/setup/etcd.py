"""etcd for commands: its settings from the options, and the nodes in it."""

import asyncio
import os
from argparse import Namespace
from random import random
from time import monotonic
from typing import Any, Self

from rpc_asyncio.pump import Pump
from rpc_cli.output.errors import CommandError, UsageError
from rpc_common.telemetry.log import get_log
from rpc_discovery import EtcdDiscovery, Node
from rpc_proto.texts import printable

from .tls import client_context
from .variables import ETCD_PASSWORD_VARIABLE

__all__ = ["EtcdNodes", "etcd_discovery", "etcd_settings"]

_TIMEOUT = 5.0  # seconds for each endpoint


def etcd_settings(options: Namespace) -> dict[str, Any]:
    """Return the settings that discovery and registering share, as far as the options name them.

    UsageError if the options do not go together.
    """
    # To import gRPC takes longer than what most commands do.
    settings: dict[str, Any] = {"transport": "gateway"}
    if options.etcd_prefix is not None:
        settings["prefix"] = os.fsencode(options.etcd_prefix)  # which may be any bytes
    if options.etcd_user is not None:
        password = os.environ.get(ETCD_PASSWORD_VARIABLE)
        if not password:
            raise UsageError(f"--etcd-user needs its password in ${ETCD_PASSWORD_VARIABLE}")
        settings |= {"user": options.etcd_user, "password": password}
    if options.etcd_key and not options.etcd_cert:
        raise UsageError("--etcd-key needs --etcd-cert")
    if options.etcd_ca or options.etcd_cert:
        if not any(url.startswith("https:") for url in options.etcd):
            raise UsageError("--etcd-ca, --etcd-cert and --etcd-key need https:// endpoints")
        settings["ssl"] = client_context(options.etcd_ca, options.etcd_cert, options.etcd_key)
    return settings


def etcd_discovery(options: Namespace, service: str | None = None) -> EtcdDiscovery:
    """Return where the options say that nodes are; UsageError if that cannot be.

    What etcd holds is what is shown, without a grace for many that go at once.
    """
    try:
        return EtcdDiscovery(options.etcd, service=service, grace=0.0, **etcd_settings(options))
    except ValueError as error:
        raise UsageError(str(error)) from None


class EtcdNodes:
    """The nodes that etcd holds, followed as long as the context lasts.

    `watch` is the machine that keeps the view; `changed` is set with each thing that it learns.
    """

    def __init__(self, discovery: EtcdDiscovery) -> None:
        self.watch = discovery.open(monotonic(), random)
        self.changed = asyncio.Event()
        self._discovery = discovery
        self._errors: list[str] = []
        self._failures = 0

    async def __aenter__(self) -> Self:
        log = get_log("rpc_cli")
        where = self._discovery
        self._pump = Pump(self.watch, self._take, log, where.ssl, where.transport)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._pump.close()

    def _take(self, events: list[Any]) -> None:
        if self.watch.failures > self._failures:
            self._errors.append(self.watch.error)
        self._failures = self.watch.failures
        self.changed.set()

    async def nodes(self) -> list[Node]:
        """Return all nodes as soon as they are known; CommandError when all endpoints failed."""
        endpoints = len(self.watch.endpoints)
        self._errors.clear()
        try:
            async with asyncio.timeout(_TIMEOUT * endpoints):
                while not self.watch.ready:
                    if len(self._errors) >= endpoints:
                        raise CommandError(f"etcd {printable('; '.join(self._errors))}")
                    self.changed.clear()
                    await self.changed.wait()
        except TimeoutError:
            # Such as a listing that goes on and on; what is asked has a time limit of its own.
            what = self.watch.error or f"{self.watch.endpoint}: no answer"
            raise CommandError(f"etcd {printable(what)}") from None
        return list(self.watch.view)
