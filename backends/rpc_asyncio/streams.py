"""Streams at an asyncio client."""

import asyncio
from collections.abc import AsyncIterator, Callable, Generator
from contextlib import suppress
from time import monotonic
from typing import TYPE_CHECKING, Any, Self, TypeVar

from rpc_common.client.streams import StreamBase, refuse_send
from rpc_proto.connection.streams.halves import Half, ReceiveHalf, SendHalf

from .waiters import Bell

if TYPE_CHECKING:
    from .balanced import BalancedClient
    from .client import Client

__all__ = ["RunningStream", "Stream"]

Item = TypeVar("Item")

_OPEN = Half.OPEN


class RunningStream(Bell):
    """A stream that has begun: the waiter of its call.

    `event` is how the call ended, and `failure` what the iterator of the caller's items raised.
    """

    __slots__ = ("_protocol", "call", "event", "failure", "feeder", "on_end")

    def __init__(self, loop: asyncio.AbstractEventLoop, protocol: Any) -> None:
        super().__init__(loop)
        self._protocol = protocol
        self.call: Any = None
        self.event: Any = None
        self.failure: BaseException | None = None
        self.on_end: Callable[[], object] | None = None  # of a balanced client
        self.feeder: asyncio.Task[None] | None = None  # sends the items of an iterator

    def wake(self) -> None:
        """Let those that wait look again: the call has ended."""
        self.ring()
        if self.feeder is not None:
            self.feeder.cancel()
        if self.on_end is not None:
            self.on_end()

    wake_soon = wake

    async def send(self, value: Any) -> bool:
        """Send an item when the peer wants it; return whether it was sent."""
        half: SendHalf = self.call.sending
        if half.waits and half.state is _OPEN:
            await self.wait_until(lambda: not half.waits or half.state is not _OPEN)
        if half.state is not _OPEN:
            return False
        protocol = self._protocol
        protocol.connection.send_item(monotonic(), self.call, value)
        protocol.wrote()
        return True

    async def end(self) -> None:
        """End the items, if the call has not."""
        half: SendHalf = self.call.sending
        if half.rest is not None:
            await self.wait_until(lambda: half.rest is None or half.state is not _OPEN)
        if half.state is _OPEN:
            self._protocol.connection.end_items(monotonic(), self.call)
            self._protocol.wrote()

    def grant(self) -> None:
        """Give the server credit."""
        self._protocol.connection.grant(monotonic(), self.call)
        self._protocol.wrote()

    def give_up(self) -> None:
        """Cancel the call."""
        self._protocol.connection.cancel(monotonic(), self.call)
        self._protocol.react()
        self._protocol.flush_soon()

    def drop(self) -> None:
        """Cancel the call soon, from wherever a finalizer runs."""
        with suppress(RuntimeError):  # the loop was closed before
            self._loop.call_soon_threadsafe(self.give_up)

    def feed(self, source: Any) -> None:
        """Send all items of an iterator, in a task of its own."""
        self.feeder = self._loop.create_task(self._feed(source), name="rpc feeder")

    async def _feed(self, source: Any) -> None:
        try:
            if hasattr(source, "__aiter__"):
                async for value in source:
                    if not await self.send(value):
                        return
            else:
                for value in source:
                    if not await self.send(value):
                        return
            await self.end()
        except Exception as error:
            if self.event is None:
                self.failure = error
                self.feeder = None
                self.give_up()
        finally:
            self.feeder = None
            if hasattr(source, "aclose"):
                await source.aclose()
            elif hasattr(source, "close"):
                source.close()


class Stream(StreamBase[Item], AsyncIterator[Item]):
    """A call with items; `client.stream(...)` returns it, and it begins when it is first used.

    `async for item in client.stream(...)` takes the items of the server. In an `async with` block
    the stream is open in both directions: `send`, `end`, `result`. Leaving the loop or the block
    early cancels the call at the server. One task may send while another takes items.
    """

    __slots__ = ()

    _client: "Client | BalancedClient"

    async def __aenter__(self) -> Self:
        await self.begin(True, True)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def __await__(self) -> Generator[Any, None, Self]:
        """Begin, with the stream open in both directions; `close` it at the end."""
        yield from self.begin(True, True).__await__()
        return self

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Item:
        running: RunningStream | None = self.running
        if running is None:
            running = await self.begin(self._request.source is not None, True)
        half: ReceiveHalf = running.call.receiving
        items = half.items
        if not items and running.event is None:
            self._client.check_here()
            self._hold()
            try:
                await running.wait_until(lambda: bool(items) or running.event is not None)
            except asyncio.CancelledError:
                self.close()
                raise
            finally:
                self._iterated = False
        if not items:
            self._check_failure()
            raise StopAsyncIteration
        try:
            item: Item = half.take()
        except BaseException:
            self.close()
            raise
        if half.due:
            running.grant()
        return item

    async def send(self, value: Any) -> None:
        """Send one item, when the server takes it.

        Raises what the call has failed with; StreamEnded if the server has answered already, and
        LocalProtocolError after `end`. InvalidArgument if the item cannot be encoded, and
        ResourceExhausted if it is larger than the server accepts; nothing was sent then.
        """
        self._client.check_here()
        running = self.running or await self.begin(True, True)
        if not await running.send(value):
            refuse_send(running)

    async def end(self) -> None:
        """Say that no more items follow; the server's can still be taken."""
        self._client.check_here()
        await (self.running or await self.begin(True, True)).end()

    async def result(self) -> Any:
        """End the items, wait for the answer, and return the result of the method.

        Items of the server that were not taken are dropped. Raises what the call failed with.
        """
        running = self.running or await self.begin(True, True)
        call = running.call
        if running.event is None:
            self._client.check_here()
            try:
                if call.sending is not None and self._request.source is None:
                    await running.end()
                half = call.receiving
                items = half.items if half is not None else ()
                while running.event is None:
                    await running.wait_until(lambda: bool(items) or running.event is not None)
                    while items:
                        half.take()
                    if half is not None and half.due:
                        running.grant()
            except asyncio.CancelledError:
                self.close()
                raise
        return self._value()

    async def send_source(self) -> Any:
        """Not for users: send the items of the iterator among the arguments; return the result."""
        try:
            await self._client.begin_stream(self, self._request, True, False)
            return await self.result()
        finally:
            self.close()

    async def begin(self, sends: bool, takes: bool) -> Any:
        """Not for users: send the request, if that was not done."""
        if self.running is None:
            await self._client.begin_stream(self, self._request, sends, takes)
        return self.running
