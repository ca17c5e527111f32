"""The built-in pages, asked for over real sockets from the servers of all backends."""

import contextlib
import importlib
import json
import socket
from collections.abc import Iterator
from http.client import HTTPConnection, HTTPResponse
from typing import Any

import pytest

from conformance.backends import package
from conformance.runtimes import Runtime, until
from conformance.services import Basic, Counters, Failing, with_coroutines
from rpc_proto import parse_address
from rpc_proto.http import Pages, Promise, Request, Response

FEATURE = "Pages over HTTP: debug, metrics, health; applications of one's own"
LIMIT = 20.0


class Browser(HTTPConnection):
    """An HTTP connection to an address of a server."""

    def __init__(self, address: str, tls: Any = None) -> None:
        super().__init__("localhost", timeout=LIMIT)
        self._where = parse_address(address)
        self._tls = tls

    def connect(self) -> None:
        where = self._where
        if where.scheme == "unix":
            self.sock = socket.socket(socket.AF_UNIX)
            self.sock.settimeout(LIMIT)
            self.sock.connect(where.path)
        else:
            self.sock = socket.create_connection((where.host, where.port), timeout=LIMIT)
        if self._tls is not None:
            self.sock = self._tls.wrap_socket(self.sock, server_hostname=where.host)

    def ask(self, target: str, method: str = "GET", **headers: str) -> tuple[HTTPResponse, str]:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self.request(method, target, headers=named)
        response = self.getresponse()
        return response, response.read().decode()

    def status(self, target: str, **headers: str) -> int:
        return self.ask(target, **headers)[0].status


class Site:
    """A server in this process."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self.server: Any = None
        self.address = ""

    @contextlib.contextmanager
    def serving(
        self, address: str = "tcp://127.0.0.1:0", ssl: Any = None, **options: Any
    ) -> Iterator["Site"]:
        self.server = importlib.import_module(package(self.runtime.name)).Server(**options)
        services: list[Any] = [Basic(Counters()), Failing()]
        if self.runtime.name == "asyncio":
            services = [with_coroutines(service) for service in services]
        for service in services:
            self.server.register(service)
        self.address = self.runtime.do(lambda: self.server.start(address, ssl=ssl))
        try:
            yield self
        finally:
            self.runtime.do(lambda: self.server.stop(0.0))

    @contextlib.contextmanager
    def browsing(self, tls: Any = None) -> Iterator[Browser]:
        with contextlib.closing(Browser(self.address, tls)) as browser:
            yield browser


@pytest.fixture
def site(client_backend: Runtime) -> Site:
    return Site(client_backend)


@pytest.mark.feature(FEATURE)
@pytest.mark.parametrize("scheme", ["tcp", "unix", "tls"])
def test_all_pages_come_over_one_connection_of_any_kind(site, scheme, tmp_path, authority):
    tls = authority.client_context() if scheme == "tls" else None
    address = f"unix://{tmp_path}/s" if scheme == "unix" else f"{scheme}://127.0.0.1:0"
    ssl = authority.server_context() if tls else None
    with site.serving(address, ssl), site.browsing(tls) as browser:
        response, page = browser.ask("/debug/rpc")
        assert response.status == 200
        assert response.headers["Content-Type"] == "text/html; charset=utf-8"
        assert "Basic" in page
        first = browser.sock
        response, text = browser.ask("/debug/rpc?format=json")
        assert response.headers["Cache-Control"] == "no-store"
        assert json.loads(text)["connections"]["open"] == 1
        response, text = browser.ask("/metrics")
        assert response.status == 200
        assert "rpc_server_connections 1.0" in text
        for path in ("/healthz", "/readyz", "/readyz?service=Basic"):
            assert browser.status(path) == 200
        assert browser.status("/readyz?service=Nobody") == 404
        response, text = browser.ask("/healthz", "HEAD")
        assert (response.headers["Content-Length"], text) == ("3", "")
        assert browser.sock is first


@pytest.mark.feature(FEATURE)
def test_calls_and_errors_are_in_the_pages(site):
    with (
        site.serving(),
        site.runtime.connect(site.address) as client,
        site.browsing() as browser,
    ):
        for number in range(3):
            client.call("Basic.echo", number)
        with pytest.raises(Exception, match="<b>nobody</b>"):
            client.call("Nobody.<b>nobody</b>")
        data = json.loads(browser.ask("/debug/rpc?format=json")[1])
        (basic,) = (service for service in data["services"] if service["name"] == "Basic")
        (echo,) = (method for method in basic["methods"] if method["name"] == "echo")
        assert (echo["begun"], echo["served"], echo["latency"]["count"]) == (3, 3, 3)
        assert [call["method"] for call in data["slowest"]] == ["Basic.echo"] * 3
        assert "<b>nobody</b>" in data["last_errors"][0]["message"]
        page = browser.ask("/debug/rpc")[1]
        assert "&lt;b&gt;nobody&lt;/b&gt;" in page
        assert "<b>nobody" not in page
        metrics = browser.ask("/metrics")[1]
        assert 'rpc_server_calls_total{code="ok",method="Basic.echo"} 3.0' in metrics
        assert 'rpc_server_calls_total{code="unimplemented",method="(unknown)"} 1.0' in metrics
        assert "<b>" not in metrics


@pytest.mark.feature(FEATURE)
def test_the_debug_page_is_not_for_a_stranger_s_name_or_a_proxy(site):
    with site.serving(), site.browsing() as browser:
        assert browser.status("/debug/rpc", Host="evil.example") == 403
        assert browser.status("/debug/rpc", X_Forwarded_For="10.0.0.1") == 403
        assert browser.status("/metrics", Host="evil.example") == 200
        assert browser.status("/debug/rpc", Host="127.0.0.1:7000") == 200


@pytest.mark.feature(FEATURE)
def test_pages_are_as_the_settings_say(site):
    pages = Pages(debug="token", metrics="off", token="secret")
    with site.serving(pages=pages), site.browsing() as browser:
        response, _ = browser.ask("/debug/rpc")
        assert response.status == 401
        assert len(response.headers.get_all("WWW-Authenticate")) == 2
        assert browser.status("/debug/rpc", Authorization="Bearer secret") == 200
        assert browser.status("/metrics") == 404


@pytest.mark.feature(FEATURE)
def test_readiness_is_what_the_server_said_last(site):
    with site.serving(), site.browsing() as browser:
        site.server.set_health("Basic", False)
        assert browser.status("/readyz?service=Basic") == 503
        assert browser.status("/readyz") == 200
        site.server.set_health("", False)
        assert browser.ask("/readyz")[1] == "not_serving\n"
        assert browser.status("/healthz") == 200
        site.server.set_health("", True)
        assert browser.status("/readyz") == 200


@pytest.mark.feature(FEATURE)
def test_an_application_of_one_s_own_may_promise(site):
    waiting: list[Promise] = []

    def news(request: Request, now: float) -> Promise:
        promise = Promise(now + LIMIT, lambda now: Response(204))
        waiting.append(promise)
        return promise

    with site.serving(), site.browsing() as browser:
        site.server.http.add("/news", news)
        browser.request("GET", "/news")
        until(lambda: waiting)
        site.runtime.do(lambda: waiting[0].settle(Response.text("at last")))
        assert browser.getresponse().read() == b"at last\n"
