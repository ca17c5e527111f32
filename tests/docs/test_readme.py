"""The first call of the README does what the README says."""

import os
import re
import subprocess
import sys
from pathlib import Path

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
            address = server.stdout.readline().strip()
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
