"""The processes of `rpc-proto demo`: they start with the command and end with the demo."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator
from typing import NamedTuple

from rpc_cli.output.errors import CommandError
from rpc_cli.setup.variables import ETCD_PASSWORD_VARIABLE, REGISTRY_TOKEN_VARIABLE, TOKEN_VARIABLE

__all__ = ["ANYWHERE", "LISTENING", "Started", "start"]

ANYWHERE = "--listen=tcp://127.0.0.1:0"
LISTENING = "listening on "
_START_TIMEOUT = 10.0  # seconds


class Started(NamedTuple):
    """A process that listens."""

    process: asyncio.subprocess.Process
    address: str

    def __str__(self) -> str:
        return f"{LISTENING}{self.address}  as process {self.process.pid}"


@contextlib.asynccontextmanager
async def start(*arguments: str) -> AsyncIterator[Started]:
    """Run `rpc-proto` with these arguments until the context ends."""
    pipe = asyncio.subprocess.PIPE
    # Should the demo be killed, the pipe closes and takes the server along. Ctrl-C is for the demo
    # alone: it is not to find a server that has gone before it.
    creation = asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "rpc_cli", *arguments, "--stop-with-stdin"),
        stdin=pipe,
        stdout=pipe,
        start_new_session=True,
        env={
            name: value
            for name, value in os.environ.items()
            if name not in (TOKEN_VARIABLE, REGISTRY_TOKEN_VARIABLE, ETCD_PASSWORD_VARIABLE)
        },
    )
    # Whoever cancels this waits for it: asyncio would kill the child and might lose its status.
    creating = asyncio.create_task(creation)
    try:
        process = await asyncio.shield(creating)
        assert process.stdout is not None
        try:
            async with asyncio.timeout(_START_TIMEOUT):
                line = (await process.stdout.readline()).decode().strip()
        except TimeoutError:
            line = ""
        if not line.startswith(LISTENING):
            raise CommandError("a server of the demo did not start")
        yield Started(process, line.removeprefix(LISTENING))
    finally:
        process = await creating
        if process.returncode is None:
            # Process.kill looks first whether the child has ended, and so takes its exit status
            # away from the loop, which then complains.
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
            await process.wait()
