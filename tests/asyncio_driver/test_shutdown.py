"""Ends: servers that are not there, die or stop in order, and what their clients see."""

import asyncio
import contextlib
import os
import signal
import socket
import sys
import time
from pathlib import Path

import pytest

from asyncio_driver.support import Echo, Gate, Wire, accepted, answering, pair, serving, until
from rpc_asyncio import Client, Server
from rpc_proto import CallError, HandshakeError, LocalProtocolError, ServerConfig, Unavailable, Wish
from support.by_hand import GOAWAY, ONE_WAY, accept_line, frame, request

ROOT = Path(__file__).parents[2]


@contextlib.asynccontextmanager
async def other_process(source: str, *arguments: str):
    """Run Python in a process of its own, with the packages in place."""
    paths = [ROOT, ROOT / "backends"]
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        source,
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))},
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.communicate()


def unused_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


async def test_refused_connection_is_unavailable_and_safe_to_retry():
    with pytest.raises(Unavailable, match=r"no connection to tcp://127\.0\.0\.1") as caught:
        await Client.connect(f"tcp://127.0.0.1:{unused_port()}")
    assert not caught.value.maybe_executed


async def test_missing_unix_socket_is_unavailable(tmp_path):
    with pytest.raises(Unavailable, match="no connection to unix://"):
        await Client.connect(f"unix://{tmp_path}/nobody.sock")


async def test_unknown_host_is_unavailable():
    with pytest.raises(Unavailable):
        await Client.connect("tcp://host.invalid:1", timeout=5)


async def test_server_that_hangs_up_during_the_handshake():
    async def hang_up(wire: Wire) -> None:
        await wire.line()

    async with answering(hang_up) as address:
        with pytest.raises(
            Unavailable, match="closed the connection before the handshake; if it expects TLS"
        ) as caught:
            await Client.connect(address)
        assert not caught.value.maybe_executed


async def test_server_that_hangs_up_inside_its_answer():
    async def hang_up(wire: Wire) -> None:
        await wire.line()
        await wire.send(accept_line()[:10])

    async with answering(hang_up) as address:
        with pytest.raises(HandshakeError, match="ended during the option handshake") as caught:
            await Client.connect(address)
        assert caught.value.code == "unavailable"


async def test_cancelled_connect_closes_its_socket():
    asked = asyncio.Event()
    hung_up = asyncio.Event()

    async def listen_only(wire: Wire) -> None:
        await wire.line()
        asked.set()
        assert await wire.receive() is None
        hung_up.set()

    async with answering(listen_only) as address:
        connecting = asyncio.ensure_future(Client.connect(address))
        await asked.wait()
        connecting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await connecting
        await hung_up.wait()


@pytest.mark.parametrize(
    "greeting",
    [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"SSH-2.0-OpenSSH_9.6\r\n", b"{}\n", b"{" * 5000],
)
async def test_server_that_speaks_something_else(greeting):
    async def greet(wire: Wire) -> None:
        await wire.send(greeting)
        await wire.receive_all()

    async with answering(greet) as address:
        with pytest.raises(HandshakeError):
            await Client.connect(address, timeout=5)


SERVER = """
import asyncio
from rpc_asyncio import Server

class Slow:
    async def wait(self):
        await asyncio.Event().wait()

async def main():
    server = Server()
    server.register(Slow())
    print(await server.start("tcp://127.0.0.1:0"), flush=True)
    await server.serve_forever()

asyncio.run(main())
"""


async def test_killed_server_fails_its_calls_at_once():
    async with other_process(SERVER) as process:
        address = (await process.stdout.readline()).decode().strip()
        async with Client.connect(address) as client:
            calls = [asyncio.ensure_future(client.call("Slow.wait")) for _ in range(3)]
            await client.call("rpc.Introspection.services")
            process.send_signal(signal.SIGKILL)
            outcomes = await asyncio.gather(*calls, return_exceptions=True)
            assert {type(outcome) for outcome in outcomes} == {Unavailable}
            assert {outcome.maybe_executed for outcome in outcomes} == {True}
            assert client.closed
            with pytest.raises(Unavailable) as caught:
                await client.call("Slow.wait")
            assert not caught.value.maybe_executed


