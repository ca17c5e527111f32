"""Blocking code in memory: handlers run in threads, and callers wait, but in virtual time.

A `VirtualLoop` in a thread of its own has the connections and the server. The clients have the
interface of rpc_blocking's.
"""

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from contextvars import copy_context
from typing import Any, Self, TypeVar

import rpc_asyncio
from rpc_common.balanced.sync import SyncBalancedClient
from rpc_common.client.base import outcome
from rpc_common.client.dialling import Dialling
from rpc_common.client.streams import Request, SyncRunning
from rpc_common.client.sync import SyncClient, Waiting
from rpc_common.telemetry.log import get_log
from rpc_common.transport.runtime import Runtime
from rpc_common.transport.threads import HelperThread
from rpc_proto import CallCompleted, CallFailed, Interceptor, LocalProtocolError, OutboundCall
from rpc_proto.service.context import ambient_call

from .in_asyncio import VirtualLoop, finish
from .rig import RigBase

__all__ = ["BlockingRig"]

Result = TypeVar("Result")


class _Waiter:
    """Where a thread waits for the last event of its call."""

    __slots__ = ("event", "rig", "taken")

    def __init__(self, rig: "BlockingRig") -> None:
        self.rig = rig
        self.event: CallCompleted | CallFailed | None = None
        self.taken = False

    def wake(self) -> None:
        self.rig.ring()

    wake_soon = wake


class _Begun:
    """A call that has begun, which keeps its waiter when it ends in the other thread."""

    __slots__ = ("call", "waiter")

    def __init__(self, call: OutboundCall, waiter: _Waiter) -> None:
        self.call = call
        self.waiter = waiter

    def __getattr__(self, name: str) -> Any:
        return getattr(self.call, name)


class _Running(SyncRunning):
    """A stream that has begun."""

    def __init__(self, client: "Client") -> None:
        super().__init__()
        self._client = client

    def ring(self) -> None:
        self._client.rig.ring()

    def wait_until(self, ready: Callable[[], bool]) -> None:
        self._client.rig.wait_until(ready)

    def send_item(self, value: Any) -> None:
        self._client.act("send_item", self.call, value)

    def end_items(self) -> None:
        self._client.act("end_items", self.call)

    def grant(self) -> None:
        self._client.act("grant", self.call)

    def give_up(self) -> None:
        self._client.act("cancel", self.call)

    def drop(self) -> None:
        self._client.act_soon("cancel", self.call)


class _Connected(rpc_asyncio.Client):
    """The part of a client that lives in the loop."""

    @classmethod
    def to(cls, target: Dialling, address: str, timeout: float) -> Any:
        return cls._connect(target, address, timeout, ())

    def act(self, command: str, *args: Any) -> None:
        """Give the connection a command, and send what it makes."""
        getattr(self.connection, command)(self._loop.time(), *args)
        self._protocol.react()
        self._protocol.flush()

    def begin(self, waiter: Any, *what: Any) -> OutboundCall:
        call = self._start(self._loop.time(), waiter, *what)
        self._protocol.flush()
        return call

    def begin_items(self, waiter: Any, *what: Any) -> OutboundCall:
        call = self._start_stream(waiter, *what)
        self._protocol.flush()
        return call


