"""Code of the application that raises what is no Exception, where the protocol runs it."""

import json
from collections.abc import Generator
from contextlib import suppress
from typing import Any

import pytest

from rpc_fuzz.pair import Host, Pair, termination
from rpc_fuzz.wire import START, line, options
from rpc_proto import (
    CallError,
    ClientConfig,
    Codec,
    HttpServed,
    Internal,
    Peer,
    ServerConfig,
    ServerConnection,
    ServerPort,
    State,
)
from rpc_proto.http import Promise, Request, Response
from rpc_proto.http.making import Making
from support.driving import caused

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


class Own(BaseException):
    """What no `except Exception` catches."""

    def __str__(self) -> str:
        raise KeyboardInterrupt


KINDS = [Own, GeneratorExit, SystemExit, KeyboardInterrupt]


def fail(kind: type[BaseException]) -> Any:
    raise kind


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> type[BaseException]:
    return request.param


@pytest.mark.fault(69)
def test_authenticate_that_raises_anything_refuses(kind: type[BaseException]) -> None:
    def authenticate(token: str | None, peer: Peer) -> bool:
        raise kind

    server = ServerConnection(ServerConfig(authenticate=authenticate), now=START)
    error = termination(caused(server.receive_data, START, line(options())))
    assert (error.code, type(error.__cause__)) == ("internal", kind)
    assert server.state is State.CLOSING


def make(kind: type[BaseException]) -> Generator[None, None, Response]:
    yield
    raise kind


@pytest.mark.fault(69)
@pytest.mark.parametrize(
    "answer",
    [
        lambda kind, now: fail(kind),
        lambda kind, now: Promise(now, lambda now: fail(kind)),
        lambda kind, now: Making(make(kind), now),
    ],
    ids=["at once", "late", "in pieces"],
)
def test_application_that_raises_anything_gets_500(answer: Any, kind: type[BaseException]) -> None:
    def application(request: Request, now: float) -> Any:
        return answer(kind, now)

    server = ServerPort(now=START, application=application)
    events = [e for e in caused(server.receive_data, START, GET) if isinstance(e, HttpServed)]
    assert [(event.status, type(event.error)) for event in events] == [(500, kind)]
    assert server.data_to_send().startswith(b"HTTP/1.1 500 ")


@pytest.mark.fault(69)
def test_promise_that_raises_when_it_is_abandoned_is_told(kind: type[BaseException]) -> None:
    promise = Promise(START + 9, lambda now: Response(), lambda: fail(kind))
    server = ServerPort(now=START, application=lambda request, now: promise)
    server.receive_data(START, GET)
    served = caused(server.connection_lost, START)[0]
    assert isinstance(served, HttpServed)
    assert type(served.error) is kind


class Service:
    def echo(self, value: Any) -> Any:
        return value

    def fail(self, name: str) -> None:
        raise {kind.__name__: kind for kind in KINDS}[name]

    def coded(self) -> None:
        raise CallError(Unprintable())  # type: ignore[arg-type]


class Unprintable:
    def __str__(self) -> str:
        raise ValueError


def hosted(codec: Codec, **options: Any) -> tuple[Pair, Host]:
    pair = Pair(
        ClientConfig(codec=Codec(codec.name, PLAIN.encode, PLAIN.decode), ping_interval=None),
        ServerConfig(codecs=(codec,), ping_interval=None),
    ).open()
    return pair, Host(pair, Service(), **options)


PLAIN = Codec("own", lambda value: json.dumps(value).encode(), json.loads)


def raising(kind: type[BaseException]) -> Codec:
    """Return a codec that raises where it meets the string "decode" or "encode"."""

    def decode(data: bytes) -> Any:
        return fail(kind) if b"decode" in data else PLAIN.decode(data)

    def encode(value: Any) -> bytes:
        return fail(kind) if value == "encode" else PLAIN.encode(value)

    return Codec("own", encode, decode)


@pytest.mark.fault(69)
@pytest.mark.parametrize("what", ["decode", "encode"])
def test_call_whose_codec_raises_anything_is_answered_before_that_goes_on(
    what: str, kind: type[BaseException]
) -> None:
    pair, host = hosted(raising(kind))
    call = pair.client.start_call(pair.now, "Service.echo", (what,))
    with suppress(kind):
        pair.pump()
        assert what == "decode"
        assert [type(error) for error in host.failures] == [kind]
    pair.pump()
    error = pair.outcome(call)
    assert type(error) is Internal
    assert error.maybe_executed is (what == "encode")
    assert (host.dispatcher.running, pair.server.calls_in_flight) == (0, 0)
    assert pair.outcome(pair.call("Service.echo", 1)) == 1


@pytest.mark.fault(69)
def test_handler_that_raises_anything_in_a_small_loop_is_answered_before_that_goes_on(
    kind: type[BaseException],
) -> None:
    pair, host = hosted(PLAIN)
    pair.on_server_event = None
    call, _ = pair.request("Service.fail", kind.__name__)
    with pytest.raises(kind):
        host.dispatcher.serve(pair.server_events)
    pair.pump()
    assert pair.outcome(call).code == "unknown"
    assert (host.dispatcher.running, pair.server.calls_in_flight) == (0, 0)


@pytest.mark.fault(142)
def test_code_that_has_no_text_is_unknown() -> None:
    pair, host = hosted(PLAIN)
    assert pair.outcome(pair.call("Service.coded")).code == "unknown"
    assert (host.dispatcher.running, pair.server.calls_in_flight) == (0, 0)


@pytest.mark.fault(69)
def test_call_that_waits_leaves_its_queue_and_its_slot_though_a_callback_of_its_end_raises(
    kind: type[BaseException],
) -> None:
    pair, host = hosted(PLAIN, slow=["Service.echo"], max_concurrency=1)
    first = pair.call("Service.echo", 1)
    call = pair.call("Service.echo", 2)
    waiting = pair.requests()[-1]
    waiting.job.on_cancel(lambda: fail(kind))
    pair.client.cancel(pair.now, call)
    pair.report(pair.client)
    pair.pump()
    assert [type(error) for error in host.failures] == [kind]
    assert waiting.job is None
    assert (host.dispatcher.queued, pair.server.calls_in_flight) == (0, 1)
    host.finish()
    assert pair.outcome(first) == 1
