"""The command line: what it may say, and what that means."""

import math
import os
import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace, RawDescriptionHelpFormatter
from collections.abc import Sequence
from typing import NoReturn

from rpc_discovery.balancers import BALANCERS
from rpc_discovery.documents import USUAL_TTL
from rpc_discovery.links import parse_registry
from rpc_proto import __version__, parse_address
from rpc_proto.codecs import BUILT_IN
from rpc_proto.http import Pages
from rpc_proto.http.access import ACCESS

from .errors import USAGE
from .pages import PAGE_TOKEN_VARIABLE
from .registry import DEFAULT_REGISTRY
from .serve import BACKENDS, DEFAULT_ADDRESS

__all__ = ["REGISTRY_TOKEN_VARIABLE", "TOKEN_VARIABLE", "parse"]

TOKEN_VARIABLE = "RPC_PROTO_TOKEN"
REGISTRY_TOKEN_VARIABLE = "RPC_PROTO_REGISTRY_TOKEN"

_VALUES = """\
Each ARG is JSON: 1, '"text"', '[1, 2]', '{"x": 1.5}', null. name=JSON passes a named argument.
JSON has no bytes: {"$base64": "aGVsbG8="} stands for them, in arguments and in results.
"""

_ADDRESS = (
    "tcp://host:port, tls://host:port, unix:///path; or http:// and https:// with host and port, "
    "for HTTP CONNECT"
)

_EXIT_CODES = "Exit codes: 0 done, 1 the call failed or there is no connection, 2 wrong usage."


def parse(argv: Sequence[str]) -> Namespace:
    """Return the options; SystemExit after --help and after a line on what is wrong."""
    parser = _make_parser()
    options, rest = parser.parse_known_args(argv)
    if rest:
        # For argparse an ARG behind an option is one too many; here they may stand anywhere.
        if not hasattr(options, "args") or not all(_is_argument(text) for text in rest):
            parser.error(f"unrecognized arguments: {' '.join(rest)}")
        options.args += rest
    if options.command == "call":
        _sort_words(parser, options)
    elif options.command == "services" and (options.address is None) is (not options.registry):
        parser.error("either ADDRESS or --registry says where to ask")
    return options


def _sort_words(parser: ArgumentParser, options: Namespace) -> None:
    """Tell the words of a call apart: with a registry there is no address among them."""
    names = ["METHOD"] if options.registry else ["ADDRESS", "METHOD"]
    words = options.args
    if len(words) < len(names):
        parser.error(f"the following arguments are required: {', '.join(names[len(words) :])}")
    options.address = None
    if not options.registry:
        try:
            options.address = _address(words.pop(0))
        except ArgumentTypeError as error:
            parser.error(f"argument ADDRESS: {error}")
    options.method = words.pop(0)


def _is_argument(text: str) -> bool:
    return text[:1] != "-" or text[1:2].isdigit()  # a negative number is one


