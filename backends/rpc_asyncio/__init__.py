"""The asyncio driver of rpc-proto: `Client` and `Server`. Works under uvloop."""

from .client import Client, Reply
from .server import Server

__all__ = ["Client", "Reply", "Server"]
