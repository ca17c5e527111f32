"""`rpc-proto demo`: it runs to its end, checks what it shows, and leaves nothing behind."""

import contextlib
import os
import re
import signal
import time
from typing import Any

import pytest

from rpc_cli.demo.chart import draw
from rpc_cli.demo.page import claim
from rpc_cli.demo.sources import InRegistry
from rpc_cli.demo.steps import STEPS, Outcome
from rpc_cli.output.errors import CommandError
from rpc_proto import Unavailable


def test_demo_shows_everything_and_ends_with_code_0(start: Any) -> None:
    begin = time.monotonic()
    tokens = {
        "RPC_PROTO_TOKEN": "for something else",
        "RPC_PROTO_REGISTRY_TOKEN": "for something else",
    }
    code, output, errors = start("demo", env=tokens).end(patience=50.0)
    assert (code, errors) == (0, "")
    assert time.monotonic() - begin < 30
    assert "\x1b" not in output
    for number, step in enumerate(STEPS, 1):
        assert f"{number}. {step.heading}\n" in output
        assert step.code.splitlines()[0] in output
    for number, heading in enumerate(InRegistry.headings, len(STEPS) + 1):
        assert f"{number}. {heading}\n" in output
    assert "idempotent calls, and none failed" in output
    chart = output[output.index("were repeated") : output.index("All ")]
    assert "v gevent killed" in chart
    assert max(map(len, chart.splitlines())) <= 80
    assert "nothing is left running" in output
    servers = re.findall(r"as process (\d+)", output)
    assert len(servers) == 5
    assert not any(is_running(int(server)) for server in servers)


@pytest.mark.parametrize(
    ("words", "number", "code"),
    [
        ("as process", signal.SIGKILL, -9),
        ("as process", signal.SIGTERM, 143),
        (InRegistry.headings[3], signal.SIGINT, 130),
    ],
    ids=["one-killed", "one-terminated", "several-interrupted"],
)
def test_demo_that_is_ended_takes_its_servers_along(
    start: Any, words: str, number: int, code: int
) -> None:
    demo = start("demo", start_new_session=True)
    while words not in demo.line():
        pass
    os.killpg(demo.process.pid, number)  # as a terminal does it
    # Its servers hold the same standard error, and this waits for the last one to let go of it.
    got, _, errors = demo.end()
    assert got == code
    assert errors == "" or number == signal.SIGKILL  # nobody told the servers to expect that


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.run.__name__.strip("_"))
def test_step_that_fails_is_not_passed_over(step: Any) -> None:
    with pytest.raises(Exception, match="the demo did not show what it claims"):
        step.verify(Outcome(None, Unavailable("gone"), 0.1))


def test_claim_that_is_wrong_ends_the_demo() -> None:
    claim(True, "so it is", "it")
    with pytest.raises(CommandError, match="what it claims: all is well; got nothing"):
        claim(False, "all is well", "nothing")


def test_chart_shows_when_who_had_how_much() -> None:
    steady = [second / 100 for second in range(5400)]
    chart = draw(
        {"a": [at for at in steady if at < 20], "b": steady}, 54.0, [(20.0, "gone"), (50.0, "end")]
    )
    margin = " " * 16
    assert chart == [
        f"{margin}{'gone v':>21}{'end v':>30}",
        f"a        100/s |{'#' * 20}",
        f"          75/s |{'#' * 20}",
        f"          50/s |{'#' * 20}",
        f"          25/s |{'#' * 20}",
        f"b        100/s |{'#' * 54}",
        f"          75/s |{'#' * 54}",
        f"          50/s |{'#' * 54}",
        f"          25/s |{'#' * 54}",
        f"{margin[1:]}+--------+--------+--------+--------+--------+--------+",
        f"{margin[1:]}0.0      9.0      18.0     27.0     36.0     45.0     54.0 s",
    ]


def test_chart_of_a_load_that_changes_has_heights() -> None:
    chart = draw({"a": [0.5] * 4 + [1.5] + [2.5] * 2}, 54.0, [])
    bars = [line.partition("|")[2] for line in chart[1:5]]
    assert bars == ["#", "#", "# #", "###"]


def test_chart_of_nothing_is_empty() -> None:
    assert "#" not in "".join(draw({"a": []}, 1.0, [(0.0, "begin")]))


def is_running(pid: int) -> bool:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, 0)
        return True
    return False
