"""`rpc-proto call`: results, arguments, errors and exit codes."""

import json
import signal
import socket
import subprocess
import sys
from typing import Any

import pytest

CODECS = pytest.mark.parametrize("codec", ["msgpack", "json"])


@CODECS
def test_result_is_json_on_stdout(run: Any, server: str, codec: str) -> None:
    assert run("call", server, "Arith.add", "1", "2.5", "--codec", codec) == (0, "3.5\n", "")


@CODECS
def test_objects_become_dataclasses_and_back(run: Any, server: str, codec: str) -> None:
    code, output, errors = run(
        "call", server, "Arith.move", '{"x": 1, "y": 2}', '{"x": 10, "y": 20}', "--codec", codec
    )
    assert (code, errors) == (0, "")
    assert json.loads(output) == {"x": 11, "y": 22}


def test_no_result_is_null(run: Any, server: str) -> None:
    assert run("call", server, "Probe.nothing") == (0, "null\n", "")


def test_named_arguments_and_options_in_any_order(run: Any, server: str) -> None:
    code, output, _ = run(
        *("call", server, "Probe.show", "-1e3", "--timeout", "5", '"a=b"', 'name="x"'),
        *("--codec=json", "-2", "list=[1, null]"),
    )
    assert code == 0
    assert json.loads(output) == [[-1000.0, "a=b", -2], {"name": "x", "list": [1, None]}]


def test_bytes_are_base64_objects_both_ways(run: Any, server: str) -> None:
    code, output, _ = run("call", server, "Probe.raw", '{"$base64": "YWJj"}')
    assert code == 0
    assert json.loads(output) == {"$base64": "Y2Jh"}


def test_metadata_travels(run: Any, server: str) -> None:
    code, output, _ = run(
        "call", server, "Probe.metadata", "--metadata", "a=1", "--metadata", "b=x=y"
    )
    assert code == 0
    assert json.loads(output) == {"a": "1", "b": "x=y"}


def test_output_fits_an_ascii_stream(run: Any, server: str) -> None:
    code, output, _ = run(
        "call", server, "Probe.show", '"\u00e9\U0001f600"', env={"PYTHONIOENCODING": "ascii"}
    )
    assert code == 0
    assert json.loads(output) == [["\u00e9\U0001f600"], {}]


def test_result_cannot_steer_the_terminal(run: Any, server: str) -> None:
    assert run("call", server, "Probe.escapes") == (0, '"\\u001b[31mred"\n', "")


def test_expired_timeout_is_one_line_and_code_1(run: Any, server: str) -> None:
    code, output, errors = run("call", server, "Slow.nap", "30", "--timeout", "0.2")
    assert (code, output) == (1, "")
    assert errors.startswith("rpc-proto: deadline_exceeded: the deadline of Slow.nap passed")
    assert errors.count("\n") == 1


