"""What servers do to the paths of their unix sockets."""

import contextlib
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from conformance.runtimes import Runtime
from rpc_proto import Unavailable


@contextlib.contextmanager
def serving(backend: Runtime, path: Path) -> Iterator[Any]:
    server = backend.module.Server()
    try:
        backend.do(lambda: server.start(f"unix://{path}"))
        yield server
    finally:
        backend.do(server.stop)


def answers(backend: Runtime, path: Path) -> bool:
    try:
        backend.connect(f"unix://{path}").close()
    except Unavailable:
        return False
    return True


def stale_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
        sock.listen()


def symbolic_link(path: Path) -> None:
    stale_socket(path.with_name("behind"))
    path.symlink_to(path.with_name("behind"))


def read_only_file(path: Path) -> None:
    path.write_text("kept")
    path.chmod(0o400)


@pytest.mark.fault(134)
@pytest.mark.fault(63)
@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda path: path.write_text("kept"), "regular file"),
        (read_only_file, "regular file"),
        (os.mkfifo, "FIFO"),
        (Path.mkdir, "directory"),
        (symbolic_link, "symbolic link"),
    ],
)
def test_what_is_no_socket_is_left_alone_and_named(client_backend, tmp_path, make, name):
    path = tmp_path / "rpc.sock"
    make(path)
    before = os.lstat(path)
    with (
        pytest.raises(FileExistsError, match=rf"a {name} at the path of the socket: '.*rpc.sock"),
        serving(client_backend, path),
    ):
        pass
    assert os.lstat(path) == before


@pytest.mark.fault(63)
def test_socket_of_a_dead_server_is_replaced(client_backend, tmp_path):
    path = tmp_path / "rpc.sock"
    stale_socket(path)
    with serving(client_backend, path):
        assert answers(client_backend, path)
    assert not path.exists()


@pytest.mark.fault(134)
def test_socket_of_a_server_that_hangs_is_left_alone_at_once(client_backend, tmp_path):
    path = tmp_path / "rpc.sock"
    with contextlib.ExitStack() as stack:
        owner = stack.enter_context(socket.socket(socket.AF_UNIX))
        owner.bind(str(path))
        owner.listen(0)
        with contextlib.suppress(BlockingIOError):
            while True:  # until its queue is full
                waiting = stack.enter_context(socket.socket(socket.AF_UNIX))
                waiting.setblocking(False)
                waiting.connect(str(path))
        began = time.monotonic()
        with pytest.raises(OSError, match="in use"), serving(client_backend, path):
            pass
        assert time.monotonic() - began < 5.0
        assert path.is_socket()


@pytest.mark.fault(64)
def test_old_server_leaves_the_socket_of_its_successor(client_backend, tmp_path):
    path = tmp_path / "rpc.sock"
    with serving(client_backend, path) as old:
        path.unlink()
        with serving(client_backend, path):
            client_backend.do(old.stop)
            assert answers(client_backend, path)
        assert not path.exists()
