"""`rpc-proto nodes`: lists the nodes in registries or in etcd, once or as they change."""

import asyncio
import contextlib
import signal
import sys
from argparse import Namespace
from collections.abc import AsyncIterator, Callable
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from rpc_cli.output.errors import CommandError
from rpc_cli.output.terminal import can_show, is_fancy, make_console, need_rich
from rpc_cli.output.values import to_json
from rpc_cli.setup.registries import Registries
from rpc_discovery.documents import describe_node, parse_node
from rpc_proto.texts import printable

if TYPE_CHECKING:
    from rich.console import Group

    from rpc_cli.setup.etcd import EtcdNodes

__all__ = ["nodes"]

_REFRESH = 1.0  # seconds
_WIDE = 10_000  # characters, when there is no terminal with a width


class _Known(NamedTuple):
    """The known nodes: entries by address, how many were omitted, what is wrong.

    `confirmed` is when they were last confirmed, if they are unconfirmed now.
    """

    entries: dict[str, dict[str, Any]]
    omitted: int
    errors: list[str]
    confirmed: float | None = None

    def what_changes(self) -> Any:
        """Return what requires a new table: not the ages, and only one reason per outage."""
        entries = [{**entry, "age": 0} for entry in self.entries.values()]
        return entries, self.omitted, self.confirmed or self.errors

    @property
    def stale(self) -> float | None:
        """For how many seconds the nodes have been unconfirmed."""
        return None if self.confirmed is None else monotonic() - self.confirmed


class _Source(Protocol):
    async def look(self) -> _Known:
        """Return the known nodes; CommandError if no source answers."""

    async def pause(self) -> None:
        """Wait until it is time to check again."""


def nodes(options: Namespace) -> int:
    """Show the nodes; with --watch until Ctrl-C."""
    if not options.json:
        need_rich()
    if options.watch:
        with contextlib.suppress(asyncio.CancelledError):
            asyncio.run(_watch(options))
    else:
        asyncio.run(_once(options))
    return 0


async def _once(options: Namespace) -> None:
    async with _open(options) as source:
        known = await source.look()
    for error in known.errors:
        print(f"rpc-proto: {error}", file=sys.stderr, flush=True)
    if options.json:
        print(_as_json(known, indent=2))
    else:
        _print(known)


@contextlib.asynccontextmanager
async def _open(options: Namespace) -> AsyncIterator[_Source]:
    if not options.etcd:
        yield _FromRegistries(Registries(options), options.service)
        return
    from rpc_cli.setup.etcd import EtcdNodes, etcd_discovery

    async with EtcdNodes(etcd_discovery(options, options.service)) as etcd:
        yield _FromEtcd(etcd)


class _FromRegistries:
    def __init__(self, registries: Registries, service: str | None) -> None:
        self._registries = registries
        self._service = service

    async def look(self) -> _Known:
        reports, errors = await self._registries.status(self._service)
        entries: dict[str, dict[str, Any]] = {}
        refused = 0
        omitted = 0
        for report in reports:
            left_out = report.get("omitted", 0)
            omitted = max(omitted, left_out if type(left_out) is int else 0)
            for value in report["entries"]:
                entry = _read_entry(value)
                if entry is None:
                    refused += 1
                    continue
                known = entries.get(entry["address"])
                if known is None or entry["age"] < known["age"]:
                    entries[entry["address"]] = entry
        if refused:
            errors = [*errors, f"{_count(refused, 'node')} skipped: not in a registry's format"]
        return _Known({at: entries[at] for at in sorted(entries)}, omitted, errors)

    async def pause(self) -> None:
        await asyncio.sleep(_REFRESH)


def _read_entry(value: Any) -> dict[str, Any] | None:
    """Return a registry's entry of a node; None if it is invalid."""
    try:
        entry = describe_node(parse_node(value))
        for name in ("age", "ttl", "flaps"):
            number = value[name]
            if isinstance(number, bool) or not isinstance(number, (int, float)):
                return None
            if not 0 <= number < 2**53:
                return None
            entry[name] = number
    except (KeyError, ValueError):
        return None
    return entry


