"""How much a server reads from one connection before others get their turn."""

from collections import OrderedDict
from heapq import heapify, heappop, heappush
from typing import Any

__all__ = ["FIRST_READ", "LARGEST_READ", "SHORT", "Turns", "next_read"]

# Seconds: how long a read should take, may take, and from when on its connection waits for its
# turn. The first is well above the last, or half of all long reads would pass for short ones, and
# below the second, or every batch of small calls would be split.
_TURN = 0.001
_LONGEST_TURN = 2 * _TURN
SHORT = _TURN / 4

# Bytes of a read, unless a large body arrives, which costs little until it is complete.
LARGEST_READ = 64 * 1024
FIRST_READ = 4 * 1024  # the first read of a connection
_SMALLEST_READ = 1024

_SLACK = 64


def next_read(size: int, count: int, seconds: float) -> int:
    """Return how many bytes to read next.

    The last read was limited to `size` bytes and had `count`, which took `seconds`. Four thousand
    frames fit into the largest read, so the peer decides how long it takes.
    """
    if seconds > _LONGEST_TURN:
        return max(_SMALLEST_READ, min(size, int(count * _TURN / seconds)))
    if seconds < _TURN / 2:  # and gradually recovers while it sends little
        return min(LARGEST_READ, 2 * size if count >= size else size + _SMALLEST_READ)
    return size


class Turns:
    """Makes connections whose last read was not `SHORT` read one at a time.

    However many they are, other connections wait for one of their reads and not for all. A
    connection that is the only one does not have to wait: see `are_contended`. Otherwise, pass it
    to `add` once it has stopped reading, and call `next` once in each turn of the loop for the one
    that may continue, until it returns None. It alternates between the one whose last read was the
    shortest and the one that has waited longest: a connection that was slow once does not wait for
    all that always are, and none waits forever.
    """

    __slots__ = ("_by_seconds", "_count", "_last", "_oldest_next", "_waiting", "begun")

    def __init__(self) -> None:
        self._waiting: OrderedDict[int, Any] = OrderedDict()
        self._by_seconds: list[tuple[float, int]] = []  # including some that no longer wait
        self._count = 0
        self._last = 0  # the id of the connection that asked last
        self._oldest_next = False
        self.begun = False  # whether `next` is going to be called

    def are_contended(self, link: Any) -> bool:
        """Whether this connection, whose read was not short, has to wait for its turn."""
        alone = self._last == id(link) and not self._waiting
        self._last = id(link)
        return not alone

    def add(self, link: Any, seconds: float) -> bool:
        """Let a connection wait after a long read; return whether the driver must call `next`."""
        self._count += 1
        self._waiting[self._count] = link
        heap = self._by_seconds
        if len(heap) > 2 * len(self._waiting) + _SLACK:
            heap[:] = [entry for entry in heap if entry[1] in self._waiting]
            heapify(heap)
        heappush(heap, (seconds, self._count))
        begin = not self.begun
        self.begun = True
        return begin

    def next(self) -> Any:
        """Return the connection whose turn it is, or None if none waits; then stop calling this."""
        while self._waiting:
            link = self._take()
            if not link.closed:
                return link
        self.begun = False
        return None

    def _take(self) -> Any:
        waiting = self._waiting
        oldest = self._oldest_next
        self._oldest_next = not oldest
        if oldest:
            return waiting.popitem(last=False)[1]
        while True:
            _, number = heappop(self._by_seconds)
            if number in waiting:
                return waiting.pop(number)
