"""The gevent server: listeners, connections, and the greenlets in which handlers run."""

import os
import ssl as ssl_module
from _socket import socket as Socket  # noqa: N812 - what monkey-patching leaves alone
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from contextvars import Context, copy_context
from time import monotonic
from typing import TYPE_CHECKING, Any, Unpack

import gevent
from gevent import GreenletExit, get_hub, getcurrent, socket
from gevent.event import Event
from gevent.queue import SimpleQueue as Queue
from greenlet import greenlet

from rpc_common.server.base import Settings, SyncServer
from rpc_common.server.streams import iterating
from rpc_common.telemetry.log import get_log
from rpc_common.transport.forks import Forks, Owner
from rpc_common.transport.sockets import Listener
from rpc_common.transport.tls import Tls
from rpc_proto import Address, LocalProtocolError, Peer
from rpc_proto import Event as CoreEvent
from rpc_proto.service.context import Job
from rpc_proto.service.methods import Method

from .link import Link
from .runtime import GEVENT, check_greenlet, get_ident
from .streams import GreenletStream

if TYPE_CHECKING:
    from rpc_common.server.programs import Program

__all__ = ["Server"]

_SPARE_WORKERS = 100
_STOPPED = 0  # in place of a signal's number
_GO = object()  # wakes a parked worker


class _ServerLink(Link):
    __slots__ = ("_peername", "_server", "_turns", "surplus")

    connection: Any  # a port until the peer makes calls

    def __init__(
        self, server: "Server", hub: Any, sock: Socket, peername: Any, tls: Tls | None
    ) -> None:
        self._turns = server._turns
        super().__init__(hub, sock, tls)
        self._server = server
        self._peername = peername
        self.surplus = False
        self.connection = server.make_connection(peername, None, monotonic())

    def handle_events(self, events: list[CoreEvent]) -> None:
        server = self._server
        server.handle_events(self, events)
        if server._ready and getcurrent() is self._hub:
            server._run_ready()

    def settle(self, connection: Any) -> None:
        self.connection = connection

    def wake(self) -> None:
        self.look_again()

    def established(self, tls: Tls) -> None:
        certificate: Any = tls.certificate or None
        self.connection.peer = Peer(self.connection.peer.address, certificate)

    def lose(self, error: Exception | None = None) -> None:
        if error is not None and self._tls is not None and not self._tls.established:
            self._server.log_tls_failed(self._peername, error)
        super().lose(error)
        self._server.forget(self)


class _Acceptor:
    """Accepts connections in callbacks of the hub."""

    def __init__(
        self, server: "Server", listener: Listener, ssl: ssl_module.SSLContext | None
    ) -> None:
        self._server = server
        self._hub = server._hub
        self._listener = listener
        self._ssl = ssl
        self._timer: Any = None
        self._forks = Forks.count
        self._watcher = self._hub.loop.io(listener.fileno(), 1)
        self._watcher.start(self._accept)

    def fileno(self) -> int:
        return self._listener.fileno()

    def close(self) -> None:
        self._watcher.stop()
        self._watcher.close()
        if self._timer is not None:
            self._timer.stop()
            self._timer.close()
        self._listener.close()

    def _accept(self) -> None:
        if self._forks != Forks.count:
            self._watcher.stop()  # the parent accepts
            return
        pause = self._listener.accept(self._take)
        if pause:
            self._watcher.stop()
            self._timer = self._hub.loop.timer(pause)
            self._timer.start(self._resume)

    def _take(self, sock: Socket, peername: Any) -> None:
        server = self._server
        if not server.has_room():
            sock.close()
            return
        sock.setblocking(False)
        tls = Tls(self._ssl, server_side=True) if self._ssl is not None else None
        link = _ServerLink(server, self._hub, sock, peername, tls)
        server.arrive(link)
        server.admit(link, monotonic())
        link.open()

    def _resume(self) -> None:
        self._timer.close()
        self._timer = None
        self._watcher.start(self._accept)


