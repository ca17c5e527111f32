"""The first call of the README does what the README says."""

import os
import re
import subprocess
import sys
from pathlib import Path

README = (Path(__file__).parents[2] / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.S)


def test_the_first_call_prints_what_the_readme_says(tmp_path):
    server_code, client_code = blocks("python")
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
        finally:
            server.terminate()
    assert client.stdout == blocks("text")[0]
