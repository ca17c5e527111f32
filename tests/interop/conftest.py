"""A server of each backend for programs in other languages."""

from collections.abc import Iterator

import pytest

from conformance.backends import INSTALLED
from conformance.hosts import HostProcess
from conformance.links import Suite


@pytest.fixture(scope="session")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Suite]:
    suite = Suite(tmp_path_factory.mktemp("interop"))
    yield suite
    suite.close()


@pytest.fixture(params=INSTALLED)
def host(request: pytest.FixtureRequest, suite: Suite) -> Iterator[HostProcess]:
    with suite.hosts.shared(request.param) as host:
        yield host
