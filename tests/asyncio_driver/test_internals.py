"""The plain way of the drivers, for a Python without the private names that they use."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SUBSETS = {
    "asyncio": ["asyncio_driver/test_handlers.py", "asyncio_driver/test_calls.py"],
    "blocking": ["blocking_driver/test_client.py", "blocking_driver/test_calls.py"],
}


def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, "RPC_PLAIN": "1"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


@pytest.mark.timeout(120)
@pytest.mark.parametrize("backend", SUBSETS)
def test_driver_does_the_same_without_private_names(backend):
    files = [str(ROOT / "tests" / name) for name in SUBSETS[backend]]
    done = run("-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *files)
    assert done.returncode == 0, done.stdout[-4000:]


def test_the_plain_way_is_taken_when_it_is_asked_for():
    code = (
        "from rpc_asyncio.internals import HAS_PRIVATE_NAMES as a\n"
        "from rpc_blocking.locks import has_private_names as b\n"
        "print(a, b)"
    )
    assert run("-c", code).stdout.split() == ["False", "False"]
