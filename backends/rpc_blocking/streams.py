"""Streams of blocking servers and clients."""

from collections.abc import Callable
from threading import Condition
from time import monotonic
from typing import Any

from rpc_common.client.streams import SyncRunning
from rpc_common.server.streams import ServedStream
from rpc_proto.service.context import Job

__all__ = ["RunningStream", "ThreadStream"]


class ThreadStream(ServedStream):
    """A running stream, served in a thread."""

    __slots__ = ("_changed", "_connection", "_link", "_lock")

    def __init__(self, job: Job) -> None:
        self._link = job.owner
        self._lock = job.owner.lock
        self._changed = Condition(self._lock)
        self._connection = job.call.connection
        with self._lock:
            super().__init__(job)

    def wake(self) -> None:
        self._changed.notify_all()  # the events of a connection come with its lock held

    def wait_until(self, ready: Callable[[], bool]) -> None:
        with self._lock:
            if self._connection.outbound:
                self._link.flush()
            self._changed.wait_for(ready)

    def send(self, value: Any) -> None:
        with self._lock:
            if self.job.error is not None:  # since a moment ago
                raise self.job.error
            now = monotonic()
            self._connection.send_item(now, self.call, value)
            self._link.wrote_item(now)

    def grant(self) -> None:
        with self._lock:
            self._connection.grant(monotonic(), self.call)
            self._link.wrote()


class RunningStream(SyncRunning):
    """A stream that has begun, at a client, which any thread may wait for."""

    def __init__(self, client: Any) -> None:
        super().__init__()
        self._client = client
        self._waiters: list[Any] = []

    def ring(self) -> None:
        self._client.awaken(self._waiters)

    def wait_until(self, ready: Callable[[], bool]) -> None:
        self._client.wait_until(self._waiters, ready)

    def send_item(self, value: Any) -> None:
        self._client.act(self._client.connection.send_item, self.call, value)

    def end_items(self) -> None:
        self._client.act(self._client.connection.end_items, self.call)

    def grant(self) -> None:
        self._client.act(self._client.connection.grant, self.call)

    def give_up(self) -> None:
        self._client.give_up_stream(self.call)

    def drop(self) -> None:
        self._client.drop_call(self.call)
