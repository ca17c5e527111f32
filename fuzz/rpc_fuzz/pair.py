"""A client and a server joined in memory, on a virtual clock, and a host that runs handlers.

Nothing here waits: `Pair.step` moves the clock to the next time that one of the ends asked for.
"""

import math
from collections.abc import Callable, Sequence
from contextvars import copy_context
from typing import Any

from rpc_proto import (
    CallCompleted,
    CallError,
    CallFailed,
    ClientConfig,
    ClientConnection,
    ConnectionTerminated,
    Event,
    InboundCall,
    OutboundCall,
    Peer,
    RequestReceived,
    SendBufferDrained,
    ServerConfig,
    ServerConnection,
    State,
    Wish,
)
from rpc_proto.connection.base import Connection
from rpc_proto.connection.observers import Observers
from rpc_proto.service.context import Job
from rpc_proto.service.dispatch import Dispatcher

from .wire import START


class Link:
    """One direction of the transport: bytes on their way to `receiver`."""

    def __init__(self, sender: Connection, receiver: Connection) -> None:
        self.sender = sender
        self.receiver = receiver
        self.data = bytearray()
        self.held = False  # as if the kernel took no more bytes from the sender
        self.carried = 0  # bytes delivered so far
        self.ended = False  # the sender closed
        self.eof_seen = False


class Pair:
    """Two ends and the driver's work for both: read, write, clock, timer.

    `chunk` cuts what is delivered into pieces of so many bytes. What the ends report is kept in
    `client_events` and `server_events`; `on_server_event` and `on_client_event` see it as it comes.
    """

    def __init__(
        self,
        client: ClientConfig | None = None,
        server: ServerConfig | None = None,
        *,
        codec: str = "msgpack",
        chunk: int | None = None,
        peer: Peer | None = None,
        start: float = START,
    ) -> None:
        self.now = start
        self.chunk = chunk
        self.client = ClientConnection(client or ClientConfig(codec=codec), now=start)
        self.server = ServerConnection(server, now=start, peer=peer)
        self.up = Link(self.client, self.server)
        self.down = Link(self.server, self.client)
        self.client_events: list[Event] = []
        self.server_events: list[Event] = []
        self.on_client_event: Callable[[Event], None] | None = None
        self.on_server_event: Callable[[Event], object] | None = None
        self.half_closed = False

    # Bytes

    def pump(self) -> None:
        """Carry bytes both ways until both ends are quiet."""
        busy = True
        while busy:
            busy = self.carry(self.up)
            busy = self.carry(self.down) or busy

    def open(self) -> "Pair":
        """Carry the handshake over."""
        self.pump()
        assert self.client.state is State.OPEN
        assert self.server.state is State.OPEN
        return self

    def half_close(self) -> None:
        """The client's process shuts its writing side."""
        self.half_closed = True
        self.pump()

    def lose(self) -> None:
        """The transport breaks; what was on its way is lost."""
        for link in (self.up, self.down):
            link.data.clear()
            link.ended = link.eof_seen = True
        self.client.connection_lost(self.now)
        self.report(self.client)
        self.server.connection_lost(self.now)
        self.report(self.server)

    def carry(self, link: Link) -> bool:
        """Carry one piece in one direction, or the end of it; whether anything moved."""
        sender, receiver = link.sender, link.receiver
        self.report(sender)  # to what a command caused
        moved = False
        if not link.held and not link.ended:
            written = sender.data_to_send()
            if not (sender is self.client and self.half_closed):
                link.data += written
                moved = bool(written)
        if sender.wish is Wish.ABORT:
            link.ended = True
        elif sender.wish in (Wish.HALF_CLOSE, Wish.CLOSE) and not link.held:
            link.ended = True
            if sender.wish is Wish.CLOSE:
                sender.connection_lost(self.now)
                self.report(sender)
        elif sender is self.client and self.half_closed:
            link.ended = True
        if link.data and receiver.wish in (Wish.READ, Wish.HALF_CLOSE):
            size = self.chunk or len(link.data)
            piece = bytes(link.data[:size])
            del link.data[:size]
            link.carried += len(piece)
            receiver.receive_data(self.now, piece)
            self.report(receiver)
            moved = True
        elif link.ended and not link.eof_seen and (not link.data or receiver.wish is Wish.ABORT):
            link.eof_seen = True
            receiver.receive_eof(self.now)
            self.report(receiver)
            moved = True
        return moved

    # Time

    def next_timeout(self) -> float | None:
        """When the first of the two ends wants to be woken."""
        times = (self.client.next_timeout(), self.server.next_timeout())
        return min((at for at in times if at is not None), default=None)

    def step(self) -> bool:
        """Move the clock to the next wake-up and do what is due; False if there is none."""
        at = self.next_timeout()
        if at is None or at == math.inf:
            return False
        self.now = max(self.now, at)
        for end in (self.client, self.server):
            due = end.next_timeout()
            if due is not None and due <= self.now:
                end.handle_timeout(self.now)
                self.report(end)
                later = end.next_timeout()
                assert later is None or later > self.now
        self.pump()
        return True

    def advance(self, seconds: float) -> None:
        """Let time pass, with every wake-up on the way."""
        self.pump()
        until = self.now + seconds
        while (at := self.next_timeout()) is not None and at <= until:
            self.step()
        self.now = until
        self.pump()

    # Events and commands

    def report(self, end: Connection) -> None:
        """Keep what has happened at an end."""
        ours, hook = (
            (self.client_events, self.on_client_event)
            if end is self.client
            else (self.server_events, self.on_server_event)
        )
        while events := end.events():  # what is done about some may cause others
            for event in events:
                ours.append(event)
                if hook is not None:
                    hook(event)

    def call(
        self, method: str, *args: Any, timeout: float | None = None, **options: Any
    ) -> OutboundCall:
        """Start a call and carry it over."""
        deadline = None if timeout is None else self.now + timeout
        call = self.client.start_call(self.now, method, args, deadline=deadline, **options)
        self.pump()
        return call

    def request(self, method: str, *args: Any, **options: Any) -> tuple[OutboundCall, InboundCall]:
        """Start a call and return it as both ends see it."""
        call = self.call(method, *args, **options)
        served = self.requests()[-1]
        assert served.id == call.id
        return call, served

    def requests(self) -> list[InboundCall]:
        """Every call that arrived at the server."""
        return [event.call for event in self.server_events if isinstance(event, RequestReceived)]

    def respond(self, call: InboundCall, value: Any = None) -> None:
        """Answer a call and carry the answer over."""
        self.server.send_response(self.now, call, value)
        self.pump()

    def fail(self, call: InboundCall, error: CallError) -> None:
        """Answer a call with an error and carry that over."""
        self.server.send_error(self.now, call, error)
        self.pump()

    def shut_client(self, grace: float = 0.0) -> None:
        self.client.shutdown(self.now, grace)
        self.report(self.client)
        self.pump()

    def shut_server(self, grace: float = 0.0) -> None:
        self.server.shutdown(self.now, grace)
        self.report(self.server)
        self.pump()

    def ends(self, call: OutboundCall) -> list[Event]:
        """The terminal events of a call at the client; always exactly one in the end."""
        return [
            event
            for event in self.client_events
            if isinstance(event, (CallCompleted, CallFailed)) and event.call is call
        ]

    def outcome(self, call: OutboundCall) -> Any:
        """The value or the error that a call ended with."""
        return outcome(self.ends(call))


