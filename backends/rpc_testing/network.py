"""A network in memory: hosts, listeners, and links between two ends, on whatever clock there is.

Nothing here waits or reads a clock. The owner says what time it is, and runs functions when they
are due. An end has the methods of a socket that never blocks. What happens to bytes on their way
is up to the path between their hosts: latency, rate, stalls, cuts.
"""

import errno
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import count
from math import inf
from typing import Any, Protocol

__all__ = ["HOST", "Due", "End", "Link", "Listening", "Network", "Path", "Scheduler", "Timeline"]

# Who runs: what listens or dials does so at this host.
HOST: ContextVar[str] = ContextVar("rpc_testing_host", default="here")

# Names that mean whoever says them.
_OWN = frozenset({"", "localhost", "127.0.0.1", "::1", "0.0.0.0", "::"})

# Bytes that are on their way or wait at the receiver, at most; the sender has to keep the rest.
_CAPACITY = 256 * 1024

# No file has a descriptor as high as that.
_FIRST_NUMBER = 1 << 24

# The first byte of frames that carry an answer: RESPONSE and ERROR (docs/protocol.md).
_ANSWERS = frozenset({2, 3})
_PREFIX = 16  # bytes

Callback = Callable[[], object]


class Scheduler(Protocol):
    """A clock that runs functions."""

    def time(self) -> float:
        """Return the time in seconds."""

    def call_at(self, when: float, callback: Callback, /) -> Any:
        """Call a function when it is that late."""


class Due:
    """Something that a timeline runs later; `cancel` keeps it from that."""

    __slots__ = ("callback",)

    def __init__(self, callback: Callback) -> None:
        self.callback: Callback | None = callback

    def cancel(self) -> None:
        self.callback = None


class Timeline:
    """Virtual time for code that has no event loop: what is due, in order."""

    def __init__(self, start: float = 0.0) -> None:
        self.now = start
        self._due: list[tuple[float, int, Due]] = []
        self._order = count()

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, callback: Callback, /) -> Due:
        due = Due(callback)
        heappush(self._due, (when, next(self._order), due))
        return due

    def next_at(self) -> float | None:
        """Return when the next function is due; None if there is none."""
        while self._due and self._due[0][2].callback is None:
            heappop(self._due)
        return self._due[0][0] if self._due else None

    def run_due(self) -> None:
        """Run all that is due now, and was so before."""
        before = next(self._order)
        while (at := self.next_at()) is not None and at <= self.now and self._due[0][1] < before:
            callback = heappop(self._due)[2].callback
            assert callback is not None
            callback()


@dataclass
class Path:
    """What bytes meet on their way from one host to another. Times in seconds."""

    latency: float = 0.0
    rate: float = inf  # bytes a second
    stalls: int = 0  # while there is one, bytes wait, and so do those who dial
    jitter: Callable[[], float] | None = None  # returns seconds to be added for a piece


