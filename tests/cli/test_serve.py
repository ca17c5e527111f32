"""`rpc-proto serve`: what it serves, where it listens, and how it ends."""

import json
import os
import re
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from cli.processes import COMMAND, ENVIRONMENT, PATIENCE

ANYWHERE = "--listen=tcp://127.0.0.1:0"
SLOW = "rpc_cli.demo.services:Slow"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_an_idle_server_with_code_0(start: Any, number: int) -> None:
    server = start("serve", "served:Other", ANYWHERE)
    server.address()
    server.signal(number)
    assert server.end() == (0, "", "")


def test_sigterm_lets_running_calls_end(run: Any, start: Any) -> None:
    server = start("serve", SLOW, ANYWHERE)
    address = server.address()
    caller = start("call", address, "Slow.work", '"last"', "0.5")
    assert run("call", address, "Slow.started", '"last"')[0] == 0
    server.signal(signal.SIGTERM)
    assert caller.end() == (0, '"last"\n', "")
    assert server.end() == (0, "", "")


def test_calls_that_outlast_the_grace_are_cut_off(run: Any, start: Any) -> None:
    server = start("serve", SLOW, ANYWHERE, "--grace", "0.1")
    address = server.address()
    caller = start("call", address, "Slow.work", '"long"', "30")
    assert run("call", address, "Slow.started", '"long"')[0] == 0
    server.signal(signal.SIGTERM)
    code, _, errors = caller.end()
    assert (code, errors[:23]) == (1, "rpc-proto: unavailable:")
    assert server.end() == (0, "", "")


def test_second_ctrl_c_ends_the_grace(run: Any, start: Any) -> None:
    server = start("serve", SLOW, ANYWHERE, "--grace", "600")
    address = server.address()
    start("call", address, "Slow.work", '"long"', "500", "--timeout", "1000")
    assert run("call", address, "Slow.started", '"long"')[0] == 0
    server.signal(signal.SIGINT)
    assert "stopping" in server.process.stderr.readline().decode()
    server.signal(signal.SIGINT)
    assert server.end()[0] == 0


def test_handler_thread_that_does_not_end_does_not_keep_the_process(start: Any) -> None:
    server = start("serve", "served:Blocker", ANYWHERE, "--grace", "0.1")
    address = server.address()
    start("call", address, "Blocker.block", "1000")
    assert server.line() == "blocking"
    server.signal(signal.SIGTERM)
    assert server.end()[0] == 0


def test_end_of_stdin_stops_the_server_that_was_told_so(start: Any) -> None:
    server = start("serve", "served:Other", ANYWHERE, "--stop-with-stdin", stdin=subprocess.PIPE)
    server.address()
    server.process.stdin.close()
    server.process.stdin = None
    assert server.end() == (0, "", "")


def test_several_addresses_serve_the_same(run: Any, start: Any, tmp_path: Path) -> None:
    path = f"unix://{tmp_path}/socket"
    server = start("serve", "served:Other", ANYWHERE, ANYWHERE, f"--listen={path}")
    addresses = [server.address() for _ in range(3)]
    assert addresses[2] == path
    assert len(set(addresses)) == 3
    for address in addresses:
        assert run("call", address, "Other.ping") == (0, '"pong"\n', "")


def test_class_serves_under_another_name(run: Any, server: str) -> None:
    assert run("call", server, "inner.Other.ping") == (0, '"pong"\n', "")


@pytest.mark.parametrize(
    ("token", "code"), [(["--token", "secret"], 0), ([], 1), (["--token", "guess"], 1)]
)
def test_token_is_asked_for(run: Any, start: Any, token: list[str], code: int) -> None:
    server = start("serve", "served:Other", ANYWHERE, "--token", "secret")
    got, _, errors = run("call", server.address(), "Other.ping", *token)
    assert got == code
    assert errors.startswith("rpc-proto: unauthenticated") is bool(code)


