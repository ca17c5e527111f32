"""A client on trio: three tasks read, write and keep the time; each call waits for an event.

python examples/trio_client.py 127.0.0.1 7000
"""

import math
import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import trio

from rpc_proto import CallCompleted, CallFailed, ClientConfig, ClientConnection, Wish


class TrioClient:
    """As much of a driver as a program needs that only calls."""

    def __init__(self, stream: trio.abc.Stream, config: ClientConfig | None = None) -> None:
        self._stream = stream
        self._connection = ClientConnection(config, now=trio.current_time())
        self._scope = trio.CancelScope()  # of all that runs
        self._changed = trio.Event()  # there may be more to write, or another time to wait for

    async def call(
        self,
        method: str,
        *args: Any,
        timeout: float = 10.0,
        metadata: Mapping[str, str] | None = None,
        returns: Any = None,
        **named: Any,
    ) -> Any:
        now = trio.current_time()
        done = trio.Event()
        call = self._connection.start_call(
            *(now, method, args, named),
            deadline=now + timeout,
            metadata=metadata,
            returns=returns,
            waiter=done,
        )
        self._act()
        try:
            await done.wait()
        except trio.Cancelled:
            self._connection.cancel(trio.current_time(), call)
            self._act()  # it gives up its slot, so other calls may begin or end
            raise
        if isinstance(call.waiter, CallFailed):
            raise call.waiter.error
        return call.waiter.value

    async def run(self) -> None:
        """Read, write and keep the time, until the connection ends."""
        with self._scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._read)
                nursery.start_soon(self._keep_time)
                await self._write()
                nursery.cancel_scope.cancel()
        self._connection.connection_lost(trio.current_time())
        self._act()

    async def _read(self) -> None:
        while True:
            try:
                data = await self._stream.receive_some(65536)
            except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
                self._connection.connection_lost(trio.current_time(), str(error))
                break
            if not data:
                self._connection.receive_eof(trio.current_time())
                break
            self._connection.receive_data(trio.current_time(), data)
            self._act()
        self._act()

    async def _keep_time(self) -> None:
        while True:
            wake_at = self._connection.next_timeout()
            with trio.move_on_at(math.inf if wake_at is None else wake_at):
                await self._changed.wait()
                continue
            self._connection.handle_timeout(trio.current_time())
            self._act()

    async def _write(self) -> None:
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            while self._connection.wish not in (Wish.CLOSE, Wish.ABORT):
                changed = self._changed
                if data := self._connection.data_to_send():
                    self._connection.unsent = len(data)
                    await self._stream.send_all(data)
                    self._connection.unsent = 0
                    self._act()
                else:
                    await changed.wait()

    def _act(self) -> None:
        """Act on what has happened; after each input and command."""
        for event in self._connection.events():
            if isinstance(event, (CallCompleted, CallFailed)):
                done, event.call.waiter = event.call.waiter, event
                done.set()
        self._changed.set()
        self._changed = trio.Event()
        if self._connection.wish is Wish.ABORT:
            self._scope.cancel()  # the peer may take nothing any more


async def main(host: str, port: int) -> None:
    stream = await trio.open_tcp_stream(host, port)
    async with stream, trio.open_nursery() as nursery:
        client = TrioClient(stream)
        nursery.start_soon(client.run)
        print(await client.call("Arith.add", 1, 2))
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main, sys.argv[1], int(sys.argv[2]))
