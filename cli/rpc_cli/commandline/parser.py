"""The command line: what it may say, and what that means."""

import os
import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace, RawDescriptionHelpFormatter
from collections.abc import Sequence
from typing import NoReturn

from rpc_cli.output.errors import USAGE
from rpc_cli.setup.variables import REGISTRY_TOKEN_VARIABLE
from rpc_discovery.balancers import BALANCERS
from rpc_discovery.documents import USUAL_TTL
from rpc_proto import __version__

from . import types as option_values
from .groups import (
    ADDRESS,
    DEFAULT_ADDRESS,
    DEFAULT_REGISTRY,
    add_address,
    add_connection,
    add_node_sources,
    add_serving,
    add_token,
    has_nodes,
)

__all__ = ["parse"]

_VALUES = """\
Each ARG is JSON: 1, '"text"', '[1, 2]', '{"x": 1.5}', null. name=JSON passes a named argument.
JSON has no bytes; {"$base64": "aGVsbG8="} represents them in arguments and results.
"""

_STREAMS = (
    "Items of a stream are printed as they come; those to send are the lines of standard input, "
    "each a JSON value."
)
_EXIT_CODES = "Exit codes: 0 success, 1 the call or the connection failed, 2 wrong usage."


_CONFORMANCE = """\
With --client, COMMAND calls Echo.echo("hello") at the address that is put in place of {}, or
added at the end; it prints the result and exits with 0, or with something else if the call fails.

Exit codes: 0 no case has failed, 1 one has, or none has passed, 2 wrong usage.
"""


def parse(argv: Sequence[str]) -> Namespace:
    """Return the options; SystemExit after --help and after a line on what is wrong."""
    parser = _make_parser()
    options, rest = parser.parse_known_args(argv)
    if rest:
        # argparse reports an ARG after an option as unrecognized; here ARGs may be anywhere.
        if not hasattr(options, "args") or not all(_is_argument(text) for text in rest):
            parser.error(f"unrecognized arguments: {' '.join(rest)}")
        options.args += rest
    if _has_stray_options(options):
        parser.error("--etcd-prefix, -user, -ca, -cert and -key need --etcd")
    if options.command == "call":
        _sort_words(parser, options)
    elif options.command == "conformance" and (options.address is None) is (options.client is None):
        parser.error("give exactly one of ADDRESS and --client")
    elif options.command in ("conformance", "fuzz") and options.proxy is not None:
        parser.error(f"{options.command} does not go through a proxy")
    elif options.command == "services" and (options.address is not None) is has_nodes(options):
        parser.error("give exactly one of ADDRESS, --registry and --etcd")
    return options


def _has_stray_options(options: Namespace) -> bool:
    """Whether there are options for etcd, but no etcd."""
    given = vars(options)
    return not given.get("etcd") and any(
        name.startswith("etcd_") and value is not None for name, value in given.items()
    )


def _sort_words(parser: ArgumentParser, options: Namespace) -> None:
    """Split the words of a call; with a source of nodes there is no address among them."""
    names = ["METHOD"] if has_nodes(options) else ["ADDRESS", "METHOD"]
    words = options.args
    if len(words) < len(names):
        parser.error(f"the following arguments are required: {', '.join(names[len(words) :])}")
    options.address = None
    if not has_nodes(options):
        try:
            options.address = option_values.address(words.pop(0))
        except ArgumentTypeError as error:
            parser.error(f"argument ADDRESS: {error}")
    options.method = words.pop(0)


def _is_argument(text: str) -> bool:
    return text[:1] != "-" or text[1:2].isdigit()  # a negative number is one


