"""Service discovery and load balancing, as pure as the core: drivers only carry out operations."""

from typing import TYPE_CHECKING

from rpc_proto.lazy import lazily

from .balancer import Balancer
from .balancers import (
    BALANCERS,
    ConsistentHash,
    LeastLoaded,
    Random,
    RoundRobin,
    WeightedRoundRobin,
    find_balancer,
)
from .budget import HedgeDelay, RetryBudget
from .ejection import OutlierEjection
from .endpoints import Endpoint
from .machines import (
    Discovery,
    Event,
    FileRead,
    HttpRequest,
    HttpResponse,
    Machine,
    OperationFailed,
    ReadFile,
    SourceFailed,
    SourceReached,
    ViewMachine,
)
from .nodes import Node, View, hash_signatures
from .registration import Registration
from .sources import EtcdDiscovery, FileDiscovery, PemFiles, RegistryDiscovery
from .views import StaleChanged, ViewChanged
from .watching import FileView, RegistryWatch, StaticDiscovery

if TYPE_CHECKING:
    from .registry import Registry
else:
    # Only those who run one need HTTP.
    __getattr__ = lazily(__name__, {"Registry": ".registry"})

__all__ = [
    "BALANCERS",
    "Balancer",
    "ConsistentHash",
    "Discovery",
    "Endpoint",
    "EtcdDiscovery",
    "Event",
    "FileDiscovery",
    "FileRead",
    "FileView",
    "HedgeDelay",
    "HttpRequest",
    "HttpResponse",
    "LeastLoaded",
    "Machine",
    "Node",
    "OperationFailed",
    "OutlierEjection",
    "PemFiles",
    "Random",
    "ReadFile",
    "Registration",
    "Registry",
    "RegistryDiscovery",
    "RegistryWatch",
    "RetryBudget",
    "RoundRobin",
    "SourceFailed",
    "SourceReached",
    "StaleChanged",
    "StaticDiscovery",
    "View",
    "ViewChanged",
    "ViewMachine",
    "WeightedRoundRobin",
    "find_balancer",
    "hash_signatures",
]
