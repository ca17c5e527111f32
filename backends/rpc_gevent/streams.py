"""Streams of gevent servers and clients."""

from collections.abc import Callable
from time import monotonic
from typing import Any

from gevent import get_hub, getcurrent, sleep

from rpc_common.client.streams import SyncRunning
from rpc_common.server.streams import ServedStream
from rpc_common.transport.turns import SHORT
from rpc_proto.service.context import Job

__all__ = ["GreenletStream", "RunningStream"]


class Bell:
    """Wakes the greenlets that wait for something; each then looks whether it has come."""

    __slots__ = ("_hub", "_waiting")

    def __init__(self, hub: Any) -> None:
        self._hub = hub
        self._waiting: list[Any] = []

    def ring(self) -> None:
        """Wake them soon."""
        if self._waiting:
            self._hub.loop.run_callback(self._wake)

    def wait_until(self, ready: Callable[[], bool]) -> None:
        """Return when `ready()` is true."""
        me = getcurrent()
        while not ready():
            self._waiting.append(me)
            try:
                self._hub.switch()
            finally:
                if me in self._waiting:
                    self._waiting.remove(me)

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, []
        for greenlet in waiting:
            greenlet.switch()


class GreenletStream(ServedStream):
    """A running stream, served in a greenlet."""

    __slots__ = ("_bell", "_connection", "_link", "_turn_ends")

    def __init__(self, job: Job) -> None:
        self._bell = Bell(get_hub())
        self._link = job.owner
        self._connection = job.call.connection
        self._turn_ends = monotonic() + SHORT
        super().__init__(job)

    def wake(self) -> None:
        self._bell.ring()

    def wait_until(self, ready: Callable[[], bool]) -> None:
        self._bell.wait_until(ready)

    def send(self, value: Any) -> None:
        now = monotonic()
        self._connection.send_item(now, self.call, value)
        self._link.wrote()
        if now > self._turn_ends:  # a method that never waits must not keep others waiting
            sleep(0)
            self._turn_ends = monotonic() + SHORT

    def grant(self) -> None:
        self._connection.grant(monotonic(), self.call)
        self._link.wrote()


class RunningStream(SyncRunning):
    """A stream that has begun, at a client."""

    def __init__(self, link: Any, hub: Any) -> None:
        super().__init__()
        self._link = link
        self._hub = hub
        self._bell = Bell(hub)

    def ring(self) -> None:
        self._bell.ring()

    def wait_until(self, ready: Callable[[], bool]) -> None:
        self._bell.wait_until(ready)

    def send_item(self, value: Any) -> None:
        self._link.connection.send_item(monotonic(), self.call, value)
        self._link.wrote()

    def end_items(self) -> None:
        self._link.connection.end_items(monotonic(), self.call)
        self._link.wrote()

    def grant(self) -> None:
        self._link.connection.grant(monotonic(), self.call)
        self._link.wrote()

    def give_up(self) -> None:
        self._link.connection.cancel(monotonic(), self.call)
        self._link.react()
        self._link.flush_soon()

    def drop(self) -> None:
        loop = self._hub.loop
        if loop is not None:  # else the hub was destroyed before
            loop.run_callback_threadsafe(self.give_up)
