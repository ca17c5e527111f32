"""The server of the README as a program on each backend, and the signals that end it."""

import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

import rpc_blocking
from conformance.backends import INSTALLED, package
from rpc_blocking import Client
from rpc_proto import LocalProtocolError, Unavailable

LIMIT = 20.0  # seconds

README = (Path(__file__).parents[2] / "README.md").read_text()
SERVER = re.findall(r"```python\n(.*?)```", README, flags=re.S)[0]

HEAD = """
import signal
import {}

signal.signal(signal.SIGTERM, lambda *_: print("the program's own handler", flush=True))
"""
NAP = """
    async def nap(self, seconds: float) -> str:
        print("napping", flush=True)
        await asyncio.sleep(seconds)
        return "rested"

    async def end(self) -> None:
        await server.stop(grace=0.0)


if __name__"""


@contextmanager
def program(
    backend: str, folder: Path, options: str = "", main: str = ""
) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """Run the server of the README, with a method that takes a while; give its address.

    `options` are those of `run`, `main` is what comes after it.
    """
    code = SERVER.replace(':7000")', f':0"{options})').replace("\n\nif __name__", NAP, 1) + main
    sleeper = "asyncio"
    if backend != "asyncio":
        sleeper = "gevent" if backend == "gevent" else "time"
        code = code.replace("rpc_asyncio", package(backend)).replace("async def", "def")
        code = code.replace("await asyncio.", f"{sleeper}.").replace("await ", "")
    code = HEAD.format(sleeper) + code
    path = folder / "server.py"
    path.write_text(code)
    process = subprocess.Popen(
        [sys.executable, "-W", "error", str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            assert process.stdout is not None
            word, _, address = process.stdout.readline().partition(" on ")
            assert word == "listening"
            yield process, address.strip()
        finally:
            process.kill()


def begin_nap(process: "subprocess.Popen[str]") -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == "napping\n"


@pytest.mark.fault(84)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda n: n.name)
@pytest.mark.parametrize("backend", INSTALLED)
def test_signal_lets_the_calls_finish_and_the_exit_code_is_0(backend, number, tmp_path):
    with (
        program(backend, tmp_path) as (process, address),
        Client.connect(address) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        call = pool.submit(client.call, "Arith.nap", 0.5)
        begin_nap(process)
        process.send_signal(number)
        assert call.result(LIMIT) == "rested"
        _, errors = process.communicate(timeout=LIMIT)
        assert (process.returncode, errors) == (0, "")


@pytest.mark.fault(84)
@pytest.mark.parametrize("backend", INSTALLED)
def test_grace_that_runs_out_ends_the_calls_and_the_exit_code_is_0(backend, tmp_path):
    with (
        program(backend, tmp_path, ", grace=0.2") as (process, address),
        Client.connect(address) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        call = pool.submit(client.call, "Arith.nap", 60.0)
        begin_nap(process)
        process.send_signal(signal.SIGTERM)
        with pytest.raises(Unavailable):
            call.result(LIMIT)
        assert process.wait(LIMIT) == 0


@pytest.mark.fault(84)
@pytest.mark.parametrize("backend", INSTALLED)
def test_second_signal_stops_at_once(backend, tmp_path):
    with (
        program(backend, tmp_path, ", grace=50.0") as (process, address),
        Client.connect(address) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        call = pool.submit(client.call, "Arith.nap", 60.0)
        begin_nap(process)
        process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + LIMIT
        while not client.closed:  # it was told that the server goes
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        with pytest.raises(Unavailable):
            call.result(LIMIT)
        assert process.wait(LIMIT) == 0


@pytest.mark.fault(84)
@pytest.mark.parametrize("backend", INSTALLED)
def test_second_signal_does_not_wait_for_registries_that_are_silent(backend, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with program(backend, tmp_path, f', advertise="{url}"') as (process, _):
            listener.accept()[0].close()  # it has begun to register
            process.send_signal(signal.SIGTERM)
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(0.2)
            process.send_signal(signal.SIGTERM)
            assert process.wait(3.0) == 0  # for the registry it would wait for 5 s


@pytest.mark.fault(84)
@pytest.mark.parametrize("backend", INSTALLED)
def test_run_returns_after_stop_and_restores_the_handlers_of_signals(backend, tmp_path):
    main = "    signal.raise_signal(signal.SIGTERM)\n"
    with program(backend, tmp_path, main=main) as (process, address):
        with Client.connect(address) as client, pytest.raises(Unavailable):
            client.call("Arith.end")
        output, errors = process.communicate(timeout=LIMIT)
        assert (process.returncode, output) == (0, "the program's own handler\n"), errors


def test_run_is_for_the_main_thread():
    refused: list[str] = []

    def run() -> None:
        try:
            rpc_blocking.Server().run("tcp://127.0.0.1:0")
        except LocalProtocolError as error:
            refused.append(str(error))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(LIMIT)
    assert refused == ["run() handles signals, so call it in the main thread"]
