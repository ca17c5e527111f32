"""The examples run, and the pages show what runs."""

import asyncio
import inspect
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cli.processes import wait_for_nodes
from rpc_asyncio import Client, Server

ROOT = Path(__file__).parents[2]
EMBEDDING = (ROOT / "docs" / "embedding.md").read_text()


def part(example: str, name: str) -> str:
    return (ROOT / "examples" / example).read_text().split(f"# [{name}]\n")[1].strip()


def test_the_loop_on_a_selector_serves_a_real_client():
    example = subprocess.Popen(
        [sys.executable, ROOT / "examples" / "selector_loop.py"],
        stdout=subprocess.PIPE,
        text=True,
    )

    async def call_it(address: str):
        async with Client.connect(address, timeout=10.0) as client:
            many = await asyncio.gather(*(client.call("Arith.add", i, 1) for i in range(100)))
            return many, await client.call("Arith.add", 1, b=2)

    with example:
        try:
            assert example.stdout is not None
            many, one = asyncio.run(call_it(example.stdout.readline().strip()))
            assert many == list(range(1, 101))
            assert one == 3
            assert example.wait(timeout=10.0) == 0
        finally:
            example.kill()
    assert len(part("selector_loop.py", "loop").splitlines()) <= 25


@pytest.mark.parametrize(
    ("example", "name"),
    [
        ("selector_loop.py", "loop"),
        ("selector_loop.py", "server"),
        ("selector_loop.py", "client"),
        ("game_loop.py", "game"),
    ],
)
def test_the_page_shows_the_loops_that_run(example: str, name: str):
    assert f"```python\n{part(example, name)}\n```" in EMBEDDING


@pytest.mark.parametrize(
    ("example", "printed"),
    [
        ("trio_client.py", r"3\n"),
        ("selector_loop.py", r"3\n"),
        ("game_loop.py", r"3 after \d+ frames\n"),
    ],
)
def test_a_client_in_another_loop_calls_a_real_server(example: str, printed: str):
    class Arith:
        async def add(self, a: int, b: int) -> int:
            return a + b

    async def main() -> str:
        async with Server() as server:
            server.register(Arith())
            address = await server.start("tcp://127.0.0.1:0")
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                str(ROOT / "examples" / example),
                "127.0.0.1",
                address.rpartition(":")[2],
                stdout=asyncio.subprocess.PIPE,
            )
            out, _ = await asyncio.wait_for(process.communicate(), 20.0)
            assert process.returncode == 0
            return out.decode()

    assert re.fullmatch(printed, asyncio.run(main()))


@pytest.mark.fault(70)
def test_a_call_that_waits_behind_one_that_is_cancelled_ends_in_the_trio_client():
    """Its deadline has passed by then, so its end is among the events of that very command."""
    program = Path(__file__).with_name("trio_cancel.py")
    ended = subprocess.run(
        [sys.executable, program, ROOT / "examples"],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (ended.stdout, ended.stderr) == ("deadline_exceeded\n", "")


def test_the_conversation_without_a_network_is_true():
    (code,) = re.findall(r"```python\n(from rpc_proto.*?)```", EMBEDDING, flags=re.S)
    exec(inspect.cleandoc(code), {})


def test_the_examples_of_servers_and_clients_run_one_after_the_other():
    page = (ROOT / "docs" / "discovery.md").read_text()
    (section,) = re.findall(r"^## Servers and clients\n(.*?)(?=^## )", page, flags=re.S | re.M)
    host, serve, call, stop = re.findall(r"```python\n(.*?)```", section, flags=re.S)
    names: dict[str, Any] = {}
    exec(host, names)
    exec(serve, names)
    try:
        wait_for_nodes(names["registry"], lambda nodes: len(nodes) == 2)
        exec(call, names)
        assert sorted(names["everywhere"]) == sorted(node.address for node in names["client"].nodes)
        assert [*names["everywhere"].values(), names["quickest"]] == [3, 3, 3]
    finally:
        exec(stop, names)


def test_the_examples_of_balanced_clients_run_one_after_the_other():
    page = (ROOT / "docs" / "discovery.md").read_text()
    (section,) = re.findall(r"^## Balanced clients\n(.*?)(?=^## )", page, flags=re.S | re.M)
    names: dict[str, Any] = {}
    for code in re.findall(r"```python\n(.*?)```", section, flags=re.S):
        exec(code, names)
    assert len(names["results"]) == 3
    assert 1 <= len(names["answered"]) <= 2


def test_the_examples_of_balancing_run_one_after_the_other():
    page = (ROOT / "docs" / "discovery.md").read_text()
    (section,) = re.findall(r"^## Balancing\n(.*?)(?=^## |\Z)", page, flags=re.S | re.M)
    names: dict[str, object] = {}
    for code in re.findall(r"```python\n(.*?)```", section, flags=re.S):
        exec(code, names)
    assert names["again"] is not names["endpoint"]
    assert type(names["cheapest"]).__name__ == "Cheapest"
