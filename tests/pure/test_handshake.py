"""The option handshake when all goes well, and what is agreed in it."""

import json
from typing import Any

import pytest

from rpc_fuzz.pair import Pair, only, termination
from rpc_fuzz.wire import CODECS, START, answer, line, open_client, options, server_line
from rpc_proto import (
    CallCompleted,
    CallFailed,
    ClientConfig,
    ClientConnection,
    Codec,
    HandshakeCompleted,
    HandshakeError,
    LocalProtocolError,
    Peer,
    ServerConfig,
    ServerConnection,
    State,
)
from rpc_proto.wire.handshake import MAGIC, LineReader, agree_ping, parse_answer, parse_options
from support.driving import caused


@pytest.mark.parametrize("codec", CODECS)
def test_both_ends_agree_on_codec_limits_and_ping(codec: str) -> None:
    pair = Pair(
        ClientConfig(codec=codec, max_header=300, max_body=9000, ping_interval=7.0),
        ServerConfig(max_header=400, max_body=10_000, max_calls=5, ping_interval=9.0),
    ).open()
    agreed = only(pair.client_events, HandshakeCompleted).agreed
    assert agreed == only(pair.server_events, HandshakeCompleted).agreed
    assert agreed == (codec, 400, 10_000, 5, 7000, frozenset({"streams"}))
    assert pair.server._send_limits == (300, 9000)


def test_line_of_the_client_is_what_the_specification_says() -> None:
    client = ClientConnection(ClientConfig(token="secret"), now=START)
    fields = json.loads(client.data_to_send())
    assert fields == {
        "magic": MAGIC,
        "version": 1,
        "codec": "msgpack",
        "token": "secret",
        "limits": {"header": 16384, "body": 16777216},
        "timeouts": {"ping": 20000},
        "features": ["streams"],
    }


def test_fields_that_may_be_left_out_have_their_defaults() -> None:
    parsed = parse_options(line(options(limits=..., timeouts=...)))
    assert parsed == ("msgpack", None, 65535, 2**32 - 1, None, frozenset())
    answered = parse_answer(line(answer(limits=..., timeouts=...)))
    assert answered == ("msgpack", 65535, 2**32 - 1, 2**31, None, frozenset())


def test_fields_that_are_unknown_are_ignored() -> None:
    assert parse_options(line(options(future={"a": [1]}))) == parse_options(line(options()))
    assert parse_answer(line(answer(future=1))) == parse_answer(line(answer()))


@pytest.mark.parametrize(
    ("ours", "theirs", "agreed"),
    [
        (None, None, None),
        (5.0, None, 5000),
        (None, 5000, 5000),
        (5.0, 3000, 3000),
        (5.0, 1, 1000),
        (1.5, 2000, 1500),
    ],
)
def test_smaller_ping_interval_is_in_force(ours: Any, theirs: Any, agreed: Any) -> None:
    assert agree_ping(ours, theirs) == agreed


@pytest.mark.parametrize("named", [["streams"], ["later", "streams", "streams", "x" * 64]])
def test_features_that_both_lines_name_are_in_force(
    monkeypatch: pytest.MonkeyPatch, named: list[str]
) -> None:
    monkeypatch.setattr("rpc_proto.wire.handshake.FEATURES", frozenset(["streams", "other"]))
    server = ServerConnection(now=START)
    agreed = only(
        caused(server.receive_data, START, line(options(features=named))), HandshakeCompleted
    ).agreed
    assert agreed.features == {"streams"}
    assert server_line(server.data_to_send())["features"] == ["streams"]
    client = open_client(features=named)
    assert client.agreed is not None
    assert client.agreed.features == {"streams"}


