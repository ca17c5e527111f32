"""The rows of the table of faults that need sockets, time or load."""

import asyncio
import contextlib
import math
import socket
import struct
import threading
import time

import pytest

from asyncio_driver.support import (
    Echo,
    Gate,
    Wire,
    accepted,
    answering,
    dialled,
    in_bytes,
    pair,
    port_of,
    serving,
    silence,
    until,
)
from rpc_asyncio import Client
from rpc_proto import (
    ClientConfig,
    DeadlineExceeded,
    ServerConfig,
    Unavailable,
)
from support.by_hand import (
    ERROR,
    GOAWAY,
    PING,
    RAW,
    REQUEST,
    RESPONSE,
    accept_line,
    frame,
    option_line,
    request,
)

# Handshake


@pytest.mark.fault(1)
async def test_peer_that_leaves_at_once_is_forgotten_quietly(caplog):
    async with serving(Echo()) as (server, address):
        async with dialled(address):
            await until(lambda: server.stats["connections"] == 1)
        await until(lambda: server.stats["connections"] == 0)
    assert not caplog.records


async def test_answers_to_a_peer_that_is_gone_are_dropped_quietly(caplog):
    opened = asyncio.Event()

    class Large:
        async def wait(self) -> str:
            await opened.wait()
            return "x" * 100_000

    loop = asyncio.get_running_loop()
    async with serving(Large()) as (server, address):
        with socket.socket() as peer:
            peer.setblocking(False)
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            await loop.sock_connect(peer, ("127.0.0.1", port_of(address)))
            calls = b"".join(request(call_id, "Large.wait") for call_id in range(1, 21))
            await loop.sock_sendall(peer, option_line() + calls)
            await until(lambda: server.stats["running"] == 20)
        opened.set()  # all answers are written before the loop looks at the socket again
        await until(lambda: server.stats["connections"] == 0)
    assert not caplog.records


@pytest.mark.fault(6)
async def test_handshake_that_dribbles_is_refused_at_the_absolute_deadline():
    config = ServerConfig(handshake_timeout=0.3)
    async with serving(Echo(), config=config) as (server, address), dialled(address) as wire:
        began = time.monotonic()

        async def dribble() -> None:
            for byte in option_line(token="t" * 1000):
                await wire.send(bytes([byte]))
                await asyncio.sleep(0.01)

        dribbling = asyncio.create_task(dribble())
        refusal = await wire.line()
        took = time.monotonic() - began
        dribbling.cancel()
        await asyncio.wait([dribbling])
        assert refusal["error"]["code"] == "deadline_exceeded"
        assert 0.25 < took < 1.5
        await until(lambda: server.stats["connections"] == 0)


@pytest.mark.fault(9)
async def test_connect_to_a_silent_server_times_out_and_closes_its_socket():
    hung_up = asyncio.Event()

    async def listen_only(wire: Wire) -> None:
        await wire.line()
        assert await wire.receive() is None
        hung_up.set()

    async with answering(listen_only) as address:
        with pytest.raises(TimeoutError, match=r"no connection to tcp://.* within 0\.2 s"):
            await Client.connect(address, timeout=0.2)
        await hung_up.wait()


@pytest.mark.fault(9)
async def test_connect_that_times_out_within_tls_hangs_up(authority):
    hung_up = asyncio.Event()

    async def listen_only(wire: Wire) -> None:
        while await wire._reader.read(4096):
            pass
        hung_up.set()

    async with answering(listen_only) as address:
        with pytest.raises(TimeoutError, match=r"within 0\.2 s"):
            await Client.connect(
                address.replace("tcp", "tls"), timeout=0.2, ssl=authority.client_context()
            )
        await hung_up.wait()


# Frames


@pytest.mark.fault(15)
async def test_reset_inside_a_frame_cancels_the_handlers_of_that_client():
    gate = Gate()
    async with serving(gate, Echo()) as (server, address):
        async with accepted(address) as wire:
            await wire.send(request(1, "Gate.wait") + request(2, "Echo.echo", "x" * 100)[:50])
            await gate.started.wait()
            wire.reset()
            await gate.cancelled.wait()
        await until(lambda: server.stats["connections"] == 0)
        assert (server.stats["running"], server.stats["served"]) == (0, 0)


@pytest.mark.fault(15)
async def test_reset_inside_an_answer_fails_the_calls_that_wait():
    async def cut(wire: Wire) -> None:
        await wire.line()
        await wire.send(accept_line("json"))
        asked = await wire.receive()
        await wire.send(frame(RESPONSE, asked.call_id, b'"half an answer"')[:20])
        wire.reset()

    async with answering(cut) as address, Client.connect(address, codec="json") as client:
        with pytest.raises(Unavailable) as caught:
            await client.call("Echo.echo", 1)
        assert caught.value.maybe_executed
        assert client.closed


