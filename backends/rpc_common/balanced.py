"""A balanced client's part that no runtime changes: settings, picking, broadcasts."""

import logging
import ssl as ssl_module
from abc import ABC, abstractmethod
from collections.abc import Mapping
from random import random
from time import monotonic
from typing import Any, NamedTuple

from rpc_discovery import (
    Node,
    RegistryFailed,
    RegistryReached,
    StaleChanged,
    View,
    ViewChanged,
)
from rpc_discovery.pool import BalancedCall, Pool, Target
from rpc_discovery.watching import StaticDiscovery
from rpc_proto import (
    CallError,
    ClientConfig,
    Codec,
    DeadlineExceeded,
    LocalProtocolError,
    State,
    Unavailable,
    parse_address,
)
from rpc_proto.context import inherit

__all__ = [
    "DRAIN",
    "BalancedBase",
    "BroadcastFailed",
    "Request",
    "check_policy",
    "is_ready",
    "judge",
    "time_left",
]

_POLICIES = ("each", "all", "any", "first")

_OPEN = State.OPEN
DRAIN = 30.0  # seconds for the calls on a connection that is no longer wanted
_TRIES = 3  # nodes that are dialled for one call while others are ready


class Request(NamedTuple):
    """What is sent, as often as it takes."""

    method: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    returns: Any
    metadata: Mapping[str, str] | None
    one_way: bool = False

    @property
    def service(self) -> str:
        """The name of the service."""
        return self.method.rpartition(".")[0]


class BroadcastFailed(CallError):
    """Too few of the nodes answered well; `results` holds the result or the error of each."""

    def __init__(self, message: str, results: dict[str, Any]) -> None:
        super().__init__("aborted", message)
        self.results = results


