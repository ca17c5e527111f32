"""Which transport carries what is asked of etcd, and that each of them leaves nothing behind."""

import asyncio
import os
import socket
import subprocess
import sys
import time
from importlib import import_module
from importlib.util import find_spec
from urllib.request import ProxyHandler, build_opener

import pytest

from conformance.backends import INSTALLED
from rpc_common.discovery.advertising import EtcdAdvertisement
from rpc_discovery import EtcdDiscovery, OperationFailed, PemFiles
from rpc_discovery.etcd.operations import EtcdOperation, Grant, KeepAlive, Range, Watch
from support.network import black_hole

HERE = "http://127.0.0.1:1"
SECURE = "https://127.0.0.1:1"

needs_asyncio = pytest.mark.skipif("asyncio" not in INSTALLED, reason="there is no rpc_asyncio")
needs_grpc = pytest.mark.skipif(
    "asyncio" not in INSTALLED or not (find_spec("aetcd") and find_spec("grpc")),
    reason="gRPC needs rpc_asyncio and pip install 'rpc-proto[etcd]'",
)


@pytest.fixture
def pems(authority):
    return PemFiles(str(authority.file), str(authority.client_file))


def watchers(etcd):
    """Return how many watches etcd has."""
    url = f"http://127.0.0.1:{etcd.members[0].metrics_port}/metrics"
    with build_opener(ProxyHandler({})).open(url, timeout=5.0) as answer:
        lines = answer.read().decode().splitlines()
    [line] = [one for one in lines if one.startswith("etcd_debugging_mvcc_watcher_total ")]
    return int(line.split()[1])


def until_watchers(etcd, count):
    deadline = time.monotonic() + 20.0
    while watchers(etcd) != count:
        assert time.monotonic() < deadline, watchers(etcd)
        time.sleep(0.02)


@pytest.mark.slow
def test_watch_that_is_given_up_is_cancelled_at_etcd(etcd, cast):
    until_watchers(etcd, 0)
    watches = [cast.watch(etcd.endpoints) for _ in range(3)]
    until_watchers(etcd, 3)
    watches[0].stop()
    until_watchers(etcd, 2)
    # One that the machine gives up itself, and opens again.
    machine, pump = watches[1].machine, watches[1].pump
    operation = machine._watch.id
    cast.runtime.do(lambda: pump.tell(lambda now: machine.failed(now, operation, "gone")))
    watches[1].until(lambda machine: machine._watching and machine._watch.id != operation)
    until_watchers(etcd, 2)
    for watch in watches:
        watch.stop()
    until_watchers(etcd, 0)


# What users may say


def carrier(ssl=None, transport=None, url=HERE):
    """Return what asyncio takes as the transport."""
    from rpc_asyncio.carriers import carriers

    async def choose():
        table = carriers(ssl, transport)
        grpc = table["etcd"].grpc_for(url)
        for one in table.values():
            one.close()
        return "gateway" if grpc is None else "grpc"

    return asyncio.run(choose())


@needs_grpc
def test_asyncio_takes_grpc_when_it_can_and_the_gateway_when_it_is_told_to(pems, authority):
    assert carrier() == "grpc"
    assert carrier(pems, url=SECURE) == "grpc"
    assert carrier(pems, "grpc", SECURE) == "grpc"
    assert carrier(transport="gateway") == "gateway"
    assert carrier(pems, "gateway", SECURE) == "gateway"


@needs_asyncio
def test_asyncio_takes_the_gateway_for_what_grpc_cannot_be_given(authority):
    assert carrier(authority.client_context(), url=SECURE) == "gateway"
    assert carrier(url=SECURE) == "gateway"  # with the authorities of the system


@pytest.mark.parametrize("kind", [EtcdDiscovery, EtcdAdvertisement])
def test_transport_that_cannot_be_is_refused_when_it_is_named(kind, authority):
    with pytest.raises(ValueError, match="must be 'grpc', 'gateway' or None, not 'http'"):
        kind(HERE, transport="http")
    with pytest.raises(ValueError, match=r"ssl must be PemFiles, not <ssl\.SSLContext"):
        kind(SECURE, transport="grpc", ssl=authority.client_context())
    with pytest.raises(ValueError, match=rf"{SECURE} needs ssl=PemFiles"):
        kind([HERE, SECURE], transport="grpc")


@pytest.mark.parametrize("name", [name for name in INSTALLED if name != "asyncio"])
def test_grpc_is_refused_where_there_is_none(name):
    package = import_module(f"rpc_{name}")
    with pytest.raises(ValueError, match="only asyncio supports transport 'grpc'"):
        package.BalancedClient(EtcdDiscovery(HERE, transport="grpc"))
    server = package.Server()
    with pytest.raises(ValueError, match="only asyncio supports transport 'grpc'"):
        server.start("tcp://127.0.0.1:0", advertise=EtcdAdvertisement(HERE, transport="grpc"))


@pytest.mark.parametrize("name", INSTALLED)
def test_files_that_are_not_there_are_refused_at_once(name, tmp_path, authority):
    package = import_module(f"rpc_{name}")
    for files in (
        PemFiles(str(tmp_path / "none")),
        PemFiles(str(authority.file), str(tmp_path / "none")),
    ):
        with pytest.raises(FileNotFoundError):
            package.BalancedClient(EtcdDiscovery(SECURE, ssl=files))


