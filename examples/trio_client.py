"""A client on trio: one task reads, and each call waits for an event of its own.

python examples/trio_client.py 127.0.0.1 7000
"""

import math
import sys
from typing import Any

import trio

from rpc_proto import CallCompleted, CallFailed, ClientConnection, State


class TrioClient:
    """As much of a driver as a program needs that only calls."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._connection = ClientConnection(now=trio.current_time())
        self._writing = trio.Lock()
        self._changed = trio.Event()  # the time of the next timeout may be another now

    async def call(self, method: str, *args: Any, timeout: float = 10.0) -> Any:
        now = trio.current_time()
        done = trio.Event()
        call = self._connection.start_call(now, method, args, deadline=now + timeout, waiter=done)
        try:
            await self._flush()
            await done.wait()
        except trio.Cancelled:
            self._connection.cancel(trio.current_time(), call)
            with trio.CancelScope(shield=True):
                await self._flush()  # it gives up its slot, so other calls may begin or end
            raise
        if isinstance(call.waiter, CallFailed):
            raise call.waiter.error
        return call.waiter.value

    async def run(self) -> None:
        """Read, and keep the time, until the connection ends."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep_time)
            await self._flush()
            while self._connection.state is not State.CLOSED:
                if data := await self._stream.receive_some(65536):
                    self._connection.receive_data(trio.current_time(), data)
                else:
                    self._connection.receive_eof(trio.current_time())
                await self._flush()
            nursery.cancel_scope.cancel()

    async def _keep_time(self) -> None:
        while True:
            wake_at = self._connection.next_timeout()
            self._changed = trio.Event()
            with trio.move_on_at(math.inf if wake_at is None else wake_at):
                await self._changed.wait()
                continue
            self._connection.handle_timeout(trio.current_time())
            await self._flush()

    async def _flush(self) -> None:
        """Act on what has happened, and write; after each input and command."""
        for event in self._connection.events():
            if isinstance(event, (CallCompleted, CallFailed)):
                done, event.call.waiter = event.call.waiter, event
                done.set()
        self._changed.set()
        async with self._writing:
            if data := self._connection.data_to_send():
                await self._stream.send_all(data)


async def main(host: str, port: int) -> None:
    stream = await trio.open_tcp_stream(host, port)
    async with stream, trio.open_nursery() as nursery:
        client = TrioClient(stream)
        nursery.start_soon(client.run)
        print(await client.call("Arith.add", 1, 2))
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main, sys.argv[1], int(sys.argv[2]))
