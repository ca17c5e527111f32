"""Dialling and listening for drivers that wait in place: `socket` is the runtime's own module."""

import contextlib
import os
from collections.abc import Callable
from time import monotonic
from typing import Any

from rpc_proto import Address

__all__ = ["LINGER", "dial", "listen"]

# After its last words a server reads on, in seconds, until the peer has been silent for so long.
LINGER = 0.2


def dial(where: Address, deadline: float, socket: Any, lookup: Callable[..., Any]) -> Any:
    """Return a connected socket of the module `socket`; OSError or TimeoutError if there is none.

    `lookup(host, port, deadline)` is getaddrinfo with a deadline. Each address of the host gets
    its share of the time that is left.
    """
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
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
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


def listen(where: Address, socket: Any) -> tuple[Any, Address]:
    """Return a listening socket and its real address; OSError if the address cannot be had."""
    if where.scheme == "unix":
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            _remove_stale(where.path, socket)
            sock.bind(where.path)
            sock.listen(1024)
        except BaseException:
            sock.close()
            raise
        return sock, where
    family, _, _, _, address = socket.getaddrinfo(
        where.host, where.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(1024)
    except BaseException:
        sock.close()
        raise
    return sock, where._replace(port=sock.getsockname()[1])


def _remove_stale(path: str, socket: Any) -> None:
    """Take away what a server left behind that did not stop cleanly."""
    with contextlib.suppress(OSError):
        probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        with probe:
            try:
                probe.connect(path)
            except ConnectionRefusedError:
                os.unlink(path)
