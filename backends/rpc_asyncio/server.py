"""The asyncio server: listeners, connections, and running each kind of handler."""

import asyncio
import contextlib
import os
import socket
import ssl as ssl_module
from collections.abc import Callable, Iterable
from contextvars import copy_context
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any, Self, Unpack

from rpc_common.server.base import FAREWELL, ServerBase, Settings
from rpc_common.server.handler_pool import HandlerPool
from rpc_common.telemetry.log import get_log
from rpc_common.transport.forks import Owner
from rpc_common.transport.patching import check_patching
from rpc_common.transport.sockets import Listener
from rpc_common.transport.tls import Tls
from rpc_proto import Event, LocalProtocolError, Peer, ResourceExhausted
from rpc_proto.service.context import Job, ambient_call
from rpc_proto.service.methods import Method

from .handlers import HandlerRunner
from .protocol import ConnectionProtocol
from .serving import iterating

if TYPE_CHECKING:
    from rpc_common.discovery.advertising import Advertisement
    from rpc_common.server.programs import Program

__all__ = ["Server"]

_STOPPED = 0  # in place of a signal's number


class _ServerProtocol(ConnectionProtocol):
    __slots__ = ("_peername", "_server", "_sock", "_turns", "opening", "surplus")

    connection: Any  # a port until the peer makes calls

    def __init__(
        self,
        server: "Server",
        loop: asyncio.AbstractEventLoop,
        sock: socket.socket,
        peername: Any,
        tls: Tls | None,
    ) -> None:
        self._turns = server._turns
        super().__init__(loop, tls)
        self._server = server
        self.connection = None  # until there is a transport
        self.opening: asyncio.Task[None] | None = None
        self._sock = sock
        self._peername = peername
        self.surplus = False

    def fileno(self) -> int:
        return self._sock.fileno()

    async def open(self) -> None:
        """Make the transport."""
        try:
            with contextlib.suppress(OSError):
                await self._loop.connect_accepted_socket(lambda: self, self._sock)
        finally:
            self.opening = None  # or task, frame and protocol would keep each other alive
            if self.connection is None:
                self._server.forget(self)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        now = monotonic()
        self.connection = self._server.make_connection(self._peername, None, now)
        self._server.admit(self, now)
        super().connection_made(transport)

    def established(self, tls: Tls) -> None:
        certificate: Any = tls.certificate or None
        self.connection.peer = Peer(self.connection.peer.address, certificate)

    def connection_lost(self, exc: Exception | None) -> None:
        error = self._failure or exc
        if error is not None and self._tls is not None and not self._tls.established:
            self._server.log_tls_failed(self._peername, error)
        try:
            super().connection_lost(exc)
        finally:
            self._server.forget(self)

    def handle_events(self, events: list[Event]) -> None:
        self._server.handle_events(self, events)

    def settle(self, connection: Any) -> None:
        self.connection = connection

    def wake(self) -> None:
        self.look_again()


class _Acceptor:
    """Accepts connections in callbacks of the loop."""

    def __init__(
        self,
        server: "Server",
        listener: Listener,
        loop: asyncio.AbstractEventLoop,
        ssl: ssl_module.SSLContext | None,
    ) -> None:
        self._server = server
        self._listener = listener
        self._loop = loop
        self._ssl = ssl
        self._timer: asyncio.TimerHandle | None = None
        self._watch()

    def fileno(self) -> int:
        return self._listener.fileno()

    def close(self) -> None:
        self._loop.remove_reader(self.fileno())
        if self._timer is not None:
            self._timer.cancel()
        self._listener.close()

    def _watch(self) -> None:
        self._loop.add_reader(self.fileno(), self._accept)

    def _accept(self) -> None:
        pause = self._listener.accept(self._take)
        if pause:
            self._loop.remove_reader(self.fileno())
            self._timer = self._loop.call_later(pause, self._watch)

    def _take(self, bare: Any, peername: Any) -> None:
        if not self._server.has_room():
            bare.close()
            return
        sock = self._listener.python_socket(bare, socket)
        sock.setblocking(False)
        tls = Tls(self._ssl, server_side=True) if self._ssl is not None else None
        protocol = _ServerProtocol(self._server, self._loop, sock, peername, tls)
        self._server.arrive(protocol)
        protocol.opening = self._loop.create_task(protocol.open())


