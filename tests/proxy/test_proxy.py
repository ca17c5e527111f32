"""Through a real proxy, tinyproxy, to every kind of address."""

import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from blocking_driver.support import Echo, idle, serving, until
from cli.processes import Process, kill
from conformance.runtimes import Runtime
from rpc_proto import HandshakeError
from support.certificates import Authority

TINYPROXY = shutil.which("tinyproxy")

pytestmark = pytest.mark.skipif(TINYPROXY is None, reason="tinyproxy is not installed")

# In seconds: for what has nothing to wait for, and for the proxy to start or stop.
SOON = 3.0
PATIENCE = 10.0

SCHEMES = ("tcp", "tls", "http", "https")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


class Tinyproxy:
    """A running proxy; `tunnels` counts the CONNECTs that it has let through."""

    def __init__(self, folder: Path, *settings: str) -> None:
        self._log = folder / "tinyproxy.log"
        self._config = folder / "tinyproxy.conf"
        self._settings = settings
        self._start()
        until(self._is_ready)

    def _start(self) -> None:
        self.port = free_port()
        lines = [
            f"Port {self.port}",
            "Listen 127.0.0.1",
            "MaxClients 50",
            f'LogFile "{self._log}"',
            "LogLevel Info",
            *self._settings,
        ]
        self._config.write_text("\n".join(lines) + "\n")
        self._log.write_text("")
        assert TINYPROXY is not None
        self._process = subprocess.Popen([TINYPROXY, "-d", "-c", self._config])

    def _is_ready(self) -> bool:
        if self._process.poll() is not None:  # somebody else has taken the port meanwhile
            self._start()
        return "Accepting connections" in self._log.read_text()

    def url(self, user_info: str = "") -> str:
        return f"http://{user_info}127.0.0.1:{self.port}"

    @property
    def tunnels(self) -> int:
        return self._log.read_text().count("Established connection to host")

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(PATIENCE)


@pytest.fixture(scope="module")
def servers(authority: Authority) -> Iterator[dict[str, str]]:
    """The address for each scheme of a server that echoes."""
    with ExitStack() as stack:
        plain, address = stack.enter_context(serving(Echo()))
        tls = authority.server_context()
        secure, safe = stack.enter_context(serving(Echo(), address="tls://127.0.0.1:0", ssl=tls))
        yield {
            "tcp": address,
            "http": address.replace("tcp:", "http:"),
            "tls": safe,
            "https": safe.replace("tls:", "https:"),
        }
        # A proxy may yet come with a connection for a client that gave up; it goes, too.
        until(lambda: not plain.stats["connections"] + secure.stats["connections"])
        until(lambda: idle(plain) and idle(secure))


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Tinyproxy]]:
    """start(*settings) starts a proxy that ends with the tests."""
    with ExitStack() as stack:

        def start(*settings: str) -> Tinyproxy:
            proxy = Tinyproxy(tmp_path_factory.mktemp("tinyproxy"), *settings)
            stack.callback(proxy.close)
            return proxy

        yield start


@pytest.fixture(scope="module")
def open_proxy(start: Callable[..., Tinyproxy]) -> Tinyproxy:
    return start()


@pytest.fixture(scope="module")
def closed_proxy(start: Callable[..., Tinyproxy]) -> Tinyproxy:
    return start("BasicAuth alice secret")


@pytest.fixture(scope="module")
def strict_proxy(start: Callable[..., Tinyproxy]) -> Tinyproxy:
    return start("ConnectPort 1")


@pytest.fixture(params=SCHEMES)
def target(
    request: pytest.FixtureRequest, servers: dict[str, str], authority: Authority
) -> dict[str, Any]:
    """How to connect to the server by one of the schemes."""
    tls = request.param in ("tls", "https")
    return {
        "address": servers[request.param],
        "ssl": authority.client_context() if tls else None,
    }


def assert_works(client_backend: Runtime, by_way_of: Tinyproxy, **options: Any) -> None:
    """Calls, small and large, go through the proxy."""
    before = by_way_of.tunnels
    with client_backend.connect(**options) as client:
        data = bytes(range(256)) * 4000
        assert client.call("Echo.echo", "through") == "through"
        assert client.call("Echo.echo", data) == data
    assert by_way_of.tunnels == before + 1


def assert_refused(client_backend: Runtime, code: str, match: str, **options: Any) -> None:
    began = time.monotonic()
    with pytest.raises(HandshakeError, match=match) as caught:
        client_backend.connect(**options)
    assert time.monotonic() - began < SOON
    assert caught.value.code == code
    assert "secret" not in str(caught.value)


def test_proxy_without_authentication(client_backend, target, open_proxy):
    assert_works(client_backend, open_proxy, **target, proxy=open_proxy.url())


def test_proxy_that_gets_its_credentials(client_backend, target, closed_proxy):
    proxy = closed_proxy.url("alice:s%65cret@")
    assert_works(client_backend, closed_proxy, **target, proxy=proxy)


@pytest.mark.fault(42)
def test_wrong_password_is_refused_at_once(client_backend, target, closed_proxy):
    # What the RFC wants is 407; tinyproxy says 401.
    match = r"HTTP 40[17] [\w ]+: it refuses these credentials$"
    url = closed_proxy.url("alice:secrets@")
    assert_refused(client_backend, "unauthenticated", match, **target, proxy=url)