class BalancedBase(ABC):
    """Calls the nodes of a discovery.

    `discovery` is a list of addresses or Nodes, or a discovery of rpc_discovery. `balancer` is
    "random", "round_robin", "weighted_round_robin", "least_loaded" or "consistent_hash", or a
    class; `zone` and `slow_start` are its settings. `connect_timeout` limits each dial in seconds,
    `call_timeout` each call with all that it takes (default: the config's). `idempotent` is the
    default for calls: such may be repeated although a handler may have run. A call is sent at most
    `max_attempts` times; if it is idempotent, it goes to another node when one has not answered
    within `attempt_timeout` seconds (default: it waits). Repeated calls are at most `retry_ratio`
    of all and `retry_minimum` a second. A connection that is older than `max_age` seconds is
    replaced. The rest is as in `Client.connect`.
    """

    _log: logging.Logger

    def __init__(
        self,
        discovery: Any,
        balancer: Any = "round_robin",
        *,
        connect_timeout: float = 3.0,
        idempotent: bool = False,
        codec: str | Codec | None = None,
        token: str | None = None,
        ssl: ssl_module.SSLContext | None = None,
        config: ClientConfig | None = None,
        tracer_provider: Any = None,
        proxy: str | None = None,
        **settings: Any,
    ) -> None:
        if isinstance(discovery, str):
            discovery = [discovery]
        if not hasattr(discovery, "view") and not hasattr(discovery, "open"):
            discovery = StaticDiscovery(discovery)
        if not connect_timeout > 0:
            raise ValueError(f"connect_timeout must be seconds over 0, not {connect_timeout!r}")
        self.discovery = discovery
        self._machine: Any = None  # of the discovery, when it is followed
        self._pool = Pool(now=monotonic(), rng=random, balancer=balancer, **settings)
        self._config = (config or ClientConfig()).override(codec=codec, token=token)
        self._ssl = ssl
        self._connecting = {"tracer_provider": tracer_provider, "proxy": proxy}
        self._connect_timeout = connect_timeout
        self._limited = self._pool.attempt_timeout is not None
        self._idempotent = idempotent
        self._call_timeout = self._config.call_timeout
        self._closed = False
        view = getattr(discovery, "view", None)
        if view is not None:
            self._pool.update(view, monotonic())
        self._prepare()

    @abstractmethod
    def _prepare(self) -> None:
        """Set up what the runtime needs."""

    @property
    def nodes(self) -> list[Node]:
        """The nodes that are known."""
        return list(self._pool.view or ())

    @property
    def stats(self) -> dict[str, Any]:
        """What is going on: for people and tests."""
        pool = self._pool
        return {
            "nodes": len(pool.targets),
            "connected": sum(is_ready(target) for target in pool.targets.values()),
            "ejected": len(pool.ejection.ejected),
            "in_flight": sum(target.in_flight for target in pool.targets.values()),
            "failovers": pool.failovers,
        }

    # For the drivers

    def _take(self, events: list[Any]) -> None:
        """Act on what a discovery says."""
        for event in events:
            if isinstance(event, ViewChanged):
                self._apply(event.view)
            elif isinstance(event, StaleChanged):
                if event.since is None:
                    self._log.info("discovery: the nodes are up to date again")
                else:
                    self._log.warning("discovery: going on with the last view: %s", event.reason)
            elif isinstance(event, RegistryFailed):
                self._log.warning("registry %s failed: %s", event.registry, event.reason)
            elif isinstance(event, RegistryReached):
                self._log.info("registry %s answers", event.registry)

    def _find(self, service: str, now: float, key: str | None) -> Target | None:
        """Return a node that is connected, and see to it that the one in turn will be."""
        if self._pool.view is None:
            self._check_open()
            return None
        for _ in range(_TRIES):
            target = self._pool.pick(service, now, key)
            client = target.client
            if client is not None and client._connection.state is _OPEN:
                if now > target.expires_at and target.dialling is None:
                    self._dial_soon(target)
                return target
            if target.dialling is not None or (target.retry_at or now) > now:
                break
            self._dial_soon(target)
            if key is not None:  # it is worth the wait
                break
        return None

    @abstractmethod
    def _dial_soon(self, target: Target) -> Any:
        """Begin to dial a node, and return what tells of the end."""

    @abstractmethod
    def _close_soon(self, client: Any) -> None:
        """Close a connection when its calls have ended."""

    def _apply(self, view: View) -> None:
        """Take a view."""
        for target in self._pool.update(view, monotonic()):
            client, target.client = target.client, None
            if client is not None:
                self._close_soon(client)

    def _install(self, target: Target, client: Any) -> None:
        """Take a new connection; the one that it replaces is closed when its calls have ended."""
        old, target.client = target.client, client
        self._pool.connected(target, monotonic())
        if old is not None:
            self._close_soon(old)

    def _spread(
        self,
        first: BalancedCall,
        request: Request,
        timeout: float | None,
        started: float,
        count: int,
    ) -> list[BalancedCall]:
        """Return calls for different nodes, as many as asked for if there are so many."""
        if not isinstance(count, int) or count < 1:
            raise ValueError(f"count must be a whole number from 1 up, not {count!r}")
        chosen: list[Target] = []
        while len(chosen) < count:
            target = self._pool.pick(first.service, started, first.key, chosen)
            if target in chosen:
                break
            chosen.append(target)
        return [
            self._begin(request, timeout, started, None, target.node.address, True)
            for target in chosen
        ]

    def _begin(
        self,
        request: Request,
        timeout: float | None,
        started: float,
        key: str | None,
        node: str | None,
        idempotent: bool | None,
    ) -> BalancedCall:
        """Return what it takes to make a call more than once; its time counts from the start."""
        return BalancedCall(
            request.service,
            inherit(timeout, self._call_timeout, started, None)[0],
            idempotent=self._idempotent if idempotent is None else idempotent,
            key=key,
            node=node,
        )

    def _options(self, target: Target) -> dict[str, Any]:
        """Return the arguments of `Client.connect` for a node."""
        ssl = self._ssl if parse_address(target.node.address).has_tls else None
        return {"config": self._config, "ssl": ssl, **self._connecting}

    def _check_open(self) -> None:
        if self._closed:
            raise LocalProtocolError("this client was closed")


def is_ready(target: Target) -> bool:
    """Whether a node is connected."""
    client = target.client
    return client is not None and client._connection.state is _OPEN


def time_left(call: BalancedCall, now: float) -> float:
    """Return the seconds until the deadline; DeadlineExceeded when it has passed."""
    if call.deadline is None:
        return float("inf")
    if call.deadline <= now:
        raise DeadlineExceeded(
            f"the deadline passed before a node of {call.service} was reached",
            maybe_executed=call.maybe_executed,
        )
    return call.deadline - now


def judge(policy: str, request: Request, results: dict[str, Any]) -> dict[str, Any]:
    """Return the results of a broadcast, or raise BroadcastFailed."""
    if not results:
        raise Unavailable(f"no node offers {request.service!r:.100}", maybe_executed=False)
    failed = [error for error in results.values() if isinstance(error, CallError)]
    if (policy == "all" and failed) or (policy in ("any", "first") and len(failed) == len(results)):
        raise BroadcastFailed(f"{len(failed)} of {len(results)} nodes failed: {failed[0]}", results)
    return results


def check_policy(policy: str) -> None:
    """Raise ValueError for a policy that there is not."""
    if policy not in _POLICIES:
        raise ValueError(f"policy must be one of {', '.join(_POLICIES)}, not {policy!r}")
