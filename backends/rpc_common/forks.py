"""Knowing that this process is a child: a socket must not be used on both sides of a fork."""

import os
from typing import ClassVar

__all__ = ["Forks"]


class Forks:
    """Counts how often this process is a child of a process that had the library loaded."""

    count: ClassVar[int] = 0

    @classmethod
    def happened(cls) -> None:
        """Take note of a fork, in the child."""
        cls.count += 1


os.register_at_fork(after_in_child=Forks.happened)
