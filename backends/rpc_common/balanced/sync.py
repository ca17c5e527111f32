"""The balanced client for gevent and blocking code."""

from collections import deque
from collections.abc import Mapping
from contextvars import Context, copy_context
from functools import partial
from math import inf
from random import random
from threading import Lock
from time import monotonic
from typing import Any, Self, TypeVar, overload

from rpc_common.client.base import Reply
from rpc_common.client.streams import Request as StreamRequest
from rpc_common.client.streams import Stream
from rpc_common.client.sync import SyncClient
from rpc_common.discovery.carriers import check_source
from rpc_common.discovery.pump import Pump
from rpc_common.transport.forks import Forks
from rpc_common.transport.runtime import Runtime
from rpc_discovery import Discovery, StaticDiscovery, View
from rpc_discovery.attempts import Attempts, Dial, Fail, Send, Wait
from rpc_discovery.groups import Begin, Group, Hedge
from rpc_discovery.pool import BalancedCall, Target
from rpc_proto import CallCompleted, CallError, InvalidArgument
from rpc_proto.service.context import ambient_call

from .base import (
    DRAIN,
    BalancedBase,
    Request,
    check_count,
    check_hedge,
    check_policy,
    judge,
)

__all__ = ["SyncBalancedClient"]

Result = TypeVar("Result")

_LONGEST = 3600.0  # seconds; not every runtime waits longer at a time
_MOST_BESIDE = 64  # calls of one broadcast at a time
_AGAIN = 0.2  # seconds until another attempt to start a thread


