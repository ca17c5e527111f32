"""`rpc-proto registry`: runs a service registry until a signal."""

from argparse import Namespace
from typing import Any

from rpc_cli.commandline.groups import DEFAULT_REGISTRY
from rpc_cli.output.errors import CommandError, UsageError
from rpc_cli.setup.pages import make_pages
from rpc_cli.setup.runtimes import BACKENDS, Settings

from .serve import check_listening, set_up_logging

__all__ = ["registry"]


# The scheme of the registry's URL by that of the address.
_AS_HTTP = {"tcp": "http", "tls": "https"}


def registry(options: Namespace) -> int:
    """Run a registry as the options say, and return after a signal."""
    from secrets import token_hex

    from rpc_discovery import Registry

    set_up_logging(options)
    listen = check_listening(
        [_as_http(address) for address in options.listen or [DEFAULT_REGISTRY]], options
    )
    try:
        kept: Any = Registry(token_hex(8), token=options.token, protect_reads=options.protect_reads)
    except ValueError as error:
        raise UsageError(str(error)) from None
    if options.snapshot is not None:
        kept = _saved(kept, options.snapshot)
    settings = Settings(
        services=[],
        listen=listen,
        token=None,
        introspection=False,
        debug=False,
        access_log=False,
        pages=make_pages(options),
        grace=options.grace,
        stop_with_stdin=options.stop_with_stdin,
        applications=[kept],
    )
    try:
        return BACKENDS[options.backend](settings)
    finally:
        if options.snapshot is not None:
            kept.close()


def _saved(kept: Any, path: str) -> Any:
    from rpc_common.discovery.snapshots import SavedRegistry

    try:
        return SavedRegistry(kept, path)
    except ValueError as error:
        raise CommandError(
            f"{path} is not a snapshot of a registry and was left unchanged: {error}"
        ) from None
    except OSError as error:
        raise CommandError(f"cannot use the snapshot {path}: {error.strerror}") from None


def _as_http(address: str) -> str:
    scheme, _, rest = address.partition("://")
    return f"{_AS_HTTP.get(scheme, scheme)}://{rest}"
