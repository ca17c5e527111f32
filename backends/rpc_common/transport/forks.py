"""Whose a socket is: it must not be used on both sides of a fork, nor by two event loops."""

import os
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, ClassVar, NoReturn, Protocol
from weakref import WeakSet

from rpc_proto import LocalProtocolError

__all__ = ["Forks", "Holder", "Owner"]


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


class Owner:
    """The process, and the event loop or hub in it, to which a client or a server belongs.

    `what` is what belongs to it, and `kind` what the place is called.
    """

    __slots__ = ("forks", "kind", "place", "what")

    def __init__(self, what: str, kind: str = "", place: Any = None) -> None:
        self.what = what
        self.kind = kind
        self.place = place
        self.forks = Forks.count

    @property
    def lives_here(self) -> bool:
        """Whether this is still the process, and not a child of it."""
        return self.forks == Forks.count

    def check(self, place: Any = None) -> None:
        """Raise LocalProtocolError unless this process and that place are the owner."""
        if self.forks != Forks.count or place != self.place:
            self.refuse()

    def refuse(self) -> NoReturn:
        """Raise LocalProtocolError: somebody else asks."""
        if self.forks != Forks.count:
            raise LocalProtocolError(
                f"this {self.what} belongs to the parent process; make one after the fork"
            )
        raise LocalProtocolError(
            f"this {self.what} belongs to another {self.kind}; make one for this {self.kind}"
        )


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