def test_token_can_come_from_the_environment(run: Any, start: Any) -> None:
    token = {"RPC_PROTO_TOKEN": "secret"}
    address = start("serve", "served:Other", ANYWHERE, env=token).address()
    assert run("call", address, "Other.ping")[0] == 1
    assert run("call", address, "Other.ping", env=token)[0] == 0


def test_debug_sends_the_traceback_to_the_caller(run: Any, start: Any) -> None:
    server = start("serve", "served:Probe", ANYWHERE, "--debug")
    code, _, errors = run("call", server.address(), "Probe.crash")
    assert code == 1
    assert errors.startswith("rpc-proto: unknown: KeyError: 'crashed'\nTraceback")
    assert "served.py" in errors


def test_without_debug_the_traceback_stays_with_the_server(run: Any, start: Any) -> None:
    server = start("serve", "served:Probe", ANYWHERE)
    assert run("call", server.address(), "Probe.crash") == (
        1,
        "",
        "rpc-proto: unknown: KeyError: 'crashed'\n",
    )
    server.signal(signal.SIGTERM)
    assert "served.py" in server.end()[2]


def test_verbose_logs_what_the_server_does(start: Any) -> None:
    server = start("serve", "served:Other", ANYWHERE, "--verbose")
    address = server.address()
    server.signal(signal.SIGTERM)
    code, _, errors = server.end()
    assert code == 0
    lines = [line.split(" INFO rpc_asyncio: ")[1] for line in errors.splitlines()]
    assert [line.partition(" ")[0] for line in lines] == ["listening", "stopping", "stopped:"]
    assert lines[0] == f"listening on {address}"


@pytest.mark.parametrize("backend", ["asyncio", "blocking", "gevent"])
def test_access_log_is_a_line_for_each_call_and_nothing_else(
    run: Any, start: Any, backend: str
) -> None:
    server = start("serve", "served:Probe", ANYWHERE, "--access-log", "--backend", backend)
    assert run("call", server.address(), "Probe.show")[0] == 0
    server.signal(signal.SIGTERM)
    code, _, errors = server.end()
    assert code == 0
    assert re.fullmatch(
        rf"[-\d]+ [:,\d]+ INFO rpc_{backend}\.access: 127\.0\.0\.1:\d+ Probe\.show ok "
        r"\d+\.\d{3} ms \d+ bytes\n",
        errors,
    )


def test_no_introspection_is_said_by_services(run: Any, start: Any) -> None:
    server = start("serve", "served:Other", ANYWHERE, "--no-introspection")
    code, output, errors = run("services", server.address())
    assert (code, output) == (1, "")
    assert "without introspection" in errors


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["served"], 2, "module:Class"),
        (["served:Other="], 2, "module:Class"),
        (["nowhere:Class"], 2, "no module 'nowhere'"),
        (["served:Nothing"], 2, "no class 'Nothing'"),
        (["served:time"], 2, "must be a class"),
        (["broken:Class"], 1, "no_such_module_anywhere"),
        (["served:NeedsArguments"], 1, "NeedsArguments() from served failed: TypeError"),
        (["served:Mixed"], 2, "Mixed cannot be served"),
        (["served:Other", "served:Other"], 2, "already"),
        (["served:Other=not a name"], 2, "dotted identifiers"),
        (["served:Other", "--listen", "tcp://127.0.0.1:70000"], 2, "port"),
        (["served:Other", "--listen", "unix:///nowhere/socket"], 1, "cannot listen on unix://"),
        (["served:Other", "--listen", "tls://127.0.0.1:0"], 2, "--tls-cert"),
        (["served:Other", ANYWHERE, "--tls-cert", "x.pem"], 2, "tls:// address"),
        (["served:Other", "--backend", "twisted"], 2, "asyncio"),
        ([], 2, "module:Class"),
    ],
)
def test_what_cannot_be_served_is_said_in_one_line(
    run: Any, arguments: list[str], code: int, words: str
) -> None:
    got, output, errors = run("serve", *arguments)
    assert (got, output) == (code, "")
    assert errors.startswith("rpc-proto: ")
    assert errors.count("\n") == 1
    assert words in errors


