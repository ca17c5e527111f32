"""The balanced client for gevent: many nodes, one connection to each node in use."""

from rpc_common.balanced.sync import SyncBalancedClient
from rpc_common.telemetry.log import get_log

from .client import Client
from .runtime import GEVENT

__all__ = ["BalancedClient"]


class BalancedClient(SyncBalancedClient):
    """A client of many servers; for the arguments see `rpc_common.balanced.base.BalancedBase`.

    It belongs to the hub that uses it first."""

    _client = Client
    _log = get_log("rpc_gevent")
    _runtime = GEVENT