@pytest.mark.fault(42)
def test_missing_credentials_are_asked_for_at_once(client_backend, target, closed_proxy):
    match = "HTTP 407 Proxy Authentication Required: it requires credentials$"
    assert_refused(client_backend, "unauthenticated", match, **target, proxy=closed_proxy.url())


@pytest.mark.fault(42)
def test_port_that_the_proxy_does_not_allow_is_refused(client_backend, target, strict_proxy):
    url = strict_proxy.url()
    assert_refused(client_backend, "permission_denied", "HTTP 403 ", **target, proxy=url)


@pytest.mark.fault(42)
def test_server_that_the_proxy_cannot_reach_is_unavailable(client_backend, open_proxy):
    address = f"tcp://127.0.0.1:{free_port()}"
    match = r"HTTP 5\d\d "
    assert_refused(client_backend, "unavailable", match, address=address, proxy=open_proxy.url())


def test_certificate_is_that_of_the_server_behind_the_proxy(client_backend, servers, open_proxy):
    began = time.monotonic()
    with pytest.raises(Exception, match="CERTIFICATE_VERIFY_FAILED"):
        client_backend.connect(servers["tls"], proxy=open_proxy.url())
    assert time.monotonic() - began < SOON


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("variable", ["own", "all_proxy", "ALL_PROXY"])
def test_environment_names_the_proxy(
    client_backend, servers, authority, open_proxy, monkeypatch, scheme, variable
):
    own = "http_proxy" if scheme == "http" else "HTTPS_PROXY"
    monkeypatch.setenv(own if variable == "own" else variable, f"127.0.0.1:{open_proxy.port}")
    tls = authority.client_context() if scheme in ("tls", "https") else None
    assert_works(client_backend, open_proxy, address=servers[scheme], ssl=tls, proxy="env")


@pytest.mark.parametrize("names", ["*", "other.org, 127.0.0.1", "127.0.0.1:{port}"])
def test_environment_names_hosts_without_proxy(
    client_backend, servers, open_proxy, monkeypatch, names
):
    monkeypatch.setenv("all_proxy", open_proxy.url())
    monkeypatch.setenv("no_proxy", names.format(port=servers["tcp"].rpartition(":")[2]))
    before = open_proxy.tunnels
    with client_backend.connect(servers["tcp"], proxy="env") as client:
        assert client.call("Echo.echo", 1) == 1
    assert open_proxy.tunnels == before


def test_environment_counts_only_when_it_is_asked_for(client_backend, servers, monkeypatch):
    monkeypatch.setenv("all_proxy", "http://127.0.0.1:1")
    with client_backend.connect(servers["tcp"]) as client:
        assert client.call("Echo.echo", 1) == 1


def test_environment_without_a_proxy_means_none(client_backend, servers, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")  # for http:// addresses
    with client_backend.connect(servers["tcp"], proxy="env") as client:
        assert client.call("Echo.echo", 1) == 1


def test_wrong_proxy_in_the_environment_is_said(client_backend, monkeypatch):
    monkeypatch.setenv("all_proxy", "socks5://alice:secret@127.0.0.1:1080")
    with pytest.raises(ValueError, match="in the environment: a proxy must be http://") as caught:
        client_backend.connect("tcp://rpc.invalid:1", proxy="env")
    assert "secret" not in str(caught.value)


# From the command line


def run(*arguments: str, **environment: str) -> tuple[int, str, str]:
    started = Process(*arguments, env=environment)
    try:
        return started.end()
    finally:
        kill(started)


def test_command_goes_through_a_proxy(servers, closed_proxy):
    before = closed_proxy.tunnels
    url = closed_proxy.url("alice:secret@")
    call = ("call", servers["http"], "Echo.echo", "1")
    assert run(*call, "--proxy", url) == (0, "1\n", "")
    assert run(*call, "--proxy=env", all_proxy=url) == (0, "1\n", "")
    code, output, _ = run("services", servers["tcp"], f"--proxy={url}")
    assert code == 0
    assert "Echo" in output
    assert closed_proxy.tunnels == before + 3


def test_command_says_in_a_line_why_the_proxy_refuses(servers, closed_proxy):
    code, output, errors = run(
        "call", servers["tcp"], "Echo.echo", "1", "--proxy", closed_proxy.url()
    )
    assert (code, output) == (1, "")
    assert "HTTP 407 Proxy Authentication Required" in errors
    assert errors.count("\n") == 1


@pytest.mark.parametrize(
    ("address", "proxy", "words"),
    [
        ("tcp://127.0.0.1:1", "socks5://alice:secret@127.0.0.1", "a proxy must be http://"),
        ("unix:///run/rpc.sock", "http://127.0.0.1", "a proxy cannot be used for"),
    ],
)
def test_wrong_proxy_is_wrong_usage(address, proxy, words):
    code, output, errors = run("call", address, "A.b", "--proxy", proxy)
    assert (code, output) == (2, "")
    assert words in errors
    assert "secret" not in errors
    assert errors.count("\n") == 1
