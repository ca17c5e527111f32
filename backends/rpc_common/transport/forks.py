"""Ownership of sockets, which must not be used on both sides of a fork, or by two event loops."""

import os
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, ClassVar, NoReturn, Protocol
from weakref import WeakSet

from rpc_proto import LocalProtocolError

__all__ = ["Forks", "Holder", "Owner"]


class Holder(Protocol):
    """Something with open sockets."""

    def _descriptors(self) -> Iterable[int]:
        """Return their descriptors; -1 for a closed one."""


class Forks:
    """Counts the forks between the process that loaded the library and this one.

    A child process closes its parent's sockets. Otherwise peers would not notice when the parent
    dies, and a port would stay in use after the parent has closed it.
    """

    count: ClassVar[int] = 0
    _holders: ClassVar[WeakSet[Holder]] = WeakSet()

    @classmethod
    def watch(cls, holder: Holder) -> None:
        """Have child processes close the sockets of a server or a client."""
        cls._holders.add(holder)

    @classmethod
    def happened(cls) -> None:
        """Record a fork, in the child."""
        cls.count += 1
        numbers = [n for holder in cls._holders for n in holder._descriptors() if n >= 0]
        cls._holders = WeakSet()
        with suppress(OSError):
            _let_go(numbers)


class Owner:
    """The process, and the event loop or hub in it, to which a client or a server belongs.

    `what` names the object ("client" or "server"), and `kind` the kind of place.
    """

    __slots__ = ("forks", "kind", "place", "what")

    def __init__(self, what: str, kind: str = "", place: Any = None) -> None:
        self.what = what
        self.kind = kind
        self.place = place
        self.forks = Forks.count

    @property
    def lives_here(self) -> bool:
        """Whether this is still the owning process, and not a child of it."""
        return self.forks == Forks.count

    def check(self, place: Any = None) -> None:
        """Raise LocalProtocolError unless this process and that place are the owner."""
        if self.forks != Forks.count or place != self.place:
            self.refuse()

    def refuse(self) -> NoReturn:
        """Raise LocalProtocolError, which says who the owner is."""
        if self.forks != Forks.count:
            raise LocalProtocolError(
                f"this {self.what} belongs to the parent process; create one after the fork"
            )
        raise LocalProtocolError(
            f"this {self.what} belongs to another {self.kind}; create one for this {self.kind}"
        )


def _let_go(numbers: list[int]) -> None:
    """Close this process's descriptors of some sockets, without affecting the sockets.

    Objects in the child still have these numbers and may close them at any time, so each number
    stays in use by a harmless file. That file is in no epoll set, so what such an object does to
    the set shared by parent and child has no effect.
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
