"""Dialling and listening for drivers that wait in place: `socket` is the runtime's own module."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from socket import MSG_PEEK
from time import monotonic
from typing import TYPE_CHECKING, Any

from rpc_proto import Address

from .proxies import Proxy

if TYPE_CHECKING:
    from rpc_proto.http.tunnel import Tunnel

__all__ = ["LINGER", "dial", "listen", "read_answer"]

# After its last words a server reads on, in seconds, until the peer has been silent for so long.
LINGER = 0.2

# Bytes of a proxy's answer to look at in one go.
_READ_AHEAD = 4096


def dial(
    where: Address, proxy: Proxy | None, deadline: float, socket: Any, lookup: Callable[..., Any]
) -> Any:
    """Return a connected socket of the module `socket`; OSError or TimeoutError if there is none.

    `lookup(host, port, deadline)` is getaddrinfo with a deadline. Each address of the host gets
    its share of the time that is left. HandshakeError says why the proxy refuses.
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
    """Read what a proxy says, and leave in the socket what is behind it; whether that was all.

    It is for whoever reads next: TLS, or a server that refuses before it was asked anything.
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
