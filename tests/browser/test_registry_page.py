"""The page of a registry in a real browser, with nodes that come, go, flap and lie."""

from collections.abc import Iterator
from typing import Any

import pytest

from rpc_blocking import Server
from rpc_blocking.runtime import BLOCKING
from rpc_common.discovery.advertising import Advertisement
from rpc_common.transport.fetch import fetch
from rpc_discovery import Registry
from rpc_discovery.documents import encode
from rpc_proto.http.client import Fetch
from support.pages import HOSTILE, PAYLOAD

pytestmark = pytest.mark.timeout(120)

NODE = "tcp://10.0.0.1:4000"

# Calls back when the function has a value, with that; it is asked again after each renewal.
UNTIL = """
const done = arguments[arguments.length - 1];
const ask = () => { const value = (%s)(); if (value) { observer.disconnect(); done(value); } };
const observer = new MutationObserver(ask);
observer.observe(document.body,
  { subtree: true, childList: true, attributes: true, characterData: true });
ask();
"""

ROWS = """[...document.querySelectorAll("tbody tr")].map(
  (row) => [...row.cells].map((cell) => cell.textContent))"""


class Clock:
    def now(self) -> float:
        return 0.0


@pytest.fixture
def registry() -> Iterator[str]:
    """The URL of a registry, as a browser on this machine calls it."""
    with Server() as host:
        host.mount(Registry("4f1c9a"))
        yield f"http://localhost:{host.start('tcp://127.0.0.1:0').rpartition(':')[2]}"


def ask(registry: str, method: str, target: str = "", body: bytes = b"") -> None:
    kind = [("Content-Type", "application/json")]
    what = Fetch(method, f"{registry}/registry/nodes{target}", kind, body)
    fetch(what, 10.0, BLOCKING)
    assert what.status < 300, what.body


def register(registry: str, **described: Any) -> None:
    ask(registry, "POST", body=encode({"address": NODE, **described}))


def until(browser: Any, function: str) -> Any:
    return browser.execute_async_script(UNTIL % function)


def test_nodes_that_come_and_go_are_seen_without_loading_the_page_again(browser, registry):
    browser.get(f"{registry}/registry")
    assert until(browser, f"() => {ROWS}") == [["No node is registered."]]
    with Server() as server:
        server.register(Clock())
        known = Advertisement(registry, metadata={"zone": "eu-1"})
        address = server.start("tcp://127.0.0.1:0", advertise=known)
        (row,) = until(browser, f"() => {{ const rows = {ROWS}; return rows[0][1] && rows; }}")
        assert row[0] == address
        assert row[1:4] == ["Clock", "zone=eu-1", "1"]
    assert until(browser, f"() => {{ const rows = {ROWS}; return !rows[0][1] && rows; }}")
    assert browser.get_log("browser") == []


def test_the_age_of_a_heartbeat_counts_up_until_the_next_one(browser, registry):
    register(registry, ttl=3600)
    browser.get(f"{registry}/registry")
    age = f"parseFloat({ROWS}[0][4])"
    first = until(browser, f"() => [{age}]")[0]
    second = until(browser, f"() => {age} > {first + 3.5} && [{age}]")[0]
    register(registry, ttl=3600)
    assert until(browser, f"() => {age} < {second} && [{age}]")


def test_a_node_that_went_and_came_back_is_marked(browser, registry):
    register(registry)
    browser.get(f"{registry}/registry")
    for _ in range(3):
        ask(registry, "DELETE", f"?address={NODE}")
        register(registry)
    row = until(browser, f"() => {ROWS}[0][5] === '3' && {ROWS}[0]")
    assert row[0] == NODE
    assert browser.execute_script("return document.querySelector('td.bad').textContent") == "3"


def test_nothing_that_a_node_says_of_itself_runs(browser, registry):
    register(registry, services={PAYLOAD: PAYLOAD[:64]}, metadata={PAYLOAD: PAYLOAD, "zone": "é"})
    browser.get(f"{registry}/registry")
    # Renewed twice: the script puts texts into the page, too.
    age = f"parseFloat({ROWS}[0][4])"
    for more in (1.5, 3.5):
        until(browser, f"() => {age} > {more}")
    seen = browser.execute_script(HOSTILE)
    assert PAYLOAD in seen["text"]
    assert (seen["pwned"], seen["scripts"], seen["images"]) == (None, 1, 0)
    browser.execute_script("document.querySelector('a.pill').click()")
    assert until(browser, "() => location.search.startsWith('?service=') && [1]")
    heading = until(browser, "() => document.querySelectorAll('h2')[1].textContent")
    assert heading == f"Nodes that offer {PAYLOAD}"
    assert until(browser, f"() => {ROWS}[0][0]") == NODE
    assert browser.execute_script(HOSTILE)["pwned"] is None
    assert browser.get_log("browser") == []


@pytest.mark.parametrize("width", [320, 390, 800])
def test_no_window_is_too_narrow(browser, registry, width):
    register(registry, services=["S" * 256], metadata={"m" * 256: "v" * 256})
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": True},
    )
    browser.get(f"{registry}/registry?service={'S' * 256}")
    wide, inner = browser.execute_script(
        "return [document.documentElement.scrollWidth, window.innerWidth]"
    )
    assert (wide, inner) == (width, width)
