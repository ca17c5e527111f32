"""What is known of the servers: one node, and the set of all of them at a revision."""

from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

from rpc_proto import parse_address

__all__ = ["Node", "View"]

_LONGEST_NAME = 256
_MOST_SERVICES = 1000
_MOST_METADATA = 64
_MOST_NODES = 10_000


def _check_text(what: str, text: Any) -> None:
    if not isinstance(text, str) or not text or len(text) > _LONGEST_NAME or not text.isprintable():
        raise ValueError(
            f"{what} must be 1 to {_LONGEST_NAME} printable characters, not {str(text)[:40]!r}"
        )


class Node:
    """One server: where it is, what it offers, and how much of the load it wants.

    `address` as in `rpc_proto.parse_address`; `services` are names; `weight` is from 0 (none) to
    1000, compared with that of other nodes; `metadata` maps strings to strings. ValueError for
    anything else, so that what a registry or a stranger says can do no harm.
    """

    __slots__ = ("address", "metadata", "services", "weight")

    def __init__(
        self,
        address: str,
        services: Iterable[str] = (),
        *,
        weight: float = 1.0,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        self.address = str(parse_address(address))
        self.services = frozenset(services)
        self.metadata: Mapping[str, str] = MappingProxyType(dict(metadata or {}))
        self.weight = weight
        if len(self.services) > _MOST_SERVICES or len(self.metadata) > _MOST_METADATA:
            raise ValueError(
                f"a node has at most {_MOST_SERVICES} services and {_MOST_METADATA} metadata, "
                f"not {len(self.services)} and {len(self.metadata)}"
            )
        for service in self.services:
            _check_text("a service", service)
        for name, value in self.metadata.items():
            _check_text("the name of metadata", name)
            _check_text("metadata", value)
        if isinstance(weight, bool) or not isinstance(weight, (int, float)):
            raise ValueError(f"weight must be a number, not {weight!r:.40}")
        if not 0 <= weight <= 1000:
            raise ValueError(f"weight must be from 0 to 1000, not {weight!r}")

    def _key(self) -> tuple[Any, ...]:
        return self.address, self.services, self.weight, frozenset(self.metadata.items())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Node) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def __repr__(self) -> str:
        return f"<Node {self.address} {', '.join(sorted(self.services))}>"


class View:
    """The nodes known at one revision, by address; it never changes.

    At most 10,000 nodes: ValueError for more, so that a bad answer is rejected as a whole.
    """

    __slots__ = ("_nodes", "revision")

    def __init__(self, nodes: Iterable[Node] = (), revision: int = 0) -> None:
        self.revision = revision
        self._nodes: dict[str, Node] = {}
        for node in nodes:
            self._nodes[node.address] = node
            if len(self._nodes) > _MOST_NODES:
                raise ValueError(f"a view has at most {_MOST_NODES} nodes")

    def __len__(self) -> int:
        return len(self._nodes)

    def __iter__(self) -> Iterator[Node]:
        return iter(self._nodes.values())

    def __contains__(self, address: str) -> bool:
        return address in self._nodes

    def offering(self, service: str) -> list[Node]:
        """Return the nodes that offer a service, in a steady order."""
        return [node for node in self._nodes.values() if service in node.services]

    def merged(self, other: "View") -> "View":
        """Return the nodes of both; where both know an address, the higher revision is right."""
        older, newer = (self, other) if self.revision <= other.revision else (other, self)
        return View((*older, *newer), newer.revision)

    def changes(self, newer: "View") -> tuple[list[Node], list[Node]]:
        """Return what to add and what to take away to get from this view to a newer one."""
        added = [node for node in newer if self._nodes.get(node.address) != node]
        removed = [node for node in self if newer._nodes.get(node.address) != node]
        return added, removed
