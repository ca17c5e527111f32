"""A server and a client of each backend for programs in other languages."""

from collections.abc import Iterator

import pytest

from conformance.backends import INSTALLED
from conformance.hosts import HostProcess
from conformance.links import Suite
from conformance.runtimes import Runtime


@pytest.fixture(scope="session")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Suite]:
    suite = Suite(tmp_path_factory.mktemp("interop"))
    yield suite
    suite.close()


@pytest.fixture(params=INSTALLED)
def host(request: pytest.FixtureRequest, suite: Suite) -> Iterator[HostProcess]:
    with suite.hosts.shared(request.param) as host:
        yield host


@pytest.fixture(params=INSTALLED)
def runtime(request: pytest.FixtureRequest, suite: Suite) -> Runtime:
    """Run the clients of each backend."""
    return suite.runtime(request.param)
