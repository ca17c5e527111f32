"""Fixtures that run the command: to its end, beside a test, or as a server for all tests."""

import contextlib
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from cli.processes import PATIENCE, Process, kill


@pytest.fixture
def start() -> Iterator[Any]:
    """start(*arguments) runs the command beside the test; what is left of it is killed."""
    with contextlib.ExitStack() as stack:

        def run(*arguments: str, **options: Any) -> Process:
            started = Process(*arguments, **options)
            stack.callback(kill, started)
            return started

        yield run


@pytest.fixture(scope="session")
def run() -> Any:
    """run(*arguments) runs the command to its end; returns exit code, output and errors."""

    def run(*arguments: str, patience: float = PATIENCE, **options: Any) -> tuple[int, str, str]:
        started = Process(*arguments, **options)
        try:
            return started.end(patience)
        finally:
            kill(started)

    return run


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """The address of a server that offers the demo's services and those of served.py."""
    started = Process(
        "serve",
        *(f"rpc_cli.demo.services:{name}" for name in ("Arith", "Store", "Search", "Slow")),
        "served:Probe",
        "served:Other=inner.Other",
        "served:Lines",
        "--listen=tcp://127.0.0.1:0",
    )
    try:
        yield started.address()
        started.signal(signal.SIGTERM)
        assert started.end()[0] == 0
    finally:
        kill(started)
