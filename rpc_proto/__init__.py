"""Remote procedure calls as a pure state machine: bytes and the time in, bytes and events out.

This package never touches a socket, a clock, a thread or a source of randomness. The drivers are
separate packages (`rpc_asyncio` and others); docs/embedding.md shows how to write one.
"""

from typing import TYPE_CHECKING

from .addresses import Address, parse_address
from .config import ClientConfig, Peer, ServerConfig
from .connection.calls import InboundCall, InboundStream, OutboundCall, OutboundStream
from .connection.client import ClientConnection
from .connection.events import (
    CallCancelled,
    CallCompleted,
    CallFailed,
    ConnectionTerminated,
    Event,
    GoAwayReceived,
    HandshakeCompleted,
    HttpServed,
    ItemsEnded,
    ItemsReceived,
    ObserverFailed,
    RequestReceived,
    ResponsePromised,
    SendBufferDrained,
    Writable,
)
from .connection.observers import Observer
from .connection.port import ServerPort
from .connection.server import ServerConnection
from .connection.states import State, Wish
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
    StreamEnded,
    Unauthenticated,
    Unavailable,
    Unimplemented,
    Unknown,
)
from .lazy import lazily
from .service.context import CallContext, current_call
from .version import __version__
from .wire.codecs import Codec, find_codec

if TYPE_CHECKING:
    from .service.dispatch import Dispatcher
    from .service.interceptors import Interceptor, Invocation
    from .service.methods import expose, quick
else:
    # Reflection is for servers; a client need not pay for importing it.
    __getattr__ = lazily(
        __name__,
        {
            "Dispatcher": ".service.dispatch",
            "Interceptor": ".service.interceptors",
            "Invocation": ".service.interceptors",
            "expose": ".service.methods",
            "quick": ".service.methods",
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
    "InboundStream",
    "Interceptor",
    "Internal",
    "InvalidArgument",
    "Invocation",
    "ItemsEnded",
    "ItemsReceived",
    "LocalProtocolError",
    "NotFound",
    "Observer",
    "ObserverFailed",
    "OutOfRange",
    "OutboundCall",
    "OutboundStream",
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
    "StreamEnded",
    "Unauthenticated",
    "Unavailable",
    "Unimplemented",
    "Unknown",
    "Wish",
    "Writable",
    "__version__",
    "current_call",
    "expose",
    "find_codec",
    "parse_address",
    "quick",
]