def outcome(events: Sequence[Event]) -> Any:
    """The value or the error of the one terminal event among a client's events."""
    ends = [event for event in events if isinstance(event, (CallCompleted, CallFailed))]
    assert len(ends) == 1, events
    return ends[0].value if isinstance(ends[0], CallCompleted) else ends[0].error


def only(events: Sequence[Event], kind: type[Event]) -> Any:
    """The one event of a kind."""
    found = [event for event in events if isinstance(event, kind)]
    assert len(found) == 1, events
    return found[0]


def termination(events: Sequence[Event]) -> Any:
    """The error of the one `ConnectionTerminated`, which must be the last event."""
    assert isinstance(events[-1], ConnectionTerminated), events
    return only(events, ConnectionTerminated).error


class Host:
    """Runs the handlers of a pair's server, as a driver does: at once, or when `finish` is called.

    A handler named in `slow` is left in `running` until `finish`.
    """

    def __init__(
        self,
        pair: Pair,
        *services: Any,
        max_concurrency: int = 1000,
        max_queued: int = 1000,
        threads: int | None = None,
        debug: bool = False,
        slow: Sequence[str] = (),
    ) -> None:
        self.pair = pair
        self.slow = slow
        self.dispatcher = Dispatcher(
            max_concurrency=max_concurrency,
            max_queued=max_queued,
            threads=threads,
            clock=lambda: pair.now,
            debug=debug,
            report=lambda error, message: self.failures.append(error),
        )
        pair.server._observers = Observers([self.dispatcher])
        for service in services:
            self.dispatcher.register(service)
        self.running: list[Job] = []
        self.stopped: list[Job] = []
        self.ran: list[str] = []
        self.failures: list[BaseException] = []
        pair.on_server_event = self.handle

    def handle(self, event: Event) -> None:
        for job in self.dispatcher.receive([event]):
            if job.error is None:
                self._start(job)
            else:
                self.stopped.append(job)
        if isinstance(event, SendBufferDrained) and self.dispatcher.resume(self.pair.server):
            self._resume()

    def finish(self, job: Job | None = None) -> None:
        """Let a slow handler, the first by default, run to its end."""
        job = job or self.running[0]
        self.running.remove(job)
        self._run(job)
        self.pair.pump()

    def _start(self, job: Job) -> None:
        if job.method.name in self.slow:
            self.running.append(job)
        else:
            self._run(job)

    def _run(self, job: Job) -> None:
        self.ran.append(job.method.name)
        try:
            result = copy_context().run(job.run)
        except Exception as error:
            self.dispatcher.finish(job, None, error)
        else:
            self.dispatcher.finish(job, result)
        self._resume()

    def _resume(self) -> None:
        while (queued := self.dispatcher.next_queued()) is not None:
            self._start(queued)
