"""Sockets in both event loops."""

import asyncio
import contextlib
import os
import resource
import socket
import threading

import pytest

from asyncio_driver.support import Echo, pair, port_of, serving, until
from rpc_asyncio import Client
from rpc_proto import Unavailable


def has_no_delay(descriptor: int) -> bool:
    with socket.socket(fileno=os.dup(descriptor)) as copy:
        return bool(copy.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))


@pytest.mark.fault(97)
@pytest.mark.parametrize("scheme", ["tcp", "http", "tls", "https"])
async def test_small_messages_leave_both_ends_at_once(authority, scheme):
    own, trusting = None, None
    if scheme in ("tls", "https"):
        own, trusting = authority.server_context(), authority.client_context()
    async with (
        serving(Echo(), address=f"{scheme}://127.0.0.1:0", ssl=own) as (server, address),
        await Client.connect(address, ssl=trusting) as client,
    ):
        [connection] = server.links
        assert has_no_delay(connection.fileno())
        assert [has_no_delay(n) for n in client._descriptors()] == [True]


@pytest.mark.fault(135)
async def test_accepting_without_free_descriptors_leaves_live_connections_alone(caplog):
    loop = asyncio.get_running_loop()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with pair(Echo()) as (server, client):
        with contextlib.ExitStack() as stack:
            peer = stack.enter_context(socket.socket())
            peer.setblocking(False)
            highest = os.open("/dev/null", os.O_RDONLY)
            stack.callback(os.close, highest)
            resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1, hard))
            try:
                peer.connect_ex(("127.0.0.1", port_of(client.address)))
                paused = loop.time() + 1.2
                while loop.time() < paused:
                    assert await client.call("Echo.echo", "alive", timeout=2.0) == "alive"
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            await until(lambda: server.stats["connections"] == 2)
    refused = [r for r in caplog.records if "cannot accept connections" in r.getMessage()]
    assert len(refused) == 1


@pytest.mark.plain_loop
@pytest.mark.fault(139)
async def test_name_that_no_thread_can_look_up_is_a_failed_connect():
    usual = threading.stack_size(2**46)  # more than any machine has
    try:
        with pytest.raises(Unavailable, match="no connection to tcp://localhost:1: can't start"):
            await Client.connect("tcp://localhost:1")
    finally:
        threading.stack_size(usual)