async def test_stop_refuses_a_call_that_crosses_its_goaway():
    gate = Gate()
    async with serving(gate, Echo()) as (server, address), accepted(address) as wire:
        await wire.send(request(1, "Gate.wait"))
        await gate.started.wait()
        stopping = asyncio.ensure_future(server.stop(grace=10))
        goaway = await wire.receive()
        assert (goaway.type, goaway.call_id) == (GOAWAY, 1)
        await wire.send(request(2, "Echo.echo", "too late"))
        refused = await wire.receive()
        assert (refused.call_id, refused.value[0]) == (2, "unavailable")
        gate.opened.set()
        answer = await wire.receive()
        assert (answer.call_id, answer.value) == (1, "through")
        assert await wire.receive() is None
        await stopping


async def test_stop_without_grace_fails_the_calls_that_run():
    gate = Gate()
    async with pair(gate) as (server, client):
        running = asyncio.ensure_future(client.call("Gate.wait"))
        await gate.started.wait()
        began = time.monotonic()
        await server.stop(0)
        assert time.monotonic() - began < 1
        with pytest.raises(Unavailable) as caught:
            await running
        assert caught.value.maybe_executed
        assert gate.cancelled.is_set()
        assert server.stats["running"] == server.stats["tasks"] == 0


async def test_stop_waits_no_longer_than_the_close_timeout_for_a_peer_that_does_not_read():
    config = ServerConfig(close_timeout=0.2)
    async with serving(Echo(), config=config) as (server, address), accepted(address) as wire:
        wire._writer.transport.pause_reading()
        large = "x" * (1 << 20)
        for call_id in range(1, 13):  # not to be waited for: the server stops reading, too
            wire._writer.write(request(call_id, "Echo.echo", large))
        await until(lambda: any(one.connection.wish is Wish.PAUSE for one in server.links))
        began = time.monotonic()
        await server.stop(0)
        assert time.monotonic() - began < 2


async def test_stop_leaves_a_stubborn_handler_behind_and_says_so(caplog):
    gate = Gate()
    config = ServerConfig(close_timeout=0.1)
    async with pair(gate, config=config) as (server, client):
        running = asyncio.ensure_future(client.call("Gate.stubborn"))
        await gate.started.wait()
        await server.stop(0)
        with pytest.raises(Unavailable):
            await running
        assert "1 handlers still running" in caplog.text
        gate.opened.set()
        await until(lambda: server.stats["running"] == 0)


async def test_stop_again_or_without_a_start_is_no_error():
    server = Server()
    await server.stop()
    await server.start("tcp://127.0.0.1:0")
    await asyncio.gather(server.stop(), server.stop())
    await server.stop()


@pytest.mark.parametrize("grace", [-1, float("nan")])
async def test_stop_with_a_grace_that_is_no_time_changes_nothing(grace):
    async with pair(Echo()) as (server, client):
        with pytest.raises(LocalProtocolError, match="grace must be seconds"):
            await server.stop(grace)
        assert await client.call("Echo.echo", 1) == 1
        async with Client.connect(client.address) as other:
            assert await other.call("Echo.echo", 2) == 2


async def test_server_serves_only_after_its_start():
    with pytest.raises(LocalProtocolError, match="start the server first"):
        await Server().serve_forever()


async def test_client_that_vanishes_has_its_handlers_cancelled(transport):
    listening, connecting = transport
    gate = Gate()
    async with serving(gate, **listening) as (server, address):
        client = await Client.connect(address, **connecting)
        waiting = asyncio.ensure_future(client.call("Gate.wait"))
        await gate.started.wait()
        client._protocol._transport.abort()
        with pytest.raises(Unavailable, match="closed"):
            await waiting
        async with asyncio.timeout(3):
            await gate.cancelled.wait()
        await client.close()
        await until(lambda: server.stats["connections"] == server.stats["running"] == 0)


async def test_server_that_stops_in_order_over_every_transport(transport):
    listening, connecting = transport
    gate = Gate()
    async with serving(gate, **listening) as (server, address):
        client = await Client.connect(address, **connecting)
        running = asyncio.ensure_future(client.call("Gate.wait"))
        await gate.started.wait()
        stopping = asyncio.ensure_future(server.stop(grace=10))
        await until(lambda: client.closed)
        gate.opened.set()
        assert await running == "through"
        await stopping
        await client.close()


async def test_stop_with_clients_in_the_handshake_does_not_hang():
    async with serving(Echo()) as (server, address):
        reader, writer = await asyncio.open_connection("127.0.0.1", int(address.split(":")[-1]))
        await until(lambda: server.stats["connections"] == 1)
        await server.stop(10)
        assert b"shutting down" in await reader.readline()
        writer.close()
        await writer.wait_closed()


