"""A registry that survives restarts, by snapshots in a file."""

import os
import stat
from contextlib import suppress
from functools import partial
from math import inf
from time import monotonic
from typing import Any

from rpc_common.telemetry.log import get_log
from rpc_common.transport.threads import HelperThread
from rpc_discovery import Registry
from rpc_discovery.documents import encode, parse_json
from rpc_proto.http import Router

from .files import read_regular

__all__ = ["SavedRegistry"]

_log = get_log("rpc_common")

_MAX_FILE = 16 * 1024 * 1024  # bytes; a registry's own bounds keep it well below


class SavedRegistry:
    """A registry with a snapshot file; pass it to `server.mount` in place of the registry.

    An existing snapshot is restored at once. When nodes have changed, it is written again, at most
    every `interval` seconds, and finally by `close()`: to `path` + ".new", which then replaces it,
    so that the file is always complete. ValueError if the file has any other content, which is left
    unchanged; OSError if it cannot be read or written, or is not a regular file. Its mode is kept.
    """

    def __init__(
        self, registry: Registry, path: str | os.PathLike[str], *, interval: float = 1.0
    ) -> None:
        if not 0 < interval < inf:
            raise ValueError(f"interval must be seconds over 0, not {interval!r}")
        self.registry = registry
        self.path = os.fspath(path)
        self._interval = interval
        self._writer: HelperThread | None = None
        self._failing = False
        now = monotonic()
        self._restore(now)
        self._write(self.registry.snapshot(now))  # better to fail now than later
        self._saved = registry.revision
        self._save_at = now + interval

    def mount(self, router: Router) -> None:
        """Let a server's router send to the registry what is for it."""
        self.registry.mount(router)

    def next_timeout(self) -> float | None:
        """Return when to call `handle_timeout`, in absolute seconds; None if nothing is to come."""
        at = self.registry.next_timeout()
        if self.registry.revision == self._saved:
            return at
        return self._save_at if at is None else min(at, self._save_at)

    def handle_timeout(self, now: float) -> None:
        """Let nodes expire, and begin to save what has changed."""
        self.registry.handle_timeout(now)
        if self.registry.revision == self._saved or now < self._save_at:
            return
        self._save_at = now + self._interval
        if self._writer is None or not self._writer.is_alive():
            self._saved = self.registry.revision
            # In a thread, because a disk may take its time.
            write = partial(self._try_to_write, self.registry.snapshot(now))
            self._writer = HelperThread(write, "rpc-snapshot")
            try:
                self._writer.start()
            except RuntimeError as error:  # no more threads can be started
                self._saved = -1  # to be tried again
                self._complain(error)

    def close(self) -> None:
        """Save for the last time, once the server has stopped."""
        if self._writer is not None:
            self._writer.join()
        self._try_to_write(self.registry.snapshot(monotonic()))

    def _restore(self, now: float) -> None:
        try:
            _, data = read_regular(self.path, _MAX_FILE, follow=False)
        except FileNotFoundError:
            return
        assert data is not None
        if len(data) > _MAX_FILE:
            raise ValueError(f"a snapshot has at most {_MAX_FILE} bytes")
        self.registry.restore(parse_json(data), now)

    def _try_to_write(self, snapshot: dict[str, Any]) -> None:
        try:
            self._write(snapshot)
        except OSError as error:
            self._saved = -1  # to be tried again
            self._complain(error)
        else:
            self._failing = False

    def _complain(self, error: Exception) -> None:
        if not self._failing:
            self._failing = True
            _log.warning("cannot write the snapshot %s: %s", self.path, error)

    def _write(self, snapshot: dict[str, Any]) -> None:
        new = f"{self.path}.new"
        with suppress(FileNotFoundError):
            os.unlink(new)  # of a life that was cut short, or a link that somebody put there
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with open(os.open(new, flags, 0o666), "wb") as file:
            with suppress(FileNotFoundError):
                os.fchmod(file.fileno(), stat.S_IMODE(os.lstat(self.path).st_mode))
            file.write(encode(snapshot))
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, self.path)
        folder = os.open(os.path.dirname(self.path) or ".", os.O_RDONLY)
        try:
            os.fsync(folder)  # or the name may be the old file's after a power cut
        finally:
            os.close(folder)
