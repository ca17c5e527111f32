"""How much a server takes in from one connection before the others have their turn."""

from collections import deque
from typing import Any

__all__ = ["FIRST_READ", "LARGEST_READ", "SHORT", "Turns", "next_read"]

# Seconds: what one read may take, and from when on its connection waits for its turn. The first is
# well above the second, or half of all long reads would pass for short ones.
_TURN = 0.001
SHORT = _TURN / 4

# Bytes of a read, unless a large body arrives, which costs little until it is complete.
LARGEST_READ = 64 * 1024
FIRST_READ = 4 * 1024  # of a connection that nothing is known about
_SMALLEST_READ = 1024


def next_read(size: int, count: int, seconds: float) -> int:
    """Return how many bytes to read next.

    The last read was allowed `size` bytes and had `count`; these took `seconds`. Four thousand
    frames fit into the largest read, so how long it takes is for the peer to decide.
    """
    if seconds > _TURN:
        return max(_SMALLEST_READ, min(size, int(count * _TURN / seconds)))
    if seconds < _TURN / 2:  # and is forgiven little by little when it sends little
        return min(LARGEST_READ, 2 * size if count >= size else size + _SMALLEST_READ)
    return size


class Turns:
    """The connections whose last read was no `SHORT` one: they read one at a time.

    So however many they are, another connection waits for one of their reads and not for all.
    `add` takes a connection that has stopped reading; the driver then calls `next` once in each
    turn of its loop for the one that may go on, until there is none.
    """

    __slots__ = ("_waiting", "begun")

    def __init__(self) -> None:
        self._waiting: deque[Any] = deque()
        self.begun = False  # whether `next` is going to be called

    def add(self, link: Any) -> bool:
        """Let a connection wait; whether the driver has to begin to call `next`."""
        self._waiting.append(link)
        begin = not self.begun
        self.begun = True
        return begin

    def next(self) -> Any:
        """Return whose turn it is, or None if nobody waits; then the driver need not call."""
        if not self._waiting:
            self.begun = False
            return None
        return self._waiting.popleft()
