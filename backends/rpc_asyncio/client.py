"""The asyncio client: one connection, any number of calls at once."""

import asyncio
import ssl as ssl_module
from collections.abc import Callable, Coroutine, Generator, Iterable, Mapping
from contextlib import suppress
from threading import get_ident
from time import monotonic
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar, overload

from rpc_common.client.base import ClientBase, Reply, hand_out
from rpc_common.client.dialling import Dialling, explain, refusal
from rpc_common.client.intercepted import Intercepted
from rpc_common.client.streams import OF_STREAMS, Request
from rpc_common.telemetry.log import get_log
from rpc_common.transport.forks import Forks, Owner
from rpc_common.transport.patching import check_patching
from rpc_common.transport.tls import Tls
from rpc_proto import (
    CallCompleted,
    Cancelled,
    ClientConfig,
    ClientConnection,
    Codec,
    ConnectionTerminated,
    Event,
    HandshakeCompleted,
    InvalidArgument,
    LocalProtocolError,
    Observer,
    ObserverFailed,
    OutboundCall,
)

from .dialling import dial_through
from .protocol import ConnectionProtocol
from .streams import RunningStream, Stream
from .waiters import Waiter

if TYPE_CHECKING:
    from rpc_proto import Interceptor, Invocation
    from rpc_proto.trace import Trace

__all__ = ["Client", "Pending", "Reply"]

_log = get_log("rpc_asyncio")

Api = TypeVar("Api")
Result = TypeVar("Result")


class _ClientProtocol(ConnectionProtocol):
    __slots__ = ("handshake", "idle", "lost")

    connection: ClientConnection

    def __init__(
        self, loop: asyncio.AbstractEventLoop, connection: ClientConnection, tls: Tls | None
    ) -> None:
        super().__init__(loop, tls)
        self.connection = connection
        self.handshake: asyncio.Future[None] = loop.create_future()
        self.lost: asyncio.Future[None] = loop.create_future()
        self.idle = True  # no call waits, and the last answer came alone

    def handle_events(self, events: list[Event]) -> None:
        self.idle = len(events) <= 1 and not self.connection.calls.by_id
        waiters = hand_out(events, self._handle_other)
        # A Task that ends with an error in here keeps this frame, and would keep it with its error.
        events.clear()
        if asyncio.current_task(self._loop) is not None:  # only one can run at a time
            for waiter in waiters:
                waiter.wake_soon()
            return
        try:
            for waiter in waiters:
                waiter.wake()
        except BaseException:  # what ends the process, not just a Task; nobody may be forgotten
            for waiter in waiters:
                waiter.wake_soon()
            raise

    def _handle_other(self, event: Event) -> None:
        if type(event) in OF_STREAMS:
            event.call.waiter.ring()  # type: ignore[attr-defined]
        elif isinstance(event, HandshakeCompleted):
            self.flush()  # for its timers
            if not self.handshake.done():
                self.handshake.set_result(None)
        elif isinstance(event, ConnectionTerminated) and not self.handshake.done():
            self.handshake.set_exception(refusal(event.error))
        elif isinstance(event, ObserverFailed):
            _log.error("an observer failed", exc_info=event.error)

    def connection_lost(self, exc: Exception | None) -> None:
        exc = self._failure or exc
        if exc is not None and not self.handshake.done():
            self.handshake.set_exception(exc)
        super().connection_lost(exc)
        if not self.lost.done():
            self.lost.set_result(None)


class Pending(Generic[Result]):
    """A call that was sent; `await` it for its result. `start` returns it."""

    __slots__ = ("_cancel", "_done", "_taken", "_waits_for")

    def __init__(
        self, waits_for: Any, done: Callable[[], bool], cancel: Callable[[], None]
    ) -> None:
        self._waits_for = waits_for
        self._done = done
        self._cancel = cancel
        self._taken = False

    def done(self) -> bool:
        """Whether the call has ended."""
        return self._done()

    def cancel(self) -> None:
        """Give the call up: waiting for it raises Cancelled, and the server stops the handler."""
        self._cancel()

    def __await__(self) -> Generator[Any, Any, Result]:
        if self._taken:
            raise LocalProtocolError("the result was already taken, or another task waits for it")
        self._taken = True
        try:
            event = yield from self._waits_for.__await__()
        except asyncio.CancelledError:
            self._cancel()
            raise
        value: Result = event.value
        return value