class Client(SyncClient):
    """A client for threads, in memory."""

    _feeds_beside = False
    rig: "BlockingRig"

    def __init__(self, connected: _Connected) -> None:
        self._connected = connected
        self.connection = connected.connection
        self.call_timeout = connected.call_timeout
        self.address = connected.address

    @classmethod
    def _connect(cls, target: Dialling, address: str, timeout: float) -> Self:
        connected: Any = cls.rig.run(_Connected.to(target, address, timeout))
        return cls(connected)

    def _is_open(self) -> bool:
        return False  # the rig closes it

    def let_go(self) -> None:
        self.act_soon("shutdown", 0.0)

    def close(self, grace: float = 0.0) -> None:
        self.rig.run(self._connected.close(grace))

    def act(self, *command: Any) -> None:
        self.rig.in_loop(lambda: self._connected.act(*command))

    def act_soon(self, *command: Any) -> None:
        self.rig.loop.call_soon_threadsafe(self._connected.act, *command)

    def begin_call(self, *what: Any) -> Any:
        waiter = _Waiter(self.rig)
        return _Begun(self.rig.in_loop(lambda: self._connected.begin(waiter, *what)), waiter)

    def _begin_all(
        self, waiting: Waiting, calls: Iterable[tuple[Any, ...]], method: str, *options: Any
    ) -> None:
        for args in calls:
            call = self.begin_call(method, args, {}, *options)
            waiting.append((call, call.waiter))

    def wait_for_call(self, call: Any, waiter: Any) -> CallCompleted:
        if waiter.event is None:
            if waiter.taken:
                raise LocalProtocolError(
                    "the result was already taken, or another thread waits for it"
                )
            waiter.taken = True
            ambient = ambient_call.get()
            undo = None
            if ambient is not None and not ambient.answered:
                undo = ambient.on_cancel(lambda: self.act_soon("cancel", call.call))
            try:
                self.rig.wait_until(lambda: waiter.event is not None)
            except BaseException:
                self.give_up_call(call)
                raise
            finally:
                if undo is not None:
                    undo()
        return outcome(waiter)

    def give_up_call(self, call: Any) -> None:
        self.act("cancel", call.call)

    def check_here(self) -> None:
        pass

    def _begin_running(
        self,
        request: Request,
        sends: bool,
        takes: bool,
        on_end: Callable[[], object] | None,
    ) -> SyncRunning:
        running = _Running(self)
        running.on_end = on_end
        begin = self._connected.begin_items
        running.call = self.rig.in_loop(lambda: begin(running, request, sends, takes))
        return running


class _Runtime(Runtime):
    """Threads for which virtual time waits, and what they wait for."""

    socket = None  # `dial` needs none

    def __init__(self, rig: "BlockingRig") -> None:
        self._rig = rig

    def spawn(self, function: Callable[[], Any]) -> Any:
        outside = self._rig.loop.outside

        def run() -> None:
            with outside.counted():
                function()

        outside.enter()
        HelperThread(run, "rpc-beside").start()

    def kill(self, spawned: Any) -> None:
        pass  # a thread cannot be killed

    def here(self) -> Any:
        return None

    def make_event(self) -> Any:
        return _Event(self._rig)

    def make_queue(self) -> Any:
        return _Queue(self._rig)

    def get(self, queue: Any, seconds: float | None) -> Any:
        return queue.get(seconds)

    def sleep(self, seconds: float) -> None:
        self._rig.loop.sleep_in_thread(seconds)

    def look_up(self, host: str, port: int, deadline: float) -> Any:
        raise NotImplementedError("a network in memory needs no addresses")


class _Event:
    """As of threading, in virtual time."""

    def __init__(self, rig: "BlockingRig") -> None:
        self._rig = rig
        self._is_set = False

    def is_set(self) -> bool:
        return self._is_set

    def set(self) -> None:
        self._is_set = True
        self._rig.ring()

    def clear(self) -> None:
        self._is_set = False

    def wait(self, timeout: float | None = None) -> bool:
        self._rig.wait_until(self.is_set, timeout)
        return self._is_set


class _Queue:
    """As of queue, in virtual time."""

    def __init__(self, rig: "BlockingRig") -> None:
        self._rig = rig
        self._items: deque[Any] = deque()

    def put(self, item: Any) -> None:
        self._items.append(item)
        self._rig.ring()

    def get(self, timeout: float | None) -> Any:
        self._rig.wait_until(lambda: bool(self._items), timeout)
        try:
            return self._items.popleft()
        except IndexError:
            return None


class _Server(rpc_asyncio.Server):
    """A server whose handlers block."""

    _serves_coroutines = False