class _Parser(ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Say what is wrong in one line."""
        print(f"rpc-proto: {message} (see {self.prog} --help)", file=sys.stderr)
        sys.exit(USAGE)


def _make_parser() -> _Parser:
    parser = _Parser(
        prog="rpc-proto",
        description="Serve and call remote procedures.",
        epilog=_EXIT_CODES,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"rpc-proto {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def add(name: str, summary: str, epilog: str = "") -> ArgumentParser:
        return commands.add_parser(
            name,
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}.",
            epilog=epilog,
            formatter_class=RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    _add_serve(add("serve", "serve the methods of classes until SIGTERM or SIGINT"))
    _add_call(
        add("call", "make one call and print its result as JSON", f"{_VALUES}\n{_EXIT_CODES}")
    )
    services = add("services", "show what a server offers, with signatures", _EXIT_CODES)
    _add_address(services, nargs="?")
    _add_registries(services, "show what the nodes offer that it knows")
    _add_connection(services)
    services.add_argument("--timeout", type=_seconds, default=10.0, metavar="SECONDS")
    services.add_argument("--json", action="store_true", help="as JSON")
    _add_bench(add("bench", "measure how fast a server answers", f"{_VALUES}\n{_EXIT_CODES}"))
    _add_registry(add("registry", "know which servers there are, until SIGTERM or SIGINT"))
    _add_nodes(add("nodes", "show the nodes that a registry knows", _EXIT_CODES))
    add("demo", "start servers and show in half a minute what calls can do")
    return parser


def _add_serve(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "targets",
        nargs="+",
        metavar="module:Class",
        help="a class to serve, made without arguments; the current directory is importable; "
        "module:Class=Name serves it under another name",
    )
    _add_serving(parser, DEFAULT_ADDRESS)
    add("--access-log", action="store_true", help="log each call that has ended")
    add("--debug", action="store_true", help="send tracebacks to callers and show them here")
    add(
        "--no-introspection",
        dest="introspection",
        action="store_false",
        help="do not tell callers what is offered",
    )
    _add_token(parser, "the token that clients must show")
    _add_registries(parser, "make the server known there")
    add(
        "--advertise",
        metavar="HOST",
        help="where callers find the server, when it listens on all interfaces, say",
    )
    add("--weight", type=float, metavar="W", help="its share of the load, 0 to 1000 (default: 1)")
    add(
        "--node-metadata",
        action="append",
        metavar="KEY=VALUE",
        help="what to tell of the server, zone=eu-1 for instance; may be repeated",
    )
    add(
        "--ttl",
        type=_seconds,
        metavar="SECONDS",
        help="of silence after which a registry forgets the server; it is heard of three times as "
        f"often (default: {USUAL_TTL:g})",
    )


def _add_serving(parser: ArgumentParser, address: str) -> None:
    """Add the options of all that listens."""
    add = parser.add_argument
    add(
        "--listen",
        action="append",
        type=_listening,
        metavar="ADDRESS",
        help="tcp://host:port, tls://host:port or unix:///path, http:// and https:// being other "
        "words for tcp:// and tls://; may be repeated; port 0 takes a free one "
        f"(default: {address})",
    )
    add("--backend", choices=tuple(BACKENDS), default="asyncio", help="the runtime to serve with")
    add(
        "--grace",
        type=_number,
        default=5.0,
        metavar="SECONDS",
        help="for running calls to end after a signal (default: 5)",
    )
    add("--verbose", action="store_true", help="log what the server does, too, not only failures")
    add(
        "--stop-with-stdin",
        action="store_true",
        help="stop, too, when standard input ends: for a parent process that may die",
    )
    for name, access, what in (
        ("--debug-page", Pages.debug, "what goes on, at /debug/rpc"),
        ("--metrics", Pages.metrics, "the numbers for Prometheus, at /metrics"),
    ):
        add(name, choices=ACCESS, default=access, help=f"who sees {what} (default: {access})")
    add(
        "--page-token",
        metavar="TOKEN",
        help='what shows who sees pages whose access is "token" '
        f"(default: ${PAGE_TOKEN_VARIABLE}, which other users cannot see)",
    )
    _add_tls(parser, ca="clients must show a certificate that these vouch for")


def _add_registry(parser: ArgumentParser) -> None:
    add = parser.add_argument
    _add_serving(parser, DEFAULT_REGISTRY)
    add(
        "--token",
        default=os.environ.get(REGISTRY_TOKEN_VARIABLE) or None,
        help=f"the token that servers must show (default: ${REGISTRY_TOKEN_VARIABLE}, which other "
        "users cannot see)",
    )
    add("--protect-reads", action="store_true", help="who asks for nodes must show it, too")
    add(
        "--snapshot",
        metavar="FILE",
        help="keep what is known there over a restart; what it holds is restored, and a file that "
        "holds anything else is an error and stays as it is",
    )


def _add_nodes(parser: ArgumentParser) -> None:
    add = parser.add_argument
    _add_registries(parser, "ask this one", required=True)
    add("--service", metavar="NAME", help="only nodes that offer it")
    add("--watch", action="store_true", help="go on until Ctrl-C, and show what changes")
    add("--json", action="store_true", help="as JSON, one line for each change with --watch")


def _add_registries(parser: ArgumentParser, text: str, *, required: bool = False) -> None:
    add = parser.add_argument
    add(
        "--registry",
        action="append",
        type=_registry,
        required=required,
        metavar="URL",
        help=f"{text}: http://host:port or https://host:port; may be repeated",
    )
    add(
        "--registry-token",
        default=os.environ.get(REGISTRY_TOKEN_VARIABLE) or None,
        metavar="TOKEN",
        help=f"the token to show to it (default: ${REGISTRY_TOKEN_VARIABLE})",
    )
    add(
        "--registry-ca",
        metavar="FILE",
        help="certificates in PEM form: trust these at https:// instead of the system's",
    )


def _add_call(parser: ArgumentParser) -> None:
    parser.usage = "rpc-proto call [OPTION ...] (ADDRESS | --registry URL) METHOD [ARG ...]"
    # All in one, because only the options tell what the first word is.
    parser.add_argument(
        "args",
        nargs="*",
        metavar="ADDRESS METHOD ARG",
        help=f'{_ADDRESS}; "Service.method"; JSON, or name=JSON, see below',
    )
    add = parser.add_argument
    _add_registries(parser, "call one of the nodes that it knows, instead of ADDRESS")
    add("--balancer", choices=tuple(BALANCERS), help="how the node is chosen")
    add("--key", help="calls of one key go to one node (by consistent_hash)")
    add("--node", type=_address, metavar="ADDRESS", help="call this node")
    add(
        "--broadcast",
        action="store_true",
        help="call all nodes that offer the service, and print the result or error of each",
    )
    add(
        "--idempotent",
        action="store_true",
        help="the call may be repeated at another node though a handler may have run",
    )
    _add_connection(parser)
    add(
        "--timeout",
        type=_seconds,
        default=60.0,
        metavar="SECONDS",
        help="for the call, connecting included (default: 60)",
    )
    add(
        "--metadata",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a string to send along; may be repeated",
    )


def _add_bench(parser: ArgumentParser) -> None:
    add = parser.add_argument
    _add_address(parser)
    _add_connection(parser)
    add("method", metavar="METHOD", help='"Service.method"')
    add("args", nargs="*", metavar="ARG", help="JSON, or name=JSON; see below")
    add(
        "--concurrency",
        type=_count,
        default=64,
        metavar="N",
        help="calls at a time, over all connections (default: 64)",
    )
    add("--connections", type=_count, default=1, metavar="N", help="connections (default: 1)")
    add("--seconds", type=_seconds, default=5.0, metavar="S", help="how long (default: 5)")
    add(
        "--timeout",
        type=_seconds,
        default=60.0,
        metavar="SECONDS",
        help="for each call (default: 60)",
    )
    add(
        "--payload",
        type=_size,
        metavar="BYTES",
        help="send one argument, so many bytes, instead of ARGS",
    )


def _add_address(parser: ArgumentParser, nargs: str | None = None) -> None:
    parser.add_argument("address", type=_address, nargs=nargs, metavar="ADDRESS", help=_ADDRESS)


def _add_connection(parser: ArgumentParser) -> None:
    parser.add_argument("--codec", choices=BUILT_IN, default="msgpack")
    parser.add_argument(
        "--proxy",
        metavar="URL|env",
        help="an HTTP proxy to go through, http://user:password@host:port, or env for what "
        "http_proxy, https_proxy, all_proxy and no_proxy say, which other users cannot see",
    )
    _add_token(parser, "the token to show to the server")
    _add_tls(parser, ca="trust these instead of the system's certificates")


def _add_token(parser: ArgumentParser, text: str) -> None:
    parser.add_argument(
        "--token",
        default=os.environ.get(TOKEN_VARIABLE) or None,
        help=f"{text} (default: ${TOKEN_VARIABLE}, which other users cannot see)",
    )


def _add_tls(parser: ArgumentParser, ca: str) -> None:
    parser.add_argument("--tls-ca", metavar="FILE", help=f"certificates in PEM form: {ca}")
    parser.add_argument("--tls-cert", metavar="FILE", help="the certificate to show, PEM")
    parser.add_argument("--tls-key", metavar="FILE", help="its key, if not in the same file, PEM")


def _checked(text: str, listening: bool) -> str:
    try:
        parse_address(text, listening=listening)
    except ValueError as error:
        raise ArgumentTypeError(str(error)) from None
    return text


def _address(text: str) -> str:
    return _checked(text, listening=False)


def _listening(text: str) -> str:
    return _checked(text, listening=True)


def _registry(text: str) -> str:
    try:
        parse_registry(text)
    except ValueError as error:
        raise ArgumentTypeError(str(error)) from None
    return text


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if math.isnan(value) or value < 0:
        raise ArgumentTypeError(f"{text!r} is not a number of seconds")
    return value


def _seconds(text: str) -> float:
    value = _number(text)
    if not value:
        raise ArgumentTypeError("0 seconds are too few")
    return value


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 0 < int(text) <= 100_000):
        raise ArgumentTypeError(f"{text!r} is not a whole number from 1 to 100000")
    return int(text)


def _size(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 11):
        raise ArgumentTypeError(f"{text!r} is not a number of bytes")
    return int(text)
