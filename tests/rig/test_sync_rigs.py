"""The rigs of gevent and of threads, as their users use them."""

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pytest

from rpc_proto import CallError, ClientConfig, DeadlineExceeded, NotFound, Unavailable
from rpc_testing import BlockingRig, Deadlock, GeventRig


class Shop:
    """Does a little of everything; `pause(seconds)` waits in the way of its backend."""

    def __init__(self, pause: Callable[[float], Any]) -> None:
        self.orders: list[str] = []
        self.pause = pause

    def order(self, name: str) -> int:
        self.orders.append(name)
        return len(self.orders)

    def bake(self, name: str, seconds: float) -> str:
        self.pause(seconds)
        return name

    def find(self, name: str) -> str:
        raise NotFound(f"no {name}")

    def ticks(self, count: int) -> Iterator[int]:
        for number in range(count):
            yield number
            self.pause(1)

    def weigh(self, parcels: Iterator[str]) -> list[int]:
        return [len(parcel) for parcel in parcels]

    def add_up(self, numbers: Iterator[int]) -> int:
        return sum(numbers)

    def echo(self, words: Iterator[str]) -> Iterator[str]:
        for word in words:
            yield word.upper()


Rig = GeventRig | BlockingRig


@pytest.fixture(params=["gevent", "blocking"])
def rig(request: pytest.FixtureRequest) -> Rig:
    return request.getfixturevalue(f"{request.param}_rig")


@pytest.fixture
def shop(rig: Rig) -> Shop:
    return Shop(gevent.sleep if isinstance(rig, GeventRig) else time.sleep)


@pytest.fixture
def client(rig: Rig, shop: Shop) -> Any:
    return rig.connect(shop)


@pytest.mark.parametrize("codec", ["msgpack", "json"])
def test_client_calls_a_service(rig: Rig, shop: Shop, codec: str) -> None:
    client = rig.connect(shop, codec=codec)
    assert client.call("Shop.order", "\N{BLACK NIB}") == 1
    assert client.connection.agreed.codec == codec
    with pytest.raises(NotFound):
        client.call("Shop.find", "milk")
    assert client.service("Shop").order("tea") == 2
    assert list(client.call_many("Shop.order", [("a",), ("b",)])) == [3, 4]
    assert client.start("Shop.order", "c").result() == 5
    client.notify("Shop.order", "d")
    rig.clock.advance(0)
    assert shop.orders[-1] == "d"


def test_time_passes_only_when_everybody_waits(rig: Rig, client: Any) -> None:
    began = time.monotonic()
    assert client.call("Shop.bake", "bread", 3600, timeout=4000) == "bread"
    assert rig.clock.now == pytest.approx(3600)
    rig.clock.advance(86_400)
    assert rig.clock.now == pytest.approx(90_000)
    assert time.monotonic() - began < 30


def test_deadline_is_exact(rig: Rig, client: Any) -> None:
    with pytest.raises(DeadlineExceeded):
        client.call("Shop.bake", "bread", 60, timeout=5)
    assert rig.clock.now == pytest.approx(5)


def test_deadline_of_a_call_that_was_started(rig: Rig, client: Any) -> None:
    pending = client.start("Shop.bake", "bread", 60, timeout=5)
    rig.clock.advance(4)
    assert not pending.done()
    rig.clock.advance(2)
    assert pending.done()
    with pytest.raises(DeadlineExceeded):
        pending.result()


def test_streams(rig: Rig, client: Any) -> None:
    assert list(client.stream("Shop.ticks", 5)) == [0, 1, 2, 3, 4]
    assert rig.clock.now == pytest.approx(5)
    assert client.call("Shop.add_up", iter(range(1000))) == 499_500
    with client.stream("Shop.echo") as stream:
        stream.send("tea")
        assert next(stream) == "TEA"
        stream.send("milk")
        stream.end()
        assert list(stream) == ["MILK"]


