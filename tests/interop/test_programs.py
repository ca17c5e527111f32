"""Programs of other languages, written from docs/protocol.md, dial with CONNECT and call."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from conformance.hosts import HostProcess
from rpc_proto import parse_address

HERE = Path(__file__).parent
TEXT = "h\u00e9llo, \u4e16\u754c"


def tool(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def output(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="session")
def program_in_go(tmp_path_factory: pytest.TempPathFactory) -> str:
    go = tool("go")
    folder = tmp_path_factory.mktemp("go")
    environment = {
        **os.environ,
        "CGO_ENABLED": "0",
        "GOFLAGS": "",
        "GOTOOLCHAIN": "local",
    }
    program = folder / "call"
    subprocess.run(
        [go, "build", "-o", program, HERE / "call.go"], check=True, timeout=250, env=environment
    )
    return str(program)


def test_program_in_javascript_calls_a_server(host: HostProcess):
    where = parse_address(host.address())
    said = output(tool("node"), str(HERE / "call.js"), where.host, str(where.port), TEXT)
    assert said == TEXT + "\n"


@pytest.mark.timeout(300)
def test_program_in_go_calls_a_server(host: HostProcess, program_in_go: str):
    where = parse_address(host.address())
    assert output(program_in_go, where.authority, TEXT) == TEXT + "\n"
