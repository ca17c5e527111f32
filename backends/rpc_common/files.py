"""A file of nodes, read when it has changed."""

import os
from typing import Any

from rpc_discovery import FileView

__all__ = ["look"]

_MAX_FILE = 1024 * 1024


def look(path: str, view: FileView, seen: Any, now: float) -> tuple[Any, list[Any]]:
    """Return what tells this state of the file from others, and the events that it caused."""
    try:
        with open(path, "rb") as file:
            found = os.fstat(file.fileno())
            state = found.st_ino, found.st_mtime_ns, found.st_size
            if state == seen:
                return seen, []
            data = file.read(_MAX_FILE + 1)
    except OSError as error:
        return None, view.failed(f"{path}: {error.strerror or error}", now)
    if len(data) > _MAX_FILE:
        return state, view.failed(f"{path} has more than {_MAX_FILE} bytes", now)
    return state, view.loaded(data, now)
