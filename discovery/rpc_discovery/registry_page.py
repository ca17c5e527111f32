"""The registry as a page, and the same as JSON."""

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from rpc_proto.http import Response
from rpc_proto.http.html import Html, page, tag

if TYPE_CHECKING:
    from .registry import Entry, Registry

__all__ = ["report_registry", "show_registry"]

_MOST_ROWS = 1000
_MOST_BYTES = 256 * 1024  # of what nodes say about themselves
_MOST_NAMES = 20  # services of a node, metadata, and services of the summary


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
    """Return what the page shows as JSON can hold it; ages and ttl in seconds."""
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


def show_registry(registry: "Registry", service: str | None, now: float) -> Response:
    """Return the page: nodes, services, age of the last heartbeat, flapping."""
    entries, omitted = _choose(registry, service)
    offered = Counter(name for entry in registry.entries.values() for name in entry.node.services)
    flapping = sum(entry.flaps > 0 for entry in registry.entries.values())
    parts = [
        tag(
            "dl",
            _tile("nodes", len(registry.entries)),
            _tile("services", len(offered)),
            _tile("revision", registry.revision),
            _tile("readers that wait", registry.waiting),
            _tile("nodes that came back", flapping),
            class_="tiles",
        ),
        tag("h2", "Services"),
        _table(
            ("service", "nodes"),
            (
                (tag("td", name, class_="wide code"), tag("td", count, class_="number"))
                for name, count in offered.most_common(_MOST_NAMES)
            ),
        ),
    ]
    if len(offered) > _MOST_NAMES:
        parts.append(tag("p", f"and {len(offered) - _MOST_NAMES} more", class_="soft small"))
    parts.append(tag("h2", "Nodes" if service is None else f"Nodes that offer {service[:256]}"))
    parts.append(
        _table(
            ("address", "services", "metadata", "weight", "last heartbeat", "ttl", "came back"),
            (_row(entry, now) for entry in entries),
        )
    )
    if omitted:
        parts.append(tag("p", f"and {omitted} more: ask for ?service=", class_="soft small"))
    footer = (
        "The same as JSON: ",
        tag("a", f"{registry.prefix}/status", href=f"{registry.prefix}/status"),
    )
    return page(
        "Registry",
        tag(
            "header",
            tag("h1", "Registry"),
            tag("span", f"epoch {registry.epoch}", class_="pill"),
            tag("p", "No answer: what is shown is old.", id="lost"),
        ),
        tag("main", *parts),
        tag("footer", *footer, class_="soft small"),
    )


def _row(entry: "Entry", now: float) -> tuple[Html, ...]:
    node = entry.node
    age = max(0.0, now - entry.renewed_at)
    late = age > entry.ttl * 2 / 3
    metadata = [f"{name}={value}" for name, value in node.metadata.items()]
    return (
        tag("td", node.address, class_="wide code"),
        tag("td", _few(list(node.services)), class_="wide"),
        tag("td", _few(metadata), class_="wide soft"),
        _figure("weight", f"{node.weight:g}"),
        _figure("last heartbeat", f"{age:.1f} s", late),
        _figure("ttl", f"{entry.ttl:g} s"),
        _figure("came back", entry.flaps, entry.flaps > 0),
    )


def _few(texts: list[str]) -> str:
    rest = len(texts) - _MOST_NAMES
    return ", ".join(texts[:_MOST_NAMES]) + (f" and {rest} more" if rest > 0 else "")


def _figure(name: str, value: Any, bad: bool = False) -> Html:
    return tag("td", value, class_="number bad" if bad else "number", data_name=name)


def _tile(name: str, value: int) -> Html:
    inner = (tag("dt", name), tag("dd", value, class_="value number"))
    return tag("div", *inner, class_="tile")


def _table(names: tuple[str, ...], rows: Iterator[tuple[Html, ...]]) -> Html:
    words = ("address", "services", "metadata", "service")
    head = (tag("th", name, class_="" if name in words else "number") for name in names)
    body = (tag("tr", *row) for row in rows)
    table = tag("table", tag("thead", tag("tr", *head)), tag("tbody", *body), class_="fold")
    return tag("div", tag("div", table, class_="scroll"), class_="card")
