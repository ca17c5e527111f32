"""Bounds each test, and checks that it leaves no watcher active and no exception unseen."""

import gc
from collections.abc import Iterator
from typing import Any

import gevent
import pytest

from gevent_driver.support import LONGEST
from rpc_gevent.link import Link


@pytest.fixture(autouse=True)
def bounded() -> Iterator[None]:
    hub = gevent.get_hub()
    unseen: list[Any] = []
    hub.handle_error = lambda context, kind, value, traceback: unseen.append(value)
    gc.collect()
    before = {id(link) for link in links()}
    try:
        with gevent.Timeout(LONGEST):
            yield
        assert [link for link in links() if id(link) not in before and not link.closed] == []
        assert unseen == []
    finally:
        del hub.handle_error


def links() -> list[Link]:
    return [thing for thing in gc.get_objects() if isinstance(thing, Link)]