def test_calls_are_recorded(rig: Rig, client: Any) -> None:
    client.call("Shop.bake", "bread", seconds=2, metadata={"oven": "left"})
    with pytest.raises(NotFound):
        client.call("Shop.find", "milk")
    bake, find = rig.calls
    assert repr(bake) == "Shop.bake('bread', seconds=2.0)"
    assert bake.metadata == {"oven": "left"}
    assert (bake.result, bake.error, bake.seconds) == ("bread", None, pytest.approx(2))
    assert isinstance(find.error, NotFound)


def test_interceptors_at_both_ends(rig: Rig, shop: Shop) -> None:
    seen: list[str] = []

    def log(name: str) -> Callable[..., Any]:
        def see(call: Any, proceed: Any) -> Any:
            seen.append(f"{name} {call.method}")
            return proceed(call)

        return see

    client = rig.connect(
        shop, server={"interceptors": [log("server")]}, interceptors=[log("client")]
    )
    client.call("Shop.order", "tea")
    assert seen == ["client Shop.order", "server Shop.order"]


def test_coroutines_are_refused(rig: Rig) -> None:
    class Later:
        async def do(self) -> None: ...

    with pytest.raises(TypeError, match="asynchronous"):
        rig.connect(Later())


# Faults


def test_stall_ends_a_call_at_its_deadline(rig: Rig, client: Any) -> None:
    rig.network.stall()
    with pytest.raises(DeadlineExceeded):
        client.call("Shop.order", "tea", timeout=3)
    assert rig.clock.now == pytest.approx(3)
    assert not rig.calls
    rig.network.resume()
    assert client.call("Shop.order", "coffee") == 1


def test_pings_find_a_dead_peer(rig: Rig, shop: Shop) -> None:
    client = rig.connect(shop, config=ClientConfig(ping_interval=20))
    rig.network.stall()
    with pytest.raises(Unavailable):
        client.call("Shop.bake", "bread", 1000, timeout=2000)
    assert 20 < rig.clock.now <= 40


@pytest.mark.parametrize("fault", ["reset", "cut"])
def test_call_in_flight_fails(rig: Rig, client: Any, fault: str) -> None:
    pending = client.start("Shop.bake", "bread", 10)
    rig.clock.advance(1)
    getattr(rig.network, fault)()
    with pytest.raises(Unavailable) as failure:
        pending.result()
    assert failure.value.maybe_executed
    assert client.closed


@pytest.mark.parametrize("after", [0, 1, 16, 40])
def test_reset_after_so_many_bytes(rig: Rig, client: Any, after: int) -> None:
    rig.network.reset(after=after)
    with pytest.raises(Unavailable) as failure:
        client.call("Shop.bake", "b" * 100, 1)
    assert failure.value.maybe_executed


def test_slow_network_takes_time(rig: Rig, client: Any) -> None:
    rig.network.slow(latency=0.25)
    client.call("Shop.order", "tea")
    assert rig.clock.now == pytest.approx(0.5)
    rig.network.slow(rate=1000)
    client.call("Shop.order", "t" * 10_000)
    assert rig.clock.now == pytest.approx(10.6, abs=0.1)


def test_lost_answer(rig: Rig, client: Any, shop: Shop) -> None:
    rig.network.drop_answer()
    with pytest.raises(Unavailable) as failure:
        client.call("Shop.order", "coffee")
    assert failure.value.maybe_executed
    assert shop.orders == ["coffee"]


def test_large_values_meet_back_pressure(rig: Rig, client: Any) -> None:
    rig.network.slow(latency=0.01)
    large = "x" * 3_000_000
    assert client.call("Shop.bake", large, 0) == large


def test_large_items_wait_for_nothing_but_their_taker(rig: Rig, client: Any) -> None:
    sizes = [number * 5000 for number in range(41)]
    sent = iter(["x" * size for size in sizes])
    assert client.call("Shop.weigh", sent) == sizes
    assert rig.clock.now == pytest.approx(0)


# What is particular


