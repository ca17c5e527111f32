"""Where a gevent server and client live: stopping, threads, forks, patching, other servers."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any
from urllib.request import urlopen

import gevent
import pytest
from gevent.pywsgi import WSGIServer

from gevent_driver.support import ANY_PORT, LONGEST, Echo, Gate, Wire, pair, serving, until
from rpc_gevent import Client, Server
from rpc_proto import (
    CallError,
    HandshakeError,
    LocalProtocolError,
    ServerConfig,
    Unavailable,
    current_call,
)
from support.by_hand import option_line
from support.certificates import Authority


def test_stop_lets_running_calls_end() -> None:
    gate = Gate()
    with pair(gate, grace=5.0) as (server, client):
        pending = client.start("Gate.wait", 1)
        gate.started.wait()
        stopping = gevent.spawn(server.stop, LONGEST)
        until(lambda: client.closed)
        with pytest.raises(Unavailable):
            client.call("Gate.wait", 2)
        gate.opened.set()
        assert pending.result() == 1
        stopping.get()
        assert server.stats["connections"] == 0


@pytest.mark.fault(141)
def test_client_whose_thread_has_ended_is_closed_when_it_is_dropped() -> None:
    with serving(Echo()) as (server, address):
        kept: list[Client] = []
        thread = threading.Thread(target=lambda: kept.append(Client.connect(address)))
        thread.start()
        until(lambda: not thread.is_alive())
        with pytest.warns(ResourceWarning, match="unclosed <rpc_gevent.Client of"):
            kept.clear()
        until(lambda: not server.stats["connections"])


def test_stop_kills_what_takes_longer_than_the_grace() -> None:
    gate = Gate()
    with pair(gate) as (server, client):
        pending = client.start("Gate.wait")
        gate.started.wait()
        server.stop(grace=0.05)
        assert gate.killed.is_set()
        with pytest.raises(Unavailable):
            pending.result()
        assert server.stats["running"] == 0


def test_stop_leaves_behind_who_does_not_listen(caplog: pytest.LogCaptureFixture) -> None:
    gate = Gate()
    config = ServerConfig(close_timeout=0.1)
    with pair(gate, config=config) as (server, client):
        client.start("Gate.stubborn")
        gate.started.wait()
        server.stop(grace=0.0)
        assert [r.getMessage() for r in caplog.records] == ["stopped with 1 handlers still running"]
        gate.opened.set()
        until(lambda: server.stats["running"] == 0)


def test_serve_forever_ends_with_stop_and_stops_when_killed() -> None:
    for end in ("stop", "kill"):
        server = Server()
        with pytest.raises(LocalProtocolError, match="start"):
            server.serve_forever()
        server.register(Echo())
        address = server.start(ANY_PORT)
        serving = gevent.spawn(server.serve_forever)
        with Client.connect(address) as client:
            assert client.call("Echo.echo", 1) == 1
            server.stop() if end == "stop" else serving.kill()
            until(lambda c=client: c.closed)
        serving.join()
        with pytest.raises(LocalProtocolError, match="stopped"):
            server.start(ANY_PORT)


def test_the_last_bytes_are_not_lost() -> None:
    """The peer gets its refusal and its answers though it sends on and on."""
    with serving(Echo(), token="secret") as (_, address), Wire(address) as wire:
        wire.send(option_line(token="wrong") + bytes(200_000))
        assert wire.line()["error"]["code"] == "unauthenticated"


def test_closing_waits_for_no_peer_that_hangs() -> None:
    config = ServerConfig(close_timeout=0.1)
    with serving(Echo(), config=config) as (server, address), Wire(address).accepted():
        server.stop(grace=0.0)
        assert server.stats["connections"] == 0


def test_a_client_certificate(authority: Authority) -> None:
    class Who:
        def am_i(self) -> Any:
            certificate = current_call().peer.certificate
            assert certificate is not None
            return dict(field for [field] in certificate["subject"])["commonName"]

    listening: Any = {"address": "tls://127.0.0.1:0"}
    context = authority.server_context(client_certificates=True)
    with serving(Who(), ssl=context, **listening) as (server, address):
        known = authority.client_context(certificate=True)
        with Client.connect(address, ssl=known) as client:
            assert client.call("Who.am_i") == "alice"
        with pytest.raises((Unavailable, HandshakeError)):
            Client.connect(address, ssl=authority.client_context()).call("Who.am_i")
        with pytest.raises(Unavailable, match="CERTIFICATE_VERIFY_FAILED"):
            Client.connect(address)
        until(lambda: server.stats["connections"] == 0)


def test_a_tls_handshake_that_never_comes(authority: Authority) -> None:
    config = ServerConfig(handshake_timeout=0.1, close_timeout=0.1)
    tls: Any = {"address": "tls://127.0.0.1:0", "ssl": authority.server_context()}
    with serving(Echo(), config=config, **tls) as (server, address), Wire(address):
        until(lambda: server.stats["connections"] == 1)
        until(lambda: server.stats["connections"] == 0)


def in_thread(work: Callable[[], Any]) -> Any:
    """Return what a function returns or raises in a thread with a hub of its own."""
    ends: list[Any] = []

    def run() -> None:
        try:
            ends.append(work())
        except BaseException as error:
            ends.append(error)
        finally:
            gevent.get_hub().destroy()

    thread = threading.Thread(target=run)
    thread.start()
    until(lambda: ends)
    thread.join(LONGEST)
    return ends[0]


def test_each_thread_has_a_hub() -> None:
    def other() -> Any:
        with (
            gevent.Timeout(LONGEST),
            pair(Echo(), Gate()) as (_, own),
            Client.connect(address) as c,
        ):
            callers = [gevent.spawn(c.call, "Echo.echo", n) for n in range(50)]
            callers += [gevent.spawn(own.call, "Echo.echo", n) for n in range(50)]
            gevent.joinall(callers)
            return [caller.value for caller in callers]

    with pair(Echo()) as (_, client):
        address = client.address
        assert in_thread(other) == [*range(50), *range(50)]
        assert client.call("Echo.echo", 1) == 1


def test_the_wrong_thread_is_told_so() -> None:
    with pair(Echo()) as (server, client):
        for work in (
            lambda: client.call("Echo.echo", 1),
            client.close,
            server.stop,
            lambda: server.start(ANY_PORT),
        ):
            error = in_thread(work)
            assert isinstance(error, LocalProtocolError)
            assert "another hub" in str(error)
        pending = client.start("Echo.echo", 2)
        assert isinstance(in_thread(pending.result), LocalProtocolError)
        assert isinstance(in_thread(pending.cancel), LocalProtocolError)
        assert pending.result() == 2


def test_a_callback_of_the_hub_is_told_so() -> None:
    ends: list[Exception] = []

    def call() -> None:
        try:
            client.call("Echo.echo", 1)
        except LocalProtocolError as error:
            ends.append(error)

    with pair(Echo()) as (_, client):
        gevent.get_hub().loop.run_callback(call)
        until(lambda: ends)
        assert "callback" in str(ends[0])


def test_giving_up_needs_no_greenlet() -> None:
    far, near = Gate(), Gate()

    class Hop:
        def on(self) -> None:
            pending = client.start("Far.wait")
            current_call().on_cancel(pending.cancel)
            near.wait()

    with serving(Hop()) as (server, address), Client.connect(address) as client:
        server.register(far, "Far")
        pending = client.start("Hop.on")
        far.started.wait()
        pending.cancel()
        far.killed.wait()
        near.killed.wait()
        until(lambda: server.stats["running"] == 0)


def run_program(program: str, *arguments: str) -> str:
    path = os.pathsep.join(filter(None, sys.path))
    process = subprocess.run(
        [sys.executable, "-W", "error", "-c", program, *arguments],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=LONGEST,
        check=False,
    )
    assert process.stderr == ""
    return process.stdout


FORK = """
import os, gevent
from rpc_gevent import Client, Server

