"""One suite for the balanced clients of all backends, against real servers in processes."""

from collections.abc import Iterator
from itertools import count

import pytest

from balanced.support import Place
from conformance.backends import INSTALLED
from conformance.links import Suite


@pytest.fixture(scope="session")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Suite]:
    suite = Suite(tmp_path_factory.mktemp("balanced"))
    yield suite
    suite.close()


@pytest.fixture(params=INSTALLED)
def place(request: pytest.FixtureRequest, suite: Suite) -> Iterator[Place]:
    """Each backend that has a balanced client, with servers of all of them."""
    with Place(request.param, suite) as place:
        yield place


_keys = count(1)


@pytest.fixture
def key() -> str:
    """A key for counters and gates that no other test uses."""
    return f"key-{next(_keys)}"
