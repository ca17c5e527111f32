"""Nodes in etcd: registering them, watching them, and what is asked of etcd (docs/etcd.md)."""

from .registration import EtcdRegistration
from .watching import EtcdWatch

__all__ = ["EtcdRegistration", "EtcdWatch"]
