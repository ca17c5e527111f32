"""Observers see each call begin and end, and change nothing."""

from typing import Any

import pytest

from rpc_fuzz.pair import Pair
from rpc_fuzz.wire import START
from rpc_proto import (
    CallError,
    ClientConnection,
    Dispatcher,
    NotFound,
    Observer,
    ObserverFailed,
    ResourceExhausted,
    ServerConfig,
    ServerConnection,
    ServerPort,
)


class Notes(Observer):
    """Writes down what it sees."""

    def __init__(self) -> None:
        self.seen: list[tuple[Any, ...]] = []

    def started(self, now: float, call: Any) -> None:
        self.seen.append(("started", call.method))

    def answered(self, now: float, call: Any, size: int) -> None:
        self.seen.append(("answered", call.method, size))

    def failed(self, now: float, call: Any, error: CallError, size: int) -> None:
        self.seen.append(("failed", call.method, str(error.code), size))

    def served(self, now: float, peer: Any, exchange: Any) -> None:
        self.seen.append(("served", exchange.request, exchange.status))


class Carrying(Observer):
    def carry(self, call: Any) -> dict[str, str]:
        return {"trace": call.method}


class Broken(Observer):
    def __init__(self, error: type[BaseException]) -> None:
        self.error = error

    def started(self, now: float, call: Any) -> None:
        raise self.error("on purpose")


class Service:
    def add(self, a: int, b: int) -> int:
        return a + b

    def fail(self) -> None:
        raise NotFound("no")


def observed(*observers: Observer, config: ServerConfig | None = None) -> tuple[Pair, Notes, Notes]:
    """Two ends with an observer each, and the client's others."""
    client, server = Notes(), Notes()
    pair = Pair()
    pair.client = ClientConnection(now=START, observers=(client, *observers))
    pair.server = ServerConnection(config, now=START, observers=[server])
    pair.up.sender = pair.down.receiver = pair.client
    pair.up.receiver = pair.down.sender = pair.server
    dispatcher = Dispatcher(clock=lambda: pair.now)
    dispatcher.register(Service())
    pair.on_server_event = lambda event: dispatcher.serve([event])
    return pair.open(), client, server


def test_call_is_seen_to_start_and_to_be_answered_at_both_ends() -> None:
    pair, client, server = observed()
    call = pair.call("Service.add", 1, 2)
    assert pair.outcome(call) == 3
    assert client.seen == server.seen
    assert client.seen == [("started", "Service.add"), ("answered", "Service.add", 17)]


def test_call_that_fails_is_seen_with_its_code_and_the_size_of_the_answer() -> None:
    pair, client, server = observed()
    pair.call("Service.fail")
    assert client.seen == server.seen
    (_, (what, method, code, size)) = client.seen
    assert (what, method, code) == ("failed", "Service.fail", "not_found")
    assert size > 16


def test_call_that_is_given_up_has_no_answer() -> None:
    pair, client, server = observed()
    pair.on_server_event = None
    call = pair.call("Service.add", 1, 2)
    pair.client.cancel(pair.now, call)
    pair.pump()
    assert client.seen[1:] == [("failed", "Service.add", "cancelled", 0)]
    assert server.seen == client.seen


def test_call_that_is_refused_on_arrival_only_fails() -> None:
    pair, client, server = observed(config=ServerConfig(max_calls=1))
    pair.on_server_event = None
    pair.client._max_calls = 2
    for _ in range(2):
        pair.call("Service.add", 1, 2)
    assert [note[0] for note in server.seen] == ["started", "failed"]
    assert [note[0] for note in client.seen] == ["started", "started", "failed"]


def test_one_way_call_is_answered_when_it_is_sent_and_when_its_handler_ends() -> None:
    pair, client, server = observed()
    pair.call("Service.add", 1, 2, one_way=True)
    assert client.seen == server.seen
    assert client.seen == [("started", "Service.add"), ("answered", "Service.add", 0)]


def test_call_that_cannot_be_sent_fails() -> None:
    pair, client, _ = observed()
    with pytest.raises(ResourceExhausted):
        pair.call("Service.add", "x" * 20_000_000, 1)
    assert [note[:3] for note in client.seen] == [
        ("started", "Service.add"),
        ("failed", "Service.add", "resource_exhausted"),
    ]


def test_metadata_that_observers_carry_travels_with_the_call() -> None:
    pair, _, _ = observed(Carrying())
    pair.call("Service.add", 1, 2, metadata={"own": "1"})
    assert dict(pair.requests()[0].metadata) == {"own": "1", "trace": "Service.add"}


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_observer_that_raises_is_an_event_and_the_call_goes_on(error: type[BaseException]) -> None:
    pair, client, _ = observed(Broken(error))
    call = pair.call("Service.add", 1, 2)
    assert pair.outcome(call) == 3
    assert [note[0] for note in client.seen] == ["started", "answered"]
    (failed,) = (event for event in pair.client_events if isinstance(event, ObserverFailed))
    assert type(failed.error) is error


def test_http_is_seen() -> None:
    notes = Notes()
    port = ServerPort(now=START, observers=[notes])
    port.receive_data(START, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    assert notes.seen == [("served", "GET /", 404)]


def test_observer_of_another_kind_is_refused() -> None:
    with pytest.raises(TypeError, match="must inherit"):
        ServerConnection(now=START, observers=[print])  # type: ignore[list-item]
