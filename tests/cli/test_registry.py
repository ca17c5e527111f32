"""`rpc-proto registry` and the servers and callers that use it, as processes."""

import json
import os
import select
import signal
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from cli.processes import wait_for_nodes
from support.certificates import Authority

ANYWHERE = "--listen=tcp://127.0.0.1:0"
BACKENDS = pytest.mark.parametrize("backend", ["asyncio", "blocking", "gevent"])


@pytest.fixture
def registry(start: Any) -> str:
    """The URL of a registry."""
    return start("registry", ANYWHERE).address()


def serve(start: Any, registry: str, *options: str, service: str = "Probe") -> tuple[Any, str]:
    server = start("serve", f"served:{service}", ANYWHERE, "--registry", registry, *options)
    address = server.address()
    wait_for_nodes(registry, lambda nodes: address in {node["address"] for node in nodes})
    return server, address


# Registry and servers


@BACKENDS
def test_registry_of_each_backend_says_its_url_and_ends_on_a_signal(
    run: Any, start: Any, backend: str
) -> None:
    registry = start("registry", ANYWHERE, "--backend", backend)
    url = registry.address()
    assert url.startswith("http://127.0.0.1:")
    assert run("nodes", "--registry", url, "--json")[0] == 0
    registry.signal(signal.SIGTERM)
    assert registry.end() == (0, "", "")


@BACKENDS
def test_server_of_each_backend_is_known_while_it_serves(
    start: Any, registry: str, backend: str
) -> None:
    server, address = serve(
        start,
        registry,
        *("--backend", backend, "--weight", "2.5", "--ttl", "60"),
        *("--node-metadata", "zone=eu-1", "--node-metadata", "rack=a=1"),
    )
    (node,) = wait_for_nodes(registry, lambda nodes: len(nodes) == 1)
    assert node["address"] == address
    assert list(node["services"]) == ["Probe"]
    assert node["services"]["Probe"] != ""
    assert (node["weight"], node["metadata"]) == (2.5, {"zone": "eu-1", "rack": "a=1"})
    server.signal(signal.SIGTERM)
    assert server.end() == (0, "", "")
    wait_for_nodes(registry, lambda nodes: nodes == [])


def test_killed_server_is_forgotten_after_its_ttl(start: Any, registry: str) -> None:
    server, _ = serve(start, registry, "--ttl", "1")
    server.signal(signal.SIGKILL)
    wait_for_nodes(registry, lambda nodes: nodes == [])


def test_advertised_host_takes_the_place_of_all_interfaces(start: Any, registry: str) -> None:
    server = start(
        *("serve", "served:Probe", "--listen=tcp://0.0.0.0:0", "--registry", registry),
        *("--advertise", "127.0.0.1"),
    )
    port = server.address().rpartition(":")[2]
    (node,) = wait_for_nodes(registry, lambda nodes: len(nodes) == 1)
    assert node["address"] == f"tcp://127.0.0.1:{port}"


