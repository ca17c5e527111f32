"""The debug page in a real browser, under load and with hostile texts in all that it shows."""

import contextlib
import itertools
import threading
from collections.abc import Iterator

import pytest

from rpc_blocking import Client, Server
from rpc_proto import CallError, NotFound, expose
from support.pages import HOSTILE, PAYLOAD

LIMIT = 20.0  # seconds

# Calls back with the first and the next state, as the element and its data tell it.
CHANGES = """
const done = arguments[arguments.length - 1];
const state = () => {
  const { calls, uptime } = document.querySelector("main").dataset;
  return { calls: Number(calls), uptime: Number(uptime), tiles:
    document.querySelector(".tiles dd").textContent };
};
const first = state();
new MutationObserver((_, observer) => {
  const next = state();
  if (next.calls !== first.calls && next.tiles !== first.tiles) {
    observer.disconnect();
    done([first, next]);
  }
}).observe(document.body, { subtree: true, childList: true, attributes: true });
"""


class Hostile:
    """A service whose texts are meant to break out of the page."""

    @expose
    def fail(self, text: str = PAYLOAD) -> None:
        raise NotFound(text)

    fail.__doc__ = PAYLOAD

    @expose
    def a_name_that_is_as_long_as_nobody_would_write_it_but_some_machine_surely_does(self) -> int:
        """Return one, after a name that does not fit into the window of a telephone."""
        return 1


@contextlib.contextmanager
def under_load() -> Iterator[str]:
    """Give the URL of the page of a server that is called all the time.

    Its lists are full: the page grows no more.
    """
    filled, ended = threading.Event(), threading.Event()
    names = [name for name in vars(Hostile) if not name.startswith("_")]
    methods = [*(f"Hostile.{name}" for name in (*names, PAYLOAD)), PAYLOAD]
    with Server() as server:
        server.register(Hostile())
        address = server.start("tcp://127.0.0.1:0")

        def call() -> None:
            with Client.connect(address) as client:
                for count in itertools.count():
                    for method in methods:
                        with contextlib.suppress(CallError):
                            client.call(method, metadata={PAYLOAD: PAYLOAD})
                    if count >= 50:  # as many errors as are shown
                        filled.set()
                        if ended.wait(0.01):
                            break

        thread = threading.Thread(target=call)
        thread.start()
        try:
            assert filled.wait(LIMIT)
            yield f"http://localhost:{address.rpartition(':')[2]}/debug/rpc"
        finally:
            ended.set()
            thread.join(LIMIT)


@pytest.mark.timeout(120)
def test_the_page_renews_itself_and_nothing_foreign_in_it_runs(browser):
    with under_load() as url:
        browser.get(url)
        first, second = browser.execute_async_script(CHANGES)
        assert second["calls"] > first["calls"] > 0
        third, fourth = browser.execute_async_script(CHANGES)
        assert fourth["uptime"] > third["uptime"] >= second["uptime"]
        seen = browser.execute_script(HOSTILE)
        assert PAYLOAD in seen["text"]
        assert (seen["pwned"], seen["scripts"], seen["images"]) == (None, 1, 0)
        assert browser.get_log("browser") == []  # where violations of the policy are told


@pytest.mark.timeout(120)
def test_what_is_scrolled_and_selected_stays_when_the_page_renews_itself(browser):
    with under_load() as url:
        browser.get(url)
        browser.execute_script(
            "window.scrollTo(0, 200); getSelection().selectAllChildren("
            "document.querySelector('main h2'))"
        )
        browser.execute_async_script(CHANGES)
        assert browser.execute_script("return scrollY") == 200
        assert browser.execute_script("return getSelection().toString()") == "Methods"


@pytest.mark.timeout(120)
@pytest.mark.parametrize("width", [320, 390, 800])
def test_no_window_is_too_narrow(browser, width):
    with under_load() as url:
        browser.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": True},
        )
        browser.get(url)
        browser.execute_async_script(CHANGES)
        wide, inner = browser.execute_script(
            "return [document.documentElement.scrollWidth, window.innerWidth]"
        )
        assert (wide, inner) == (width, width)


@pytest.mark.timeout(120)
def test_a_server_that_went_away_is_told(browser):
    with under_load() as url:
        browser.get(url)
    told = browser.execute_async_script(
        "const done = arguments[0]; const tell = () => document.body.className === 'lost'"
        " && done(getComputedStyle(document.querySelector('#lost')).display);"
        " new MutationObserver(tell).observe(document.body, { attributes: true }); tell();"
    )
    assert told == "block"
