"""Options that several commands have, each group added by one function."""

import os
from argparse import ArgumentParser, Namespace
from typing import Any

from rpc_cli.setup.runtimes import BACKENDS
from rpc_cli.setup.variables import (
    ETCD_PASSWORD_VARIABLE,
    PAGE_TOKEN_VARIABLE,
    REGISTRY_TOKEN_VARIABLE,
    TOKEN_VARIABLE,
)
from rpc_proto.http import Pages
from rpc_proto.pages.access import ACCESS
from rpc_proto.wire.codecs import BUILT_IN

from . import types as option_values

__all__ = [
    "ADDRESS",
    "DEFAULT_ADDRESS",
    "DEFAULT_REGISTRY",
    "add_address",
    "add_connection",
    "add_node_sources",
    "add_serving",
    "add_tls",
    "add_token",
    "has_nodes",
]

DEFAULT_ADDRESS = "tcp://127.0.0.1:7000"
DEFAULT_REGISTRY = "tcp://127.0.0.1:9999"


ADDRESS = (
    "tcp://host:port, tls://host:port, unix:///path; or http:// and https:// with host and port, "
    "for HTTP CONNECT"
)


def add_serving(parser: ArgumentParser, address: str) -> None:
    """Add the options of all that listens."""
    add = parser.add_argument
    add(
        "--listen",
        action="append",
        type=option_values.listening,
        metavar="ADDRESS",
        help="the address to listen on: tcp://host:port, tls://host:port or unix:///path; http:// "
        "and https:// mean the same as tcp:// and tls://; port 0 picks a free port; may be "
        f"repeated (default: {address})",
    )
    add("--backend", choices=tuple(BACKENDS), default="asyncio", help="the runtime to serve with")
    add(
        "--grace",
        type=option_values.number,
        default=5.0,
        metavar="SECONDS",
        help="how long running calls may take after a signal (default: 5)",
    )
    add("--verbose", action="store_true", help="log more than failures")
    add(
        "--stop-with-stdin",
        action="store_true",
        help="also stop when standard input ends, for example because the parent process died",
    )
    for name, access, what in (
        ("--debug-page", Pages.debug, "the debug page, /debug/rpc"),
        ("--metrics", Pages.metrics, "the Prometheus metrics, /metrics"),
    ):
        add(name, choices=ACCESS, default=access, help=f"who may see {what} (default: {access})")
    add(
        "--page-token",
        metavar="TOKEN",
        help='the token for pages with access "token" '
        f"(default: ${PAGE_TOKEN_VARIABLE}, which other users cannot see)",
    )
    add_tls(parser, ca="require client certificates signed by these")


def add_node_sources(
    parser: ArgumentParser, text: str, *, both: bool = False, required: bool = False
) -> None:
    """Add the options for finding nodes in registries or in etcd.

    `text` says what for; with `both`, they may be combined.
    """
    source: Any = parser if both else parser.add_mutually_exclusive_group(required=required)
    source.add_argument(
        "--registry",
        action="append",
        type=option_values.registry,
        metavar="URL",
        help=f"a registry: {text}; http://host:port or https://host:port; may be repeated",
    )
    source.add_argument(
        "--etcd",
        action="extend",
        type=option_values.endpoints,
        metavar="URL[,URL...]",
        help=f"etcd: {text}; http://host:port or https://host:port of its members",
    )
    add = parser.add_argument
    add(
        "--registry-token",
        default=os.environ.get(REGISTRY_TOKEN_VARIABLE) or None,
        metavar="TOKEN",
        help=f"the token for the registry (default: ${REGISTRY_TOKEN_VARIABLE})",
    )
    add(
        "--registry-ca",
        metavar="FILE",
        help="PEM file of certificates to trust instead of the system's, for https://",
    )
    add("--etcd-prefix", metavar="PREFIX", help="the prefix of all keys (default: /rpc)")
    add(
        "--etcd-user",
        metavar="NAME",
        help=f"log in as this user; put the password into ${ETCD_PASSWORD_VARIABLE}, where other "
        "users cannot see it",
    )
    add("--etcd-ca", metavar="FILE", help="like --registry-ca, for etcd")
    add("--etcd-cert", metavar="FILE", help="PEM file of the client certificate for etcd")
    add("--etcd-key", metavar="FILE", help="PEM file of its key, if not in the same file")


def has_nodes(options: Namespace) -> bool:
    """Whether the options say where to find nodes."""
    return bool(options.registry or options.etcd)


def add_address(parser: ArgumentParser, nargs: str | None = None) -> None:
    """Add the address of a server as an argument."""
    parser.add_argument(
        "address", type=option_values.address, nargs=nargs, metavar="ADDRESS", help=ADDRESS
    )


def add_connection(parser: ArgumentParser) -> None:
    """Add the options of all that connects to servers."""
    parser.add_argument(
        "--codec", choices=BUILT_IN, default="msgpack", help="the codec to use (default: msgpack)"
    )
    parser.add_argument(
        "--proxy",
        metavar="URL|env",
        help="connect through an HTTP proxy: http://user:password@host:port, or env to use the "
        "variables http_proxy, https_proxy, all_proxy and no_proxy, which other users cannot see",
    )
    add_token(parser, "the token for the server")
    add_tls(parser, ca="trust these instead of the system's")


def add_token(parser: ArgumentParser, text: str) -> None:
    """Add the token of calls; `text` says what it is for."""
    parser.add_argument(
        "--token",
        default=os.environ.get(TOKEN_VARIABLE) or None,
        help=f"{text} (default: ${TOKEN_VARIABLE}, which other users cannot see)",
    )


def add_tls(parser: ArgumentParser, ca: str) -> None:
    """Add the options for TLS; `ca` says what the authority is for."""
    parser.add_argument("--tls-ca", metavar="FILE", help=f"PEM file of certificates: {ca}")
    parser.add_argument("--tls-cert", metavar="FILE", help="PEM file of this end's certificate")
    parser.add_argument(
        "--tls-key", metavar="FILE", help="PEM file of its key, if not in the same file"
    )