def test_server_that_was_there_before_the_registry_is_known_soon(run: Any, start: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        listen = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    url = listen.replace("tcp", "http")
    server = start("serve", "served:Probe", ANYWHERE, "--registry", url, "--ttl", "1")
    server.address()
    assert f"registration at {url} failed" in server.process.stderr.readline().decode()
    assert start("registry", "--listen", listen).address() == url
    wait_for_nodes(url, lambda nodes: len(nodes) == 1)


def test_only_those_with_the_token_may_register(run: Any, start: Any) -> None:
    token = {"RPC_PROTO_REGISTRY_TOKEN": "secret"}
    registry = start("registry", ANYWHERE, "--protect-reads", env=token).address()
    stranger = start("serve", "served:Probe", ANYWHERE, "--registry", registry)
    stranger.address()
    assert "HTTP status 401" in stranger.process.stderr.readline().decode()
    server = start(
        *("serve", "served:Probe", ANYWHERE, "--registry", registry, "--verbose"), env=token
    )
    address = server.address()
    while "registered at" not in server.process.stderr.readline().decode():
        pass
    code, _, errors = run("nodes", "--registry", registry)
    assert (code, errors.count("\n")) == (1, 1)
    assert "HTTP status 401" in errors
    code, output, _ = run("nodes", "--registry", registry, "--registry-token", "secret", "--json")
    assert (code, [node["address"] for node in json.loads(output)["nodes"]]) == (0, [address])


def test_registry_with_tls_is_trusted_by_those_who_know_its_authority(
    run: Any, start: Any, tmp_path: Path
) -> None:
    Authority(tmp_path)
    listen = ("--listen=tls://127.0.0.1:0", "--tls-cert", "server.pem")
    registry = start("registry", *listen, cwd=tmp_path).address()
    assert registry.startswith("https://")
    trust = ("--registry", registry, "--registry-ca", str(tmp_path / "authority.pem"))
    server = start("serve", "served:Other", ANYWHERE, "--verbose", *trust)
    while "registered at" not in server.process.stderr.readline().decode():
        pass
    assert run("call", *trust, "Other.ping") == (0, '"pong"\n', "")
    code, _, errors = run("nodes", "--registry", registry)
    assert code == 1
    assert "CERTIFICATE_VERIFY_FAILED" in errors


# Snapshots


@BACKENDS
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_registry_knows_after_a_restart_what_it_knew(
    run: Any, start: Any, tmp_path: Path, backend: str, number: int
) -> None:
    path = tmp_path / "nodes.json"
    options = (ANYWHERE, "--backend", backend, "--snapshot", str(path))
    first = start("registry", *options)
    server, address = serve(start, first.address())
    server.signal(signal.SIGKILL)
    first.signal(number)
    assert first.end() == (0, "", "")
    assert [path.name for path in tmp_path.iterdir()] == ["nodes.json"]
    code, output, _ = run("nodes", "--registry", start("registry", *options).address(), "--json")
    assert (code, [node["address"] for node in json.loads(output)["nodes"]]) == (0, [address])


def test_registry_that_is_killed_has_saved_what_it_knew(start: Any, tmp_path: Path) -> None:
    path = tmp_path / "nodes.json"
    first = start("registry", ANYWHERE, "--snapshot", str(path))
    url = first.address()
    _, address = serve(start, url, "--ttl", "1")  # so its heartbeats bring the time to the registry
    wait_for_file(path, address)
    first.signal(signal.SIGKILL)
    first.end()
    second = start("registry", ANYWHERE, "--snapshot", str(path)).address()
    (node,) = wait_for_nodes(second, lambda nodes: len(nodes) == 1)
    assert node["address"] == address


def wait_for_file(path: Path, text: str) -> None:
    deadline = time.monotonic() + 20.0
    while text not in path.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"format": 2}', '{"format":1,"revision":1,"nodes":[{}]}']
)
def test_file_that_is_no_snapshot_is_an_error_and_stays(
    run: Any, tmp_path: Path, content: str
) -> None:
    path = tmp_path / "nodes.json"
    path.write_text(content)
    code, output, errors = run("registry", ANYWHERE, "--snapshot", str(path))
    assert (code, output, errors.count("\n")) == (1, "", 1)
    assert errors.startswith(f"rpc-proto: {path} is not a snapshot")
    assert path.read_text() == content


def test_snapshot_that_cannot_be_written_is_an_error_at_once(run: Any) -> None:
    code, output, errors = run("registry", ANYWHERE, "--snapshot", "/nowhere/nodes.json")
    assert (code, output, errors.count("\n")) == (1, "", 1)
    assert "cannot use the snapshot /nowhere/nodes.json: No such file" in errors


# Callers


def test_call_goes_to_a_node(run: Any, start: Any, registry: str) -> None:
    serve(start, registry)
    assert run("call", "--registry", registry, "Probe.nothing") == (0, "null\n", "")
    code, output, _ = run("call", "Probe.show", "-1", "--registry", registry, "2", "name=3")
    assert (code, json.loads(output)) == (0, [[-1, 2], {"name": 3}])


