"""The blocking server: a thread per connection, and a bounded pool for handlers."""

import socket
import ssl as ssl_module
from collections.abc import Callable
from functools import partial
from threading import Condition, Event, Lock
from time import monotonic, sleep, thread_time
from typing import TYPE_CHECKING, Any, Unpack

from rpc_common.server.base import Settings, SyncServer, peer_address
from rpc_common.server.handler_pool import HandlerPool
from rpc_common.server.streams import iterating
from rpc_common.telemetry.log import get_log
from rpc_common.transport.forks import Owner
from rpc_common.transport.patching import check_patching
from rpc_common.transport.threads import HelperThread, end_at_exit
from rpc_common.transport.tls import Tls
from rpc_common.transport.turns import FIRST_READ, SHORT, next_read
from rpc_proto import (
    Address,
    LocalProtocolError,
    ResourceExhausted,
    State,
    Wish,
)
from rpc_proto.http import Promise, Request, Response
from rpc_proto.http.making import Making
from rpc_proto.service.context import Job
from rpc_proto.service.methods import Method

from .channel import EARLY, Channel
from .keeper import Appointment, Keeper
from .runtime import BLOCKING
from .streams import ThreadStream

if TYPE_CHECKING:
    from rpc_common.server.programs import Program

__all__ = ["Server"]

# The keeper does not wait longer for a busy connection, and retries soon.
_PATIENCE = 0.005

# How long the process waits for the keeper at exit, in seconds.
_PATIENCE_AT_EXIT = 0.5


# After a read that took long, in seconds: a thread that does not sleep would keep the interpreter's
# lock for a switch interval (5 ms), and a call of another connection needs that lock several times.
_INTERMISSION = 50e-6

_READ = Wish.READ  # an attribute of an enum takes longer to look up than a name

# How long a stopping server waits for handlers whose callers have their answers, in seconds.
_LAST_WORDS = 0.2

# Items of a stream that follow each other within so many seconds are sent together: when there are
# so many bytes of them, or soon. A system call for each would take longer than all the rest.
_LULL = 0.0002
_BATCH = 8 * 1024
_SOON = 0.001

# Reads of at least so many bytes are timed, which takes a system call.
_LONG_READ = 1024


