"""Streams as operators see them: statistics, access log, debug page and traces."""

import logging
from collections.abc import Iterable, Iterator
from typing import Any

import pytest

from rpc_common.telemetry.access_log import AccessLog
from rpc_common.telemetry.log import get_log
from rpc_fuzz.pair import Pair
from rpc_fuzz.wire import START
from rpc_proto import ClientConfig, NotFound, Unimplemented
from rpc_proto.connection.observers import Observers
from rpc_proto.pages.debug import as_page, describe
from rpc_proto.service.dispatch import Dispatcher
from rpc_proto.service.introspection import Introspection
from rpc_proto.trace import Trace, TracedClientConnection, TracedServerConnection, replay


class Logs:
    def tail(self, name: str) -> Iterator[str]:
        yield name

    def store(self, chunks: Iterable[bytes]) -> int: ...


class Served:
    """A pair whose server has a dispatcher, and streams that are answered by hand."""

    def __init__(self, *observers: Any) -> None:
        self.pair = Pair().open()
        self.dispatcher = Dispatcher(clock=lambda: self.pair.now)
        self.dispatcher.register(Logs())
        self.pair.server._observers = Observers((self.dispatcher, *observers))
        self.jobs: list[Any] = []
        self.pair.on_server_event = lambda event: self.jobs.extend(self.dispatcher.receive([event]))

    def start(self, method: str, *args: Any, **options: Any) -> tuple[Any, Any]:
        return self.pair.request(method, *args, **options)

    def snapshot(self) -> dict[str, Any]:
        return self.dispatcher.snapshot(self.pair.now, [self.pair.server])


def test_statistics_count_items_and_bytes_of_streams_that_run_and_that_have_ended() -> None:
    served = Served()
    pair = served.pair
    _, tail = served.start("Logs.tail", "app", server_stream=True)
    for n in range(5):
        pair.server.send_item(pair.now, tail, f"line {n}")
    call, _ = served.start("Logs.store", client_stream=True)
    pair.client.send_item(pair.now, call, bytes(100))
    pair.pump()
    pair.advance(3.0)
    numbers = served.snapshot()
    assert numbers["load"]["streams"] == 2
    assert numbers["methods"]["Logs.tail"]["items_sent"] == 5
    assert numbers["methods"]["Logs.tail"]["item_bytes_sent"] == 5 * (16 + 7)
    assert numbers["methods"]["Logs.store"]["items_received"] == 0  # not taken yet
    assert numbers["methods"]["Logs.store"]["item_bytes_received"] == 116
    assert numbers["streams"][0] == {
        "age": 3.0,
        "method": "Logs.tail",
        "peer": "",
        "items_received": 0,
        "items_sent": 5,
    }
    served.dispatcher.finish(served.jobs[0], None)
    numbers = served.snapshot()
    assert numbers["load"]["streams"] == 1
    assert numbers["methods"]["Logs.tail"]["items_sent"] == 5
    assert numbers["calls"]["items_sent"] == 5
    assert numbers["slowest"] == []  # however long a stream lasts


def test_debug_page_shows_running_streams() -> None:
    served = Served()
    served.start("Logs.tail", "app", server_stream=True)
    numbers = {
        **served.snapshot(),
        "time": 0.0,
        "uptime": 1.0,
        "draining": False,
        "limits": {},
        "health": {"": "serving"},
    }
    numbers["load"]["abandoned"] = 0
    making = as_page(describe(numbers, Introspection(served.dispatcher).services()))
    try:
        while True:
            next(making)
    except StopIteration as stop:
        page = bytes(stop.value.body).decode()
    assert "Running streams" in page
    assert "Logs.tail" in page.partition("Running streams")[2]


@pytest.mark.parametrize("error", [None, NotFound("gone")])
def test_access_log_tells_the_items(caplog: pytest.LogCaptureFixture, error: Any) -> None:
    caplog.set_level(logging.INFO, "rpc_test")
    served = Served(AccessLog(get_log("rpc_test")))
    pair = served.pair
    _, tail = served.start("Logs.tail", "app", server_stream=True)
    pair.server.send_item(pair.now, tail, "12345")
    served.dispatcher.finish(served.jobs[0], None, error)
    (line,) = caplog.messages
    assert line.endswith(" bytes 1 items sent 0 received")
    assert (" ok " if error is None else " not_found ") in line


def test_trace_of_streams_is_repeated_by_the_core_alone() -> None:
    pair = Pair()
    pair.client = TracedClientConnection(ClientConfig(), now=START)
    pair.server = TracedServerConnection(now=START)
    pair.up.sender = pair.down.receiver = pair.client
    pair.up.receiver = pair.down.sender = pair.server
    pair.open()
    call, served = pair.request("S.m", client_stream=True, server_stream=True, idle_timeout=5.0)
    for n in range(500):
        if call.sending.writable:
            pair.client.send_item(pair.now, call, [n, "x" * 100])
        pair.pump()
        while served.receiving.items:
            value = served.receiving.take()
            if served.receiving.due:
                pair.server.grant(pair.now, served)
            if served.sending.writable:
                pair.server.send_item(pair.now, served, value)
            pair.pump()
        while call.receiving.items:
            pair.client.take_item(pair.now, call)
    pair.client.end_items(pair.now, call)
    pair.respond(served, "done")
    for end in (pair.client, pair.server):
        saved = Trace.from_lines(end.trace.to_lines())
        assert any(step["do"] == "grant" for step in saved.steps)
        assert replay(saved).steps == saved.steps


# In place, in a loop of one's own


class InPlace:
    def __init__(self) -> None:
        self.closed = 0

    def count(self, n: int) -> Iterator[str]:
        try:
            for number in range(n):
                yield f"{number:100}"
        finally:
            self.closed += 1

    def fails(self) -> Iterator[int]:
        yield 1
        raise NotFound("no more")

    def total(self, numbers: Iterable[int]) -> int:
        return sum(numbers)


def in_place() -> tuple[Pair, InPlace]:
    pair = Pair().open()
    service = InPlace()
    dispatcher = Dispatcher(clock=lambda: pair.now)
    dispatcher.register(service)
    pair.on_server_event = lambda event: dispatcher.serve([event])
    return pair, service


def test_dispatcher_sends_items_as_long_as_the_peer_takes_them() -> None:
    pair, service = in_place()
    call = pair.call("InPlace.count", 1000, server_stream=True)
    taken = []
    while not pair.ends(call) or call.receiving.items:
        assert call.receiving.items
        assert len(call.receiving.items) < 200  # a window
        taken.append(int(pair.client.take_item(pair.now, call)))
        pair.pump()
    assert taken == list(range(1000))
    assert service.closed == 1
    assert not len(pair.server.calls)


def test_dispatcher_closes_a_generator_that_nobody_wants() -> None:
    pair, service = in_place()
    call = pair.call("InPlace.count", 1000, server_stream=True)
    pair.client.cancel(pair.now, call)
    pair.pump()
    assert service.closed == 1
    assert not len(pair.server.calls)


def test_dispatcher_answers_what_it_cannot_serve_in_place() -> None:
    pair, _ = in_place()
    call = pair.call("InPlace.fails", server_stream=True)
    assert pair.client.take_item(pair.now, call) == 1
    assert isinstance(pair.outcome(call), NotFound)
    error = pair.outcome(pair.call("InPlace.total", client_stream=True))
    assert isinstance(error, Unimplemented)
    assert "cannot wait" in error.message