def test_call_of_a_node_that_is_killed_goes_to_another(run: Any, start: Any, registry: str) -> None:
    serve(start, registry, "--ttl", "3600")
    dead, _ = serve(start, registry, "--ttl", "3600")
    dead.signal(signal.SIGKILL)
    dead.end()
    for _ in range(4):
        assert run("call", "--registry", registry, "Probe.nothing") == (0, "null\n", "")


def test_node_key_balancer_and_idempotent_are_passed_on(
    run: Any, start: Any, registry: str
) -> None:
    nodes = [serve(start, registry, "--node-metadata", f"n={n}")[1] for n in range(2)]
    for node in nodes:
        code, _, errors = run("call", "--registry", registry, "Probe.nothing", "--node", node)
        assert (code, errors) == (0, "")
    call = ("call", "--registry", registry, "Probe.show", "--idempotent")
    for options in (("--key", "alice"), ("--balancer", "least_loaded")):
        assert run(*call, *options)[0] == 0
    code, _, errors = run(*call, "--node", "tcp://127.0.0.1:1")
    assert code == 1
    assert "no node 'tcp://127.0.0.1:1' is known" in errors


def test_broadcast_shows_the_result_or_error_of_each_node(
    run: Any, start: Any, registry: str
) -> None:
    nodes = [serve(start, registry)[1] for _ in range(2)]
    code, output, _ = run("call", "--registry", registry, "Probe.show", "1", "--broadcast")
    assert code == 0
    assert json.loads(output) == {node: {"result": [[1], {}]} for node in nodes}
    code, output, errors = run("call", "--registry", registry, "Probe.fail", "--broadcast")
    assert (code, errors) == (1, "")
    assert all("not_found: first line" in result["error"] for result in json.loads(output).values())


def test_one_of_several_registries_is_enough(run: Any, start: Any, registry: str) -> None:
    serve(start, registry)
    dead = "http://127.0.0.1:1"
    code, output, errors = run("call", "--registry", dead, "--registry", registry, "Probe.nothing")
    assert (code, output, errors.count("\n")) == (0, "null\n", 1)
    assert errors.startswith(f"rpc-proto: registry {dead}: ")


def test_services_of_all_nodes_come_with_how_many_offer_them(
    run: Any, start: Any, registry: str
) -> None:
    serve(start, registry)
    serve(start, registry)
    serve(start, registry, service="Other=Probe")
    serve(start, registry, service="Other")
    code, output, errors = run("services", "--registry", registry)
    assert (code, errors) == (0, "")
    assert "Probe  (2 nodes; 1 with other methods)\n  crash() -> None\n" in output
    assert "Other  (1 node)\n  ping() -> str\n" in output
    code, output, _ = run("services", "--registry", registry, "--json")
    assert list(json.loads(output)) == ["Other", "Probe"]


def test_nodes_are_a_table(run: Any, start: Any, registry: str) -> None:
    _, address = serve(
        start, registry, "--weight", "3", "--node-metadata", "zone=eu-1", "--ttl", "60"
    )
    code, output, errors = run("nodes", "--registry", registry)
    assert (code, errors) == (0, "")
    heading, row, count = (line.split() for line in output.splitlines())
    assert heading == ["ADDRESS", "SERVICES", "WEIGHT", "METADATA", "HEARTBEAT", "FLAPPED"]
    assert row[:4] == [address, "Probe", "3", "zone=eu-1"]
    assert row[5:] == ["s", "of", "60"]
    assert float(row[4]) < 20.1
    assert count == ["1", "node"]
    output = run("nodes", "--registry", registry, "--service", "Nobody")[1]
    assert output.splitlines()[1].strip() == "no nodes"


def test_nodes_are_watched_until_ctrl_c(start: Any, registry: str) -> None:
    watch = start("nodes", "--registry", registry, "--watch", "--json")
    assert json.loads(watch.line())["nodes"] == []
    server, address = serve(start, registry)
    (node,) = json.loads(watch.line())["nodes"]
    assert (node["address"], node["flaps"]) == (address, 0)
    server.signal(signal.SIGTERM)
    assert json.loads(watch.line())["nodes"] == []
    watch.signal(signal.SIGINT)
    assert watch.end() == (0, "", "")


