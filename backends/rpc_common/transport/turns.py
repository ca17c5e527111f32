"""How much a server takes in from one connection before the others have their turn."""

from collections import OrderedDict
from heapq import heapify, heappop, heappush
from typing import Any

__all__ = ["FIRST_READ", "LARGEST_READ", "SHORT", "Turns", "next_read"]

# Seconds: what one read should take, may take, and from when on its connection waits for its turn.
# The first is well above the last, or half of all long reads would pass for short ones; and below
# the second, or every batch of small calls would be cut in two.
_TURN = 0.001
_LONGEST_TURN = 2 * _TURN
SHORT = _TURN / 4

# Bytes of a read, unless a large body arrives, which costs little until it is complete.
LARGEST_READ = 64 * 1024
FIRST_READ = 4 * 1024  # of a connection that nothing is known about
_SMALLEST_READ = 1024

_SLACK = 64


def next_read(size: int, count: int, seconds: float) -> int:
    """Return how many bytes to read next.

    The last read was allowed `size` bytes and had `count`; these took `seconds`. Four thousand
    frames fit into the largest read, so how long it takes is for the peer to decide.
    """
    if seconds > _LONGEST_TURN:
        return max(_SMALLEST_READ, min(size, int(count * _TURN / seconds)))
    if seconds < _TURN / 2:  # and is forgiven little by little when it sends little
        return min(LARGEST_READ, 2 * size if count >= size else size + _SMALLEST_READ)
    return size


class Turns:
    """The connections whose last read was no `SHORT` one: they read one at a time.

    So however many they are, another connection waits for one of their reads and not for all.
    One that is the only such connection need not wait: see `are_contended`. Otherwise `add` takes
    it, once it has stopped reading; the driver then calls `next` once in each
    turn of its loop for the one that may go on, until there is none. By turns that is the one
    whose last read took least and the one that has waited longest: a connection that was slow for
    once does not wait for all that always are, and none waits for ever.
    """

    __slots__ = ("_by_seconds", "_count", "_last", "_oldest_next", "_waiting", "begun")

    def __init__(self) -> None:
        self._waiting: OrderedDict[int, Any] = OrderedDict()
        self._by_seconds: list[tuple[float, int]] = []  # also of some that wait no more
        self._count = 0
        self._last = 0  # the id of the connection that asked last
        self._oldest_next = False
        self.begun = False  # whether `next` is going to be called

    def are_contended(self, link: Any) -> bool:
        """Whether this connection, whose read was no short one, has to wait for its turn."""
        alone = self._last == id(link) and not self._waiting
        self._last = id(link)
        return not alone

    def add(self, link: Any, seconds: float) -> bool:
        """Let a connection wait whose read took so long; whether the driver has to call `next`."""
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
        """Return whose turn it is, or None if nobody waits; then the driver need not call."""
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
