"""Listening for all drivers, and dialling for gevent and threads.

`socket` is the runtime's own module; a listener uses the bare sockets below it, which
monkey-patching does not change.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from _socket import (
    AF_INET,
    AF_INET6,
    AF_UNIX,
    AI_PASSIVE,
    IPPROTO_TCP,
    MSG_PEEK,
    SHUT_RDWR,
    SO_KEEPALIVE,
    SO_REUSEADDR,
    SOCK_STREAM,
    SOL_SOCKET,
    TCP_NODELAY,
)
from _socket import socket as Socket  # noqa: N812 - what monkey-patching leaves alone
from collections.abc import Callable
from resource import RLIM_INFINITY, RLIMIT_NOFILE, getrlimit
from time import monotonic
from typing import TYPE_CHECKING, Any

from rpc_common.telemetry.log import Log
from rpc_proto import Address

from .http_proxies import Proxy

if TYPE_CHECKING:
    from rpc_proto.http.tunnel import Tunnel

__all__ = ["Listener", "dial", "files_limit", "listen", "read_answer", "set_options"]

# Connections that a listener accepts in a row, in about 3 ms, before others get their turn.
_ACCEPTED_AT_ONCE = 10

# Seconds without accepting when the process or the system lacks a resource.
_PAUSE = 0.5

# Errors of accept that concern only the connection it would have returned.
_GONE = (
    *(errno.EPROTO, errno.ENETDOWN, errno.ENOPROTOOPT, errno.EHOSTDOWN, errno.EHOSTUNREACH),
    *(errno.ENETUNREACH, errno.EOPNOTSUPP, errno.EPERM, errno.ETIMEDOUT),
)

# Kinds of files that may be at the path of a socket.
_KINDS = {
    stat.S_IFREG: "regular file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symbolic link",
    stat.S_IFIFO: "FIFO",
}

# Bytes of a proxy's answer to look at in one go.
_READ_AHEAD = 4096


def dial(
    where: Address, proxy: Proxy | None, deadline: float, socket: Any, lookup: Callable[..., Any]
) -> Any:
    """Return a connected socket of the module `socket`; OSError or TimeoutError on failure.

    `lookup(host, port, deadline)` is getaddrinfo with a deadline. Each address of the host gets its
    share of the remaining time. HandshakeError if the proxy refuses.
    """
    if proxy is None:
        return _dial(where, deadline, socket, lookup)
    sock = _dial(proxy.where, deadline, socket, lookup)
    try:
        tunnel = proxy.tunnel_to(where)
        sock.settimeout(_left(deadline))
        sock.sendall(tunnel.request)
        while True:
            sock.settimeout(_left(deadline))
            if read_answer(sock, tunnel):
                return sock
    except BaseException:
        sock.close()
        raise


def read_answer(sock: Any, tunnel: Tunnel) -> bool:
    """Read a proxy's answer, but not the bytes after it; return whether it is complete.

    These are for the next reader: TLS, or the connection, if a server refuses at once.
    """
    try:
        data = sock.recv(_READ_AHEAD, MSG_PEEK)
    except BlockingIOError:
        return False
    if not data:
        raise tunnel.receive_eof()
    behind = tunnel.receive_data(data)
    sock.recv(len(data) - len(behind or b""))
    return behind is not None


def _left(deadline: float) -> float:
    left = deadline - monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _dial(where: Address, deadline: float, socket: Any, lookup: Callable[..., Any]) -> Any:
    if where.scheme == "unix":
        return _connect(socket, socket.AF_UNIX, where.path, deadline)
    found = lookup(where.host, where.port, deadline)
    failure: OSError | None = None
    for place, (family, _, _, _, address) in enumerate(found):
        now = monotonic()
        try:
            sock = _connect(socket, family, address, now + (deadline - now) / (len(found) - place))
        except OSError as error:
            failure = error
        else:
            set_options(sock)
            return sock
    try:
        raise failure or OSError(f"{where.host} has no address")
    finally:
        del failure


def _connect(socket: Any, family: int, address: Any, deadline: float) -> Any:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.settimeout(max(0.001, deadline - monotonic()))
        sock.connect(address)
    except BaseException:
        sock.close()
        raise
    return sock


def set_options(sock: Any) -> None:
    """Send small messages at once (TCP_NODELAY), and detect vanished peers (SO_KEEPALIVE)."""
    if sock.family in (AF_INET, AF_INET6):
        with contextlib.suppress(OSError):  # the peer has reset it; the first read will tell
            sock.setsockopt(IPPROTO_TCP, TCP_NODELAY, 1)
            sock.setsockopt(SOL_SOCKET, SO_KEEPALIVE, 1)


def files_limit() -> int | None:
    """Return how many files this process may open (RLIMIT_NOFILE); None for any number."""
    limit = getrlimit(RLIMIT_NOFILE)[0]
    return None if limit == RLIM_INFINITY else limit


class Listener:
    """A listening socket, which never blocks, and its path if it is a unix socket."""

    def __init__(self, sock: Socket, where: Address, log: Log) -> None:
        self.sock = sock
        self.where = where
        self._log = log
        self._short = False
        self._made = _identity(where.path) if where.scheme == "unix" else None

    def fileno(self) -> int:
        return self.sock.fileno()

    def accept(self, take: Callable[[Socket, Any], None]) -> float:
        """Pass waiting connections to `take(socket, peername)`; return how long to pause.

        The pause is 0.0 seconds, unless a resource is exhausted: descriptors or memory here, or
        whatever `take` needs, which it reports by an OSError. That is logged once, until a
        connection is accepted again.
        """
        for _ in range(_ACCEPTED_AT_ONCE):
            try:
                number, peername = self.sock._accept()  # type: ignore[attr-defined]
            except BlockingIOError:
                break
            except OSError as error:
                if isinstance(error, ConnectionError) or error.errno in _GONE:
                    continue
                return self._pause(error)
            sock = Socket(fileno=number)
            try:
                set_options(sock)
                take(sock, peername)
            except OSError as error:
                sock.close()
                return self._pause(error)
            self._short = False
        return 0.0

    def python_socket(self, bare: Socket, socket: Any) -> Any:
        """Return an accepted socket as one of the module `socket`, for an event loop."""
        return socket.socket(fileno=bare.detach())

    def _pause(self, error: OSError) -> float:
        if not self._short:
            self._short = True
            self._log.error("cannot accept connections for now: %s", error)
        return _PAUSE

    def close(self) -> None:
        """Stop listening, even through a copy of the socket in a child process."""
        with contextlib.suppress(OSError):
            self.sock.shutdown(SHUT_RDWR)
        # While the socket is open no other file can have its inode number.
        if self._made is not None and _identity(self.where.path) == self._made:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.where.path)
        self.sock.close()


def listen(where: Address, socket: Any, log: Log) -> Listener:
    """Listen on an address, where port 0 picks a free port; OSError if that is impossible."""
    family: int = AF_UNIX
    address: Any = where.path
    if where.scheme != "unix":
        family, _, _, _, address = socket.getaddrinfo(
            where.host, where.port, type=SOCK_STREAM, flags=AI_PASSIVE
        )[0]
    sock = Socket(family, SOCK_STREAM)
    try:
        sock.setblocking(False)
        if family == AF_UNIX:
            _make_way(where.path)
        else:
            sock.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(1024)
        if family != AF_UNIX:
            where = where._replace(port=sock.getsockname()[1])
        return Listener(sock, where, log)
    except BaseException as error:
        sock.close()
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(where)
        raise


def _identity(path: str) -> tuple[int, int] | None:
    """Return what identifies the file at a path; None if there is none."""
    try:
        found = os.lstat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _make_way(path: str) -> None:
    """Remove the socket of a server that did not stop cleanly; OSError for anything else."""
    try:
        found = os.lstat(path)
    except OSError:  # bind will report what is wrong, if anything is
        return
    if not stat.S_ISSOCK(found.st_mode):
        kind = _KINDS.get(stat.S_IFMT(found.st_mode), "file")
        raise FileExistsError(errno.EEXIST, f"there is a {kind} at the path of the socket", path)
    probe = Socket(AF_UNIX, SOCK_STREAM)
    try:
        probe.setblocking(False)  # the queue of a hanging server may be full
        failure = probe.connect_ex(path)
    finally:
        probe.close()
    if failure == errno.ECONNREFUSED:
        # Unless another server has replaced it meanwhile.
        if _identity(path) == (found.st_dev, found.st_ino):
            os.unlink(path)
    elif failure in (0, errno.EAGAIN, errno.EINPROGRESS):
        raise OSError(errno.EADDRINUSE, "the path is in use by another server", path)
    elif failure != errno.ENOENT:
        raise OSError(failure, os.strerror(failure), path)
