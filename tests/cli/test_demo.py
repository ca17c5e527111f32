"""`rpc-proto demo`: it runs to its end, checks what it shows, and leaves nothing behind."""

import contextlib
import os
import re
import signal
import time
from typing import Any

import pytest

from rpc_cli.demo_steps import STEPS, Outcome
from rpc_proto import Unavailable


def test_demo_shows_everything_and_ends_with_code_0(run: Any) -> None:
    begin = time.monotonic()
    code, output, errors = run("demo", env={"RPC_PROTO_TOKEN": "for something else"})
    assert (code, errors) == (0, "")
    assert time.monotonic() - begin < 20
    assert "\x1b" not in output
    for number, step in enumerate(STEPS, 1):
        assert f"{number}. {step.heading}\n" in output
        assert step.code.splitlines()[0] in output
    assert "nothing is left running" in output
    server = re.search(r"as process (\d+)", output)
    assert server is not None
    assert not is_running(int(server[1]))


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)]
)
def test_demo_that_is_ended_takes_its_server_along(start: Any, number: int, code: int) -> None:
    demo = start("demo", start_new_session=True)
    while "as process" not in demo.line():
        pass
    os.killpg(demo.process.pid, number)  # as a terminal does it
    # Its server holds the same standard error, and this waits for the last one to let go of it.
    got, _, errors = demo.end()
    assert (got, errors) == (code, "")


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.run.__name__.strip("_"))
def test_step_that_fails_is_not_passed_over(step: Any) -> None:
    with pytest.raises(Exception, match="the demo did not show what it claims"):
        step.verify(Outcome(None, Unavailable("gone"), 0.1))


def is_running(pid: int) -> bool:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, 0)
        return True
    return False
