"""The errors that users catch, and the status codes that travel on the wire."""

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
    "StreamEnded",
    "Unauthenticated",
    "Unavailable",
    "Unimplemented",
    "Unknown",
]


class RpcError(Exception):
    """Base of every error that this library raises on purpose."""


class ProtocolError(RpcError):
    """A rule of docs/protocol.md was broken, by this end or by the peer."""


class LocalProtocolError(ProtocolError):
    """The calling code broke a rule; the state has not changed."""


class StreamEnded(LocalProtocolError):
    """An item cannot be sent, because the server has answered and wants no more."""


class RemoteProtocolError(ProtocolError):
    """The peer broke a rule; the connection is closed."""


class HandshakeError(RpcError):
    """The option handshake failed (docs/protocol.md, "Option handshake").

    `code` is one of `CODES`; `supported` is what the server says it supports, if it says so.
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
        # What the server supports is worth showing only if that was the reason.
        if offers and self.code == "unimplemented":
            return f"{text} (supported: {'; '.join(offers)})"
        return text


class CallError(RpcError):
    """A call failed; the connection stays usable.

    Handlers raise it, preferably a subclass, to answer with that status; callers catch it.

    `code`: one of `CODES`, gRPC's names in lower case.
    `message`: text for people; at most 1 KiB of it is sent.
    `details`: any value that the codec can encode, or None.
    `maybe_executed`: False only if the handler certainly did not start, so that a retry is safe.
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
        """Return an instance of the subclass for `code`; a plain CallError for an unknown one."""
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
    """The caller cancelled the call."""

    CODE = "cancelled"


class Unknown(_CodedError):
    """The handler raised an exception that is not a CallError."""

    CODE = "unknown"


class InvalidArgument(_CodedError):
    """The arguments do not match the method's signature; the message has the path to the value."""

    CODE = "invalid_argument"


class DeadlineExceeded(_CodedError, TimeoutError):
    """The deadline passed before the answer arrived."""

    CODE = "deadline_exceeded"


class NotFound(_CodedError):
    """The requested entity does not exist."""

    CODE = "not_found"


class AlreadyExists(_CodedError):
    """The entity to be created already exists."""

    CODE = "already_exists"


class PermissionDenied(_CodedError):
    """The caller is authenticated but not allowed to do this."""

    CODE = "permission_denied"


class ResourceExhausted(_CodedError):
    """A limit (calls in flight, queue, size) was reached."""

    CODE = "resource_exhausted"


class FailedPrecondition(_CodedError):
    """The system is not in the state that the call requires."""

    CODE = "failed_precondition"


class Aborted(_CodedError):
    """The call was aborted by a conflict, for example a lost race; retry at a higher level."""

    CODE = "aborted"


class OutOfRange(_CodedError):
    """An argument is past the end of a valid range."""

    CODE = "out_of_range"


class Unimplemented(_CodedError):
    """The server has no such service or method."""

    CODE = "unimplemented"


class Internal(_CodedError):
    """The server could not produce an answer, for example because the result cannot be encoded."""

    CODE = "internal"


class Unavailable(_CodedError, ConnectionError):
    """There is no connection, or it was lost before the answer arrived; see `maybe_executed`."""

    CODE = "unavailable"


class DataLoss(_CodedError):
    """The answer arrived but cannot be decoded as the expected type."""

    CODE = "data_loss"


class Unauthenticated(_CodedError):
    """The token was rejected."""

    CODE = "unauthenticated"


_BY_CODE: dict[str, type[_CodedError]] = {kind.CODE: kind for kind in _CodedError.__subclasses__()}

CODES = frozenset(_BY_CODE)
