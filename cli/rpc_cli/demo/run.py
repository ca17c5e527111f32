"""`rpc-proto demo`: servers in processes of their own, clients, and what they can do together."""

import asyncio
import signal
import sys
from argparse import Namespace
from time import perf_counter
from typing import TYPE_CHECKING

from rpc_asyncio import Client
from rpc_cli.output.errors import UsageError
from rpc_cli.output.terminal import make_console, need_rich
from rpc_proto import RpcError

from .cluster import show_cluster
from .page import code, result, say
from .processes import ANYWHERE, start
from .sources import InEtcd, InRegistry, Source
from .steps import STEPS, Outcome, Server, Step

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["demo"]

_SERVICES = [f"rpc_cli.demo.services:{name}" for name in ("Arith", "Store", "Search", "Slow")]
_STEP_TIMEOUT = 15.0  # seconds
_TERMINATED = 128 + signal.SIGTERM


def demo(options: Namespace) -> int:
    """Show everything; CommandError if something goes wrong."""
    need_rich()
    try:
        import gevent  # noqa: F401
    except ImportError:
        raise UsageError("the demo needs gevent: pip install 'rpc-proto[cli,gevent]'") from None
    try:
        asyncio.run(_demo(make_console(sys.stdout), InEtcd() if options.etcd else InRegistry()))
    except asyncio.CancelledError:
        return _TERMINATED
    return 0


async def _demo(console: "Console", source: Source) -> None:
    # Ended from outside, the demo still takes its servers with it.
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    begin = perf_counter()
    steps = 0
    if isinstance(source, InRegistry):  # with etcd it is about etcd
        await _show_server(console)
        steps = len(STEPS)
    steps += await show_cluster(console, source, steps + 1)
    seconds = perf_counter() - begin
    say(
        console,
        f"All {steps} steps did what they claim, in {seconds:.1f} s. "
        "The servers have ended; nothing is left running.",
    )


async def _show_server(console: "Console") -> None:
    say(console, "A server starts in a process of its own")
    arguments = ["serve", *_SERVICES, ANYWHERE]
    code(console, " \\\n    ".join(["rpc-proto serve", *arguments[1:]]), "text")
    async with start(*arguments) as server:
        result(console, [str(server)])
        client = await Client.connect(server.address)
        try:
            for number, step in enumerate(STEPS, 1):
                await _show(console, number, step, client, server.process)
        finally:
            await client.close()


async def _show(
    console: "Console", number: int, step: Step, client: Client, server: Server
) -> None:
    say(console, f"{number}. {step.heading}")
    code(console, step.code)
    got, error = None, None
    begin = perf_counter()
    try:
        async with asyncio.timeout(_STEP_TIMEOUT):
            got = await step.run(client, server)
    except (RpcError, TimeoutError) as raised:
        error = raised
    outcome = Outcome(got, error, perf_counter() - begin)
    result(console, step.verify(outcome))
