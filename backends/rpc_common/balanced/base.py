"""What the balanced clients of all backends share: settings, picking, broadcasts."""

import ssl as ssl_module
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from math import inf
from random import random
from time import monotonic
from typing import Any, NamedTuple, TypeVar, overload
from weakref import WeakMethod

from rpc_common.client.base import warn_unclosed
from rpc_common.client.options import WithOptions
from rpc_common.client.streams import Request as StreamRequest
from rpc_common.telemetry.log import Log
from rpc_common.transport.forks import Owner
from rpc_discovery import (
    Balancer,
    Discovery,
    Event,
    Node,
    SourceFailed,
    SourceReached,
    StaleChanged,
    StaticDiscovery,
    View,
    ViewChanged,
    ViewMachine,
)
from rpc_discovery.attempts import Attempts
from rpc_discovery.pool import BalancedCall, Pool, Target
from rpc_proto import (
    CallError,
    ClientConfig,
    Codec,
    LocalProtocolError,
    Observer,
    State,
    Unavailable,
    parse_address,
)
from rpc_proto.service.context import inherit
from rpc_proto.service.stub import service_proxy

__all__ = [
    "DRAIN",
    "BalancedBase",
    "BroadcastFailed",
    "Request",
    "check_count",
    "check_hedge",
    "check_policy",
    "judge",
]

Api = TypeVar("Api")

_POLICIES = ("each", "all", "any", "first")

_OPEN = State.OPEN
DRAIN = 30.0  # seconds for the calls on a connection that is no longer needed


# Options of `call` whose names a method's arguments may have, too.
_OPTIONS = frozenset({"timeout", "metadata", "returns", "key", "node", "idempotent", "hedge"})
_OF_STREAMS = ("timeout", "metadata", "key", "node")


class Request(NamedTuple):
    """What to send, in each attempt."""

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
    """Too few nodes succeeded; `results` has the result or the error of each."""

    def __init__(self, message: str, results: dict[str, Any]) -> None:
        super().__init__("aborted", message)
        self.results = results


