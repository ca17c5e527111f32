"""The blocking balanced client: many nodes, one connection to each, for any number of threads."""

from rpc_common.balanced.sync import SyncBalancedClient
from rpc_common.telemetry.log import get_log

from .client import Client
from .runtime import BLOCKING

__all__ = ["BalancedClient"]


class BalancedClient(SyncBalancedClient):
    """A client of many servers; for the arguments see `rpc_common.balanced.base.BalancedBase`.

    Any number of threads may use it."""

    _client = Client
    _log = get_log("rpc_blocking")
    _runtime = BLOCKING
