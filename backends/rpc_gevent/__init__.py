"""The gevent driver of rpc-proto: `Client` and `Server`. Needs no monkey-patching, minds none."""

from .client import Client, Reply
from .server import Server

__all__ = ["Client", "Reply", "Server"]
