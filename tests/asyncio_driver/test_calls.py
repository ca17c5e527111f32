"""Calls over sockets: values, transports, order, proxies, metadata, and what a server offers."""

import ast
import asyncio
import contextlib
import dataclasses
import os
import threading

import pytest

from asyncio_driver.support import ANY_PORT, Echo, Gate, pair, serving, until
from rpc_asyncio import Client, Server
from rpc_proto import (
    CallError,
    ClientConfig,
    Codec,
    HandshakeError,
    InvalidArgument,
    LocalProtocolError,
    ServerConfig,
    Unavailable,
    Unimplemented,
    current_call,
)


@dataclasses.dataclass
class Point:
    x: int
    y: int = 0


class Geometry:
    async def mirror(self, point: Point) -> Point:
        return Point(-point.x, -point.y)

    async def shift(self, point: Point, by: int = 1, *, times: int = 1) -> Point:
        return Point(point.x + by * times, point.y + by * times)

    def total(self, *points: Point) -> int:
        return sum(point.x + point.y for point in points)

    async def reverse(self, data: bytes) -> bytes:
        return data[::-1]


class GeometryApi:
    """What a client knows about the service."""

    async def mirror(self, point: Point) -> Point: ...

    async def reverse(self, data: bytes) -> bytes: ...


GeometryApi.__name__ = "Geometry"


@pytest.mark.parametrize("codec", ["msgpack", "json"])
async def test_typed_calls_over_every_transport(transport, codec):
    listening, connecting = transport
    async with (
        serving(Geometry(), **listening) as (_, address),
        await Client.connect(address, codec=codec, **connecting) as client,
    ):
        assert await client.call("Geometry.mirror", Point(1, 2)) == {"x": -1, "y": -2}
        assert await client.call("Geometry.mirror", {"x": 1}, returns=Point) == Point(-1, 0)
        assert await client.call("Geometry.shift", Point(1), returns=Point) == Point(2, 1)
        shifted = await client.call("Geometry.shift", Point(1), 2, times=3, returns=Point)
        assert shifted == Point(7, 6)
        assert await client.call("Geometry.shift", point=Point(0), returns=Point) == Point(1, 1)
        assert await client.call("Geometry.total", Point(1, 2), Point(3, 4)) == 10
        assert await client.call("Geometry.total") == 0


@pytest.mark.parametrize("size", [0, 1, 65_535, 65_536, 3_000_000])
async def test_bytes_travel_unchanged_over_every_transport(transport, size):
    listening, connecting = transport
    data = os.urandom(size)
    async with (
        serving(Geometry(), **listening) as (_, address),
        await Client.connect(address, **connecting) as client,
    ):
        assert await client.call("Geometry.reverse", data) == data[::-1]
        assert await client.call("Geometry.reverse", bytearray(data)) == data[::-1]
        assert await client.call("Geometry.reverse", memoryview(data)) == data[::-1]


async def test_large_bodies_at_once_in_both_directions():
    bodies = [os.urandom(1 << 20) for _ in range(20)]
    async with pair(Echo()) as (_, client):
        calls = [client.call("Echo.echo", body) for body in bodies]
        assert await asyncio.gather(*calls) == bodies


async def test_calls_are_answered_in_the_order_of_their_ends():
    class Doors:
        def __init__(self) -> None:
            self.doors = [asyncio.Event() for _ in range(10)]
            self.waiting = 0

        async def wait(self, number: int) -> int:
            self.waiting += 1
            await self.doors[number].wait()
            return number

    doors = Doors()
    async with pair(doors) as (_, client):
        ends = []
        calls = [asyncio.ensure_future(client.call("Doors.wait", i)) for i in range(10)]
        for call in calls:
            call.add_done_callback(lambda done: ends.append(done.result()))
        await until(lambda: doors.waiting == 10)
        for number in reversed(range(10)):
            doors.doors[number].set()
            await calls[number]
        assert ends == list(reversed(range(10)))


async def test_slow_call_delays_no_fast_one_on_its_own_or_another_connection():
    gate = Gate()
    async with (
        pair(gate, Echo()) as (_, client),
        await Client.connect(client.address) as other,
    ):
        slow = asyncio.ensure_future(client.call("Gate.wait"))
        await gate.started.wait()
        assert await client.call("Echo.echo", 1) == 1
        assert await other.call("Echo.echo", 2) == 2
        gate.opened.set()
        assert await slow == "through"


