"""`rpc-proto demo`: a server in a process of its own, a client, and what they can do together."""

import asyncio
import contextlib
import os
import signal
import sys
from argparse import Namespace
from collections.abc import AsyncIterator
from time import perf_counter
from typing import TYPE_CHECKING

from rpc_asyncio import Client
from rpc_proto import RpcError

from .arguments import TOKEN_VARIABLE
from .demo_steps import STEPS, Outcome, Step
from .errors import CommandError
from .terminal import is_fancy, make_console, need_rich

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["demo"]

_SERVICES = [f"rpc_cli.demo_services:{name}" for name in ("Arith", "Store", "Search", "Slow")]
_START_TIMEOUT = 10.0  # seconds
_STEP_TIMEOUT = 15.0
_LISTENING = "listening on "
_TERMINATED = 128 + signal.SIGTERM


def demo(_options: Namespace) -> int:
    """Show everything; CommandError if something is not as it should be."""
    need_rich()
    try:
        asyncio.run(_demo(make_console(sys.stdout)))
    except asyncio.CancelledError:
        return _TERMINATED
    return 0


async def _demo(console: "Console") -> None:
    # Ended from outside, the demo still takes its server with it.
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    begin = perf_counter()
    _say(console, "A server starts in a process of its own", style="bold")
    arguments = [*_SERVICES, "--listen=tcp://127.0.0.1:0", "--stop-with-stdin"]
    _code(console, " \\\n    ".join(["rpc-proto serve", *arguments]), "text")
    async with _server_process(arguments) as (server, address):
        _result(console, [f"{_LISTENING}{address}  as process {server.pid}"])
        client = await Client.connect(address)
        try:
            for number, step in enumerate(STEPS, 1):
                await _show(console, number, step, client, server)
        finally:
            await client.close()
    seconds = perf_counter() - begin
    _say(
        console,
        f"All {len(STEPS)} steps did what they claim, in {seconds:.1f} s. "
        "The server has ended; nothing is left running.",
        style="bold",
    )


async def _show(
    console: "Console", number: int, step: Step, client: Client, server: asyncio.subprocess.Process
) -> None:
    _say(console, f"{number}. {step.heading}", style="bold")
    _code(console, step.code)
    result, error = None, None
    begin = perf_counter()
    try:
        async with asyncio.timeout(_STEP_TIMEOUT):
            result = await step.run(client, server)
    except (RpcError, TimeoutError) as raised:
        error = raised
    outcome = Outcome(result, error, perf_counter() - begin)
    _result(console, step.verify(outcome))


@contextlib.asynccontextmanager
async def _server_process(
    arguments: list[str],
) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """Run `rpc-proto serve` with these arguments; yield its process and its address."""
    pipe = asyncio.subprocess.PIPE
    # Should the demo be killed, the pipe closes and takes the server along. Ctrl-C is for the demo
    # alone: it is not to find a server that has gone before it.
    server = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "rpc_cli", "serve", *arguments),
        stdin=pipe,
        stdout=pipe,
        start_new_session=True,
        env={name: value for name, value in os.environ.items() if name != TOKEN_VARIABLE},
    )
    try:
        assert server.stdout is not None
        try:
            async with asyncio.timeout(_START_TIMEOUT):
                line = (await server.stdout.readline()).decode().strip()
        except TimeoutError:
            line = ""
        if not line.startswith(_LISTENING):
            raise CommandError("the demo's server did not start")
        yield server, line.removeprefix(_LISTENING)
    finally:
        if server.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                server.kill()
            await server.wait()


def _say(console: "Console", text: str, *, style: str) -> None:
    console.print(text, style=style, soft_wrap=True)
    console.print()


def _code(console: "Console", code: str, language: str = "python") -> None:
    indented = "\n".join(f"    {line}" for line in code.splitlines())
    if is_fancy(sys.stdout):
        from rich.syntax import Syntax

        shown = Syntax(indented, language, theme="ansi_dark", background_color="default")
        console.print(shown, soft_wrap=True)
    else:
        console.print(indented, soft_wrap=True)


def _result(console: "Console", lines: list[str]) -> None:
    mark = "  > "
    for line in lines:
        console.print(f"{mark}{line}", style="green", soft_wrap=True)
        mark = "    "
    console.print()
    sys.stdout.flush()  # also when it goes into a pipe: whoever watches sees each step