class PendingThrough:
    """A started call that goes through interceptors, in a task of its own."""

    def __init__(self, loop: asyncio.AbstractEventLoop, proceeding: Any) -> None:
        self._task = loop.create_task(self._run(proceeding))
        self.value: Any = None
        self._error: BaseException | None = None
        self._given_up = False

    async def _run(self, proceeding: Any) -> None:
        try:
            self.value = await proceeding
        except asyncio.CancelledError:
            if not self._given_up:
                raise
            self._error = Cancelled("the caller cancelled the call")
        except Exception as error:
            self._error = error

    def done(self) -> bool:
        return self._task.done()

    def cancel(self) -> None:
        self._given_up = True
        self._task.cancel()

    def __await__(self) -> Generator[Any, Any, "PendingThrough"]:
        yield from self._task.__await__()
        error, self._error = self._error, None
        if error is not None:
            raise error
        return self


class Connecting(Coroutine[Any, Any, "Client"]):
    """What `Client.connect` returns: `await` it, or use it in `async with`."""

    __slots__ = ("_client", "_coroutine")

    def __init__(self, coroutine: "Coroutine[Any, Any, Client]") -> None:
        self._coroutine = coroutine
        self._client: Client | None = None

    def send(self, value: Any) -> Any:
        return self._coroutine.send(value)

    def throw(self, *error: Any) -> Any:
        return self._coroutine.throw(*error)

    def close(self) -> None:
        self._coroutine.close()

    def __await__(self) -> Generator[Any, Any, "Client"]:
        return self._coroutine.__await__()

    async def __aenter__(self) -> "Client":
        self._client = await self._coroutine
        return self._client

    async def __aexit__(self, *_: object) -> None:
        if self._client is not None:
            await self._client.close()


