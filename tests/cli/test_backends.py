"""`rpc-proto serve --backend ...`: every runtime ends on a signal just as asyncio does."""

import signal
import subprocess
from typing import Any

import pytest

pytestmark = pytest.mark.parametrize("backend", ["blocking", "gevent"])

ANYWHERE = "--listen=tcp://127.0.0.1:0"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_an_idle_server_with_code_0(start: Any, backend: str, number: int) -> None:
    server = start("serve", "served:Waiting", ANYWHERE, "--backend", backend)
    server.address()
    server.signal(number)
    assert server.end() == (0, "", "")


def test_sigterm_lets_running_calls_end(run: Any, start: Any, backend: str) -> None:
    server = start("serve", "served:Waiting", ANYWHERE, "--backend", backend)
    address = server.address()
    caller = start("call", address, "Waiting.wait", f'"{backend}"', "0.5")
    assert run("call", address, "Waiting.started", f'"{backend}"')[0] == 0
    server.signal(signal.SIGTERM)
    assert caller.end() == (0, '"waited"\n', "")
    assert server.end() == (0, "", "")


def test_second_ctrl_c_ends_the_grace(run: Any, start: Any, backend: str) -> None:
    server = start("serve", "served:Waiting", ANYWHERE, "--grace", "600", "--backend", backend)
    address = server.address()
    start("call", address, "Waiting.wait", f'"{backend}"', "500", "--timeout", "1000")
    assert run("call", address, "Waiting.started", f'"{backend}"')[0] == 0
    server.signal(signal.SIGINT)
    assert "stopping" in server.process.stderr.readline().decode()
    server.signal(signal.SIGINT)
    assert server.end()[0] == 0


def test_end_of_stdin_stops_the_server_that_was_told_so(start: Any, backend: str) -> None:
    server = start(
        "serve",
        "served:Waiting",
        ANYWHERE,
        "--stop-with-stdin",
        "--backend",
        backend,
        stdin=subprocess.PIPE,
    )
    server.address()
    server.process.stdin.close()
    server.process.stdin = None
    assert server.end() == (0, "", "")


def test_coroutines_are_refused_in_one_line(start: Any, backend: str) -> None:
    server = start("serve", "rpc_cli.demo.services:Slow", ANYWHERE, "--backend", backend)
    code, output, errors = server.end()
    assert (code, output) == (2, "")
    assert "rpc_asyncio" in errors
    assert errors.count("\n") == 1


def test_taken_port_is_said_in_one_line(run: Any, server: str, backend: str) -> None:
    code, output, errors = run(
        "serve", "served:Waiting", f"--listen={server}", "--backend", backend
    )
    assert (code, output, errors.count("\n")) == (1, "", 1)
    assert "cannot listen" in errors