class BalancedBase(ABC):
    """A client of many servers: it finds them, balances calls between them, and retries.

    `discovery` is a list of addresses or Nodes, or a discovery of rpc_discovery. `balancer` is
    "random", "round_robin", "weighted_round_robin", "least_loaded" or "consistent_hash", or a
    class; `zone` and `slow_start` are its settings. `connect_timeout` limits each dial, in seconds;
    `call_timeout` of the config limits each call with all its attempts, unless the call says
    otherwise. `idempotent` is the default for calls: idempotent calls may be retried after a
    handler may have run. A call is sent at most `max_attempts` times; if it is idempotent, it is
    sent to another node when one has not answered within `attempt_timeout` seconds (default:
    never). For `retry_ratio` and `retry_minimum` see `rpc_discovery.RetryBudget`. A connection that
    is older than `max_age` seconds is replaced. All other arguments are as in `Client.connect`.
    """

    _log: Log

    def __init__(
        self,
        discovery: Discovery | StaticDiscovery | Iterable[Node | str] | Node | str,
        balancer: str | type[Balancer] = "round_robin",
        *,
        connect_timeout: float = 3.0,
        idempotent: bool = False,
        codec: str | Codec | None = None,
        token: str | None = None,
        ssl: ssl_module.SSLContext | None = None,
        config: ClientConfig | None = None,
        tracer_provider: Any = None,
        observers: Iterable[Observer] = (),
        proxy: str | None = None,
        **settings: Any,
    ) -> None:
        if isinstance(discovery, (str, Node)):
            discovery = [discovery]
        if isinstance(discovery, Iterable):
            discovery = StaticDiscovery(discovery)
        if not 0 < connect_timeout <= 3600:
            raise ValueError(
                f"connect_timeout must be over 0 and at most 3600 s, not {connect_timeout!r}"
            )
        self.discovery = discovery
        self._machine: ViewMachine | None = None  # of the discovery, when it is followed
        self._pump: Any = None  # which runs that
        self._troubles: dict[str, str] = {}  # why there may be no view, by registry
        self._pool = Pool(now=monotonic(), rng=random, balancer=balancer, **settings)
        self._config = (config or ClientConfig()).override(codec=codec, token=token)
        self._ssl = ssl
        self._connecting = {
            "tracer_provider": tracer_provider,
            "observers": tuple(observers),
            "proxy": proxy,
        }
        self._connect_timeout = connect_timeout
        self._limited = self._pool.attempt_timeout is not None
        self._idempotent = idempotent
        self._call_timeout = self._config.call_timeout
        self.closed = False
        # The process, and the event loop or hub, in which it is used, when it is.
        self._owner: Owner | None = None
        self._retired: dict[Any, None] = {}  # connections that end when their calls have
        # Set, and replaced by a new one, when a dial has ended, a view has come, or it is closed.
        self._changed = self._make_event()
        if isinstance(discovery, StaticDiscovery):
            self._pool.update(discovery.view, monotonic())
        self._prepare()

    @overload
    def service(self, service: str, **options: Any) -> Any: ...
    @overload
    def service(self, service: Callable[..., Api], **options: Any) -> Api: ...
    def service(self, service: Any, **options: Any) -> Any:
        """Return a proxy: `client.service("Arith").add(1, 2)`, with `await` in asyncio.

        See `Client.service`. `options` are options of `call` for all calls through the proxy, for
        example `idempotent=True`.
        """

        def invoke(
            kind: str, method: str, args: tuple[Any, ...], kwargs: dict[str, Any], returns: Any
        ) -> Any:
            if kind == "stream":
                chosen = {name: options.get(name) for name in _OF_STREAMS}
                return self.perform(kind, method, args, kwargs, {**chosen, "returns": returns})
            if _OPTIONS.isdisjoint(kwargs):  # which is quicker
                return self.call(method, *args, returns=returns, **options, **kwargs)
            return self.perform("call", method, args, kwargs, {**options, "returns": returns})

        return service_proxy(invoke, service)

    def with_options(
        self,
        *,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
        returns: Any = None,
        key: str | None = None,
        node: str | None = None,
        idempotent: bool | None = None,
        hedge: bool | None = None,
    ) -> WithOptions:
        """Return a view of this client whose calls all have these options: see `call`."""
        return WithOptions(
            self,
            {
                "timeout": timeout,
                "metadata": metadata,
                "returns": returns,
                "key": key,
                "node": node,
                "idempotent": idempotent,
                "hedge": hedge,
            },
        )

    def perform(
        self,
        kind: str,
        method: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        options: Mapping[str, Any],
    ) -> Any:
        """Do what `call`, `request`, `notify` or `stream` does, with keywords of any name.

        `options` are those that `with_options` takes.
        """
        if kind == "start":
            raise LocalProtocolError(
                "a balanced client has no start(): retries need a caller that waits"
            )
        if kind == "stream":
            for name in ("idempotent", "hedge"):
                if options.get(name):
                    raise LocalProtocolError(f"{name} does not work with stream: none is repeated")
            return self._make_stream(StreamRequest.of(method, args, kwargs, options))
        if kind == "call":
            items = self._with_items(method, args, kwargs, options)
            if items is not None:
                return self._send_items(items)
        how: dict[str, Any] = {"timeout": None, **options}
        returns, metadata = how.pop("returns", None), how.pop("metadata", None)
        request = Request(method, args, kwargs, returns, metadata, one_way=kind == "notify")
        if kind == "call":
            return self._call(request, started=monotonic(), **how)
        if how.pop("hedge", None):
            raise LocalProtocolError(f"hedge works with call, not with {kind}")
        whole = self._begin(request, started=monotonic(), **how)
        return self._request(whole, request)

    def _with_items(
        self,
        method: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        options: Mapping[str, Any],
    ) -> StreamRequest | None:
        """Return what a call begins with if one of its arguments is an iterator."""
        return StreamRequest.with_items(method, args, kwargs, options, self._call_timeout)

    def _route(self, request: StreamRequest) -> Attempts:
        """Return the attempts to find a node for a stream, which take no longer than a call."""
        timeout = request.timeout
        whole = BalancedCall(
            request.method.rpartition(".")[0],
            inherit(None if timeout == inf else timeout, self._call_timeout, monotonic(), None)[0],
            idempotent=False,
            **{"key": None, "node": None, **request.route},
        )
        return self._attempts(whole)

    @abstractmethod
    def _make_stream(self, request: StreamRequest) -> Any:
        """Return a stream that has not begun."""

    @abstractmethod
    def _send_items(self, request: StreamRequest) -> Any:
        """Make a call whose items come from an iterator, and return the result."""

    @abstractmethod
    def _request(self, whole: BalancedCall, request: Request) -> Any:
        """Make a call and return its Reply; None for one that has no answer."""

    @property
    def nodes(self) -> list[Node]:
        """The known nodes."""
        return list(self._pool.view or ())

    @property
    def stats(self) -> dict[str, Any]:
        """Counters, for people and tests.

        `failovers` counts the retries; `stale` is for how many seconds the view has been
        unconfirmed, 0 while it is good.
        """
        pool = self._pool
        targets = list(pool.targets.values())
        since = None if self._machine is None else self._machine.stale_since
        if since is None and not self.closed and self._pump is not None:
            since = self._pump.died_at
        return {
            "nodes": len(targets),
            "connected": sum(target.is_ready() for target in targets),
            "ejected": len(pool.ejection.ejected),
            "in_flight": sum(target.in_flight for target in targets),
            "failovers": pool.failovers,
            "stale": 0.0 if since is None else monotonic() - since,
        }

    def __repr__(self) -> str:
        return f"<{type(self).__module__.partition('.')[0]}.BalancedClient>"

    def __del__(self) -> None:
        # Absent if `__init__` failed, None if it was never used; in a child it is the parent's.
        owner = getattr(self, "_owner", None)
        if owner is None or not owner.lives_here or self.closed:
            return
        try:
            warn_unclosed(self)
        finally:
            self.closed = True
            self._stop_following()
            for target in self._pool.targets.values():
                if target.client is not None:
                    target.client.let_go()

    # Supplied by the backend

    @abstractmethod
    def _stop_following(self) -> None:
        """End what follows the discovery, from any thread."""

    @abstractmethod
    def call(self, method: str, /, *args: Any, **options: Any) -> Any:
        """Call "Service.method" on one of the nodes."""

    @abstractmethod
    def _call(self, request: Request, *, hedge: bool = False, **how: Any) -> Any:
        """Make a call with the options that `call` takes for itself; for `how` see `_begin`."""

    def _prepare(self) -> None:  # noqa: B027 - not all need it
        """Set up what the runtime needs."""

    @abstractmethod
    def _make_event(self) -> Any:
        """Return something with `set()` and `wait`."""

    @abstractmethod
    def _here(self) -> tuple[str, Any]:
        """Return the kind of this place ("event loop" or "hub"), and the place."""

    @abstractmethod
    def _dial_soon(self, target: Target) -> None:
        """Begin to dial a node."""

    @abstractmethod
    def _close_soon(self, client: Any) -> None:
        """Close a connection when its calls have ended."""

    # The view

    def _weakly(self) -> Callable[[list[Event]], None]:
        """Return a function that takes events while the client exists, without keeping it alive."""
        reference = WeakMethod(self.take)

        def take(events: list[Event]) -> None:
            method = reference()
            if method is not None:
                method(events)

        return take

    def take(self, events: list[Event]) -> None:
        """Handle the events of a discovery."""
        for event in events:
            if isinstance(event, ViewChanged):
                self._apply(event.view)
            elif isinstance(event, StaleChanged):
                if event.since is None:
                    self._troubles.pop("", None)
                    self._log.info("discovery: the view of the nodes is up to date again")
                else:
                    self._troubles[""] = event.reason
                    self._log.warning("discovery: using the last known nodes: %s", event.reason)
            elif isinstance(event, SourceFailed):
                self._troubles[event.source] = event.reason
                self._log.warning("discovery: %s failed: %s", event.source, event.reason)
            elif isinstance(event, SourceReached):
                self._troubles.pop(event.source, None)
                self._log.info("discovery: %s responds again", event.source)

    def _apply(self, view: View) -> None:
        """Take a view."""
        if self.closed:
            return
        for target in self._pool.update(view, monotonic()):
            client, target.client = target.client, None
            if client is not None:
                self._close_soon(client)
        self._notify()

    def _notify(self) -> None:
        """Wake everything that waits."""
        changed, self._changed = self._changed, self._make_event()
        changed.set()

    def _without_view(self) -> str:
        reasons = [
            f"{registry}: {reason}" if registry else reason
            for registry, reason in list(self._troubles.items())
        ]
        return f" before any node was known{': ' if reasons else ''}{'; '.join(reasons)}"

    def _end(self) -> list[Target]:
        """Accept no more calls; return the nodes, whose connections must be closed."""
        self.closed = self._pool.closed = True
        targets = self._pool.update(View(), monotonic())
        self._pool.view = None  # so that the next call looks why
        self._notify()
        return targets

    # Calls

    def _find(self, method: str, now: float, key: str | None) -> Target | None:
        """Return a connected node, and dial the next one if it is not connected."""
        pool = self._pool
        balancer = pool.calm.get(method)
        target: Any = None
        if balancer is not None and now < pool.returns_at and now < balancer.due:
            target = balancer.choose(now, key, ())  # like `pick`, with one call less
            if now < target.expires_at:
                client = target.client
                if client is not None and client.connection.state is _OPEN:
                    return target  # type: ignore[no-any-return]
        return pool.find(method, now, key, target, self._dial_soon)

    def _begin(
        self,
        request: Request,
        timeout: float | None,
        started: float,
        key: str | None = None,
        node: str | None = None,
        idempotent: bool | None = None,
    ) -> BalancedCall:
        """Return a call that can be retried; its time counts from `started`."""
        return BalancedCall(
            request.service,
            inherit(timeout, self._call_timeout, started, None)[0],
            idempotent=self._idempotent if idempotent is None else idempotent,
            key=key,
            node=node,
        )

    def _attempts(self, whole: BalancedCall) -> Attempts:
        return Attempts(self._pool, whole, self._without_view)

    def _blame(self, target: Target, client: Any) -> bool:
        """Whether a failure says something new about a node; a lost connection is dropped."""
        state = client.connection.state
        if state is State.CLOSED and target.client is client:
            target.client = None
            return True  # it was lost, and this is the first of the calls that fail with it
        return bool(state is _OPEN)

    def _each(self, request: Request, timeout: float | None, started: float) -> list[BalancedCall]:
        """Return a call for each node that offers the service."""
        return [
            self._begin(request, timeout, started, node=target.node.address)
            for target in self._pool.offering(request.service)
        ]

    def _some(self, first: BalancedCall, count: int) -> list[BalancedCall]:
        """Return calls to different nodes, as many as requested if there are enough."""
        now = monotonic()
        chosen: list[Target] = []
        while len(chosen) < count:
            target = self._pool.pick(first.service, now, first.key, chosen)
            if target in chosen:
                break
            chosen.append(target)
        return [
            BalancedCall(first.service, first.deadline, idempotent=True, node=target.node.address)
            for target in chosen
        ]

    # Connections

    def _options(self, target: Target) -> dict[str, Any]:
        """Return the arguments of `Client.connect` for a node, but the address."""
        ssl = self._ssl if parse_address(target.node.address).has_tls else None
        timeout = self._connect_timeout
        return {"timeout": timeout, "config": self._config, "ssl": ssl, **self._connecting}

    def _dialled(self, target: Target, client: Any) -> bool:
        """Take a new connection, if still needed, and close the one it replaces gracefully."""
        target.dialling = None
        client.is_owned = True
        wanted = not self.closed and not target.gone
        if wanted:
            old, target.client = target.client, client
            self._pool.connected(target, monotonic())
            if old is not None:
                self._close_soon(old)
        self._notify()
        return wanted

    def _not_dialled(self, target: Target, error: Exception) -> bool:
        """Record a failed dial; return whether to log it."""
        target.dialling = None
        self._pool.unreachable(target, error, monotonic(), target.is_ready())
        self._notify()
        return target.failures == 1 and not self.closed and not target.gone

    def _log_unreachable(self, target: Target) -> None:
        self._log.info("%s cannot be reached: %s", target.node.address, target.why)

    # Checks

    def _check_open(self) -> None:
        """Raise LocalProtocolError if the client is closed, or used in the wrong place."""
        self._check_owner()
        if self.closed:
            raise LocalProtocolError("this client was closed")

    def _check_owner(self) -> None:
        owner = self._owner
        if owner is None:
            self._owner = Owner("client", *self._here())
        else:
            if not owner.lives_here:  # first: in a child no loop seems to run
                owner.refuse()
            owner.check(self._here()[1])