async def test_blocking_function_delays_no_fast_call():
    release = threading.Event()

    class Slow:
        def block(self) -> str:
            release.wait(20)
            return "done"

    async with pair(Slow(), Echo()) as (_, client):
        slow = asyncio.ensure_future(client.call("Slow.block"))
        for turn in range(10):
            assert await client.call("Echo.echo", turn) == turn
        assert not slow.done()
        release.set()
        assert await slow == "done"


async def test_ten_thousand_calls_at_once():
    async with pair(Echo()) as (server, client):
        answers = await asyncio.gather(*(client.call("Echo.echo", i) for i in range(10_000)))
        assert answers == list(range(10_000))
        assert server.stats["served"] == 10_000
        assert client.calls_in_flight == 0


async def test_many_tasks_share_one_client():
    async with pair(Echo()) as (_, client):

        async def user(name: int) -> None:
            for turn in range(50):
                assert await client.call("Echo.echo", [name, turn]) == [name, turn]

        async with asyncio.TaskGroup() as group:
            for name in range(20):
                group.create_task(user(name))


async def test_proxy_by_class_is_typed():
    async with pair(Geometry()) as (_, client):
        geometry = client.service(GeometryApi)
        assert await geometry.mirror(Point(1, 2)) == Point(-1, -2)
        assert await geometry.reverse(b"abc") == b"cba"
        with pytest.raises(AttributeError, match="no method 'fold'"):
            _ = geometry.fold


async def test_notify_runs_the_handler_and_answers_nothing():
    class Log:
        def __init__(self) -> None:
            self.lines: list[str] = []
            self.written = asyncio.Event()

        async def line(self, text: str) -> str:
            self.lines.append(text)
            self.written.set()
            return "not sent"

    log = Log()
    async with pair(log) as (_, client):
        assert await client.notify("Log.line", "text") is None
        assert client.calls_in_flight == 0
        await log.written.wait()
        assert log.lines == ["text"]


async def test_notify_of_an_unknown_method_is_lost_without_a_word():
    async with pair(Echo()) as (server, client):
        await client.notify("Log.line", "text")
        assert await client.call("Echo.echo", 1) == 1
        assert server.stats["refused"] == 1


async def test_more_notifications_than_slots_are_all_run():
    class Count:
        def __init__(self) -> None:
            self.seen = 0

        async def one(self) -> None:
            await asyncio.sleep(0)
            self.seen += 1

    count = Count()
    async with pair(count, config=ServerConfig(max_calls=8)) as (_, client):
        for _ in range(1000):
            await client.notify("Count.one")
        await until(lambda: count.seen == 1000)


async def test_handler_sees_its_call():
    class Call:
        async def see(self) -> list:
            call = current_call()
            return [call.deadline is not None, call.cancelled, call.peer.address]

    async with pair(Call()) as (_, client):
        own = client._protocol._transport.get_extra_info("sockname")
        assert await client.call("Call.see", timeout=5) == [
            True,
            False,
            f"{own[0]}:{own[1]}",
        ]


async def test_introspection_can_be_switched_off():
    async with pair(Geometry(), introspection=False) as (_, client):
        with pytest.raises(Unimplemented):
            await client.call("rpc.Introspection.services")


async def test_services_come_and_go_while_serving():
    gate = Gate()
    async with pair(Echo()) as (server, client):
        with pytest.raises(Unimplemented):
            await client.call("Gate.wait")
        server.register(gate)
        running = asyncio.ensure_future(client.call("Gate.wait"))
        await gate.started.wait()
        server.unregister("Gate")
        with pytest.raises(Unimplemented):
            await client.call("Gate.wait")
        gate.opened.set()
        assert await running == "through"


async def test_service_under_a_name_of_its_own():
    async with pair(Echo()) as (server, client):
        assert server.register(Echo(), "second.Echo") == "second.Echo"
        assert await client.call("second.Echo.echo", 1) == 1
        with pytest.raises(ValueError, match="registered already"):
            server.register(Echo())


async def test_arguments_that_cannot_be_encoded_fail_before_anything_is_sent():
    async with pair(Echo()) as (_, client):
        with pytest.raises(InvalidArgument, match="cannot be encoded") as caught:
            await client.call("Echo.echo", object())
        assert not caught.value.maybe_executed
        assert client.calls_in_flight == 0
        assert await client.call("Echo.echo", 1) == 1


