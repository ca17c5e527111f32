"""What the servers of all backends share: settings, services, admission, events, log lines."""

import ssl as ssl_module
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator
from contextvars import copy_context
from functools import partial
from logging import INFO
from math import inf
from time import monotonic, time
from typing import TYPE_CHECKING, Any, Protocol, Self, TypedDict

from rpc_common.client.streams import OF_STREAMS
from rpc_common.telemetry.access_log import AccessLog
from rpc_common.telemetry.log import Log
from rpc_common.transport.forks import Forks
from rpc_common.transport.runtime import Runtime
from rpc_common.transport.sockets import Listener, files_limit, listen
from rpc_common.transport.turns import Turns
from rpc_proto import (
    Address,
    CallCancelled,
    Cancelled,
    ConnectionTerminated,
    Event,
    HandshakeCompleted,
    HandshakeError,
    HttpServed,
    LocalProtocolError,
    Observer,
    ObserverFailed,
    Peer,
    RemoteProtocolError,
    RequestReceived,
    ResponsePromised,
    SendBufferDrained,
    ServerConfig,
    ServerConnection,
    ServerPort,
    parse_address,
)
from rpc_proto.config import Authenticate
from rpc_proto.connection.memory import Memory
from rpc_proto.connection.observers import Observers
from rpc_proto.http import Pages, Promise, Request, Response, Router
from rpc_proto.http.making import Making
from rpc_proto.http.turns import HttpTurns
from rpc_proto.pages.builtin import BuiltIn
from rpc_proto.service.context import Job
from rpc_proto.service.dispatch import Dispatcher, Lock
from rpc_proto.service.health import HEALTH, Health
from rpc_proto.service.interceptors import Interceptor, check_interceptors, intercepting
from rpc_proto.service.introspection import INTROSPECTION, Introspection
from rpc_proto.service.methods import Method, reflect

if TYPE_CHECKING:
    from rpc_common.discovery.advertising import Advertisement
    from rpc_proto.trace import Trace

    from .programs import Program

__all__ = ["FAREWELL", "Link", "ServerBase", "Settings", "SyncServer", "peer_address"]


# So many connections beyond the limit get a refusal; more are closed without one.
_TURNED_AWAY = 100

# How long a stopping server waits to be deregistered, in seconds.
FAREWELL = 5.0

_RESUMED_AT_ONCE = 100
_AGAIN = 1.0  # seconds until another attempt to start a thread

# Of a ServerConfig; other fields are not public.
_LIMITS = (
    *(
        "max_header",
        "max_body",
        "max_encoded",
        "max_decoded",
        "high_water",
        "max_calls",
        "refusals",
        "handshake_timeout",
    ),
    *(
        "ping_interval",
        "frame_timeout",
        "write_timeout",
        "close_timeout",
        "handling_timeout",
        "idle_timeout",
    ),
)


def peer_address(peername: Any) -> str:
    """Return a peer's name in `current_call().peer` and in the log."""
    return f"{peername[0]}:{peername[1]}" if isinstance(peername, tuple) else "unix"


class Link(Protocol):
    """A driver's object for a connection."""

    # A port until the peer makes calls; None until TLS is done, where that comes first.
    connection: Any
    surplus: bool  # the limit of connections was reached when it was accepted

    def fileno(self) -> int:
        """Return the descriptor of its socket; -1 if that is closed."""

    def settle(self, connection: ServerConnection) -> None:
        """Use this connection in place of the port it came from."""

    def wrote(self) -> None:
        """Make sure that what a command wrote is sent."""

    def wake(self) -> None:
        """Make sure that the connection's `next_timeout` is checked soon."""


class Settings(TypedDict, total=False):
    """The settings of every server."""

    config: ServerConfig | None
    token: str | None
    authenticate: Authenticate | None
    max_concurrency: int
    max_queued: int
    max_connections: int | None
    introspection: bool
    health: bool
    debug: bool
    access_log: bool
    tracer_provider: Any
    observers: Iterable[Observer]
    interceptors: Iterable[Interceptor]
    trace: "Callable[[Trace], None] | None"
    lifespan: Callable[[Any], Any] | None
    pages: Pages | None


