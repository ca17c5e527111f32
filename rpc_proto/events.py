"""What an input of a connection may cause; each input returns its events in order."""

from collections.abc import Mapping
from typing import Any

from .calls import Call
from .context import ServerCall
from .errors import CallError, RpcError
from .handshake import Answer

__all__ = [
    "CallCancelled",
    "CallCompleted",
    "CallFailed",
    "ConnectionTerminated",
    "Event",
    "GoAwayReceived",
    "HandshakeCompleted",
    "RequestReceived",
]

# Plain slotted classes: one is built for each call, and a dataclass or a named tuple costs more.


class Event:
    """Base of all events."""

    __slots__: tuple[str, ...] = ()

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}={getattr(self, name)!r}" for name in self.__slots__)
        return f"{type(self).__name__}({fields})"


class HandshakeCompleted(Event):
    """The server accepted: codec, limits and ping interval are in force."""

    __slots__ = ("agreed",)

    def __init__(self, agreed: Answer) -> None:
        self.agreed = agreed


class RequestReceived(Event):
    """Server: a call arrived. Answer it with `send_response` or `send_error`, exactly once."""

    __slots__ = ("call",)

    def __init__(self, call: ServerCall) -> None:
        self.call = call


class CallCancelled(Event):
    """Server: the caller has the outcome `error` or is gone; stop the handler.

    The call holds its slot until it is answered nevertheless, or given up with `conclude`.
    """

    __slots__ = ("call", "error")

    def __init__(self, call: ServerCall, error: CallError) -> None:
        self.call = call
        self.error = error


class CallCompleted(Event):
    """Client: the answer of a call. The last event about it."""

    __slots__ = ("call", "metadata", "value")

    def __init__(self, call: Call, value: Any, metadata: Mapping[str, str]) -> None:
        self.call = call
        self.value = value
        self.metadata = metadata


class CallFailed(Event):
    """Client: a call ended without an answer, and why. The last event about it."""

    __slots__ = ("call", "error")

    def __init__(self, call: Call, error: CallError) -> None:
        self.call = call
        self.error = error


class GoAwayReceived(Event):
    """The peer will take no more calls on this connection; those in flight go on."""

    __slots__ = ("code", "message")

    def __init__(self, code: str, message: str) -> None:
        self.code = code
        self.message = message


class ConnectionTerminated(Event):
    """The last event of a connection; `error` is None after an orderly end."""

    __slots__ = ("error",)

    def __init__(self, error: RpcError | None) -> None:
        self.error = error
