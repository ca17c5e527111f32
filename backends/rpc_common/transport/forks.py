"""Knowing that this process is a child: a socket must not be used on both sides of a fork."""

import os
from collections.abc import Iterable
from contextlib import suppress
from typing import ClassVar, Protocol
from weakref import WeakSet

__all__ = ["Forks", "Holder"]


class Holder(Protocol):
    """What has sockets open."""

    def _descriptors(self) -> Iterable[int]:
        """Return their numbers; -1 for one that is closed."""


class Forks:
    """Counts how often this process is a child of a process that had the library loaded.

    A child lets go of the sockets that its parent has open: otherwise peers would not see the
    end of a parent that dies, nor would a port be free when the parent has let go of it.
    """

    count: ClassVar[int] = 0
    _holders: ClassVar[WeakSet[Holder]] = WeakSet()

    @classmethod
    def watch(cls, holder: Holder) -> None:
        """Let children let go of the sockets of a server or a client."""
        cls._holders.add(holder)

    @classmethod
    def happened(cls) -> None:
        """Note a fork, in the child."""
        cls.count += 1
        numbers = [n for holder in cls._holders for n in holder._descriptors() if n >= 0]
        cls._holders = WeakSet()
        with suppress(OSError):
            _let_go(numbers)


def _let_go(numbers: list[int]) -> None:
    """Drop this process's share in some sockets, and do nothing to the sockets.

    Objects that live on in the child know these numbers, and may close them at any time: so each
    stays taken, by a file that does no harm. It is in no epoll set, so what such an object does to
    the set that parent and child share comes to nothing.
    """
    if not numbers:
        return
    os.close(numbers[0])  # there may be no other number left
    harmless = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for number in numbers:
        if number != harmless:
            os.dup2(harmless, number, inheritable=False)
    if harmless not in numbers:
        os.close(harmless)


os.register_at_fork(after_in_child=Forks.happened)