class ServerBase(ABC):
    """Serves the methods of objects.

    `config` has the limits and timeouts of each connection; `token` and `authenticate` override its
    fields. At most `max_concurrency` handlers run at a time, of which one connection may use three
    quarters, and `max_queued` calls wait for them; `max_connections` limits the connections.
    `introspection` enables `rpc.Introspection`, and `health` `rpc.Health`; `debug` sends tracebacks
    to callers. `access_log` logs each finished call; an OpenTelemetry `tracer_provider` gets a span
    for each call that a handler serves. `observers` are notified of all calls, and `interceptors`
    wrap them: see rpc_proto.Observer and rpc_proto.Interceptor. `trace` is called with the trace of
    each connection when it starts: see rpc_proto.trace. `lifespan(server)` returns a context
    manager, in rpc_asyncio an asynchronous one, which is entered before the server listens and left
    when the last handler has ended.

    `http`, a rpc_proto.http.Router, has the applications for HTTP requests. `pages`, a
    rpc_proto.http.Pages, controls access to the built-in pages.
    """

    # What handlers raise when they are cancelled.
    _cancellation: type[BaseException] = Cancelled
    _log: Log
    _serves_coroutines = True
    # The default; together with the memory budget, these fit into 512 MiB.
    _most_connections = 8000

    def __init__(
        self,
        *,
        config: ServerConfig | None = None,
        token: str | None = None,
        authenticate: Authenticate | None = None,
        max_concurrency: int = 1000,
        max_queued: int = 10_000,
        max_connections: int | None = None,
        introspection: bool = True,
        health: bool = True,
        debug: bool = False,
        access_log: bool = False,
        tracer_provider: Any = None,
        observers: Iterable[Observer] = (),
        interceptors: Iterable[Interceptor] = (),
        trace: "Callable[[Trace], None] | None" = None,
        lifespan: Callable[[Any], Any] | None = None,
        pages: Pages | None = None,
        threads: int | None = None,
    ) -> None:
        self.config = (config or ServerConfig()).override(token=token, authenticate=authenticate)
        if max_connections is None:
            files = files_limit()
            most = self._most_connections
            max_connections = most if files is None else max(1, min(most, files * 3 // 4))
        if max_connections < 1:
            raise ValueError(f"max_connections must be 1 or more, not {max_connections}")
        self._dispatcher = Dispatcher(
            max_concurrency=max_concurrency,
            max_queued=max_queued,
            threads=threads,
            clock=monotonic,
            debug=debug,
            lock=self._make_lock(),
            report=lambda error, message: self._failed(error, "%s", message),
        )
        self._limits = {
            "max_concurrency": max_concurrency,
            "max_queued": max_queued,
            "max_connections": max_connections,
            **{name: getattr(self.config, name) for name in _LIMITS},
            "memory": self.config.budget,
        }
        self._made_at = monotonic()
        self._interceptors = check_interceptors(interceptors, coroutines=self._serves_coroutines)
        self._spans: Callable[[Method], Callable[..., Any]] | None = None
        if tracer_provider is not None:
            from rpc_common.telemetry.otel import server_spans

            self._spans = server_spans(tracer_provider, self._cancellation)
        offered = Introspection(self._dispatcher)
        if introspection:
            self._dispatcher.register(offered, INTROSPECTION, self._intercept)
        self._health = Health(self._dispatcher, lambda: self._stopping)
        if health:
            self._dispatcher.register(self._health, HEALTH, self._intercept)
        self.http = Router()
        built_in = BuiltIn(self.snapshot, offered.services, self._health.check)
        built_in.add_to(self.http, pages or Pages())
        if access_log:
            observers = (*observers, AccessLog(self._log.get_child("access")))
        self._abandoned: Collection[Job] = ()  # where handlers have threads
        self._trace = trace
        self._lifespan = lifespan
        self._living: Any = None  # the entered context manager of `lifespan`
        self._entering = False
        self._observers = Observers((self._dispatcher, *observers))
        self._http_turns = HttpTurns(monotonic, self._make_lock())
        self._memory = Memory(self.config.budget, self._make_lock())
        self._max_connections = max_connections
        self._listeners: list[Any] = []
        # Accepted connections, in their order, including those in the TLS handshake.
        self.links: dict[Any, None] = {}
        self._turns = Turns()
        self._stopping = False
        self._told_stopped = False
        self._mounted: list[Any] = []
        self._wakes_at = inf  # when to call `handle_timeout` of the applications
        self._wakes: Any = None
        self._registrations: Any = None
        Forks.watch(self)

    def _make_lock(self) -> Lock | None:
        """Return a lock for what several connections share, if they have threads."""
        return None

    # Services

    def register(self, service: Any, name: str | None = None) -> str:
        """Offer an object's public methods as a service, or a function as one method.

        `name` is the name of the service, by default the `__service__` or the name of the object's
        class; for a function it is the full name, "Service.method". Works while serving. Returns
        the name. Raises TypeError for signatures that cannot be served, and ValueError if the name
        is taken.
        """
        if not self._serves_coroutines:
            for method in reflect(service, name).values():
                if method.is_async:
                    raise TypeError(f"{method.name} is asynchronous; use rpc_asyncio")
        name = self._dispatcher.register(service, name, self._wrap)
        if self._registrations is not None:
            self._registrations.describe_again()
        return name

    def _intercept(self, method: Method) -> Callable[..., Any]:
        """Return a method's function with the interceptors around it."""
        if self._interceptors:
            beside = self._beside if self._serves_coroutines else None
            method.function = intercepting(method, self._interceptors, beside)
        return method.function

    def _wrap(self, method: Method) -> Callable[..., Any]:
        """Return a method's function with interceptors and spans around it."""
        in_thread = not method.is_async
        method.function = self._intercept(method)
        if method.streams:
            method.function = self._iterating(method, in_thread)
        return method.function if self._spans is None else self._spans(method)

    @abstractmethod
    def _iterating(self, method: Method, in_thread: bool) -> Callable[..., Any]:
        """Return what to run in place of a method with streams: it returns after the last item.

        `in_thread` is whether the method is a plain function.
        """

    async def _beside(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run a blocking function, where interceptors are coroutines."""
        raise NotImplementedError

    def unregister(self, name: str) -> None:
        """Remove a service, or a method by its full name; works while serving.

        Running calls continue. ValueError if no service or method has that name.
        """
        self._dispatcher.unregister(name)
        self._health.forget(name)
        if self._registrations is not None:
            self._registrations.describe_again()

    def set_health(self, service: str, serving: bool) -> None:
        """Set what `rpc.Health` reports for a service, or for the whole server ("").

        Registered services are serving until set otherwise. ValueError if no service has that name.
        """
        self._health.set(service, serving)

    def _descriptors(self) -> Iterator[int]:
        """Return the descriptors of all open sockets, which a child process closes."""
        for holder in (*self._listeners, *self.links):
            yield holder.fileno()

    @property
    def stats(self) -> dict[str, int]:
        """Counters, for people and tests."""
        dispatcher = self._dispatcher
        return {
            "connections": len(self.links),
            "running": dispatcher.running,
            "queued": dispatcher.queued,
            "served": dispatcher.total("served"),
            "failed": dispatcher.total("failed"),
            "refused": dispatcher.total("refused"),
            "cancelled": dispatcher.total("cancelled"),
            "abandoned": len(self._abandoned),
        }

    def snapshot(self) -> dict[str, Any]:
        """Return all statistics of the server as JSON-able values, for pages and metrics.

        They are those of `rpc_proto.service.stats.ServerStats.snapshot`, and: `load`, with the
        numbers of calls that are `running`, `queued`, or `abandoned` (still running after they
        ended), and `memory`, the bytes of the budget in use; `limits`, by the names of the
        arguments and of ServerConfig; `health`, {service: "serving" or "not_serving"}, with "" for
        the whole server; `draining`, whether the server is stopping; `uptime` in seconds; and
        `time`, the wall clock in seconds since 1970. Call it where the server runs; that of
        rpc_blocking in any thread.
        """
        now = monotonic()
        connections = [link.connection for link in self.links if link.connection is not None]
        numbers = self._dispatcher.snapshot(now, connections)
        numbers["load"]["abandoned"] = len(self._abandoned)
        numbers["load"]["memory"] = self._memory.used
        return {
            "time": time(),
            "uptime": now - self._made_at,
            "draining": self._stopping,
            "health": self._health.states(),
            "limits": dict(self._limits),
            **numbers,
        }

    # Life

    def _check_listening(self, address: str, ssl: ssl_module.SSLContext | None) -> Address:
        where = parse_address(address, listening=True)
        if where.has_tls is not (ssl is not None):
            raise ValueError(
                "tls:// and https:// addresses need ssl, others must not have it: "
                f"{address!r}, ssl={ssl!r}"
            )
        if self._stopping:
            raise LocalProtocolError("this server was stopped; create a new one")
        return where

    def _check_advertised(
        self,
        advertise: "Advertisement | str | Iterable[Advertisement | str] | None",
        where: Address,
    ) -> "list[Advertisement]":
        if advertise is None:
            return []
        if self._registrations is None:
            from rpc_common.discovery.advertising import Registrations

            self._registrations = Registrations(self._log, self._dispatcher)
        checked: list[Advertisement] = self._registrations.check(advertise, where)
        return checked

    def _check_grace(self, grace: float) -> None:
        if not isinstance(grace, (int, float)) or not grace >= 0:
            raise LocalProtocolError(f"grace must be seconds, 0 or more, not {grace!r}")

    def run(
        self,
        address: str,
        *,
        ssl: ssl_module.SSLContext | None = None,
        advertise: "Advertisement | str | Iterable[Advertisement | str] | None" = None,
        grace: float = 5.0,
    ) -> None:
        """Run the server as a program: start it, print the address, and wait for a signal.

        The arguments are those of `start`. SIGTERM or SIGINT stops the server gracefully: running
        calls get `grace` seconds. A second signal stops it at once. It also returns after `stop`
        was called elsewhere. Call it in the main thread; in rpc_asyncio it creates the event loop.
        Raises what `start` raises.
        """
        from .programs import Program

        self._check_grace(grace)
        self.run_program(Program([(address, ssl)], advertise, grace))

    @abstractmethod
    def run_program(self, program: "Program") -> None:
        """Do what `run` does, for programs with more options."""

    def _make_lifespan(self, enter: str) -> Any:
        """Return the context manager to enter before the server listens, if any."""
        if self._lifespan is None or self._living is not None:
            return None
        if self._entering:
            raise LocalProtocolError("the server is still starting; wait before starting it again")
        manager = self._lifespan(self)
        if not hasattr(manager, enter):
            raise TypeError(f"lifespan must return something with {enter}(), not {manager!r}")
        self._entering = True
        return manager

    # Log lines, the same in all backends

    def _log_listening(self, where: Address) -> None:
        self._log.info("listening on %s", where)
        files = files_limit()
        if files is not None and self._max_connections > files:
            self._log.warning(
                "max_connections is %d, but this process may open only %d files (RLIMIT_NOFILE)",
                self._max_connections,
                files,
            )
        self._look_after()

    def _open_listener(self, where: Address, sockets: Any) -> Listener:
        """Listen, with the sockets of a module, unless the server was stopped meanwhile."""
        listener = listen(where, sockets, self._log)
        if self._stopping:
            listener.close()
            raise LocalProtocolError("the server was stopped while it started")
        return listener

    def _close_listeners(self) -> None:
        while self._listeners:
            self._listeners.pop().close()

    def _begin_stop(self, grace: float) -> None:
        """Record that the server is stopping, perhaps not for the first time."""
        if not self._stopping:
            self._stopping = True
            self._rest_applications()
            self._log.info(
                "stopping within %g s: %d connections, %d calls running, %d queued",
                grace,
                len(self.links),
                self._dispatcher.running,
                self._dispatcher.queued,
            )

    def _log_stopped(self) -> None:
        if self._told_stopped:
            return
        self._told_stopped = True
        dispatcher = self._dispatcher
        if dispatcher.running:
            self._log.warning("stopped with %d handlers still running", dispatcher.running)
        self._log.info(
            "stopped: %d calls served, %d failed, %d refused, %d cancelled",
            *map(dispatcher.total, ("served", "failed", "refused", "cancelled")),
        )

    # Connections

    def make_connection(self, peername: Any, certificate: Any, now: float) -> ServerPort:
        options: dict[str, Any] = {
            "now": now,
            "peer": Peer(peer_address(peername), certificate or None),
            "application": self._answer_http,
            "turns": self._http_turns,
            "memory": self._memory,
            "observers": self._observers,
        }
        if self._trace is None:
            return ServerPort(self.config, **options)
        from rpc_proto.trace import TracedServerPort

        port = TracedServerPort(self.config, **options)
        self._trace(port.trace)
        return port

    # Applications

    def mount(self, application: Any) -> None:
        """Host an application with timers, such as a Registry.

        Its `mount` adds it to `http`, and its `handle_timeout(now)` is called at `next_timeout()`.
        """
        application.mount(self.http)
        self._mounted.append(application)
        self._look_after()

    def _answer_http(self, request: Request, now: float) -> Response | Promise | Making:
        try:
            return self.http(request, now)
        finally:
            if self._mounted:
                self._look_after()

    def _look_after(self) -> None:
        """Set the timer of the mounted applications."""
        at = min((a.next_timeout() or inf for a in self._mounted), default=inf)
        if at < self._wakes_at and not self._stopping:
            timer = self._call_at(at, self._wake_applications)
            if timer is not None:  # else the server has not started
                self._rest_applications()
                self._wakes_at, self._wakes = at, timer

    def _rest_applications(self) -> None:
        if self._wakes is not None:
            self._cancel_timer(self._wakes)
        self._wakes_at, self._wakes = inf, None

    def _wake_applications(self) -> None:
        at = self._wakes_at
        self._wakes_at, self._wakes = inf, None
        # A timer may fire a little early by this clock; the applications must not see that.
        now = monotonic() if at == inf else max(at, monotonic())
        for application in self._mounted:
            try:
                application.handle_timeout(now)
            except BaseException as error:
                self._failed(error, "%s failed", type(application).__name__)
        self._look_after()

    @abstractmethod
    def _call_at(self, at: float, function: Callable[[], None]) -> Any:
        """Call a function at that time, and return the timer; None before the start."""

    @abstractmethod
    def _cancel_timer(self, timer: Any) -> None:
        """Cancel a timer of `_call_at`."""

    def has_room(self) -> bool:
        """Whether one more connection can be accepted, at least to refuse it with a reason."""
        return len(self.links) < self._max_connections + _TURNED_AWAY

    def arrive(self, link: Link) -> None:
        """Count an accepted connection."""
        link.surplus = len(self.links) >= self._max_connections
        self.links[link] = None

    def admit(self, link: Link, now: float) -> None:
        """Start with an accepted connection; refuse it if there are too many."""
        self._dispatcher.stats.connected()
        if self._stopping:
            refusal = "unavailable", "the server is shutting down"
        elif link.surplus:
            refusal = (
                "resource_exhausted",
                f"the limit is {self._max_connections} connections",
            )
        else:
            return
        link.connection.turn_away(now, *refusal)
        self.handle_events(link, link.connection.events())

    def handle_events(self, link: Link, events: list[Event]) -> None:
        jobs = self._dispatcher.receive(events, link)
        for job in jobs:
            if job.error is None:
                self._run(job)
            else:
                self._stop_handler(job)
        if len(jobs) == len(events):  # as it is, for the most part
            return
        for event in events:
            kind = type(event)
            if kind in OF_STREAMS:
                stream = event.call.waiter  # type: ignore[attr-defined]
                if stream is not None:  # else its handler has not started, and will look itself
                    stream.wake()
            elif kind is not RequestReceived and kind is not CallCancelled:
                self._handle_event(link, event)

    def _handle_event(self, link: Link, event: Event) -> None:
        """Handle an event that is not about a call."""
        if isinstance(event, SendBufferDrained):
            if self._dispatcher.resume(link.connection):
                self._resume_soon()
        elif isinstance(event, HandshakeCompleted):
            link.settle(link.connection.connection)  # which is quicker without the port
        elif isinstance(event, ConnectionTerminated):
            peer = link.connection.peer.address
            self._dispatcher.stats.terminated(peer, event.error, monotonic())
            self._log_end(peer, event)
        elif isinstance(event, ResponsePromised):
            event.promise.on_settled(link.wake)
        elif isinstance(event, HttpServed):
            if event.error is not None:
                self._failed(event.error, "%s failed", event.request)
        elif isinstance(event, ObserverFailed):
            self._failed(event.error, "an observer failed")

    def log_tls_failed(self, peername: Any, error: Exception) -> None:
        """Warn of a failed TLS handshake, if the log level includes peers' errors."""
        if self._log.isEnabledFor(INFO):
            self._log.warning("%s: the TLS handshake failed: %s", peer_address(peername), error)

    def _failed(self, error: BaseException, message: str, *args: object) -> None:
        """Log an exception of the application's code."""
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            self._end_process(error)
        self._log.error(message, *args, exc_info=error)

    def _end_process(self, error: KeyboardInterrupt | SystemExit) -> None:  # noqa: B027
        """Raise this in the program that runs the server; threads have nothing to end."""

    def _drop(self, link: Link) -> None:
        """Forget a connection whose transport is closed, if that has not been done."""
        if link in self.links:
            del self.links[link]
            if link.connection is not None:
                self._dispatcher.stats.closed(link.connection)

    def _log_end(self, peer: str, event: ConnectionTerminated) -> None:
        if isinstance(event.error, RemoteProtocolError):
            self._log.warning("%s: protocol violation: %s", peer, event.error)
        elif isinstance(event.error, HandshakeError):
            cause = event.error.__cause__
            if cause is not None:
                self._failed(cause, "%s: authenticate() failed", peer)
            else:  # a port scanner is not worth a line
                self._log.debug("%s: %s", peer, event.error)

    # Handlers

    @abstractmethod
    def _run(self, job: Job) -> None:
        """Run the handler of a call, and report its end to `_ended`."""

    def _run_quick(self, job: Job) -> None:
        """Run a handler that never blocks, in place."""
        try:
            result = copy_context().run(job.run)
        except BaseException as error:
            self._ended(job, None, error)
            if isinstance(error, (KeyboardInterrupt, SystemExit)):
                self._end_process(error)
        else:
            self._ended(job, result, None)

    @abstractmethod
    def _stop_handler(self, job: Job) -> None:
        """Stop the handler of a call that nobody waits for; it may have ended."""

    @abstractmethod
    def _resume_soon(self) -> None:
        """Run queued calls soon: a handler has ended."""

    def _resume_some(self) -> bool:
        """Run some queued calls; return whether more may be waiting."""
        for _ in range(_RESUMED_AT_ONCE):
            job = self._dispatcher.next_queued()
            if job is None:
                return False
            self._run(job)
        return True

    def _ended(self, job: Job, result: Any, error: BaseException | None) -> None:
        """Answer a call whose handler has ended."""
        dispatcher = self._dispatcher
        failure: BaseException | None = None
        if error is not None:
            if isinstance(error, self._cancellation):
                error = Cancelled("the handler was cancelled")
            elif dispatcher.is_unexpected(error):
                failure = error
        method = job.method
        try:
            others_wait = dispatcher.finish(job, result, error)
        except BaseException as raised:  # by a codec; the call has been answered
            failure = raised
            others_wait = True
        job.owner.wrote()
        if others_wait:
            self._resume_soon()
        if failure is not None:  # last, since logging may take time
            self._log.error("%s failed", method.name, exc_info=failure)


class SyncServer(ServerBase):
    """A server whose methods block."""

    _runtime: Runtime

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(
        self,
        address: str,
        *,
        ssl: ssl_module.SSLContext | None = None,
        advertise: "Advertisement | str | Iterable[Advertisement | str] | None" = None,
    ) -> str:
        """Listen on tcp://host:port, tls://host:port or unix:///path; return the real address.

        http:// and https:// mean the same as tcp:// and tls://. Port 0 picks a free port. Call it
        again for more addresses. `advertise` is where to register the address: URLs of registries,
        `Advertisement`s, or several of these. Raises OSError if it cannot listen on the address.
        """
        where = self._check_listening(address, ssl)
        advertised = self._check_advertised(advertise, where)
        if advertised:
            from rpc_common.discovery.carriers import check_source

            for advertisement in advertised:
                check_source(advertisement.ssl, advertisement.transport)
        first = self._begin_lifespan()
        try:
            where = self._listen(where, ssl)
        except BaseException:
            if first:
                self._end_lifespan()
            raise
        self._log_listening(where)
        for advertisement in advertised:
            self._begin_advertising(advertisement, where)
        return str(where)

    def _begin_lifespan(self) -> bool:
        """Enter the lifespan, unless it is entered already; return whether it was."""
        manager = self._make_lifespan("__enter__")
        if manager is None:
            return False
        try:
            manager.__enter__()
            self._living = manager
        finally:
            self._entering = False
        return True

    def _end_lifespan(self) -> None:
        manager, self._living = self._living, None
        if manager is not None:
            manager.__exit__(None, None, None)

    def _begin_advertising(self, advertisement: "Advertisement", where: Address) -> None:
        from rpc_common.discovery.pump import Pump

        registrations = self._registrations
        begin = partial(Pump, handle=registrations.take, runtime=self._runtime, log=self._log)
        try:
            registrations.add(advertisement, where, partial(begin, ssl=advertisement.ssl))
        except RuntimeError as error:  # no more threads can be started
            self._log.warning("registration of %s waits for a thread: %s", where, error)
            again = partial(self._begin_advertising, advertisement, where)
            self._call_at(monotonic() + _AGAIN, again)

    def _start_program(self, program: "Program") -> None:
        for address, ssl in program.listen:
            try:
                started = self.start(address, ssl=ssl, advertise=program.advertise)
                program.listening(started)
            except (OSError, ValueError) as error:
                self.stop(grace=0.0)
                program.failed(address, error)

    def _deregister(self) -> None:
        """Deregister before anything else ends, so that callers go elsewhere."""
        if self._registrations is not None:
            until = monotonic() + FAREWELL
            for pump in self._registrations.leave():
                pump.ended.wait(max(0.0, until - monotonic()))
                pump.stop()

    @abstractmethod
    def _listen(self, where: Address, ssl: ssl_module.SSLContext | None) -> Address:
        """Listen there, and return the real address."""

    @abstractmethod
    def stop(self, grace: float = 5.0) -> None:
        """Stop gracefully: accept nothing new, and give running calls `grace` seconds.

        Then their callers get `unavailable`, and the handlers are cancelled. Returns when every
        connection is closed, at most `close_timeout` seconds later; handlers that ignore the
        cancellation are left running.
        """
