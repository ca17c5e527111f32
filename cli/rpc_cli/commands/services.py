"""`rpc-proto services`: lists the services of a server, or of many nodes."""

import asyncio
import ssl
import sys
from argparse import Namespace
from typing import NotRequired, TypedDict

from rpc_asyncio import BalancedClient
from rpc_cli.commandline.groups import has_nodes
from rpc_cli.output.errors import CommandError, explain
from rpc_cli.output.terminal import can_show
from rpc_cli.output.values import to_json
from rpc_cli.setup.connect import balance, client_tls, connect, tls_for_nodes
from rpc_discovery import Node
from rpc_proto import CallError, Unimplemented
from rpc_proto.texts import printable

__all__ = ["services"]

_METHOD = "rpc.Introspection.services"
_SILENT = "does not list its services (it was started without introspection)"
_TRIES = 3  # nodes to ask for the same service


class _Described(TypedDict):
    signature: str
    doc: str
    kind: NotRequired[str]
    takes: NotRequired[str]
    gives: NotRequired[str]


_Offer = dict[str, dict[str, _Described]]


def services(options: Namespace) -> int:
    """Ask the server or the nodes and print the answer, as text or as JSON."""
    counts: dict[str, str] = {}
    if has_nodes(options):
        offer, counts = asyncio.run(_ask_nodes(options, tls_for_nodes(options)))
    else:
        offer = asyncio.run(_ask(options, client_tls(options)))
    if options.json:
        print(to_json(offer, ascii_only=not can_show(sys.stdout, "\u2713\U0001f600")))
    else:
        print(
            "\n\n".join(
                _describe(name + counts.get(name, ""), methods) for name, methods in offer.items()
            )
        )
    return 0


async def _ask(options: Namespace, tls: ssl.SSLContext | None) -> _Offer:
    async with await connect(options, tls) as client:
        try:
            offer: _Offer = await client.call(_METHOD, timeout=options.timeout, returns=_Offer)
        except Unimplemented:
            raise CommandError(f"this server {_SILENT}") from None
    return offer


async def _ask_nodes(
    options: Namespace, tls: ssl.SSLContext | None
) -> tuple[_Offer, dict[str, str]]:
    """Return the services of nodes, and how many nodes offer each.

    Of nodes with the same methods, one is asked, and another if it does not answer. If the nodes of
    a service differ, the methods of the majority are shown.
    """
    from rpc_cli.setup.registries import find_nodes

    variants: dict[str, dict[str, list[Node]]] = {}
    for node in await find_nodes(options):
        for name, methods in node.services.items():
            variants.setdefault(name, {}).setdefault(methods, []).append(node)
    offer: _Offer = {}
    counts: dict[str, str] = {}
    known: dict[str, _Offer] = {}
    nodes = {node.address: node for v in variants.values() for n in v.values() for node in n}
    async with balance(options, nodes.values(), tls) as client:
        for name in sorted(variants):
            most = max(variants[name].values(), key=len)
            counts[name] = _count(most, sum(map(len, variants[name].values())))
            offer[name] = await _ask_one_of(most, name, client, known, options.timeout)
    return offer, counts


async def _ask_one_of(
    nodes: list[Node],
    service: str,
    client: BalancedClient,
    known: dict[str, _Offer],
    timeout: float,
) -> dict[str, _Described]:
    # One that was asked for another service is as good.
    nodes = sorted(nodes, key=lambda node: node.address not in known)[:_TRIES]
    error: CallError | None = None
    for node in nodes:
        try:
            if node.address not in known:
                known[node.address] = await client.call(
                    _METHOD, node=node.address, timeout=timeout / len(nodes), returns=_Offer
                )
        except Unimplemented:
            raise CommandError(f"the node {node.address} {_SILENT}") from None
        except CallError as failed:
            error = failed
        else:
            return known[node.address].get(service, {})
    assert error is not None
    raise CommandError(f"no node of {service} responds: {explain(error)}")


def _count(most: list[Node], all_of_them: int) -> str:
    others = all_of_them - len(most)
    nodes = f"{len(most)} node{'' if len(most) == 1 else 's'}"
    return f"  ({nodes}{f'; {others} with other methods' if others else ''})"


def _describe(name: str, methods: dict[str, _Described]) -> str:
    lines = [name]
    for short, described in methods.items():
        kind = described.get("kind", "unary")
        note = "" if kind == "unary" else f"  [{kind.replace('_', ' ')}]"
        lines.append(f"  {short}{described['signature']}{note}")
        lines += [f"      {line}".rstrip() for line in described["doc"].splitlines()]
    return printable("\n".join(lines), "\n")
