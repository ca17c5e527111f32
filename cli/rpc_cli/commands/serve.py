"""`rpc-proto serve`: serves classes until a signal, then drains."""

import importlib
import logging
import os
import ssl
import sys
import traceback
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Timer
from typing import TYPE_CHECKING, Any

from rpc_cli.commandline.groups import DEFAULT_ADDRESS, has_nodes
from rpc_cli.output.errors import CommandError, UsageError
from rpc_cli.output.values import parse_pairs
from rpc_cli.setup.pages import make_pages
from rpc_cli.setup.runtimes import BACKENDS, Settings
from rpc_cli.setup.tls import client_context, server_context
from rpc_proto import parse_address

if TYPE_CHECKING:
    from rpc_common.discovery.advertising import Advertisement

__all__ = ["check_listening", "serve", "set_up_logging"]


_LONG_IMPORT = 5.0  # seconds


def serve(options: Namespace) -> int:
    """Serve as the options say, and return after a signal."""
    set_up_logging(options)
    if options.access_log:
        logging.getLogger(f"rpc_{options.backend}.access").setLevel(logging.INFO)
    listen = check_listening(options.listen or [DEFAULT_ADDRESS], options)
    advertise = _registering(options)
    pages = make_pages(options)
    sys.path.insert(0, os.getcwd())
    settings = Settings(
        services=[_load(target, options.debug) for target in options.targets],
        listen=listen,
        token=options.token,
        introspection=options.introspection,
        debug=options.debug,
        access_log=options.access_log,
        pages=pages,
        grace=options.grace,
        stop_with_stdin=options.stop_with_stdin,
        advertise=advertise,
    )
    return BACKENDS[options.backend](settings)


def set_up_logging(options: Namespace) -> None:
    """Log to standard error; without options only warnings and errors, like Python's default."""
    debug, access_log = getattr(options, "debug", False), getattr(options, "access_log", False)
    if options.verbose or access_log or debug:
        logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    if options.verbose or debug:
        logging.getLogger().setLevel(logging.INFO)


def check_listening(
    addresses: list[str], options: Namespace
) -> list[tuple[str, ssl.SSLContext | None]]:
    """Return each address to listen on with its TLS context; UsageError if they do not match."""
    listen = [(address, _tls_for(address, options)) for address in addresses]
    if (options.tls_cert or options.tls_key or options.tls_ca) and not any(
        tls for _, tls in listen
    ):
        raise UsageError("--tls-* options need a tls:// address in --listen")
    return listen


def _registering(options: Namespace) -> "list[Advertisement] | None":
    """Return the advertisements for registries and etcd; None without any."""
    said = {
        "address": options.advertise,
        "weight": options.weight,
        "metadata": options.node_metadata,
        "ttl": options.ttl,
    }
    said = {name: value for name, value in said.items() if value is not None}
    if options.registry_ca and not options.registry:
        raise UsageError("--registry-ca needs --registry")
    if not has_nodes(options):
        if said:
            raise UsageError(
                "--advertise, --weight, --node-metadata and --ttl need --registry or --etcd"
            )
        return None
    from rpc_common.discovery.advertising import Advertisement, EtcdAdvertisement

    registering: list[Advertisement] = []
    try:
        if "metadata" in said:
            said["metadata"] = parse_pairs(said["metadata"])
        if options.registry:
            ca = options.registry_ca
            tls = client_context(ca, None, None) if ca else None
            registering.append(
                Advertisement(options.registry, token=options.registry_token, ssl=tls, **said)
            )
        if options.etcd:
            from rpc_cli.setup.etcd import etcd_settings

            registering.append(EtcdAdvertisement(options.etcd, **etcd_settings(options), **said))
    except ValueError as error:
        raise UsageError(str(error)) from None
    return registering


def _tls_for(address: str, options: Namespace) -> ssl.SSLContext | None:
    if not parse_address(address, listening=True).has_tls:
        return None
    return server_context(options.tls_ca, options.tls_cert, options.tls_key)


def _load(target: str, debug: bool) -> tuple[Any, str | None]:
    """Return the object for `module:Class` or `module:Class=Name`, and its name if given."""
    path, renamed, name = target.partition("=")
    module_name, separator, class_name = path.partition(":")
    if not (separator and module_name and class_name) or (renamed and not name):
        raise UsageError(f"a service must be module:Class or module:Class=Name, not {target!r}")
    try:
        with _telling_when_long(module_name):
            found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{module_name}.".startswith(f"{error.name}."):
            raise UsageError(
                f"there is no module {error.name!r} in this directory or installed"
            ) from None
        raise _broken(f"importing {module_name} failed", error, debug) from None
    except Exception as error:
        raise _broken(f"importing {module_name} failed", error, debug) from None
    for attribute in class_name.split("."):
        if not hasattr(found, attribute):
            raise UsageError(f"module {module_name} has no class {class_name!r}")
        found = getattr(found, attribute)
    if not isinstance(found, type):
        raise UsageError(f"{path} must be a class, not {found!r:.100}")
    try:
        return found(), name or None
    except Exception as error:
        raise _broken(f"{class_name}() from {module_name} failed", error, debug) from None


@contextmanager
def _telling_when_long(module: str) -> Iterator[None]:
    """Print a hint if an import takes long: the module may be a program, which then runs here."""

    def tell() -> None:
        print(
            f"rpc-proto: still importing {module!r}; does it run a program when it is imported? "
            'Guard it with if __name__ == "__main__":',
            file=sys.stderr,
            flush=True,
        )

    timer = Timer(_LONG_IMPORT, tell)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _broken(what: str, error: Exception, debug: bool) -> CommandError:
    if debug:
        traceback.print_exception(error)
    hint = "" if debug else " (--debug shows where)"
    return CommandError(f"{what}: {type(error).__name__}: {error}{hint}")
