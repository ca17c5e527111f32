"""RPC with plain threads and sockets; the standard library and the core are all it needs."""

from rpc_common.client import Pending, Reply

from .client import Client
from .server import Server

__all__ = ["Client", "Pending", "Reply", "Server"]
