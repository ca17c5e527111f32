"""The balanced client for asyncio: many nodes, one connection to each node in use."""

import asyncio
from collections.abc import Coroutine, Mapping
from contextlib import suppress
from contextvars import Context
from math import inf
from random import random
from time import monotonic
from typing import Any, Self, TypeVar, overload

from rpc_common.balanced.base import (
    DRAIN,
    BalancedBase,
    Request,
    check_count,
    check_hedge,
    check_policy,
    judge,
)
from rpc_common.client.base import Reply
from rpc_common.client.streams import Request as StreamRequest
from rpc_common.telemetry.log import get_log
from rpc_discovery import Discovery, StaticDiscovery
from rpc_discovery.attempts import Attempts, Dial, Fail, Send, Wait
from rpc_discovery.groups import Begin, Group, Hedge
from rpc_discovery.pool import BalancedCall, Target
from rpc_proto import CallCompleted, CallError, InvalidArgument

from .carriers import check_source
from .client import Client
from .pump import Pump
from .streams import Stream

__all__ = ["BalancedClient"]

Result = TypeVar("Result")


class BalancedClient(BalancedBase):
    """A client of many servers; for the arguments see `BalancedBase`.

    It belongs to the event loop that uses it first.
    """

    _log = get_log("rpc_asyncio")

    def _prepare(self) -> None:
        self._tasks: dict[asyncio.Task[Any], None] = {}  # dials, and connections that are closed
        if not isinstance(self.discovery, StaticDiscovery):
            check_source(self.discovery.ssl, self.discovery.transport)

    def _make_event(self) -> asyncio.Event:
        return asyncio.Event()

    def _here(self) -> tuple[str, asyncio.AbstractEventLoop]:
        return "event loop", asyncio.get_running_loop()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self, grace: float = 0.0) -> None:
        """Close all connections; calls in flight get `grace` seconds, then are cancelled."""
        self._check_owner()
        targets = self._end()
        tasks = [target.dialling for target in targets if target.dialling is not None]
        if self._pump is not None:
            await self._pump.close()
        for task in tasks:
            task.cancel()
        clients = [target.client for target in targets if target.client is not None]
        await asyncio.gather(*(client.close(grace) for client in (*clients, *self._retired)))
        await asyncio.gather(*tasks, *self._tasks, return_exceptions=True)

    @overload
    async def call(
        self,
        method: str,
        /,
        *args: Any,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
        returns: type[Result],
        key: str | None = None,
        node: str | None = None,
        idempotent: bool | None = None,
        hedge: bool = False,
        **kwargs: Any,
    ) -> Result: ...
    @overload
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
    ) -> Any: ...
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

        Like `Client.call`, with these options in addition. `key`: calls with the same key go to the
        same node, if the balancer supports that. `node`: the address of the only node to call.
        `idempotent`: whether the call may be retried after a handler may have run. `hedge`: whether
        to call a second node if the first takes longer than 95 % of calls. `timeout`, in seconds,
        covers all attempts.
        """
        started = monotonic()
        if node is None and not hedge and not self._limited:
            target = self._find(method, started, key)
            if target is not None:
                client = target.client
                call = None
                target.in_flight += 1
                try:
                    call = client.begin_call(method, args, kwargs, returns, timeout, metadata)
                    value = (await call.waiter).value
                except CallError as error:
                    items = None
                    if type(error) is InvalidArgument and call is None:
                        options = {"timeout": timeout, "metadata": metadata, "returns": returns}
                        items = self._with_items(method, args, kwargs, {**options, "key": key})
                    if items is not None:
                        self._pool.cancelled(target)
                        return await self._send_items(items)
                    request = Request(method, args, kwargs, returns, metadata)
                    whole = self._begin(request, timeout, started, key, node, idempotent)
                    attempts = self._attempts(whole)
                    now = monotonic()
                    blamed = self._blame(target, client)
                    pause = self._pool.failed(whole, target, error, started, now, blamed)
                    if pause is None:
                        raise
                    attempts.resume(now, error, pause)
                except BaseException:
                    self._give_up(target, client, call)
                    raise
                else:
                    if self._pool.measures:
                        self._pool.succeeded(target, started, monotonic())
                    else:  # the same, without a call more
                        target.in_flight -= 1
                        target.errors = 0
                        self._pool.ended_well += 1
                    return value
                return (await self._persist(attempts, request)).value
        options = {"timeout": timeout, "metadata": metadata, "returns": returns}
        items = self._with_items(method, args, kwargs, {**options, "key": key, "node": node})
        if items is not None:
            return await self._send_items(items)
        request = Request(method, args, kwargs, returns, metadata)
        return await self._call(
            request,
            timeout=timeout,
            started=started,
            key=key,
            node=node,
            idempotent=idempotent,
            hedge=hedge,
        )

    async def _call(self, request: Request, *, hedge: bool = False, **how: Any) -> Any:
        whole = self._begin(request, **how)
        if hedge:
            check_hedge(whole.node, how.get("idempotent"))
            group = Hedge(self._pool, whole, request.method, monotonic())
            await self._gather(group, request)
            return group.winner().value
        return (await self._persist(self._attempts(whole), request)).value

    async def _request(self, whole: BalancedCall, request: Request) -> Reply | None:
        event = await self._persist(self._attempts(whole), request)
        return None if request.one_way else Reply(event.value, event.metadata)

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
        event = await self._persist(self._attempts(whole), request)
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
        """Send a one-way call, which has no answer, to a node; returns once it is sent."""
        request = Request(method, args, kwargs, None, metadata, one_way=True)
        whole = self._begin(request, timeout, monotonic(), key, node, False)
        await self._persist(self._attempts(whole), request)

    def stream(
        self,
        method: str,
        /,
        *args: Any,
        timeout: float | None = None,
        idle_timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
        returns: Any = None,
        key: str | None = None,
        node: str | None = None,
        **kwargs: Any,
    ) -> Stream[Any]:
        """Return a call with items on one of the nodes: see `Client.stream`.

        It begins at a node that can be reached, within `timeout` or, without one, within the time
        of a call, and stays there; once it has begun, it is never repeated.
        """
        options = {"timeout": timeout, "metadata": metadata, "returns": returns}
        more = {"idle_timeout": idle_timeout, "key": key, "node": node}
        return Stream(self, StreamRequest.of(method, args, kwargs, {**options, **more}))

    def _make_stream(self, request: StreamRequest) -> Stream[Any]:
        return Stream(self, request)

    async def _send_items(self, request: StreamRequest) -> Any:
        return await Stream[Any](self, request).send_source()

    async def begin_stream(
        self, stream: Stream[Any], request: StreamRequest, sends: bool, takes: bool
    ) -> None:
        """Not for users: begin a stream at a node."""
        self._begin_following()
        attempts = self._route(request)
        while True:
            step = attempts.next(monotonic())
            if isinstance(step, Send):
                client = step.target.client
                assert client is not None
                timeout = request.timeout if request.timeout == inf else step.timeout
                try:
                    here = request._replace(timeout=timeout)
                    await client.begin_stream(stream, here, sends, takes)
                except CallError as error:
                    attempts.failed(monotonic(), error, self._blame(step.target, client))
                except BaseException:
                    attempts.cancelled()
                    raise
                else:
                    stream.running.on_end = attempts.cancelled
                    return
            elif isinstance(step, Dial):
                self._dial_soon(step.target)
            elif isinstance(step, Wait):
                await self._wait(step.seconds)
            elif isinstance(step, Fail):
                try:
                    raise step.error
                finally:
                    del step  # or error, traceback and frame would keep each other alive

    def check_here(self) -> None:
        """Raise LocalProtocolError if this is the wrong place to use the client."""
        self._check_owner()

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

        `policy` is what counts as a success; otherwise BroadcastFailed is raised, which has the
        `results`. "each": always; "all": all nodes succeeded; "any": at least one succeeded;
        "first": like "any", but it returns at the first success and cancels the other calls.
        """
        check_policy(policy)
        request = Request(method, args, kwargs, returns, metadata)
        started = monotonic()
        await self._see(self._begin(request, timeout, started))

        calls = self._each(request, timeout, started)
        group = Group(calls, first=policy == "first")
        await self._gather(group, request)
        return judge(policy, request, group.results())

    async def race(
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

        Use it only for calls that may run more than once. If all fail, the last error is raised.
        """
        check_count(count)
        request = Request(method, args, kwargs, returns, metadata)
        first = self._begin(request, timeout, monotonic(), key)
        await self._see(first)
        group = Group(self._some(first, count), first=True)
        await self._gather(group, request)
        return group.winner().value

    async def _gather(self, group: Group, request: Request) -> None:
        """Make the calls of a group until it is over."""
        tasks: dict[asyncio.Task[CallCompleted], BalancedCall] = {}
        done: set[asyncio.Task[CallCompleted]] = set()
        try:
            while (step := group.next(monotonic())) is not None:
                if isinstance(step, Begin):
                    attempts = self._attempts(step.call)
                    tasks[asyncio.create_task(self._persist(attempts, request))] = step.call
                    continue
                seconds = None if step.seconds == inf else step.seconds
                done, _ = await asyncio.wait(
                    tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED
                )
                for task in [one for one in tasks if one in done]:  # in their order
                    error = task.exception()
                    if error is not None and not isinstance(error, CallError):
                        raise error
                    group.ended(monotonic(), tasks.pop(task), error or task.result())
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            # Or error, traceback, this frame and its tasks would keep each other alive.
            tasks.clear()
            done = set()
            task = error = None  # type: ignore[assignment]

    # One call, with its attempts

    async def _persist(self, attempts: Attempts, request: Request) -> CallCompleted:
        if not attempts.call.attempts:
            self._begin_following()
        while True:
            step = attempts.next(monotonic())
            if isinstance(step, Send):
                client = step.target.client
                call = None
                try:
                    call = client.begin_call(
                        request.method,
                        request.args,
                        request.kwargs,
                        request.returns,
                        step.timeout,
                        request.metadata,
                        request.one_way,
                    )
                    event: CallCompleted | None = None
                    if not call.sent or not request.one_way:
                        event = await call.waiter
                except CallError as error:
                    blamed = self._blame(step.target, client)
                    attempts.failed(monotonic(), error, blamed)
                except BaseException:
                    attempts.cancelled()
                    if call is not None:
                        client.give_up_call(call)
                    raise
                else:
                    attempts.answered(monotonic())
                    return event  # type: ignore[return-value]  # a call without an answer has none
            elif isinstance(step, Dial):
                self._dial_soon(step.target)
            elif isinstance(step, Wait):
                await self._wait(step.seconds)
            elif isinstance(step, Fail):
                try:
                    raise step.error
                finally:
                    del step  # or error, traceback and frame would keep each other alive

    async def _wait(self, seconds: float) -> None:
        """Wait until something has changed, at most for so many seconds."""
        with suppress(TimeoutError):
            async with asyncio.timeout(None if seconds == inf else seconds):
                await self._changed.wait()

    def _give_up(self, target: Target, client: Client, call: Any) -> None:
        self._pool.cancelled(target)
        if call is not None:
            client.give_up_call(call)

    async def _see(self, whole: BalancedCall) -> None:
        """Wait for the first view."""
        self._begin_following()
        attempts = self._attempts(whole)
        while (step := attempts.see(monotonic())) is not None:
            if isinstance(step, Wait):
                await self._wait(step.seconds)
            else:
                try:
                    raise step.error
                finally:
                    del step

    def _begin_following(self) -> None:
        self._check_open()
        if self._machine is None and not isinstance(self.discovery, StaticDiscovery):
            Context().run(
                self._follow, self.discovery
            )  # it outlives the handler that may make the first call

    def _follow(self, discovery: Discovery) -> None:
        self._machine = discovery.open(monotonic(), random)
        ssl, transport = discovery.ssl, discovery.transport
        self._pump = Pump(self._machine, self._weakly(), self._log, ssl, transport)

    def _stop_following(self) -> None:
        if self._pump is not None and self._owner is not None:
            with suppress(RuntimeError):  # the loop was closed before
                self._owner.place.call_soon_threadsafe(self._pump.stop)

    # Connections

    def _dial_soon(self, target: Target) -> None:
        self._check_owner()
        if not target.is_ready():
            self._pool.dialling(target)
        target.dialling = self._spawn(self._dial(target))

    async def _dial(self, target: Target) -> None:
        try:
            client = await Client.connect(target.node.address, **self._options(target))
        except Exception as error:
            if self._not_dialled(target, error):
                self._log_unreachable(target)
        else:
            if not self._dialled(target, client):
                await client.close()

    def _close_soon(self, client: Client) -> None:
        self._retired[client] = None
        closing = self._spawn(client.close(DRAIN))
        closing.add_done_callback(lambda _: self._retired.pop(client, None))

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        task = asyncio.get_running_loop().create_task(coroutine, context=Context())
        self._tasks[task] = None
        task.add_done_callback(self._tasks.pop)
        return task
