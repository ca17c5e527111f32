"""Clients of each backend, each in its runtime, asyncio's also under uvloop."""

from collections.abc import Iterator

import pytest
import uvloop

from conformance.backends import INSTALLED
from conformance.runtimes import RUNTIMES, AsyncioRuntime, Runtime


class UvloopRuntime(AsyncioRuntime):
    make_loop = staticmethod(uvloop.new_event_loop)


@pytest.fixture(scope="session", params=[*INSTALLED, "uvloop"])
def client_backend(request: pytest.FixtureRequest) -> Iterator[Runtime]:
    runtime = UvloopRuntime() if request.param == "uvloop" else RUNTIMES[request.param]()
    yield runtime
    runtime.close()


@pytest.fixture(autouse=True)
def _no_proxies_around(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