class Client(ClientBase):
    """A connection to one server.

    `async with Client.connect(address) as client` closes it at the end; after
    `client = await Client.connect(address)`, call `client.close()`.

    It belongs to the event loop that created it. Any number of tasks may call at once.
    """

    def __init__(self, protocol: _ClientProtocol, config: ClientConfig, address: str) -> None:
        """Not for users: see `connect`."""
        self._protocol = protocol
        self.connection = protocol.connection
        self._loop = protocol._loop
        self._is_running = self._loop.is_running
        self._owner = Owner("client", "event loop", get_ident())
        self.call_timeout = config.call_timeout
        self.address = address
        Forks.watch(self)

    @classmethod
    def connect(
        cls,
        address: str,
        *,
        timeout: float = 10.0,
        codec: str | Codec | None = None,
        token: str | None = None,
        ssl: ssl_module.SSLContext | None = None,
        config: ClientConfig | None = None,
        tracer_provider: Any = None,
        observers: Iterable[Observer] = (),
        interceptors: "Iterable[Interceptor]" = (),
        trace: "Callable[[Trace], None] | None" = None,
        proxy: str | None = None,
    ) -> "Connecting":
        """Connect to tcp://host:port, tls://host:port or unix:///path.

        With http://host:port and https://host:port the connection begins with HTTP CONNECT.
        `timeout`, in seconds, covers name lookup, dialling, the proxy, TLS, CONNECT and the option
        handshake together. `codec` ("msgpack" by default) and `token` override `config`. An
        OpenTelemetry `tracer_provider` gets a span for each call; `observers` are notified of the
        calls, and `interceptors` wrap them: see rpc_proto.Observer and rpc_proto.Interceptor.
        `trace` is called with the connection's trace when it starts: see rpc_proto.trace. `proxy`
        is the URL of an HTTP proxy, http://user:password@host:port, or "env" to use the variables
        http_proxy, https_proxy, all_proxy and no_proxy. Raises Unavailable if there is no
        connection, HandshakeError if the server or the proxy refuses, and DeadlineExceeded; nothing
        stays open then.
        """
        checked = Intercepted.checked(interceptors, coroutines=True)
        target = Dialling.check(
            address, codec, token, ssl, config, tracer_provider, observers, trace, proxy, timeout
        )
        return Connecting(cls._connect(target, address, timeout, checked))

    @classmethod
    async def _connect(
        cls,
        target: Dialling,
        address: str,
        timeout: float,
        interceptors: "tuple[Interceptor, ...]",
    ) -> "Client":
        check_patching("rpc_asyncio", threads_only=True)
        where = target.where
        loop = asyncio.get_running_loop()
        tls = Tls(target.ssl, server_side=False, hostname=where.host) if target.ssl else None
        connection = target.new_connection(target.config, now=monotonic())
        protocol = _ClientProtocol(loop, connection, tls)
        try:
            async with asyncio.timeout(timeout):
                if where.scheme == "unix":
                    await loop.create_unix_connection(lambda: protocol, where.path)
                else:
                    goal: dict[str, Any] = {"host": where.host, "port": where.port}
                    if target.proxy is not None:
                        goal = {"sock": await dial_through(target.proxy, where, loop)}
                    await loop.create_connection(lambda: protocol, **goal)
                await protocol.handshake
        except BaseException as error:
            protocol.abort()
            # What failed has been seen, and nobody will look at what may fail yet.
            if not protocol.handshake.cancel() and not protocol.handshake.cancelled():
                protocol.handshake.exception()
            explained = explain(error, target, timeout)
            try:
                if explained is error:
                    raise
                raise explained from error
            finally:
                del explained, protocol  # or error, frame and future would keep each other alive
        client = cls(protocol, target.config, address)
        if interceptors:
            client._intercept(interceptors)
        return client

    def _intercept(self, interceptors: "tuple[Interceptor, ...]") -> None:
        """Send all calls through interceptors."""

        async def innermost(what: "Invocation") -> Any:
            if what.begin is not None:
                return what.begin(what)
            call = self.begin_call(*Intercepted.start(what))
            if what.one_way and call.sent:
                return None
            event = await self._wait(call)
            return Intercepted.answer(what, event)

        self._let_through(Intercepted(self, interceptors, innermost))

    def _descriptors(self) -> list[int]:
        return [self._protocol.fileno()]

    def _is_open(self) -> bool:
        return not self._protocol.closed

    def let_go(self) -> None:
        """Close the connection at once, without waiting; from any thread."""
        with suppress(RuntimeError):  # the loop was closed before
            self._loop.call_soon_threadsafe(self._protocol.abort)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @overload
    async def call(
        self,
        method: str,
        /,
        *args: Any,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
        returns: type[Result],
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
        **kwargs: Any,
    ) -> Any:
        """Call "Service.method" and return its result.

        `timeout`, in seconds, covers the whole call and travels with it. The default is the
        config's `call_timeout`; inside a handler it is never longer than the handler's remaining
        time. `returns` is the type to decode the result to. Raises CallError: see
        `rpc_proto.errors`. Cancelling the task that waits cancels the handler. One argument may be
        an iterator, also an asynchronous one, whose items are sent one by one to a method that
        takes a stream.
        """
        try:
            call = self.begin_call(method, args, kwargs, returns, timeout, metadata)
        except InvalidArgument:  # as it is if an argument is an iterator
            options = {"timeout": timeout, "metadata": metadata, "returns": returns}
            request = self._with_items(method, args, kwargs, options)
            if request is None:
                raise
            return await self._send_items(request)
        try:  # like _wait, without the cost of another coroutine
            return (await call.waiter).value
        except asyncio.CancelledError:
            self.give_up_call(call)
            raise

    @overload
    def stream(
        self,
        method: str,
        /,
        *args: Any,
        timeout: float | None = None,
        idle_timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
        returns: type[Result],
        **kwargs: Any,
    ) -> Stream[Result]: ...
    @overload
    def stream(
        self,
        method: str,
        /,
        *args: Any,
        timeout: float | None = None,
        idle_timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
        returns: Any = None,
        **kwargs: Any,
    ) -> Stream[Any]: ...
    def stream(
        self,
        method: str,
        /,
        *args: Any,
        timeout: float | None = None,
        idle_timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
        returns: Any = None,
        **kwargs: Any,
    ) -> Stream[Any]:
        """Return a call with items, which begins when it is first used: see `Stream`.

        `returns` is the type of an item, or of the result of a method that only takes items. One
        argument may be an iterator, also an asynchronous one, whose items are sent one by one,
        beside what the caller does. `timeout`, in seconds, covers the whole stream, and has no
        default, except that of the call that a handler serves; `idle_timeout` is how long no item
        may move in either direction.
        """
        options = {"timeout": timeout, "metadata": metadata, "returns": returns}
        options["idle_timeout"] = idle_timeout
        return Stream(self, Request.of(method, args, kwargs, options))

    async def _send_items(self, request: Request) -> Any:
        """Make a call whose items come from an iterator, and return the result."""
        return await Stream[Any](self, request).send_source()

    async def begin_stream(
        self, stream: Stream[Any], request: Request, sends: bool, takes: bool
    ) -> None:
        """Not for users: send the request of a stream, and feed it from its iterator, if any."""

        def begin(request: Request) -> Any:
            self.check_here()
            protocol = self._protocol
            running = RunningStream(self._loop, protocol)
            running.call = self._start_stream(running, request, sends, takes)
            stream.running = running
            protocol.idle = False
            protocol.flush()
            if request.source is not None:
                running.feed(request.source)
            return stream

        if self._intercepted is not None:
            await self._begin_through(request, begin)
        else:
            begin(request)

    def check_here(self) -> None:
        """Raise LocalProtocolError if this is the wrong place to use the client."""
        owner = self._owner
        if get_ident() != owner.place or owner.forks != Forks.count or not self._is_running():
            owner.refuse()

    async def request(
        self,
        method: str,
        /,
        *args: Any,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
        returns: Any = None,
        **kwargs: Any,
    ) -> Reply:
        """Like `call`, but return the server's metadata with the result."""
        event = await self._wait(self.begin_call(method, args, kwargs, returns, timeout, metadata))
        return Reply(event.value, event.metadata)

    async def notify(
        self,
        method: str,
        /,
        *args: Any,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
        **kwargs: Any,
    ) -> None:
        """Send a one-way call, which has no answer; returns once it is sent.

        It is lost silently if the connection breaks or the method does not exist.
        """
        call = self.begin_call(method, args, kwargs, None, timeout, metadata, True)
        if not call.sent:
            await self._wait(call)

    @overload
    def start(
        self,
        method: str,
        /,
        *args: Any,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
        returns: type[Result],
        **kwargs: Any,
    ) -> "Pending[Result]": ...
    @overload
    def start(
        self,
        method: str,
        /,
        *args: Any,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
        returns: Any = None,
        **kwargs: Any,
    ) -> "Pending[Any]": ...
    def start(
        self,
        method: str,
        /,
        *args: Any,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
        returns: Any = None,
        **kwargs: Any,
    ) -> "Pending[Any]":
        """Send a call and return at once; `await` what this returns for the result.

        The arguments are those of `call`.
        """
        call = self.begin_call(method, args, kwargs, returns, timeout, metadata)
        return self._pending(call)

    def perform(
        self,
        kind: str,
        method: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        options: Mapping[str, Any],
    ) -> Any:
        """Do what `call`, `request`, `notify`, `start` or `stream` does, with any keywords.

        `options` are those that `with_options` takes.
        """
        if kind == "stream":
            return Stream(self, Request.of(method, args, kwargs, options))
        if kind == "call":
            request = self._with_items(method, args, kwargs, options)
            if request is not None:
                return self._send_items(request)
        returns, timeout = options.get("returns"), options.get("timeout")
        given = (returns, timeout, options.get("metadata"))
        intercepted = self._intercepted
        if kind == "start":
            if intercepted is not None:
                proceeding = intercepted.proceed(
                    intercepted.invocation(method, args, kwargs, *given)
                )
                through = PendingThrough(self._loop, proceeding)
                return Pending(through, through.done, through.cancel)
            return self._pending(self.begin_call(method, args, kwargs, *given))
        return self._perform(kind, method, args, kwargs, *given)

    async def _perform(
        self,
        kind: str,
        method: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        returns: Any,
        timeout: float | None,
        metadata: Mapping[str, str] | None,
    ) -> Any:
        given = (returns, timeout, metadata)
        one_way = kind == "notify"
        if self._intercepted is not None:
            what = self._intercepted.invocation(method, args, kwargs, *given, one_way)
            value = self._intercepted.check(await self._intercepted.proceed(what))
            return Reply(value, what.reply_metadata) if kind == "request" else value
        call = self.begin_call(method, args, kwargs, *given, one_way)
        if one_way and call.sent:
            return None
        event = await self._wait(call)
        return Reply(event.value, event.metadata) if kind == "request" else event.value

    def _pending(self, call: OutboundCall) -> Pending[Any]:
        waiter = call.waiter
        return Pending(waiter, lambda: waiter.event is not None, lambda: self.give_up_call(call))

    async def close(self, grace: float = 0.0) -> None:
        """Close the connection; calls in flight get `grace` seconds, then are cancelled."""
        owner = self._owner
        if get_ident() != owner.place or owner.forks != Forks.count or not self._is_running():
            owner.refuse()
        protocol = self._protocol
        self.connection.shutdown(monotonic(), grace)
        protocol.react()
        protocol.flush()
        await asyncio.shield(protocol.lost)

    def begin_call(self, *what: Any) -> OutboundCall:
        """Start a call (see `_start`), whose waiter gets its last event; it leaves at once."""
        # Quicker than get_running_loop(), which asks the kernel for the pid each time on 3.11.
        owner = self._owner
        if get_ident() != owner.place or owner.forks != Forks.count or not self._is_running():
            owner.refuse()
        protocol = self._protocol
        call = self._start(monotonic(), Waiter(self._loop), *what)
        if protocol.idle:
            # A lone call is sent at once; several in one turn of the loop are sent together.
            protocol.idle = False
            protocol.flush()
        else:
            protocol.wrote()
        return call

    async def _wait(self, call: OutboundCall) -> CallCompleted:
        try:
            event: CallCompleted = await call.waiter
        except asyncio.CancelledError:
            self.give_up_call(call)
            raise
        return event

    def give_up_call(self, call: OutboundCall) -> None:
        self.connection.cancel(monotonic(), call)
        self._protocol.react()
        self._protocol.flush_soon()
