"""The examples of streams do what they say."""

import hashlib
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def start() -> Iterator[Any]:
    """start(example, *arguments) runs it beside the test."""
    with ExitStack() as stack:

        def run(*arguments: Any) -> subprocess.Popen[str]:
            process = subprocess.Popen(
                [sys.executable, str(EXAMPLES / arguments[0]), *map(str, arguments[1:])],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            stack.enter_context(process)
            stack.callback(process.kill)
            return process

        yield run


def address(server: Any) -> str:
    return str(server.stdout.readline().split()[-1])


def say(process: Any, text: str) -> None:
    process.stdin.write(text + "\n")
    process.stdin.flush()


def test_log_is_followed(start: Any, tmp_path: Path) -> None:
    log = tmp_path / "app"
    log.write_text("one\ntwo\n")
    follower = start(
        "log_tail.py", "follow", address(start("log_tail.py", "serve", tmp_path)), "app"
    )
    assert follower.stdout.readline() == "     1 one\n"
    assert follower.stdout.readline() == "     2 two\n"
    with log.open("a") as file:
        file.write("three\n")
    assert follower.stdout.readline() == "     3 three\n"
    follower.send_signal(signal.SIGINT)
    assert follower.communicate(timeout=20) == ("", "")


def test_log_that_is_not_there_is_an_error(start: Any, tmp_path: Path) -> None:
    where = address(start("log_tail.py", "serve", tmp_path))
    _, errors = start("log_tail.py", "follow", where, "missing").communicate(timeout=20)
    assert "not_found: missing: No such file or directory" in errors


def test_file_is_uploaded_with_its_progress(start: Any, tmp_path: Path) -> None:
    content = bytes(range(256)) * 4000
    (tmp_path / "data.bin").write_bytes(content)
    received = tmp_path / "received"
    received.mkdir()
    where = address(start("upload.py", "serve", received))
    output, errors = start("upload.py", "send", where, tmp_path / "data.bin").communicate(
        timeout=20
    )
    digest = hashlib.sha256(content).hexdigest()
    assert output == f"Received(size={len(content)}, sha256='{digest}')\n"
    assert errors.endswith("100 %\n")
    assert (received / "data.bin").read_bytes() == content
    assert list(received.iterdir()) == [received / "data.bin"]


def test_what_one_says_the_others_read(start: Any) -> None:
    where = address(start("chat.py", "serve"))
    alice = start("chat.py", "join", where, "alice")
    assert alice.stdout.readline() == "room: 0 others are here\n"
    bob = start("chat.py", "join", where, "bob")
    assert bob.stdout.readline() == "room: 1 others are here\n"
    assert alice.stdout.readline() == "bob: (joined)\n"
    say(bob, "hello")
    assert alice.stdout.readline() == "bob: hello\n"
    say(alice, "hi")
    assert bob.stdout.readline() == "alice: hi\n"
    bob.stdin.close()
    bob.stdin = None
    assert alice.stdout.readline() == "bob: (left)\n"
    assert bob.wait(timeout=20) == 0
