"""The registry's page, and its JSON form."""

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING
from urllib.parse import quote

from rpc_proto.http import Response
from rpc_proto.http.making import Pieces
from rpc_proto.pages.html import Html, card, page, tag, tile

if TYPE_CHECKING:
    from .registry import Entry, Registry

__all__ = ["report_registry", "show_registry"]

_MOST_ROWS = 1000
_MOST_BYTES = 256 * 1024  # characters of texts from nodes
_MOST_NAMES = 20  # services of a node, and metadata
_MOST_SERVICES = 100  # of the summary
_AT_ONCE = 50  # rows
_COLUMNS = ("Address", "Services", "Metadata", "Weight", "Last heartbeat", "Came back")


def _choose(registry: "Registry", service: str | None) -> tuple["list[Entry]", int]:
    """Return the entries to show, the most flapping first, and how many are omitted."""
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


def report_registry(registry: "Registry", service: str | None, now: float) -> Pieces:
    """Return what the page shows as JSON; ages and ttl in seconds."""
    from .documents import describe_node

    entries, omitted = _choose(registry, service)
    report = {
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
    if len(entries) > _AT_ONCE:
        yield
    return Response.json(report)


def show_registry(registry: "Registry", service: str | None, now: float) -> Pieces:
    """Return the page: nodes, services, age of the last heartbeat, flapping."""
    entries, omitted = _choose(registry, service)
    told = f"epoch {registry.epoch}, revision {registry.revision}"
    tiles = _tiles(registry, now)
    services = list(_services(registry, service))
    rows = []
    for count, entry in enumerate(entries, 1):
        rows.append(tag("tr", *_cells(entry, now)))
        if count % _AT_ONCE == 0:
            yield
    if not rows:
        nobody = "No node is registered." if service is None else "No node offers this service."
        rows.append(tag("tr", tag("td", nobody, colspan=len(_COLUMNS), class_="soft")))
    heads = (tag("th", name, class_="" if _is_wide(name) else "number") for name in _COLUMNS)
    parts = [
        tag("p", told, class_="soft"),
        tiles,
        *services,
        tag("h2", "Nodes" if service is None else f"Nodes that offer {service[:256]}"),
        card(tag("table", tag("thead", tag("tr", *heads)), tag("tbody", *rows))),
    ]
    if omitted:
        parts.append(tag("p", f"{omitted} more nodes are not shown.", class_="soft small"))
    lost = tag("p", "The registry does not respond; the data below is old.", id="lost")
    footer = (
        "Updates every 2 seconds. ",
        tag("a", "View as JSON", href=f"{registry.prefix}/status"),
    )
    return page(
        "Registry",
        tag("header", tag("h1", "Registry"), lost),
        tag("main", *parts),
        tag("footer", *footer, class_="soft small"),
    )


def _is_wide(column: str) -> bool:
    return column in ("Address", "Services", "Metadata")


def _tiles(registry: "Registry", now: float) -> Html:
    entries = registry.entries.values()
    late = sum(_is_late(entry, now) for entry in entries)
    flapping = sum(entry.flaps > 0 for entry in entries)
    return tag(
        "dl",
        tile("Nodes", f"{len(entries):,}", "registered"),
        tile("Late", f"{late:,}", "missed a heartbeat"),
        tile("Flapping", f"{flapping:,}", "disappeared and came back"),
        tile("Readers", f"{registry.waiting:,}", "waiting for a change"),
        class_="tiles",
    )


def _services(registry: "Registry", chosen: str | None) -> Iterable[Html]:
    """Return the services with their numbers of nodes, each a link to a page of these nodes."""
    offered = Counter(name for entry in registry.entries.values() for name in entry.node.services)
    if not offered:
        return
    yield tag("h2", "Services")
    links = [("All", "", registry.prefix)] if chosen is not None else []
    for name, count in offered.most_common(_MOST_SERVICES):
        links.append((name, f" {count:,}", f"{registry.prefix}?service={quote(name, safe='')}"))
    pills = (tag("a", name, tag("b", count), class_="pill", href=to) for name, count, to in links)
    yield tag("p", *(Html(f"{pill} ") for pill in pills))
    if len(offered) > _MOST_SERVICES:
        yield tag("p", f"and {len(offered) - _MOST_SERVICES} more", class_="soft small")


def _is_late(entry: "Entry", now: float) -> bool:
    # A heartbeat comes every third of the ttl, or sooner, and may take a moment.
    return now - entry.renewed_at > entry.ttl / 2


def _cells(entry: "Entry", now: float) -> tuple[Html, ...]:
    node = entry.node
    age = max(0.0, now - entry.renewed_at)
    metadata = [f"{name}={value}" for name, value in node.metadata.items()]
    share = f"{min(100.0, 100 * age / entry.ttl):.1f}%"
    is_late = _is_late(entry, now)
    kind = "late" if is_late else "spent"
    heartbeat = (
        tag("span", f"{age:.1f} s", class_="bad" if is_late else ""),
        f" of {entry.ttl:g} s",
        tag("svg", tag("rect", width=share, height="100%", class_=kind), class_="bar age"),
    )
    weight, flaps = f"{node.weight:g}", f"{entry.flaps:,}"
    return (
        tag("td", tag("code", node.address), class_="wide"),
        tag("td", _few(list(node.services)), class_="wide"),
        tag("td", _few(metadata), class_="wide soft"),
        tag("td", weight, class_="number", data_name="Weight"),
        tag("td", *heartbeat, class_="number", data_name="Last heartbeat"),
        tag(
            "td",
            flaps,
            class_="number bad" if entry.flaps else "number soft",
            data_name="Came back",
        ),
    )


def _few(texts: list[str]) -> str:
    rest = len(texts) - _MOST_NAMES
    return ", ".join(texts[:_MOST_NAMES]) + (f" and {rest} more" if rest > 0 else "")
