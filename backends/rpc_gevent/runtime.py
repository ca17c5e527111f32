"""Greenlets and gevent's sockets, for code shared with threads."""

from collections.abc import Callable
from typing import Any

import gevent
from gevent import getcurrent, socket
from gevent.event import Event
from gevent.monkey import get_original
from gevent.queue import SimpleQueue

from rpc_common.transport.runtime import Runtime
from rpc_proto import LocalProtocolError

__all__ = ["GEVENT", "check_greenlet", "get_ident"]

# Of the thread, even if monkey-patching makes threading's identify greenlets.
get_ident: Callable[[], int] = get_original("_thread", "get_ident")


def check_greenlet(hub: Any) -> None:
    """Raise LocalProtocolError in a callback of the hub, which cannot wait."""
    if getcurrent() is hub:
        raise LocalProtocolError("a callback of the hub cannot wait; call in a greenlet")


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
