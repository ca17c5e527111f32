"""The client for gevent and blocking code."""

import ssl as ssl_module
from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar, copy_context
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar, overload

from rpc_common.transport.runtime import Runtime
from rpc_proto import (
    CallCompleted,
    ClientConfig,
    Codec,
    InvalidArgument,
    LocalProtocolError,
    Observer,
    OutboundCall,
)

from .base import ClientBase, Reply
from .dialling import Dialling, explain
from .intercepted import Intercepted
from .streams import Request, Stream, SyncRunning

if TYPE_CHECKING:
    from rpc_proto import Interceptor, Invocation
    from rpc_proto.trace import Trace

__all__ = ["Pending", "SyncClient", "Waiting"]

Result = TypeVar("Result")


class Pending(Generic[Result]):
    """A call that was sent, to be waited for later; `start` returns it."""

    __slots__ = ("_call", "_client", "_waiter")

    def __init__(self, client: "SyncClient", call: OutboundCall) -> None:
        self._client = client
        self._call = call
        self._waiter = call.waiter

    def done(self) -> bool:
        """Whether the call has ended, as far as answers have been read."""
        return self._waiter.event is not None

    def result(self) -> Result:
        """Wait for the result and return it; raise, once, what the call failed with."""
        value: Result = self._client.wait_for_call(self._call, self._waiter).value
        return value

    def cancel(self) -> None:
        """Give the call up: `result` raises Cancelled, and the server stops the handler."""
        self._client.give_up_call(self._call)


_pending: "ContextVar[PendingThrough | None]" = ContextVar("rpc_common_pending", default=None)


class PendingThrough:
    """A started call that goes through interceptors, in a thread or greenlet of its own."""

    def __init__(self, client: "SyncClient", intercepted: Intercepted, what: "Invocation") -> None:
        self._client = client
        self._ended = client._runtime.make_event()
        self._value: Any = None
        self._error: BaseException | None = None
        self._given_up = False
        self._taken = False
        self._call: OutboundCall | None = None
        context = copy_context()
        context.run(_pending.set, self)

        def run() -> None:
            try:
                self._value = context.run(intercepted.proceed, what)
            except BaseException as error:
                self._error = error
            self._ended.set()

        client._runtime.spawn(run)

    def begin(self, call: OutboundCall) -> None:
        """Record the actual call; interceptors may make more than one."""
        self._call = call
        if self._given_up:
            self._client.give_up_call(call)

    def done(self) -> bool:
        """Whether the call has ended."""
        ended: bool = self._ended.is_set()
        return ended

    def result(self) -> Any:
        """Wait for the result and return it; raise, once, what the call failed with."""
        while not self._ended.wait(_LONGEST_WAIT):
            pass
        if self._taken:
            raise LocalProtocolError("the result of this call was already taken")
        self._taken = True
        error, self._error = self._error, None
        if error is None:
            return self._value
        try:
            raise error
        finally:
            del error  # or error, traceback and frame would keep each other alive

    def cancel(self) -> None:
        """Give the call up: `result` raises Cancelled, and the server stops the handler."""
        self._given_up = True
        if self._call is not None:
            self._client.give_up_call(self._call)


_LONGEST_WAIT = 3600.0  # seconds

Waiting = deque[tuple[OutboundCall, Any]]  # calls that were started, each with its waiter


