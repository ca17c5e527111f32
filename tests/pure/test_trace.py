"""Traces: what went through a connection can be saved, loaded and repeated."""

import json
from typing import Any

import pytest

from rpc_fuzz.pair import Host, Pair
from rpc_fuzz.wire import CODECS, START, Wire, frame, line, options
from rpc_proto import (
    CallError,
    ClientConfig,
    Codec,
    LocalProtocolError,
    NotFound,
    Peer,
    RequestReceived,
    ServerConfig,
    Unavailable,
    find_codec,
)
from rpc_proto.http import Promise, Request, Response
from rpc_proto.trace import (
    Trace,
    TracedClientConnection,
    TracedServerConnection,
    TracedServerPort,
    replay,
)
from support.driving import caused


def traced(
    client: ClientConfig | None = None, server: ServerConfig | None = None, **settings: Any
) -> Pair:
    """Two traced ends, joined."""
    pair = Pair(client, server, **settings)
    pair.client = TracedClientConnection(pair.client._config, now=START)
    pair.server = TracedServerConnection(server, now=START, peer=Peer("here"))
    pair.up.sender = pair.down.receiver = pair.client
    pair.up.receiver = pair.down.sender = pair.server
    return pair.open()


def assert_repeats(pair: Pair) -> None:
    """What both ends did, saved and loaded, happens again."""
    for end in (pair.client, pair.server):
        saved = list(end.trace.to_lines())
        loaded = Trace.from_lines(saved)
        assert loaded.steps == end.trace.steps
        assert replay(loaded, end.trace.config).steps == end.trace.steps


class Work:
    def add(self, a: int, b: int) -> int:
        return a + b

    def echo(self, value: Any = None) -> Any:
        return value

    def fail(self) -> None:
        raise NotFound("nothing", {"key": [1, 2]})

    def bad(self) -> Any:
        return object()

    def wait(self) -> None: ...


@pytest.mark.parametrize("codec", CODECS)
def test_calls_of_every_kind_repeat(codec: str) -> None:
    pair = traced(codec=codec)
    Host(pair, Work())
    pair.call("Work.add", 1, 2, timeout=5.0)
    pair.call("Work.add", kwargs={"a": 1, "b": 2}, metadata={"k": "v"})
    for value in (None, b"raw", "text", 1.5, [1, {"a": None}], {"b": [True]}):
        pair.call("Work.echo", value)
    pair.call("Work.echo", 1, one_way=True)
    pair.call("Work.fail")
    pair.call("Work.bad")
    pair.call("Work.nope")
    pair.call("Work.add", "no", "numbers")
    assert_repeats(pair)


def test_steps_are_only_the_outermost_calls() -> None:
    pair = traced()
    Host(pair, Work())
    pair.call("Work.nope")
    pair.lose()
    done = [step["do"] for step in pair.server.trace.steps]
    assert done.count("refuse") == 1
    assert "send_error" not in done
    assert done[-2:] == ["connection_lost", "events"]


def test_cancellation_deadlines_and_shutdown_repeat() -> None:
    pair = traced()
    Host(pair, Work(), slow=["Work.wait"])
    late = pair.call("Work.wait", timeout=1.0)
    given_up = pair.call("Work.wait")
    pair.client.cancel(pair.now, given_up)
    pair.report(pair.client)
    pair.pump()
    pair.advance(2.0)
    pair.call("Work.wait")
    pair.shut_server(grace=1.0)
    pair.advance(10.0)
    assert isinstance(pair.outcome(late), CallError)
    assert_repeats(pair)


def test_arguments_that_cannot_be_encoded_repeat() -> None:
    pair = traced()
    with pytest.raises(CallError, match="cannot be encoded"):
        pair.client.start_call(pair.now, "Work.echo", (object(),))
    assert_repeats(pair)


def test_wrong_use_repeats() -> None:
    pair = traced()
    with pytest.raises(LocalProtocolError):
        pair.client.start_call(pair.now, "")
    with pytest.raises(LocalProtocolError):
        pair.server.turn_away(pair.now, "unavailable", "too late")
    assert_repeats(pair)


def test_error_with_details_that_cannot_be_encoded_repeats() -> None:
    pair = traced()
    _, served = pair.request("Work.wait")
    pair.fail(served, NotFound("nothing", object()))
    assert_repeats(pair)


