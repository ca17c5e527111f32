"""`rpc-proto conformance` and `rpc-proto fuzz`: servers of each backend, others, and wrong ones."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from conformance.backends import INSTALLED

CLIENT = f"{sys.executable} -m rpc_cli call {{}} Echo.echo '\"hello\"'"
SERVE_JS = Path(__file__).parent.parent / "interop" / "serve.js"


def serve(
    start: Any, backend: str = "asyncio", listen: str = "tcp://127.0.0.1:0", **env: str
) -> str:
    kind = "AsyncEcho" if backend == "asyncio" else "Echo"
    started = start(
        *("serve", f"mirrors:{kind}=Echo", f"--backend={backend}", f"--listen={listen}"),
        *("--token=secret",),
        env=env,
    )
    return started.address()


ALL = ("--echo=Echo.echo", "--echo-stream=Echo.each", "--token=secret")


def failures(output: str) -> list[str]:
    return [case["name"] for case in json.loads(output) if case["outcome"] == "failed"]


@pytest.mark.parametrize("codec", ["msgpack", "json"])
@pytest.mark.parametrize("backend", INSTALLED)
def test_server_of_each_backend(
    start: Any, run: Any, tmp_path: Path, backend: str, codec: str
) -> None:
    address = serve(start, backend)
    report = tmp_path / "report.xml"
    code, output, errors = run(
        "conformance", address, *ALL, f"--codec={codec}", f"--junit={report}"
    )
    assert (code, errors) == (0, ""), output
    assert "FAILED" not in output
    assert "skipped " not in output.partition("section")[0]
    suite = ElementTree.parse(report).getroot()
    assert int(suite.get("tests", "0")) >= 90
    assert suite.get("failures") == suite.get("skipped") == "0"


@pytest.mark.parametrize("transport", ["http", "unix"])
def test_server_behind_other_transports(
    start: Any, run: Any, tmp_path: Path, transport: str
) -> None:
    listen = f"unix://{tmp_path}/s" if transport == "unix" else "http://127.0.0.1:0"
    address = serve(start, listen=listen)
    if transport == "http":
        address = address.replace("tcp:", "http:")
    code, output, _ = run("conformance", address, *ALL, "--json")
    assert (code, failures(output)) == (0, [])


def test_server_in_javascript(run: Any) -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    with subprocess.Popen([node, SERVE_JS], stdout=subprocess.PIPE, text=True) as program:
        try:
            assert program.stdout is not None
            address = f"tcp://127.0.0.1:{program.stdout.readline().strip()}"
            code, output, _ = run(
                "conformance", address, "--codec=json", "--echo=Basic.same", "--json"
            )
            assert (code, failures(output)) == (0, [])
            code, output, _ = run("fuzz", address, "--codec=json", "--seconds=1")
            assert code == 0, output
        finally:
            program.kill()


@pytest.mark.parametrize(("bug", "case"), [("pong", "ping"), ("misdelivers", "answers_by_id")])
def test_server_with_a_bug_fails_the_right_case(start: Any, run: Any, bug: str, case: str) -> None:
    address = serve(start, "blocking", PLANTED_BUG=bug)
    code, output, _ = run("conformance", address, *ALL, f"--case={case}")
    assert code == 1
    assert f"({case})" in output
    assert "FAILED" in output


def test_client(run: Any) -> None:
    code, output, errors = run("conformance", f"--client={CLIENT}", "--json", patience=55)
    assert (code, failures(output), errors) == (0, [], "")
    assert len(json.loads(output)) >= 25


def test_client_that_claims_success_fails(run: Any) -> None:
    code, output, _ = run("conformance", "--client=echo hello", "--case=refused", "--timeout=0.5")
    assert code == 1
    assert "FAILED" in output


@pytest.mark.parametrize("backend", INSTALLED)
def test_fuzzing_finds_nothing_in_a_server(start: Any, run: Any, backend: str) -> None:
    address = serve(start, backend)
    code, output, errors = run("fuzz", address, "--token=secret", "--seconds=2")
    assert (code, errors) == (0, ""), output
    assert "nothing has failed" in output


def test_fuzzing_makes_what_it_finds_small(start: Any, run: Any, tmp_path: Path) -> None:
    # It says two lines, of which the second is no frame, when it hears of a codec.
    script = (
        "import socketserver\n"
        "class H(socketserver.StreamRequestHandler):\n"
        "    def handle(self):\n"
        "        if b'codec' in self.rfile.readline():\n"
        "            self.wfile.write(b'{}\\n not a frame at all')\n"
        "with socketserver.ThreadingTCPServer(('127.0.0.1', 0), H) as server:\n"
        "    print(server.server_address[1], flush=True)\n"
        "    server.serve_forever()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True
    ) as wrong:
        try:
            assert wrong.stdout is not None
            address = f"tcp://127.0.0.1:{wrong.stdout.readline().strip()}"
            found = tmp_path / "found"
            code, output, _ = run("fuzz", address, "--seconds=5", f"--output={found}", patience=55)
            assert code == 1
            assert "FAILED: the server sent what is no frames" in output
            assert len(found.read_bytes()) < 300
        finally:
            wrong.kill()


def test_nobody_listens(run: Any) -> None:
    for command in ("conformance", "fuzz"):
        code, _, errors = run(command, "tcp://127.0.0.1:1")
        assert code == 1
        assert "refused" in errors


def test_usage(run: Any) -> None:
    for arguments in ((), ("tcp://127.0.0.1:1", "--client=x")):
        code, _, errors = run("conformance", *arguments)
        assert code == 2
        assert "exactly one of ADDRESS and --client" in errors
