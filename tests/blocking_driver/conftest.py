"""Checks that each test leaves no thread and no socket behind."""

import gc
import threading
import time
from collections.abc import Iterator

import pytest


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
