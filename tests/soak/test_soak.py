"""The short form of `make soak`: faults around five servers and a registry, all real processes."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "soak.py"


def run(*arguments: str) -> None:
    ended = subprocess.run(
        [sys.executable, str(SCRIPT), "--together", "--calm=0", *arguments],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    print(ended.stdout, ended.stderr)
    assert ended.returncode == 0


@pytest.mark.timeout(120)
def test_callers_notice_nothing_of_servers_and_registries_that_die_if_they_may_repeat_calls():
    pytest.importorskip("gevent")
    run("--seconds=9")


@pytest.mark.timeout(120)
def test_no_call_at_all_fails_when_servers_are_replaced_in_order():
    pytest.importorskip("gevent")
    run("--seconds=6", "--faults", "drain")