class Pipe:
    """One direction of a link."""

    def __init__(self, link: "Link", path: Path, scheduler: Scheduler) -> None:
        self.path = path
        self.receiver: End
        self.sender: End
        self.carried = 0  # bytes that have arrived
        self.ended = False  # the sender sends nothing more
        self.breaks_at: int | None = None  # after so many bytes the link is reset
        self._link = link
        self._scheduler = scheduler
        self._flight: deque[tuple[float, bytes]] = deque()  # arrival; b"" is the end
        self._arrived: deque[memoryview] = deque()
        self._room = _CAPACITY
        self._free_at = 0.0  # when the path can take the next piece
        self._last_at = 0.0  # when the last piece arrives; none overtakes another
        self.eof = False  # the end has arrived
        self.vanished = False  # what is sent arrives nowhere
        self.frames: _Frames | None = None  # of a server

    @property
    def waits(self) -> bool:
        """Whether there is something to receive, including the end."""
        return bool(self._arrived) or self.eof

    @property
    def is_full(self) -> bool:
        return self._room <= 0

    @property
    def on_its_way(self) -> int:
        """Bytes that have been sent and not been received."""
        return _CAPACITY - self._room

    def send(self, data: Any) -> int:
        """Take as many bytes as there is room for; return how many."""
        view = memoryview(data).cast("B")
        size = min(len(view), self._room)
        if size:
            self._room -= size
            self._put(bytes(view[:size]))
        return size

    def end(self) -> None:
        """Send the end after everything else."""
        if not self.ended:
            self.ended = True
            self._put(b"")

    def receive(self, buffer: memoryview) -> int:
        """Move what has arrived to a buffer; return how many bytes."""
        size = 0
        while self._arrived and size < len(buffer):
            piece = self._arrived[0]
            part = piece[: len(buffer) - size]
            buffer[size : size + len(part)] = part
            size += len(part)
            if len(part) == len(piece):
                self._arrived.popleft()
            else:
                self._arrived[0] = piece[len(part) :]
        if size:
            was_full = self.is_full
            self._room += size
            if was_full:
                self.sender.writable()
        return size

    def clear(self) -> None:
        """Lose everything."""
        self._flight.clear()
        self._arrived.clear()

    def resume(self) -> None:
        """Go on after a stall."""
        now = self._scheduler.time()
        waiting, self._flight = self._flight, deque()
        for at, piece in waiting:
            self._fly(max(at, now), piece)

    def _put(self, piece: bytes) -> None:
        if self.vanished:
            return
        now, path = self._scheduler.time(), self.path
        start = max(now, self._free_at)
        self._free_at = start + (len(piece) / path.rate if path.rate < inf else 0.0)
        delay = path.latency + (path.jitter() if path.jitter is not None else 0.0)
        self._last_at = max(self._last_at, self._free_at + delay)
        self._fly(self._last_at, piece)

    def _fly(self, at: float, piece: bytes) -> None:
        self._flight.append((at, piece))
        self._scheduler.call_at(at, self._deliver)

    def _deliver(self) -> None:
        now = self._scheduler.time()
        if self.path.stalls or not self._flight or self._flight[0][0] > now:
            return
        _, piece = self._flight.popleft()
        if not piece:
            self.eof = True
            self.receiver.readable()
            return
        if self.frames is not None and self.frames.follow(piece):
            self._link.reset()
            return
        left = None if self.breaks_at is None else self.breaks_at - self.carried
        if left is not None and len(piece) > left:
            piece = piece[:left]
        self.carried += len(piece)
        if piece:
            self._arrived.append(memoryview(piece))
            self.receiver.readable()
        if left is not None and self.carried >= (self.breaks_at or 0):
            self._link.reset()


class _Frames:
    """Follows what a server sends, frame by frame, to lose an answer."""

    def __init__(self, lose: Callable[[], bool]) -> None:
        self._lose = lose  # whether to lose this answer
        self._head = bytearray()
        self._skip = 0
        self._line: bytes | None = None  # what ends the lines before the frames
        self._begun = False

    def follow(self, data: bytes) -> bool:
        """Look at more bytes; return whether an answer begins that is to be lost."""
        if not self._begun:
            self._begun = True
            self._line = b"\r\n\r\n" if data[:1] == b"H" else b"\n"  # CONNECT comes first
        if self._line is not None:
            self._head += data
            _, found, rest = self._head.partition(self._line)
            if not found:
                return False
            self._line = None if self._line == b"\n" else b"\n"
            self._head.clear()
            return self.follow(bytes(rest)) if rest else False
        at = 0
        while at < len(data):
            if self._skip:
                step = min(self._skip, len(data) - at)
                self._skip -= step
            else:
                step = min(_PREFIX - len(self._head), len(data) - at)
                self._head += data[at : at + step]
                if len(self._head) == step and self._head[0] in _ANSWERS and self._lose():
                    return True
                if len(self._head) == _PREFIX:
                    self._skip = int.from_bytes(self._head[2:4]) + int.from_bytes(self._head[4:8])
                    self._head.clear()
            at += step
        return False


class End:
    """One end of a link, with the methods of a non-blocking socket.

    `on_readable` and `on_writable` are called when there may be something to do.
    """

    def __init__(self, link: "Link", number: int, host: str, name: Any, peer: Any) -> None:
        self.link = link
        self.host = host
        self.incoming: Pipe
        self.outgoing: Pipe
        self.on_readable: Callback | None = None
        self.on_writable: Callback | None = None
        self.failure: OSError | None = None
        self.closed = False
        self.number = number
        self._names = name, peer

    def __repr__(self) -> str:
        return f"<end at {self.host} of {self.link}>"

    def readable(self) -> None:
        if self.on_readable is not None and not self.closed:
            self.on_readable()

    def writable(self) -> None:
        if self.on_writable is not None and not self.closed:
            self.on_writable()

    @property
    def is_readable(self) -> bool:
        return self.failure is not None or self.incoming.waits

    @property
    def is_writable(self) -> bool:
        return self.failure is not None or not self.outgoing.is_full

    # As of a socket

    def fileno(self) -> int:
        return -1 if self.closed else self.number

    def detach(self) -> "End":
        return self

    def getsockname(self) -> Any:
        return self._names[0]

    def getpeername(self) -> Any:
        return self._names[1]

    def setsockopt(self, *_: Any) -> None:
        pass

    def setblocking(self, _: bool) -> None:
        pass

    def settimeout(self, _: float | None) -> None:
        pass

    def send(self, data: Any, _: int = 0) -> int:
        self._check()
        if self.outgoing.ended:
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")
        if self.link.far_end(self).closed:
            self.link.reset()
            self._check()
        sent = self.outgoing.send(data)
        if not sent and len(data):
            raise BlockingIOError(errno.EAGAIN, "no room on the way")
        return sent

    def recv_into(self, buffer: Any, size: int = 0, _: int = 0) -> int:
        view = memoryview(buffer)
        if size:
            view = view[:size]
        got = self.incoming.receive(view)
        if got:
            return got
        self._check()
        if self.incoming.eof:
            return 0
        raise BlockingIOError(errno.EAGAIN, "nothing has arrived")

    def shutdown(self, _: int) -> None:
        self._check()
        self.outgoing.end()

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            if self.incoming.waits and not self.incoming.eof:
                self.link.reset()  # as a kernel does if something was not read
            else:
                self.outgoing.end()
            self.link.forget()

    def _check(self) -> None:
        if self.failure is not None:
            raise type(self.failure)(*self.failure.args)


