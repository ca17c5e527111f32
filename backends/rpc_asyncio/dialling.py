"""Dialling through an HTTP proxy, before there is a transport; works in any loop."""

import asyncio
import socket

from rpc_common.transport.http_proxies import Proxy
from rpc_common.transport.sockets import read_answer
from rpc_proto import Address

__all__ = ["dial_through"]


async def dial_through(
    proxy: Proxy, where: Address, loop: asyncio.AbstractEventLoop
) -> socket.socket:
    """Return a socket that leads to `where`; OSError, or HandshakeError if the proxy refuses."""
    sock = await _dial(proxy.where, loop)
    try:
        tunnel = proxy.tunnel_to(where)
        await loop.sock_sendall(sock, tunnel.request)
        await _readable(sock, loop)
        while not read_answer(sock, tunnel):
            await _readable(sock, loop)
    except BaseException:
        sock.close()
        raise
    return sock


async def _dial(where: Address, loop: asyncio.AbstractEventLoop) -> socket.socket:
    failure: OSError | None = None
    for family, kind, number, _, address in await loop.getaddrinfo(
        where.host, where.port, type=socket.SOCK_STREAM
    ):
        sock = socket.socket(family, kind, number)
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await loop.sock_connect(sock, address)
        except OSError as error:
            sock.close()
            failure = error
        except BaseException:
            sock.close()
            raise
        else:
            return sock
    try:
        raise failure or OSError(f"{where.host} has no address")
    finally:
        del failure


async def _readable(sock: socket.socket, loop: asyncio.AbstractEventLoop) -> None:
    """Wait until there is something to read, without reading it like `loop.sock_recv`."""
    ready = asyncio.Event()
    loop.add_reader(sock, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(sock)
