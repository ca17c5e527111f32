"""What both ends share: buffers, wake-ups, the order of events, and that inputs never raise."""

from typing import Any

import pytest

from rpc_fuzz.pair import Pair, termination
from rpc_fuzz.wire import (
    CODECS,
    ERROR,
    GOAWAY,
    PONG,
    START,
    Wire,
    frame,
    frames_in,
    line,
    open_client,
    open_server,
    options,
)
from rpc_proto import (
    CallCancelled,
    CallFailed,
    ClientConfig,
    ClientConnection,
    Codec,
    DataLoss,
    RemoteProtocolError,
    ServerConfig,
    ServerConnection,
    State,
)
from support.driving import caused

ENDS = pytest.mark.parametrize("make", [open_client, open_server], ids=["client", "server"])


@ENDS
def test_data_to_send_is_given_once(make: Any) -> None:
    end = make()
    end.receive_data(START, frame(5, 1))
    assert end.outbound == 16
    assert len(end.data_to_send()) == 16
    assert end.outbound == 0
    assert end.data_to_send() == b""
    assert end.next_buffer() == b""


def test_large_buffers_stay_apart_and_small_ones_are_joined() -> None:
    client = open_client()
    large = bytes(70_000)
    for body in (b"a", large, b"b"):
        client.start_call(START, "S.m", (body,))
    buffers = []
    while client.outbound:
        buffers.append(client.next_buffer())
    assert [buffer is large for buffer in buffers] == [False, True, False]
    assert [one.body for one in frames_in(b"".join(buffers))] == [b"a", large, b"b"]


@ENDS
def test_missing_tells_how_much_of_a_frame_is_to_come(make: Any) -> None:
    end = make()
    assert end.missing == 0
    end.receive_data(START, frame(0x80, 0, b"", bytes(1000))[:100])
    assert end.missing == 916
    assert ClientConnection(now=START).missing == 0


def test_what_a_command_causes_is_told_at_once() -> None:
    pair = Pair().open()
    _, served = pair.request("S.m")
    pair.shut_server(60.0)
    version = pair.server.version
    pair.server.send_response(pair.now, served, 1)
    assert pair.server.state is State.CLOSING
    assert pair.server.version > version
    assert termination(pair.server.events()) is None
    assert pair.server.events() == []


@pytest.mark.parametrize(
    "body", [[1, "m"], ["c", 1], [None, None], ["c"], ["c", "m", 1], "text", {}]
)
@pytest.mark.parametrize("codec", CODECS)
@ENDS
def test_goaway_that_does_not_say_code_and_message_is_a_violation(
    make: Any, body: Any, codec: str
) -> None:
    end = make(codec=codec)
    events = caused(end.receive_data, START, frame(GOAWAY, 0, b"", Wire(codec).encode(body)))
    assert isinstance(termination(events), RemoteProtocolError)


@pytest.mark.parametrize("body", [[1, "m", None], ["c", 1, None], ["c", "m"], [], 5, None])
def test_error_that_does_not_say_code_and_message_is_data_loss(body: Any) -> None:
    client = open_client()
    call = client.start_call(START, "S.m")
    [event] = caused(client.receive_data, START, frame(ERROR, call.id, b"", Wire().encode(body)))
    assert isinstance(event, CallFailed)
    assert type(event.error) is DataLoss


def test_codec_that_raises_whatever_it_likes_lets_nothing_escape() -> None:
    class Odd(Exception):
        pass

    def fail(_: Any) -> Any:
        raise Odd

    def encode(value: Any) -> bytes:
        return repr(value).encode()

    odd = Codec("odd", encode, fail)
    server = ServerConnection(ServerConfig(codecs=(odd,)), now=START)
    server.receive_data(START, line(options(codec="odd")))
    events = caused(server.receive_data, START, frame(1, 1, b"['S.m']"))
    assert isinstance(termination(events), RemoteProtocolError)


@ENDS
def test_pong_that_nobody_asked_for_changes_nothing(make: Any) -> None:
    end = make()
    assert caused(end.receive_data, START, frame(PONG, 99)) == []
    assert end.ignored == 0


@pytest.mark.parametrize("seconds", [3600.0, -3600.0])
def test_ends_compare_no_clocks_with_each_other(seconds: float) -> None:
    # Each end has a clock of its own: what travels is how long, never when.
    client = open_client(ClientConfig(ping_interval=None))
    server = open_server(ServerConfig(ping_interval=None), now=START + seconds)
    client.start_call(START, "S.m", deadline=START + 2.0)
    [event] = caused(server.receive_data, START + seconds, client.data_to_send())
    assert event.call.deadline == START + seconds + 2.0


def test_next_timeout_is_later_after_every_wake_up_of_a_busy_pair() -> None:
    pair = Pair(
        ClientConfig(ping_interval=1.0), ServerConfig(ping_interval=1.5, idle_timeout=40.0)
    ).open()
    pair.on_server_event = lambda event: (
        pair.server.conclude(pair.now, event.call) if isinstance(event, CallCancelled) else None
    )
    calls = [pair.call("S.m", timeout=0.25 * (number + 1)) for number in range(50)]
    steps = 0
    while pair.step():  # each step checks it
        steps += 1
    assert steps > 50
    assert pair.client.state is State.CLOSED
    assert {len(pair.ends(call)) for call in calls} == {1}
