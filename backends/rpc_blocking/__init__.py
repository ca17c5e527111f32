"""RPC with plain threads and sockets; the standard library and the core are all it needs."""

from typing import TYPE_CHECKING

from rpc_common.client import Pending, Reply

from .client import Client
from .server import Server

if TYPE_CHECKING:
    from .balanced import BalancedClient

__all__ = ["BalancedClient", "Client", "Pending", "Reply", "Server"]


def __getattr__(name: str) -> object:
    if name == "BalancedClient":  # who calls one server need not pay for discovery
        from .balanced import BalancedClient

        return BalancedClient
    raise AttributeError(name)