class SyncBalancedClient(BalancedBase):
    """A client of many servers; for the arguments see `BalancedBase`."""

    _client: type[SyncClient]
    _runtime: Runtime

    def _prepare(self) -> None:
        # Of the pool, of the targets and of the event. It is never held while anything is waited
        # for, nor while anything is logged.
        self._lock = Lock()
        # Streams that have ended, perhaps in a finalizer, which cannot take the lock.
        self._over = deque[Attempts]()
        self._retiring: list[SyncClient] = []  # of the retired, those that wait for a thread
        if not isinstance(self.discovery, StaticDiscovery):
            check_source(self.discovery.ssl, self.discovery.transport)

    def _make_event(self) -> Any:
        return self._runtime.make_event()

    def _here(self) -> tuple[str, Any]:
        return "hub", self._runtime.here()

    # For users

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self, grace: float = 0.0) -> None:
        """Close all connections; calls in flight get `grace` seconds, then are cancelled.

        In rpc_blocking, the thread of an ongoing dial ends within `connect_timeout`.
        """
        self._check_owner()
        end = monotonic() + grace
        with self._lock:
            targets = self._end()
            clients = [target.client for target in targets if target.client is not None]
            clients += self._retired
        if self._pump is not None:
            self._pump.stop()
        for target in targets:
            if target.dialling is not None:
                self._runtime.kill(target.dialling)
        for client in clients:
            client.close(max(0.0, end - monotonic()))

    @overload
    def call(
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
    ) -> Any: ...
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

        Like `Client.call`, with these options in addition. `key`: calls with the same key go to the
        same node, if the balancer supports that. `node`: the address of the only node to call.
        `idempotent`: whether the call may be retried after a handler may have run. `hedge`: whether
        to call a second node if the first takes longer than 95 % of calls. `timeout`, in seconds,
        covers all attempts.
        """
        started = monotonic()
        owner = self._owner
        is_mine = owner is not None and owner.forks == Forks.count
        if is_mine and node is None and not hedge and not self._limited:
            with self._lock:
                if self._over:
                    self._settle_streams()
                target = self._find(method, started, key)
                if target is not None:
                    target.in_flight += 1
                    client = target.client
            if target is not None:
                try:
                    call = client.begin_call(method, args, kwargs, returns, timeout, metadata)
                    value = client.wait_for_call(call, call.waiter).value
                except CallError as error:
                    items = None
                    if type(error) is InvalidArgument:
                        options = {"timeout": timeout, "metadata": metadata, "returns": returns}
                        items = self._with_items(method, args, kwargs, {**options, "key": key})
                    if items is not None:
                        with self._lock:
                            self._pool.cancelled(target)
                        return self._send_items(items)
                    request = Request(method, args, kwargs, returns, metadata)
                    whole = self._begin(request, timeout, started, key, node, idempotent)
                    attempts = self._attempts(whole)
                    now = monotonic()
                    with self._lock:
                        blamed = self._blame(target, client)
                        pause = self._pool.failed(whole, target, error, started, now, blamed)
                    if pause is None:
                        raise
                    attempts.resume(now, error, pause)
                except BaseException:
                    with self._lock:
                        self._pool.cancelled(target)
                    raise
                else:
                    with self._lock:
                        if self._pool.measures:
                            self._pool.succeeded(target, started, monotonic())
                        else:  # the same, without a call more
                            target.in_flight -= 1
                            target.errors = 0
                            self._pool.ended_well += 1
                    return value
                return self._persist(attempts, request).value
        options = {"timeout": timeout, "metadata": metadata, "returns": returns}
        items = self._with_items(method, args, kwargs, {**options, "key": key, "node": node})
        if items is not None:
            return self._send_items(items)
        request = Request(method, args, kwargs, returns, metadata)
        return self._call(
            request,
            timeout=timeout,
            started=started,
            key=key,
            node=node,
            idempotent=idempotent,
            hedge=hedge,
        )

    def _call(self, request: Request, *, hedge: bool = False, **how: Any) -> Any:
        whole = self._begin(request, **how)
        if hedge:
            check_hedge(whole.node, how.get("idempotent"))
            with self._lock:
                group = Hedge(self._pool, whole, request.method, monotonic())
            self._gather(group, request)
            return group.winner().value
        return self._persist(self._attempts(whole), request).value

    def _request(self, whole: BalancedCall, request: Request) -> Reply | None:
        event = self._persist(self._attempts(whole), request)
        return None if request.one_way else Reply(event.value, event.metadata)

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
        event = self._persist(self._attempts(whole), request)
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
        """Send a one-way call, which has no answer, to a node; returns once it is sent."""
        request = Request(method, args, kwargs, None, metadata, one_way=True)
        whole = self._begin(request, timeout, monotonic(), key, node, False)
        self._persist(self._attempts(whole), request)

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

    def _send_items(self, request: StreamRequest) -> Any:
        return Stream[Any](self, request).send_source()

    def begin_stream(
        self,
        stream: Stream[Any],
        request: StreamRequest,
        sends: bool,
        takes: bool,
        here: bool = False,
    ) -> None:
        """Not for users: begin a stream at a node."""
        attempts = self._route(request)
        end = partial(self._over.append, attempts)
        limit = self._begin_following()
        while True:
            with self._lock:
                self._settle_streams()
                changed = self._changed
                step = attempts.next(monotonic())
                if isinstance(step, Dial):
                    self._dial_soon(step.target)
                    continue
                client: Any = step.target.client if isinstance(step, Send) else None
            if isinstance(step, Fail):
                try:
                    raise step.error
                finally:
                    del step  # or error, traceback and frame would keep each other alive
            if isinstance(step, Wait):
                self._wait(step.seconds, attempts.call, changed, limit)
                if limit != _LONGEST:
                    limit = self._begin_following()
                continue
            timeout = request.timeout if request.timeout == inf else step.timeout
            try:
                placed = request._replace(timeout=timeout)
                client.begin_stream(stream, placed, sends, takes, here=here, on_end=end)
            except CallError as error:
                with self._lock:
                    attempts.failed(monotonic(), error, self._blame(step.target, client))
            except BaseException:
                end()
                raise
            else:
                return

    def _settle_streams(self) -> None:
        while self._over:
            self._over.popleft().cancelled()

    @property
    def stats(self) -> dict[str, Any]:
        with self._lock:
            self._settle_streams()
        return super().stats

    def check_here(self) -> None:
        """Raise LocalProtocolError if this is the wrong place to use the client."""
        self._check_owner()

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

        `policy` is what counts as a success; otherwise BroadcastFailed is raised, which has the
        `results`. "each": always; "all": all nodes succeeded; "any": at least one succeeded;
        "first": like "any", but it returns at the first success and cancels the other calls. At
        most 64 nodes are called at a time.
        """
        check_policy(policy)
        request = Request(method, args, kwargs, returns, metadata)
        started = monotonic()
        self._see(self._begin(request, timeout, started))
        with self._lock:
            wholes = self._each(request, timeout, started)
        group = Group(wholes, first=policy == "first", at_once=_MOST_BESIDE)
        self._gather(group, request)
        return judge(policy, request, group.results())

    def race(
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
        self._see(first)
        with self._lock:
            wholes = self._some(first, count)
        group = Group(wholes, first=True)
        self._gather(group, request)
        return group.winner().value

    # One call, with its attempts

    def _persist(self, attempts: Attempts, request: Request) -> CallCompleted:
        whole = attempts.call
        limit = _LONGEST if whole.attempts else self._begin_following()
        changed: Any = None
        while True:
            with self._lock:
                # Taken before the first dial, so that a dial that ends between two steps is
                # noticed.
                changed = changed or self._changed
                step = attempts.next(monotonic())
                if isinstance(step, Dial):
                    self._dial_soon(step.target)
                    continue
                client: Any = step.target.client if isinstance(step, Send) else None
            if isinstance(step, Fail):
                try:
                    raise step.error
                finally:
                    del step  # or error, traceback and frame would keep each other alive
            if isinstance(step, Wait):
                self._wait(step.seconds, whole, changed, limit)
                changed = None
                if limit != _LONGEST:
                    limit = self._begin_following()
                continue
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
                whole.pending = client, call
                if whole.abandoned:  # looked at behind `pending`: one of the two threads sees both
                    client.give_up_call(call)
                event: CallCompleted | None = None
                if not call.sent or not request.one_way:
                    event = client.wait_for_call(call, call.waiter)
            except CallError as error:
                with self._lock:
                    blamed = self._blame(step.target, client)
                    attempts.failed(monotonic(), error, blamed)
            except BaseException:
                with self._lock:
                    attempts.cancelled()
                raise
            else:
                with self._lock:
                    attempts.answered(monotonic())
                return event  # type: ignore[return-value]  # a call without an answer has none
            finally:
                whole.pending = None

    def _wait(self, seconds: float, whole: BalancedCall, changed: Any, limit: float) -> None:
        """Wait until something has changed, at most for so many seconds."""
        ambient = ambient_call.get()
        undo = None
        if ambient is not None and not ambient.answered:
            undo = ambient.on_cancel(lambda: self._abandon([whole]))
        try:
            changed.wait(min(seconds, limit))
        finally:
            if undo is not None:
                undo()

    def _see(self, whole: BalancedCall) -> None:
        """Wait for the first view."""
        attempts = self._attempts(whole)
        while True:
            limit = self._begin_following()
            with self._lock:
                step = attempts.see(monotonic())
                changed = self._changed
            if step is None:
                return
            if isinstance(step, Wait):
                self._wait(step.seconds, whole, changed, limit)
            else:
                try:
                    raise step.error
                finally:
                    del step

    def _begin_following(self) -> float:
        """Follow the discovery, unless that has begun; return after how long to try again."""
        self._check_open()
        with self._lock:
            if self._machine is None and not isinstance(self.discovery, StaticDiscovery):
                try:
                    Context().run(
                        self._follow, self.discovery
                    )  # it outlives the handler that may be the first
                except RuntimeError as error:  # no more threads can be started
                    self._troubles[""] = str(error)
                    return _AGAIN
        return _LONGEST

    # The view

    def _follow(self, discovery: Discovery) -> None:
        machine = discovery.open(monotonic(), random)
        self._troubles.pop("", None)
        self._pump = Pump(machine, self._weakly(), self._runtime, self._log, discovery.ssl)
        self._machine = machine

    def _stop_following(self) -> None:
        if self._pump is not None:
            self._pump.stop()

    def _apply(self, view: View) -> None:
        with self._lock:
            super()._apply(view)

    # Several calls at the same time

    def _gather(self, group: Group, request: Request) -> None:
        """Make the calls of a group until it is over."""
        outcomes = self._runtime.make_queue()
        running: list[BalancedCall] = []
        outcome: Any = None
        try:
            while True:
                with self._lock:
                    in_place = group.is_alone
                    step = group.next(monotonic())
                if step is None:
                    return
                if isinstance(step, Begin):
                    running.append(step.call)
                    make = partial(self._make, step.call, request, outcomes)
                    try:
                        if in_place:
                            make()
                        else:
                            # With its deadline, trace and cancellation, where a handler calls.
                            self._runtime.spawn(partial(copy_context().run, make))
                    except RuntimeError:  # no more threads can be started
                        make()
                    continue
                ended = self._runtime.get(
                    outcomes, None if step.seconds == inf else max(0.0, step.seconds)
                )
                if ended is not None:
                    call, outcome = ended
                    del ended
                    if not isinstance(outcome, (CallCompleted, CallError)):
                        raise outcome
                    with self._lock:
                        group.ended(monotonic(), call, outcome)
        finally:
            outcome = None  # or error, traceback and frame would keep each other alive
            self._abandon(running)

    def _make(self, call: BalancedCall, request: Request, outcomes: Any) -> None:
        """Make a call of a group, and report how it ended."""
        outcome: CallCompleted | BaseException
        try:
            outcome = self._persist(self._attempts(call), request)
        except BaseException as error:
            outcome = error
        outcomes.put((call, outcome))
        del outcome

    def _abandon(self, wholes: list[BalancedCall]) -> None:
        """Cancel calls; those that have ended are ignored."""
        for whole in wholes:
            whole.abandoned = True
            pending = whole.pending
            if pending is not None:
                client, call = pending
                client.give_up_call(call)
        with self._lock:
            self._notify()  # those that wait for a connection

    # Connections

    def _dial_soon(self, target: Target) -> None:
        self._check_owner()
        if not target.is_ready():
            self._pool.dialling(target)
        try:
            # It cannot be over before this is noted: it needs the lock, which is held here.
            spawned = self._runtime.spawn(lambda: self._dial(target))
        except RuntimeError as error:  # no more threads can be started
            self._not_dialled(target, error)
        else:
            target.dialling = spawned or True

    def _dial(self, target: Target) -> None:
        try:
            client = self._client.connect(target.node.address, **self._options(target))
        except Exception as error:
            with self._lock:
                first = self._not_dialled(target, error)
            if first:
                self._log_unreachable(target)
            return
        with self._lock:
            wanted = self._dialled(target, client)
        if not wanted:
            client.close()

    def _close_soon(self, client: Any) -> None:
        self._retired[client] = None
        self._retiring.append(client)
        self._retire_soon()

    def _retire_soon(self) -> None:
        while self._retiring:
            try:
                self._runtime.spawn(partial(self._retire, self._retiring[-1]))
            except RuntimeError:  # no more threads can be started: together with the next one
                return
            self._retiring.pop()

    def _retire(self, client: Any) -> None:
        client.close(DRAIN)
        with self._lock:
            self._retired.pop(client, None)
            self._retire_soon()
