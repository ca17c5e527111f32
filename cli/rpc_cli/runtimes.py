"""What `rpc-proto serve` and `registry` do in each runtime: start, wait for a signal, drain."""

import asyncio
import os
import signal
import ssl
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

from rpc_proto.http import Pages

from .errors import CommandError, UsageError
from .pages import debug_page

if TYPE_CHECKING:
    from rpc_common.registering import Registering

__all__ = ["BACKENDS", "Settings"]

# How long threads may go on after the server has stopped, in seconds.
_LEFTOVERS = 1.0


@dataclass(frozen=True)
class Settings:
    """What a backend is told: (object, name or None), (address, TLS context or None), and so on."""

    services: list[tuple[Any, str | None]]
    listen: list[tuple[str, ssl.SSLContext | None]]
    token: str | None
    introspection: bool
    debug: bool
    access_log: bool
    pages: Pages
    grace: float
    stop_with_stdin: bool
    register: "list[Registering] | None" = None
    applications: list[Any] = field(default_factory=list)

    def make(self, kind: type) -> Any:
        """Return a server of that class with the services registered."""
        server = kind(
            token=self.token,
            introspection=self.introspection,
            debug=self.debug,
            access_log=self.access_log,
            pages=self.pages,
        )
        for service, name in self.services:
            try:
                server.register(service, name)
            except (TypeError, ValueError) as error:
                raise UsageError(f"{type(service).__name__} cannot be served: {error}") from None
        for application in self.applications:
            server.mount(application)
        return server


class _Signals:
    """What to do on a signal: drain, and on the second one end at once."""

    def __init__(self, settings: Settings, server: Any, stopping: Any, at_once: Any) -> None:
        self._grace = settings.grace
        self._server = server
        self._stopping = stopping
        self._at_once = at_once

    def stop(self, *, tell: bool) -> None:
        """Begin to stop; `tell` somebody at the terminal what is waited for."""
        if self._stopping.is_set():
            self._at_once.set()
        elif tell and self._server.stats["running"]:
            print(
                f"rpc-proto: stopping; running calls have up to {self._grace:g} s "
                "(Ctrl-C again ends them)",
                file=sys.stderr,
                flush=True,
            )
        self._stopping.set()


def _start(server: Any, settings: Settings) -> None:
    for address, tls in settings.listen:
        try:
            _announce(server.start(address, ssl=tls, register=settings.register), settings)
        except (OSError, ValueError) as error:
            server.stop(grace=0.0)
            _cannot_listen(address, error)


def _announce(address: str, settings: Settings) -> None:
    print(f"listening on {address}", flush=True)
    hint = debug_page(address, settings.pages)
    if hint is not None and sys.stderr.isatty():  # for people; programs know
        print(hint, file=sys.stderr, flush=True)


def _cannot_listen(address: str, error: OSError | ValueError) -> NoReturn:
    if isinstance(error, BrokenPipeError):
        raise error
    if isinstance(error, ValueError):  # what registries are to be told of it
        raise UsageError(str(error)) from None
    raise CommandError(f"cannot listen on {address}: {error}") from None


def _no_pipe() -> UsageError:
    return UsageError("--stop-with-stdin needs a pipe as standard input")


def _serve_asyncio(settings: Settings) -> int:
    others = set(threading.enumerate())
    # A thread that a handler left behind cannot be stopped, and must not keep the process.
    last_resort = threading.Timer(_LEFTOVERS, os._exit, (0,))
    last_resort.daemon = True
    asyncio.run(_asyncio_main(settings, last_resort))
    for thread in threading.enumerate():
        if thread not in others and not thread.daemon:
            thread.join()
    last_resort.cancel()
    return 0


async def _asyncio_main(settings: Settings, last_resort: threading.Timer) -> None:
    from rpc_asyncio import Server

    server = settings.make(Server)
    loop = asyncio.get_running_loop()
    stopping, at_once = asyncio.Event(), asyncio.Event()
    signals = _Signals(settings, server, stopping, at_once)

    def read_stdin() -> None:
        if not os.read(0, 4096):
            loop.remove_reader(0)
            stopping.set()

    # Before the first address is printed: whoever reads it may send a signal.
    loop.add_signal_handler(signal.SIGTERM, partial(signals.stop, tell=False))
    loop.add_signal_handler(signal.SIGINT, partial(signals.stop, tell=True))
    if settings.stop_with_stdin:
        try:
            loop.add_reader(0, read_stdin)
        except OSError:  # a file, or closed
            raise _no_pipe() from None
    for address, tls in settings.listen:
        try:
            _announce(await server.start(address, ssl=tls, register=settings.register), settings)
        except (OSError, ValueError) as error:
            await server.stop(grace=0.0)
            _cannot_listen(address, error)
    await stopping.wait()
    draining = asyncio.create_task(server.stop(settings.grace))
    hurry = asyncio.create_task(at_once.wait())
    await asyncio.wait((draining, hurry), return_when=asyncio.FIRST_COMPLETED)
    hurry.cancel()
    if not draining.done():
        await server.stop(grace=0.0)
    await draining
    last_resort.start()


def _serve_gevent(settings: Settings) -> int:
    try:
        import gevent
    except ImportError:
        raise CommandError("the gevent backend needs: pip install 'rpc-proto[gevent]'") from None
    from gevent.event import Event

    from rpc_gevent import Server

    server = settings.make(Server)
    stopping, at_once = Event(), Event()
    signals = _Signals(settings, server, stopping, at_once)
    gevent.signal_handler(signal.SIGTERM, partial(signals.stop, tell=False))
    gevent.signal_handler(signal.SIGINT, partial(signals.stop, tell=True))
    if settings.stop_with_stdin:
        pool = gevent.get_hub().threadpool

        def read_stdin() -> None:
            pool.apply(_wait_for_stdin)
            stopping.set()

        gevent.spawn(read_stdin)
    _start(server, settings)
    stopping.wait()
    draining = gevent.spawn(server.stop, settings.grace)
    draining.link(lambda _: at_once.set())
    at_once.wait()
    if not draining.ready():
        server.stop(grace=0.0)
    draining.get()
    return 0


def _serve_blocking(settings: Settings) -> int:
    from rpc_blocking import Server

    server = settings.make(Server)
    stopping, at_once = threading.Event(), threading.Event()
    signals = _Signals(settings, server, stopping, at_once)
    # One thread waits for the signals, so that no handler interrupts another thread anywhere.
    awaited = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, awaited)

    def wait_for_signals() -> None:
        while True:
            signals.stop(tell=signal.sigwait(awaited) == signal.SIGINT)

    threading.Thread(target=wait_for_signals, daemon=True).start()
    if settings.stop_with_stdin:

        def read_stdin() -> None:
            _wait_for_stdin()
            stopping.set()

        threading.Thread(target=read_stdin, daemon=True).start()
    _start(server, settings)
    stopping.wait()

    def drain() -> None:
        server.stop(settings.grace)
        at_once.set()

    draining = threading.Thread(target=drain)
    draining.start()
    at_once.wait()
    if draining.is_alive():
        server.stop(grace=0.0)
    draining.join()
    return 0


def _wait_for_stdin() -> None:
    """Return when whoever holds the other end of standard input has closed it."""
    while os.read(0, 4096):
        pass


# A backend is a function that serves until a signal and returns the exit code.
BACKENDS: dict[str, Callable[[Settings], int]] = {
    "asyncio": _serve_asyncio,
    "blocking": _serve_blocking,
    "gevent": _serve_gevent,
}