@pytest.mark.fault(15)
async def test_end_of_the_stream_inside_an_answer_fails_the_calls_that_wait():
    async def cut(wire: Wire) -> None:
        await wire.line()
        await wire.send(accept_line("json"))
        asked = await wire.receive()
        await wire.send(frame(RESPONSE, asked.call_id, b'"half an answer"')[:20])

    async with answering(cut) as address, Client.connect(address, codec="json") as client:
        with pytest.raises(Unavailable, match="inside a frame"):
            await client.call("Echo.echo", 1)


@pytest.mark.fault(18)
async def test_flood_of_tiny_frames_that_goes_on_starves_nobody():
    flooding = threading.Event()
    stop = threading.Event()

    def flood(port: int) -> None:
        chunk = frame(0x80) * 65536  # a type that is ignored: nothing comes back
        with socket.create_connection(("127.0.0.1", port)) as peer:
            peer.sendall(option_line())
            peer.recv(4096)
            peer.settimeout(0.2)
            while not stop.is_set():
                with contextlib.suppress(TimeoutError):
                    peer.sendall(chunk)
                flooding.set()

    async with pair(Echo()) as (_, client):
        thread = threading.Thread(target=flood, args=(port_of(client.address),))
        thread.start()
        try:
            await asyncio.to_thread(flooding.wait)
            for turn in range(20):
                assert await client.call("Echo.echo", turn, timeout=5.0) == turn
        finally:
            stop.set()
            await asyncio.to_thread(thread.join)


# Load and flow


@pytest.mark.fault(44)
async def test_flood_of_requests_that_provoke_errors_ends_the_connection():
    config = ServerConfig(refusals=50)
    async with serving(Echo(), config=config) as (_, address), accepted(address) as wire:
        await wire.send(b"".join(request(i, "Echo.missing") for i in range(1, 500)))
        frames = await wire.receive_all()
        assert 50 <= len([f for f in frames if f.type == ERROR]) <= 51
        assert frames[-1].type == GOAWAY
        assert frames[-1].value[0] == "resource_exhausted"


@pytest.mark.fault(44)
async def test_flood_that_ends_the_connection_does_not_disturb_another_one():
    config = ServerConfig(refusals=50)
    async with pair(Echo(), config=config) as (_, client), accepted(client.address) as wire:
        await wire.send(
            b"".join(request(i, "Echo.missing") for i in range(1, 500))
            + b"".join(request(i, "Echo.echo", i) for i in range(500, 510))
        )
        await wire.receive_all()
        assert await client.call("Echo.echo", "on") == "on"


@pytest.mark.fault(46)
async def test_peer_that_never_reads_is_no_longer_read_and_dropped_at_the_write_timeout():
    size = 16 * 1024
    config = ServerConfig(high_water=4 * size, write_timeout=0.5)
    loop = asyncio.get_running_loop()
    async with serving(Echo(), config=config) as (server, address):
        with socket.socket() as peer:
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            peer.setblocking(False)
            await loop.sock_connect(peer, ("127.0.0.1", port_of(address)))
            await loop.sock_sendall(peer, option_line())
            sent = held = 0
            began = time.monotonic()
            with contextlib.suppress(ConnectionError):
                while True:
                    sent += 1
                    await loop.sock_sendall(
                        peer,
                        frame(REQUEST, sent, bytes(size), header=b'["Echo.echo"]', flags=RAW),
                    )
                    held = max(held, in_bytes(server))
            assert time.monotonic() - began > 0.4
        # The mark of the transport, our own, and what one read may add.
        assert held < 64 * 1024 + 4 * size + 2 * 64 * 1024 + size
        assert sent * size < 32 * 1024 * 1024
        await until(lambda: server.stats["connections"] == 0)


@pytest.mark.fault(46)
async def test_peer_that_reads_again_in_time_gets_every_answer():
    config = ServerConfig(high_water=64 * 1024)
    async with serving(Echo(), config=config) as (_, address), accepted(address) as wire:
        size, count = 64 * 1024, 200
        sending = asyncio.create_task(
            wire.send(
                b"".join(
                    frame(REQUEST, i, bytes(size), header=b'["Echo.echo"]', flags=RAW)
                    for i in range(1, count + 1)
                )
            )
        )
        answers = [await wire.receive() for _ in range(count)]
        await sending
        assert [answer.call_id for answer in answers] == list(range(1, count + 1))
        assert all(len(answer.body) == size for answer in answers)


