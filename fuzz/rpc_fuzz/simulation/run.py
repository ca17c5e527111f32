"""Running simulations."""

import asyncio
import gc
import logging
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from random import Random

from rpc_asyncio import balanced
from rpc_testing.virtual import installed, replaced

from .cluster import Cluster
from .loop import SimulatedLoop, bare_context
from .plan import Plan

__all__ = ["Report", "simulate"]


_LOGGERS = [logging.getLogger(name) for name in ("asyncio", "rpc_asyncio", "rpc_common")]
_NOWHERE = logging.NullHandler()


@dataclass
class Report:
    """What came out of a simulation."""

    plan: Plan
    violations: list[str]
    digest: str
    calls: int
    lost: int
    seconds: float  # of virtual time
    machines: int
    faults: Counter[str]
    outcomes: Counter[str]
    most_late: float
    converged: list[tuple[float, float]]
    most_held: int
    trace: list[str] = field(default_factory=list)


@contextmanager
def _quietly() -> Iterator[None]:
    """Nothing depends on when garbage is collected, and nobody hears of crashed machines."""
    gc.collect()
    gc.disable()
    before = [logger.propagate for logger in _LOGGERS]
    for logger in _LOGGERS:
        logger.propagate = False
        logger.addHandler(_NOWHERE)
    hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
            gc.collect()
    finally:
        sys.unraisablehook = hook
        for logger, propagates in zip(_LOGGERS, before, strict=True):
            logger.removeHandler(_NOWHERE)
            logger.propagate = propagates
        gc.enable()


class _Ear(logging.Handler):
    """Hears what the drivers log."""

    def __init__(self, heard: Callable[[logging.LogRecord], None]) -> None:
        super().__init__(logging.WARNING)
        self._heard = heard

    def emit(self, record: logging.LogRecord) -> None:
        self._heard(record)


@contextmanager
def _hearing(heard: Callable[[logging.LogRecord], None]) -> Iterator[None]:
    ear = _Ear(heard)
    for logger in _LOGGERS:
        logger.addHandler(ear)
    try:
        yield
    finally:
        for logger in _LOGGERS:
            logger.removeHandler(ear)


def simulate(plan: Plan, trace: bool = False) -> Report:
    """Run a simulation to its end."""
    with _quietly():  # until all its objects are gone
        return _run(plan, trace)


def _run(plan: Plan, trace: bool) -> Report:
    loop = SimulatedLoop()
    random = Random(plan.seed).random
    asyncio.set_event_loop(loop)
    try:
        with (
            installed(loop.time, loop.network, loop.outside, random=random),
            replaced([(balanced, "Context", bare_context)]),
        ):
            return loop.run_until_complete(_live(loop, plan, trace))
    finally:
        asyncio.set_event_loop(None)
        loop.close()


async def _live(loop: SimulatedLoop, plan: Plan, trace: bool) -> Report:
    cluster = Cluster(loop, plan)
    if trace:
        cluster.trace = []
    watching = loop.create_task(cluster.watch_bounds())
    with _hearing(cluster.heard):
        await cluster.start()
        await cluster.suffer()
        await cluster.converge()
        await cluster.calm_down()
        await cluster.drain()
        watching.cancel()
    return Report(
        plan,
        cluster.violations,
        cluster.digest,
        cluster.calls,
        cluster.lost,
        cluster.now,
        len(plan.machines),
        cluster.faults,
        cluster.outcomes,
        cluster.most_late,
        cluster.converged,
        cluster.most_held,
        cluster.trace or [],
    )
