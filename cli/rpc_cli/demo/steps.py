"""What `rpc-proto demo` shows: the code of each step, and the check that it did what it claims.

The body of a step is printed as it stands here, and then run: what is shown is what happens.
"""

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from rpc_asyncio import Client
from rpc_cli.commands.bench import Measurement, measure, summarize
from rpc_cli.output.latency import format_seconds
from rpc_proto import DeadlineExceeded, InvalidArgument, Unimplemented

from .page import body_of, claim
from .services import Arith, Hit, Point, Search, Slow, Store

__all__ = ["STEPS", "Outcome", "Server", "Step"]

Server = asyncio.subprocess.Process


@dataclass
class Outcome:
    """How a step ended: with a result or an error, and after how many seconds."""

    result: Any
    error: Exception | None
    seconds: float


class Step(NamedTuple):
    """A piece of code to show, and what must be true of its outcome, as lines to show too."""

    run: Callable[[Client, Server], Awaitable[Any]]
    verify: Callable[[Outcome], list[str]]

    @property
    def heading(self) -> str:
        """What the step shows."""
        return inspect.getdoc(self.run) or ""

    @property
    def code(self) -> str:
        """The lines that do it."""
        return body_of(self.run)


def _claim(true: bool, what: str, outcome: Outcome) -> None:
    got = repr(outcome.result) if outcome.error is None else repr(outcome.error)
    claim(true, what, f"{got:.300} after {format_seconds(outcome.seconds)}")


async def _typed(client: Client, _server: Server) -> Any:
    """A typed call: dataclasses go in, a dataclass comes out"""
    arith = client.service(Arith)
    return await arith.move(Point(1, 2), by=Point(10, 20))


def _typed_right(outcome: Outcome) -> list[str]:
    _claim(outcome.result == Point(11.0, 22.0), "the moved point is Point(11, 22)", outcome)
    return [f"{outcome.result}  in {format_seconds(outcome.seconds)}"]


async def _store(client: Client, _server: Server) -> Any:
    """Another service on the same connection: a store of values by their names"""
    store = client.service(Store)
    await store.put("colour", {"name": "teal", "rgb": [0, 128, 128]})
    return await store.get("colour")


def _store_right(outcome: Outcome) -> list[str]:
    _claim(
        outcome.result == {"name": "teal", "rgb": [0, 128, 128]},
        "the store returns what was put",
        outcome,
    )
    return [f"{outcome.result}  both calls in {format_seconds(outcome.seconds)}"]


async def _search(client: Client, _server: Server) -> Any:
    """Search in real text: the Zen of Python and the reference of the language"""
    search = client.service(Search)
    return [await search.size(), await search.find("beautiful better")]


def _search_right(outcome: Outcome) -> list[str]:
    _claim(
        outcome.error is None and isinstance(outcome.result[1][0], Hit),
        "the search returns a list of Hit",
        outcome,
    )
    size, hits = outcome.result
    _claim("Beautiful is better than ugly" in hits[0].text, "the first line is found", outcome)
    return [
        (
            f"{size['lines']:,} lines with {size['words']:,} different words were searched; "
            f"{format_seconds(outcome.seconds)} for both calls"
        ),
        *(f"{hit.document}, line {hit.line}: {hit.text}" for hit in hits),
    ]


async def _hundred(client: Client, _server: Server) -> Any:
    """One hundred calls at once on one connection, each of which takes a tenth of a second"""
    slow = client.service(Slow)
    return await asyncio.gather(*(slow.nap(0.1) for _ in range(100)))


def _hundred_right(outcome: Outcome) -> list[str]:
    _claim(
        outcome.error is None and len(outcome.result) == 100,
        "one hundred calls are answered",
        outcome,
    )
    one_by_one = sum(outcome.result)
    _claim(outcome.seconds < one_by_one / 4, "they run at the same time", outcome)
    return [
        (
            f"{len(outcome.result)} answers in {format_seconds(outcome.seconds)}; "
            f"the naps add up to {format_seconds(one_by_one)}"
        )
    ]


