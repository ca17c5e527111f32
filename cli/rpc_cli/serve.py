"""`rpc-proto serve`: serves classes until a signal, then drains."""

import asyncio
import importlib
import logging
import os
import signal
import ssl
import sys
import threading
import traceback
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from .errors import CommandError, UsageError
from .tls import server_context

__all__ = ["BACKENDS", "DEFAULT_ADDRESS", "Settings", "serve"]

DEFAULT_ADDRESS = "tcp://127.0.0.1:7000"

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
    grace: float
    stop_with_stdin: bool


def serve(options: Namespace) -> int:
    """Serve as the options say, and return after a signal."""
    if options.debug:
        logging.basicConfig(level=logging.INFO)
    listen = [
        (address, _tls_for(address, options)) for address in options.listen or [DEFAULT_ADDRESS]
    ]
    if (options.tls_cert or options.tls_key or options.tls_ca) and not any(
        tls for _, tls in listen
    ):
        raise UsageError("--tls-* options go with a tls:// address to --listen on")
    sys.path.insert(0, os.getcwd())
    settings = Settings(
        services=[_load(target, options.debug) for target in options.targets],
        listen=listen,
        token=options.token,
        introspection=options.introspection,
        debug=options.debug,
        grace=options.grace,
        stop_with_stdin=options.stop_with_stdin,
    )
    return BACKENDS[options.backend](settings)


def _tls_for(address: str, options: Namespace) -> ssl.SSLContext | None:
    if not address.startswith("tls://"):
        return None
    return server_context(options.tls_ca, options.tls_cert, options.tls_key)


def _load(target: str, debug: bool) -> tuple[Any, str | None]:
    """Return the object for `module:Class` or `module:Class=Name`, and its name if given."""
    path, renamed, name = target.partition("=")
    module_name, separator, class_name = path.partition(":")
    if not (separator and module_name and class_name) or (renamed and not name):
        raise UsageError(f"a service is written module:Class or module:Class=Name, not {target!r}")
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{module_name}.".startswith(f"{error.name}."):
            raise UsageError(
                f"there is no module {error.name!r} here or among the installed ones"
            ) from None
        raise _broken(f"importing {module_name} failed", error, debug) from None
    except Exception as error:
        raise _broken(f"importing {module_name} failed", error, debug) from None
    for attribute in class_name.split("."):
        if not hasattr(found, attribute):
            raise UsageError(f"module {module_name} has no class {class_name!r}")
        found = getattr(found, attribute)
    if not isinstance(found, type):
        raise UsageError(f"{path} is not a class but {found!r:.100}")
    try:
        return found(), name or None
    except Exception as error:
        raise _broken(f"{class_name}() from {module_name} failed", error, debug) from None


def _broken(what: str, error: Exception, debug: bool) -> CommandError:
    if debug:
        traceback.print_exception(error)
    hint = "" if debug else " (--debug shows where)"
    return CommandError(f"{what}: {type(error).__name__}: {error}{hint}")


def _register(server: Any, settings: Settings) -> None:
    for service, name in settings.services:
        try:
            server.register(service, name)
        except (TypeError, ValueError) as error:
            raise UsageError(f"{type(service).__name__} cannot be served: {error}") from None


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

    server = Server(
        token=settings.token, introspection=settings.introspection, debug=settings.debug
    )
    _register(server, settings)
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()
    at_once = asyncio.Event()

    def stop(*, tell: bool) -> None:
        if stopping.is_set():
            at_once.set()
        elif tell and server.stats["running"]:
            print(
                f"rpc-proto: stopping; running calls have up to {settings.grace:g} s "
                "(Ctrl-C again ends them)",
                file=sys.stderr,
                flush=True,
            )
        stopping.set()

    def read_stdin() -> None:
        if not os.read(0, 4096):
            loop.remove_reader(0)
            stopping.set()

    # Before the first address is printed: whoever reads it may send a signal.
    loop.add_signal_handler(signal.SIGTERM, partial(stop, tell=False))
    loop.add_signal_handler(signal.SIGINT, partial(stop, tell=True))  # somebody waits there
    if settings.stop_with_stdin:
        try:
            loop.add_reader(0, read_stdin)
        except OSError:  # a file, or closed
            raise UsageError("--stop-with-stdin needs a pipe as standard input") from None
    for address, tls in settings.listen:
        try:
            print(f"listening on {await server.start(address, ssl=tls)}", flush=True)
        except BrokenPipeError:
            raise
        except OSError as error:
            await server.stop(grace=0.0)
            raise CommandError(f"cannot listen on {address}: {error}") from None
    await stopping.wait()
    draining = asyncio.create_task(server.stop(settings.grace))
    hurry = asyncio.create_task(at_once.wait())
    await asyncio.wait((draining, hurry), return_when=asyncio.FIRST_COMPLETED)
    hurry.cancel()
    if not draining.done():
        await server.stop(grace=0.0)
    await draining
    last_resort.start()


# A backend is a function that serves until a signal and returns the exit code.
BACKENDS: dict[str, Callable[[Settings], int]] = {"asyncio": _serve_asyncio}
