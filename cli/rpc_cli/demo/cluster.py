"""The second part of `rpc-proto demo`: three servers in a registry or in etcd, and one dies."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING

from rpc_cli.output.latency import format_seconds

from .chart import draw
from .load import RUNTIMES, Load, call_asyncio
from .page import body_of, claim, code, result, say
from .processes import ANYWHERE, Started, start
from .sources import InEtcd, Source

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["show_cluster"]

_VICTIM = "gevent"
_QUIET = 1.5  # seconds in which nothing happens, to be seen in the chart
_DOWN = 0.5  # seconds until etcd is started again
_PATIENCE = 10.0  # seconds
_TTL = 1  # seconds


class _Cluster:
    def __init__(self, console: "Console", source: Source, first: int) -> None:
        self._console = console
        self._source = source
        self._headings = enumerate(source.headings, first)
        self._servers: dict[str, Started] = {}
        self._backend_of: dict[int, str] = {}  # by process
        self._marks: list[tuple[float, str]] = []  # what happened when

    def _head(self) -> None:
        number, heading = next(self._headings)
        say(self._console, f"{number}. {heading}")

    async def show(self) -> None:
        async with contextlib.AsyncExitStack() as stack:
            await self._start(stack)
            load = Load(self._source.discovery)
            try:
                began = await self._begin(load)
                await self._kill(load)
                await self._bring_back(load, stack)
                if isinstance(self._source, InEtcd):
                    await self._restart_etcd(load, self._source)
                ended = monotonic()
            finally:
                await load.stop()
        self._check(load)
        self._sum_up(load, began, ended)

    async def _start(self, stack: contextlib.AsyncExitStack) -> None:
        self._head()
        source = self._source
        command, started = await source.start(stack)
        commands = [self._command(backend) for backend in RUNTIMES]
        code(self._console, "\n".join([command, *commands]), "text")
        await asyncio.gather(*(self._serve(stack, backend) for backend in RUNTIMES))
        await self._known(3)
        result(
            self._console,
            [f"{source.name:<9} {started}"]
            + [f"{backend:<9} {self._servers[backend]}" for backend in RUNTIMES],
        )
        if isinstance(source, InEtcd):
            command, lines = source.keys()
            code(self._console, command, "text")
            result(self._console, lines)

    def _command(self, backend: str, listen: str = ANYWHERE) -> str:
        words = ["rpc-proto", *self._arguments(backend, listen)]
        return f"{' '.join(words[:4])} \\\n    {' '.join(words[4:])}"

    def _arguments(self, backend: str, listen: str = ANYWHERE) -> list[str]:
        return [
            "serve",
            f"rpc_cli.demo.services:{backend.title()}Work=Work",
            f"--backend={backend}",
            listen,
            self._source.option,
            f"--ttl={_TTL}",
        ]

    async def _serve(
        self, stack: contextlib.AsyncExitStack, backend: str, listen: str = ANYWHERE
    ) -> None:
        server = await stack.enter_async_context(start(*self._arguments(backend, listen)))
        self._servers[backend] = server
        self._backend_of[server.process.pid] = backend

    def _check(self, load: Load) -> None:
        claim(not load.errors, "no call fails", "; ".join(load.errors)[:300])

    async def _begin(self, load: Load) -> float:
        self._head()
        code(self._console, f"{self._source.python}\n{body_of(call_asyncio)}")
        pids = [server.process.pid for server in self._servers.values()]
        await _until(lambda: load.seen(RUNTIMES, pids), "each caller reaches each server", load)
        began = monotonic()
        await asyncio.sleep(_QUIET)
        result(self._console, self._shares(load, began, monotonic(), 0.2))
        return began

    async def _kill(self, load: Load) -> None:
        self._head()
        victim = self._servers[_VICTIM]
        code(self._console, f"kill -KILL {victim.process.pid}", "text")
        killed = self._mark(f"{_VICTIM} killed")
        victim.process.kill()
        await self._known(2)
        forgotten = monotonic()
        await asyncio.sleep(_QUIET)
        late = [answer.at for answer in load.answers if answer.process == victim.process.pid]
        self._check(load)
        others = self._shares(load, killed + _QUIET / 2, monotonic(), 0.4, without=_VICTIM)
        result(
            self._console,
            [
                "no call failed",
                f"the dead server's last answer: {_when(killed, max(late))} the signal",
                f"{self._source.name} forgot it {_when(killed, forgotten)} that",
                *others,
            ],
        )

    async def _bring_back(self, load: Load, stack: contextlib.AsyncExitStack) -> None:
        self._head()
        listen = f"--listen={self._servers[_VICTIM].address}"
        code(self._console, self._command(_VICTIM, listen), "text")
        await self._serve(stack, _VICTIM, listen)
        back = self._mark("back")
        pid = self._servers[_VICTIM].process.pid
        await _until(lambda: load.seen(RUNTIMES, [pid]), "each caller reaches it again", load)
        reached = monotonic()
        await asyncio.sleep(2 * _QUIET)
        ended = monotonic()
        result(
            self._console,
            [
                f"all callers had answers of it {_when(back, reached)} it was back",
                *self._shares(load, ended - _QUIET / 2, ended, 0.2),
            ],
        )

    async def _restart_etcd(self, load: Load, etcd: InEtcd) -> None:
        self._head()
        log = "# servers and callers log that, and go on"
        code(self._console, f"kill -KILL {etcd.process}  {log}", "text")
        killed = self._mark("etcd killed")
        etcd.kill()
        await asyncio.sleep(_DOWN)
        claim(not etcd.confirmed, "nothing confirms the nodes meanwhile", "they are confirmed")
        back = self._mark("back")
        await etcd.revive()
        await _until(lambda: etcd.confirmed, "the nodes are confirmed again", load)
        confirmed = monotonic()
        # Leases begin again when etcd does: only what is renewed is still there after this time.
        await asyncio.sleep(etcd.shortest_lease + 0.5)
        later = format_seconds(monotonic() - confirmed)
        await self._known(3)
        self._check(load)
        result(
            self._console,
            [
                f"no call failed in the {format_seconds(confirmed - killed)} without it:",
                *self._shares(load, killed, confirmed, 0.2),
                f"the nodes were confirmed again {_when(back, confirmed)} its start",
                f"{later} later, when no lease lasts that long, all are known: servers renew them",
            ],
        )

    def _mark(self, text: str) -> float:
        now = monotonic()
        self._marks.append((now, text))
        return now

    def _shares(
        self, load: Load, since: float, until: float, least: float, without: str = ""
    ) -> list[str]:
        """Return lines that say who answered how much, after a look whether it is enough."""
        lines = []
        for runtime in RUNTIMES:
            counts = Counter(
                self._backend_of[answer.process]
                for answer in load.answers
                if answer.runtime == runtime and since <= answer.at < until
            )
            total = sum(counts.values())
            parts = {backend: counts[backend] / max(total, 1) for backend in RUNTIMES}
            shown = ", ".join(f"{backend} {parts[backend]:.0%}" for backend in RUNTIMES)
            for backend in RUNTIMES:
                claim(
                    parts[backend] >= least if backend != without else not parts[backend],
                    f"of the {runtime} callers' calls the {backend} server answers "
                    + (f"{least:.0%} at least" if backend != without else "none"),
                    shown,
                )
            lines.append(f"{runtime + ' callers:':<17} {total:>5,} calls answered by {shown}")
        return lines

    def _sum_up(self, load: Load, began: float, ended: float) -> None:
        self._head()
        claim(load.repeated > 0, "calls were repeated at another server", "none")
        times: dict[str, list[float]] = {backend: [] for backend in RUNTIMES}
        for answer in load.answers:
            if began <= answer.at < ended:
                times[self._backend_of[answer.process]].append(answer.at - began)
        marks = [(at - began, text) for at, text in self._marks]
        result(
            self._console,
            [
                f"{len(load.answers):,} idempotent calls, and none failed",
                f"{load.repeated} were repeated at another server when theirs was killed",
            ],
        )
        for line in draw(times, ended - began, marks):
            self._console.print(f"  {line}", soft_wrap=True)
        self._console.print()

    async def _known(self, count: int) -> None:
        """Wait until so many nodes are known."""
        known = -1
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_PATIENCE):
                while known != count:
                    known = await self._source.count()
                    await asyncio.sleep(0.02)
        claim(known == count, f"{self._source.name} knows {count} nodes", str(known))


async def show_cluster(console: "Console", source: Source, first: int) -> int:
    """Show it all, with numbers from `first` on; return how many steps that were."""
    await _Cluster(console, source, first).show()
    return len(source.headings)


async def _until(right: Callable[[], bool], what: str, load: Load) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_PATIENCE):
            while not right() and not load.errors:  # noqa: ASYNC110  # threads tell it
                await asyncio.sleep(0.01)
    got = "; ".join(load.errors)[:300] or f"not within {_PATIENCE:g} s"
    claim(right() and not load.errors, what, got)


def _when(event: float, now: float) -> str:
    side = "after" if now >= event else "before"
    return f"{format_seconds(abs(now - event))} {side}"
