"""The balanced client for runtimes that wait in place: gevent and blocking."""

from collections.abc import Mapping
from random import random
from threading import Lock
from time import monotonic
from typing import Any, Self, TypeVar, overload

from rpc_discovery import FileView, View
from rpc_discovery.pool import BalancedCall, Target
from rpc_proto import CallCompleted, CallError, Cancelled
from rpc_proto.proxy import service_proxy

from .balanced import DRAIN, BalancedBase, Request, check_policy, is_ready, judge, time_left
from .client import Reply, SyncClient
from .files import look
from .pump import Pump
from .runtime import Runtime

__all__ = ["SyncBalancedClient"]

Api = TypeVar("Api")
_Failure = tuple[Target, CallError, float]

_LONGEST = 3600.0  # seconds; not every runtime waits longer at a time


class _Attempts:
    """Calls of one request that run at the same time."""

    def __init__(self, outcomes: Any) -> None:
        self.outcomes = outcomes  # a queue
        self.running: list[BalancedCall] = []


class SyncBalancedClient(BalancedBase):
    """Calls the nodes of a discovery; for the arguments see `BalancedBase`."""

    _client: type[SyncClient]
    _runtime: Runtime

    def _prepare(self) -> None:
        # Of the pool and of the targets. It is never held while anything is waited for.
        self._lock = Lock()
        self._seen = self._runtime.make_event()
        self._ending = self._runtime.make_queue()
        self._pump: Pump | None = None

    # For users

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self, grace: float = 0.0) -> None:
        """Close all connections; calls in flight get `grace` seconds, then are cancelled."""
        with self._lock:
            self._closed = True
            self._ending.put(None)
            clients = [t.client for t in self._pool.targets.values() if t.client is not None]
            self._pool.update(View(), monotonic())
        if self._pump is not None:
            self._pump.stop()
        for client in clients:
            client.close(grace)

    def call(
        self,
        method: str,
        /,
        *args: Any,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
        returns: Any = None,
        key: str | None = None,
        node: str | None = None,
        idempotent: bool | None = None,
        hedge: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Call "Service.method" on one of the nodes and return its result.

        As `Client.call`, and: `key` keeps calls together where the balancer can do that; `node` is
        the address of the one node to ask; `idempotent` says whether the call may be repeated
        though a handler may have run, and `hedge` whether a second node is asked when the first
        takes longer than all but 5 % of the calls. `timeout` covers it all.
        """
        started = monotonic()
        failure: _Failure | None = None
        if node is None and not hedge and not self._limited:
            with self._lock:
                target = self._find(method.rpartition(".")[0], started, key)
                if target is not None:
                    target.in_flight += 1
            if target is not None:
                client = target.client
                try:
                    call = client._begin(method, args, kwargs, returns, timeout, metadata)
                    value = client._wait(call, call.waiter).value
                except CallError as error:
                    failure = target, error, started
                except BaseException:
                    self._cancelled(target)
                    raise
                else:
                    with self._lock:
                        self._pool.succeeded(target, started, monotonic())
                    return value
        request = Request(method, args, kwargs, returns, metadata)
        whole = self._begin(request, timeout, started, key, node, idempotent)
        if hedge:
            return self._hedge(whole, request).value
        return self._persist(whole, request, failure).value

    def request(
        self,
        method: str,
        /,
        *args: Any,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
        returns: Any = None,
        key: str | None = None,
        node: str | None = None,
        idempotent: bool | None = None,
        **kwargs: Any,
    ) -> Reply:
        """Like `call`, but return the server's metadata with the result."""
        request = Request(method, args, kwargs, returns, metadata)
        whole = self._begin(request, timeout, monotonic(), key, node, idempotent)
        event = self._persist(whole, request)
        return Reply(event.value, event.metadata)

    def notify(
        self,
        method: str,
        /,
        *args: Any,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
        key: str | None = None,
        node: str | None = None,
        **kwargs: Any,
    ) -> None:
        """Send a call that has no answer to one of the nodes; returns when it is sent."""
        request = Request(method, args, kwargs, None, metadata, one_way=True)
        whole = self._begin(request, timeout, monotonic(), key, node, False)
        self._persist(whole, request)

    def broadcast(
        self,
        method: str,
        /,
        *args: Any,
        policy: str = "each",
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
        returns: Any = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Call all nodes that offer the service; return {address: result or CallError}.

        `policy` says when that is a success, and BroadcastFailed with the `results` is raised
        otherwise: "each" always; "all" when all nodes answered well; "any" when one did; "first"
        is as "any", but returns at once and cancels the other calls.
        """
        check_policy(policy)
        request = Request(method, args, kwargs, returns, metadata)
        started = monotonic()
        self._see(self._begin(request, timeout, started, None, None, False))
        results: dict[str, Any] = {}
        with self._lock:
            addresses = [target.node.address for target in self._pool.offering(request.service)]
        attempts = _Attempts(self._runtime.make_queue())
        for address in addresses:
            self._attempt(
                attempts, self._begin(request, timeout, started, None, address, False), request
            )
        try:
            for _ in addresses:
                whole, event, error = self._runtime.get(attempts.outcomes, None)
                results[whole.node] = event.value if error is None else error
                if policy == "first" and error is None:
                    break
        finally:
            self._abandon(attempts)
        return judge(policy, request, results)

    def fork(
        self,
        method: str,
        /,
        *args: Any,
        count: int = 2,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
        returns: Any = None,
        key: str | None = None,
        **kwargs: Any,
    ) -> Any:
        """Call several nodes at once, return the first result and cancel the other calls.

        For calls that may run more than once. If all fail, the last error is raised.
        """
        request = Request(method, args, kwargs, returns, metadata)
        started = monotonic()
        first = self._begin(request, timeout, started, key, None, False)
        self._see(first)
        with self._lock:
            wholes = self._spread(first, request, timeout, started, count)
        attempts = _Attempts(self._runtime.make_queue())
        for whole in wholes:
            self._attempt(attempts, whole, request)
        return self._first(attempts).value

    @overload
    def service(self, service: str) -> Any: ...
    @overload
    def service(self, service: type[Api]) -> Api: ...
    def service(self, service: Any) -> Any:
        """Return a proxy: `client.service("Arith").add(1, 2)`; see `Client.service`."""

        def invoke(method: str, args: tuple[Any, ...], kwargs: dict[str, Any], returns: Any) -> Any:
            return self.call(method, *args, returns=returns, **kwargs)

        return service_proxy(invoke, service)

    # One call, as often as it takes

    def _persist(
        self, whole: BalancedCall, request: Request, failure: _Failure | None = None
    ) -> CallCompleted:
        while True:
            if failure is not None:
                target, error, started = failure
                with self._lock:
                    pause = self._pool.failed(whole, target, error, started, monotonic())
                if pause is None:
                    try:
                        raise error
                    finally:
                        del failure, error  # or error, traceback and frame keep each other alive
                failure = None
                if pause:
                    self._runtime.sleep(min(pause, time_left(whole, monotonic())))
            target = self._reach(whole)
            client = target.client
            started = monotonic()
            try:
                call = client._begin(
                    request.method,
                    request.args,
                    request.kwargs,
                    request.returns,
                    min(time_left(whole, started), self._pool.limit(whole)),
                    request.metadata,
                    request.one_way,
                )
                whole.pending = client, call
                if whole.abandoned:
                    client._give_up(call)
                event: CallCompleted | None = None
                if not call.sent or not request.one_way:
                    event = client._wait(call, call.waiter)
            except CallError as failed:
                failure = target, failed, started
            except BaseException:
                self._cancelled(target)
                raise
            else:
                with self._lock:
                    self._pool.succeeded(target, started, monotonic())
                return event  # type: ignore[return-value]  # a call without an answer has none
            finally:
                whole.pending = None

    def _cancelled(self, target: Target) -> None:
        with self._lock:
            self._pool.cancelled(target)

    def _reach(self, whole: BalancedCall) -> Target:
        """Return a node that is connected, with this call counted; CallError if there is none."""
        self._see(whole)
        while True:
            if whole.abandoned:
                raise Cancelled("another node was quicker", maybe_executed=False)
            now = monotonic()
            with self._lock:
                target = self._pool.pick_for(whole, now)
                if is_ready(target):
                    target.in_flight += 1
                    return target
                dialled = target.dialling or self._dial_soon(target)
            self._within(whole, dialled)

    def _see(self, whole: BalancedCall) -> None:
        """Wait for the first view."""
        self._check_open()
        if self._machine is None and hasattr(self.discovery, "open"):
            with self._lock:
                if self._machine is None:
                    self._follow()
        while self._pool.view is None:
            self._within(whole, self._seen)

    def _follow(self) -> None:
        self._machine = self.discovery.open(monotonic(), random)
        if isinstance(self._machine, FileView):
            self._runtime.spawn(self._follow_file)
        else:
            self._pump = Pump(
                self._machine, self._take, self._runtime, self._log, self.discovery.ssl
            )

    def _follow_file(self) -> None:
        seen: Any = None
        while not self._closed:
            seen, events = look(self.discovery.path, self._machine, seen, monotonic())
            self._take(events)
            self._runtime.get(self._ending, self.discovery.interval)

    def _take(self, events: list[Any]) -> None:
        with self._lock:
            super()._take(events)
        if self._pool.view is not None:
            self._seen.set()

    def _within(self, whole: BalancedCall, event: Any) -> None:
        """Wait for what others may wait for, too."""
        event.wait(min(time_left(whole, monotonic()), _LONGEST))

    # Several calls at the same time

    def _attempt(self, attempts: _Attempts, whole: BalancedCall, request: Request) -> None:
        attempts.running.append(whole)

        def run() -> None:
            event: CallCompleted | None = None
            error: BaseException | None = None
            try:
                event = self._persist(whole, request)
            except BaseException as failed:
                error = failed
            attempts.outcomes.put((whole, event, error))
            del error

        self._runtime.spawn(run)

    def _first(self, attempts: _Attempts) -> CallCompleted:
        """Return the first good outcome and cancel the others; the last error if there is none."""
        try:
            error: BaseException | None = None
            for _ in list(attempts.running):
                _, event, error = self._runtime.get(attempts.outcomes, None)
                if error is None:
                    return event  # type: ignore[no-any-return]
            assert error is not None
            raise error
        finally:
            error = None
            self._abandon(attempts)

    def _abandon(self, attempts: _Attempts) -> None:
        for whole in attempts.running:
            whole.abandoned = True
            pending = whole.pending
            if pending is not None:
                client, call = pending
                client._give_up(call)

    def _hedge(self, whole: BalancedCall, request: Request) -> CallCompleted:
        """Ask a second node if the first takes too long."""
        started = monotonic()
        attempts = _Attempts(self._runtime.make_queue())
        delay = self._pool.hedging.seconds
        if delay is None:
            event = self._persist(whole, request)
        else:
            event = self._hedge_after(delay, attempts, whole, request)
        with self._lock:
            self._pool.hedging.observe(monotonic() - started)
        return event

    def _hedge_after(
        self, delay: float, attempts: _Attempts, whole: BalancedCall, request: Request
    ) -> CallCompleted:
        self._attempt(attempts, whole, request)
        first = self._runtime.get(attempts.outcomes, delay)
        if first is not None:
            _, event, error = first
            if error is not None:
                raise error
            return event  # type: ignore[no-any-return]
        with self._lock:
            allowed = self._pool.budget.withdraw(monotonic())
        if allowed:
            other = BalancedCall(whole.service, whole.deadline, idempotent=whole.idempotent)
            other.tried = {*whole.tried, *([whole.target] if whole.target else [])}
            self._attempt(attempts, other, request)
        return self._first(attempts)

    # Connections

    def _dial_soon(self, target: Target) -> Any:
        if not is_ready(target):
            self._pool.dialling(target)
        target.dialling = event = self._runtime.make_event()
        self._runtime.spawn(lambda: self._dial(target, event))
        return event

    def _dial(self, target: Target, event: Any) -> None:
        client = failure = None
        try:
            client = self._client.connect(
                target.node.address, timeout=self._connect_timeout, **self._options(target)
            )
        except Exception as error:
            failure = error
        with self._lock:
            target.dialling = None
            if client is None:
                assert failure is not None
                self._pool.unreachable(target, failure, monotonic(), is_ready(target))
            elif not self._closed and not target.gone:
                self._install(target, client)
                client = None
        if client is not None:
            client.close()
        event.set()
        del failure

    def _close_soon(self, client: Any) -> None:
        self._runtime.spawn(lambda: client.close(DRAIN))
