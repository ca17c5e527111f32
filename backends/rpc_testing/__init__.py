"""What users test with: their services in memory and in virtual time, and real etcd servers."""

from typing import TYPE_CHECKING

from rpc_proto.lazy import lazily

if TYPE_CHECKING:
    from .etcd import Etcd, Member, TlsFiles, find_etcd
    from .in_asyncio import AsyncioRig, VirtualLoop
    from .in_gevent import GeventRig
    from .in_threads import BlockingRig
    from .network import Network, Path
    from .recorder import Recorded
    from .virtual import Deadlock
else:
    # Those who need an etcd need no backend, and the other way round.
    __getattr__ = lazily(
        __name__,
        {
            **dict.fromkeys(("Etcd", "Member", "TlsFiles", "find_etcd"), ".etcd"),
            **dict.fromkeys(("AsyncioRig", "VirtualLoop"), ".in_asyncio"),
            **dict.fromkeys(("Network", "Path"), ".network"),
            "GeventRig": ".in_gevent",
            "BlockingRig": ".in_threads",
            "Recorded": ".recorder",
            "Deadlock": ".virtual",
        },
    )

__all__ = [
    "AsyncioRig",
    "BlockingRig",
    "Deadlock",
    "Etcd",
    "GeventRig",
    "Member",
    "Network",
    "Path",
    "Recorded",
    "TlsFiles",
    "VirtualLoop",
    "find_etcd",
]
