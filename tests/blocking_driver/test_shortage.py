"""While no thread can be started, what needs one is tried again, and `stale` tells the truth."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from blocking_driver.support import ANY_PORT, Echo, serving, until
from rpc_blocking import BalancedClient, Client, Server
from rpc_common.discovery.advertising import Advertisement
from rpc_common.discovery.snapshots import SavedRegistry
from rpc_discovery import FileDiscovery, Registry, RegistryDiscovery
from rpc_discovery.documents import encode
from rpc_proto import DeadlineExceeded, Unavailable


@contextmanager
def no_threads() -> Iterator[None]:
    usual = threading.stack_size(2**46)  # more than any machine has
    try:
        yield
    finally:
        threading.stack_size(usual)


@contextmanager
def registry() -> Iterator[tuple[Registry, str]]:
    known = Registry("epoch")
    with Server() as server:
        server.mount(known)
        yield known, server.start("http://127.0.0.1:0")


def addresses(known: Registry) -> list[str]:
    return [described["address"] for described in known.snapshot(time.monotonic())["nodes"]]


@pytest.mark.fault(136)
def test_view_is_stale_during_the_shortage_and_good_after_it():
    with registry() as (known, url), Server() as server:
        server.register(Echo())
        address = server.start(ANY_PORT, advertise=url)
        until(lambda: addresses(known) == [address])
        source = RegistryDiscovery(url, wait=0.0, refresh=0.1)
        with BalancedClient(source) as client:
            assert client.call("Echo.echo", 0, timeout=15.0) == 0
            with no_threads():
                until(lambda: client.stats["stale"] > 0)
                assert client.call("Echo.echo", 1) == 1
            until(lambda: client.stats["stale"] == 0)


@pytest.mark.fault(136)
def test_registration_that_lapsed_in_the_shortage_comes_back():
    with registry() as (known, url), Server() as server:
        server.register(Echo())
        address = server.start(ANY_PORT, advertise=Advertisement(url, ttl=1.0))
        until(lambda: addresses(known) == [address])
        with no_threads():
            until(lambda: not addresses(known))
        until(lambda: addresses(known) == [address])


@pytest.mark.fault(136)
def test_registration_may_begin_in_the_shortage(caplog):
    with registry() as (known, url), Server() as server:
        server.register(Echo())
        server.start(ANY_PORT)
        with no_threads():
            address = server.start(ANY_PORT, advertise=url)
            assert f"registration of {address} waits for a thread" in caplog.text
        until(lambda: addresses(known) == [address])


@pytest.mark.fault(136)
@pytest.mark.parametrize("kind", ["registry", "file"])
def test_client_that_is_first_used_in_the_shortage_says_so_and_works_after_it(kind, tmp_path):
    with registry() as (known, url), Server() as server:
        server.register(Echo())
        address = server.start(ANY_PORT, advertise=url)
        until(lambda: addresses(known) == [address])
        path = tmp_path / "nodes.json"
        path.write_bytes(encode({"nodes": [{"address": address}]}))
        source = RegistryDiscovery(url) if kind == "registry" else FileDiscovery(str(path))
        with BalancedClient(source) as client:
            with no_threads(), pytest.raises(DeadlineExceeded, match="can't start new thread"):
                client.call("Echo.echo", 1, timeout=0.3)
            assert client.call("Echo.echo", 1, timeout=15.0) == 1


@pytest.mark.fault(136)
def test_calls_of_several_nodes_go_one_after_another_in_the_shortage():
    with (
        serving(Echo()) as (_, one),
        serving(Echo()) as (_, two),
        BalancedClient([one, two]) as client,
    ):
        assert client.broadcast("Echo.echo", 1) == {one: 1, two: 1}
        with no_threads():
            assert client.broadcast("Echo.echo", 2) == {one: 2, two: 2}
            assert client.race("Echo.echo", 3) == 3
            assert client.call("Echo.echo", 4, hedge=True) == 4


@pytest.mark.fault(136)
def test_connection_that_waits_for_a_thread_to_close_it_is_closed_with_the_next(tmp_path):
    with serving(Echo()) as (_, one), serving(Echo()) as (_, two):
        path = tmp_path / "nodes.json"
        path.write_bytes(encode({"nodes": [{"address": one}]}))
        with BalancedClient(FileDiscovery(str(path), interval=0.01)) as client:
            client.call("Echo.echo", 1)
            with no_threads():
                path.write_bytes(encode({"nodes": [{"address": two}]}))
                until(lambda: [node.address for node in client.nodes] == [two])
                assert len(client._retired) == 1
            client.call("Echo.echo", 1)
            path.write_bytes(encode({"nodes": []}))
            until(lambda: not client.nodes and not client._retired)


@pytest.mark.fault(136)
def test_name_that_no_thread_can_look_up_is_a_failed_connect():
    with no_threads(), pytest.raises(Unavailable, match="no address for localhost: can't start"):
        Client.connect("tcp://localhost:1")


@pytest.mark.fault(136)
def test_snapshot_is_saved_after_the_shortage(tmp_path, caplog):
    known = Registry("epoch")
    saved = SavedRegistry(known, tmp_path / "nodes.json", interval=0.01)
    with Server() as server:
        server.mount(saved)
        url = server.start("http://127.0.0.1:0")
        with Server() as other:
            address = other.start(ANY_PORT, advertise=Advertisement(url, ttl=1.0))
            until(lambda: address in (tmp_path / "nodes.json").read_text())
            with no_threads():
                until(lambda: "nodes.json: can't start new thread" in caplog.text)
            until(lambda: saved.next_timeout() == known.next_timeout())  # nothing is left to save
    saved.close()


@pytest.mark.fault(139)
def test_start_without_a_thread_leaves_the_server_as_it_was(tmp_path):
    path = tmp_path / "rpc.sock"
    with Server() as server:
        server.register(Echo())
        for _ in range(2):
            with no_threads(), pytest.raises(OSError, match="no thread for the server"):
                server.start(f"unix://{path}")
            assert not path.exists()
        with Client.connect(server.start(f"unix://{path}")) as client:
            assert client.call("Echo.echo", 1) == 1


@pytest.mark.fault(139)
def test_server_that_could_not_start_stops_at_once():
    server = Server()
    with no_threads(), pytest.raises(OSError, match="no thread for the server"):
        server.start(ANY_PORT)
    began = time.monotonic()
    server.stop()
    assert time.monotonic() - began < 1.0


@pytest.mark.fault(139)
def test_connections_without_a_thread_are_closed_and_later_ones_served(caplog):
    with serving(Echo()) as (server, address):
        with no_threads():
            for _ in range(3):
                with pytest.raises((Unavailable, TimeoutError)):
                    Client.connect(address, timeout=0.3)
            until(lambda: server.stats["connections"] == 0)
        with Client.connect(address) as client:
            assert client.call("Echo.echo", 1) == 1
    said = [record.getMessage() for record in caplog.records]
    assert len([line for line in said if "no thread for the connection" in line]) == 1
