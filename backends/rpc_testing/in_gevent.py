"""rpc_gevent in memory: a hub whose time is virtual, and whose network has no sockets.

The loop of the hub gets one in front of it that has the timers, and the watchers of ends in memory;
it passes on all else. So `gevent.sleep`, `gevent.Timeout` and whatever waits for a time do so in
virtual time, which passes when the hub has nothing else to do.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Self

import gevent
from gevent import Timeout, get_hub, getcurrent
from gevent.event import AsyncResult, Event

import rpc_gevent.client
from rpc_common.transport import fetch
from rpc_gevent import Client, Server
from rpc_proto import Interceptor

from .network import Due, End, Listening, Network, Timeline
from .rig import RigBase
from .virtual import LONGEST, START, Outside, installed, replaced, too_long

__all__ = ["GeventRig"]

_TO_READ = 1  # what a watcher waits for; otherwise it waits to write
_PEEK = 2  # MSG_PEEK


class _Timer:
    """A timer of virtual time, with the interface of gevent's."""

    def __init__(self, timeline: Timeline, after: float, repeat: float) -> None:
        self._timeline = timeline
        self._after = after
        self._repeat = repeat
        self._due: Due | None = None
        self.callback: Any = None
        self.args: Any = None
        self.ref = True
        self.pending = False
        self.priority = 0

    @property
    def active(self) -> bool:
        return self._due is not None

    def start(self, callback: Callable[..., Any], *args: Any, **_: Any) -> None:
        self.stop()
        self.callback, self.args = callback, args
        self._set(self._after)

    def again(self, callback: Callable[..., Any], *args: Any, **_: Any) -> None:
        self.stop()
        self.callback, self.args = callback, args
        self._set(self._repeat)

    def _set(self, after: float) -> None:
        self._due = self._timeline.call_at(self._timeline.now + max(0.0, after), self._fire)

    def _fire(self) -> None:
        self._due = None
        callback, args = self.callback, self.args
        if self._repeat:
            self._set(self._repeat)
        else:
            self.callback = self.args = None
        callback(*args)

    def stop(self) -> None:
        if self._due is not None:
            self._due.cancel()
            self._due = None
        self.callback = self.args = None

    def close(self) -> None:
        self.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Watcher:
    """Watches an end or a listener, with the interface of gevent's io watchers."""

    def __init__(self, loop: "_Loop", found: End | Listening, what: int) -> None:
        self._loop = loop
        self._found: Any = found
        self._reads = what == _TO_READ
        self._callback: Callable[..., Any] | None = None
        self._args: tuple[Any, ...] = ()
        self._looking = False

    @property
    def active(self) -> bool:
        return self._callback is not None

    def start(self, callback: Callable[..., Any], *args: Any, **_: Any) -> None:
        self._callback, self._args = callback, args
        if self._reads:
            self._found.on_readable = self._look_soon
        else:
            self._found.on_writable = self._look_soon
        self._look_soon()

    def stop(self) -> None:
        self._callback = None

    def close(self) -> None:
        self.stop()

    def _is_ready(self) -> bool:
        found = self._found
        ready: bool = found.is_readable if self._reads else found.is_writable
        return ready

    def _look_soon(self) -> None:
        if self.active and not self._looking and self._is_ready():
            self._looking = True
            self._loop.run_callback(self._look)

    def _look(self) -> None:
        self._looking = False
        if self._callback is not None and self._is_ready():
            try:
                self._callback(*self._args)
            finally:
                self._look_soon()


class _Noticed(Timeline):
    """A timeline that tells when something is scheduled."""

    def __init__(self, start: float, began: Callable[[], None]) -> None:
        super().__init__(start)
        self._began = began

    def call_at(self, when: float, callback: Callable[[], object], /) -> Due:
        due = super().call_at(when, callback)
        self._began()
        return due


class _Loop:
    """Stands in front of the loop of a hub."""

    def __init__(self, loop: Any) -> None:
        self._loop = loop
        self.timeline = _Noticed(START, self._began)
        self.network = Network(self.timeline)
        self.limit = START + LONGEST  # of time
        self._main = getcurrent()
        self._idle = loop.idle()  # keeps the hub alive while something is scheduled
        self._settling: list[Callable[[], object]] = []
        self._told = 0  # what there was to do
        self._seen = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loop, name)

    def _began(self) -> None:
        if not self._idle.active:
            self._idle.start(self._rest)

    def _rest(self) -> None:
        """Let time pass: nothing has happened since the last time that nothing was to be done."""
        if self._told != self._seen or self._loop.pendingcnt:
            self._seen = self._told
            return
        at = self.timeline.next_at()
        if self._settling and (at is None or at > self.timeline.now):
            settling, self._settling = self._settling, []
            for settled in settling:
                settled()
            return
        if at is None:
            self._idle.stop()
            return
        if self.timeline.now >= self.limit:
            self._idle.stop()
            self._loop.run_callback(self._main.throw, too_long())
            return
        self.timeline.now = max(self.timeline.now, at)
        self._told += 1
        self.timeline.run_due()

    def when_settled(self, callback: Callable[[], object]) -> None:
        """Call a function when nothing more happens at this moment."""
        self._settling.append(callback)
        self._began()

    def end(self) -> None:
        self._idle.stop()
        self._idle.close()

    # As of a loop

    def now(self) -> float:
        return self.timeline.now

    def update(self) -> None:
        pass

    update_now = update

    def timer(self, after: float, repeat: float = 0.0, **_: Any) -> _Timer:
        return _Timer(self.timeline, after, repeat)

    def io(self, fd: int, events: int, **options: Any) -> Any:
        found = self.network.objects.get(fd)
        return (
            self._loop.io(fd, events, **options) if found is None else _Watcher(self, found, events)
        )

    def run_callback(self, function: Callable[..., Any], *args: Any) -> Any:
        self._told += 1
        return self._loop.run_callback(function, *args)

    def run_callback_threadsafe(self, function: Callable[..., Any], *args: Any) -> Any:
        self._told += 1
        return self._loop.run_callback_threadsafe(function, *args)


