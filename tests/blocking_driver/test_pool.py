"""The threads in which handlers run, whatever a job does."""

import threading

import pytest

from rpc_common.transport.threads import Threads


@pytest.mark.fault(69)
@pytest.mark.parametrize("kind", [ZeroDivisionError, SystemExit])
def test_job_that_raises_keeps_its_thread_for_the_next_one(kind, caplog):
    threads = Threads(1, "pool")

    def fail() -> None:
        raise kind

    done = threading.Event()
    try:
        threads.submit(fail)
        threads.submit(done.set)
        assert done.wait(10)
    finally:
        threads.close()
    assert [record.getMessage() for record in caplog.records] == ["a job of pool failed"]