class _Link:
    """A connection and the thread that reads for it."""

    def __init__(self, server: "Server", channel: Channel, peername: Any) -> None:
        self.lock = Lock()  # of the connection, of the channel's writes, and of what is below
        self.channel = channel
        self.connection: Any = None  # until TLS is done; a port until the peer makes calls
        self.surplus = False  # the limit of connections was reached when it was accepted
        self.busy = False  # the reader will also write, once it has handled what it read
        self.timer_at: float | None = None  # when the keeper visits this connection
        self.timer: Appointment | None = None
        self._seen = -1  # the version of the connection that `flush` has looked at
        self._watched = False
        self._read_size = FIRST_READ
        channel.pace(FIRST_READ)
        self._waits = False  # for its turn, because its reads take long
        self._server = server
        self._peername = peername
        self._may_read = Condition(self.lock)
        self._item_at = 0.0  # when the last item of a stream was sent
        self._late = False  # items wait for the keeper to send them

    def fileno(self) -> int:
        return self.channel.sock.fileno()

    def settle(self, connection: Any) -> None:
        self.connection = self.channel.connection = connection

    # The thread

    def serve(self) -> None:
        server = self._server
        try:
            if self._shake_hands():
                while self._read():
                    pass
        except BaseException:
            server._log.exception("%s: the connection failed", peer_address(self._peername))
        finally:
            try:
                with self.lock:  # a handler that ends now must not write to a closing socket
                    try:
                        if self.connection is not None:
                            self.channel.lose(None)
                            self.react()
                    finally:
                        self._close()
            finally:
                server.forget(self)

    def _close(self) -> None:
        keeper = self._server._keeper
        if self.timer is not None:
            keeper.cancel(self.timer)
        if self._watched:
            keeper.forget(self.channel.sock.fileno())
        self.channel.close()

    def _shake_hands(self) -> bool:
        """Do the TLS handshake, if any, and start the connection; return whether that worked."""
        channel = self.channel
        sock, tls = channel.sock, channel.tls
        early = b""
        if tls is not None:
            deadline = monotonic() + self._server.config.handshake_timeout
            try:
                while not tls.established:
                    left = deadline - monotonic()
                    if left <= 0:
                        raise TimeoutError("it took too long")
                    sock.settimeout(left)
                    data = sock.recv(16 * 1024)
                    if not data:
                        raise ConnectionResetError("the peer closed the connection")
                    try:
                        early = tls.decrypt(data)
                    finally:  # the peer gets the alert, too
                        sock.sendall(tls.pending())
            except OSError as error:
                self._server.log_tls_failed(self._peername, error)
                return False
            sock.settimeout(None)
        now = monotonic()
        certificate = tls.certificate if tls is not None else None
        with self.lock:
            self.connection = self._server.make_connection(self._peername, certificate, now)
            channel.connection = self.connection
            self._server.admit(self, now)
            self.connection.receive_data(now, early)
            self.react()
            self.flush()
        return True

    def _read(self) -> bool:
        """Wait for bytes and handle them; False at the end."""
        channel = self.channel
        failure = None
        data: memoryview | bytes | None = None
        try:
            data = channel.receive()
        except OSError as error:
            failure = error
        with self.lock:
            ended = data is None or not len(data)
            if not ended:
                self._hold_back(ended)  # answers may have filled the buffers since the read started
            if not self._waits:
                self._take(data, failure)
                return not self._hold_back(ended)
        with self._server._turn:
            with self.lock:
                self._take(data, failure)
            if len(self._server.links) > 1:
                sleep(_INTERMISSION)
        with self.lock:
            return not self._hold_back(ended)

    def _take(self, data: memoryview | bytes | None, failure: OSError | None) -> None:
        """Handle the bytes that were read; the lock is held."""
        channel = self.channel
        count = len(data or b"")
        paced = count >= _LONG_READ or self._waits
        # Waiting for the interpreter's lock does not count.
        began = thread_time() if paced else 0.0
        if failure is not None or (not count and channel.failure is not None):
            channel.lose(channel.failure or failure)
        else:
            channel.take(data or b"")
        self.busy = True
        self.react()
        self.busy = False
        self.flush()
        if paced:
            seconds = thread_time() - began
            self._waits = seconds > SHORT
            self._read_size = next_read(self._read_size, count, seconds)
            channel.pace(self._read_size)

    def _hold_back(self, ended: bool) -> bool:
        """Wait while the peer must be slowed down, or, after its EOF, until this end is done.

        Returns whether only the socket is left to close.
        """
        while True:
            wish = self.connection.wish
            if wish is _READ and not ended:
                return False
            if wish is Wish.ABORT or (wish is Wish.CLOSE and not self.channel.unsent):
                return True
            if not (ended or wish is Wish.PAUSE) or self.channel.failure is not None:
                return False
            self._may_read.wait()

    # For everybody who holds the lock

    def react(self) -> bool:
        """Handle the events so far; return whether there were any."""
        events = self.connection.events()
        if events:
            self._server.handle_events(self, events)
            return True
        return False

    def wrote(self) -> None:
        """Make sure that what a command wrote is sent."""
        if not self.busy or self.connection.outbound >= EARLY:
            self.flush()

    def wrote_item(self, now: float) -> None:
        """Send an item of a stream: at once, or soon if others follow it closely."""
        lull = now - self._item_at
        self._item_at = now
        if lull > _LULL or self.connection.outbound >= _BATCH:
            self.flush()
        elif not self._late:
            self._late = True
            self._server._keeper.call_at(now + _SOON, lambda: self._visit(self._flush_late))

    def _flush_late(self) -> None:
        self._late = False
        self.flush()

    def flush(self) -> None:
        """Write what the kernel takes, and update the timer and back-pressure."""
        channel = self.channel
        channel.send()
        connection = self.connection
        keeper = self._server._keeper
        if channel.unsent:
            self._watched = True
            keeper.watch(channel.sock.fileno(), lambda: self._visit(self.flush))
        elif channel.failure is not None:
            self._may_read.notify()  # so that it notices
        if connection.version != self._seen or connection.state is State.CLOSING:
            self._seen = connection.version
            if self.react():  # to what a command caused
                self._seen = -1
                self.flush()
                return
            if connection.state is not State.OPEN:
                channel.follow(connection.wish)
            self._may_read.notify()
            at = connection.next_timeout()
            if at is not None and (self.timer_at is None or at < self.timer_at):
                if self.timer is not None:
                    keeper.cancel(self.timer)
                self.timer_at = at
                self.timer = keeper.call_at(at, lambda: self._visit(lambda: self._due(at)))

    # For the keeper, which has other connections to look after, too

    def _visit(self, act: Callable[[], None]) -> None:
        """Act with the lock held, now or soon."""
        if self.lock.acquire(timeout=_PATIENCE):
            try:
                act()
            finally:
                self.lock.release()
        else:
            self._server._keeper.call_at(monotonic() + _PATIENCE, lambda: self._visit(act))

    def _due(self, at: float) -> None:
        if at == self.timer_at:  # otherwise an earlier one has taken its place
            self.timer_at = self.timer = None
            self.connection.handle_timeout(max(at, monotonic()))
            self.react()
            self.flush()

    def wake(self) -> None:
        """Check soon, not here: the thread that settles a promise may hold another link's lock."""
        self._server._keeper.call_at(monotonic(), lambda: self._visit(self._woken))

    def _woken(self) -> None:
        self._seen = -1
        self.flush()

    def shut_down(self, grace: float) -> None:
        """Start to close the connection."""
        with self.lock:
            if self.connection is not None:
                self.connection.shutdown(monotonic(), grace)
                self.react()
                self.flush()
            else:
                self.channel.shut(socket.SHUT_RDWR)


