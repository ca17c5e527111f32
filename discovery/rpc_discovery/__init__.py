"""Who offers what, and where: as pure as the core. Transports only carry what is decided here."""

from typing import TYPE_CHECKING

from rpc_proto.lazy import lazily

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
from .links import HttpRequest, RegistryFailed, RegistryReached
from .nodes import Node, View, hash_signatures
from .picking import Balancer
from .registration import Registration
from .sources import Discovery, EtcdDiscovery, FileDiscovery, PemFiles, RegistryDiscovery
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
    "FileDiscovery",
    "FileView",
    "HedgeDelay",
    "HttpRequest",
    "LeastLoaded",
    "Node",
    "OutlierEjection",
    "PemFiles",
    "Random",
    "Registration",
    "Registry",
    "RegistryDiscovery",
    "RegistryFailed",
    "RegistryReached",
    "RegistryWatch",
    "RetryBudget",
    "RoundRobin",
    "StaleChanged",
    "StaticDiscovery",
    "View",
    "ViewChanged",
    "WeightedRoundRobin",
    "find_balancer",
    "hash_signatures",
]
