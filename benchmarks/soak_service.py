"""What the servers of the soak offer: `rpc-proto serve soak_service:AsyncioWork=Work` and so on."""

import asyncio
import os
import time

EXECUTIONS = "SOAK_EXECUTIONS"  # the environment variable that names the file


class _Work:
    """Each execution is a line of a file, which even a killed process leaves behind."""

    def __init__(self) -> None:
        self._file = os.open(os.environ[EXECUTIONS], os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def _begin(self, call_id: str) -> None:
        os.write(self._file, f"{call_id} {os.getpid()} {time.monotonic():.6f}\n".encode())


class AsyncioWork(_Work):
    async def work(self, call_id: str, seconds: float) -> None:
        self._begin(call_id)
        await asyncio.sleep(seconds)


class GeventWork(_Work):
    def work(self, call_id: str, seconds: float) -> None:
        from gevent import sleep

        self._begin(call_id)
        sleep(seconds)


class BlockingWork(_Work):
    def work(self, call_id: str, seconds: float) -> None:
        self._begin(call_id)
        time.sleep(seconds)
