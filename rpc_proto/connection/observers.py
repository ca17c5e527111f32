"""Observing the calls of connections: for statistics, access logs, tracing and the like."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from .events import ObserverFailed

if TYPE_CHECKING:
    from rpc_proto.config import Peer
    from rpc_proto.errors import CallError

    from .calls import InboundCall, OutboundCall
    from .events import Event, HttpServed

__all__ = ["NOBODY", "Observer", "Observers", "tell"]


class Observer:
    """Is notified of the calls of one or many connections; it cannot change them.

    Inherit from it and override the methods you need; the others cost nothing. `now` is the time
    that the embedder passed in, in seconds; sizes are bytes on the wire. Each call that `started`
    ends with either `answered` or `failed`; a call that is refused on arrival only has `failed`. If
    a method raises, the result is an `ObserverFailed` event and nothing else is affected.
    """

    __slots__ = ()

    def started(self, now: float, call: "InboundCall | OutboundCall") -> None:
        """A client is about to send the call, or a server has accepted it."""

    def carry(self, call: "OutboundCall") -> Mapping[str, str] | None:
        """Return metadata to send with the call, for example to continue a trace at the server.

        Called after `started`, on clients only.
        """

    def answered(self, now: float, call: "InboundCall | OutboundCall", size: int) -> None:
        """The call has its result; `size` is the size of the answer."""

    def failed(
        self, now: float, call: "InboundCall | OutboundCall", error: "CallError", size: int
    ) -> None:
        """The call failed with `error`; `size` is the size of the answer, 0 without one.

        A server's handler may still be running.
        """

    def item(self, now: float, call: "InboundCall | OutboundCall", size: int, sent: bool) -> None:
        """An item of a stream was sent or received; `size` counts its first part."""

    def served(self, now: float, peer: "Peer", exchange: "HttpServed") -> None:
        """A server has answered an HTTP request."""


class Observers:
    """Several observers, as a connection uses them: by the methods they override."""

    __slots__ = ("answered", "carry", "failed", "item", "served", "started")

    def __init__(self, observers: Iterable[Observer]) -> None:
        observers = tuple(observers)
        for observer in observers:
            if not isinstance(observer, Observer):
                raise TypeError(f"an observer must inherit from rpc_proto.Observer: {observer!r}")
        self.started = _overriding(observers, "started")
        self.carry = _overriding(observers, "carry")
        self.answered = _overriding(observers, "answered")
        self.failed = _overriding(observers, "failed")
        self.item = _overriding(observers, "item")
        self.served = _overriding(observers, "served")

    @classmethod
    def of(cls, observers: "Iterable[Observer] | Observers") -> "Observers":
        """Return the observers in this form; an Observers is returned as it is."""
        return observers if isinstance(observers, Observers) else cls(observers)


def _overriding(observers: Iterable[Observer], name: str) -> tuple[Any, ...]:
    return tuple(
        getattr(observer, name)
        for observer in observers
        if getattr(type(observer), name) is not getattr(Observer, name)
    )


def tell(events: "list[Event]", methods: tuple[Any, ...], *what: Any) -> None:
    """Call these methods of observers; what one raises becomes an event."""
    for method in methods:
        try:
            method(*what)
        except BaseException as error:  # an input never raises
            events.append(ObserverFailed(error))


NOBODY = Observers(())
