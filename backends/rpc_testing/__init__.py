"""Real servers for tests, ours and those of our users."""

from .etcd import Etcd, Member, TlsFiles, find_etcd

__all__ = ["Etcd", "Member", "TlsFiles", "find_etcd"]
