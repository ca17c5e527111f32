"""The second part of `rpc-proto demo`: a registry, three servers, and one of them dies."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING

from rpc_asyncio.pump import fetch
from rpc_discovery.documents import parse_view
from rpc_proto.http.client import Fetch

from .demo_chart import draw
from .demo_load import RUNTIMES, Load, call_asyncio
from .demo_page import body_of, claim, code, result, say
from .demo_processes import ANYWHERE, Started, start
from .latency import format_seconds

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["HEADINGS", "show_cluster"]

HEADINGS = (
    "A registry, and three servers that make themselves known there, one on each backend",
    "Callers name a service, no address: the same client in asyncio, gevent and threads",
    "One of the servers is killed (SIGKILL) while all of them call",
    "It comes back, and gets its share of the calls again, little by little",
    "Where the calls went",
)

_VICTIM = "gevent"
_QUIET = 1.5  # seconds in which nothing happens, to be seen in the chart
_PATIENCE = 10.0  # seconds
_TTL = 1  # seconds


class _Cluster:
    def __init__(self, console: "Console", first: int) -> None:
        self._console = console
        self._number = first
        self._registry = ""
        self._servers: dict[str, Started] = {}
        self._backend_of: dict[int, str] = {}  # by process

    def _head(self, heading: str) -> None:
        say(self._console, f"{self._number}. {heading}")
        self._number += 1

    async def show(self) -> None:
        async with contextlib.AsyncExitStack() as stack:
            await self._start(stack)
            load = Load(self._registry)
            try:
                began, killed, back, ended = await self._load(load, stack)
            finally:
                await load.stop()
        claim(not load.errors, "no call failed", "; ".join(load.errors)[:300])
        self._head(HEADINGS[4])
        self._sum_up(load, began, killed, back, ended)

    async def _start(self, stack: contextlib.AsyncExitStack) -> None:
        self._head(HEADINGS[0])
        registry = await stack.enter_async_context(start("registry", ANYWHERE))
        self._registry = registry.address
        commands = [self._command(backend) for backend in RUNTIMES]
        code(self._console, "\n".join([f"rpc-proto registry {ANYWHERE}", *commands]), "text")
        await asyncio.gather(*(self._serve(stack, backend) for backend in RUNTIMES))
        await self._known(3)
        result(
            self._console,
            [f"registry  {registry}"]
            + [f"{backend:<9} {self._servers[backend]}" for backend in RUNTIMES],
        )

    def _command(self, backend: str, listen: str = ANYWHERE) -> str:
        words = ["rpc-proto", *self._arguments(backend, listen)]
        return f"{' '.join(words[:4])} \\\n    {' '.join(words[4:])}"

    def _arguments(self, backend: str, listen: str = ANYWHERE) -> list[str]:
        return [
            "serve",
            f"rpc_cli.demo_services:{backend.title()}Work=Work",
            f"--backend={backend}",
            listen,
            f"--registry={self._registry}",
            f"--ttl={_TTL}",
        ]

    async def _serve(
        self, stack: contextlib.AsyncExitStack, backend: str, listen: str = ANYWHERE
    ) -> None:
        server = await stack.enter_async_context(start(*self._arguments(backend, listen)))
        self._servers[backend] = server
        self._backend_of[server.process.pid] = backend

    async def _load(
        self, load: Load, stack: contextlib.AsyncExitStack
    ) -> tuple[float, float, float, float]:
        """Return when the load began, the server was killed and back, and it was over."""
        self._head(HEADINGS[1])
        code(self._console, body_of(call_asyncio))
        pids = [server.process.pid for server in self._servers.values()]
        await _until(lambda: load.seen(RUNTIMES, pids), "each caller reaches each server", load)
        began = monotonic()
        await asyncio.sleep(_QUIET)
        result(self._console, self._shares(load, began, monotonic(), 0.2))

        self._head(HEADINGS[2])
        victim = self._servers[_VICTIM]
        code(self._console, f"kill -KILL {victim.process.pid}", "text")
        killed = monotonic()
        victim.process.kill()
        await self._known(2)
        forgotten = monotonic()
        await asyncio.sleep(_QUIET)
        late = [answer.at for answer in load.answers if answer.process == victim.process.pid]
        claim(not load.errors, "no call fails", "; ".join(load.errors)[:300])
        others = self._shares(load, killed + _QUIET / 2, monotonic(), 0.4, without=_VICTIM)
        result(
            self._console,
            [
                "no call failed",
                f"the dead server's last answer: {_when(killed, max(late))} the signal",
                f"the registry forgot it {_when(killed, forgotten)} that",
                *others,
            ],
        )

        self._head(HEADINGS[3])
        listen = f"--listen={victim.address}"
        code(self._console, self._command(_VICTIM, listen), "text")
        await self._serve(stack, _VICTIM, listen)
        back = monotonic()
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
        return began, killed, back, ended

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

    def _sum_up(self, load: Load, began: float, killed: float, back: float, ended: float) -> None:
        claim(load.repeated > 0, "calls were repeated at another server", "none")
        times: dict[str, list[float]] = {backend: [] for backend in RUNTIMES}
        for answer in load.answers:
            if began <= answer.at < ended:
                times[self._backend_of[answer.process]].append(answer.at - began)
        marks = [(killed - began, f"{_VICTIM} killed"), (back - began, "back")]
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
        """Wait until the registry knows so many nodes."""
        known = -1
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_PATIENCE):
                while known != count:
                    asked = Fetch("GET", f"{self._registry}/registry/nodes")
                    await fetch(asked)
                    known = len(parse_view(asked.body))
                    await asyncio.sleep(0.02)
        claim(known == count, f"the registry knows {count} nodes", str(known))


async def show_cluster(console: "Console", first: int) -> int:
    """Show it all, with numbers from `first` on; return how many steps that were."""
    await _Cluster(console, first).show()
    return len(HEADINGS)


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
