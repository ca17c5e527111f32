"""A program: in the trio client of the examples a call waits for the slot of one that is cancelled.

It prints how the call that waits ends. The time is virtual, and nothing looks at deadlines but what
the client does when it cancels.
"""

import sys
from importlib import import_module
from typing import Any

import trio
import trio.testing

from rpc_proto import DeadlineExceeded, ServerConfig, ServerConnection

sys.path.insert(0, sys.argv[1])
clock = trio.testing.MockClock(autojump_threshold=0.01)


async def main() -> None:
    near, far = trio.testing.memory_stream_pair()
    client: Any = import_module("trio_client").TrioClient(near)
    client._keep_time = trio.sleep_forever  # it comes too late
    server = ServerConnection(ServerConfig(max_calls=1), now=trio.current_time())
    started, ended = trio.Event(), trio.Event()

    async def serve() -> None:
        async for data in far:
            server.receive_data(trio.current_time(), data)
            if server.calls_in_flight:
                started.set()
            await far.send_all(server.data_to_send())

    async def hold() -> None:
        with holder:
            await client.call("Arith.wait", timeout=60)

    async def wait() -> None:
        try:
            await client.call("Arith.add", timeout=1)
        except DeadlineExceeded as error:
            print(error.code)
            ended.set()

    holder = trio.CancelScope()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.run)
        nursery.start_soon(serve)
        nursery.start_soon(hold)
        await started.wait()
        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        clock.jump(1.5)
        holder.cancel()
        with trio.fail_after(30):
            await ended.wait()
        nursery.cancel_scope.cancel()


trio.run(main, clock=clock)
