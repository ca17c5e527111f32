"""The server's end of a new connection: calls or HTTP, depending on the first byte."""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from rpc_proto.config import Peer, ServerConfig

from .calls import InboundCall
from .events import Event
from .memory import Memory
from .observers import Observer, Observers
from .server import ServerConnection
from .states import State, Wish

if TYPE_CHECKING:
    from rpc_proto.http.messages import Application
    from rpc_proto.http.turns import HttpTurns

    from .http import HttpConnection

__all__ = ["ServerPort"]


class ServerPort:
    """The server's end of a connection, which looks at its first byte (docs/protocol.md, "HTTP").

    It is driven like any `Endpoint`. A peer that starts with HTTP gets an `HttpConnection`, whose
    requests `application` answers. Any other peer gets a `ServerConnection`; so does one whose
    CONNECT was accepted, with the bytes after it. `connection` is the current one.

    Connections that share `turns`, a rpc_proto.http.turns.HttpTurns, never keep their server from
    its calls for long; those that share `memory` stay within one budget. `observers` are notified
    of calls and of HTTP. `make` creates the ServerConnection.
    """

    __slots__ = (
        "_application",
        "_config",
        "_events",
        "_http",
        "_make",
        "_memory",
        "_observers",
        "_opened",
        "_refusal",
        "_turns",
        "connection",
    )

    def __init__(
        self,
        config: ServerConfig | None = None,
        *,
        now: float,
        peer: Peer | None = None,
        application: "Application | None" = None,
        turns: "HttpTurns | None" = None,
        memory: Memory | None = None,
        observers: Iterable[Observer] | Observers = (),
        make: Callable[..., ServerConnection] = ServerConnection,
    ) -> None:
        self._config = config or ServerConfig()
        self._application = application
        self._turns = turns
        self._memory = memory or Memory(self._config.budget)
        self._opened: float | None = now  # until it has seen the first byte
        self._refusal: tuple[str, str] | None = None
        self._events: list[Event] = []  # of the connection before
        self._http: HttpConnection | None = None  # while it is what the peer speaks
        self._make = make
        self._observers = Observers.of(observers)
        self.connection: ServerConnection | HttpConnection = make(
            self._config,
            now=now,
            peer=peer,
            memory=self._memory,
            observers=self._observers,
        )

    # Getters

    @property
    def peer(self) -> Peer:
        """The other end."""
        return self.connection.peer

    @peer.setter
    def peer(self, peer: Peer) -> None:
        self.connection.peer = peer

    @property
    def state(self) -> State:
        """The state of the connection."""
        return self.connection.state

    @property
    def wish(self) -> Wish:
        """What the transport should do now."""
        return self.connection.wish

    @property
    def version(self) -> int:
        """A number: see `Endpoint`."""
        return self.connection.version

    @property
    def outbound(self) -> int:
        """Bytes that `data_to_send` would return."""
        return self.connection.outbound

    @property
    def high_water(self) -> int:
        """Unsent bytes at which reading stops."""
        return self.connection.high_water

    @property
    def unsent(self) -> int:
        """Bytes that the embedder took but could not write yet."""
        return self.connection.unsent

    @unsent.setter
    def unsent(self, size: int) -> None:
        self.connection.unsent = size

    @property
    def missing(self) -> int:
        """Bytes still missing of the incomplete frame: a hint for the size of the next read."""
        return self.connection.missing

    @property
    def received(self) -> int:
        """Bytes received in total."""
        return self.connection.received

    @property
    def sent(self) -> int:
        """Bytes taken to be written, in total."""
        return self.connection.sent

    @property
    def calls(self) -> Iterable[InboundCall]:
        """Calls whose handlers have not ended."""
        return getattr(self.connection, "calls", ())

    # Inputs

    def receive_data(self, now: float, data: bytes | bytearray | memoryview) -> None:
        """Take bytes from the peer; the caller may reuse the buffer afterwards."""
        if self._opened is not None and len(data):
            if 0x41 <= data[0] <= 0x5A and self.state is State.HANDSHAKE:  # a method begins so
                self._begin_http(self._opened)
            self._opened = None
        self.connection.receive_data(now, data)
        self._look_for_tunnel(now)

    def receive_eof(self, now: float) -> None:
        """Record that the peer sends nothing more (EOF); it may still read."""
        self.connection.receive_eof(now)
        self._look_for_tunnel(now)

    def connection_lost(self, now: float, reason: str = "the connection was lost") -> None:
        """Record that the transport is closed in both directions; nothing more can be sent."""
        self.connection.connection_lost(now, reason)

    def handle_timeout(self, now: float) -> None:
        """Do what is due; afterwards `next_timeout()` is None or later than `now`."""
        self.connection.handle_timeout(now)
        self._look_for_tunnel(now)

    # Commands

    def turn_away(self, now: float, code: str, message: str) -> None:
        """Refuse the peer before it makes calls, for example because there are too many.

        The first bytes it sends decide whether the refusal is JSON or a 503; it has a second for
        it.
        """
        self.connection.turn_away(now, code, message)
        self._refusal = code, message

    def shutdown(self, now: float, grace: float = 0.0) -> None:
        """Close the connection gracefully: accept nothing new; calls get `grace` seconds."""
        self.connection.shutdown(now, grace)

    # Outputs

    def events(self) -> list[Event]:
        """Return the events since the last call, in order."""
        events = self.connection.events()
        if self._events:
            events = self._events + events
            self._events = []
        return events

    def data_to_send(self) -> bytes:
        """Return all bytes to write now; b"" if there are none."""
        return self.connection.data_to_send()

    def next_buffer(self) -> bytes | memoryview:
        """Return the next bytes to write, like `Endpoint.next_buffer`."""
        return self.connection.next_buffer()

    def next_timeout(self) -> float | None:
        """Return when to call `handle_timeout`, in absolute seconds; None for never."""
        return self.connection.next_timeout()

    # From one to the other

    def _begin_http(self, opened: float) -> None:
        from .http import HttpConnection  # with h11, which calls do not need

        self._http = HttpConnection(
            self._config,
            now=opened,
            peer=self.peer,
            application=self._application,
            turns=self._turns,
            memory=self._memory,
            unavailable=self._refusal and self._refusal[1],
            observers=self._observers,
        )
        self._succeed(self._http)

    def _look_for_tunnel(self, now: float) -> None:
        http = self._http
        if http is None or http.tunnel is None:
            return
        self._http = None
        behind, preface = http.tunnel, http.data_to_send()
        calls = self._make(
            self._config,
            now=now,
            peer=self.peer,
            memory=self._memory,
            preface=preface,
            observers=self._observers,
        )
        calls.received = http.received - len(behind)
        calls.sent = http.sent - len(preface)
        calls.unsent = http.unsent
        self._succeed(calls)
        if self._refusal is not None:
            calls.turn_away(now, *self._refusal)
        calls.receive_data(now, behind)
        if http.eof and calls.state is not State.CLOSED:
            calls.receive_eof(now)

    def _succeed(self, connection: "ServerConnection | HttpConnection") -> None:
        before = self.connection
        self._events += before.events()
        connection.version += before.version + 1
        self.connection = connection
