"""`rpc-proto serve`: serves classes until a signal, then drains."""

import importlib
import logging
import os
import ssl
import sys
import traceback
from argparse import Namespace
from typing import Any

from rpc_proto import parse_address

from .errors import CommandError, UsageError
from .runtimes import BACKENDS, Settings
from .tls import server_context

__all__ = ["BACKENDS", "DEFAULT_ADDRESS", "serve"]

DEFAULT_ADDRESS = "tcp://127.0.0.1:7000"


def serve(options: Namespace) -> int:
    """Serve as the options say, and return after a signal."""
    _set_up_logging(options)
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
        access_log=options.access_log,
        grace=options.grace,
        stop_with_stdin=options.stop_with_stdin,
    )
    return BACKENDS[options.backend](settings)


def _set_up_logging(options: Namespace) -> None:
    """Log to standard error; without options only what is wrong, as Python does by itself."""
    if options.verbose or options.access_log or options.debug:
        logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    if options.verbose or options.debug:
        logging.getLogger().setLevel(logging.INFO)
    if options.access_log:
        logging.getLogger(f"rpc_{options.backend}.access").setLevel(logging.INFO)


def _tls_for(address: str, options: Namespace) -> ssl.SSLContext | None:
    if not parse_address(address, listening=True).has_tls:
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