async def test_server_as_a_context_stops_at_its_end():
    async with Server() as server:
        server.register(Echo())
        client = await Client.connect(await server.start("tcp://127.0.0.1:0"))
        assert await client.call("Echo.echo", 1) == 1
    await until(lambda: client.closed)
    await client.close()


async def test_serve_forever_returns_when_the_server_stops():
    async with serving(Echo()) as (server, _):
        for_ever = asyncio.ensure_future(server.serve_forever())
        await asyncio.sleep(0)
        await server.stop(0)
        await for_ever


async def test_cancelled_serve_forever_fails_its_clients_at_once():
    gate = Gate()
    async with pair(gate) as (server, client):
        for_ever = asyncio.ensure_future(server.serve_forever())
        running = asyncio.ensure_future(client.call("Gate.wait", timeout=60))
        await gate.started.wait()
        began = time.monotonic()
        for_ever.cancel()
        with pytest.raises(asyncio.CancelledError):
            await for_ever
        with pytest.raises(Unavailable):
            await running
        assert time.monotonic() - began < 1
        assert gate.cancelled.is_set()


async def test_client_told_to_go_away_finishes_its_calls_and_leaves():
    async def send_away(wire: Wire) -> None:
        await wire.line()
        await wire.send(accept_line("json"))
        first = await wire.receive()
        await wire.send(frame(GOAWAY, first.call_id, b'["unavailable","later"]'))
        await wire.send(frame(2, first.call_id, b'"answer"'))
        assert await wire.receive() is None

    async with (
        answering(send_away) as address,
        await Client.connect(address, codec="json") as client,
    ):
        assert await client.call("Echo.echo", 1) == "answer"
        await until(lambda: client.closed)
        with pytest.raises(Unavailable) as caught:
            await client.call("Echo.echo", 2)
        assert not caught.value.maybe_executed


async def test_calls_after_the_last_that_a_goaway_names_are_safe_to_retry():
    async def send_away(wire: Wire) -> None:
        await wire.line()
        await wire.send(accept_line("json"))
        first, _ = await wire.receive(), await wire.receive()
        await wire.send(frame(GOAWAY, first.call_id, b'["unavailable","later"]'))
        await wire.send(frame(2, first.call_id, b'"answer"'))
        assert await wire.receive() is None

    async with (
        answering(send_away) as address,
        await Client.connect(address, codec="json") as client,
    ):
        served, refused = await asyncio.gather(
            client.call("Echo.echo", 1), client.call("Echo.echo", 2), return_exceptions=True
        )
        assert served == "answer"
        assert isinstance(refused, Unavailable)
        assert not refused.maybe_executed


async def test_client_of_a_server_that_answers_what_was_never_asked_ends_its_connection():
    async def lie(wire: Wire) -> None:
        await wire.line()
        await wire.send(accept_line("json"))
        await wire.receive()
        await wire.send(frame(2, 77, b'"nobody asked"'))
        await wire.receive_all()

    async with answering(lie) as address, Client.connect(address, codec="json") as client:
        with pytest.raises(CallError, match="never made") as caught:
            await client.call("Echo.echo", 1)
        assert caught.value.code == "unavailable"


async def test_connection_is_closed_behind_a_violation():
    async with serving(Echo()) as (server, address), accepted(address) as wire:
        await wire.send(frame(1, 0, b"[1]", header=b'["Echo.echo"]', flags=ONE_WAY))
        (goaway,) = await wire.receive_all()
        assert goaway.type == GOAWAY
        await until(lambda: server.stats["connections"] == 0)


@pytest.mark.parametrize("turns", range(12))
async def test_connect_that_is_cancelled_at_any_turn_leaves_nothing_behind(turns):
    async with serving(Echo()) as (server, address):
        connecting = asyncio.create_task(Client.connect(address))
        for _ in range(turns):
            await asyncio.sleep(0)
        if connecting.cancel():
            with pytest.raises(asyncio.CancelledError):
                await connecting
        else:  # it was quicker
            await (await connecting).close()
        async with Client.connect(address) as other:  # is accepted behind it
            assert await other.call("Echo.echo", 1) == 1
        await until(lambda: server.stats["connections"] == 0)