@pytest.mark.fault(46)
async def test_client_drops_a_server_that_never_reads_at_the_write_timeout():
    async def never_read(wire: Wire) -> None:
        await wire.line()
        wire._writer.transport.pause_reading()
        await wire.send(accept_line())
        await silence(wire)

    async with answering(never_read) as address:
        config = ClientConfig(write_timeout=0.2, high_water=64 * 1024, ping_interval=None)
        client = await Client.connect(address, config=config)
        calls = [client.call("Echo.echo", bytes(4 << 20), timeout=math.inf) for _ in range(4)]
        async with asyncio.timeout(5):
            outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} == {Unavailable}
        assert "did not read enough" in str(outcomes[0])
        await client.close()


@pytest.mark.fault(46)
async def test_peer_over_tls_that_never_reads_is_dropped_at_the_write_timeout(authority):
    config = ServerConfig(high_water=64 * 1024, write_timeout=0.3)
    context = authority.server_context()
    async with (
        serving(Echo(), address="tls://127.0.0.1:0", ssl=context, config=config) as (
            server,
            address,
        ),
        await Client.connect(address, ssl=authority.client_context()) as client,
    ):
        client._protocol._transport.pause_reading()
        calls = [client.call("Echo.echo", bytes(1 << 20)) for _ in range(40)]
        waiting = asyncio.gather(*calls, return_exceptions=True)
        await until(lambda: server.stats["running"] or server.stats["served"])
        await until(lambda: server.stats["connections"] == 0)
        assert server.stats["served"] < 40
        client._protocol._transport.resume_reading()
        assert Unavailable in {type(outcome) for outcome in await waiting}


@pytest.mark.fault(47)
async def test_notify_waits_while_sending_is_blocked_and_fails_at_its_deadline():
    async def never_read(wire: Wire) -> None:
        await wire.line()
        wire._writer.transport.pause_reading()
        await wire.send(accept_line())
        await silence(wire)

    async with answering(never_read) as address:
        config = ClientConfig(close_timeout=0.2, high_water=64 * 1024)
        client = await Client.connect(address, config=config)

        async def notify_for_ever() -> None:
            while True:
                await client.notify("Log.line", bytes(1 << 20), timeout=0.2)

        with pytest.raises(DeadlineExceeded) as caught:
            await notify_for_ever()
        assert not caught.value.maybe_executed
        await client.close()


@pytest.mark.fault(48)
async def test_client_that_is_really_gone_has_its_handlers_cancelled_soon():
    gate = Gate()
    async with serving(gate) as (server, address):
        async with accepted(address) as wire:
            await wire.send(request(1, "Gate.wait"))
            await gate.started.wait()
        async with asyncio.timeout(3):
            await gate.cancelled.wait()
        await until(lambda: server.stats["connections"] == 0)
        assert server.stats["running"] == 0


@pytest.mark.fault(49)
async def test_handler_that_outlives_its_deadline_is_answered_for_once():
    gate = Gate()
    async with serving(gate, Echo()) as (server, address), accepted(address) as wire:
        await wire.send(request(1, "Gate.stubborn", timeout=50))
        late = await wire.receive()
        assert (late.type, late.call_id, late.value[0]) == (ERROR, 1, "deadline_exceeded")
        await gate.cancelled.wait()
        assert server.stats["running"] == 1
        gate.opened.set()
        await until(lambda: server.stats["running"] == 0)
        await wire.send(request(2, "Echo.echo", "next"))
        assert (await wire.receive()).call_id == 2
        assert server.stats["tasks"] == 0


@pytest.mark.fault(49)
async def test_threads_that_outlive_their_deadline_are_counted_and_bounded():
    release = threading.Event()
    threads = set()

    class Slow:
        def block(self) -> None:
            threads.add(threading.get_ident())
            release.wait(20)

    async with pair(Slow(), Echo(), threads=2) as (server, client):
        calls = [client.call("Slow.block", timeout=0.2) for _ in range(6)]
        began = time.monotonic()
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert time.monotonic() - began < 2
        assert [type(outcome) for outcome in outcomes] == [DeadlineExceeded] * 6
        await until(lambda: server.stats["abandoned"] == 2)
        assert server.stats["running"] == 2
        assert await client.call("Echo.echo", "on") == "on"
        release.set()
        await until(lambda: server.stats["abandoned"] == 0)
        assert server.stats["running"] == 0
        assert len(threads) == 2


async def test_pings_are_answered():
    async with serving(Echo()) as (_, address), accepted(address) as wire:
        await wire.send(frame(PING, 7))
        assert (await wire.receive())[:3] == (6, 0, 7)