class BlockingRig(RigBase):
    """Servers and clients of blocking code in one process: no socket, and no waiting.

    `connect` joins a client to services. `clock` is the time of everything, `network` has the
    faults, and `calls` what the handlers were asked, in the order in which they began. Time passes
    while the thread that opened the rig waits, and no handler runs; `time.sleep` in both sleeps in
    virtual time.
    """

    _server = _Server

    def __init__(self) -> None:
        self.loop = VirtualLoop()
        self.loop.patience = None
        self.network = self.loop.network
        super().__init__(self.loop.time)
        self._bell = threading.Condition()
        self._failure: BaseException | None = None
        shared = {"rig": self, "_runtime": _Runtime(self)}
        self._client: type[Client] = type("Client", (Client,), shared)
        own = {**shared, "_client": self._client, "_log": get_log("rpc_testing")}
        self._balanced: Any = type("BalancedClient", (SyncBalancedClient,), own)

    def serve(
        self,
        *services: Any,
        address: str = "tcp://here:0",
        interceptors: Iterable[Interceptor] = (),
        **settings: Any,
    ) -> str:
        """Serve objects with a server that has these settings; return its address."""
        record = self._recorder.record
        server: _Server = self._make_server(record, services, interceptors, settings)
        return str(self.run(server.start(address)))

    def connect(
        self, *services: Any, server: Mapping[str, Any] | None = None, **options: Any
    ) -> Client:
        """Serve objects, and return a client that is connected to them.

        `server` has the settings of the Server; `options` are those of `Client.connect`.
        """
        return self.dial(self.serve(*services, **(server or {})), **options)

    def dial(self, address: str, **options: Any) -> Client:
        """Return a client of a server of this rig; `options` are those of `Client.connect`."""
        client = self._client.connect(address, **options)
        self._open.append(client)
        return client

    def balance(self, addresses: Iterable[str], **options: Any) -> SyncBalancedClient:
        """Return a balanced client of servers of this rig; `options` are those of BalancedClient.

        Registries need sockets, so this takes addresses.
        """
        client: SyncBalancedClient = self._balanced(list(addresses), **options)
        self._open.append(client)
        return client

    # For clients

    def in_loop(self, function: Callable[[], Result]) -> Result:
        """Return what a function returns where the connections are."""
        done: Future[Result] = Future()
        context = copy_context()

        def work() -> None:
            try:
                done.set_result(context.run(function))
            except BaseException as error:
                done.set_exception(error)

        if threading.get_ident() == self._thread.ident:
            return function()
        self.loop.call_soon_threadsafe(work)
        return done.result()

    def run(self, coroutine: Any) -> Any:
        """Run a coroutine to its end where the connections are."""
        done = asyncio.run_coroutine_threadsafe(coroutine, self.loop)
        done.add_done_callback(lambda _: self.ring())
        self.wait_until(done.done)
        return done.result()

    def ring(self) -> None:
        """Let all who wait look again."""
        with self._bell:
            self._bell.notify_all()

    def wait_until(self, ready: Callable[[], bool], timeout: float | None = None) -> None:
        """Wait, in virtual time, for so many seconds at most."""
        late: list[bool] = []
        timer: Future[Any] | None = None
        if timeout is not None:

            def end() -> None:
                late.append(True)
                self.ring()

            timer = Future()
            self.loop.call_soon_threadsafe(
                lambda: timer.set_result(self.loop.call_later(timeout, end))
            )

        def is_over() -> bool:
            return ready() or bool(late) or self._failure is not None

        with self.loop.outside.waiting(is_over), self._bell:
            self._bell.wait_for(is_over)
        if timer is not None and not late:
            self.loop.call_soon_threadsafe(lambda: timer.result().cancel())
        if not ready() and self._failure is not None:
            raise self._failure

    # Life

    def _live(self) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_forever()
        except BaseException as error:
            self._failure = error
            self.ring()

    def _pass(self, seconds: float) -> None:
        over = _Event(self)
        loop = self.loop
        loop.call_soon_threadsafe(loop.call_later, seconds, loop.when_settled, over.set)
        over.wait()

    def _close(self) -> None:
        self.loop.call_soon_threadsafe(self.network.resume)
        for one in reversed(self._open):
            if isinstance(one, _Server):
                self.run(one.stop(grace=0.0))
            else:
                one.close()

    @contextmanager
    def open(self) -> "Iterator[BlockingRig]":
        """Use the rig; at the end, everything that it opened is closed."""
        outside = self.loop.outside
        try:
            with self.loop.installed():
                self._thread = threading.Thread(target=self._live, name="rpc-rig", daemon=True)
                outside.enter()
                with outside.counted():
                    self._thread.start()
                    try:
                        yield self
                        self._close()
                    finally:
                        self.loop.call_soon_threadsafe(self.loop.stop)
                        self._thread.join()
                finish(self.loop)
        finally:
            self.loop.close()
