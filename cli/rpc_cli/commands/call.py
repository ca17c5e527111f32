"""`rpc-proto call`: makes one call, to a server or to a node, and prints the result as JSON."""

import asyncio
import ssl
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from math import inf
from time import monotonic
from typing import Any

from rpc_cli.commandline.groups import has_nodes
from rpc_cli.output.errors import FAILED, CommandError, UsageError, explain
from rpc_cli.output.terminal import can_show
from rpc_cli.output.values import parse_arguments, parse_pairs, to_json
from rpc_cli.setup.connect import CONNECT_TIMEOUT, balance, client_tls, connect, tls_for_nodes
from rpc_proto import CallError

from .streaming import print_stream, stream_kind

__all__ = ["call", "parse_call"]

_SHOWN = object()  # in place of a result that has been printed

_OPTIONS_OF_CALLS = ("timeout", "metadata", "returns")
_OPTIONS_OF_BALANCED = (*_OPTIONS_OF_CALLS, "key", "node", "idempotent", "hedge")


def call(options: Namespace) -> int:
    """Make the call and print its result."""
    balanced = has_nodes(options)
    args, kwargs = parse_call(options.args, _OPTIONS_OF_BALANCED if balanced else _OPTIONS_OF_CALLS)
    try:
        metadata = parse_pairs(options.metadata)
    except ValueError as error:
        raise UsageError(str(error)) from None
    ascii_only = not can_show(sys.stdout, "\u2713\U0001f600")

    def show(value: Any) -> None:
        print(to_json(value, None if options.json else 2, ascii_only), flush=True)

    whole = options.timeout  # of a stream; a call has a limit in any case
    options.timeout = 60.0 if whole is None else whole
    beyond = inf if whole is None else whole
    if balanced:
        if options.broadcast and (options.balancer or options.key or options.node):
            raise UsageError("--broadcast calls all nodes: remove --balancer, --key and --node")
        result, code = asyncio.run(
            _call_nodes(
                options, tls_for_nodes(options), args, kwargs, metadata or None, beyond, show
            )
        )
    else:
        if any(
            (options.balancer, options.key, options.node, options.broadcast, options.idempotent)
        ):
            raise UsageError(
                "--balancer, --key, --node, --broadcast and --idempotent need --registry or --etcd"
            )
        tls = client_tls(options)
        result = asyncio.run(_call(options, tls, args, kwargs, metadata, beyond, show))
        code = 0
    if result is not _SHOWN:
        show(result)
    return code


def parse_call(
    texts: list[str], reserved: Sequence[str] = _OPTIONS_OF_CALLS
) -> tuple[list[Any], dict[str, Any]]:
    """Return positional and named arguments; UsageError says how to write a wrong one."""
    try:
        args, kwargs = parse_arguments(texts)
    except ValueError as error:
        raise UsageError(str(error)) from None
    for name in reserved:
        if name in kwargs:
            raise UsageError(f"the argument {name} can only be passed by position")
    return args, kwargs


async def _call(
    options: Namespace,
    tls: ssl.SSLContext | None,
    args: list[Any],
    kwargs: dict[str, Any],
    metadata: dict[str, str],
    beyond: float,
    show: Callable[[Any], None],
) -> Any:
    # One time limit for both: the time for connecting is subtracted.
    deadline = monotonic() + options.timeout
    async with await connect(options, tls, timeout=min(CONNECT_TIMEOUT, options.timeout)) as client:
        try:
            return await client.call(
                options.method,
                *args,
                timeout=max(0.0, deadline - monotonic()),
                metadata=metadata or None,
                **kwargs,
            )
        except CallError as error:
            kind = stream_kind(error)
            if kind is None:
                raise
        how = {"timeout": beyond, "metadata": metadata or None}
        await print_stream(client, kind, options.method, args, kwargs, show, **how)
        return _SHOWN


async def _call_nodes(
    options: Namespace,
    tls: ssl.SSLContext | None,
    args: list[Any],
    kwargs: dict[str, Any],
    metadata: dict[str, str] | None,
    beyond: float,
    show: Callable[[Any], None],
) -> tuple[Any, int]:
    """Return what to print, and the exit code."""
    from rpc_cli.setup.registries import find_nodes

    deadline = monotonic() + options.timeout
    try:
        async with asyncio.timeout(options.timeout):
            nodes = await find_nodes(options)
    except TimeoutError:
        asked = "etcd" if options.etcd else "a registry"
        raise CommandError(f"no answer from {asked} within {options.timeout:g} s") from None
    balancer = options.balancer or ("consistent_hash" if options.key else "round_robin")
    async with balance(options, nodes, tls, balancer) as client:
        left = max(0.0, deadline - monotonic())
        if options.broadcast:
            results = await client.broadcast(
                options.method, *args, timeout=left, metadata=metadata, **kwargs
            )
            failed = [result for result in results.values() if isinstance(result, CallError)]
            return {at: _outcome(results[at]) for at in sorted(results)}, FAILED if failed else 0
        try:
            result = await client.call(
                options.method,
                *args,
                timeout=left,
                metadata=metadata,
                key=options.key,
                node=options.node,
                idempotent=options.idempotent,
                **kwargs,
            )
        except CallError as error:
            kind = stream_kind(error)
            if kind is None:
                raise
        else:
            return result, 0
        how = {"timeout": beyond, "metadata": metadata, "key": options.key, "node": options.node}
        await print_stream(client, kind, options.method, args, kwargs, show, **how)
        return _SHOWN, 0


def _outcome(result: Any) -> dict[str, Any]:
    return {"error": explain(result)} if isinstance(result, CallError) else {"result": result}
