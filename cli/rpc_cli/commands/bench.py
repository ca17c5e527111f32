"""`rpc-proto bench`: measures the latency and the rate of calls."""

import asyncio
import signal
import ssl
import sys
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from math import isfinite
from time import perf_counter
from typing import Any

from rpc_asyncio import Client
from rpc_cli.output.errors import FAILED, INTERRUPTED, UsageError
from rpc_cli.output.latency import Latencies, format_seconds, histogram_lines
from rpc_cli.output.terminal import can_show, is_fancy, make_console, need_rich
from rpc_cli.setup.connect import client_tls, connect
from rpc_proto import CallError
from rpc_proto.texts import printable

from .call import parse_call

__all__ = ["Measurement", "bench", "measure", "summarize"]

_REFRESH = 0.1  # seconds between two updates of the progress bar


@dataclass
class Measurement:
    """The results: calls that ended, and those that were cut off by the end of the measurement."""

    latencies: Latencies = field(default_factory=Latencies)
    errors: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)  # the first message for each code
    seconds: float = 0.0
    unfinished: int = 0
    lost: int = 0

    @property
    def rate(self) -> float:
        """Successful calls per second."""
        return self.latencies.count / self.seconds if self.seconds else 0.0


def bench(options: Namespace) -> int:
    """Measure as the options say and print the results, also after Ctrl-C."""
    need_rich()
    args, kwargs = parse_call(options.args)
    if options.payload is not None:
        if options.args:
            raise UsageError("give either --payload or ARGS, not both")
        args = [bytes(options.payload)]
    return asyncio.run(_bench(options, client_tls(options), args, kwargs))


async def measure(
    clients: Sequence[Client],
    method: str,
    args: Sequence[Any] = (),
    kwargs: dict[str, Any] | None = None,
    *,
    concurrency: int,
    seconds: float,
    timeout: float = 60.0,
    stop: asyncio.Event | None = None,
    progress: Callable[[float, int], None] | None = None,
) -> Measurement:
    """Let `concurrency` callers, spread over the clients, call for so many seconds.

    Each calls again as soon as it has its answer. `stop` ends it early; `progress(seconds, calls)`
    is called with the progress. Calls that have not ended in time count as unfinished.
    """
    result = Measurement()
    latencies = result.latencies
    errors = result.errors
    named = kwargs or {}

    async def call_on_and_on(client: Client) -> None:
        while True:
            begin = perf_counter()
            try:
                await client.call(method, *args, timeout=timeout, **named)
            except CallError as error:
                errors[error.code] += 1
                result.examples.setdefault(error.code, error.message)
                if client.closed:
                    return
                # A call that fails before it is sent must not block the loop.
                await asyncio.sleep(0)
            else:
                latencies.add(perf_counter() - begin)

    stop = stop or asyncio.Event()
    begin = perf_counter()
    callers = [
        asyncio.create_task(call_on_and_on(clients[number % len(clients)]))
        for number in range(concurrency)
    ]
    stopped = asyncio.create_task(stop.wait())
    pending: set[asyncio.Task[Any]] = {*callers, stopped}
    while (left := begin + seconds - perf_counter()) > 0:
        await asyncio.wait(
            pending, timeout=min(left, _REFRESH), return_when=asyncio.FIRST_COMPLETED
        )
        if progress is not None:
            progress(perf_counter() - begin, latencies.count)
        pending = {task for task in pending if not task.done()}
        if stop.is_set() or pending == {stopped}:
            break
    result.seconds = perf_counter() - begin
    result.unfinished = sum(not task.done() for task in callers)
    result.lost = len(callers) - result.unfinished
    for task in (*callers, stopped):
        task.cancel()
    for outcome in await asyncio.gather(*callers, stopped, return_exceptions=True):
        if isinstance(outcome, Exception):
            raise outcome
    return result


def summarize(result: Measurement, *, bar: str) -> list[str]:
    """Return the results as lines of plain text."""
    latencies = result.latencies
    lines = [
        f"calls       {latencies.count:,} in {result.seconds:.2f} s",
        f"rate        {result.rate:,.0f} calls/s",
    ]
    if latencies.count:
        shown = [(f"p{percent:g}", latencies.percentile(percent)) for percent in (50, 90, 99, 99.9)]
        shown.append(("max", latencies.max))
        lines.append("latency     " + "   ".join(f"{n} {format_seconds(t)}" for n, t in shown))
    if not result.errors:
        lines.append("errors      none")
    for code, count in result.errors.most_common():
        example = printable(" ".join(result.examples[code].split()))
        lines.append(f"errors      {code} {count:,}, the first: {example:.120}")
    if result.unfinished:
        lines.append(f"unfinished  {result.unfinished:,} when the time was over, not counted")
    if result.lost:
        lines.append(f"lost        {result.lost:,} callers, whose connections were closed")
    if latencies.count:
        lines += ["", *histogram_lines(latencies, bar=bar)]
    return lines


async def _bench(
    options: Namespace, tls: ssl.SSLContext | None, args: list[Any], kwargs: dict[str, Any]
) -> int:
    clients: list[Client] = []
    try:
        for _ in range(min(options.connections, options.concurrency)):
            clients.append(await connect(options, tls))
        stop = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGINT, stop.set)
        callers = "1 caller" if options.concurrency == 1 else f"{options.concurrency} callers"
        over = "1 connection" if len(clients) == 1 else f"{len(clients)} connections"
        print(f"{options.method} at {options.address}: {options.codec}, {callers} on {over}")
        sys.stdout.flush()
        result = await _with_bar(options, clients, args, kwargs, stop)
    finally:
        for client in clients:
            await client.close()
    print("\n".join(summarize(result, bar="\u2588" if can_show(sys.stdout, "\u2588") else "#")))
    if stop.is_set():
        return INTERRUPTED
    return 0 if result.latencies.count else FAILED


async def _with_bar(
    options: Namespace,
    clients: list[Client],
    args: list[Any],
    kwargs: dict[str, Any],
    stop: asyncio.Event,
) -> Measurement:
    def run(progress: Callable[[float, int], None] | None) -> Coroutine[Any, Any, Measurement]:
        return measure(
            clients,
            options.method,
            args,
            kwargs,
            concurrency=options.concurrency,
            seconds=options.seconds,
            timeout=options.timeout,
            stop=stop,
            progress=progress,
        )

    if not is_fancy(sys.stderr):
        return await run(None)
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    with Progress(
        TextColumn("{task.completed:.1f} s"),
        BarColumn(),
        TextColumn("{task.fields[calls]:,} calls"),
        TimeRemainingColumn(),
        console=make_console(sys.stderr),
        transient=True,
        auto_refresh=False,  # its thread would take part in what is measured
    ) as bar:
        total = options.seconds if isfinite(options.seconds) else None
        task = bar.add_task("", total=total, calls=0)

        def show(seconds: float, calls: int) -> None:
            bar.update(task, completed=seconds, calls=calls, refresh=True)

        return await run(show)
