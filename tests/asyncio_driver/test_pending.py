"""Calls that are started now and waited for later."""

import asyncio

import pytest

from asyncio_driver.support import Echo, Gate, pair, until
from rpc_asyncio import Client
from rpc_proto import CallError, Cancelled, LocalProtocolError, NotFound


class Fails:
    async def now(self) -> None:
        raise NotFound("no")


async def test_pending_call_is_done_when_its_answer_is_there():
    async with pair(Echo()) as (_, client):
        pending = client.start("Echo.echo", 3)
        assert not pending.done()
        assert await pending == 3
        assert pending.done()
        with pytest.raises(LocalProtocolError, match="already taken"):
            await pending


async def test_pending_call_raises_what_it_failed_with():
    async with pair(Fails()) as (_, client):
        pending = client.start("Fails.now")
        with pytest.raises(NotFound):
            await pending


async def test_pending_call_that_is_cancelled_stops_its_handler():
    gate = Gate()
    async with pair(gate) as (server, client):
        pending = client.start("Gate.wait")
        await gate.started.wait()
        pending.cancel()
        with pytest.raises(Cancelled):
            await pending
        await until(lambda: server.stats["running"] == 0)


async def test_task_that_is_cancelled_while_it_waits_gives_the_call_up():
    gate = Gate()
    async with pair(gate) as (server, client):

        async def wait() -> None:
            await client.start("Gate.wait")

        waiting = asyncio.create_task(wait())
        await gate.started.wait()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await until(lambda: server.stats["running"] == 0)


async def test_pending_calls_go_through_interceptors():
    seen = []

    async def interceptor(call, proceed):
        seen.append(call.method)
        return await proceed(call)

    gate = Gate()
    async with (
        pair(Echo(), gate, Fails()) as (server, plain),
        Client.connect(plain.address, interceptors=[interceptor]) as client,
    ):
        assert await client.start("Echo.echo", 3) == 3
        with pytest.raises(NotFound):
            await client.start("Fails.now")
        pending = client.start("Gate.wait")
        await gate.started.wait()
        pending.cancel()
        with pytest.raises(CallError) as caught:
            await pending
        assert caught.value.code == "cancelled"
        await until(lambda: server.stats["running"] == 0)
    assert seen == ["Echo.echo", "Fails.now", "Gate.wait"]


async def test_client_shows_where_it_is_connected_and_what_it_does():
    gate = Gate()
    async with pair(gate) as (_, client):
        assert repr(client) == f"<rpc_asyncio.Client of {client.address}, open, 0 calls in flight>"
        pending = client.start("Gate.wait")
        assert "open, 1 call in flight" in repr(client)
        pending.cancel()
    assert "closed, 0 calls" in repr(client)