class Link:
    """A connection between two hosts."""

    def __init__(self, network: "Network", dialler: str, port: int, host: str) -> None:
        self._network = network
        self.dialler = dialler
        self.host = host
        self.port = port
        here, there = (dialler, network.next_number()), (host, port)
        self.client = End(self, here[1], dialler, here, there)
        self.server = End(self, network.next_number(), host, there, here)
        up = Pipe(self, network.path(dialler, host), network.scheduler)
        down = Pipe(self, network.path(host, dialler), network.scheduler)
        self.up, self.down = up, down
        down.frames = _Frames(network.loses_answer)
        up.sender = down.receiver = self.client
        up.receiver = down.sender = self.server
        self.client.outgoing = self.server.incoming = up
        self.client.incoming = self.server.outgoing = down

    def __repr__(self) -> str:
        return f"{self.dialler} to {self.host}:{self.port}"

    def far_end(self, end: End) -> End:
        """Return the other end."""
        return self.server if end is self.client else self.client

    def reset(self) -> None:
        """Break it: what is on its way is lost, and both ends fail."""
        error = ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")
        for pipe in (self.up, self.down):
            pipe.clear()
        for end in (self.client, self.server):
            if end.failure is None and not end.closed:
                end.failure = error
                end.readable()
                end.writable()
        self.forget(broken=True)

    def cut(self) -> None:
        """End it as if each end's peer had closed: what is on its way is lost."""
        for pipe in (self.up, self.down):
            pipe.clear()
            pipe.ended = pipe.eof = True
        for end in (self.client, self.server):
            end.readable()

    def vanish(self) -> None:
        """Lose one end's machine: nothing arrives any more, and nobody is told."""
        for pipe in (self.up, self.down):
            pipe.clear()
            pipe.vanished = True

    def forget(self, broken: bool = False) -> None:
        is_over = self.client.closed and self.server.closed
        if broken or is_over:
            self._network.links.pop(self, None)
        if is_over:
            self._network.forget(self)


class Listening:
    """A listener of the network, with the methods of rpc_common's."""

    def __init__(self, network: "Network", host: str, port: int, where: Any) -> None:
        self.network = network
        self.host = host
        self.port = port
        self.where = where
        self.on_readable: Callback | None = None
        self._number = network.next_number()
        self._waiting: deque[End] = deque()

    def fileno(self) -> int:
        return self._number

    @property
    def is_readable(self) -> bool:
        return bool(self._waiting)

    def arrive(self, end: End) -> None:
        self._waiting.append(end)
        if self.on_readable is not None:
            self.on_readable()

    def accept(self, take: Callable[[Any, Any], None]) -> float:
        """Give each connection that waits to `take`; return how long to pause, in seconds."""
        while self._waiting:
            end = self._waiting.popleft()
            take(end, end.getpeername())
        return 0.0

    def python_socket(self, end: Any, _: Any) -> Any:
        return end

    def close(self) -> None:
        self.network.listeners.pop((self.host, self.port), None)
        self.network.objects.pop(self._number, None)
        while self._waiting:
            self._waiting.popleft().link.reset()


