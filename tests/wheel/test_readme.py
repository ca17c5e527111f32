"""The README's example runs from the wheel alone."""

import re
import subprocess
from pathlib import Path

import pytest

from wheel.conftest import ENVIRONMENT, ROOT, run

README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.S)


@pytest.mark.timeout(120)
def test_first_calls_run_without_extras(installed: Path, tmp_path: Path) -> None:
    serving, *calling = blocks("python")
    (tmp_path / "server.py").write_text(serving.replace(":7000", ":0"))
    server = subprocess.Popen(
        [installed, "server.py"], cwd=tmp_path, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True
    )
    with server:
        try:
            assert server.stdout is not None
            said, _, address = server.stdout.readline().strip().rpartition(" ")
            assert said == "listening on"
            for code, printed in zip(calling, blocks("text"), strict=True):
                (tmp_path / "client.py").write_text(code.replace("tcp://127.0.0.1:7000", address))
                assert run(installed, "client.py", cwd=tmp_path).stdout == printed
        finally:
            server.terminate()


def test_command_is_installed(installed: Path, tmp_path: Path) -> None:
    done = run(installed.parent / "rpc-proto", "--version", cwd=tmp_path)
    assert done.returncode == 0, done.stdout