def check_hedge(node: str | None, idempotent: bool | None) -> None:
    """Raise ValueError for a call that cannot be hedged."""
    if node is not None:
        raise ValueError("hedge needs a second node and cannot be combined with node=")
    if idempotent is False:
        raise ValueError("hedge may send a call twice and cannot be combined with idempotent=False")


def check_count(count: int) -> None:
    """Raise ValueError for an invalid number of nodes."""
    if not isinstance(count, int) or count < 1:
        raise ValueError(f"count must be a whole number from 1 up, not {count!r}")


def check_policy(policy: str) -> None:
    """Raise ValueError for an unknown policy."""
    if policy not in _POLICIES:
        raise ValueError(f"policy must be one of {', '.join(_POLICIES)}, not {policy!r}")


def judge(policy: str, request: Request, results: dict[str, Any]) -> dict[str, Any]:
    """Return the results of a broadcast, or raise BroadcastFailed."""
    if not results:
        raise Unavailable(f"no node offers {request.service!r:.100}", maybe_executed=False)
    failed = {node: error for node, error in results.items() if isinstance(error, CallError)}
    if (policy == "all" and failed) or (policy in ("any", "first") and len(failed) == len(results)):
        reasons = [f"{node}: {error}" for node, error in failed.items()]
        raise BroadcastFailed(
            f"{len(failed)} of {len(results)} nodes failed: {'; '.join(reasons[:3])}", results
        )
    return results