class SyncClient(ClientBase):
    """A client whose methods block."""

    _runtime: Runtime

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
    ) -> Self:
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
        checked = Intercepted.checked(interceptors, coroutines=False)
        target = Dialling.check(
            address, codec, token, ssl, config, tracer_provider, observers, trace, proxy, timeout
        )
        try:
            client = cls._connect(target, address, timeout)
        except BaseException as error:
            explained = explain(error, target, timeout)
            try:
                if explained is error:
                    raise
                raise explained from error
            finally:
                del explained  # or error, traceback and frame would keep each other alive
        if checked:
            client._intercept(checked)
        return client

    def _intercept(self, interceptors: "tuple[Interceptor, ...]") -> None:
        """Send all calls through interceptors."""

        def innermost(what: "Invocation") -> Any:
            if what.begin is not None:
                return what.begin(what)
            call = self.begin_call(*Intercepted.start(what))
            pending = _pending.get()
            if pending is not None:
                pending.begin(call)
            if what.one_way and call.sent:
                return None
            return Intercepted.answer(what, self.wait_for_call(call, call.waiter))

        self._let_through(Intercepted(self, interceptors, innermost))

        def call_many(
            method: str,
            calls: Iterable[tuple[Any, ...]],
            /,
            *,
            timeout: float | None = None,
            metadata: Mapping[str, str] | None = None,
            returns: Any = None,
            in_flight: int = 64,
        ) -> Iterator[Any]:
            options = {"timeout": timeout, "metadata": metadata, "returns": returns}
            waiting: deque[PendingThrough] = deque()
            source = iter(calls)
            try:
                while True:
                    for args in islice(source, max(1, in_flight) - len(waiting)):
                        waiting.append(self.perform("start", method, args, {}, options))
                    if not waiting:
                        return
                    yield waiting.popleft().result()
            finally:
                for pending in waiting:
                    pending.cancel()

        self.call_many = call_many  # type: ignore[method-assign]

    @classmethod
    @abstractmethod
    def _connect(cls, target: Dialling, address: str, timeout: float) -> Self:
        """Dial and shake hands; TimeoutError after `timeout` seconds. Close what fails."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @overload
    def call(
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
    def call(
        self,
        method: str,
        /,
        *args: Any,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
        returns: Any = None,
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
        **kwargs: Any,
    ) -> Any:
        """Call "Service.method" and return its result.

        `timeout`, in seconds, covers the whole call and travels with it. The default is the
        config's `call_timeout`; inside a handler it is never longer than the handler's remaining
        time. `returns` is the type to decode the result to. Raises CallError: see
        `rpc_proto.errors`. One argument may be an iterator, whose items are sent one by one to a
        method that takes a stream.
        """
        try:
            call = self.begin_call(method, args, kwargs, returns, timeout, metadata)
        except InvalidArgument:  # as it is if an argument is an iterator
            options = {"timeout": timeout, "metadata": metadata, "returns": returns}
            request = self._with_items(method, args, kwargs, options)
            if request is None:
                raise
        else:
            return self.wait_for_call(call, call.waiter).value
        return self._send_items(request)

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
        argument may be an iterator, whose items are sent one by one, beside what the caller does.
        `timeout`, in seconds, covers the whole stream, and has no default, except that of the call
        that a handler serves; `idle_timeout` is how long no item may move in either direction.
        """
        options = {"timeout": timeout, "metadata": metadata, "returns": returns}
        options["idle_timeout"] = idle_timeout
        return Stream(self, Request.of(method, args, kwargs, options))

    def _send_items(self, request: Request) -> Any:
        """Make a call whose items come from an iterator, and return the result."""
        return Stream[Any](self, request).send_source()

    def begin_stream(
        self,
        stream: Stream[Any],
        request: Request,
        sends: bool,
        takes: bool,
        here: bool = False,
        on_end: Callable[[], object] | None = None,
    ) -> None:
        """Not for users: send the request of a stream, and feed it from its iterator, if any.

        `here` is whether to do so in this thread, and return when all is sent. `on_end()` is called
        when the call has ended.
        """

        def begin(request: Request) -> Any:
            running = stream.running = self._begin_running(request, sends, takes, on_end)
            source = request.source
            if source is not None:
                running.is_fed = True
                if here and not self._feeds_beside:
                    running.feed(source)
                else:
                    self._runtime.spawn(partial(running.feed, source))
            return stream

        if self._intercepted is not None:
            self._begin_through(request, begin)
        else:
            begin(request)

    _feeds_beside = True  # whether it costs little to do two things at once

    @abstractmethod
    def _begin_running(
        self,
        request: Request,
        sends: bool,
        takes: bool,
        on_end: Callable[[], object] | None,
    ) -> SyncRunning:
        """Start the call of a stream; it leaves at once."""

    @abstractmethod
    def check_here(self) -> None:
        """Raise LocalProtocolError if this is the wrong place to use the client."""

    def request(
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
        call = self.begin_call(method, args, kwargs, returns, timeout, metadata)
        event = self.wait_for_call(call, call.waiter)
        return Reply(event.value, event.metadata)

    def notify(
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
            self.wait_for_call(call, call.waiter)

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
    ) -> Pending[Result]: ...
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
    ) -> Pending[Any]: ...
    def start(
        self,
        method: str,
        /,
        *args: Any,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
        returns: Any = None,
        **kwargs: Any,
    ) -> Pending[Any]:
        """Send a call and return at once; use `result()` of what it returns to wait."""
        return Pending(self, self.begin_call(method, args, kwargs, returns, timeout, metadata))

    @overload
    def call_many(
        self,
        method: str,
        calls: Iterable[tuple[Any, ...]],
        /,
        *,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
        returns: type[Result],
        in_flight: int = 64,
    ) -> Iterator[Result]: ...
    @overload
    def call_many(
        self,
        method: str,
        calls: Iterable[tuple[Any, ...]],
        /,
        *,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
        returns: Any = None,
        in_flight: int = 64,
    ) -> Iterator[Any]: ...
    def call_many(
        self,
        method: str,
        calls: Iterable[tuple[Any, ...]],
        /,
        *,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
        returns: Any = None,
        in_flight: int = 64,
    ) -> Iterator[Any]:
        """Call one method with many tuples of arguments; yield the results in their order.

        At most `in_flight` calls are in flight at a time; requests are sent in batches. The first
        failed call raises, and the others are cancelled.
        """
        waiting: Waiting = deque()
        source = iter(calls)
        try:
            while True:
                # Several at a time, if several have ended, which costs less for each.
                several = tuple(islice(source, max(1, in_flight) - len(waiting)))
                if several:
                    self._begin_all(waiting, several, method, returns, timeout, metadata)
                if not waiting:
                    return
                yield self.wait_for_call(*waiting.popleft()).value
                for _ in range(in_flight // 4):
                    if not waiting or waiting[0][1].event is None:
                        break
                    yield self.wait_for_call(*waiting.popleft()).value
        finally:
            for call, _ in waiting:
                self.give_up_call(call)

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
        one_way = kind == "notify"
        if self._intercepted is not None:
            what = self._intercepted.invocation(method, args, kwargs, *given, one_way)
            if kind == "start":
                return PendingThrough(self, self._intercepted, what)
            value = self._intercepted.proceed(what)
            return Reply(value, what.reply_metadata) if kind == "request" else value
        call = self.begin_call(method, args, kwargs, *given, one_way)
        if kind == "start":
            return Pending(self, call)
        if one_way and call.sent:
            return None
        event = self.wait_for_call(call, call.waiter)
        return Reply(event.value, event.metadata) if kind == "request" else event.value

    @abstractmethod
    def close(self, grace: float = 0.0) -> None:
        """Close the connection; calls in flight get `grace` seconds, then are cancelled."""

    @abstractmethod
    def begin_call(self, *what: Any) -> OutboundCall:
        """Start a call (see `_start`), whose waiter gets its last event; it leaves at once."""

    @abstractmethod
    def _begin_all(
        self, waiting: Waiting, calls: Iterable[tuple[Any, ...]], method: str, *options: Any
    ) -> None:
        """Start calls of one method, each with these arguments, and append them to `waiting`.

        They are sent when enough have accumulated, or when somebody waits. `options` are the
        arguments of `_start` after these: `returns`, `timeout` and `metadata`.
        """

    @abstractmethod
    def wait_for_call(self, call: OutboundCall, waiter: Any) -> CallCompleted:
        """Wait until a call has ended."""

    @abstractmethod
    def give_up_call(self, call: OutboundCall) -> None:
        """Cancel a call, if it has not ended."""