async def test_several_addresses_at_once(tmp_path):
    async with serving(Echo()) as (server, address):
        path = await server.start(f"unix://{tmp_path}/rpc.sock")
        for each in (address, path):
            async with Client.connect(each) as client:
                assert await client.call("Echo.echo", each) == each


async def test_unix_socket_is_removed_when_the_server_stops(tmp_path):
    async with serving(Echo(), address=f"unix://{tmp_path}/rpc.sock"):
        assert (tmp_path / "rpc.sock").exists()
    assert not (tmp_path / "rpc.sock").exists()


async def test_ipv6_address():
    async with pair(Echo(), address="tcp://[::1]:0") as (_, client):
        assert client.address.startswith("tcp://[::1]:")
        assert await client.call("Echo.echo", 1) == 1


async def test_address_that_is_taken_cannot_be_had():
    async with serving(Echo()) as (_, address):
        other = Server()
        with pytest.raises(OSError, match=f"in use: '{address}'"):
            await other.start(address)
        await other.stop()


async def test_server_that_is_stopped_while_it_starts_does_not_listen():
    server = Server()
    await server.start(ANY_PORT)
    starting = asyncio.ensure_future(server.start("tcp://localhost:0"))
    await asyncio.sleep(0)
    await server.stop()
    [address] = await asyncio.gather(starting, return_exceptions=True)
    if isinstance(address, str):  # it had started by then
        with pytest.raises(Unavailable):
            await Client.connect(address)
    else:
        assert isinstance(address, LocalProtocolError)


async def test_stopped_server_does_not_start_again():
    server = Server()
    await server.start(ANY_PORT)
    await server.stop()
    with pytest.raises(LocalProtocolError, match="was stopped"):
        await server.start(ANY_PORT)


async def test_closed_client_takes_no_calls():
    async with serving(Echo()) as (_, address):
        client = await Client.connect(address)
        await client.close()
        assert client.closed
        with pytest.raises(CallError) as caught:
            await client.call("Echo.echo", 1)
        assert (caught.value.code, caught.value.maybe_executed) == ("unavailable", False)
        await client.close()


async def test_close_fails_the_calls_that_wait():
    gate = Gate()
    async with pair(gate) as (_, client):
        waiting = asyncio.ensure_future(client.call("Gate.wait"))
        await gate.started.wait()
        await client.close()
        with pytest.raises(CallError) as caught:
            await waiting
        assert caught.value.code == "cancelled"
        await gate.cancelled.wait()


async def test_call_given_up_makes_room_for_the_notification_behind_it():
    gate = Gate()
    async with pair(gate, Echo(), config=ServerConfig(max_calls=1)) as (_, client):
        first = asyncio.ensure_future(client.call("Gate.wait"))
        await gate.started.wait()
        second = asyncio.ensure_future(client.notify("Echo.echo", 1))
        await until(lambda: client.calls_in_flight == 2)
        first.cancel()
        async with asyncio.timeout(5):
            await second
        with contextlib.suppress(asyncio.CancelledError):
            await first


async def test_too_many_waiting_calls_are_refused():
    gate = Gate()
    async with serving(gate, config=ServerConfig(max_calls=1)) as (_, address):
        config = ClientConfig(max_queued_calls=2)
        async with Client.connect(address, config=config) as client:
            calls = [asyncio.ensure_future(client.call("Gate.wait")) for _ in range(3)]
            await gate.started.wait()
            with pytest.raises(CallError) as caught:
                await client.call("Gate.wait")
            assert caught.value.code == "resource_exhausted"
            assert not caught.value.maybe_executed
            gate.opened.set()
            await asyncio.gather(*calls)


async def test_codec_of_ones_own():
    codec = Codec(
        "repr", lambda value: repr(value).encode(), lambda data: ast.literal_eval(data.decode())
    )
    config = ServerConfig(codecs=(codec,))
    async with (
        serving(Geometry(), Echo(), config=config) as (_, address),
        await Client.connect(address, codec=codec) as client,
    ):
        assert await client.call("Echo.echo", {"complex": 1j}) == {"complex": 1j}
        assert await client.call("Geometry.total", {"x": 1}, {"x": 2, "y": 3}) == 6
        with pytest.raises(HandshakeError):
            await Client.connect(address, codec="json")
