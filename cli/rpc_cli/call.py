"""`rpc-proto call`: one call, its result as JSON."""

import asyncio
import ssl
import sys
from argparse import Namespace
from time import monotonic
from typing import Any

from .connect import CONNECT_TIMEOUT, client_tls, connect
from .errors import UsageError
from .terminal import can_show
from .values import parse_arguments, parse_pairs, to_json

__all__ = ["call", "parse_call"]

_OPTIONS_OF_CALLS = ("timeout", "metadata", "returns")


def call(options: Namespace) -> int:
    """Make the call and print its result."""
    args, kwargs = parse_call(options.args)
    try:
        metadata = parse_pairs(options.metadata)
    except ValueError as error:
        raise UsageError(str(error)) from None
    tls = client_tls(options)
    result = asyncio.run(_call(options, tls, args, kwargs, metadata))
    print(to_json(result, ascii_only=not can_show(sys.stdout, "\u2713\U0001f600")))
    return 0


def parse_call(texts: list[str]) -> tuple[list[Any], dict[str, Any]]:
    """Return positional and named arguments; UsageError says how to write what is wrong."""
    try:
        args, kwargs = parse_arguments(texts)
    except ValueError as error:
        raise UsageError(str(error)) from None
    for name in _OPTIONS_OF_CALLS:
        if name in kwargs:
            raise UsageError(f"an argument called {name} can only be passed by position")
    return args, kwargs


async def _call(
    options: Namespace,
    tls: ssl.SSLContext | None,
    args: list[Any],
    kwargs: dict[str, Any],
    metadata: dict[str, str],
) -> Any:
    # One time limit over both: what connecting took is no longer there for the call.
    deadline = monotonic() + options.timeout
    async with await connect(options, tls, timeout=min(CONNECT_TIMEOUT, options.timeout)) as client:
        return await client.call(
            options.method,
            *args,
            timeout=max(0.0, deadline - monotonic()),
            metadata=metadata or None,
            **kwargs,
        )
