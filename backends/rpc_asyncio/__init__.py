"""The asyncio driver of rpc-proto: `Client`, `BalancedClient` and `Server`. Works under uvloop."""

from typing import TYPE_CHECKING

from .client import Client, Reply
from .server import Server

if TYPE_CHECKING:
    from .balanced import BalancedClient

__all__ = ["BalancedClient", "Client", "Reply", "Server"]


def __getattr__(name: str) -> object:
    if name == "BalancedClient":  # who calls one server need not pay for discovery
        from .balanced import BalancedClient

        return BalancedClient
    raise AttributeError(name)