class _Parser(ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Report a usage error in one line, and exit."""
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
        add(
            "call",
            "make one call and print its result as JSON",
            f"{_VALUES}\n{_STREAMS}\n{_EXIT_CODES}",
        )
    )
    services = add("services", "list a server's methods with their signatures", _EXIT_CODES)
    add_address(services, nargs="?")
    add_node_sources(services, "list the services of its nodes")
    add_connection(services)
    services.add_argument(
        "--timeout",
        type=option_values.seconds,
        default=10.0,
        metavar="SECONDS",
        help="how long to wait for the answer (default: 10)",
    )
    services.add_argument("--json", action="store_true", help="print JSON")
    _add_bench(add("bench", "measure how fast a server answers", f"{_VALUES}\n{_EXIT_CODES}"))
    _add_registry(add("registry", "run a service registry until SIGTERM or SIGINT"))
    _add_nodes(add("nodes", "list the nodes in a registry or in etcd", _EXIT_CODES))
    _add_conformance(
        add(
            "conformance",
            "check whether a server, or a client, does what the protocol says",
            _CONFORMANCE,
        )
    )
    _add_fuzz(add("fuzz", "send a server what is right and what is nearly right", _EXIT_CODES))
    demo = add("demo", "start servers and show the features in half a minute")
    demo.add_argument("--etcd", action="store_true", help="show them with nodes registered in etcd")
    return parser


def _add_serve(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "targets",
        nargs="+",
        metavar="module:Class",
        help="a class to serve, created without arguments; modules in the current directory can be "
        "imported; module:Class=Name serves it under another name",
    )
    add_serving(parser, DEFAULT_ADDRESS)
    add("--access-log", action="store_true", help="log each finished call")
    add("--debug", action="store_true", help="send tracebacks to callers, and print them here")
    add(
        "--no-introspection",
        dest="introspection",
        action="store_false",
        help="do not let callers list the services",
    )
    add_token(parser, "the token that clients must present")
    add_node_sources(parser, "register the server there", both=True)
    add(
        "--advertise",
        metavar="HOST",
        help="the host to register, for example when the server listens on all interfaces",
    )
    add("--weight", type=float, metavar="W", help="share of the load, 0 to 1000 (default: 1)")
    add(
        "--node-metadata",
        action="append",
        metavar="KEY=VALUE",
        help="metadata to register, for example zone=eu-1; may be repeated",
    )
    add(
        "--ttl",
        type=option_values.seconds,
        metavar="SECONDS",
        help="how long the registration lasts without a heartbeat, sent every third of it "
        f"(default: {USUAL_TTL:g} in a registry, 10 in etcd)",
    )


def _add_conformance(parser: ArgumentParser) -> None:
    add_address(parser, nargs="?")
    add_connection(parser)
    add = parser.add_argument
    add("--client", metavar="COMMAND", help="check this client instead of a server")
    add("--echo", metavar="METHOD", help="a method that returns its one argument, whatever it is")
    add(
        "--echo-stream",
        metavar="METHOD",
        help="a method that takes items and returns each of them as an item",
    )
    add("--case", action="append", metavar="NAME", help="run only this case; may be repeated")
    add(
        "--timeout",
        type=option_values.seconds,
        default=5.0,
        metavar="SECONDS",
        help="how long to wait for each thing (default: 5)",
    )
    add("--json", action="store_true", help="print JSON")
    add("--junit", metavar="FILE", help="write JUnit XML, too")


def _add_fuzz(parser: ArgumentParser) -> None:
    add_address(parser)
    add_connection(parser)
    add = parser.add_argument
    add(
        "--seconds",
        type=option_values.seconds,
        default=60.0,
        metavar="SECONDS",
        help="for how long (default: 60)",
    )
    add(
        "--seed", type=int, default=0, metavar="N", help="the same seed sends the same (default: 0)"
    )
    add(
        "--timeout",
        type=option_values.seconds,
        default=10.0,
        metavar="SECONDS",
        help="how long the server may take to close a connection (default: 10)",
    )
    add("--output", metavar="FILE", help="write the smallest input that fails there")


def _add_registry(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add_serving(parser, DEFAULT_REGISTRY)
    add(
        "--token",
        default=os.environ.get(REGISTRY_TOKEN_VARIABLE) or None,
        help="the token that servers must present to register "
        f"(default: ${REGISTRY_TOKEN_VARIABLE}, which other users cannot see)",
    )
    add("--protect-reads", action="store_true", help="require it for reading, too")
    add(
        "--snapshot",
        metavar="FILE",
        help="keep the nodes in this file over restarts; a file with any other content is an error "
        "and is left unchanged",
    )


def _add_nodes(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add_node_sources(parser, "list its nodes", required=True)
    add("--service", metavar="NAME", help="only nodes that offer this service")
    add("--watch", action="store_true", help="keep running and show changes, until Ctrl-C")
    add("--json", action="store_true", help="print JSON; with --watch, one line per change")


def _add_call(parser: ArgumentParser) -> None:
    parser.usage = (
        "rpc-proto call [OPTION ...] (ADDRESS | --registry URL | --etcd URL) METHOD [ARG ...]"
    )
    # All in one, because only the options tell what the first word is.
    parser.add_argument(
        "args",
        nargs="*",
        metavar="ADDRESS METHOD ARG",
        help=f'{ADDRESS}; "Service.method"; JSON, or name=JSON, see below',
    )
    add = parser.add_argument
    add_node_sources(parser, "call one of its nodes, instead of ADDRESS")
    add("--balancer", choices=tuple(BALANCERS), help="how to choose the node")
    add("--key", help="calls with the same key go to the same node (by consistent_hash)")
    add("--node", type=option_values.address, metavar="ADDRESS", help="call this node")
    add(
        "--broadcast",
        action="store_true",
        help="call all nodes that offer the service, and print each result or error",
    )
    add(
        "--idempotent",
        action="store_true",
        help="allow retrying the call on another node even if a handler may have run",
    )
    add_connection(parser)
    add(
        "--timeout",
        type=option_values.seconds,
        metavar="SECONDS",
        help="the timeout of the call, including connecting (default: 60; none for a stream)",
    )
    add(
        "--json",
        action="store_true",
        help="print the result, or each item of a stream, on one line",
    )
    add(
        "--metadata",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="metadata to send with the call; may be repeated",
    )


def _add_bench(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add_address(parser)
    add_connection(parser)
    add("method", metavar="METHOD", help='"Service.method"')
    add("args", nargs="*", metavar="ARG", help="JSON, or name=JSON; see below")
    add(
        "--concurrency",
        type=option_values.count,
        default=64,
        metavar="N",
        help="calls in flight, over all connections (default: 64)",
    )
    add(
        "--connections",
        type=option_values.count,
        default=1,
        metavar="N",
        help="number of connections (default: 1)",
    )
    add(
        "--seconds",
        type=option_values.seconds,
        default=5.0,
        metavar="S",
        help="how long to measure (default: 5)",
    )
    add(
        "--timeout",
        type=option_values.seconds,
        default=60.0,
        metavar="SECONDS",
        help="the timeout of each call (default: 60)",
    )
    add(
        "--payload",
        type=option_values.size,
        metavar="BYTES",
        help="send one argument of this many bytes instead of ARGS",
    )