def test_reply_metadata_repeats() -> None:
    pair = traced()
    call, served = pair.request("Work.wait")
    served.reply_metadata = {"seen": "yes"}
    pair.respond(served, 1)
    assert pair.ends(call)[0].metadata == {"seen": "yes"}
    assert_repeats(pair)


def test_ids_that_are_used_again_repeat() -> None:
    server = TracedServerConnection(ServerConfig(ping_interval=None), now=START)
    wire = Wire()
    server.receive_data(START, line(options()))
    data = wire.request(1) + wire.cancel(1)
    first = caused(server.receive_data, START + 1, data)[0].call
    server.conclude(START + 2, first)
    second = caused(server.receive_data, START + 3, wire.request(1))[0].call
    server.send_response(START + 4, first, "late")
    server.send_response(START + 5, second, "in time")
    server.data_to_send()
    assert replay(server.trace).steps == server.trace.steps


def test_violation_repeats() -> None:
    server = TracedServerConnection(now=START)
    server.receive_data(START, line(options()) + frame(0x0C))
    server.data_to_send()
    server.receive_eof(START + 1)
    assert replay(server.trace).steps == server.trace.steps


def test_peer_that_is_turned_away_repeats() -> None:
    server = TracedServerConnection(now=START)
    server.turn_away(START, "unavailable", "full")
    server.receive_data(START, line(options()))
    server.data_to_send()
    assert replay(server.trace).steps == server.trace.steps


def test_http_repeats_with_the_same_application() -> None:
    def application(request: Request, now: float) -> Response | Promise:
        if request.path == "/later":
            return Promise(now + 1.0, lambda now: Response.text("late"))
        return Response.text(request.path)

    server = TracedServerPort(now=START, application=application)
    server.receive_data(START, b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n")
    server.receive_data(START, b"GET /later HTTP/1.1\r\nHost: x\r\n\r\n")
    server.handle_timeout(START + 1.0)
    server.receive_data(START + 2.0, b"CONNECT /rpc HTTP/1.0\n\n" + line(options()))
    assert server.data_to_send().count(b"HTTP/1.1 200") == 3
    loaded = Trace.from_lines(server.trace.to_lines())
    assert replay(loaded, application=application).steps == server.trace.steps


def test_settings_travel_with_the_trace() -> None:
    config = ServerConfig(token="secret", max_calls=1, codecs=("json",))
    pair = traced(ClientConfig(token="secret", codec="json"), config)
    pair.call("Work.wait")
    pair.call("Work.wait")
    for end in (pair.client, pair.server):
        loaded = Trace.from_lines(end.trace.to_lines())
        assert replay(loaded).steps == end.trace.steps


def test_codec_of_ones_own_is_given_to_replay() -> None:
    json_codec = find_codec("json")
    own = Codec("own", json_codec.encode, json_codec.decode)
    config = ServerConfig(codecs=(own,))
    pair = traced(ClientConfig(codec=own), config)
    Host(pair, Work())
    pair.call("Work.add", 1, 2)
    assert_repeats(pair)


def test_back_pressure_repeats() -> None:
    pair = traced(ClientConfig(high_water=1024), ServerConfig(high_water=1024, write_timeout=5.0))
    Host(pair, Work())
    pair.down.held = True
    for _ in range(5):
        pair.call("Work.echo", "x" * 800)
    pair.server.next_buffer()
    pair.advance(20.0)
    assert_repeats(pair)


def test_different_core_gives_a_different_trace() -> None:
    pair = traced()
    Host(pair, Work())
    pair.call("Work.add", 1, 2)
    loaded = Trace.from_lines(pair.server.trace.to_lines())
    answer = next(step for step in loaded.steps if step["do"] == "send_response")
    answer["value"]["encoded"] = "BA=="  # 4, as msgpack says it
    assert replay(loaded).steps != pair.server.trace.steps


def test_each_line_is_json_of_one_step() -> None:
    pair = traced()
    lines = list(pair.server.trace.to_lines())
    assert len(lines) == 1 + len(pair.server.trace.steps)
    start, first = json.loads(lines[0]), json.loads(lines[1])
    assert (start["end"], start["now"], start["address"]) == ("server", START, "here")
    assert first["do"] == "receive_data" or first["do"] == "data_to_send"


def test_traced_connection_is_one() -> None:
    pair = traced()
    _, served = pair.request("Work.wait")
    assert isinstance(pair.server_events[-1], RequestReceived)
    pair.lose()
    assert served.ended
    assert isinstance(pair.client_events[-2].error, Unavailable)
