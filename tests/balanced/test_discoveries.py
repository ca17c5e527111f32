"""Where nodes are learnt of, and what happens while nothing is."""

import json
import os
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from balanced.support import SLACK, Place, runs, stats
from conformance.runtimes import until
from examples.own_discovery import AddressList
from rpc_discovery import FileDiscovery, RegistryDiscovery
from rpc_proto import DeadlineExceeded, Unavailable
from support.network import black_hole

TTL = 1.0  # seconds; the shortest


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def write(path, hosts) -> None:
    path.write_text(json.dumps([host.address() for host in hosts]))


# One's own


def test_discovery_of_a_users_own_needs_no_code_for_any_driver(place: Place, key):
    hosts = place.hosts(2)
    answers = [[hosts[0].address()], [host.address() for host in hosts]]
    asked = []

    class Inventory(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            body = json.dumps(answers[0]).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Inventory) as server:
        serving = threading.Thread(target=server.serve_forever, args=(0.01,))
        serving.start()
        try:
            client = place.client(AddressList(f"http://127.0.0.1:{server.server_port}/nodes"))
            assert client.call("Basic.count", key, 1, timeout=15.0) == 1
            assert stats(client)["nodes"] == 1
            del answers[0]
            until(lambda: stats(client)["nodes"] == 2)
        finally:
            server.shutdown()
            serving.join()
    assert set(asked) == {"/nodes"}
    until(lambda: stats(client)["stale"] > 0)
    assert client.call("Basic.count", key, 1) == 1  # with the last view


# Files


def test_file_is_followed_and_what_is_wrong_with_it_changes_nothing(place: Place, tmp_path, key):
    path = tmp_path / "nodes.json"
    hosts = place.hosts()
    write(path, hosts[:1])
    client = place.client(FileDiscovery(str(path), interval=0.01))
    assert client.call("Basic.count", key, 1, timeout=15.0) == 1
    assert stats(client)["stale"] == 0.0

    path.write_text("[nonsense")
    until(lambda: stats(client)["stale"] > 0)
    assert client.call("Basic.count", key, 1) == 1

    path.unlink()
    assert client.call("Basic.count", key, 1) == 1
    assert runs(hosts, key) == [3, 0, 0]

    other = tmp_path / "new"
    write(other, hosts[1:])
    os.replace(other, path)
    until(lambda: stats(client)["nodes"] == 2)
    assert stats(client)["stale"] == 0.0
    for _ in range(8):
        client.call("Basic.count", key)
    assert runs(hosts, key)[0] == 3
    hosts[0].settle(connections=0)  # its connection is closed


def test_call_without_any_view_waits_for_the_first_one(place: Place, tmp_path):
    path = tmp_path / "nodes.json"
    hosts = place.hosts(1)
    client = place.client(FileDiscovery(str(path), interval=0.01))
    call = client.start("Basic.echo", 1, timeout=15.0)
    until(lambda: client._real._troubles)
    assert not call.done
    write(path, hosts)
    assert call.outcome() == 1


def test_call_without_any_view_ends_with_its_deadline_and_says_why(place: Place, tmp_path):
    client = place.client(FileDiscovery(str(tmp_path / "none.json"), interval=0.01))
    began = time.monotonic()
    with pytest.raises(DeadlineExceeded, match=r"node was known: .*No such file") as caught:
        client.call("Basic.echo", 1, timeout=0.3)
    assert 0.25 < time.monotonic() - began < SLACK
    assert not caught.value.maybe_executed


# Registries


def registry_host(place: Place, number: int = 0, port: int = 0):
    host = place.own_host(number, registry=f"life-{number}", port=port)
    return host, host.address("http")


def registered(place: Place, registries, count: int = 2):
    """Give servers that register, each with a port that it keeps."""
    return [place.own_host(n, registries=registries, ttl=TTL) for n in range(count)]


@pytest.mark.fault(53, 54, 55)
def test_calls_go_on_while_the_registry_is_dead_and_when_it_is_back(place: Place, key):
    port = free_port()
    registry, url = registry_host(place, 0, port)
    hosts = registered(place, [url])
    client = place.client(RegistryDiscovery(url, grace=5.0))
    until(lambda: client.call("Basic.echo", 1, timeout=15.0) and stats(client)["nodes"] >= 2)

    registry.kill()
    until(lambda: stats(client)["stale"] > 0)
    for number in range(20):
        assert client.call("Basic.echo", number) == number

    registry_host(place, 1, port)
    until(lambda: client.call("Basic.echo", 1) == 1 and stats(client)["stale"] == 0)
    nodes = {node.address for node in client._real.nodes}
    assert {host.address() for host in hosts} <= nodes


@pytest.mark.fault(56)
def test_nodes_that_all_fall_silent_stay_for_a_while_and_say_so(place: Place):
    _, url = registry_host(place)
    hosts = registered(place, [url])
    client = place.client(RegistryDiscovery(url, grace=600.0, share=0.5))
    until(lambda: client.call("Basic.echo", 1, timeout=15.0) and stats(client)["nodes"] >= 2)
    for host in hosts:
        host.freeze()
    until(lambda: stats(client)["stale"] > 0)
    for host in hosts:
        host.thaw()
    assert stats(client)["nodes"] >= 1
    assert client.call("Basic.echo", 1, timeout=15.0) == 1


@pytest.mark.fault(57)
def test_two_registries_are_merged_and_one_may_die(place: Place, key):
    first, one = registry_host(place, 0)
    _, two = registry_host(place, 1)
    hosts = [*registered(place, [one], 1), *registered(place, [two], 1)]
    client = place.client(RegistryDiscovery([one, two]))
    addresses = {host.address() for host in hosts}
    until(
        lambda: (
            client.call("Basic.echo", 1, timeout=15.0) == 1
            and addresses <= {node.address for node in client._real.nodes}
        )
    )
    first.kill()
    for number in range(20):
        assert client.call("Basic.echo", number) == number
    assert addresses <= {node.address for node in client._real.nodes}


def test_server_that_stops_is_gone_before_any_call_fails(place: Place):
    _, url = registry_host(place)
    hosts = registered(place, [url])
    client = place.client(RegistryDiscovery(url))
    until(lambda: client.call("Basic.echo", 1, timeout=15.0) and stats(client)["nodes"] == 2)
    hosts[0].begin_stop(grace=10.0)
    while not hosts[0].stopped(timeout=0):
        assert client.call("Basic.echo", 1) == 1
    until(lambda: stats(client)["nodes"] == 1)
    assert client.call("Basic.echo", 1) == 1


def test_registry_without_nodes_is_said_at_once(place: Place):
    _, url = registry_host(place)
    with pytest.raises(Unavailable, match="no node offers 'Basic'"):
        place.client(RegistryDiscovery(url)).call("Basic.echo", 1, timeout=15.0)


def test_registry_that_is_not_there_is_named_in_the_error(place: Place):
    client = place.client(RegistryDiscovery("http://127.0.0.1:1"))
    with pytest.raises(DeadlineExceeded, match=r"http://127.0.0.1:1: .*(refused|Errno 111)"):
        client.call("Basic.echo", 1, timeout=0.5)


def test_registry_that_cannot_be_dialled_delays_no_close(place: Place):
    with black_hole() as address:
        client = place.client(RegistryDiscovery(address.replace("tcp", "http"), timeout=1.0))
        with pytest.raises(DeadlineExceeded, match="before any node was known"):
            client.call("Basic.echo", 1, timeout=0.2)
        began = time.monotonic()
        client.close()
        assert time.monotonic() - began < 0.7
