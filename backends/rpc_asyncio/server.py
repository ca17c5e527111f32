"""The asyncio server: listeners, connections, and where each kind of handler runs."""

import asyncio
import contextlib
import logging
import os
import ssl as ssl_module
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from time import monotonic
from typing import Any, Self

from rpc_proto import (
    CallCancelled,
    Cancelled,
    ConnectionTerminated,
    Event,
    HandshakeError,
    LocalProtocolError,
    Peer,
    RemoteProtocolError,
    RequestReceived,
    ServerCall,
    ServerConfig,
    ServerConnection,
    parse_address,
)
from rpc_proto.dispatch import Dispatcher
from rpc_proto.introspection import INTROSPECTION, Introspection

from .handlers import HandlerRunner
from .protocol import ConnectionProtocol, Forks

__all__ = ["Server"]

_log = logging.getLogger("rpc_asyncio")

_RESUMED_AT_ONCE = 100  # calls from the queue in one turn of the loop


class _ServerProtocol(ConnectionProtocol):
    __slots__ = ("_server",)

    connection: ServerConnection

    def __init__(self, server: "Server", loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self._server = server

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        name = transport.get_extra_info("peername")
        peer = Peer(
            address=f"{name[0]}:{name[1]}" if isinstance(name, tuple) else "unix",
            certificate=transport.get_extra_info("peercert") or None,
        )
        now = monotonic()
        self.connection = ServerConnection(self._server.config, now=now, peer=peer)
        refusal = self._server._admit(self)
        if refusal is not None:
            self.handle_events(self.connection.turn_away(*refusal, now))
        super().connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        try:
            super().connection_lost(exc)
        finally:
            self._server._forget(self)

    def handle_events(self, events: list[Event]) -> None:
        server = self._server
        dispatcher = server._dispatcher
        for event in events:
            if type(event) is RequestReceived:
                if dispatcher.begin(self.connection, event.call, self):
                    server._run(event.call)
            elif isinstance(event, CallCancelled):
                try:
                    running = dispatcher.cancel(event.call, event.error)
                except Exception:
                    _log.exception("%s: a callback of on_cancel() failed", event.call.method)
                    running = True
                if running:
                    server._stop_handler(event.call)
            elif isinstance(event, ConnectionTerminated):
                self._log_end(event)

    def _log_end(self, event: ConnectionTerminated) -> None:
        peer = self.connection.peer.address
        if isinstance(event.error, RemoteProtocolError):
            _log.warning("%s: protocol violation: %s", peer, event.error)
        elif isinstance(event.error, HandshakeError):
            cause = event.error.__cause__
            if cause is not None:
                _log.error("%s: authenticate() failed", peer, exc_info=cause)
            else:  # a port scanner is not worth a line
                _log.debug("%s: %s", peer, event.error)


class Server:
    """Serves objects' methods; `await server.start(address)` opens it.

    `config`: limits and timeouts of each connection. `token`, `authenticate`: short for the same
    fields there. At most `max_concurrency` handlers run at a time and `max_queued` calls wait for
    them; `max_connections` bounds the connections, `threads` the pool in which `def` handlers run.
    `introspection` offers `rpc.Introspection`; `debug` sends tracebacks to callers.
    """

    def __init__(
        self,
        *,
        config: ServerConfig | None = None,
        token: str | None = None,
        authenticate: Any = None,
        max_concurrency: int = 1000,
        max_queued: int = 10_000,
        max_connections: int = 20_000,
        threads: int = 16,
        introspection: bool = True,
        debug: bool = False,
    ) -> None:
        self.config = (config or ServerConfig()).override(token=token, authenticate=authenticate)
        if threads < 1 or max_connections < 1:
            raise ValueError(
                "threads and max_connections must be 1 or more, "
                f"not {threads} and {max_connections}"
            )
        self._dispatcher = Dispatcher(
            max_concurrency=max_concurrency, max_queued=max_queued, clock=monotonic, debug=debug
        )
        if introspection:
            self._dispatcher.register(Introspection(self._dispatcher), INTROSPECTION)
        self._max_connections = max_connections
        self._threads = threads
        self._pool: ThreadPoolExecutor | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._runner: HandlerRunner  # comes with the loop
        self._listeners: list[asyncio.Server] = []
        self._paths: list[str] = []
        self._connections: set[_ServerProtocol] = set()
        self._gone: asyncio.Future[None] | None = None
        self._resuming = False
        self._stopping = False
        self._forks = Forks.count
        self._abandoned: set[ServerCall] = set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    # Services

    def register(self, service: Any, name: str | None = None) -> str:
        """Offer an object's public methods under `name`, by default the name of its class.

        Works while serving. Returns the name. Raises TypeError for signatures that cannot be
        served and ValueError for a name that is taken.
        """
        return self._dispatcher.register(service, name)

    def unregister(self, name: str) -> None:
        """Take a service away, also while serving; its running calls go on."""
        self._dispatcher.unregister(name)

    # Life

    async def start(self, address: str, *, ssl: ssl_module.SSLContext | None = None) -> str:
        """Listen on tcp://host:port, tls://host:port or unix:///path; return the real address.

        Port 0 picks a free one. May be called again for more addresses. Raises OSError when the
        address cannot be had.
        """
        where = parse_address(address, listening=True)
        if (where.scheme == "tls") is not (ssl is not None):
            raise ValueError(f"a tls:// address and ssl go together; got {address!r}, ssl={ssl!r}")
        loop = asyncio.get_running_loop()
        if self._loop is None:
            self._loop = loop
            self._runner = HandlerRunner(loop, self._ended)
            self._forks = Forks.count
        self._check_owner()
        if self._stopping:
            raise LocalProtocolError("this server was stopped; make a new one")

        def make_protocol() -> _ServerProtocol:
            return _ServerProtocol(self, loop)

        if where.scheme == "unix":
            listener = await loop.create_unix_server(make_protocol, where.path, backlog=1024)
            self._paths.append(where.path)
        else:
            tls: dict[str, Any] = {}
            if ssl is not None:
                tls = {
                    "ssl": ssl,
                    "ssl_handshake_timeout": self.config.handshake_timeout,
                    "ssl_shutdown_timeout": self.config.close_timeout,
                }
            listener = await loop.create_server(
                make_protocol, where.host, where.port, backlog=1024, **tls
            )
            where = where._replace(port=listener.sockets[0].getsockname()[1])
        self._listeners.append(listener)
        if self._stopping:  # meanwhile
            self._close_listeners()
            raise LocalProtocolError("the server was stopped while it started")
        return str(where)

    async def serve_forever(self) -> None:
        """Wait until `stop` is called; when cancelled, stop at once."""
        if self._loop is None:
            raise LocalProtocolError("start the server first")
        self._check_owner()
        if self._gone is None:
            self._gone = self._loop.create_future()
        try:
            await asyncio.shield(self._gone)
        finally:
            await self.stop(grace=0.0)

    async def stop(self, grace: float = 5.0) -> None:
        """Stop in order: no new connections and calls; running ones get `grace` seconds.

        Then their callers get `unavailable` and the handlers are cancelled. Returns when every
        connection is closed, at the latest `close_timeout` after that.
        """
        if not grace >= 0:
            raise LocalProtocolError(f"grace must be seconds, 0 or more, not {grace!r}")
        if self._loop is None:
            return
        self._check_owner()
        self._stopping = True
        if self._gone is None:
            self._gone = self._loop.create_future()
        self._close_listeners()
        now = monotonic()
        for protocol in list(self._connections):
            protocol.handle_events(protocol.connection.shutdown(now, grace))
            protocol.flush()
        if not self._connections and not self._gone.done():
            self._gone.set_result(None)
        await asyncio.shield(self._gone)
        self._runner.close()
        if self._runner.tasks:
            # They were cancelled with their calls; one that does not listen is left behind.
            await asyncio.wait(self._runner.tasks, timeout=self.config.close_timeout)
        if self._dispatcher.running:
            _log.warning("stopped with %d handlers still running", self._dispatcher.running)
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)

    @property
    def stats(self) -> dict[str, int]:
        """What is going on: counters for people and tests."""
        dispatcher = self._dispatcher
        return {
            "connections": len(self._connections),
            "running": dispatcher.running,
            "queued": len(dispatcher.queue),
            "served": dispatcher.served,
            "failed": dispatcher.failed,
            "refused": dispatcher.refused,
            "cancelled": dispatcher.cancelled,
            "abandoned": len(self._abandoned),
            "tasks": len(self._runner.tasks) if self._loop is not None else 0,
        }

    def _check_owner(self) -> None:
        if self._forks != Forks.count:  # first: in a child no loop seems to run
            raise LocalProtocolError("this server belongs to the parent process")
        if asyncio.get_running_loop() is not self._loop:
            raise LocalProtocolError("this server belongs to another event loop")

    def _close_listeners(self) -> None:
        for listener in self._listeners:
            listener.close()
        self._listeners.clear()
        for path in self._paths:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
        self._paths.clear()

    # Connections

    def _admit(self, protocol: _ServerProtocol) -> tuple[str, str] | None:
        """Take note of a connection; return code and message if it has to go again."""
        self._connections.add(protocol)
        if self._stopping:
            return "unavailable", "the server is shutting down"
        if len(self._connections) > self._max_connections:
            return "resource_exhausted", f"{self._max_connections} connections are the limit here"
        return None

    def _forget(self, protocol: _ServerProtocol) -> None:
        self._connections.discard(protocol)
        if self._stopping and not self._connections:
            assert self._gone is not None
            if not self._gone.done():
                self._gone.set_result(None)

    # Handlers

    def _run(self, call: ServerCall) -> None:
        method = call.target
        if method.is_async:
            self._runner.start(call)
        elif method.is_quick:
            try:
                result = copy_context().run(call.invoke)
            except Exception as error:
                self._ended(call, None, error)
            else:
                self._ended(call, result, None)
        else:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="rpc-handler")
            future = self._pool.submit(copy_context().run, call.invoke)
            call.handler = future
            future.add_done_callback(lambda done: self._thread_ended(call, done))

    def _thread_ended(self, call: ServerCall, future: Future[Any]) -> None:
        assert self._loop is not None
        if future.cancelled():  # it never ran; this is the loop's own thread
            self._ended(call, None, Cancelled("cancelled before it ran"))
            return
        with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
            self._loop.call_soon_threadsafe(self._thread_reported, call, future)

    def _thread_reported(self, call: ServerCall, future: Future[Any]) -> None:
        call.handler = None
        self._abandoned.discard(call)
        error = future.exception()
        self._ended(call, None if error else future.result(), error)

    def _stop_handler(self, call: ServerCall) -> None:
        if call.handler is None:  # it has ended meanwhile
            return
        if call.target.is_async:
            self._runner.cancel(call)
        elif not call.handler.cancel():
            # A thread cannot be stopped; its slot stays taken until it ends.
            self._abandoned.add(call)

    def _ended(self, call: ServerCall, result: Any, error: BaseException | None) -> None:
        dispatcher = self._dispatcher
        if error is None:
            dispatcher.succeed(call, result)
        else:
            if isinstance(error, asyncio.CancelledError):
                error = Cancelled("the handler was cancelled")
            elif dispatcher.is_unexpected(error):
                _log.error("%s failed", call.target.name, exc_info=error)
            dispatcher.fail(call, error)
        call.owner.wrote()
        if dispatcher.queue and not self._resuming:
            # Not here: this may be the last step of a Task, inside of which no other can begin.
            self._resuming = True
            assert self._loop is not None
            self._loop.call_soon(self._resume)

    def _resume(self) -> None:
        for _ in range(_RESUMED_AT_ONCE):
            call = self._dispatcher.next_queued()
            if call is None:
                self._resuming = False
                return
            self._run(call)
        assert self._loop is not None
        self._loop.call_soon(self._resume)
