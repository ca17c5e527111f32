"""Remote procedure calls as a pure state machine: bytes and the time in, bytes and events out.

This package never touches a socket, a clock, a thread or a random source. Drivers for asyncio and
others are packages of their own (`rpc_asyncio`); docs/embedding.md shows how to write one.
"""

from typing import TYPE_CHECKING

from .addresses import Address, parse_address
from .calls import InboundCall, OutboundCall
from .client import ClientConnection
from .codecs import Codec, find_codec
from .config import ClientConfig, Peer, ServerConfig
from .context import CallContext, current_call
from .errors import (
    CODES,
    Aborted,
    AlreadyExists,
    CallError,
    Cancelled,
    DataLoss,
    DeadlineExceeded,
    FailedPrecondition,
    HandshakeError,
    Internal,
    InvalidArgument,
    LocalProtocolError,
    NotFound,
    OutOfRange,
    PermissionDenied,
    ProtocolError,
    RemoteProtocolError,
    ResourceExhausted,
    RpcError,
    Unauthenticated,
    Unavailable,
    Unimplemented,
    Unknown,
)
from .events import (
    CallCancelled,
    CallCompleted,
    CallFailed,
    ConnectionTerminated,
    Event,
    GoAwayReceived,
    HandshakeCompleted,
    HttpServed,
    ObserverFailed,
    RequestReceived,
    ResponsePromised,
    SendBufferDrained,
)
from .lazy import lazily
from .observers import Observer
from .port import ServerPort
from .server import ServerConnection
from .states import State, Wish

if TYPE_CHECKING:
    from .dispatch import Dispatcher
    from .interceptors import Interceptor, Invocation
    from .services import expose, quick
else:
    # Reflection is for servers; a client need not pay for importing it.
    __getattr__ = lazily(
        __name__,
        {
            "Dispatcher": ".dispatch",
            "Interceptor": ".interceptors",
            "Invocation": ".interceptors",
            "expose": ".services",
            "quick": ".services",
        },
    )

__all__ = [
    "CODES",
    "Aborted",
    "Address",
    "AlreadyExists",
    "CallCancelled",
    "CallCompleted",
    "CallContext",
    "CallError",
    "CallFailed",
    "Cancelled",
    "ClientConfig",
    "ClientConnection",
    "Codec",
    "ConnectionTerminated",
    "DataLoss",
    "DeadlineExceeded",
    "Dispatcher",
    "Event",
    "FailedPrecondition",
    "GoAwayReceived",
    "HandshakeCompleted",
    "HandshakeError",
    "HttpServed",
    "InboundCall",
    "Interceptor",
    "Internal",
    "InvalidArgument",
    "Invocation",
    "LocalProtocolError",
    "NotFound",
    "Observer",
    "ObserverFailed",
    "OutOfRange",
    "OutboundCall",
    "Peer",
    "PermissionDenied",
    "ProtocolError",
    "RemoteProtocolError",
    "RequestReceived",
    "ResourceExhausted",
    "ResponsePromised",
    "RpcError",
    "SendBufferDrained",
    "ServerConfig",
    "ServerConnection",
    "ServerPort",
    "State",
    "Unauthenticated",
    "Unavailable",
    "Unimplemented",
    "Unknown",
    "Wish",
    "current_call",
    "expose",
    "find_codec",
    "parse_address",
    "quick",
]

__version__ = "0.1.0"