def test_whole_system_of_gevent(gevent_rig: GeventRig) -> None:
    from rpc_common.discovery.advertising import Advertisement
    from rpc_discovery import Registry, RegistryDiscovery
    from rpc_gevent import BalancedClient, Server

    registry, node = Server(), Server()
    registry.mount(Registry("first-life"))
    registry.start("tcp://registry:80")
    node.register(Shop(gevent.sleep))
    url = "http://registry:80"
    node.start("tcp://node:80", advertise=Advertisement(url, ttl=10))
    with BalancedClient(RegistryDiscovery(url)) as client:
        assert client.call("Shop.order", "tea") == 1
        gevent_rig.clock.advance(3600)  # with every heartbeat
        assert client.call("Shop.order", "tea") == 2
        node.stop()
        with pytest.raises(Unavailable):
            client.call("Shop.order", "tea", timeout=1)
    registry.stop()


def test_time_of_gevent_is_virtual(gevent_rig: GeventRig) -> None:
    with gevent.Timeout(10, False):
        gevent.sleep(1000)
    assert gevent_rig.clock.now == 10
    event = gevent.event.Event()
    gevent.spawn_later(5, event.set)
    assert event.wait(7)
    assert gevent_rig.clock.now == 15
    killed = gevent.spawn(gevent.sleep, 1000)
    gevent.sleep(0)
    killed.kill()
    assert gevent_rig.clock.now == 15


def test_who_waits_for_ever_in_gevent(gevent_rig: GeventRig) -> None:
    gevent_rig.connect(Shop(gevent.sleep))
    with pytest.raises(Deadlock, match="still waits"):
        gevent.event.Event().wait()


def test_loop_of_gevent_is_as_before_afterwards() -> None:
    loop = gevent.get_hub().loop
    with GeventRig().open():
        assert gevent.get_hub().loop is not loop
    assert gevent.get_hub().loop is loop


def test_threads_of_a_test_call_at_once(blocking_rig: BlockingRig) -> None:
    client = blocking_rig.connect(Shop(time.sleep))
    results: list[Any] = []

    def call(number: int) -> None:
        try:
            results.append(client.call("Shop.bake", str(number), number, timeout=100))
        except CallError as error:
            results.append(error)

    threads = [threading.Thread(target=call, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    blocking_rig.clock.advance(50)
    for thread in threads:
        thread.join()
    assert sorted(results) == [str(number) for number in range(8)]


def test_handler_in_a_thread_calls_on(blocking_rig: BlockingRig) -> None:
    shop = blocking_rig.connect(Shop(time.sleep))

    class Front:
        def bake(self, name: str) -> str:
            return shop.call("Shop.bake", name, 30)

    front = blocking_rig.connect(Front())
    with pytest.raises(DeadlineExceeded):
        front.call("Front.bake", "bread", timeout=5)
    assert blocking_rig.clock.now == 5
    assert front.call("Front.bake", "bread", timeout=50) == "bread"


def test_who_waits_for_ever_in_a_thread() -> None:
    rig = BlockingRig()
    with rig.open():
        with pytest.raises(Deadlock, match="nothing is scheduled"):
            rig.wait_until(lambda: False)
        rig.loop.outside.enter()


def test_sleep_of_other_threads_is_real(blocking_rig: BlockingRig) -> None:
    took: list[float] = []

    def nap() -> None:
        began = time.monotonic()
        time.sleep(0.01)
        took.append(time.monotonic() - began)

    thread = threading.Thread(target=nap)
    thread.start()
    thread.join()
    assert took[0] >= 0.01
    time.sleep(100)
    assert blocking_rig.clock.now == 100


def test_balanced_client_for_threads(blocking_rig: BlockingRig) -> None:
    nodes = [blocking_rig.serve(Shop(time.sleep), address=f"tcp://node-{n}:80") for n in range(3)]
    client = blocking_rig.balance(nodes, balancer="round_robin")
    for _ in range(6):
        client.call("Shop.order", "tea")
    blocking_rig.network.drop_answer()
    client.call("Shop.order", "tea", idempotent=True)
    blocking_rig.network.drop_answer()
    with pytest.raises(Unavailable):
        client.call("Shop.order", "tea", idempotent=False)
    with pytest.raises(DeadlineExceeded):
        client.call("Shop.bake", "bread", 60, timeout=5)
    assert blocking_rig.clock.now == pytest.approx(5, abs=1)
