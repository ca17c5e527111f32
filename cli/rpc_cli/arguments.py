"""The command line: what it may say, and what that means."""

import math
import os
import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace, RawDescriptionHelpFormatter
from collections.abc import Sequence
from typing import NoReturn

from rpc_proto import __version__, parse_address
from rpc_proto.codecs import BUILT_IN

from .errors import USAGE
from .serve import BACKENDS, DEFAULT_ADDRESS

__all__ = ["TOKEN_VARIABLE", "parse"]

TOKEN_VARIABLE = "RPC_PROTO_TOKEN"

_VALUES = """\
Each ARG is JSON: 1, '"text"', '[1, 2]', '{"x": 1.5}', null. name=JSON passes a named argument.
JSON has no bytes: {"$base64": "aGVsbG8="} stands for them, in arguments and in results.
"""

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
    return options


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
    _add_connection(services)
    services.add_argument("--timeout", type=_seconds, default=10.0, metavar="SECONDS")
    services.add_argument("--json", action="store_true", help="as JSON")
    _add_bench(add("bench", "measure how fast a server answers", f"{_VALUES}\n{_EXIT_CODES}"))
    add("demo", "start a server and show in a few seconds what calls can do")
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
    add(
        "--listen",
        action="append",
        type=_listening,
        metavar="ADDRESS",
        help="tcp://host:port, tls://host:port or unix:///path, http:// and https:// being other "
        "words for tcp:// and tls://; may be repeated; port 0 takes "
        f"a free one (default: {DEFAULT_ADDRESS})",
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
    add("--access-log", action="store_true", help="log each call that has ended")
    add("--debug", action="store_true", help="send tracebacks to callers and show them here")
    add(
        "--no-introspection",
        dest="introspection",
        action="store_false",
        help="do not tell callers what is offered",
    )
    add(
        "--stop-with-stdin",
        action="store_true",
        help="stop, too, when standard input ends: for a parent process that may die",
    )
    _add_token(parser, "the token that clients must show")
    _add_tls(parser, ca="clients must show a certificate that these vouch for")


def _add_call(parser: ArgumentParser) -> None:
    _add_connection(parser)
    _add_method(parser)
    parser.add_argument(
        "--timeout",
        type=_seconds,
        default=60.0,
        metavar="SECONDS",
        help="for the call, connecting included (default: 60)",
    )
    parser.add_argument(
        "--metadata",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a string to send along; may be repeated",
    )


def _add_bench(parser: ArgumentParser) -> None:
    _add_connection(parser)
    _add_method(parser)
    add = parser.add_argument
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


def _add_connection(parser: ArgumentParser) -> None:
    parser.add_argument(
        "address",
        type=_address,
        metavar="ADDRESS",
        help="tcp://host:port, tls://host:port, unix:///path; or http:// and https:// "
        "with host and port, for HTTP CONNECT",
    )
    parser.add_argument("--codec", choices=BUILT_IN, default="msgpack")
    parser.add_argument(
        "--proxy",
        metavar="URL|env",
        help="an HTTP proxy to go through, http://user:password@host:port, or env for what "
        "http_proxy, https_proxy, all_proxy and no_proxy say, which other users cannot see",
    )
    _add_token(parser, "the token to show to the server")
    _add_tls(parser, ca="trust these instead of the system's certificates")


def _add_method(parser: ArgumentParser) -> None:
    parser.add_argument("method", metavar="METHOD", help='"Service.method"')
    parser.add_argument("args", nargs="*", metavar="ARG", help="JSON, or name=JSON; see below")


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
