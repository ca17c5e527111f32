"""TLS, certificates, tokens and identities."""

import asyncio

import pytest

from asyncio_driver.support import Echo, pair, serving, until
from rpc_asyncio import Client, Server
from rpc_proto import HandshakeError, Peer, ServerConfig, Unavailable, current_call

TLS = "tls://127.0.0.1:0"


class Who:
    async def asks(self) -> list:
        peer = current_call().peer
        name = None
        if peer.certificate is not None:
            name = dict(pairs[0] for pairs in peer.certificate["subject"])["commonName"]
        return [name, peer.identity]


async def test_call_over_tls(authority):
    async with (
        serving(Who(), address=TLS, ssl=authority.server_context()) as (_, address),
        await Client.connect(address, ssl=authority.client_context()) as client,
    ):
        assert address.startswith("tls://127.0.0.1:")
        assert await client.call("Who.asks") == [None, None]


async def test_many_calls_over_tls_at_once(authority):
    bodies = [bytes([i]) * (i * 5000) for i in range(100)]
    async with (
        serving(Echo(), address=TLS, ssl=authority.server_context()) as (_, address),
        await Client.connect(address, ssl=authority.client_context()) as client,
    ):
        calls = [client.call("Echo.echo", body) for body in bodies]
        assert await asyncio.gather(*calls) == bodies


async def test_server_of_an_unknown_authority_is_refused(authority, other_authority):
    async with serving(Who(), address=TLS, ssl=authority.server_context()) as (server, address):
        with pytest.raises(Unavailable, match="certificate verify failed") as caught:
            await Client.connect(address, ssl=other_authority.client_context())
        assert not caught.value.maybe_executed
        with pytest.raises(Unavailable, match="certificate verify failed"):
            await Client.connect(address)
        await until(lambda: server.stats["connections"] == 0)


async def test_server_under_another_name_is_refused(authority):
    async with serving(Who(), address=TLS, ssl=authority.server_context()) as (_, address):
        with pytest.raises(Unavailable, match="certificate"):
            await Client.connect(
                address.replace("127.0.0.1", "localhost"), ssl=authority.client_context()
            )


async def test_client_certificate_is_shown_to_handlers(authority):
    context = authority.server_context(client_certificates=True)
    async with (
        serving(Who(), address=TLS, ssl=context) as (_, address),
        await Client.connect(address, ssl=authority.client_context(certificate=True)) as client,
    ):
        assert await client.call("Who.asks") == ["alice", None]


async def test_client_certificate_is_shown_to_authenticate(authority):
    asked: list[tuple[str | None, Peer]] = []

    def authenticate(token: str | None, peer: Peer) -> str:
        asked.append((token, peer))
        return "user of " + peer.address.partition(":")[0]

    context = authority.server_context(client_certificates=True)
    async with (
        serving(Who(), address=TLS, ssl=context, authenticate=authenticate) as (_, address),
        await Client.connect(
            address, ssl=authority.client_context(certificate=True), token="t"
        ) as client,
    ):
        assert await client.call("Who.asks") == ["alice", "user of 127.0.0.1"]
    ((token, peer),) = asked
    assert token == "t"
    assert peer.certificate["subject"] == ((("commonName", "alice"),),)


async def test_client_without_the_certificate_that_is_asked_for_fails_clearly(authority):
    context = authority.server_context(client_certificates=True)
    async with serving(Who(), address=TLS, ssl=context) as (server, address):
        with pytest.raises((Unavailable, HandshakeError)):
            await Client.connect(address, ssl=authority.client_context(), timeout=5)
        await until(lambda: server.stats["connections"] == 0)


async def test_addresses_and_contexts_go_together(authority):
    server = Server()
    with pytest.raises(ValueError, match="need ssl"):
        await server.start(TLS)
    with pytest.raises(ValueError, match="need ssl"):
        await server.start("tcp://127.0.0.1:0", ssl=authority.server_context())
    with pytest.raises(ValueError, match="ssl needs a tls:// or https:// address"):
        await Client.connect("tcp://127.0.0.1:1", ssl=authority.client_context())
    await server.stop()


async def test_tls_and_plain_addresses_of_one_server(authority):
    async with pair(Who()) as (server, client):
        address = await server.start(TLS, ssl=authority.server_context())
        async with Client.connect(address, ssl=authority.client_context()) as other:
            assert await client.call("Who.asks") == await other.call("Who.asks")


# Tokens


async def test_identity_is_what_authenticate_returns():
    def authenticate(token: str | None, _: Peer) -> str | None:
        return {"a": "alice", "b": "bob"}.get(token)

    async with serving(Who(), authenticate=authenticate) as (_, address):
        for token, name in (("a", "alice"), ("b", "bob")):
            async with Client.connect(address, token=token) as client:
                assert await client.call("Who.asks") == [None, name]
        with pytest.raises(HandshakeError) as caught:
            await Client.connect(address, token="c")
        assert caught.value.code == "unauthenticated"


async def test_authenticate_that_fails_lets_nobody_in_and_tells_only_the_operator(caplog):
    def authenticate(token: str | None, _: Peer) -> bool:
        raise LookupError("the password is 1234")

    config = ServerConfig(authenticate=authenticate)
    async with serving(Echo(), config=config) as (_, address):
        with pytest.raises(HandshakeError) as caught:
            await Client.connect(address, token="t")
        assert caught.value.code == "internal"
        assert "1234" not in str(caught.value)
    (record,) = caplog.records
    assert record.exc_info[0] is LookupError


async def test_token_that_is_too_long_is_refused_before_anything_is_sent():
    async with serving(Echo()) as (server, address):
        with pytest.raises(HandshakeError):
            await Client.connect(address, token="t" * 5000)
        assert server.stats["connections"] == 0
