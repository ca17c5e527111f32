"""What `rpc-proto serve` and `registry` do in each runtime: start, wait for a signal, drain."""

import os
import signal
import ssl
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn

from rpc_cli.output.errors import CommandError, UsageError
from rpc_common.server.programs import Program
from rpc_proto.http import Pages

from .pages import debug_page

if TYPE_CHECKING:
    from rpc_common.discovery.advertising import Advertisement

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
    advertise: "list[Advertisement] | None" = None
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


class _Program(Program):
    """What the command says while it serves."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings.listen, settings.advertise, settings.grace)
        self.stdin = settings.stop_with_stdin
        self._pages = settings.pages

    def listening(self, address: str) -> None:
        super().listening(address)
        hint = debug_page(address, self._pages)
        if hint is not None and sys.stderr.isatty():  # for people; programs know
            print(hint, file=sys.stderr, flush=True)

    def failed(self, address: str, error: OSError | ValueError) -> NoReturn:
        if isinstance(error, BrokenPipeError):
            raise error
        if isinstance(error, ValueError):  # what registries are to be told of it
            raise UsageError(str(error)) from None
        # A path that is in the way is named, but not the address once more.
        error.filename = None if error.filename == address else error.filename
        raise CommandError(f"cannot listen on {address}: {error}") from None

    def no_stdin(self) -> NoReturn:
        raise UsageError("--stop-with-stdin needs a pipe as standard input")

    def stopping(self, server: Any, number: int | None) -> None:
        if number == signal.SIGINT and server.stats["running"]:  # for who pressed Ctrl-C
            print(
                f"rpc-proto: stopping; running calls have up to {self.grace:g} s "
                "(Ctrl-C again ends them)",
                file=sys.stderr,
                flush=True,
            )


class _AsyncioProgram(_Program):
    """A thread that a handler left behind cannot be stopped, and must not keep the process."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._others = set(threading.enumerate())
        self._last_resort = threading.Timer(_LEFTOVERS, os._exit, (0,))
        self._last_resort.daemon = True

    def stopped(self) -> None:
        self._last_resort.start()

    def join(self) -> None:
        """Wait for the threads, but not longer than there is patience."""
        for thread in threading.enumerate():
            if thread not in self._others and not thread.daemon:
                thread.join()
        self._last_resort.cancel()


def _serve_asyncio(settings: Settings) -> int:
    from rpc_asyncio import Server

    program = _AsyncioProgram(settings)
    settings.make(Server).run_program(program)
    program.join()
    return 0


def _serve_gevent(settings: Settings) -> int:
    try:
        import gevent  # noqa: F401
    except ImportError:
        raise CommandError("the gevent backend needs: pip install 'rpc-proto[gevent]'") from None
    from rpc_gevent import Server

    settings.make(Server).run_program(_Program(settings))
    return 0


def _serve_blocking(settings: Settings) -> int:
    from rpc_blocking import Server

    settings.make(Server).run_program(_Program(settings))
    return 0


# A backend is a function that serves until a signal and returns the exit code.
BACKENDS: dict[str, Callable[[Settings], int]] = {
    "asyncio": _serve_asyncio,
    "blocking": _serve_blocking,
    "gevent": _serve_gevent,
}
