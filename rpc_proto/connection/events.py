"""The events of a connection, which `events()` returns in order."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rpc_proto.errors import CallError, RpcError
from rpc_proto.wire.handshake import Answer

from .calls import InboundCall, OutboundCall

if TYPE_CHECKING:
    from rpc_proto.http.messages import Promise

__all__ = [
    "CallCancelled",
    "CallCompleted",
    "CallFailed",
    "ConnectionTerminated",
    "Event",
    "GoAwayReceived",
    "HandshakeCompleted",
    "HttpServed",
    "ItemsEnded",
    "ItemsReceived",
    "ObserverFailed",
    "RequestReceived",
    "ResponsePromised",
    "SendBufferDrained",
    "Writable",
]

# Plain slotted classes: one is built for each call, and a dataclass or a named tuple costs more.


class Event:
    """Base of all events."""

    __slots__: tuple[str, ...] = ()

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}={getattr(self, name)!r}" for name in self.__slots__)
        return f"{type(self).__name__}({fields})"


class HandshakeCompleted(Event):
    """The server accepted the options: codec, limits and ping interval are in force."""

    __slots__ = ("agreed",)

    def __init__(self, agreed: Answer) -> None:
        self.agreed = agreed


class RequestReceived(Event):
    """Server: a call arrived. Answer it with `send_response` or `send_error`, exactly once."""

    __slots__ = ("call",)

    def __init__(self, call: InboundCall) -> None:
        self.call = call


class CallCancelled(Event):
    """Server: the caller has the outcome `error`, or is gone; stop the handler.

    The call still holds its slot until it is answered, or given up with `conclude`.
    """

    __slots__ = ("call", "error")

    def __init__(self, call: InboundCall, error: CallError) -> None:
        self.call = call
        self.error = error


class CallCompleted(Event):
    """Client: a call was answered. The last event of the call."""

    __slots__ = ("call", "metadata", "value")

    def __init__(self, call: OutboundCall, value: Any, metadata: Mapping[str, str]) -> None:
        self.call = call
        self.value = value
        self.metadata = metadata


class CallFailed(Event):
    """Client: a call failed with `error`. The last event of the call."""

    __slots__ = ("call", "error")

    def __init__(self, call: OutboundCall, error: CallError) -> None:
        self.call = call
        self.error = error


class ItemsReceived(Event):
    """There are items to take, after there were none: see `Connection.take_item`."""

    __slots__ = ("call",)

    def __init__(self, call: InboundCall | OutboundCall) -> None:
        self.call = call


class ItemsEnded(Event):
    """Server: the client sends no more items. Those that have arrived can still be taken.

    With an `error` they were cut off. At a client the end of the call is that of the items.
    """

    __slots__ = ("call", "error")

    def __init__(self, call: InboundCall, error: CallError | None = None) -> None:
        self.call = call
        self.error = error


class Writable(Event):
    """The next item can be sent, after `send_item` returned False."""

    __slots__ = ("call",)

    def __init__(self, call: InboundCall | OutboundCall) -> None:
        self.call = call


class GoAwayReceived(Event):
    """The peer accepts no more calls on this connection; calls in flight continue."""

    __slots__ = ("code", "message")

    def __init__(self, code: str, message: str) -> None:
        self.code = code
        self.message = message


class HttpServed(Event):
    """Server: an HTTP request was answered. `size` is that of the body, in bytes.

    `request` is the method and the target; `error` is what the application raised, or None;
    `seconds` is the time since the head of the request was complete.
    """

    __slots__ = ("error", "request", "seconds", "size", "status")

    def __init__(
        self, request: str, status: int, size: int, error: BaseException | None, seconds: float
    ) -> None:
        self.request = request
        self.status = status
        self.size = size
        self.error = error
        self.seconds = seconds


class ResponsePromised(Event):
    """Server: an application will answer an HTTP request later.

    Give `promise.on_settled` what makes the loop call `handle_timeout` of this connection.
    """

    __slots__ = ("promise",)

    def __init__(self, promise: "Promise") -> None:
        self.promise = promise


class SendBufferDrained(Event):
    """Server: the peer has read enough that `outbound` is below `high_water` again.

    Calls that a Dispatcher held back may now start.
    """

    __slots__ = ()


class ObserverFailed(Event):
    """An observer raised `error`; the call is not affected."""

    __slots__ = ("error",)

    def __init__(self, error: BaseException) -> None:
        self.error = error


class ConnectionTerminated(Event):
    """The last event of a connection; `error` is None after a graceful close."""

    __slots__ = ("error",)

    def __init__(self, error: RpcError | None) -> None:
        self.error = error
