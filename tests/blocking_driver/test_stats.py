"""No call is lost from the numbers, however many threads count."""

import sys
from collections.abc import Iterator
from threading import Barrier, Thread

import pytest

from rpc_blocking import Client, Server
from rpc_proto import NotFound, Unimplemented, quick

THREADS = 8
ROUNDS = 400


class Mixed:
    def wait(self) -> None: ...

    @quick
    def fast(self) -> None: ...

    @quick
    def fail(self) -> None:
        raise NotFound("on purpose")


@pytest.fixture
def switching() -> Iterator[None]:
    """Threads change places as often as they can."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


def test_no_call_of_many_connections_is_lost_from_the_numbers(switching: None) -> None:
    with Server(threads=4) as server:
        server.register(Mixed())
        address = server.start("tcp://127.0.0.1:0")
        barrier = Barrier(THREADS)
        failures: list[BaseException] = []

        def work() -> None:
            try:
                with Client.connect(address) as client:
                    barrier.wait(20)
                    for _ in range(ROUNDS):
                        client.call("Mixed.fast")
                        with pytest.raises(NotFound):
                            client.call("Mixed.fail")
                        with pytest.raises(Unimplemented):
                            client.call("Mixed.missing")
                    for _ in client.call_many("Mixed.wait", [()] * ROUNDS, in_flight=16):
                        pass
            except BaseException as error:
                failures.append(error)

        threads = [Thread(target=work) for _ in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(50)
        assert not failures
    seen = server.snapshot()
    methods = seen["methods"]
    for name in ("fast", "fail", "wait"):
        method = methods[f"Mixed.{name}"]
        assert method["begun"] == method["ended"] == THREADS * ROUNDS, name
        assert method["latency"]["count"] == THREADS * ROUNDS, name
    assert methods["Mixed.fail"]["errors"] == {"not_found": THREADS * ROUNDS}
    assert methods["(unknown)"]["refused"] == THREADS * ROUNDS
    assert seen["load"] == {"running": 0, "queued": 0, "streams": 0, "abandoned": 0, "memory": 0}
    assert (seen["connections"]["total"], seen["connections"]["open"]) == (THREADS, 0)
    assert seen["connections"]["bytes_received"] > THREADS * ROUNDS * 4 * 16
