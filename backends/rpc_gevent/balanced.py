"""The balanced client for gevent: many nodes, one connection to each of those that are used."""

from rpc_common.balanced.sync import SyncBalancedClient
from rpc_common.telemetry.log import get_log

from .client import Client
from .runtime import GEVENT

__all__ = ["BalancedClient"]


class BalancedClient(SyncBalancedClient):
    """Calls the nodes of a discovery; for the arguments see
    `rpc_common.balanced.base.BalancedBase`."""

    _client = Client
    _log = get_log("rpc_gevent")
    _runtime = GEVENT
