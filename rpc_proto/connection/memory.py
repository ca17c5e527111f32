"""The memory budget that a server's connections share (docs/limits.md, "Memory")."""

from contextlib import nullcontext
from typing import Any

__all__ = ["FREE", "Account", "Memory"]

# Bytes that each connection may hold without asking. This is enough for small calls, one at a time,
# so these go on working whatever other connections hold.
FREE = 16 * 1024

_QUANTUM = 64 * 1024  # bytes that are leased at a time


class Memory:
    """A budget in bytes that connections share: `ServerConfig.memory` of one server.

    The last quarter is reserved for connections that hold little.
    `lock` is for servers whose connections have threads.
    """

    __slots__ = ("_lock", "_shared", "limit", "used")

    def __init__(self, limit: int, lock: Any = None) -> None:
        self.limit = limit
        self.used = 0
        self._lock: Any = lock or nullcontext()
        # Objects that several connections hold are counted once: id, holders.
        self._shared: dict[int, int] = {}

    def take(self, size: int, held: int) -> bool:
        """Lease bytes to a connection that then has `held`; return whether there are enough."""
        limit = self.limit if held <= _QUANTUM else self.limit - self.limit // 4
        with self._lock:
            if self.used + size > limit:
                return False
            self.used += size
            return True

    def give(self, size: int) -> None:
        """Give back leased bytes."""
        with self._lock:
            self.used -= size

    def has_plenty(self, size: int) -> bool:
        """Whether less than half of the budget would be used with so many bytes more."""
        return 2 * (self.used + size) <= self.limit

    def share(self, data: bytes) -> bool:
        """Hold an object that others may hold too, until `unshare`; return whether it fits."""
        with self._lock:
            holders = self._shared.get(id(data), 0)
            if not holders:
                if self.used + len(data) > self.limit - self.limit // 4:
                    return False
                self.used += len(data)
            self._shared[id(data)] = holders + 1
            return True

    def unshare(self, data: bytes) -> None:
        """Hold it no longer."""
        with self._lock:
            holders = self._shared.pop(id(data)) - 1
            if holders:
                self._shared[id(data)] = holders
            else:
                self.used -= len(data)


class Account:
    """One connection's share of its server's budget: at most a quarter of it, `most` bytes."""

    __slots__ = ("calls", "leased", "memory", "most", "tight_since", "waits")

    def __init__(self, memory: Memory, most: int) -> None:
        self.memory = memory
        self.most = most
        self.tight_since: float | None = None  # since when it holds too much
        self.waits = False  # for others to give back what they hold; it does not read meanwhile
        self.calls = 0  # bytes of the calls whose handlers have not ended
        self.leased = FREE

    def cover(self, held: int) -> bool:
        """Lease enough to hold so many bytes; return whether that was possible.

        Leased bytes that are no longer needed are given back.
        """
        wanted = FREE
        if held > FREE:
            wanted += -(-(held - FREE) // _QUANTUM) * _QUANTUM
        leased = self.leased
        if wanted > leased:
            if held > self.most or not self.memory.take(wanted - leased, wanted - FREE):
                return False
            self.leased = wanted
        elif wanted < leased:
            self.leased = wanted
            self.memory.give(leased - wanted)
        return True