class Server(ServerBase):
    """Serves the methods of objects; `await server.start(address)` opens it.

    `config` has the limits and timeouts of each connection; `token` and `authenticate` override its
    fields. At most `max_concurrency` handlers run at a time, and `max_queued` calls wait for them;
    `max_connections` limits the connections, and `threads` the pool in which `def` handlers run.
    `introspection` enables `rpc.Introspection`, and `health` `rpc.Health`; `debug` sends tracebacks
    to callers. `access_log` logs each finished call; an OpenTelemetry `tracer_provider` gets a span
    for each call that a handler serves. `pages`, a rpc_proto.http.Pages, controls access to the
    built-in pages.
    """

    _cancellation = asyncio.CancelledError
    _log = get_log("rpc_asyncio")

    def __init__(self, *, threads: int = 16, **settings: Unpack[Settings]) -> None:
        super().__init__(threads=threads, **settings)
        self._pool = HandlerPool(threads, self._ended, self._deliver, self._log)
        self._abandoned = self._pool.abandoned
        self._loop: asyncio.AbstractEventLoop | None = None
        self._runner: HandlerRunner  # comes with the loop
        self._gone: asyncio.Future[None] | None = None
        self._resuming = False
        self._owner: Owner

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    # Life

    async def start(
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
        check_patching("rpc_asyncio", threads_only=True)
        where = self._check_listening(address, ssl)
        advertised = self._check_advertised(advertise, where)
        if advertised:
            from .carriers import check_source
            from .pump import Pump

            for advertisement in advertised:
                check_source(advertisement.ssl, advertisement.transport)
        loop = asyncio.get_running_loop()
        if self._loop is None:
            self._loop = loop
            self._runner = HandlerRunner(loop, self._ended, self._end_process)
            self._owner = Owner("server", "event loop", loop)
        self._check_owner()
        first = await self._begin_lifespan()
        try:
            listener = self._open_listener(where, socket)
        except BaseException:
            if first:
                await self._end_lifespan()
            raise
        where = listener.where
        self._listeners.append(_Acceptor(self, listener, loop, ssl))
        self._log_listening(where)
        for advertisement in advertised:
            run = partial(
                Pump,
                handle=self._registrations.take,
                log=self._log,
                ssl=advertisement.ssl,
                transport=advertisement.transport,
            )
            self._registrations.add(advertisement, where, run)
        return str(where)

    async def _deregister(self) -> None:
        """Deregister before anything else ends, so that callers go elsewhere."""
        if self._registrations is not None:
            until = monotonic() + FAREWELL
            for pump in self._registrations.leave():
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(until - monotonic()):
                        await pump.ended.wait()
                await pump.close()

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

    def run_program(self, program: "Program") -> None:
        from rpc_common.server.programs import handlers_restored

        with handlers_restored():
            asyncio.run(self._be_program(program))

    async def _be_program(self, program: "Program") -> None:
        from rpc_common.server.programs import SIGNALS

        loop = asyncio.get_running_loop()
        signals: asyncio.Queue[int | None] = asyncio.Queue()

        def read_stdin() -> None:
            if not os.read(0, 4096):
                loop.remove_reader(0)
                signals.put_nowait(None)

        async def hear_signal() -> None:
            while await signals.get() is None:  # the end of standard input, not a second signal
                pass

        def gone(_: object) -> None:
            signals.put_nowait(_STOPPED)

        # Before the first address is printed, after which a signal may come.
        for number in SIGNALS:
            loop.add_signal_handler(number, signals.put_nowait, number)
        if program.stdin:
            try:
                loop.add_reader(0, read_stdin)
            except OSError:  # a file, or closed
                program.no_stdin()
        for address, ssl in program.listen:
            try:
                program.listening(await self.start(address, ssl=ssl, advertise=program.advertise))
            except (OSError, ValueError) as error:
                await self.stop(grace=0.0)
                program.failed(address, error)
        self._gone = self._gone or loop.create_future()
        self._gone.add_done_callback(gone)
        ending = await signals.get()
        if ending == _STOPPED:  # for example by a handler, which was cancelled while stopping
            await self.stop(grace=0.0)
        else:
            program.stopping(self, ending)
            draining = asyncio.create_task(self.stop(program.grace))
            hurry = asyncio.create_task(hear_signal())
            await asyncio.wait((draining, hurry), return_when=asyncio.FIRST_COMPLETED)
            hurry.cancel()
            if not draining.done():
                await self.stop(grace=0.0)
            await draining
        program.stopped()

    async def stop(self, grace: float = 5.0) -> None:
        """Stop gracefully: accept nothing new, and give running calls `grace` seconds.

        Then their callers get `unavailable`, and the handlers are cancelled. Returns when every
        connection is closed, at most `close_timeout` seconds later.
        """
        self._check_grace(grace)
        if self._loop is None:
            return
        self._check_owner()
        await self._deregister()
        self._begin_stop(grace)
        if self._gone is None:
            self._gone = self._loop.create_future()
        self._close_listeners()
        now = monotonic()
        for protocol in list(self.links):
            if protocol.connection is not None:
                protocol.connection.shutdown(now, grace)
                protocol.react()
                protocol.flush()
            else:
                protocol.opening.cancel()
        if not self.links and not self._gone.done():
            self._gone.set_result(None)
        await asyncio.shield(self._gone)
        self._runner.close()
        if self._runner.tasks:
            # They were cancelled with their calls; one that ignores that is left running.
            await asyncio.wait(self._runner.tasks, timeout=self.config.close_timeout)
        self._log_stopped()
        self._pool.close()
        await self._end_lifespan()

    async def _begin_lifespan(self) -> bool:
        """Enter the lifespan, unless it is entered already; return whether it was."""
        manager = self._make_lifespan("__aenter__")
        if manager is None:
            return False
        try:
            await manager.__aenter__()
            self._living = manager
        finally:
            self._entering = False
        return True

    async def _end_lifespan(self) -> None:
        manager, self._living = self._living, None
        if manager is not None:
            await manager.__aexit__(None, None, None)

    @property
    def stats(self) -> dict[str, int]:
        """Counters, for people and tests."""
        tasks = len(self._runner.tasks) if self._loop is not None else 0
        return {**super().stats, "tasks": tasks}

    def _check_owner(self) -> None:
        if not self._owner.lives_here:  # checked first, since no loop is running in a child process
            self._owner.refuse()
        self._owner.check(asyncio.get_running_loop())

    def _call_at(self, at: float, function: Callable[[], None]) -> Any:
        if self._loop is None:
            return None
        return self._loop.call_later(max(0.0, at - monotonic()), function)

    def _cancel_timer(self, timer: Any) -> None:
        timer.cancel()

    def _end_process(self, error: KeyboardInterrupt | SystemExit) -> None:
        def end() -> None:
            raise error

        # Not here: the answer must be sent first, and other events of the same read handled.
        assert self._loop is not None
        self._loop.call_soon(end)

    # Connections

    def forget(self, protocol: _ServerProtocol) -> None:
        self._drop(protocol)
        if self._stopping and not self.links:
            assert self._gone is not None
            if not self._gone.done():
                self._gone.set_result(None)

    # Handlers

    def _iterating(self, method: Method, in_thread: bool) -> Callable[..., Any]:
        return iterating(method, in_thread, self._beside)

    def _run(self, job: Job) -> None:
        method = job.method
        if method.is_async:
            self._runner.start(job)
        elif method.is_quick:
            self._run_quick(job)
        else:
            try:
                self._pool.run(job)
            except ResourceExhausted as error:
                self._ended(job, None, error)

    async def _beside(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        job = ambient_call.get()
        assert job is not None
        assert self._loop is not None
        loop = self._loop
        done: asyncio.Future[tuple[Any, BaseException | None]] = loop.create_future()

        def settle(result: Any, error: BaseException | None) -> None:
            self._pool.abandoned.discard(job)
            if not done.cancelled():
                done.set_result((result, error))

        def work() -> None:
            result, error = None, None
            try:
                result = context.run(function, *args, **kwargs)
            except BaseException as raised:
                error = raised
            with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
                loop.call_soon_threadsafe(settle, result, error)
            del error  # its traceback holds this frame

        context = copy_context()
        thread = self._pool.submit(job, work)
        try:
            await asyncio.shield(done)
        except asyncio.CancelledError:
            if not thread.cancel():
                self._pool.abandon(job)
                await done
            raise
        result, failure = done.result()
        if failure is None:
            return result
        try:
            raise failure
        finally:
            del failure  # or error, traceback and frame would keep each other alive

    def _deliver(self, job: Job, result: Any, error: BaseException | None) -> None:
        assert self._loop is not None
        with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
            self._loop.call_soon_threadsafe(self._pool.ended, job, result, error)

    def _stop_handler(self, job: Job) -> None:
        if not job.method.is_async:
            self._pool.stop(job)
        elif job.handler is not None:  # else it has ended meanwhile
            self._runner.cancel(job)

    def _resume_soon(self) -> None:
        # Not here: this may be the last step of a Task, in which no other Task can start.
        if not self._resuming:
            self._resuming = True
            assert self._loop is not None
            self._loop.call_soon(self._resume)

    def _resume(self) -> None:
        self._resuming = self._resume_some()
        if self._resuming:
            assert self._loop is not None
            self._loop.call_soon(self._resume)
