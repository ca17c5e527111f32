"""The registry as JSON, for who wants to see more than the nodes."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .registry import Entry, Registry

__all__ = ["report_registry"]

_MOST_ROWS = 1000
_MOST_BYTES = 256 * 1024  # of what nodes say about themselves


def _choose(registry: "Registry", service: str | None) -> tuple["list[Entry]", int]:
    """Return the entries to show, those that flap most first, and how many are left out."""
    entries = [
        entry
        for entry in registry.entries.values()
        if service is None or service in entry.node.services
    ]
    entries.sort(key=lambda entry: (-entry.flaps, entry.node.address))
    room = _MOST_BYTES
    for count, entry in enumerate(entries):
        room -= len(entry.text)
        if count == _MOST_ROWS or room < 0:
            return entries[:count], len(entries) - count
    return entries, 0


def report_registry(registry: "Registry", service: str | None, now: float) -> dict[str, Any]:
    """Return the registry and its nodes as JSON can hold it; ages and ttl in seconds."""
    from .documents import describe_node

    entries, omitted = _choose(registry, service)
    return {
        "epoch": registry.epoch,
        "revision": registry.revision,
        "nodes": len(registry.entries),
        "waiting": registry.waiting,
        "omitted": omitted,
        "entries": [
            {
                **describe_node(entry.node),
                "ttl": entry.ttl,
                "age": round(max(0.0, now - entry.renewed_at), 3),
                "flaps": entry.flaps,
            }
            for entry in entries
        ],
    }
