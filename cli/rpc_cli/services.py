"""`rpc-proto services`: what a server says that it offers."""

import asyncio
import ssl
import sys
from argparse import Namespace
from typing import TypedDict

from rpc_proto import Unimplemented

from .connect import client_tls, connect
from .errors import CommandError
from .terminal import can_show
from .values import printable, to_json

__all__ = ["services"]

_METHOD = "rpc.Introspection.services"


class _Described(TypedDict):
    signature: str
    doc: str


_Offer = dict[str, dict[str, _Described]]


def services(options: Namespace) -> int:
    """Ask the server and print the answer, as text or as JSON."""
    offer = asyncio.run(_ask(options, client_tls(options)))
    if options.json:
        print(to_json(offer, ascii_only=not can_show(sys.stdout, "\u2713\U0001f600")))
    else:
        print("\n\n".join(_describe(name, methods) for name, methods in offer.items()))
    return 0


async def _ask(options: Namespace, tls: ssl.SSLContext | None) -> _Offer:
    async with await connect(options, tls) as client:
        try:
            offer: _Offer = await client.call(_METHOD, timeout=options.timeout, returns=_Offer)
        except Unimplemented:
            raise CommandError(
                "this server does not tell what it offers (it was started without introspection)"
            ) from None
    return offer


def _describe(name: str, methods: dict[str, _Described]) -> str:
    lines = [name]
    for short, described in methods.items():
        lines.append(f"  {short}{described['signature']}")
        lines += [f"      {line}".rstrip() for line in described["doc"].splitlines()]
    return printable("\n".join(lines))
