"""Programs of other languages, written from docs/protocol.md: they call, and are called."""

import functools
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from conformance.hosts import HostProcess
from conformance.runtimes import GAVE_UP, Runtime, until
from rpc_proto import HandshakeError, Unavailable, Unimplemented, parse_address

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
def build_go(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """build_go(name) builds a program of this folder, once."""
    return functools.cache(lambda name: _build_go(name, tmp_path_factory.mktemp("go")))


def _build_go(name: str, folder: Path) -> str:
    go = tool("go")
    environment = {
        **os.environ,
        "CGO_ENABLED": "0",
        "GOFLAGS": "",
        "GOTOOLCHAIN": "local",
    }
    program = folder / name
    subprocess.run(
        [go, "build", "-o", program, HERE / f"{name}.go"], check=True, timeout=250, env=environment
    )
    return str(program)


def test_program_in_javascript_calls_a_server(host: HostProcess):
    where = parse_address(host.address())
    said = output(tool("node"), str(HERE / "call.js"), where.host, str(where.port), TEXT)
    assert said == TEXT + "\n"


@pytest.mark.timeout(300)
def test_program_in_go_calls_a_server(host: HostProcess, build_go: Callable[[str], str]):
    where = parse_address(host.address())
    assert output(build_go("call"), where.authority, TEXT) == TEXT + "\n"


COUNT = 5000
SUMMED = f"{COUNT} taken, their sum is {sum(range(COUNT))}\n"


def test_program_in_javascript_has_streams_with_a_server(host: HostProcess):
    where = parse_address(host.address())
    program = str(HERE / "stream.js")
    assert output(tool("node"), program, where.host, str(where.port), str(COUNT)) == SUMMED


@pytest.mark.timeout(300)
def test_program_in_go_has_streams_with_a_server(host: HostProcess, build_go: Callable[[str], str]):
    where = parse_address(host.address())
    assert output(build_go("stream"), where.authority, str(COUNT)) == SUMMED


# A server in JavaScript


@pytest.fixture(scope="session")
def address() -> Iterator[str]:
    program = subprocess.Popen([tool("node"), HERE / "serve.js"], stdout=subprocess.PIPE, text=True)
    assert program.stdout is not None
    with program:
        yield f"tcp://127.0.0.1:{program.stdout.readline().strip()}"
        program.kill()


def test_client_calls_a_server_in_javascript(runtime: Runtime, address: str):
    with runtime.connect(address, codec="json") as client:
        assert client.call("Basic.echo", TEXT) == [TEXT, True, {}]
        assert client.call("Basic.echo", value=TEXT, metadata={"k": "v"}) == [
            TEXT,
            True,
            {"k": "v"},
        ]
        assert client.call("Basic.echo", b"\x00\xff") == b"\x00\xff"
        client.notify("Basic.echo", 1)
        with pytest.raises(Unimplemented, match=r"no method Basic\.none") as caught:
            client.call("Basic.none")
        assert not caught.value.maybe_executed


def test_cancel_reaches_a_server_in_javascript(runtime: Runtime, address: str):
    with runtime.connect(address, codec="json") as client:
        call = client.start("Basic.slow")
        until(lambda: client.call("Basic.running") == 1)
        call.cancel()
        assert call.outcome() == GAVE_UP
        until(lambda: client.call("Basic.running") == 0)


def test_goaway_of_a_server_in_javascript_says_what_was_not_executed(
    runtime: Runtime, address: str
):
    with runtime.connect(address, codec="json") as client:
        with pytest.raises(Unavailable) as caught:
            client.call("Basic.leave")
        assert not caught.value.maybe_executed


def test_answer_that_a_server_in_javascript_cuts_may_have_been_executed(
    runtime: Runtime, address: str
):
    with runtime.connect(address, codec="json") as client:
        with pytest.raises(Unavailable, match="inside a frame") as caught:
            client.call("Basic.break")
        assert caught.value.maybe_executed


def test_refusal_of_a_server_in_javascript_says_what_it_supports(runtime: Runtime, address: str):
    with pytest.raises(HandshakeError) as caught:
        runtime.connect(address, codec="msgpack")
    assert caught.value.code == "unimplemented"
    assert caught.value.supported == {"versions": [1], "codecs": ["json"]}