def test_client_names_its_features(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rpc_proto.connection.client.FEATURES", frozenset(["streams", "other"]))
    fields = json.loads(ClientConnection(now=START).data_to_send())
    assert fields["features"] == ["other", "streams"]


@pytest.mark.parametrize("theirs", [{}, {"features": []}, {"features": ["later"]}])
def test_features_of_one_end_are_not_in_force(theirs: Any) -> None:
    server = ServerConnection(now=START)
    [event] = caused(server.receive_data, START, line(options(**theirs)))
    assert isinstance(event, HandshakeCompleted)
    assert event.agreed.features == frozenset()
    assert "features" not in server_line(server.data_to_send())


def test_client_sends_no_frame_before_it_is_accepted() -> None:
    client = ClientConnection(now=START)
    client.data_to_send()
    call = client.start_call(START, "Arith.add", (1, 2))
    assert client.data_to_send() == b""
    assert not call.sent


def test_calls_that_were_started_early_are_sent_in_order() -> None:
    pair = Pair()
    calls = [pair.client.start_call(pair.now, f"S.m{number}") for number in range(5)]
    pair.open()
    assert [served.method for served in pair.requests()] == [call.method for call in calls]


def test_early_one_way_call_ends_when_it_is_sent() -> None:
    pair = Pair()
    call = pair.client.start_call(pair.now, "Log.line", one_way=True)
    assert pair.ends(call) == []
    pair.open()
    assert isinstance(pair.ends(call)[0], CallCompleted)


def test_queue_of_early_calls_is_bounded() -> None:
    client = ClientConnection(ClientConfig(max_queued_calls=2), now=START)
    for _ in range(2):
        client.start_call(START, "S.m")
    with pytest.raises(Exception, match="max_queued_calls") as caught:
        client.start_call(START, "S.m")
    assert caught.value.maybe_executed is False


def test_early_call_that_cannot_be_sent_fails_by_itself() -> None:
    pair = Pair(server=ServerConfig(max_body=8192))
    large = pair.client.start_call(pair.now, "S.m", ("x" * 9000,))
    odd = pair.client.start_call(pair.now, "S.\ud800")
    small = pair.client.start_call(pair.now, "S.m")
    pair.open()
    assert pair.outcome(large).code == "resource_exhausted"
    assert pair.outcome(odd).code == "invalid_argument"
    assert small.sent


# Tokens


@pytest.mark.parametrize("shown", [None, "", "wrong", "secret\0", "Secret"])
def test_wrong_token_is_refused(shown: str | None) -> None:
    server = ServerConnection(ServerConfig(token="secret"), now=START)
    error = termination(caused(server.receive_data, START, line(options(token=shown))))
    assert error.code == "unauthenticated"
    assert server_line(server.data_to_send())["error"]["code"] == "unauthenticated"


def test_right_token_is_accepted() -> None:
    Pair(ClientConfig(token="geh\u00e4im"), ServerConfig(token="geh\u00e4im")).open()


def test_client_learns_that_its_token_was_refused() -> None:
    pair = Pair(server=ServerConfig(token="secret"))
    call = pair.client.start_call(pair.now, "S.m")
    pair.pump()
    error = termination(pair.client_events)
    assert isinstance(error, HandshakeError)
    assert error.code == "unauthenticated"
    assert pair.outcome(call).code == "unauthenticated"
    assert pair.outcome(call).maybe_executed is False


def test_authenticate_sees_token_and_peer_and_names_the_identity() -> None:
    seen = []

    def authenticate(token: str | None, peer: Peer) -> str:
        seen.append((token, peer.address))
        return "alice"

    pair = Pair(
        ClientConfig(token="t"), ServerConfig(authenticate=authenticate), peer=Peer("1.2.3.4:5")
    ).open()
    assert seen == [("t", "1.2.3.4:5")]
    assert pair.server.peer == Peer("1.2.3.4:5", None, "alice")


@pytest.mark.parametrize("answer_of", [False, None, "", 0])
def test_falsy_answer_of_authenticate_refuses(answer_of: Any) -> None:
    server = ServerConnection(ServerConfig(authenticate=lambda *_: answer_of), now=START)
    error = termination(caused(server.receive_data, START, line(options())))
    assert error.code == "unauthenticated"


def test_failure_of_authenticate_refuses_without_its_text() -> None:
    def authenticate(token: str | None, peer: Peer) -> bool:
        raise RuntimeError("the password file is at /etc")

    server = ServerConnection(ServerConfig(authenticate=authenticate), now=START)
    error = termination(caused(server.receive_data, START, line(options())))
    assert error.code == "internal"
    assert isinstance(error.__cause__, RuntimeError)
    assert b"password" not in server.data_to_send()


def test_coroutine_function_as_authenticate_lets_nobody_in() -> None:
    class Later:
        def __await__(self) -> Any:
            return iter(())

    server = ServerConnection(ServerConfig(authenticate=lambda *_: Later()), now=START)
    assert termination(caused(server.receive_data, START, line(options()))).code == "internal"


def test_token_that_is_too_long_is_refused_before_anything_is_sent() -> None:
    with pytest.raises(HandshakeError, match="token"):
        ClientConnection(ClientConfig(token="x" * 5000), now=START)


# Codecs of the user


def test_codec_of_the_user_is_agreed_by_its_name() -> None:
    reverse = Codec(
        "reverse", lambda value: repr(value).encode()[::-1], lambda data: eval(data[::-1])
    )
    pair = Pair(ClientConfig(codec=reverse), ServerConfig(codecs=(reverse,))).open()
    call, served = pair.request("S.m", 1, "two")
    assert reverse.decode(served.body) == (1, "two")
    pair.respond(served, {"a": 1})
    assert pair.outcome(call) == {"a": 1}


# Turning away, and ends


def test_peer_is_turned_away_before_its_options() -> None:
    server = ServerConnection(now=START)
    assert caused(server.turn_away, START, "resource_exhausted", "too many connections") == []
    events = caused(server.receive_data, START, line(options()))
    assert isinstance(termination(events), HandshakeError)
    assert server_line(server.data_to_send())["error"]["code"] == "resource_exhausted"
    assert server.state is State.CLOSING


def test_silent_peer_that_is_turned_away_is_told_so_after_a_second() -> None:
    server = ServerConnection(now=START)
    server.turn_away(START, "resource_exhausted", "too many connections")
    assert server.next_timeout() == START + 1
    assert isinstance(termination(caused(server.handle_timeout, START + 1)), HandshakeError)
    assert server_line(server.data_to_send())["error"]["code"] == "resource_exhausted"


def test_peer_that_has_begun_is_turned_away_at_once() -> None:
    server = ServerConnection(now=START)
    server.receive_data(START, b"{")
    assert isinstance(
        termination(caused(server.turn_away, START, "unavailable", "full")), HandshakeError
    )


def test_peer_that_is_in_cannot_be_turned_away() -> None:
    pair = Pair().open()
    with pytest.raises(LocalProtocolError):
        pair.server.turn_away(pair.now, "unavailable", "")
    assert pair.server.state is State.OPEN


def test_server_that_shuts_down_refuses_those_in_the_handshake() -> None:
    pair = Pair()
    pair.shut_server()
    assert termination(pair.client_events).code == "unavailable"


def test_client_that_shuts_down_in_the_handshake_fails_its_calls() -> None:
    client = ClientConnection(now=START)
    call = client.start_call(START, "S.m")
    events = caused(client.shutdown, START)
    assert only(events, CallFailed).call is call
    assert termination(events) is None
    assert client.state is State.CLOSING


def test_loss_in_the_handshake_is_a_handshake_error() -> None:
    client = ClientConnection(now=START)
    client.receive_data(START, b"{")
    assert isinstance(termination(caused(client.connection_lost, START)), HandshakeError)
    assert client.state is State.CLOSED


def test_handshake_timer_is_gone_once_open() -> None:
    client = open_client(ClientConfig(ping_interval=None))
    assert client.next_timeout() is None


def test_line_reader_keeps_what_follows_the_line() -> None:
    reader = LineReader()
    assert reader.feed(b'{"a":') is None
    assert reader.started
    assert reader.feed(b"1}\nrest\n") == (b'{"a":1}', b"rest\n")
