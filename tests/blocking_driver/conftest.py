"""Checks that each test leaves no thread and no socket behind."""

import gc
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from asyncio_driver.certificates import Authority
from blocking_driver.support import ANY_PORT


def _ours() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith("rpc-")}


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    before = _ours()
    yield
    deadline = time.monotonic() + 5
    while (left := _ours() - before) and time.monotonic() < deadline:
        time.sleep(0.005)
    gc.collect()  # a socket that was not closed warns, and a warning is an error
    assert not left


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Certificates of a made-up authority."""
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(params=["tcp", "unix", "tls"])
def transport(
    request: pytest.FixtureRequest, tmp_path: Path, authority: Authority
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Give how to listen and how to connect."""
    if request.param == "tcp":
        return {"address": ANY_PORT}, {}
    if request.param == "unix":
        return {"address": f"unix://{tmp_path}/rpc.sock"}, {}
    return (
        {"address": "tls://127.0.0.1:0", "ssl": authority.server_context()},
        {"ssl": authority.client_context()},
    )
