"""The services of `rpc-proto demo`: ordinary classes, nothing in them is made for being remote.

rpc-proto serve rpc_cli.demo.services:Arith rpc_cli.demo.services:Store
"""

import asyncio
import codecs
import contextlib
import importlib
import io
import os
import re
import time
from dataclasses import dataclass
from itertools import pairwise
from math import hypot
from typing import Any

from rpc_proto import NotFound

__all__ = [
    "Arith",
    "AsyncioWork",
    "BlockingWork",
    "GeventWork",
    "Hit",
    "Point",
    "Search",
    "Slow",
    "Store",
]


@dataclass
class Point:
    """A place in the plane."""

    x: float
    y: float


class Arith:
    """Sums, of numbers and of points."""

    async def add(self, a: float, b: float) -> float:
        """Return the sum of two numbers."""
        return a + b

    async def move(self, point: Point, by: Point) -> Point:
        """Return the point moved by another one."""
        return Point(point.x + by.x, point.y + by.y)

    async def length(self, path: list[Point]) -> float:
        """Return how long the way along these points is."""
        return sum(hypot(b.x - a.x, b.y - a.y) for a, b in pairwise(path))


class Store:
    """Values by their names, kept in memory."""

    def __init__(self) -> None:
        self._values: dict[str, Any] = {}

    async def put(self, name: str, value: Any) -> None:
        """Keep a value."""
        self._values[name] = value

    async def get(self, name: str) -> Any:
        """Return the value of that name; not_found if there is none."""
        if name not in self._values:
            raise NotFound(f"nothing is kept under {name!r}")
        return self._values[name]

    async def delete(self, name: str) -> bool:
        """Forget a value; return whether there was one."""
        return self._values.pop(name, self) is not self

    async def names(self, prefix: str = "") -> list[str]:
        """Return the names that begin so, in order."""
        return sorted(name for name in self._values if name.startswith(prefix))


@dataclass
class Hit:
    """One line that has the words."""

    document: str
    line: int
    text: str


_WORD = re.compile(r"\w+")


class Search:
    """Finds lines in texts that come with Python: its Zen and its reference of the language."""

    def __init__(self) -> None:
        self._lines: list[Hit] = []
        self._by_word: dict[str, list[int]] = {}
        self._add("zen", _zen())
        with contextlib.suppress(ImportError):  # some distributions leave it out
            topics = importlib.import_module("pydoc_data.topics").topics
            for name, text in sorted(topics.items()):
                self._add(name, text)

    def _add(self, document: str, text: str) -> None:
        for number, line in enumerate(text.splitlines(), 1):
            for word in {*_WORD.findall(line.lower())}:
                self._by_word.setdefault(word, []).append(len(self._lines))
            self._lines.append(Hit(document, number, line.strip()))

    async def size(self) -> dict[str, int]:
        """Return how much there is to search."""
        return {
            "documents": len({hit.document for hit in self._lines}),
            "lines": len(self._lines),
            "words": len(self._by_word),
        }

    async def find(self, words: str, limit: int = 5) -> list[Hit]:
        """Return the first lines that have all of these words."""
        found = [set(self._by_word.get(word, ())) for word in _WORD.findall(words.lower())]
        lines = sorted(set.intersection(*found)) if found else []
        return [self._lines[number] for number in lines[: max(0, limit)]]


def _zen() -> str:
    with contextlib.redirect_stdout(io.StringIO()):  # importing it prints it
        encoded: str = importlib.import_module("this").s
    return codecs.decode(encoded, "rot13")


_KEPT_JOBS = 1000


class Slow:
    """Takes its time, and knows afterwards how its jobs ended."""

    def __init__(self) -> None:
        self._started: dict[str, asyncio.Event] = {}
        self._outcomes: dict[str, asyncio.Future[str]] = {}

    async def nap(self, seconds: float) -> float:
        """Wait for so long and return it."""
        await asyncio.sleep(seconds)
        return seconds

    async def work(self, job: str, seconds: float) -> str:
        """Wait for so long as a job with a name."""
        outcome = self._outcome(job)
        self._event(job).set()
        try:
            await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            if not outcome.done():
                outcome.set_result("cancelled")
            raise
        if not outcome.done():
            outcome.set_result("finished")
        return job

    async def started(self, job: str) -> bool:
        """Wait until the job of that name has begun."""
        return await self._event(job).wait()

    async def outcome(self, job: str) -> str:
        """Wait until the job of that name has ended; return "finished" or "cancelled"."""
        return await asyncio.shield(self._outcome(job))

    def _event(self, job: str) -> asyncio.Event:
        _drop_oldest(self._started)
        return self._started.setdefault(job, asyncio.Event())

    def _outcome(self, job: str) -> "asyncio.Future[str]":
        _drop_oldest(self._outcomes)
        if job not in self._outcomes:
            self._outcomes[job] = asyncio.get_running_loop().create_future()
        return self._outcomes[job]


def _drop_oldest(table: dict[str, Any]) -> None:
    if len(table) > _KEPT_JOBS:
        del table[next(iter(table))]


_STEP = 0.02  # seconds


class AsyncioWork:
    """Work that takes a moment. The other two are the same, and wait as their runtimes do."""

    async def step(self) -> int:
        """Return the process in which it was done."""
        await asyncio.sleep(_STEP)
        return os.getpid()


class BlockingWork:
    """Work that takes a moment."""

    def step(self) -> int:
        """Return the process in which it was done."""
        time.sleep(_STEP)
        return os.getpid()


class GeventWork:
    """Work that takes a moment."""

    def step(self) -> int:
        """Return the process in which it was done."""
        import gevent

        gevent.sleep(_STEP)
        return os.getpid()
