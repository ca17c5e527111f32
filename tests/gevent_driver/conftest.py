"""Bounds each test, and checks that it leaves no watcher active and no exception unseen."""

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gevent
import pytest

from asyncio_driver.certificates import Authority
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


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Certificates of a made-up authority."""
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(params=["tcp", "unix", "tls"])
def transport(
    request: pytest.FixtureRequest, tmp_path: Path, authority: Authority
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Give how to listen and how to connect."""
    if request.param == "tls":
        return (
            {"address": "tls://127.0.0.1:0", "ssl": authority.server_context()},
            {"ssl": authority.client_context()},
        )
    place = f"unix://{tmp_path}/s" if request.param == "unix" else "tcp://127.0.0.1:0"
    return {"address": place}, {}