def test_server_that_says_nothing_runs_into_the_timeout(run: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"tcp://127.0.0.1:{silent.getsockname()[1]}"
        code, _, errors = run("call", address, "A.b", "--timeout", "0.2")
    assert (code, errors) == (
        1,
        f"rpc-proto: deadline_exceeded: no connection to {address} within 0.2 s\n",
    )


def test_unknown_method_is_one_line_and_code_1(run: Any, server: str) -> None:
    assert run("call", server, "Arith.subtract", "1") == (
        1,
        "",
        "rpc-proto: unimplemented: no method 'Arith.subtract' is registered here\n",
    )


def test_wrong_argument_names_its_path(run: Any, server: str) -> None:
    code, _, errors = run("call", server, "Arith.length", '[{"x": 0, "y": 0}, {"x": "far"}]')
    assert code == 1
    assert "invalid_argument" in errors
    assert "`path[1].x`" in errors


def test_error_is_one_line_and_its_details_follow(run: Any, server: str) -> None:
    assert run("call", server, "Probe.fail") == (
        1,
        "",
        'rpc-proto: not_found: first line second line \\x1b[31m\ndetails: {"key": "value"}\n',
    )


@pytest.mark.parametrize(
    ("argument", "hint"),
    [
        ("hello", """'"hello"'"""),
        ("2024-01-01", """'"2024-01-01"'"""),
        ("it's", """'"it'"'"'s"'"""),
        ("name=hello", """'name="hello"'"""),
        ("", """'""'"""),
        ("NaN", """'"NaN"'"""),
        ("True", "written true"),
        ("[1, 2", "at character 6"),
        ('{"x": NaN}', "NaN is not JSON"),
        ('{"$base64": "?"}', "not base64"),
        ("a=1", "duplicate argument"),
        ("timeout=1", "only be passed by position"),
        pytest.param("[" * 100_000, "nested too deeply", id="deep"),
    ],
)
def test_argument_that_is_not_json_says_how_to_write_it(
    run: Any, server: str, argument: str, hint: str
) -> None:
    code, output, errors = run("call", server, "Probe.show", "a=1", argument)
    assert (code, output) == (2, "")
    assert errors.startswith("rpc-proto: ")
    assert errors.count("\n") == 1
    assert hint in errors


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["127.0.0.1:7000", "A.b"], "must begin with tcp://"),
        (["tcp://127.0.0.1", "A.b"], "host and a port"),
        (["tcp://a..b:1", "A.b"], "host name"),
        (["tcp://127.0.0.1:1"], "METHOD"),
        (["tcp://127.0.0.1:1", "A.b", "--timeout", "soon"], "not a number of seconds"),
        (["tcp://127.0.0.1:1", "A.b", "--codec", "xml"], "invalid choice"),
        (["tcp://127.0.0.1:1", "A.b", "--no-such-option"], "--no-such-option"),
        (["tcp://127.0.0.1:1", "A.b", "--metadata", "novalue"], "key=value"),
        (["tcp://127.0.0.1:1", "A.b", "--tls-ca", "x.pem"], "need a tls:// or https:// address"),
        (["tls://127.0.0.1:1", "A.b", "--tls-ca", "nowhere.pem"], "nowhere.pem: No such file"),
        (["tls://127.0.0.1:1", "A.b", "--tls-ca", "served.py"], "no certificate"),
    ],
)
def test_wrong_usage_is_one_line_and_code_2(run: Any, arguments: list[str], words: str) -> None:
    code, output, errors = run("call", *arguments)
    assert (code, output) == (2, "")
    assert errors.startswith("rpc-proto: ")
    assert errors.count("\n") == 1
    assert words in errors


def test_refused_connection_is_one_line_and_code_1(run: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        address = f"tcp://127.0.0.1:{gone.getsockname()[1]}"
    code, output, errors = run("call", address, "A.b")
    assert (code, output) == (1, "")
    assert errors.startswith(f"rpc-proto: unavailable: no connection to {address}: ")
    assert errors.count("\n") == 1


def test_ctrl_c_is_clean_and_cancels_the_handler(run: Any, start: Any, server: str) -> None:
    caller = start("call", server, "Slow.work", '"interrupted"', "30")
    assert run("call", server, "Slow.started", '"interrupted"') == (0, "true\n", "")
    caller.signal(signal.SIGINT)
    assert caller.end() == (130, "", "")
    assert run("call", server, "Slow.outcome", '"interrupted"') == (0, '"cancelled"\n', "")


def test_ctrl_c_while_the_command_is_loaded_is_no_traceback() -> None:
    program = """
import signal, sys

class Slow:
    def find_spec(self, name, *_):
        if name == "asyncio":
            signal.raise_signal(signal.SIGINT)

sys.meta_path.insert(0, Slow())
from rpc_cli.main import main
sys.exit(main(["call", "tcp://127.0.0.1:1", "A.b"]))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, b"", b"")
