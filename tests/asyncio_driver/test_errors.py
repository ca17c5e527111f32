"""Handlers that fail: what the caller sees, what is logged, and that the connection goes on."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator

import pytest

from asyncio_driver.support import Echo, accepted, pair, serving
from rpc_asyncio import Client
from rpc_proto import (
    Aborted,
    CallError,
    ClientConfig,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    ServerConfig,
    Unknown,
    quick,
)
from support.by_hand import GOAWAY, request


class Failing:
    async def not_found(self, key: str) -> None:
        raise NotFound(f"no key {key!r}", {"key": key})

    async def late_not_found(self) -> None:
        await asyncio.sleep(0)
        raise NotFound("late")

    def thread_not_found(self) -> None:
        raise NotFound("in a thread")

    @quick
    def quick_not_found(self) -> None:
        raise NotFound("quickly")

    async def own_code(self) -> None:
        raise CallError("teapot", "short and stout")

    async def bug(self) -> None:
        raise ZeroDivisionError("a secret place")

    async def late_bug(self) -> None:
        await asyncio.sleep(0)
        raise ZeroDivisionError("late")

    def thread_bug(self) -> None:
        raise ZeroDivisionError("in a thread")

    async def exit(self) -> None:
        raise StopAsyncIteration

    async def large(self, size: int) -> bytes:
        return bytes(size)

    async def large_list(self, size: int) -> list:
        return [0] * size

    async def long_message(self) -> None:
        raise NotFound("\x1b[31m%s\r\n" + "x" * 5000)

    async def bad_details(self) -> None:
        raise Aborted("with details that cannot travel", object())

    async def nested(self) -> None:
        raise NotFound("from below", maybe_executed=False)


@contextlib.asynccontextmanager
async def usable_afterwards(**options) -> AsyncIterator[Client]:
    async with pair(Failing(), Echo(), **options) as (server, client):
        yield client
        assert await client.call("Echo.echo", "usable") == "usable"
        assert server.stats["running"] == server.stats["tasks"] == 0
        assert server.stats["connections"] == 1


async def test_call_error_travels_with_code_message_and_details(caplog):
    async with usable_afterwards() as client:
        with pytest.raises(NotFound) as caught:
            await client.call("Failing.not_found", "k")
        assert caught.value.message == "no key 'k'"
        assert caught.value.details == {"key": "k"}
        assert caught.value.maybe_executed
    assert not caplog.records


@pytest.mark.parametrize("kind", ["late", "thread", "quick"])
async def test_every_kind_of_handler_may_raise_call_errors(kind):
    async with usable_afterwards() as client:
        with pytest.raises(NotFound):
            await client.call(f"Failing.{kind}_not_found")


async def test_code_of_ones_own_stays_a_call_error():
    async with usable_afterwards() as client:
        with pytest.raises(CallError, match="short and stout") as caught:
            await client.call("Failing.own_code")
        assert (type(caught.value), caught.value.code) == (CallError, "teapot")


@pytest.mark.fault(37)
@pytest.mark.parametrize("method", ["bug", "late_bug", "thread_bug"])
async def test_unexpected_exception_is_logged_once_and_told_without_a_traceback(method, caplog):
    with caplog.at_level(logging.INFO):
        async with usable_afterwards() as client:
            with pytest.raises(Unknown, match="ZeroDivisionError") as caught:
                await client.call(f"Failing.{method}")
            assert caught.value.details is None
    (record,) = [record for record in caplog.records if record.levelno > logging.INFO]
    assert record.getMessage() == f"Failing.{method} failed"
    assert record.exc_info[0] is ZeroDivisionError


async def test_strange_exceptions_fail_only_their_call(caplog):
    async with usable_afterwards() as client:
        with pytest.raises(Unknown, match="StopAsyncIteration"):
            await client.call("Failing.exit")


@pytest.mark.fault(37)
async def test_result_over_the_limit_of_the_caller_fails_only_its_call():
    async with (
        serving(Failing(), Echo()) as (_, address),
        await Client.connect(address, config=ClientConfig(max_body=10_000)) as client,
    ):
        assert len(await client.call("Failing.large", 10_000)) == 10_000
        with pytest.raises(ResourceExhausted, match="10001 bytes"):
            await client.call("Failing.large", 10_001)
        with pytest.raises(ResourceExhausted):
            await client.call("Failing.large_list", 10_001)
        assert await client.call("Echo.echo", 1) == 1


async def test_arguments_over_the_limit_of_the_server_are_not_sent():
    async with usable_afterwards(config=ServerConfig(max_body=10_000)) as client:
        assert len(await client.call("Echo.echo", bytes(10_000))) == 10_000
        with pytest.raises(ResourceExhausted) as caught:
            await client.call("Echo.echo", bytes(10_001))
        assert not caught.value.maybe_executed
        assert client.calls_in_flight == 0


@pytest.mark.fault(21)
async def test_text_of_an_error_is_opaque_and_at_most_a_kibibyte():
    async with usable_afterwards() as client:
        with pytest.raises(NotFound) as caught:
            await client.call("Failing.long_message")
        assert caught.value.message.startswith("\x1b[31m%s\r\nxxx")
        assert len(caught.value.message.encode()) == 1024


async def test_details_that_cannot_travel_do_not_cost_the_code():
    async with usable_afterwards() as client:
        with pytest.raises(Aborted, match="with details") as caught:
            await client.call("Failing.bad_details")
        assert caught.value.details is None


async def test_handler_that_ran_is_never_reported_as_not_executed():
    async with usable_afterwards() as client:
        with pytest.raises(NotFound) as caught:
            await client.call("Failing.nested")
        assert caught.value.maybe_executed


async def test_many_failures_of_handlers_do_not_end_the_connection():
    async with usable_afterwards(config=ServerConfig(refusals=10)) as client:
        for _ in range(100):
            with pytest.raises(NotFound):
                await client.call("Failing.not_found", "k")


async def test_violation_by_a_client_is_logged_and_ends_only_its_connection(caplog):
    async with pair(Echo()) as (_, client), accepted(client.address) as wire:
        await wire.send(request(1, "Echo.echo", "before"))
        assert (await wire.receive()).value == "before"
        await wire.send(b"\x00" * 16)
        (goaway,) = await wire.receive_all()
        assert (goaway.type, goaway.value[0]) == (GOAWAY, "invalid_argument")
        assert await client.call("Echo.echo", 1) == 1
    (record,) = caplog.records
    assert "protocol violation" in record.getMessage()


async def test_authorization_in_a_handler():
    class Vault:
        async def open(self) -> None:
            raise PermissionDenied("not for you")

    async with pair(Vault()) as (_, client):
        with pytest.raises(PermissionDenied, match="not for you"):
            await client.call("Vault.open")
