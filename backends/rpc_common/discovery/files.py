"""Reading whole files that users name, without ever blocking."""

import errno
import os
import stat
from typing import Any

__all__ = ["check_regular", "read_regular"]


def check_regular(path: str | os.PathLike[str]) -> None:
    """Raise OSError if the path is not a regular file: opening a FIFO may block forever."""
    os.close(_open(path, 0)[0])


def read_regular(
    path: str | os.PathLike[str], limit: int, *, follow: bool = True, seen: Any = None
) -> tuple[Any, bytes | None]:
    """Return the file's state, which changes with the file, and its bytes; None if it is `seen`.

    Reads at most `limit` + 1 bytes. OSError if it cannot be read, is not a regular file, or is a
    symbolic link and `follow` is False.
    """
    handle, found = _open(path, 0 if follow else os.O_NOFOLLOW)
    with open(handle, "rb") as file:
        state = found.st_ino, found.st_mtime_ns, found.st_size
        return state, None if state == seen else file.read(limit + 1)


def _open(path: str | os.PathLike[str], flags: int) -> tuple[int, os.stat_result]:
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | flags)
    except ValueError as error:  # a NUL in it
        raise OSError(errno.EINVAL, str(error), os.fspath(path)) from None
    found = os.fstat(handle)
    if not stat.S_ISREG(found.st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "not a regular file", os.fspath(path))
    return handle, found