class Server(SyncServer):
    """Serves the methods of objects; `server.start(address)` opens it.

    `config` has the limits and timeouts of each connection; `token` and `authenticate` override its
    fields. At most `max_concurrency` handlers run at a time, and `max_queued` calls wait for them;
    `max_connections` limits the connections, each of which has a thread; `threads` limits the pool
    in which handlers run, except those marked as quick. `introspection` enables
    `rpc.Introspection`, and `health` `rpc.Health`; `debug` sends tracebacks to callers.
    `access_log` logs each finished call; an OpenTelemetry `tracer_provider` gets a span for each
    call that a handler serves. `pages`, a rpc_proto.http.Pages, controls access to the built-in
    pages.

    A thread cannot be stopped: when a call is cancelled, its caller gets the answer,
    `current_call().cancelled` becomes True, and the handler keeps its thread until it returns.
    """

    _log = get_log("rpc_blocking")
    _serves_coroutines = False
    _runtime = BLOCKING
    _most_connections = 3000  # each has a thread

    def __init__(self, *, threads: int = 16, **settings: Unpack[Settings]) -> None:
        super().__init__(threads=threads, **settings)
        self._pool = HandlerPool(threads, self._ended, self._deliver, self._log)
        self._abandoned = self._pool.abandoned
        self._keeper = Keeper(self._log)
        self._closing = Lock()  # of the listeners, when several threads stop the server
        self._lock = Lock()  # of the set of links, and between start and stop
        self._applications = Lock()
        self._turn = Lock()  # for connections whose reads take long
        self._gone = Condition(self._lock)
        self._stopped = Event()
        self._tell_stopped: Callable[[], None] | None = None
        self._exiting = False
        self._owner: Owner | None = None  # the process that uses it, once one does

    def _make_lock(self) -> Any:
        return Lock()

    # Life

    def _listen(self, where: Address, ssl: ssl_module.SSLContext | None) -> Address:
        self._check_owner()
        take = partial(self._take, ssl)
        with self._lock:
            listener = self._open_listener(where, socket)
            try:
                self._keeper.accept(listener.fileno(), lambda: listener.accept(take))
            except BaseException:
                listener.close()
                raise
            self._listeners.append(listener)
        return listener.where

    def serve_forever(self) -> None:
        """Wait until `stop` is called; when interrupted, stop at once."""
        if not self._listeners and not self._stopping:
            raise LocalProtocolError("start the server first")
        self._check_owner()
        try:
            while not self._stopped.wait(1.0):  # or a signal might be handled late
                pass
        finally:
            self.stop(grace=0.0)

    def run_program(self, program: "Program") -> None:
        from .signals import Signals

        with Signals(program.stdin) as signals:  # before the first address is printed
            self._start_program(program)
            self._tell_stopped = signals.ring
            number = signals.wait()
            if not self._stopped.is_set():
                program.stopping(self, number)

                def drain() -> None:
                    try:
                        self.stop(program.grace)
                    finally:
                        signals.ring()

                draining = HelperThread(drain, "rpc-drain")
                try:
                    draining.start()
                except RuntimeError:  # no more threads can be started
                    drain()
                signals.wait()
                self.stop(grace=0.0)
                if draining.ident is not None:
                    draining.join()
            program.stopped()

    def stop(self, grace: float = 5.0) -> None:
        self._check_grace(grace)
        self._check_owner()
        if self._exiting:  # and its threads have ended
            return
        self._deregister()
        with self._closing:
            with self._lock:
                self._begin_stop(grace)
            for listener in self._listeners:
                self._keeper.refuse(listener.fileno())
                listener.close()
            self._listeners.clear()
        with self._lock:
            links = list(self.links)
        for link in links:
            link.shut_down(grace)
        # The connections enforce their own time limits; only a quick handler can exceed them.
        patience = grace + self.config.handshake_timeout + self.config.close_timeout
        with self._lock:
            self._gone.wait_for(lambda: not self.links, patience)
            # Handlers that check for cancellation end about now.
            self._gone.wait_for(lambda: not self._dispatcher.running, _LAST_WORDS)
        self._log_stopped()
        self._keeper.close()
        self._pool.close()
        try:
            self._end_lifespan()
        finally:
            self._stopped.set()
            if self._tell_stopped is not None:
                self._tell_stopped()

    def end_threads(self) -> None:
        self._exiting = True
        self._keeper.close(_PATIENCE_AT_EXIT)  # first, or it would accept another connection
        with self._lock:
            links = list(self.links)
        for link in links:
            link.channel.shut(socket.SHUT_RDWR)
        for listener in self._listeners:
            listener.close()

    def _check_owner(self) -> None:
        if self._owner is None:
            check_patching("rpc_blocking")
            self._owner = Owner("server")
            end_at_exit(self)
        self._owner.check()

    def snapshot(self) -> dict[str, Any]:
        with self._lock:
            return super().snapshot()

    def _call_at(self, at: float, function: Callable[[], None]) -> Any:
        def call() -> None:
            with self._applications:
                function()

        return self._keeper.call_at(at, call)

    def _cancel_timer(self, timer: Any) -> None:
        self._keeper.cancel(timer)

    # Connections

    def _take(self, ssl: ssl_module.SSLContext | None, bare: Any, peername: Any) -> None:
        """Serve an accepted connection; OSError if this process cannot."""
        if not self.has_room():
            bare.close()
            return
        tls = Tls(ssl, server_side=True) if ssl is not None else None
        channel = Channel(socket.socket(fileno=bare.detach()), tls)
        link = _Link(self, channel, peername)
        with self._lock:
            self.arrive(link)
        try:
            HelperThread(link.serve, "rpc-connection").start()
        except RuntimeError as error:
            channel.close()
            self.forget(link)
            raise OSError(f"no thread for the connection: {error}") from error

    def _answer_http(self, request: Request, now: float) -> Response | Promise | Making:
        with self._applications:  # need not know of threads
            return super()._answer_http(request, now)

    def forget(self, link: _Link) -> None:
        with self._lock:
            self._drop(link)
            self._gone.notify_all()

    # Handlers

    def _iterating(self, method: Method, in_thread: bool) -> Callable[..., Any]:
        return iterating(method, ThreadStream)

    def _run(self, job: Job) -> None:
        if job.method.is_quick:
            self._run_quick(job)
        else:
            self._run_in_pool(job)

    def _run_in_pool(self, job: Job) -> None:
        try:
            self._pool.run(job)
        except ResourceExhausted as error:
            # Not here: the lock that is held may be that of another connection.
            answer = error
            end = lambda: self._ended(job, None, answer)  # noqa: E731
            self._keeper.call_at(monotonic(), lambda: job.owner._visit(end))

    def _deliver(self, job: Job, result: Any, error: BaseException | None) -> None:
        with job.owner.lock:
            self._pool.ended(job, result, error)
        if self._stopping:
            with self._lock:
                self._gone.notify_all()

    def _stop_handler(self, job: Job) -> None:
        self._pool.stop(job)

    def _resume_soon(self) -> None:
        # Always in the pool: this thread may belong to another connection.
        while (job := self._dispatcher.next_queued()) is not None:
            self._run_in_pool(job)