class Echo:
    def echo(self, value): return value

server = Server()
server.register(Echo())
address = server.start("tcp://127.0.0.1:0")
client = Client.connect(address)
assert client.call("Echo.echo", 1) == 1
inbox, outbox = os.pipe()
child = getattr(gevent.os if os.environ.get("KIND") == "gevent" else os, "fork")()
if not child:
    said = []
    for work in (lambda: client.call("Echo.echo", 2), client.close, server.stop):
        try:
            work()
        except Exception as error:
            said.append(f"{type(error).__name__}: {error}")
    gevent.sleep(0.1)
    # It can go on as a client of the parent, and serve on its own.
    with Client.connect(address) as own:
        said.append(str(own.call("Echo.echo", 3)))
    os.write(outbox, "\\n".join(said).encode())
    os._exit(0)
assert [client.call("Echo.echo", n, timeout=5) for n in range(200)] == list(range(200))
gevent.os.tp_read(inbox, 0)
print(gevent.os.tp_read(inbox, 10000).decode())
(gevent.os if os.environ.get("KIND") == "gevent" else os).waitpid(child, 0)
assert client.call("Echo.echo", 4) == 4
client.close()
server.stop()
"""


@pytest.mark.parametrize("kind", ["plain", "gevent"])
def test_a_child_uses_nothing_of_its_parent(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KIND", kind)
    *refused, last = run_program(FORK).strip().splitlines()
    assert len(refused) == 3
    for line in refused:
        assert line.startswith("LocalProtocolError: this ")
        assert "belongs to the parent process" in line
    assert last == "3"


PATCHED = """
import sys
patched = sys.argv[1] == "patched"
if patched:
    from gevent import monkey
    monkey.patch_all()