class Server(SyncServer):
    """Serves the methods of objects; `server.start(address)` opens it.

    It belongs to the hub (the thread) that starts it. Each handler runs in a greenlet, which is
    killed when its call is cancelled. `config` has the limits and timeouts of each connection;
    `token` and `authenticate` override its fields. At most `max_concurrency` handlers run at a
    time, and `max_queued` calls wait for them; `max_connections` limits the connections.
    `introspection` enables `rpc.Introspection`, and `health` `rpc.Health`; `debug` sends tracebacks
    to callers. `access_log` logs each finished call; an OpenTelemetry `tracer_provider` gets a span
    for each call that a handler serves. `pages`, a rpc_proto.http.Pages, controls access to the
    built-in pages.
    """

    _cancellation = GreenletExit
    _log = get_log("rpc_gevent")
    _serves_coroutines = False
    _runtime = GEVENT

    def __init__(self, **settings: Unpack[Settings]) -> None:
        super().__init__(**settings)
        self._hub: Any = None
        self._context: Context
        self._owner: Owner
        self._gone: Event
        self._quiet: Event
        self._workers: list[greenlet] = []  # the spare ones
        self._alive = 0  # workers, including the spare ones
        self._ready: deque[Job] = deque()
        self._resuming = False

    # Life

    def _listen(self, where: Address, ssl: ssl_module.SSLContext | None) -> Address:
        if self._hub is None:
            self._hub = get_hub()
            self._owner = Owner("server", "hub", get_ident())
            self._context = copy_context()
            self._gone = Event()
            self._quiet = Event()
        self._check_owner()
        listener = self._open_listener(where, socket)
        self._listeners.append(_Acceptor(self, listener, ssl))
        return listener.where

    def serve_forever(self) -> None:
        """Wait until `stop` is called; when killed, stop at once."""
        if self._hub is None:
            raise LocalProtocolError("start the server first")
        self._check_owner()
        try:
            self._gone.wait()
        finally:
            self.stop(grace=0.0)

    def run_program(self, program: "Program") -> None:
        from rpc_common.server.programs import handlers_restored

        with handlers_restored():
            self._be_program(program)

    def _be_program(self, program: "Program") -> None:
        from rpc_common.server.programs import SIGNALS

        hub = get_hub()
        signals: Any = Queue()

        def read_stdin() -> None:
            while hub.threadpool.apply(os.read, (0, 4096)):
                pass
            signals.put(None)

        # Before the first address is printed, after which a signal may come.
        handlers = [gevent.signal_handler(number, signals.put, number) for number in SIGNALS]
        try:
            if program.stdin:
                gevent.spawn(read_stdin)
            self._start_program(program)
            self._gone.rawlink(lambda _: signals.put(_STOPPED))
            number = signals.get()
            if number == _STOPPED:  # for example by a handler, which was killed while stopping
                self.stop(grace=0.0)
            else:
                program.stopping(self, number)
                draining = gevent.spawn(self.stop, program.grace)
                while signals.get() is None:  # the end of standard input is no second signal
                    pass
                self.stop(grace=0.0)
                draining.get()
            program.stopped()
        finally:
            for handler in handlers:
                handler.cancel()

    def stop(self, grace: float = 5.0) -> None:
        self._check_grace(grace)
        if self._hub is None:
            return
        self._check_owner()
        self._deregister()
        self._begin_stop(grace)
        self._close_listeners()
        now = monotonic()
        for link in list(self.links):
            link.connection.shutdown(now, grace)
            link.react()
            link.flush()
        if not self.links:
            self._gone.set()
        self._gone.wait()
        if self._dispatcher.running:
            self._quiet.clear()
            # They were killed with their calls; one that ignores that is left running.
            self._quiet.wait(self.config.close_timeout)
        self._workers.clear()
        self._log_stopped()
        self._end_lifespan()

    @property
    def stats(self) -> dict[str, int]:
        """Counters, for people and tests."""
        return {**super().stats, "greenlets": self._alive - len(self._workers)}

    def _check_owner(self) -> None:
        self._owner.check(get_ident())
        check_greenlet(self._hub)

    def _call_at(self, at: float, function: Callable[[], None]) -> Any:
        if self._hub is None:
            return None
        timer = self._hub.loop.timer(max(0.001, at - monotonic()))
        timer.start(function)
        return timer

    def _cancel_timer(self, timer: Any) -> None:
        timer.stop()
        timer.close()

    def _end_process(self, error: KeyboardInterrupt | SystemExit) -> None:
        self._hub.loop.run_callback(self._hub.handle_system_error, type(error), error)

    # Connections

    def forget(self, link: _ServerLink) -> None:
        self._drop(link)
        if self._stopping and not self.links:
            self._gone.set()

    # Handlers

    def _iterating(self, method: Method, in_thread: bool) -> Callable[..., Any]:
        return iterating(method, GreenletStream)

    def _run(self, job: Job) -> None:
        self._ready.append(job)

    def _run_ready(self) -> None:
        """Run the calls that are ready, each up to its end or its first wait; only for the hub.

        A worker runs call after call until a handler waits. Then gevent switches to the hub, which
        is here, and the next worker runs the rest.
        """
        workers = self._workers
        while self._ready:
            if workers:
                worker = workers.pop()
            else:
                worker = greenlet(self._work, self._hub)
                self._alive += 1
            worker.switch(_GO)

    def _work(self, _: Any) -> None:
        worker = getcurrent()
        while True:
            while self._ready:
                job = self._ready.popleft()
                if self._must_wait(job):
                    self._dispatcher.postpone(job)
                    self._resume_soon()
                else:
                    self._work_on(job, worker)
                del job
            if self._stopping and not self._dispatcher.running:
                self._quiet.set()
            if self._stopping or len(self._workers) >= _SPARE_WORKERS:
                break
            self._workers.append(worker)
            if not self._park(worker):
                break
        self._alive -= 1

    def _must_wait(self, job: Job) -> bool:
        """Whether answers have filled the send buffer since this call became ready."""
        connection = job.call.connection
        return (
            connection.outbound >= connection.high_water
            and job.lane is not None
            and job.error is None
        )

    def _work_on(self, job: Job, worker: greenlet) -> None:
        result: Any = None
        error: BaseException | None = job.error  # it may have been cancelled before its turn
        if error is None:
            job.handler = worker
            try:
                result = self._context.copy().run(job.run)
            except BaseException as raised:
                error = raised
            job.handler = None
        self._ended(job, result, error)
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            self._end_process(error)
        del error  # its traceback holds this frame

    def _park(self, worker: greenlet) -> bool:
        """Wait for work; False if there will be none."""
        while True:
            try:
                if self._hub.switch() is _GO:
                    return True
            except GreenletExit:
                with suppress(ValueError):
                    self._workers.remove(worker)
                return False
            except BaseException:
                pass

    def _stop_handler(self, job: Job) -> None:
        if job.handler is not None:
            self._hub.loop.run_callback(self._kill, job, job.handler)

    def _kill(self, job: Job, worker: greenlet) -> None:
        if job.handler is worker:  # it has not ended meanwhile
            worker.throw(GreenletExit)

    def _resume_soon(self) -> None:
        if not self._resuming:
            self._resuming = True
            self._hub.loop.run_callback(self._resume)

    def _resume(self) -> None:
        self._resuming = self._resume_some()
        self._run_ready()
        if self._resuming:
            self._hub.loop.run_callback(self._resume)
