"""`rpc-proto demo --etcd`: it runs to its end, checks what it shows, and leaves nothing behind."""

import os
import re
import signal
import time
from contextlib import suppress
from pathlib import Path

import pytest

from cli.processes import Process, kill
from etcd.conftest import ALL, FOUND, WHY
from rpc_cli.demo.sources import InEtcd

pytestmark = [
    pytest.mark.skipif(not FOUND, reason=WHY),
    pytest.mark.skipif(not ALL, reason="takes 25 s: make etcd runs it"),
    pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="reads /proc"),
]


@pytest.fixture
def demo():
    started = Process("demo", "--etcd", start_new_session=True)
    yield started
    kill(started)


def processes(output):
    return [int(pid) for pid in re.findall(r"as process (\d+)", output)]


def have_ended(pids):
    """Whether all have ended, or do so soon; who has but is not waited for has ended, too."""
    deadline = time.monotonic() + 10.0
    for pid in pids:
        with suppress(FileNotFoundError, ProcessLookupError):
            while "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text():
                if time.monotonic() > deadline:
                    return False
                time.sleep(0.01)
    return True


def test_demo_shows_everything_and_ends_with_code_0(demo):
    code, output, errors = demo.end(patience=50.0)
    assert code == 0, errors
    for number, heading in enumerate(InEtcd.headings, 1):
        assert f"{number}. {heading}\n" in output
    assert "no call failed in the" in output
    chart = output[output.index("were repeated") : output.index("All 6 steps")]
    for mark in ("v gevent killed", "v etcd killed", " back"):
        assert mark in chart
    assert max(map(len, chart.splitlines())) <= 80
    assert "nothing is left running" in output
    assert len(processes(output)) == 4
    assert have_ended(processes(output))


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)]
)
def test_demo_that_is_ended_takes_etcd_and_its_servers_along(demo, number, code):
    output = ""
    while InEtcd.headings[1] not in output:
        output += demo.line() + "\n"
    os.killpg(demo.process.pid, number)  # as a terminal does it
    assert demo.end()[0] == code
    assert len(processes(output)) == 4
    assert have_ended(processes(output))