import socket, ssl, threading, gevent
plain = socket.socket
from rpc_gevent import Client, Server
assert socket.socket is plain
assert ("gevent" in plain.__module__) is patched

class Work:
    def add(self, a: int, b: int) -> int: return a + b
    def wait(self) -> int:
        if patched:
            import time
            time.sleep(0.05)
        else:
            gevent.sleep(0.05)
        return threading.get_ident()

addresses = ["tcp://localhost:0", "unix://" + sys.argv[2] + "/s", "tls://127.0.0.1:0"]
server_tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
server_tls.load_cert_chain(sys.argv[3])
client_tls = ssl.create_default_context(cafile=sys.argv[4])
with Server() as server:
    server.register(Work())
    for address in addresses:
        tls = address.startswith("tls")
        real = server.start(address, ssl=server_tls if tls else None)
        with Client.connect(real, ssl=client_tls if tls else None) as client:
            assert client.call("Work.add", 1, 2) == 3
            callers = [gevent.spawn(client.call, "Work.wait") for _ in range(50)]
            with gevent.Timeout(5):
                gevent.joinall(callers, raise_error=True)
            if patched:
                thread = threading.Thread(target=lambda: print(client.call("Work.add", 3, 4)))
                thread.start()
                thread.join()
            else:
                print(7)
print("done")
"""


@pytest.mark.parametrize("kind", ["plain", "patched"])
def test_with_and_without_monkey_patching(kind: str, tmp_path: Any, authority: Authority) -> None:
    server = str(authority.server_file)
    said = run_program(PATCHED, kind, str(tmp_path), server, str(authority.file))
    assert said.split() == ["7", "7", "7", "done"]


def test_importing_patches_nothing() -> None:
    program = "import rpc_gevent, gevent.monkey as m; print(m.saved)"
    assert run_program(program).strip() == "{}"


def test_beside_a_web_server() -> None:
    def application(environ: Any, start_response: Any) -> list[bytes]:
        with Client.connect(address) as client:
            value = client.call("Echo.echo", environ["PATH_INFO"])
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [value.encode()]

    with serving(Echo()) as (_, address):
        web = WSGIServer(("127.0.0.1", 0), application, log=None)
        web.start()
        try:
            url = f"http://127.0.0.1:{web.server_port}/page"
            fetch = gevent.get_hub().threadpool.spawn(lambda: urlopen(url).read())
            assert fetch.get() == b"/page"
        finally:
            web.stop()


def test_a_call_may_be_waited_for_once_at_a_time() -> None:
    gate = Gate()
    with pair(gate) as (_, client):
        pending = client.start("Gate.wait", 1)
        first = gevent.spawn(pending.result)
        gate.started.wait()
        with pytest.raises(LocalProtocolError, match="another greenlet"):
            pending.result()
        gate.opened.set()
        assert first.get() == 1


def test_a_lost_connection_fails_its_calls() -> None:
    gate = Gate()
    with serving(gate) as (server, address):
        client = Client.connect(address)
        callers = [client.start("Gate.wait", n) for n in range(3)]
        gate.started.wait()
        for link in list(server.links):
            link.lose()
        for caller in callers:
            with pytest.raises(CallError) as raised:
                caller.result()
            assert raised.value.code == "unavailable"
        client.close()
        client.close()