class _Socket:
    """An end with the methods of a socket that blocks its greenlet."""

    def __init__(self, end: End) -> None:
        self.end = end
        self._timeout: float | None = None

    def detach(self) -> End:
        return self.end

    def fileno(self) -> int:
        return self.end.fileno()

    def settimeout(self, timeout: float | None) -> None:
        self._timeout = timeout

    def setsockopt(self, *_: Any) -> None:
        pass

    def recv(self, size: int, flags: int = 0) -> bytes:
        if flags & _PEEK:
            if not self.end.is_readable:
                raise BlockingIOError
            return b"" if self.end.failure or not self.end.incoming.on_its_way else b"x"
        buffer = bytearray(size)
        got = self._wait(lambda: self.end.recv_into(buffer), "on_readable")
        return bytes(buffer[:got])

    def sendall(self, data: Any) -> None:
        rest = memoryview(data)
        while len(rest):
            sent = self._wait(lambda: self.end.send(rest), "on_writable")  # noqa: B023 - at once
            rest = rest[sent:]

    def shutdown(self, how: int) -> None:
        self.end.shutdown(how)
        self.end.link.cut()

    def close(self) -> None:
        self.end.close()

    def _wait(self, attempt: Callable[[], int], callback: str) -> int:
        changed = Event()
        setattr(self.end, callback, changed.set)
        with Timeout(self._timeout, TimeoutError):
            while True:
                try:
                    return attempt()
                except BlockingIOError:
                    changed.clear()
                    changed.wait()


class GeventRig(RigBase):
    """Servers and clients of rpc_gevent in one process: no socket, and no waiting.

    `connect` joins a client to services. `clock` is the time of everything, `network` has the
    faults, and `calls` what the handlers were asked, in the order in which they began.
    """

    _server = Server

    def __init__(self) -> None:
        self._hub = get_hub()
        self._loop = _Loop(self._hub.loop)
        self.network = self._loop.network
        super().__init__(self._loop.now)

    def serve(
        self,
        *services: Any,
        address: str = "tcp://here:0",
        interceptors: Iterable[Interceptor] = (),
        **settings: Any,
    ) -> str:
        """Serve objects with a server that has these settings; return its address."""
        record = self._recorder.record
        server: Server = self._make_server(record, services, interceptors, settings)
        return server.start(address)

    def connect(
        self, *services: Any, server: Mapping[str, Any] | None = None, **options: Any
    ) -> Client:
        """Serve objects, and return a client that is connected to them.

        `server` has the settings of the Server; `options` are those of `Client.connect`.
        """
        client = Client.connect(self.serve(*services, **(server or {})), **options)
        self._open.append(client)
        return client

    def _pass(self, seconds: float) -> None:
        gevent.sleep(seconds)
        settled = Event()
        self._loop.when_settled(settled.set)
        settled.wait()

    def _close(self) -> None:
        self.network.resume()
        for one in reversed(self._open):
            if isinstance(one, Client):
                one.close()
            else:
                one.stop(grace=0.0)

    def _dial(self, where: Any, _proxy: Any, deadline: float, *_: Any) -> _Socket:
        found: AsyncResult[End | OSError] = AsyncResult()
        self.network.dial(where, found.set)
        with Timeout(max(0.0, deadline - self._loop.now()), TimeoutError):
            result = found.get()
        if isinstance(result, OSError):
            raise result
        return _Socket(result)

    @contextmanager
    def open(self) -> "Iterator[GeventRig]":
        """Use the rig; at the end, everything that it opened is closed."""

        def take_over(sock: _Socket) -> End:
            return sock.detach()

        loop = self._hub.loop
        with (
            installed(self._loop.now, self.network, Outside()),
            replaced(
                [
                    (self._hub, "loop", self._loop),
                    (rpc_gevent.client, "dial", self._dial),
                    (rpc_gevent.client, "take_over", take_over),
                    (fetch, "dial", self._dial),
                ]
            ),
        ):
            try:
                yield self
                self._close()
            finally:
                self._loop.end()
        assert self._hub.loop is loop
