"""Nodes as JSON, as in registries, files and snapshots (docs/discovery.md)."""

import json
import re
from collections.abc import Mapping
from typing import Any

from .nodes import Node, View

__all__ = [
    "LONGEST_TTL",
    "LONGEST_WAIT",
    "MAX_ANSWER",
    "SHORTEST_TTL",
    "USUAL_TTL",
    "describe_node",
    "encode",
    "is_epoch",
    "parse_json",
    "parse_node",
    "parse_view",
]

MAX_ANSWER = 1024 * 1024  # bytes of a listing
SHORTEST_TTL, USUAL_TTL, LONGEST_TTL = 1.0, 30.0, 3600.0  # seconds
LONGEST_WAIT = 60.0  # seconds of a long poll

_EPOCH = re.compile(r"[A-Za-z0-9_-]{1,64}")


def is_epoch(value: Any) -> bool:
    """Whether this is a valid epoch of a registry, which appears in headers and URLs."""
    return isinstance(value, str) and _EPOCH.fullmatch(value) is not None


def encode(value: Any) -> bytes:
    """Return a value as compact JSON; ValueError for NaN and the like."""
    return json.dumps(value, allow_nan=False, separators=(",", ":")).encode()


def describe_node(node: Node) -> dict[str, Any]:
    """Return a node as an object for `parse_node`; defaults are left out."""
    described: dict[str, Any] = {"address": node.address}
    if node.services:
        described["services"] = dict(node.services)
    if node.weight != 1:
        described["weight"] = node.weight
    if node.metadata:
        described["metadata"] = dict(node.metadata)
    return described


def parse_json(data: bytes) -> Any:
    """Return the value of a JSON document in UTF-8; ValueError says what is wrong with it."""
    try:
        return json.loads(data.decode())
    except UnicodeDecodeError:
        raise ValueError("the document is not UTF-8") from None
    except RecursionError:
        raise ValueError("the document is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"the document is not JSON: {error}") from None


def parse_node(value: Any) -> Node:
    """Return the node that a JSON object describes; ValueError names the value and the rule.

    Unknown fields are ignored, so that newer nodes can add some.
    """
    if not isinstance(value, Mapping):
        raise ValueError(f"a node must be an object, not {value!r:.40}")
    address = value.get("address")
    services = value.get("services", {})
    metadata = value.get("metadata", {})
    if not isinstance(address, str):
        raise ValueError(f"address must be a string, not {address!r:.40}")
    if not isinstance(services, Mapping) and not (
        isinstance(services, list) and all(isinstance(name, str) for name in services)
    ):
        raise ValueError(f"services must be an object or a list of names, not {services!r:.40}")
    if not isinstance(metadata, Mapping):
        raise ValueError(f"metadata must be an object, not {metadata!r:.40}")
    return Node(address, services, weight=value.get("weight", 1.0), metadata=metadata)


def parse_view(data: bytes, revision: int = 0) -> View:
    """Return the nodes in a file; ValueError names the first invalid one.

    The document is `{"nodes": [...]}` or just the list; each node is an object or an address.
    """
    value = parse_json(data)
    listed = value.get("nodes") if isinstance(value, dict) else value
    if not isinstance(listed, list):
        raise ValueError(f'the document must be {{"nodes": [...]}} or a list, not {value!r:.40}')
    nodes: dict[str, Node] = {}
    for place, described in enumerate(listed):
        try:
            node = Node(described) if isinstance(described, str) else parse_node(described)
        except ValueError as error:
            raise ValueError(f"nodes[{place}]: {error}") from None
        if node.address in nodes:
            raise ValueError(f"nodes[{place}]: {node.address} is listed twice")
        nodes[node.address] = node
    return View(nodes.values(), revision)
