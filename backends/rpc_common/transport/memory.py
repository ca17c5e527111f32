"""Keeping the memory of large bodies: without it each costs as many page faults as it has pages."""

from functools import cache

__all__ = ["keep_large_blocks"]

_LARGEST_KEPT = 16 * 1024 * 1024


@cache
def keep_large_blocks() -> None:
    """Teach malloc, once, to keep blocks of up to 16 MiB instead of giving them back at once.

    glibc learns from each large block that is freed: from then on it holds blocks of that size,
    and up to twice as much at the top of its heap. To others this does nothing.
    """
    bytes(_LARGEST_KEPT)
