"""The errors that a user of the library catches, and the status codes that travel on the wire."""

from typing import Any

__all__ = [
    "CODES",
    "Aborted",
    "AlreadyExists",
    "CallError",
    "Cancelled",
    "DataLoss",
    "DeadlineExceeded",
    "FailedPrecondition",
    "HandshakeError",
    "Internal",
    "InvalidArgument",
    "LocalProtocolError",
    "NotFound",
    "OutOfRange",
    "PermissionDenied",
    "ProtocolError",
    "RemoteProtocolError",
    "ResourceExhausted",
    "RpcError",
    "Unauthenticated",
    "Unavailable",
    "Unimplemented",
    "Unknown",
]


class RpcError(Exception):
    """Base of every error that this library raises on purpose."""


class ProtocolError(RpcError):
    """Base of the two ways in which the rules of docs/protocol.md can be broken."""


class LocalProtocolError(ProtocolError):
    """The caller of the library broke a rule; nothing was changed."""


class RemoteProtocolError(ProtocolError):
    """The peer broke a rule; the connection ends."""


class HandshakeError(RpcError):
    """The option handshake failed (docs/protocol.md, "Option handshake").

    `code` is one of `CODES`; `supported` is what the server said that it supports, if it said so.
    """

    def __init__(self, code: str, message: str, supported: dict[str, Any] | None = None) -> None:
        super().__init__(code, message, supported)
        self.code = code
        self.message = message
        self.supported = supported or {}

    def __str__(self) -> str:
        text = f"{self.code}: {self.message}"
        offers = [
            f"{name} {', '.join(map(str, offered))}"
            for name, offered in self.supported.items()
            if isinstance(offered, list)
        ]
        # Which of them are supported matters only where that was the reason.
        if offers and self.code == "unimplemented":
            return f"{text} (supported: {'; '.join(offers)})"
        return text


class CallError(RpcError):
    """One call failed; the connection goes on.

    A handler raises it, or better a subclass, to answer with that status; a caller catches it.

    `code`: one of `CODES`, gRPC's names in lower case.
    `message`: text for a person; at most 1 KiB of it travels.
    `details`: any value that the codec can carry, or None.
    `maybe_executed`: False only when the handler surely did not start, so that a retry is safe.
    """

    def __init__(
        self, code: str, message: str = "", details: Any = None, *, maybe_executed: bool = True
    ) -> None:
        super().__init__(code, message, details)
        self.code = code
        self.message = message
        self.details = details
        self.maybe_executed = maybe_executed

    @staticmethod
    def of(
        code: str, message: str = "", details: Any = None, *, maybe_executed: bool = True
    ) -> "CallError":
        """Build the subclass that stands for `code`; an unknown code stays a plain CallError."""
        kind = _BY_CODE.get(code)
        if kind is None:
            return CallError(code, message, details, maybe_executed=maybe_executed)
        return kind(message, details, maybe_executed=maybe_executed)

    def __str__(self) -> str:
        return f"{self.code}: {self.message}" if self.message else self.code

    def __reduce__(self) -> Any:
        return _rebuild, (self.code, self.message, self.details, self.maybe_executed)


def _rebuild(code: str, message: str, details: Any, maybe_executed: bool) -> CallError:
    return CallError.of(code, message, details, maybe_executed=maybe_executed)


class _CodedError(CallError):
    """A CallError whose class fixes the code."""

    CODE = ""

    def __init__(
        self, message: str = "", details: Any = None, *, maybe_executed: bool = True
    ) -> None:
        super().__init__(self.CODE, message, details, maybe_executed=maybe_executed)


class Cancelled(_CodedError):
    """The caller gave the call up."""

    CODE = "cancelled"


class Unknown(_CodedError):
    """The handler raised something that is not a CallError."""

    CODE = "unknown"


class InvalidArgument(_CodedError):
    """The arguments do not fit the method; the message names the path to the value."""

    CODE = "invalid_argument"


class DeadlineExceeded(_CodedError, TimeoutError):
    """The deadline of the call passed before its answer came."""

    CODE = "deadline_exceeded"


class NotFound(_CodedError):
    """What the call asked for does not exist."""

    CODE = "not_found"


class AlreadyExists(_CodedError):
    """What the call wanted to create exists."""

    CODE = "already_exists"


class PermissionDenied(_CodedError):
    """The caller is known and may not do this."""

    CODE = "permission_denied"


class ResourceExhausted(_CodedError):
    """A limit (calls in flight, queue, size) is reached."""

    CODE = "resource_exhausted"


class FailedPrecondition(_CodedError):
    """The system is not in the state that the call needs."""

    CODE = "failed_precondition"


class Aborted(_CodedError):
    """The call lost a race and may be tried again at a higher level."""

    CODE = "aborted"


class OutOfRange(_CodedError):
    """The call went past a valid range."""

    CODE = "out_of_range"


class Unimplemented(_CodedError):
    """No such service or method is registered."""

    CODE = "unimplemented"


class Internal(_CodedError):
    """The server could not produce an answer, for instance because it cannot be encoded."""

    CODE = "internal"


class Unavailable(_CodedError, ConnectionError):
    """No connection, or it ended before the answer came; see `maybe_executed`."""

    CODE = "unavailable"


class DataLoss(_CodedError):
    """The answer arrived and cannot be decoded as what it should be."""

    CODE = "data_loss"


class Unauthenticated(_CodedError):
    """The token was refused."""

    CODE = "unauthenticated"


_BY_CODE: dict[str, type[_CodedError]] = {kind.CODE: kind for kind in _CodedError.__subclasses__()}

CODES = frozenset(_BY_CODE)