async def _deadline(client: Client, _server: Server) -> Any:
    """A deadline: this call would take half a minute and may take 0.2 seconds"""
    return await client.call("Slow.work", "report", 30.0, timeout=0.2)


def _deadline_right(outcome: Outcome) -> list[str]:
    _claim(isinstance(outcome.error, DeadlineExceeded), "the deadline ends the call", outcome)
    _claim(0.19 < outcome.seconds < 5, "it ends it after 0.2 s", outcome)
    return [f"{_named(outcome)}  after {format_seconds(outcome.seconds)}"]


async def _cancelled(client: Client, _server: Server) -> Any:
    """... and the handler was stopped, too: the server reports how it ended"""
    return await client.service(Slow).outcome("report")


def _cancelled_right(outcome: Outcome) -> list[str]:
    _claim(outcome.result == "cancelled", "the handler was cancelled", outcome)
    return [repr(outcome.result)]


async def _bad_argument(client: Client, _server: Server) -> Any:
    """A bad argument: the error names the path to it"""
    return await client.call("Arith.length", [{"x": 0, "y": 0}, {"x": "far", "y": 0}])


def _bad_argument_right(outcome: Outcome) -> list[str]:
    _claim(isinstance(outcome.error, InvalidArgument), "the argument is refused", outcome)
    _claim("path[1].x" in str(outcome.error), "the error names path[1].x", outcome)
    return [_named(outcome)]


async def _unknown(client: Client, _server: Server) -> Any:
    """An unknown method fails only its own call: the connection stays usable"""
    sum_of_two = client.call("Arith.add", 5, 3)
    difference = client.call("Arith.subtract", 5, 3)
    return await asyncio.gather(sum_of_two, difference, return_exceptions=True)


def _unknown_right(outcome: Outcome) -> list[str]:
    total, error = outcome.result or (None, None)
    _claim(isinstance(error, Unimplemented), "the method does not exist", outcome)
    _claim(total == 8, "the call beside it is answered", outcome)
    return [repr(total), f"{type(error).__name__}: {error}"]


async def _benchmark(client: Client, _server: Server) -> Any:
    """How fast? For one second, 64 callers call as fast as they can"""
    return await measure([client], "Arith.add", (1, 2), concurrency=64, seconds=1.0)


def _benchmark_right(outcome: Outcome) -> list[str]:
    result = outcome.result
    _claim(
        isinstance(result, Measurement) and result.latencies.count > 0 and not result.errors,
        "the calls are answered without errors",
        outcome,
    )
    return summarize(result, bar="#")


async def _drain(client: Client, server: Server) -> Any:
    """A graceful stop: after SIGTERM, the running call ends, then the server"""
    last = asyncio.create_task(client.call("Slow.work", "last", 0.3))
    await client.call("Slow.started", "last")
    server.terminate()
    return [await last, await server.wait()]


def _drain_right(outcome: Outcome) -> list[str]:
    _claim(outcome.result == ["last", 0], "the call is answered, the server ends with 0", outcome)
    answer, code = outcome.result
    return [
        (
            f"{answer!r} was answered and the server ended with exit code {code}, "
            f"{format_seconds(outcome.seconds)} in all"
        )
    ]


def _named(outcome: Outcome) -> str:
    return f"{type(outcome.error).__name__}: {outcome.error}"


STEPS = (
    Step(_typed, _typed_right),
    Step(_store, _store_right),
    Step(_search, _search_right),
    Step(_hundred, _hundred_right),
    Step(_deadline, _deadline_right),
    Step(_cancelled, _cancelled_right),
    Step(_bad_argument, _bad_argument_right),
    Step(_unknown, _unknown_right),
    Step(_benchmark, _benchmark_right),
    Step(_drain, _drain_right),
)
