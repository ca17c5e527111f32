"""`rpc-proto nodes`: what registries know, once or as it changes."""

import asyncio
import signal
import sys
from argparse import Namespace
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from .errors import CommandError
from .registries import Registries
from .terminal import can_show, is_fancy, make_console, need_rich
from .values import printable, to_json

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["nodes"]

_REFRESH = 1.0  # seconds
_WIDE = 10_000  # characters: nobody is there whose terminal would end


class _Known(NamedTuple):
    """What registries know: their entries by address, how many they left out, who failed."""

    entries: dict[str, dict[str, Any]]
    omitted: int
    errors: list[str]

    def what_changes(self) -> Any:
        """Return what is worth a new table: all but the ages."""
        entries = [{**entry, "age": 0} for entry in self.entries.values()]
        return entries, self.omitted, self.errors


def nodes(options: Namespace) -> int:
    """Show the nodes; with --watch until Ctrl-C."""
    if not options.json:
        need_rich()
    asyncio.run(_watch(options) if options.watch else _once(options))
    return 0


async def _once(options: Namespace) -> None:
    known = await _ask(Registries(options), options.service)
    for error in known.errors:
        print(f"rpc-proto: {error}", file=sys.stderr, flush=True)
    if options.json:
        print(_as_json(known, indent=2))
    else:
        _print(known)


async def _ask(registries: Registries, service: str | None) -> _Known:
    reports, errors = await registries.status(service)
    entries: dict[str, dict[str, Any]] = {}
    try:
        for report in reports:
            for entry in report["entries"]:
                known = entries.get(entry["address"])
                if known is None or entry["age"] < known["age"]:
                    entries[entry["address"]] = entry
        omitted = max(report["omitted"] for report in reports)
    except (KeyError, TypeError):
        raise CommandError("what answers there is no registry") from None
    return _Known({at: entries[at] for at in sorted(entries)}, omitted, errors)


async def _watch(options: Namespace) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    registries = Registries(options)
    if options.json:
        await _follow(registries, options.service, stop, _on_change(_print_json))
    elif not is_fancy(sys.stdout):
        await _follow(registries, options.service, stop, _on_change(_print))
    else:
        from rich.live import Live

        with Live(console=make_console(sys.stdout), auto_refresh=False) as live:
            await _follow(
                registries,
                options.service,
                stop,
                lambda known: live.update(_table(known), refresh=True),
            )


async def _follow(
    registries: Registries, service: str | None, stop: asyncio.Event, show: Callable[[_Known], None]
) -> None:
    known = _Known({}, 0, [])
    while not stop.is_set():
        try:
            known = await _ask(registries, service)
        except CommandError as error:  # what was known last is still worth to be seen
            known = known._replace(errors=[str(error)])
        show(known)
        try:
            async with asyncio.timeout(_REFRESH):
                await stop.wait()
        except TimeoutError:
            pass


def _on_change(show: Callable[[_Known], None]) -> Callable[[_Known], None]:
    """Show only what differs from what was shown before."""
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
    value = {
        "nodes": list(known.entries.values()),
        "omitted": known.omitted,
        "errors": known.errors,
    }
    return to_json(value, indent, ascii_only=not can_show(sys.stdout, "\u2713\U0001f600"))


def _table(known: _Known) -> "Table":
    from rich.table import Table

    table = Table(box=None, pad_edge=False, show_edge=False, caption_justify="left")
    for name in ("ADDRESS", "SERVICES"):
        table.add_column(name, overflow="fold")
    table.add_column("WEIGHT", justify="right")
    table.add_column("METADATA", overflow="fold")
    table.add_column("HEARTBEAT", justify="right")
    table.add_column("FLAPPED", justify="right")
    for entry in known.entries.values():
        metadata = entry.get("metadata", {})
        cells = [
            entry["address"],
            " ".join(entry.get("services", ())),
            f"{entry.get('weight', 1):g}",
            " ".join(f"{name}={metadata[name]}" for name in sorted(metadata)),
            f"{entry['age']:.1f} s of {entry['ttl']:g}",
            _count(entry["flaps"], "time") if entry["flaps"] else "",
        ]
        table.add_row(*map(printable, cells))
    shown = _count(len(known.entries), "node") if known.entries else "no nodes"
    more = f", and {known.omitted} more" if known.omitted else ""
    table.caption = "\n".join([shown + more, *known.errors])
    return table


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
