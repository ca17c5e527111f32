"""Nodes and views: a server, and the set of all servers at one revision."""

from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

from rpc_proto import parse_address

__all__ = ["MOST_NODES", "Node", "View", "hash_signatures"]

_LONGEST_NAME = 256
_LONGEST_HASH = 64
_MOST_SERVICES = 1000
_MOST_METADATA = 64
MOST_NODES = 10_000


def _check_text(what: str, text: Any, longest: int = _LONGEST_NAME) -> None:
    if not isinstance(text, str) or not text or len(text) > longest or not text.isprintable():
        raise ValueError(
            f"{what} must be 1 to {longest} printable characters, not {str(text)[:40]!r}"
        )


def hash_signatures(signatures: Mapping[str, str]) -> str:
    """Return a hash, 12 characters, of the names and signatures of a service's methods.

    `signatures` maps the name of each method to its signature as text.
    """
    from hashlib import sha256

    lines = "".join(f"{name}{signatures[name]}\n" for name in sorted(signatures))
    return sha256(lines.encode("utf-8", "surrogatepass")).hexdigest()[:12]


class Node:
    """A server: its address, the services it offers, and its share of the load.

    `address` is as in `rpc_proto.parse_address`; `services` maps names to hashes of their methods
    (see `hash_signatures`), "" if unknown; a list of names is accepted, too. `weight` is from 0
    (no calls) to 1000, relative to other nodes; `metadata` maps strings to strings. ValueError for
    anything else, so that malformed data from a registry can do no harm.
    """

    __slots__ = ("address", "metadata", "services", "weight")

    def __init__(
        self,
        address: str,
        services: Iterable[str] | Mapping[str, str] = (),
        *,
        weight: float = 1.0,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        self.address = str(parse_address(address))
        if not self.address.isprintable():
            raise ValueError(f"address must be printable characters, not {self.address[:80]!r}")
        if isinstance(services, str):
            raise ValueError(f"services must be several names, not the text {services[:40]!r}")
        self.services: Mapping[str, str] = MappingProxyType(
            dict(services) if isinstance(services, Mapping) else dict.fromkeys(services, "")
        )
        self.metadata: Mapping[str, str] = MappingProxyType(dict(metadata or {}))
        self.weight = weight
        if len(self.services) > _MOST_SERVICES or len(self.metadata) > _MOST_METADATA:
            raise ValueError(
                f"a node has at most {_MOST_SERVICES} services and {_MOST_METADATA} metadata, "
                f"not {len(self.services)} and {len(self.metadata)}"
            )
        for service, signatures in self.services.items():
            _check_text("a service", service)
            if signatures != "":
                _check_text(f"the hash of {service}", signatures, _LONGEST_HASH)
        for name, value in self.metadata.items():
            _check_text("the name of metadata", name)
            _check_text("metadata", value)
        if isinstance(weight, bool) or not isinstance(weight, (int, float)):
            raise ValueError(f"weight must be a number, not {weight!r:.40}")
        if not 0 <= weight <= 1000:
            raise ValueError(f"weight must be from 0 to 1000, not {weight!r}")

    def replace(
        self,
        services: Iterable[str] | Mapping[str, str] | None = None,
        weight: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> "Node":
        """Return a copy of this node with the given fields replaced."""
        return Node(
            self.address,
            self.services if services is None else services,
            weight=self.weight if weight is None else weight,
            metadata=self.metadata if metadata is None else metadata,
        )

    def _key(self) -> tuple[Any, ...]:
        return (
            self.address,
            frozenset(self.services.items()),
            self.weight,
            frozenset(self.metadata.items()),
        )

    def __eq__(self, other: object) -> bool:
        if self is other:  # usually true: views share the nodes that did not change
            return True
        return isinstance(other, Node) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def __repr__(self) -> str:
        return f"<Node {self.address} {', '.join(sorted(self.services))}>"


class View:
    """The nodes at one revision, by address; immutable.

    ValueError for more than 10,000 nodes, so that a bad answer is rejected as a whole.
    """

    __slots__ = ("_nodes", "revision")

    def __init__(self, nodes: Iterable[Node] = (), revision: int = 0) -> None:
        self.revision = revision
        self._nodes: dict[str, Node] = {}
        for node in nodes:
            self._nodes[node.address] = node
            if len(self._nodes) > MOST_NODES:
                raise ValueError(f"a view has at most {MOST_NODES} nodes")

    def __len__(self) -> int:
        return len(self._nodes)

    def __iter__(self) -> Iterator[Node]:
        return iter(self._nodes.values())

    def __contains__(self, address: str) -> bool:
        return address in self._nodes

    def offering(self, service: str) -> list[Node]:
        """Return the nodes that offer a service, in a stable order."""
        return [node for node in self._nodes.values() if service in node.services]

    def changes(self, newer: "View") -> tuple[list[Node], list[Node]]:
        """Return what to add to this view, and what to remove, to get a newer one."""
        added = [node for node in newer if self._nodes.get(node.address) != node]
        removed = [node for node in self if newer._nodes.get(node.address) != node]
        return added, removed
