"""Streams for `rpc-proto call`: items from standard input, and items as they come."""

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from threading import Thread
from time import monotonic
from typing import Any

from rpc_cli.output.errors import UsageError
from rpc_cli.output.values import parse_value
from rpc_proto import CallError, InvalidArgument

__all__ = ["print_stream", "stream_kind"]

_AHEAD = 64  # lines of standard input that wait to be sent
_TELL_EVERY = 0.5  # seconds


def stream_kind(error: CallError) -> str | None:
    """Return the kind of a method that refused a unary call because it is a stream."""
    details = error.details
    if not isinstance(error, InvalidArgument) or not isinstance(details, dict):
        return None
    kind = details.get("kind")
    return kind if isinstance(kind, str) else None


async def print_stream(
    client: Any,
    kind: str,
    method: str,
    args: list[Any],
    kwargs: dict[str, Any],
    show: Callable[[Any], None],
    **options: Any,
) -> None:
    """Call a method with streams, and show each item, and the result if there is one.

    The items of the caller are the lines of standard input, each a JSON value.
    """
    if kind != "server_stream":
        args = [*args, _lines()]
    progress = _Progress()
    try:
        if kind == "client_stream":
            show(await client.call(method, *args, **options, **kwargs))
            return
        async for item in client.stream(method, *args, **options, **kwargs):
            show(item)
            progress.count()
    finally:
        progress.end()


async def _lines() -> AsyncIterator[Any]:
    """Yield the values on standard input; UsageError for a line that is none."""
    loop = asyncio.get_running_loop()
    lines: asyncio.Queue[bytes] = asyncio.Queue(_AHEAD)

    def read() -> None:
        for line in sys.stdin.buffer:
            asyncio.run_coroutine_threadsafe(lines.put(line), loop).result()
        asyncio.run_coroutine_threadsafe(lines.put(b""), loop).result()

    # A daemon, because nothing else ends a read.
    Thread(target=read, name="rpc-stdin", daemon=True).start()
    number = 0
    while line := await lines.get():
        number += 1
        text = line.decode(errors="replace").strip()
        if text:
            try:
                value = parse_value(text)
            except ValueError as error:
                raise UsageError(f"line {number} of standard input: {error}") from None
            yield value


class _Progress:
    """Tells a person at the terminal how far it is, if the items go elsewhere."""

    def __init__(self) -> None:
        self._items = 0
        self._shows = sys.stderr.isatty() and not sys.stdout.isatty()
        self._told_at = monotonic()
        self._told = False

    def count(self) -> None:
        self._items += 1
        if self._shows and monotonic() - self._told_at > _TELL_EVERY:
            self._told_at = monotonic()
            self._tell()

    def end(self) -> None:
        if self._told:
            self._tell()
            print(file=sys.stderr)

    def _tell(self) -> None:
        self._told = True
        print(f"\r{self._items:,} items", end="", file=sys.stderr, flush=True)
