"""The balanced client for asyncio: many nodes, one connection to each of those that are used."""

import asyncio
import logging
from collections.abc import Coroutine, Mapping
from random import random
from time import monotonic
from typing import Any, Self, TypeVar, overload

from rpc_common.balanced import (
    DRAIN,
    BalancedBase,
    Request,
    check_policy,
    is_ready,
    judge,
    time_left,
)
from rpc_common.client import Reply
from rpc_common.files import look
from rpc_discovery import FileView, View
from rpc_discovery.pool import BalancedCall, Target
from rpc_proto import CallCompleted, CallError
from rpc_proto.proxy import service_proxy

from .client import Client
from .pump import Pump

__all__ = ["BalancedClient"]

Api = TypeVar("Api")
_Failure = tuple[Target, CallError, float]


class BalancedClient(BalancedBase):
    """Calls the nodes of a discovery; for the arguments see `BalancedBase`."""

    _log = logging.getLogger("rpc_asyncio")

    def _prepare(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()
        self._follower: asyncio.Task[None] | None = None
        self._pump: Pump | None = None
        self._seen: asyncio.Event | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self, grace: float = 0.0) -> None:
        """Close all connections; calls in flight get `grace` seconds, then are cancelled."""
        self._closed = True
        targets = list(self._pool.targets.values())
        tasks = [t.dialling for t in targets if t.dialling is not None]
        if self._follower is not None:
            tasks.append(self._follower)
        if self._pump is not None:
            self._pump.stop()
        for task in tasks:
            task.cancel()
        clients = [t.client for t in targets if t.client is not None]
        await asyncio.gather(*(client.close(grace) for client in clients))
        await asyncio.gather(*tasks, *self._tasks, return_exceptions=True)
        self._pool.update(View(), monotonic())

    async def call(
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
            target = self._find(method.rpartition(".")[0], started, key)
            if target is not None:
                client = target.client
                call = client._start(method, args, kwargs, returns, timeout, metadata)
                target.in_flight += 1
                try:
                    value = (await call.waiter).value
                except CallError as error:
                    failure = target, error, started
                except BaseException:
                    client._give_up(call)
                    self._pool.cancelled(target)
                    raise
                else:
                    self._pool.succeeded(target, started, monotonic())
                    return value
        request = Request(method, args, kwargs, returns, metadata)
        whole = self._begin(request, timeout, started, key, node, idempotent)
        if hedge:
            return (await self._hedge(whole, request)).value
        return (await self._persist(whole, request, failure)).value

    async def request(
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
        event = await self._persist(whole, request)
        return Reply(event.value, event.metadata)

    async def notify(
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
        await self._persist(whole, request)

    async def broadcast(
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
        await self._see(self._begin(request, timeout, started, None, None, False))
        results: dict[str, Any] = {}

        async def ask(address: str) -> None:
            whole = self._begin(request, timeout, started, None, address, False)
            try:
                results[address] = (await self._persist(whole, request)).value
            except CallError as error:
                results[address] = error

        addresses = [target.node.address for target in self._pool.offering(request.service)]
        tasks = [asyncio.create_task(ask(address)) for address in addresses]
        try:
            for done in asyncio.as_completed(tasks):
                await done
                if policy == "first" and not all(
                    isinstance(result, CallError) for result in results.values()
                ):
                    break
        finally:
            await _drop(tasks)
        return judge(policy, request, results)

    async def fork(
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
        await self._see(first)
        wholes = self._spread(first, request, timeout, started, count)
        return (await self._race([self._persist(whole, request) for whole in wholes])).value

    @overload
    def service(self, service: str) -> Any: ...
    @overload
    def service(self, service: type[Api]) -> Api: ...
    def service(self, service: Any) -> Any:
        """Return a proxy: `await client.service("Arith").add(1, 2)`; see `Client.service`."""

        def invoke(method: str, args: tuple[Any, ...], kwargs: dict[str, Any], returns: Any) -> Any:
            return self.call(method, *args, returns=returns, **kwargs)

        return service_proxy(invoke, service)

    # One call, as often as it takes

    async def _persist(
        self, whole: BalancedCall, request: Request, failure: _Failure | None = None
    ) -> CallCompleted:
        pool = self._pool
        while True:
            if failure is not None:
                target, error, started = failure
                pause = pool.failed(whole, target, error, started, monotonic())
                if pause is None:
                    raise error
                failure = None
                if pause:
                    await asyncio.sleep(min(pause, time_left(whole, monotonic())))
            target = await self._reach(whole)
            client = target.client
            started = monotonic()
            call = client._start(
                request.method,
                request.args,
                request.kwargs,
                request.returns,
                min(time_left(whole, started), self._pool.limit(whole)),
                request.metadata,
                request.one_way,
            )
            target.in_flight += 1
            try:
                event: CallCompleted | None = None
                if not call.sent or not request.one_way:
                    event = await call.waiter
            except CallError as error:
                failure = target, error, started
            except BaseException:
                client._give_up(call)
                pool.cancelled(target)
                raise
            else:
                pool.succeeded(target, started, monotonic())
                return event  # type: ignore[return-value]  # a call without an answer has none

    async def _reach(self, whole: BalancedCall) -> Target:
        """Return a node that is connected; CallError if there is none."""
        await self._see(whole)
        while True:
            target = self._pool.pick_for(whole, monotonic())
            if is_ready(target):
                return target
            await self._within(whole, target.dialling or self._dial_soon(target))

    async def _see(self, whole: BalancedCall) -> None:
        """Wait for the first view."""
        self._check_open()
        if self._machine is None and hasattr(self.discovery, "open"):
            self._follow()
        if self._pool.view is None:
            assert self._seen is not None
            left = time_left(whole, monotonic())
            try:
                async with asyncio.timeout(None if left == float("inf") else left):
                    await self._seen.wait()
            except TimeoutError:
                time_left(whole, max(monotonic(), whole.deadline or 0.0))

    def _follow(self) -> None:
        self._seen = asyncio.Event()
        self._machine = self.discovery.open(monotonic(), random)
        if isinstance(self._machine, FileView):
            self._follower = asyncio.create_task(self._follow_file())
        else:
            self._pump = Pump(self._machine, self._take, self._log, self.discovery.ssl)

    async def _follow_file(self) -> None:
        seen: Any = None
        while True:
            seen, events = look(self.discovery.path, self._machine, seen, monotonic())
            self._take(events)
            await asyncio.sleep(self.discovery.interval)

    def _apply(self, view: View) -> None:
        super()._apply(view)
        assert self._seen is not None
        self._seen.set()

    async def _within(self, whole: BalancedCall, what: "asyncio.Future[Any]") -> None:
        """Wait for what others may wait for, too."""
        left = time_left(whole, monotonic())
        await asyncio.wait([what], timeout=None if left == float("inf") else left)
        if not what.done():
            time_left(whole, max(monotonic(), whole.deadline or 0.0))

    async def _hedge(self, whole: BalancedCall, request: Request) -> CallCompleted:
        """Ask a second node if the first takes too long."""
        pool = self._pool
        started = monotonic()
        first = asyncio.create_task(self._persist(whole, request))
        try:
            delay = pool.hedging.seconds
            await asyncio.wait([first], timeout=delay)
            if first.done() or not pool.budget.withdraw(monotonic()):
                event = await first
            else:
                other = BalancedCall(whole.service, whole.deadline, idempotent=whole.idempotent)
                other.tried = {*whole.tried, *([whole.target] if whole.target else [])}
                event = await self._race([first, self._persist(other, request)])
        finally:
            await _drop([first])
        pool.hedging.observe(monotonic() - started)
        return event

    async def _race(
        self, attempts: "list[asyncio.Task[CallCompleted] | Coroutine[Any, Any, CallCompleted]]"
    ) -> CallCompleted:
        """Return the first good outcome and cancel the others; the last error if there is none."""
        tasks = [asyncio.ensure_future(attempt) for attempt in attempts]
        try:
            error: CallError | None = None
            for done in asyncio.as_completed(tasks):
                try:
                    return await done
                except CallError as failed:
                    error = failed
            assert error is not None
            raise error
        finally:
            await _drop(tasks)

    # Connections

    def _dial_soon(self, target: Target) -> "asyncio.Task[None]":
        if not is_ready(target):
            self._pool.dialling(target)
        task: asyncio.Task[None] = asyncio.create_task(self._dial(target))
        target.dialling = task
        return task

    async def _dial(self, target: Target) -> None:
        try:
            client = await Client.connect(
                target.node.address, timeout=self._connect_timeout, **self._options(target)
            )
        except Exception as error:
            self._pool.unreachable(target, error, monotonic(), is_ready(target))
        else:
            if self._closed or target.gone:
                await client.close()
            else:
                self._install(target, client)
        finally:
            target.dialling = None

    def _close_soon(self, client: Client) -> None:
        task = asyncio.create_task(client.close(DRAIN))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def _drop(tasks: "list[asyncio.Task[Any]]") -> None:
    """Cancel what is left of some tasks, and see them end."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
