"""Who offers what, and where: as pure as the core. Transports only carry what is decided here."""

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
from .nodes import Node, View
from .picking import Balancer

__all__ = [
    "BALANCERS",
    "Balancer",
    "ConsistentHash",
    "Endpoint",
    "HedgeDelay",
    "LeastLoaded",
    "Node",
    "OutlierEjection",
    "Random",
    "RetryBudget",
    "RoundRobin",
    "View",
    "WeightedRoundRobin",
    "find_balancer",
]
