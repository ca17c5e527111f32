"""The gevent driver of rpc-proto, with or without monkey-patching."""

from typing import TYPE_CHECKING

from rpc_common.client.base import Reply
from rpc_common.client.sync import Pending
from rpc_proto.lazy import lazily

from .client import Client
from .server import Server

if TYPE_CHECKING:
    from rpc_common.balanced.base import BroadcastFailed
    from rpc_common.discovery.advertising import Advertisement, EtcdAdvertisement
    from rpc_common.discovery.snapshots import SavedRegistry

    from .balanced import BalancedClient
else:
    # Clients of one server do not need discovery.
    __getattr__ = lazily(
        __name__,
        {
            "BalancedClient": ".balanced",
            "BroadcastFailed": "rpc_common.balanced.base",
            "EtcdAdvertisement": "rpc_common.discovery.advertising",
            "Advertisement": "rpc_common.discovery.advertising",
            "SavedRegistry": "rpc_common.discovery.snapshots",
        },
    )

__all__ = [
    "Advertisement",
    "BalancedClient",
    "BroadcastFailed",
    "Client",
    "EtcdAdvertisement",
    "Pending",
    "Reply",
    "SavedRegistry",
    "Server",
]