@pytest.mark.fault(145)
@pytest.mark.timeout(20)
@pytest.mark.parametrize("name", INSTALLED)
def test_fifo_in_place_of_a_tls_file_is_refused_at_once(name, tmp_path, authority):
    package = import_module(f"rpc_{name}")
    fifo = str(tmp_path / "fifo")
    os.mkfifo(fifo)
    mine = str(authority.client_file)
    for files in (
        PemFiles(fifo),
        PemFiles(str(authority.file), fifo),
        PemFiles(str(authority.file), mine, fifo),
    ):
        with pytest.raises(OSError, match="not a regular file"):
            package.BalancedClient(EtcdDiscovery(SECURE, ssl=files))


@pytest.mark.parametrize("name", INSTALLED)
def test_ssl_that_is_no_context_is_refused_and_named(name):
    package = import_module(f"rpc_{name}")
    with pytest.raises(ValueError, match="ssl must be an SSLContext, PemFiles or None, not True"):
        package.BalancedClient(EtcdDiscovery(SECURE, ssl=True))


@needs_asyncio
def test_host_with_an_address_that_is_silent_is_reached_at_the_next_one(etcd, monkeypatch):
    from rpc_asyncio.carriers import fetch
    from rpc_proto.http.client import Fetch

    port = etcd.members[0].port
    asked = []

    def look_up(host, *_, **__):
        asked.append(host)
        usual = (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "")
        return [(*usual, ("127.0.0.2", port)), (*usual, ("127.0.0.1", port))]

    async def ask():
        what = Fetch("GET", f"http://etcd.example:{port}/version")
        async with asyncio.timeout(2.0):  # as much as a request has
            await fetch(what)
        return what.status

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    with black_hole("127.0.0.2", port):
        assert asyncio.run(ask()) == 200
    assert asked == ["etcd.example"]


# Processes: what is imported, forks, gevent


def run(program):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], capture_output=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr.decode()) == (0, "")
    return done.stdout.decode().split()


CHOOSE = """
import asyncio, sys
from rpc_asyncio import BalancedClient
from rpc_asyncio.carriers import carriers
from rpc_discovery import EtcdDiscovery

async def choose(transport=None):
    source = EtcdDiscovery("http://127.0.0.1:1", transport=transport)
    client = BalancedClient(source)
    table = carriers(source.ssl, source.transport)
    grpc = table["etcd"].grpc_for("http://127.0.0.1:1")
    sys.stdout.write("gateway\\n" if grpc is None else "grpc\\n")  # a child may write, too
    for carrier in table.values():
        carrier.close()
    await client.close()
"""


@needs_asyncio
def test_grpc_is_imported_when_it_is_used_only_and_need_not_be_there():
    program = f"""{CHOOSE}
asyncio.run(choose("gateway"))
print("grpc" in sys.modules or "aetcd" in sys.modules)
sys.modules["aetcd"] = None
asyncio.run(choose())
try:
    asyncio.run(choose("grpc"))
except ImportError as error:
    print(str(error).endswith("pip install 'rpc-proto[etcd]'"))
"""
    assert run(program) == ["gateway", "False", "gateway", "True"]


@needs_grpc
@pytest.mark.skipif("gevent" not in INSTALLED, reason="there is no gevent")
def test_asyncio_takes_the_gateway_where_gevent_has_patched_sockets():
    program = f"from gevent import monkey; monkey.patch_all(){CHOOSE}asyncio.run(choose())"
    assert run(program) == ["gateway"]


@needs_grpc
def test_asyncio_takes_grpc_while_another_thread_is_importing_gevent():
    begun = "import types; sys.modules['gevent.monkey'] = types.ModuleType('gevent.monkey')"
    assert run(f"{CHOOSE}{begun}\nasyncio.run(choose())") == ["grpc"]


@needs_grpc
@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_child_of_a_process_with_grpc_takes_the_gateway():
    program = f"""{CHOOSE}
import os
asyncio.run(choose())
sys.stdout.flush()
child = os.fork()
asyncio.run(choose())
if not child:
    try:
        asyncio.run(choose("grpc"))
    except RuntimeError as error:
        print("child" in str(error))
sys.stdout.flush()
if child:
    assert os.waitpid(child, 0)[1] == 0
"""
    assert sorted(run(program)) == ["True", "gateway", "grpc", "grpc"]


# What answers may be no etcd


@needs_grpc
@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"\xff", "not etcd's"),
        (b"\0" * (16 * 1024 * 1024 + 1), "larger than max"),
        (None, "odd"),
    ],
    ids=["nonsense", "huge", "error"],
)
@pytest.mark.parametrize(
    "question",
    [Range(b"a"), Grant(5), KeepAlive(5), Watch(b"a", b"b", 1)],
    ids=lambda q: type(q).__name__,
)
def test_what_is_no_answer_of_etcd_fails_and_says_why(question, answer, reason):
    import grpc

    from rpc_asyncio.etcd_grpc import Grpc

    class Anything(grpc.GenericRpcHandler):
        def service(self, details):
            async def answer_all(requests, context):
                if answer is None:
                    await context.abort(grpc.StatusCode.DATA_LOSS, "odd")
                yield answer

            return grpc.stream_stream_rpc_method_handler(answer_all)

    async def ask():
        server = grpc.aio.server(options=[("grpc.max_send_message_length", -1)])
        server.add_generic_rpc_handlers([Anything()])
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        carrier = Grpc(None)
        operation = EtcdOperation(1, f"http://127.0.0.1:{port}", question, 10.0, "")
        with pytest.raises(OperationFailed) as failed:
            await carrier.carry(operation, lambda message: None)
        assert not carrier.links
        await asyncio.gather(*carrier.closing)
        await server.stop(None)
        return str(failed.value)

    assert reason in asyncio.run(ask())
