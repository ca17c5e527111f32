"""Keeping the memory of large bodies, to avoid a page fault for each of their pages."""

from functools import cache

__all__ = ["keep_large_blocks"]

_LARGEST_KEPT = 16 * 1024 * 1024


@cache
def keep_large_blocks() -> None:
    """Make malloc keep blocks of up to 16 MiB instead of returning them to the system.

    glibc adapts its threshold to each large block that is freed: it then keeps blocks of that size,
    and up to twice as much at the top of its heap. Elsewhere this has no effect.
    """
    bytes(_LARGEST_KEPT)
