"""The pairs of backends, the combinations of codec and transport, and the record of what ran.

Every case runs for every pair of backends that this machine has. Codec and transport come in ten
combinations. Only a few cases, in `test_calls.py`, take all of them (`every_link`): there the bytes
themselves matter. The others (`link`) take one for each pair, which follows from the case and the
pair, so that a run is the same each time and all ten are met many times over. A case that needs
plain TCP says so (`tcp_link`). Cases about one end only run once for each backend
(`client_backend`, `server_backend`).

FEATURE_MATRIX=path makes the run write what it saw there, for docs/matrix.py. The conftest has to
be known to the process that collects the reports: give pytest this folder as its argument.
"""

import json
import os
from collections.abc import Callable, Iterator
from importlib import import_module
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from conformance.backends import GUESTS, INSTALLED, LEFT_OUT, PAIRS
from conformance.links import COMBINATIONS, Combination, Link, Suite, rotated
from conformance.runtimes import Runtime


@pytest.fixture(scope="session")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Suite]:
    suite = Suite(tmp_path_factory.mktemp("conformance"))
    yield suite
    suite.close()


@pytest.fixture
def link(request: pytest.FixtureRequest, suite: Suite) -> Link:
    """One codec and one transport for each pair."""
    return Link(request.param, suite)


@pytest.fixture
def tcp_link(request: pytest.FixtureRequest, suite: Suite) -> Link:
    """One codec for each pair, over plain TCP."""
    return Link(request.param, suite)


@pytest.fixture
def every_link(request: pytest.FixtureRequest, suite: Suite) -> Link:
    """Every codec and transport for every pair."""
    return Link(request.param, suite)


@pytest.fixture
def sync_link(request: pytest.FixtureRequest, suite: Suite) -> Link:
    """One codec and one transport for each pair whose client needs no `await`."""
    return Link(request.param, suite)


@pytest.fixture
def client_backend(request: pytest.FixtureRequest, suite: Suite) -> Runtime:
    """Each backend that has a client."""
    return suite.runtime(request.param)


@pytest.fixture
def server_backend(request: pytest.FixtureRequest, suite: Suite) -> Callable[..., Any]:
    """Each backend that has a server: call it with options for a context that gives a host."""
    return lambda **options: suite.hosts.shared(request.param, **options)


_keys = count(1)


@pytest.fixture
def key() -> str:
    """A key for counters and gates that no other test uses."""
    return f"key-{next(_keys)}"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    case = metafunc.function.__name__
    choices: dict[str, list[Any]] = {
        "link": rotated(case),
        "tcp_link": [one._replace(transport="tcp") for one in rotated(case)],
        "sync_link": [one for one in rotated(case) if one.pair.client not in ("asyncio", *GUESTS)],
        "every_link": [Combination(pair, *rest) for pair in PAIRS for rest in COMBINATIONS],
        "client_backend": list(GUESTS or INSTALLED),
        "server_backend": list(INSTALLED),
    }
    for name, values in choices.items():
        if name in metafunc.fixturenames:
            metafunc.parametrize(name, values, ids=[str(value) for value in values], indirect=True)


# The record of what ran

_RECORD = "conformance"
_record: list[dict[str, str]] = []


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "feature(text): the row of docs/backends.md that it shows")


def pytest_report_header() -> list[str]:
    absent = [f"; without {backend}: {why}" for backend, why in LEFT_OUT.items()]
    return [f"backends: {', '.join(INSTALLED)}{''.join(absent)}"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    beyond = {name: why for guest in GUESTS for name, why in import_module(guest).BEYOND.items()}
    for item in items:
        if isinstance(item, pytest.Function) and item.originalname in beyond:
            item.add_marker(pytest.mark.skip(reason=beyond[item.originalname]))
    # A user property travels with the reports, also from the workers of pytest-xdist.
    for item in items:
        mark = item.get_closest_marker("feature")
        if mark is not None and isinstance(item, pytest.Function):
            item.user_properties.append((_RECORD, _entry(mark.args[0], item)))


def _entry(feature: str, item: pytest.Function) -> dict[str, str]:
    parameters = item.callspec.params
    entry = {"feature": feature, "case": item.originalname}
    for name, value in parameters.items():
        if isinstance(value, Combination):
            return {
                **entry,
                "client": value.pair.client,
                "server": value.pair.server,
                "codec": value.codec,
                "transport": value.transport,
            }
        if name in ("client_backend", "server_backend"):
            entry[name.removesuffix("_backend")] = str(value)
    return entry


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when != "call" and report.passed:
        return
    for name, entry in report.user_properties:
        if name == _RECORD and isinstance(entry, dict):
            _record.append({**entry, "outcome": report.outcome})


def pytest_sessionfinish(session: pytest.Session) -> None:
    path = os.environ.get("FEATURE_MATRIX")
    if path and not hasattr(session.config, "workerinput"):
        _record.sort(key=lambda entry: sorted(entry.items()))
        Path(path).write_text(json.dumps(_record, indent=1) + "\n")
