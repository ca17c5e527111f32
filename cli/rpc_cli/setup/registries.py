"""Registries for commands: one question to each, and the merged answer."""

import asyncio
import ssl
import sys
from argparse import Namespace
from typing import Any
from urllib.parse import quote

from rpc_asyncio.carriers import fetch
from rpc_cli.output.errors import CommandError, UsageError
from rpc_common.discovery.carriers import describe
from rpc_discovery import Node
from rpc_discovery.documents import MAX_ANSWER, parse_json, parse_node
from rpc_discovery.polling import explain, parse_registry
from rpc_proto.http.client import Fetch
from rpc_proto.texts import printable

from .tls import client_context

__all__ = ["Registries", "find_nodes"]

_TIMEOUT = 5.0  # seconds


async def find_nodes(options: Namespace) -> list[Node]:
    """Return the nodes that registries know, or etcd; CommandError if none of them answers."""
    if not options.etcd:
        return await Registries(options).nodes()
    from .etcd import EtcdNodes, etcd_discovery

    async with EtcdNodes(etcd_discovery(options)) as etcd:
        return await etcd.nodes()


class Registries:
    """The registries that the options name."""

    def __init__(self, options: Namespace) -> None:
        self.urls: list[str] = options.registry
        self._headers: list[tuple[str, str]] = []
        token = options.registry_token
        if token is not None:
            if not (token.isascii() and token.isprintable()):
                raise UsageError("a registry's token must be printable ASCII")
            self._headers = [("Authorization", f"Bearer {token}")]
        self._tls: ssl.SSLContext | None = None
        if options.registry_ca is not None:
            self._tls = client_context(options.registry_ca, None, None)

    async def nodes(self) -> list[Node]:
        """Return all nodes; of one that several registries know what the first of them says.

        CommandError if no registry answers; of one of several that does not a warning is written.
        """
        views, errors = await self._ask_all("/nodes")
        for error in errors:
            print(f"rpc-proto: {error}", file=sys.stderr, flush=True)
        nodes: dict[str, Node] = {}
        for view in views:
            for node in _read_nodes(view):
                nodes.setdefault(node.address, node)
        return list(nodes.values())

    async def status(self, service: str | None) -> tuple[list[dict[str, Any]], list[str]]:
        """Return what each registry that answers says of itself, and why others do not.

        CommandError if none answers.
        """
        query = "" if service is None else f"?service={quote(service, safe='')}"
        bodies, errors = await self._ask_all(f"/status{query}")
        return [parse_json(body) for body in bodies], errors

    async def _ask_all(self, path: str) -> tuple[list[bytes], list[str]]:
        asked = [self._ask(url, path) for url in self.urls]
        outcomes = await asyncio.gather(*asked, return_exceptions=True)
        bodies: list[bytes] = []
        errors: list[str] = []
        for outcome in outcomes:
            if isinstance(outcome, CommandError):
                errors.append(str(outcome))
            elif isinstance(outcome, BaseException):
                raise outcome
            else:
                bodies.append(outcome)
        if not bodies:
            raise CommandError("; ".join(errors))
        return bodies, errors

    async def _ask(self, url: str, path: str) -> bytes:
        try:
            asked = Fetch("GET", parse_registry(url) + path, self._headers, max_answer=MAX_ANSWER)
            async with asyncio.timeout(_TIMEOUT):
                await fetch(asked, self._tls)
            if asked.status != 200:
                raise ValueError(explain(asked.status, asked.body))
            value = parse_json(asked.body)
            listed = (
                value.get("entries" if "/status" in path else "nodes")
                if isinstance(value, dict)
                else None
            )
            if not isinstance(listed, list):
                raise ValueError("what answers there is not a registry")
        except (OSError, ValueError) as error:
            raise CommandError(f"registry {url}: {printable(describe(error, _TIMEOUT))}") from None
        return asked.body


def _read_nodes(view: bytes) -> list[Node]:
    """Return the good nodes of a listing; a warning tells of the others."""
    nodes: list[Node] = []
    refused: list[str] = []
    for value in parse_json(view)["nodes"]:
        try:
            nodes.append(parse_node(value))
        except ValueError as error:
            refused.append(str(error))
    if refused:
        print(
            f"rpc-proto: {len(refused)} of the registry's nodes left out: {printable(refused[0])}",
            file=sys.stderr,
            flush=True,
        )
    return nodes