PROGRAM = """
import asyncio
from rpc_asyncio import Server

class Arith:
    def add(self, a: int, b: int) -> int:
        return a + b

async def main() -> None:
    server = Server()
    server.register(Arith())
    print(await server.start("tcp://127.0.0.1:0"), flush=True)
    await server.serve_forever()

asyncio.run(main())
"""


@pytest.mark.fault(86)
def test_module_that_runs_a_program_when_imported_is_named(start: Any, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    command = start("serve", "program:Arith", ANYWHERE, cwd=tmp_path)
    assert command.line().startswith("tcp://")  # the program's own server
    assert command.process.stderr.readline().decode() == (
        "rpc-proto: still importing 'program'; does it run a program when it is imported? "
        'Guard it with if __name__ == "__main__":\n'
    )
    command.signal(signal.SIGINT)
    command.end()


def test_taken_port_is_said_in_one_line(run: Any, server: str) -> None:
    code, output, errors = run("serve", "served:Other", "--listen", server)
    assert (code, output) == (1, "")
    assert errors.startswith(f"rpc-proto: cannot listen on {server}: ")
    assert errors.count("\n") == 1


def test_services_come_with_signatures_and_docstrings(run: Any, server: str) -> None:
    code, output, errors = run("services", server)
    assert (code, errors) == (0, "")
    assert "Arith\n  add(a: float, b: float) -> float\n      Return the sum of two" in output
    assert "inner.Other\n  ping() -> str\n" in output
    assert "      Return what arrived.\n\n      Both the positional" in output


def test_docstring_cannot_steer_the_terminal(run: Any, server: str) -> None:
    output = run("services", server)[1]
    assert "Has an \\x1b[31m escape code here." in output


def test_services_as_json(run: Any, server: str) -> None:
    code, output, _ = run("services", server, "--json")
    assert code == 0
    offer = json.loads(output)
    assert offer["Arith"]["add"] == {
        "signature": "(a: float, b: float) -> float",
        "doc": "Return the sum of two numbers.",
        "kind": "unary",
    }
    assert offer["Lines"]["tail"]["gives"] == "str"


def test_kinds_of_streams_are_shown(run: Any, server: str) -> None:
    _, output, _ = run("services", server)
    assert "tail(name: str, n: int = 3) -> AsyncIterator[str]  [server stream]" in output
    assert "shout(said: AsyncIterable[str]) -> AsyncIterator[str]  [bidirectional]" in output


def test_closed_stdout_is_no_traceback(start: Any, server: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = subprocess_to(start, writer, "services", server)
    assert command == (141, "")


def test_full_disk_is_one_line(start: Any, server: str) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    code, errors = subprocess_to(start, full, "services", server)
    assert code == 1
    assert errors == "rpc-proto: [Errno 28] No space left on device\n"


def test_no_stdout_at_all_is_no_traceback(server: str) -> None:
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" >&-', "sh", *COMMAND, "services", server],
        env=ENVIRONMENT,
        capture_output=True,
        timeout=PATIENCE,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")


def subprocess_to(start: Any, stdout: int, *arguments: str) -> tuple[int, str]:
    started = start(*arguments, stdout=stdout)
    os.close(stdout)
    code, _, errors = started.end()
    return code, errors


def test_version_and_help_end_with_code_0(run: Any) -> None:
    code, output, _ = run("--version")
    assert (code, output[:10]) == (0, "rpc-proto ")
    for command in ("", "serve", "call", "services", "bench", "registry", "nodes", "demo"):
        code, output, errors = run(*command.split(), "--help")
        assert (code, output[:6], errors) == (0, "usage:", "")
