"""The first call of the README does what the README says."""

import contextlib
import os
import re
import subprocess
import sys
from pathlib import Path

from cli.processes import Process, kill, wait_for_nodes

README = (Path(__file__).parents[2] / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.S)


def test_the_clients_print_what_the_readme_says(tmp_path):
    server_code, *clients = blocks("python")
    (tmp_path / "server.py").write_text(server_code.replace(":7000", ":0"))
    server = subprocess.Popen(
        [sys.executable, "server.py"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ,
    )
    with server:
        try:
            assert server.stdout is not None
            address = server.stdout.readline().split()[-1]
            for client_code, printed in zip(clients, blocks("text"), strict=True):
                (tmp_path / "client.py").write_text(
                    client_code.replace("tcp://127.0.0.1:7000", address)
                )
                client = subprocess.run(
                    [sys.executable, "client.py"],
                    cwd=tmp_path,
                    stdout=subprocess.PIPE,
                    text=True,
                    timeout=20.0,
                )
                assert client.stdout == printed
        finally:
            server.terminate()


def test_three_commands_call_a_service_by_its_name(tmp_path):
    (section,) = re.findall(r"^## Services by name\n(.*?)(?=^## )", README, flags=re.S | re.M)
    registry, serve, call = (
        line.split()[1:] for line in section.splitlines() if line.startswith("    rpc-proto ")
    )
    (tmp_path / "mymodule.py").write_text(ARITH)
    with contextlib.ExitStack() as stack:

        def run(command: list[str], url: str = "") -> Process:
            words = [word.replace("http://127.0.0.1:9999", url) for word in command]
            started = Process(*words, cwd=tmp_path)
            stack.callback(kill, started)
            return started

        url = run([word.replace(":9999", ":0") for word in registry]).address()
        run(serve, url).address()
        wait_for_nodes(url, lambda nodes: len(nodes) == 1)
        assert run(call, url).end() == (0, "3\n", "")


ARITH = """
class Arith:
    def add(self, a: int, b: int) -> int:
        return a + b
"""
