"""Nodes in etcd: registrations, watches, and the operations they need (docs/etcd.md)."""

from .registration import EtcdRegistration
from .watching import EtcdWatch

__all__ = ["EtcdRegistration", "EtcdWatch"]