def test_watch_goes_on_through_an_outage(start: Any) -> None:
    registry = start("registry", ANYWHERE)
    url = registry.address()
    serve(start, url)
    watch = start("nodes", "--registry", url, "--watch", "--json")
    before = json.loads(watch.line())
    registry.signal(signal.SIGKILL)
    during = json.loads(watch.line())
    assert [node["address"] for node in during["nodes"]] == [
        node["address"] for node in before["nodes"]
    ]
    assert during["errors"][0].startswith(f"registry {url}: ")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["call", "--registry", "tcp://127.0.0.1:1", "A.b"], "must be http(s)://host:port"),
        (["call", "--registry", "http://127.0.0.1:1"], "required: METHOD"),
        (["call"], "required: ADDRESS, METHOD"),
        (["call", "tcp://127.0.0.1:1", "A.b", "--key", "k"], "need --registry"),
        (["call", "--registry=http://127.0.0.1:1", "A.b", "--balancer=best"], "invalid choice"),
        (["call", "--registry=http://127.0.0.1:1", "A.b", "key=1"], "only be passed by position"),
        (["call", "--registry=http://127.0.0.1:1", "A.b", "--broadcast", "--key=k"], "all nodes"),
        (["services"], "give exactly one of ADDRESS"),
        (
            ["services", "tcp://127.0.0.1:1", "--registry=http://127.0.0.1:1"],
            "exactly one of ADDRESS",
        ),
        (["nodes"], "--registry --etcd is required"),
        (["registry", "--protect-reads"], "needs a token"),
        (["serve", "served:Other", "--weight", "1"], "need --registry"),
        (["serve", "served:Other", "--registry=http://h:1", "--weight=-1"], "from 0 to 1000"),
        (["serve", "served:Other", "--registry=http://h:1", "--ttl=0.5"], "from 1.0 to 3600"),
        (["serve", "served:Other", "--registry=http://h:1", "--node-metadata=x"], "key=value"),
        (
            ["serve", "served:Other", "--listen=tcp://0.0.0.0:0", "--registry=http://h:1"],
            "set the address they can reach",
        ),
    ],
)
def test_wrong_usage_is_one_line_and_code_2(run: Any, arguments: list[str], words: str) -> None:
    code, output, errors = run(*arguments)
    assert (code, output, errors.count("\n")) == (2, "", 1)
    assert errors.startswith("rpc-proto: ")
    assert words in errors


@pytest.mark.parametrize(
    "arguments", [["nodes"], ["services"], ["call", "A.b"]], ids=lambda words: words[0]
)
def test_registry_that_is_not_there_is_one_line_and_code_1(run: Any, arguments: list[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        url = f"http://127.0.0.1:{gone.getsockname()[1]}"
    code, output, errors = run(*arguments, "--registry", url)
    assert (code, output, errors.count("\n")) == (1, "", 1)
    assert errors.startswith(f"rpc-proto: registry {url}: ")


def test_what_is_no_registry_is_one_line_and_code_1(run: Any, server: str) -> None:
    url = server.replace("tcp", "http")
    code, output, errors = run("nodes", "--registry", url)
    assert (code, output, errors.count("\n")) == (1, "", 1)
    assert "HTTP status 404" in errors


def test_nodes_on_a_terminal_are_a_table_that_is_drawn_anew(start: Any, registry: str) -> None:
    _, first = serve(start, registry)
    mine, terminal = os.openpty()
    watch = start(
        *("nodes", "--registry", registry, "--watch"),
        stdout=terminal,
        env={"TERM": "xterm", "COLUMNS": "100"},
    )
    os.close(terminal)
    output = read_until(mine, b"", first)
    _, second = serve(start, registry)
    assert b"\x1b[1A" in read_until(mine, output, second)  # up, over what was there
    watch.signal(signal.SIGINT)
    assert (watch.process.wait(20.0), watch.process.stderr.read()) == (0, b"")
    os.close(mine)


def read_until(descriptor: int, output: bytes, text: str) -> bytes:
    deadline = time.monotonic() + 20.0
    while text.encode() not in output:
        ready, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
        assert ready, output
        output += os.read(descriptor, 65536)
    return output
