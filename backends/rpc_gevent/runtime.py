"""Greenlets, and the sockets that suit them, for code that is written once for all runtimes."""

from collections.abc import Callable
from typing import Any

import gevent
from gevent import socket
from gevent.event import Event
from gevent.monkey import get_original
from gevent.queue import SimpleQueue

from rpc_common.transport.runtime import Runtime

__all__ = ["GEVENT", "get_ident"]

# Of the thread, also where monkey-patching makes threading's tell greenlets apart.
get_ident: Callable[[], int] = get_original("_thread", "get_ident")


class _Gevent(Runtime):
    socket = socket

    def spawn(self, function: Callable[[], Any]) -> Any:
        return gevent.spawn(function)

    def kill(self, spawned: Any) -> None:
        spawned.kill(block=False)

    def here(self) -> Any:
        return get_ident()

    def make_event(self) -> Any:
        return Event()

    def make_queue(self) -> Any:
        return SimpleQueue()

    def sleep(self, seconds: float) -> None:
        gevent.sleep(seconds)

    def look_up(self, host: str, port: int, deadline: float) -> Any:
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)  # a Timeout limits it


GEVENT = _Gevent()
