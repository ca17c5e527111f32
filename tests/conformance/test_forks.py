"""A child process that lives on with the sockets of a server or a client."""

import contextlib
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from conformance.hosts import Process
from conformance.runtimes import Runtime
from conformance.wire import accepted, dialled


class Family(Process):
    """A process with a child."""

    def __init__(self, tmp_path: Path, *arguments: str) -> None:
        super().__init__(tmp_path / "errors.txt", "conformance.forking", *arguments)
        self.addresses = self.line().split()
        self._child = 0

    def fork(self) -> None:
        self.say("fork")
        self._child = int(self.line())

    def end_child(self) -> None:
        if self._child:
            os.kill(self._child, signal.SIGKILL)
            self._child = 0


@contextlib.contextmanager
def family(tmp_path: Path, *arguments: str) -> Iterator[Family]:
    both = Family(tmp_path, *arguments)
    try:
        yield both
    finally:
        both.end_child()
        both.kill()


@pytest.mark.fault(140)
def test_clients_see_at_once_that_the_parent_has_died(client_backend: Runtime, tmp_path):
    with family(tmp_path, client_backend.name) as server, contextlib.ExitStack() as stack:
        peers = [stack.enter_context(accepted(address)) for address in server.addresses]
        server.fork()
        for peer in peers:
            peer.request(1, "rpc.Health.check", "")
            assert peer.receive().value == "serving"
        began = time.monotonic()
        server.kill()
        assert [peer.receive_all() for peer in peers] == [[], []]
        assert time.monotonic() - began < 5.0
        for address in server.addresses:
            with pytest.raises(ConnectionRefusedError), dialled(address):
                pass


@pytest.mark.fault(140)
def test_port_is_free_after_stop_though_a_child_lives(client_backend: Runtime, tmp_path):
    with family(tmp_path, client_backend.name) as server:
        server.fork()
        server.say("stop")
        assert server.line() == "stopped\n"
        for address in server.addresses:
            with pytest.raises((ConnectionRefusedError, FileNotFoundError)), dialled(address):
                pass
        port = int(server.addresses[0].rpartition(":")[2])
        socket.create_server(("127.0.0.1", port)).close()


@pytest.mark.fault(140)
def test_server_sees_at_once_that_a_client_with_a_child_has_died(link, tmp_path):
    with link.host() as host:
        where = host.address("unix")
        with family(tmp_path, link.pair.client, where) as client:
            client.fork()
            host.settle(connections=1)
            client.kill()
            host.settle(connections=0, timeout=5.0)
