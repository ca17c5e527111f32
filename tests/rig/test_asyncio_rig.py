"""The rig of asyncio, as its users use it."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator

import pytest

from rpc_asyncio import BalancedClient, Client, Server
from rpc_common.discovery.advertising import Advertisement
from rpc_discovery import Registry, RegistryDiscovery
from rpc_proto import ClientConfig, DeadlineExceeded, NotFound, Unavailable
from rpc_testing import AsyncioRig, Deadlock


class Shop:
    """Does a little of everything."""

    def __init__(self) -> None:
        self.orders: list[str] = []
        self.cancelled: list[str] = []

    async def order(self, name: str) -> int:
        self.orders.append(name)
        return len(self.orders)

    async def bake(self, name: str, seconds: float) -> str:
        try:
            await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            self.cancelled.append(name)
            raise
        return name

    def count(self) -> int:
        sum(range(100_000))  # in a thread, for which virtual time waits
        return len(self.orders)

    async def find(self, name: str) -> str:
        raise NotFound(f"no {name}")

    async def weigh(self, parcels: AsyncIterator[str]) -> list[int]:
        return [len(parcel) async for parcel in parcels]

    async def ticks(self, count: int) -> AsyncIterator[int]:
        for number in range(count):
            yield number
            await asyncio.sleep(1)

    def pages(self, count: int) -> Iterator[str]:
        for number in range(count):
            yield str(number) * 10_000


# Calls


async def test_client_calls_a_service(asyncio_rig: AsyncioRig) -> None:
    client = await asyncio_rig.connect(Shop())
    assert await client.call("Shop.order", "tea") == 1
    assert await client.call("Shop.count") == 1
    with pytest.raises(NotFound):
        await client.call("Shop.find", "milk")


@pytest.mark.parametrize("codec", ["msgpack", "json"])
async def test_codec_is_the_real_one(asyncio_rig: AsyncioRig, codec: str) -> None:
    client = await asyncio_rig.connect(Shop(), codec=codec)
    assert await client.call("Shop.order", "\N{BLACK NIB}") == 1
    assert client.connection.agreed.codec == codec


async def test_time_passes_only_when_everybody_waits(asyncio_rig: AsyncioRig) -> None:
    began = time.monotonic()
    client = await asyncio_rig.connect(Shop())
    assert asyncio_rig.clock.now == 0
    assert await client.call("Shop.bake", "bread", 3600, timeout=4000) == "bread"
    assert asyncio_rig.clock.now == 3600
    await asyncio_rig.clock.advance(86_400)
    assert asyncio_rig.clock.now == 90_000
    assert time.monotonic() - began < 30


async def test_threads_of_handlers_take_no_virtual_time(asyncio_rig: AsyncioRig) -> None:
    client = await asyncio_rig.connect(Shop())
    assert await client.call("Shop.count", timeout=0.001) == 0
    assert asyncio_rig.clock.now == 0


async def test_deadline_is_exact_and_stops_the_handler(asyncio_rig: AsyncioRig) -> None:
    shop = Shop()
    client = await asyncio_rig.connect(shop)
    with pytest.raises(DeadlineExceeded):
        await client.call("Shop.bake", "bread", 60, timeout=5)
    assert asyncio_rig.clock.now == 5
    await asyncio_rig.clock.advance(0)
    assert shop.cancelled == ["bread"]


async def test_streams_of_coroutines_and_of_threads(asyncio_rig: AsyncioRig) -> None:
    client = await asyncio_rig.connect(Shop())
    assert [number async for number in client.stream("Shop.ticks", 5)] == [0, 1, 2, 3, 4]
    assert asyncio_rig.clock.now == 5
    pages = 0
    async for _ in client.stream("Shop.pages", 50):
        pages += 1
        await asyncio.sleep(1)
    assert (pages, asyncio_rig.clock.now) == (50, 55)


async def test_http_face_and_unix_paths_are_there(asyncio_rig: AsyncioRig) -> None:
    address = await asyncio_rig.serve(Shop(), address="tcp://shop:80")
    async with Client.connect("http://shop:80") as client:
        assert await client.call("Shop.order", "tea") == 1
    reader, writer = await asyncio.open_connection("shop", 80)
    writer.write(b"GET /healthz HTTP/1.1\r\nHost: shop\r\nConnection: close\r\n\r\n")
    assert (await reader.read()).startswith(b"HTTP/1.1 200 ")
    writer.close()
    assert address == "tcp://shop:80"
    assert await asyncio_rig.serve(Shop(), address="unix:///shop") == "unix:///shop"
    async with Client.connect("unix:///shop") as client:
        assert await client.call("Shop.count") == 0


async def test_address_in_use(asyncio_rig: AsyncioRig) -> None:
    await asyncio_rig.serve(Shop(), address="tcp://shop:80")
    with pytest.raises(OSError, match="already in use"):
        await asyncio_rig.serve(Shop(), address="tcp://shop:80")


async def test_nobody_listens(asyncio_rig: AsyncioRig) -> None:
    with pytest.raises(Unavailable, match="refused"):
        await Client.connect("tcp://nobody:80")


# What was called


async def test_calls_are_recorded(asyncio_rig: AsyncioRig) -> None:
    client = await asyncio_rig.connect(Shop())
    await client.call("Shop.bake", "bread", seconds=2, metadata={"oven": "left"})
    with pytest.raises(NotFound):
        await client.call("Shop.find", "milk")
    bake, find = asyncio_rig.calls
    assert repr(bake) == "Shop.bake('bread', seconds=2.0)"
    assert (bake.method, bake.args, bake.kwargs) == ("Shop.bake", ("bread",), {"seconds": 2.0})
    assert bake.metadata == {"oven": "left"}
    assert (bake.result, bake.error, bake.seconds) == ("bread", None, 2)
    assert isinstance(find.error, NotFound)


# Faults


async def test_stall_ends_a_call_at_its_deadline(asyncio_rig: AsyncioRig) -> None:
    client = await asyncio_rig.connect(Shop())
    asyncio_rig.network.stall()
    with pytest.raises(DeadlineExceeded):
        await client.call("Shop.order", "tea", timeout=3)
    assert asyncio_rig.clock.now == 3
    assert not asyncio_rig.calls
    asyncio_rig.network.resume()
    assert await client.call("Shop.order", "coffee") == 1  # the first was cancelled on its way


async def test_stall_holds_dials(asyncio_rig: AsyncioRig) -> None:
    address = await asyncio_rig.serve(Shop())
    asyncio_rig.network.stall()
    with pytest.raises(DeadlineExceeded):
        await Client.connect(address, timeout=7)
    assert asyncio_rig.clock.now == 7
    asyncio_rig.network.resume()
    async with Client.connect(address) as client:
        assert await client.call("Shop.count") == 0


async def test_pings_find_a_dead_peer(asyncio_rig: AsyncioRig) -> None:
    client = await asyncio_rig.connect(Shop(), config=ClientConfig(ping_interval=20))
    asyncio_rig.network.stall()
    with pytest.raises(Unavailable):
        await client.call("Shop.bake", "bread", 1000, timeout=2000)
    assert 20 < asyncio_rig.clock.now <= 40


async def test_reset_and_cut_fail_the_calls_in_flight(asyncio_rig: AsyncioRig) -> None:
    for fault in (asyncio_rig.network.reset, asyncio_rig.network.cut):
        client = await asyncio_rig.connect(Shop())
        pending = client.start("Shop.bake", "bread", 10)
        await asyncio_rig.clock.advance(1)
        fault()
        with pytest.raises(Unavailable) as failure:
            await pending
        assert failure.value.maybe_executed
        assert client.closed


@pytest.mark.parametrize("after", [0, 1, 15, 16, 17, 40])
async def test_reset_after_so_many_bytes(asyncio_rig: AsyncioRig, after: int) -> None:
    client = await asyncio_rig.connect(Shop())
    asyncio_rig.network.reset(after=after)
    with pytest.raises(Unavailable) as failure:
        await client.call("Shop.bake", "b" * 100, 1)
    assert failure.value.maybe_executed


async def test_slow_network_takes_time(asyncio_rig: AsyncioRig) -> None:
    client = await asyncio_rig.connect(Shop())
    asyncio_rig.network.slow(latency=0.25)
    await client.call("Shop.order", "tea")
    assert asyncio_rig.clock.now == pytest.approx(0.5)
    asyncio_rig.network.slow(rate=1000)
    await client.call("Shop.order", "t" * 10_000)
    assert asyncio_rig.clock.now == pytest.approx(10.6, abs=0.1)


async def test_lost_answer_is_one_that_may_have_been_executed(asyncio_rig: AsyncioRig) -> None:
    client = await asyncio_rig.connect(Shop())
    await client.call("Shop.order", "tea")
    asyncio_rig.network.drop_answer()
    with pytest.raises(Unavailable) as failure:
        await client.call("Shop.order", "coffee")
    assert failure.value.maybe_executed
    assert [call.args for call in asyncio_rig.calls] == [("tea",), ("coffee",)]


async def test_lost_answer_behind_connect(asyncio_rig: AsyncioRig) -> None:
    address = await asyncio_rig.serve(Shop(), address="tcp://shop:80")
    client = await Client.connect(address.replace("tcp", "http"))
    await client.call("Shop.order", "tea")
    asyncio_rig.network.drop_answer()
    with pytest.raises(Unavailable):
        await client.call("Shop.order", "coffee")
    await client.close()


async def test_balanced_client_goes_elsewhere(asyncio_rig: AsyncioRig) -> None:
    nodes = [await asyncio_rig.serve(Shop(), address=f"tcp://node-{n}:80") for n in range(3)]
    async with BalancedClient(nodes, balancer="round_robin") as client:
        for _ in range(6):
            await client.call("Shop.order", "tea")
        asyncio_rig.network.drop_answer()
        await client.call("Shop.order", "tea", idempotent=True)
        asyncio_rig.network.drop_answer()
        with pytest.raises(Unavailable):
            await client.call("Shop.order", "tea", idempotent=False)


async def test_refused_dials(asyncio_rig: AsyncioRig) -> None:
    address = await asyncio_rig.serve(Shop())
    asyncio_rig.network.refuse()
    with pytest.raises(Unavailable, match="refused"):
        await Client.connect(address)
    asyncio_rig.network.refuse(False)
    await (await Client.connect(address)).close()


async def test_large_values_meet_back_pressure(asyncio_rig: AsyncioRig) -> None:
    client = await asyncio_rig.connect(Shop())
    asyncio_rig.network.slow(latency=0.01)
    large = "x" * 3_000_000
    assert await client.call("Shop.bake", large, 0) == large


async def test_large_items_wait_for_nothing_but_their_taker(asyncio_rig: AsyncioRig) -> None:
    client = await asyncio_rig.connect(Shop())
    sizes = [number * 5000 for number in range(41)]
    sent = iter(["x" * size for size in sizes])
    assert await client.call("Shop.weigh", sent) == sizes
    assert asyncio_rig.clock.now == 0


# Whole systems


async def test_registry_and_nodes_in_one_process(asyncio_rig: AsyncioRig) -> None:
    registry = Server()
    registry.mount(Registry("first-life"))
    await registry.start("tcp://registry:80")
    node = Server()
    node.register(Shop())
    url = "http://registry:80"
    await node.start("tcp://node:80", advertise=Advertisement(url, ttl=10))
    async with BalancedClient(RegistryDiscovery(url)) as client:
        assert await client.call("Shop.order", "tea") == 1
        await asyncio_rig.clock.advance(3600)  # with every heartbeat
        assert await client.call("Shop.order", "tea") == 2
        await node.stop()
        with pytest.raises(Unavailable):
            await client.call("Shop.order", "tea", timeout=1)
    await registry.stop()


# Misuse


def test_everybody_waits_for_ever() -> None:
    rig = AsyncioRig()
    with rig.open(), pytest.raises(Deadlock, match="nothing is scheduled"):
        rig.run(asyncio.Event().wait())


def test_one_rig_at_a_time(asyncio_rig: AsyncioRig) -> None:
    with pytest.raises(RuntimeError, match="one rig at a time"), AsyncioRig().open():
        pass


def test_rig_in_a_plain_function(asyncio_rig: AsyncioRig) -> None:
    client = asyncio_rig.run(asyncio_rig.connect(Shop()))
    assert asyncio_rig.run(client.call("Shop.order", "tea")) == 1


def test_drivers_are_as_before_afterwards() -> None:
    import rpc_asyncio.client

    with AsyncioRig().open() as rig:
        assert rpc_asyncio.client.monotonic == rig.loop.time  # type: ignore[attr-defined]
    assert rpc_asyncio.client.monotonic is time.monotonic  # type: ignore[attr-defined]
