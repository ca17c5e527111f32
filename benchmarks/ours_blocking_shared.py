"""rpc_blocking when all calls in flight are threads that share one client."""

from functools import partial

import ours_blocking
from ours_blocking import serve

__all__ = ["load", "serve"]

load = partial(ours_blocking.load, shared=True)