class Network:
    """Hosts and the links between them.

    `path(source, goal)` is what lies between two hosts; `default` holds for all of which nothing
    else was said. The faults below concern all links there are, or those of which `of` says so.
    """

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.default = Path()
        self.listeners: dict[tuple[str, int], Listening] = {}
        self.links: dict[Link, None] = {}  # in the order in which they were made
        self.objects: dict[int, End | Listening] = {}  # by their numbers
        self._losing = 0
        self._lives: Counter[str] = Counter()  # of hosts, that have ended
        self.refusing = False  # dials are refused, whoever listens
        self._paths: dict[tuple[str, str], Path] = {}
        self._held: deque[Callback] = deque()  # dials that a stall holds
        self._numbers = count(_FIRST_NUMBER)
        self._ports = count(50_000)

    def next_number(self) -> int:
        return next(self._numbers)

    def path(self, source: str, goal: str) -> Path:
        """Return the path between two hosts, in that direction."""
        return self._paths.get((source, goal), self.default)

    def set_path(self, source: str, goal: str, path: Path) -> None:
        """Give two hosts a path of their own, in that direction; for links made from now on."""
        self._paths[source, goal] = path

    def forget(self, link: Link) -> None:
        """Let go of a link; not for users."""
        for end in (link.client, link.server):
            self.objects.pop(end.number, None)

    def close_host(self, host: str) -> None:
        """Let a host listen no more, and forget what it dials."""
        self._lives[host] += 1
        for listener in [one for one in self.listeners.values() if one.host == host]:
            listener.close()

    # Listening and dialling

    def listen(self, where: Any) -> Listening:
        """Listen at an address of this host; OSError if somebody does."""
        host = HOST.get() if where.scheme == "unix" or where.host in _OWN else where.host
        port = _port_of(where) or next(self._ports)
        if (host, port) in self.listeners:
            raise OSError(errno.EADDRINUSE, "Address already in use", str(where))
        if where.scheme != "unix":
            where = where._replace(host=host, port=port)
        listener = self.listeners[host, port] = Listening(self, host, port, where)
        self.objects[listener.fileno()] = listener
        return listener

    def dial(self, where: Any, done: Callable[[End | OSError], object]) -> None:
        """Dial an address, and call `done` with an end, or the error, after a round trip."""
        here = HOST.get()
        host = here if where.scheme == "unix" or where.host in _OWN else where.host
        self.dial_host(here, host, _port_of(where), done)

    def dial_host(
        self, here: str, host: str, port: int, done: Callable[[End | OSError], object]
    ) -> None:
        """Dial a port of a host."""
        there, back = self.path(here, host), self.path(host, here)
        life = self._lives[here]

        def arrive() -> None:
            if self._lives[here] != life:
                return
            if there.stalls or back.stalls:
                self._held.append(arrive)
                return
            listener = self.listeners.get((host, port))
            if listener is None or self.refusing:
                done(ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"))
                return
            link = Link(self, here, port, host)
            self.links[link] = None
            for end in (link.client, link.server):
                self.objects[end.fileno()] = end
            listener.arrive(link.server)
            done(link.client)

        self.scheduler.call_at(self.scheduler.time() + there.latency + back.latency, arrive)

    # Faults

    def of(self, host: str) -> Iterator[Link]:
        """Return the links of a host."""
        return (link for link in list(self.links) if host in (link.host, link.dialler))

    def reset(self, after: int | None = None) -> None:
        """Reset all links: now, or each when so many more bytes have come from its server."""
        for link in list(self.links):
            if after is None:
                link.reset()
            else:
                link.down.breaks_at = link.down.carried + after

    def cut(self) -> None:
        """End all links, as when the process at the other end has ended."""
        for link in list(self.links):
            link.cut()

    def stall(self) -> None:
        """Let bytes and dials wait until `resume`."""
        self.default.stalls = 1

    def resume(self) -> None:
        """End a stall: what waits goes on."""
        self.default.stalls = 0
        self.go_on()

    def go_on(self) -> None:
        """Deliver what waited for a stall that is over."""
        for link in list(self.links):
            link.up.resume()
            link.down.resume()
        held, self._held = self._held, deque()
        for arrive in held:
            arrive()

    def slow(self, latency: float = 0.0, rate: float = inf) -> None:
        """Let each piece take `latency` seconds, and `rate` bytes pass in a second."""
        self.default.latency = latency
        self.default.rate = rate

    def refuse(self, refusing: bool = True) -> None:
        """Refuse dials, or take them again."""
        self.refusing = refusing

    def drop_answer(self, count: int = 1) -> None:
        """Lose the next answers, each with its link: the handler has run, and nobody hears."""
        self._losing += count

    def loses_answer(self) -> bool:
        """Count an answer on its way; return whether it is to be lost. Not for users."""
        if not self._losing:
            return False
        self._losing -= 1
        return True


def _port_of(where: Any) -> int:
    # A path is a port, too, above those of TCP.
    number: int = where.port
    return 65536 + int.from_bytes(where.path.encode()) if where.scheme == "unix" else number
