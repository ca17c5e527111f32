"""Threads and plain sockets, for code shared with gevent."""

import socket
from collections.abc import Callable
from queue import SimpleQueue
from threading import Event
from time import monotonic, sleep
from typing import Any

from rpc_common.transport.patching import check_patching
from rpc_common.transport.runtime import Runtime
from rpc_common.transport.threads import HelperThread, end_at_exit

__all__ = ["BLOCKING"]


class _Blocking(Runtime):
    socket = socket

    def spawn(self, function: Callable[[], Any]) -> Any:
        HelperThread(function, "rpc-beside").start()

    def kill(self, spawned: Any) -> None:
        pass  # a thread cannot be killed

    def end_at_exit(self, owner: Any) -> None:
        end_at_exit(owner)

    def here(self) -> Any:
        check_patching("rpc_blocking")

    def make_event(self) -> Any:
        return Event()

    def make_queue(self) -> Any:
        return SimpleQueue()

    def sleep(self, seconds: float) -> None:
        sleep(seconds)

    def look_up(self, host: str, port: int, deadline: float) -> list[Any]:
        """Call getaddrinfo, which has no timeout, in a thread that may be left running."""
        found: list[Any] = []
        failed: list[OSError] = []

        def look_up() -> None:
            try:
                found.extend(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
            except OSError as error:
                failed.append(error)

        if host.replace(".", "").isdigit() or ":" in host:
            look_up()
        else:
            thread = HelperThread(look_up, "rpc-lookup")
            try:
                thread.start()
            except RuntimeError as error:  # no more threads can be started
                raise OSError(f"no address for {host}: {error}") from None
            thread.join(max(0.0, deadline - monotonic()))
            if thread.is_alive():
                raise TimeoutError(f"no address for {host}")
        try:
            if failed:
                raise failed[0]
        finally:
            failed.clear()
        return found


BLOCKING = _Blocking()
