"""Real servers for tests."""

from .etcd import Etcd, Member, TlsFiles, find_etcd

__all__ = ["Etcd", "Member", "TlsFiles", "find_etcd"]
