"""Sources of nodes for balanced clients, for any backend."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple, TypedDict, Unpack

from .machines import Discovery, Rng
from .watching import FileView, RegistryWatch

if TYPE_CHECKING:
    from .etcd import EtcdWatch

__all__ = [
    "EtcdDiscovery",
    "FileDiscovery",
    "PemFiles",
    "RegistryDiscovery",
    "check_transport",
    "flatten",
]


class PemFiles(NamedTuple):
    """Paths of PEM files for TLS, which every transport can use, unlike an SSLContext.

    `authority` is the CA that signed the servers' certificates. `certificate` is the client's, if
    the servers require one; its key may be in the same file.
    """

    authority: str
    certificate: str | None = None
    key: str | None = None


def flatten(urls: Iterable[str | Iterable[str]]) -> list[str]:
    """Return the URLs in arguments, each of which is one URL or several."""
    return [url for one in urls for url in ([one] if isinstance(one, str) else one)]


def check_transport(transport: str | None, ssl: Any, endpoints: Iterable[str]) -> None:
    """Raise ValueError for an invalid transport to etcd."""
    if transport not in (None, "grpc", "gateway"):
        raise ValueError(f"transport must be 'grpc', 'gateway' or None, not {transport!r}")
    if transport == "grpc" and not isinstance(ssl, PemFiles):
        if ssl is not None:
            raise ValueError(f"with transport 'grpc' ssl must be PemFiles, not {ssl!r:.80}")
        for url in endpoints:
            if url.startswith("https:"):
                raise ValueError(f"with transport 'grpc' {url} needs ssl=PemFiles(...)")


class RegistrySettings(TypedDict, total=False):
    """Those of `RegistryWatch`."""

    service: str | None
    wait: float
    refresh: float
    grace: float
    share: float
    token: str | None
    timeout: float


class EtcdSettings(TypedDict, total=False):
    """Those of `EtcdWatch` that `EtcdDiscovery` hands on."""

    timeout: float
    probe: float
    grace: float
    share: float


class RegistryDiscovery(Discovery):
    """The nodes in one or more registries, each given as http://host:port.

    `settings` are the arguments of `RegistryWatch`: `service`, `wait`, `refresh`, `grace`, `token`
    and so on. `ssl` is an SSLContext or PemFiles for registries at https://.
    """

    def __init__(
        self,
        *registries: str | Iterable[str],
        ssl: Any = None,
        **settings: Unpack[RegistrySettings],
    ) -> None:
        self._registries = flatten(registries)
        self._settings = settings
        self.ssl = ssl
        self.open(0.0, lambda: 0.0)  # ValueError for what cannot be

    def open(self, now: float, rng: Rng) -> RegistryWatch:
        """Return the machine that keeps a view."""
        return RegistryWatch(self._registries, now=now, rng=rng, **self._settings)


class EtcdDiscovery(Discovery):
    """The nodes in etcd, at endpoints given as http(s)://host:port.

    With `service`, only the nodes of this service are watched. The other `settings` are arguments
    of `EtcdWatch`: `probe`, `timeout`, `grace` and so on. `ssl` is PemFiles or an SSLContext for
    https:// endpoints, with a client certificate if etcd requires one. `transport` is "gateway", or
    "grpc", which only asyncio has and needs the extra `etcd`; None uses gRPC if available.
    """

    def __init__(
        self,
        *endpoints: str | Iterable[str],
        prefix: str | bytes = "/rpc",
        service: str | None = None,
        user: str | None = None,
        password: str | None = None,
        ssl: Any = None,
        transport: str | None = None,
        **settings: Unpack[EtcdSettings],
    ) -> None:
        self._endpoints = flatten(endpoints)
        self._settings: dict[str, Any] = {
            "prefix": prefix,
            "service": service,
            "user": user,
            "password": password,
            **settings,
        }
        self.ssl = ssl
        self.transport = transport
        self.open(0.0, lambda: 0.0)  # ValueError for what cannot be
        check_transport(transport, ssl, self._endpoints)

    def open(self, now: float, rng: Rng) -> "EtcdWatch":
        """Return the machine that keeps a view."""
        from .etcd import EtcdWatch

        return EtcdWatch(self._endpoints, now=now, rng=rng, **self._settings)


class FileDiscovery(Discovery):
    """The nodes in a JSON file (docs/discovery.md), which is read again when it has changed.

    It is checked every `interval` seconds.
    """

    def __init__(self, path: str, *, interval: float = 1.0) -> None:
        if not 0.01 <= interval <= 3600:
            raise ValueError(f"interval must be from 0.01 to 3600 seconds, not {interval!r}")
        self.path = path
        self.interval = interval

    def open(self, now: float, rng: Rng) -> FileView:
        """Return the machine that keeps a view."""
        return FileView(self.path, now=now, interval=self.interval)
