"""Nodes as keys and values: `PREFIX/SERVICE/ADDRESS` and the node's description as JSON."""

from collections.abc import Iterable
from urllib.parse import unquote

from rpc_discovery.documents import describe_node, encode, parse_json, parse_node
from rpc_discovery.nodes import Node

__all__ = ["Entry", "keys_of", "merge", "parse_prefix", "read_entry", "start_of"]


class Entry:
    """One key: the node as this key describes it, offering this service.

    `node` is None if the key or its value is invalid; `lease` is 0 for a key put by hand.
    """

    __slots__ = ("lease", "node", "revision")

    def __init__(self, node: Node | None, revision: int, lease: int) -> None:
        self.node = node
        self.revision = revision
        self.lease = lease


def parse_prefix(prefix: str | bytes) -> bytes:
    """Return the prefix of all keys as bytes; ValueError if it is invalid."""
    rule = f"prefix must be text or bytes, at most 256, not {prefix!r:.80}"
    if not isinstance(prefix, (str, bytes)) or len(prefix) > 256:
        raise ValueError(rule)
    try:
        data = prefix.encode() if isinstance(prefix, str) else prefix
    except UnicodeEncodeError:  # half a character
        raise ValueError(rule) from None
    return data.rstrip(b"/")


def start_of(prefix: bytes, service: str | None) -> bytes:
    """Return the prefix of all keys, or of those of one service."""
    return prefix + b"/" if service is None else prefix + b"/" + _quote(service) + b"/"


def keys_of(prefix: bytes, node: Node) -> dict[bytes, bytes]:
    """Return the keys and values of a node: one for each service, or one if it offers none."""
    value = encode(describe_node(node))
    address = node.address.encode()
    return {start_of(prefix, service) + address: value for service in node.services or [""]}


def read_entry(prefix: bytes, key: bytes, value: bytes, revision: int, lease: int) -> Entry:
    """Return the entry of any key."""
    try:
        service, slash, _ = key[len(prefix) + 1 :].partition(b"/")
        if not slash:
            raise ValueError("the key must be PREFIX/SERVICE/NODE")
        name = unquote(service.decode(), errors="strict")
        described = parse_node(parse_json(value))
        offered = {name: described.services.get(name, "")} if name else {}
        node = Node(
            described.address, offered, weight=described.weight, metadata=described.metadata
        )
    except ValueError:
        return Entry(None, revision, lease)
    return Entry(node, revision, lease)


def merge(entries: Iterable[Entry]) -> Node:
    """Return the node that the keys of one address describe: the services of all of them.

    Everything else is taken from the key that was written last.
    """
    known = [(entry.revision, entry.node) for entry in entries if entry.node is not None]
    newest = max(known, key=lambda one: one[0])[1]
    if len(known) == 1:
        return newest
    services: dict[str, str] = {}
    for _, node in sorted(known, key=lambda one: one[0]):
        services |= node.services
    return Node(newest.address, services, weight=newest.weight, metadata=newest.metadata)


def _quote(service: str) -> bytes:
    """Return a name as a part of a key, without slashes."""
    return service.replace("%", "%25").replace("/", "%2F").encode()
