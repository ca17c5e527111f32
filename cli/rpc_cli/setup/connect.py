"""The connections that `call`, `services` and `bench` make from their options."""

import ssl
from argparse import Namespace
from collections.abc import Iterable

from rpc_asyncio import BalancedClient, Client
from rpc_cli.output.errors import UsageError
from rpc_common.transport.http_proxies import find_proxy
from rpc_discovery import Node
from rpc_proto import ClientConfig, parse_address

from .tls import client_context

__all__ = ["CONNECT_TIMEOUT", "balance", "client_tls", "connect", "tls_for_nodes"]

CONNECT_TIMEOUT = 10.0  # seconds


def client_tls(options: Namespace) -> ssl.SSLContext | None:
    """Return the TLS context for the options; UsageError if they do not fit together."""
    where = parse_address(options.address)
    try:
        find_proxy(options.proxy, where)
    except ValueError as error:
        raise UsageError(str(error)) from None
    if where.has_tls:
        return client_context(options.tls_ca, options.tls_cert, options.tls_key)
    if options.tls_ca or options.tls_cert or options.tls_key:
        raise UsageError(
            f"--tls-* options need a tls:// or https:// address, not {options.address}"
        )
    return None


async def connect(
    options: Namespace, tls: ssl.SSLContext | None, *, timeout: float = CONNECT_TIMEOUT
) -> Client:
    """Connect as the options say; `timeout` in seconds. Raises what `Client.connect` raises."""
    return await Client.connect(
        options.address,
        timeout=timeout,
        ssl=tls,
        config=ClientConfig(codec=options.codec, token=options.token),
        proxy=options.proxy,
    )


def tls_for_nodes(options: Namespace) -> ssl.SSLContext | None:
    """Return the TLS context for nodes, whatever their addresses; None for the usual one."""
    if options.tls_ca or options.tls_cert or options.tls_key:
        return client_context(options.tls_ca, options.tls_cert, options.tls_key)
    return None


def balance(
    options: Namespace,
    nodes: Iterable[Node],
    tls: ssl.SSLContext | None,
    balancer: str = "round_robin",
) -> BalancedClient:
    """Return a client of these nodes, as the options say."""
    try:
        return BalancedClient(
            list(nodes),
            balancer,
            connect_timeout=CONNECT_TIMEOUT,
            ssl=tls,
            config=ClientConfig(codec=options.codec, token=options.token),
            proxy=options.proxy,
        )
    except ValueError as error:
        raise UsageError(str(error)) from None