class _FromEtcd:
    def __init__(self, etcd: "EtcdNodes") -> None:
        self._etcd = etcd

    async def look(self) -> _Known:
        found = {node.address: describe_node(node) for node in await self._etcd.nodes()}
        watch = self._etcd.watch
        errors = []
        confirmed = None
        if watch.stale_since is not None:
            errors.append(f"etcd {printable(watch.stale_reason)}")
            confirmed = watch.stale_since
        if watch.refused_nodes:
            errors.append(f"{_count(watch.refused_nodes, 'key')} skipped: not a node's")
        return _Known({at: found[at] for at in sorted(found)}, 0, errors, confirmed)

    async def pause(self) -> None:
        changed = self._etcd.changed
        changed.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_REFRESH):
                await changed.wait()


async def _watch(options: Namespace) -> None:
    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    async with _open(options) as source:
        if options.json:
            await _follow(source, _on_change(_print_json))
        elif not is_fancy(sys.stdout):
            await _follow(source, _on_change(_print))
        else:
            from rich.live import Live

            with Live(console=make_console(sys.stdout), auto_refresh=False) as live:
                await _follow(source, lambda known: live.update(_table(known), refresh=True))


async def _follow(source: _Source, show: Callable[[_Known], None]) -> None:
    known = _Known({}, 0, [])
    seen: float | None = None
    while True:
        try:
            known = await source.look()
            seen = monotonic()
        except CommandError as error:  # the last known nodes are still worth showing
            known = known._replace(errors=[str(error)], confirmed=seen)
        show(known)
        await source.pause()


def _on_change(show: Callable[[_Known], None]) -> Callable[[_Known], None]:
    """Show only changes."""
    shown: Any = None

    def show_changed(known: _Known) -> None:
        nonlocal shown
        if known.what_changes() != shown:
            shown = known.what_changes()
            show(known)
            sys.stdout.flush()

    return show_changed


def _print(known: _Known) -> None:
    console = make_console(sys.stdout)
    if not is_fancy(sys.stdout):
        console.width = _WIDE
    console.print(_table(known))


def _print_json(known: _Known) -> None:
    print(_as_json(known, indent=None))


def _as_json(known: _Known, indent: int | None) -> str:
    stale = known.stale
    value = {
        "nodes": list(known.entries.values()),
        "omitted": known.omitted,
        "errors": known.errors,
        "stale": None if stale is None else round(stale, 3),
    }
    return to_json(value, indent, ascii_only=not can_show(sys.stdout, "\u2713\U0001f600"))


def _table(known: _Known) -> "Group":
    from rich.console import Group
    from rich.table import Table

    table = Table(box=None, pad_edge=False, show_edge=False)
    for name in ("ADDRESS", "SERVICES"):
        table.add_column(name, overflow="fold")
    table.add_column("WEIGHT", justify="right")
    table.add_column("METADATA", overflow="fold")
    beats = any("age" in entry for entry in known.entries.values())  # etcd has none
    if beats:
        table.add_column("HEARTBEAT", justify="right")
        table.add_column("FLAPPED", justify="right")
    for entry in known.entries.values():
        metadata = entry.get("metadata", {})
        cells = [
            entry["address"],
            " ".join(sorted(entry.get("services", ()))),
            f"{entry.get('weight', 1):g}",
            " ".join(f"{name}={metadata[name]}" for name in sorted(metadata)),
        ]
        if beats:
            cells.append(f"{entry['age']:.1f} s of {entry['ttl']:g}")
            cells.append(_count(entry["flaps"], "time") if entry["flaps"] else "")
        table.add_row(*map(printable, cells))
    shown = _count(len(known.entries), "node") if known.entries else "no nodes"
    more = f", and {known.omitted} more" if known.omitted else ""
    stale = "" if known.stale is None else f", last confirmed {known.stale:.1f} s ago"
    return Group(table, shown + more + stale, *known.errors)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
