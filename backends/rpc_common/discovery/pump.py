"""Runs a machine of rpc_discovery: carries its requests, and tells it of answers and time."""

import ssl as ssl_module
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from socket import SHUT_RDWR
from threading import Lock
from time import monotonic
from typing import Any

from rpc_common.telemetry.log import Log
from rpc_common.transport.fetch import Idle, fetch
from rpc_common.transport.runtime import Runtime
from rpc_discovery import PemFiles
from rpc_proto.http.client import Fetch

from .files import check_regular

__all__ = ["Pump", "carrier_of", "check_source", "context_of", "describe", "fetch_of"]

_GIVEN_UP = object()
_LONGEST = 3600.0  # seconds; not every runtime waits longer at a time
_PAUSE = 1.0  # seconds after something failed that should not

Input = Callable[[float], list[Any]]  # what is told the machine, given the time


class Pump:
    """One thread or greenlet for a machine, and one for each request that is on its way.

    `handle` gets the events. `tell` gives the machine a command, from any thread. It ends when the
    machine is `done`, or by `stop`. RuntimeError when there is no thread to begin with; later, a
    request without a thread is one that failed.
    """

    def __init__(
        self,
        machine: Any,
        handle: Callable[[list[Any]], None],
        runtime: Runtime,
        log: Log,
        ssl: ssl_module.SSLContext | PemFiles | None = None,
    ) -> None:
        self.machine = machine
        self.ended = runtime.make_event()
        self._handle = handle
        self._runtime = runtime
        self._log = log
        self._ssl = context_of(ssl)
        self._carrier = carrier_of(machine)
        self._inbox = runtime.make_queue()
        # Of the requests that are on their way: None before there is one, _GIVEN_UP if it is
        # wanted no more.
        self._sockets: dict[int, Any] = {}
        self._idle: Idle = {}
        self._lock = Lock()  # of the sockets
        self._stopped = False
        # When it ended unasked: from then on nothing that the machine knows is up to date.
        self.died_at: float | None = None
        runtime.end_at_exit(self)
        runtime.spawn(self._run)

    def tell(self, command: Input) -> None:
        """Give the machine a command: a function of the time that returns its events."""
        self._inbox.put(command)

    def stop(self) -> None:
        """End at once; what is on its way is given up."""
        self._stopped = True
        self._inbox.put(self.machine.handle_timeout)
        with self._lock:
            for request_id in self._sockets:
                self._give_up(request_id)

    def end_threads(self) -> None:
        self.stop()

    def _run(self) -> None:
        try:
            while not self._stopped and not getattr(self._carrier, "done", False):
                try:
                    self._turn()
                except Exception:  # of one input; the next one may do
                    self._log.exception("discovery failed")
                    self._runtime.sleep(_PAUSE)
        except BaseException:
            if not self._stopped:
                self.died_at = monotonic()
            raise
        finally:
            self.ended.set()
            with self._lock:
                for request_id in self._sockets:
                    self._give_up(request_id)
                self._hang_up()

    def _turn(self) -> None:
        carrier = self._carrier
        for request in carrier.requests_to_send():
            self._send(request)
        with self._lock:
            for request_id in carrier.requests_to_cancel():
                self._give_up(request_id)
        now = monotonic()
        at = carrier.next_timeout()
        seconds = _LONGEST if at is None else max(0.0, min(at - now, _LONGEST))
        told = self._runtime.get(self._inbox, seconds)
        now = monotonic()
        self._handle(carrier.handle_timeout(now) if told is None else told(now))

    def _send(self, request: Any) -> None:
        with self._lock:
            self._sockets[request.id] = None
        try:
            self._runtime.spawn(partial(self._carry, request))
        except RuntimeError as error:  # no more threads can be had
            with self._lock:
                del self._sockets[request.id]
            reason = str(error)
            self.tell(lambda now: self._carrier.failed(request.id, reason, now))

    def _carry(self, request: Any) -> None:
        carrier = self._carrier
        try:
            what = fetch_of(request)
            opened = partial(self._opened, request.id)
            part = partial(self._part, request.id) if request.stream else None
            fetch(what, request.timeout, self._runtime, self._ssl, opened, self._idle, part)
            status, body = what.status, what.body
        except Exception as error:  # whatever it is, the machine has to know
            reason = describe(error, request.timeout)
            self.tell(lambda now: carrier.failed(request.id, reason, now))
        else:
            self.tell(lambda now: carrier.response(request.id, status, body, now))
        finally:
            with self._lock:
                del self._sockets[request.id]
                if self.ended.is_set():
                    self._hang_up()

    def _hang_up(self) -> None:
        """Close the connections that nobody uses; the lock is held."""
        while self._idle:
            self._idle.popitem()[1].sock.close()

    def _part(self, request_id: int, data: bytes) -> None:
        """Hand on a piece of a stream, and read on when it is understood."""
        taken = self._runtime.make_event()

        def take(now: float) -> list[Any]:
            taken.set()
            events: list[Any] = self._carrier.part(request_id, data, now)
            return events

        self.tell(take)
        while not taken.wait(1.0) and not self.ended.is_set():
            pass

    def _opened(self, request_id: int, sock: Any) -> None:
        with self._lock:
            given_up = self._stopped or self._sockets[request_id] is _GIVEN_UP
            self._sockets[request_id] = sock
            if given_up:
                self._give_up(request_id)

    def _give_up(self, request_id: int) -> None:
        """Let a request fail that may be on its way; the lock is held."""
        sock = self._sockets.get(request_id, _GIVEN_UP)
        if sock is None:
            self._sockets[request_id] = _GIVEN_UP
        elif sock is not _GIVEN_UP:
            with suppress(OSError):
                sock.shutdown(SHUT_RDWR)


def check_source(source: Any) -> None:
    """Check the TLS files and the transport that users gave: OSError or ValueError."""
    if getattr(source, "transport", None) == "grpc":
        raise ValueError("transport 'grpc' is for asyncio only; here it must be 'gateway' or None")
    context_of(getattr(source, "ssl", None))


def context_of(ssl: ssl_module.SSLContext | PemFiles | None) -> ssl_module.SSLContext | None:
    """Return the context to use; OSError for files that are not good, ValueError for the rest."""
    if not isinstance(ssl, PemFiles):
        if not (ssl is None or hasattr(ssl, "wrap_bio")):
            raise ValueError(f"ssl must be an SSLContext, PemFiles or None, not {ssl!r:.80}")
        return ssl
    for path in ssl:
        if path is not None:
            check_regular(path)
    context = ssl_module.create_default_context(cafile=ssl.authority)
    if ssl.certificate is not None:
        context.load_cert_chain(ssl.certificate, ssl.key)
    return context


def carrier_of(machine: Any) -> Any:
    """Return what makes HTTP requests of what a machine wants, or the machine if it does."""
    if not hasattr(machine, "operations_to_send"):
        return machine
    from rpc_discovery.etcd.gateway import Gateway

    return Gateway(machine)


def fetch_of(request: Any) -> Fetch:
    """Return what carries a request of a machine; ValueError if it cannot be sent."""
    return Fetch(
        request.method,
        request.url,
        request.headers,
        request.body,
        max_answer=request.max_answer,
        keep=request.keep,
    )


def describe(error: Exception, timeout: float) -> str:
    """Return why a request failed."""
    if isinstance(error, TimeoutError):
        return f"no answer within {timeout:g} s"
    return str(error) or type(error).__name__
