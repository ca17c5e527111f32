"""Faults in the option handshake: what arrives is no option line, a bad one, late, or cut short."""

import gc
import json

import pytest

from rpc_fuzz.pair import Pair, only, outcome, termination
from rpc_fuzz.wire import CODECS, START, Wire, answer, line, open_server, options, server_line
from rpc_proto import (
    CallFailed,
    ClientConfig,
    ClientConnection,
    HandshakeCompleted,
    HandshakeError,
    RemoteProtocolError,
    RequestReceived,
    ServerConfig,
    ServerConnection,
    State,
)
from rpc_proto.wire.handshake import MAX_LINE, _unique
from support.driving import caused

GARBAGE = {
    "random bytes": b"\x00\xff\xfe garbage",
    "TLS hello": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "newline": b"\n",
    "a frame": b"\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01",
    "array": b"[1, 2]\n",
    "string": b'"text"\n',
}

BAD_LINES = {
    "not JSON": b"{magic}\n",
    "empty": b"{}\n",
    "not UTF-8": b'{"magic": "\xff"}\n',
    "trailing value": line(options())[:-1] + b"1\n",
    "wrong magic": line(options(magic=1)),
    "magic a float": line(options(magic=float(options()["magic"]))),
    "features null": line(options(features=None)),
    "features a string": line(options(features="streams")),
    "feature a number": line(options(features=["streams", 1])),
    "feature empty": line(options(features=[""])),
    "feature too long": line(options(features=["x" * 65])),
    "too many features": line(options(features=[f"f{number}" for number in range(33)])),
    "version infinite": line(options()).replace(b'"version":1', b'"version":1e999'),
    "codec missing": line(options(codec=...)),
    "codec a number": line(options(codec=7)),
    "codec null": line(options(codec=None)),
    "token a number": line(options(token=7)),
    "token too long": line(options(token="x" * 2049)),
    "token of half a pair": line(options(token="\ud800")),
    "half a pair in a field that is unknown": line(options(later=["\udfff"])),
    "limits null": line(options(limits=None)),
    "timeouts null": line(options(timeouts=None)),
    "limit null": line(options(limits={"body": None})),
    "limits a list": line(options(limits=[1, 2])),
    "limit negative": line(options(limits={"header": -1})),
    "limit a bool": line(options(limits={"body": True})),
    "limit a float": line(options(limits={"body": 65536.0})),
    "limit a string": line(options(limits={"body": "65536"})),
    "limit too small": line(options(limits={"body": 1})),
    "limit too large": line(options(limits={"body": 2**32})),
    "limit of 4000 digits": line(options(limits={"body": 0})).replace(
        b'"body":0', b'"body":' + b"9" * 3900
    ),
    "timeouts a number": line(options(timeouts=5)),
    "ping negative": line(options(timeouts={"ping": -1})),
    "ping NaN": line(options(timeouts={"ping": float("nan")})),
    "ping infinite": line(options(timeouts={"ping": float("inf")})),
    "ping a float": line(options(timeouts={"ping": 1.5})),
    "ping huge": line(options(timeouts={"ping": 2**41})),
    "duplicate key": line(options())[:-2] + b',"version":1}\n',
    "duplicate key inside": line(options(limits=0)).replace(
        b'"limits":0', b'"limits":{"body":65536,"body":65536}'
    ),
    "nested too deeply": b'{"magic":' + b"[" * 2000 + b"]" * 2000 + b"}\n",
}


def refused(data: bytes, config: ServerConfig | None = None) -> tuple[HandshakeError, dict]:
    """What a server reports, and the line that it sends, when a client's first bytes are bad."""
    server = ServerConnection(config, now=START)
    error = termination(caused(server.receive_data, START, data))
    assert isinstance(error, HandshakeError)
    assert server.state is State.CLOSING
    return error, server_line(server.data_to_send())


@pytest.mark.fault(1)
def test_end_at_once_is_a_quiet_end_of_the_server() -> None:
    server = ServerConnection(now=START)
    assert termination(caused(server.receive_eof, START)) is None
    assert server.state is State.CLOSED
    assert server.data_to_send() == b""


@pytest.mark.fault(1)
def test_end_at_once_fails_the_calls_of_the_client_as_safe_to_retry() -> None:
    client = ClientConnection(now=START)
    client.start_call(START, "Arith.add", (1, 2))
    error = outcome(caused(client.receive_eof, START))
    assert (error.code, error.maybe_executed) == ("unavailable", False)


@pytest.mark.fault(1)
def test_end_inside_the_option_line_is_a_handshake_error() -> None:
    server = ServerConnection(now=START)
    server.receive_data(START, b'{"magic"')
    assert isinstance(termination(caused(server.receive_eof, START)), HandshakeError)
    assert server.state is State.CLOSED


@pytest.mark.fault(2)
@pytest.mark.parametrize("data", GARBAGE.values(), ids=GARBAGE)
def test_garbage_is_refused_with_one_line_at_its_first_byte(data: bytes) -> None:
    _, sent = refused(data)
    assert sent["error"]["code"] == "invalid_argument"
    error, _ = refused(data[:1])
    assert error.code == "invalid_argument"


@pytest.mark.fault(2)
@pytest.mark.parametrize("data", GARBAGE.values(), ids=GARBAGE)
def test_garbage_from_a_server_fails_the_handshake_of_the_client(data: bytes) -> None:
    client = ClientConnection(now=START)
    client.start_call(START, "Arith.add", (1, 2))
    events = caused(client.receive_data, START, data)
    assert isinstance(termination(events), HandshakeError)
    assert only(events, CallFailed).error.maybe_executed is False


@pytest.mark.fault(71)
@pytest.mark.parametrize("data", [b"hello", b"{}\n", *list(BAD_LINES.values())[-1:]])
def test_error_of_a_refused_handshake_does_not_keep_its_connection(data: bytes) -> None:
    gc.disable()
    try:
        server = ServerConnection(now=START)
        error = termination(caused(server.receive_data, START, data))
        before = sum(type(what) is ServerConnection for what in gc.get_objects())
        del server
        assert sum(type(what) is ServerConnection for what in gc.get_objects()) == before - 1
    finally:
        gc.enable()
    assert isinstance(error, HandshakeError)


@pytest.mark.fault(2)
def test_the_refusal_of_a_tls_hello_says_so() -> None:
    error, _ = refused(GARBAGE["TLS hello"])
    assert "TLS" in error.message


@pytest.mark.fault(2)
def test_nothing_that_follows_garbage_is_parsed() -> None:
    server = ServerConnection(now=START)
    server.receive_data(START, b"garbage")
    server.data_to_send()
    assert caused(server.receive_data, START, line(options()) + Wire().request(1)) == []
    assert server.data_to_send() == b""


@pytest.mark.fault(3)
@pytest.mark.parametrize("version", [0, 2, -1, 2**70])
def test_unsupported_version_is_refused_naming_the_supported_ones(version: object) -> None:
    error, sent = refused(line(options(version=version)))
    assert error.code == sent["error"]["code"] == "unimplemented"
    assert sent["supported"]["versions"] == [1]


@pytest.mark.fault(80)
@pytest.mark.parametrize("version", [..., None, True, "1", 1.0, [1], {}])
def test_version_that_is_no_whole_number_is_malformed(version: object) -> None:
    error, sent = refused(line(options(version=version)))
    assert error.code == sent["error"]["code"] == "invalid_argument"
    assert "version" in sent["error"]["message"]


@pytest.mark.fault(3)
@pytest.mark.parametrize("version", [2, True, 1.0, "1", None])
def test_client_refuses_an_answer_in_another_version(version: object) -> None:
    client = ClientConnection(now=START)
    error = termination(caused(client.receive_data, START, line(answer(version=version))))
    assert isinstance(error, HandshakeError)


@pytest.mark.fault(4)
@pytest.mark.parametrize("codec", ["pickle", "marshal", "yaml", "MSGPACK", "", "../formats"])
def test_codec_that_is_not_allowed_is_refused_naming_the_allowed_ones(codec: str) -> None:
    error, sent = refused(line(options(codec=codec)))
    assert error.code == sent["error"]["code"] == "unimplemented"
    assert sent["supported"]["codecs"] == ["msgpack", "json"]


@pytest.mark.fault(4)
def test_built_in_codec_that_the_server_does_not_list_is_refused() -> None:
    _, sent = refused(line(options(codec="json")), ServerConfig(codecs=("msgpack",)))
    assert sent["supported"]["codecs"] == ["msgpack"]


@pytest.mark.fault(4)
def test_client_refuses_an_answer_in_another_codec() -> None:
    client = ClientConnection(ClientConfig(codec="json"), now=START)
    error = termination(caused(client.receive_data, START, line(answer(codec="msgpack"))))
    assert isinstance(error, HandshakeError)


@pytest.mark.fault(5)
def test_option_line_of_exactly_the_limit_is_accepted() -> None:
    fields = options()
    fields["padding"] = "x" * (MAX_LINE - len(line({**fields, "padding": ""})))
    data = line(fields)
    assert len(data) == MAX_LINE
    server = ServerConnection(now=START)
    only(caused(server.receive_data, START, data), HandshakeCompleted)


@pytest.mark.fault(5)
def test_option_line_over_the_limit_is_refused_without_its_newline() -> None:
    refused(b"{" + b" " * (MAX_LINE - 1))


@pytest.mark.fault(5)
def test_option_line_one_byte_over_the_limit_is_refused() -> None:
    fields = options()
    fields["padding"] = "x" * (MAX_LINE + 1 - len(line({**fields, "padding": ""})))
    refused(line(fields))


@pytest.mark.fault(5)
@pytest.mark.parametrize("data", BAD_LINES.values(), ids=BAD_LINES)
def test_malformed_option_line_is_refused(data: bytes) -> None:
    error, sent = refused(data)
    assert error.code == sent["error"]["code"] == "invalid_argument"


@pytest.mark.fault(5)
@pytest.mark.parametrize(
    "data",
    [
        line(answer(limits=None)),
        line(answer(limits={"header": 16384, "body": 65536, "calls": 0})),
        line(answer(limits={"header": 16384, "body": 65536, "calls": True})),
        line(answer(limits={"header": 1, "body": 65536, "calls": 1})),
        line(answer(timeouts={"ping": float("nan")})),
        line(answer(features=[1])),
        line(answer(error="no")),
        line(answer(error=None)),
        line(answer(error={})),
        line(answer(error={"code": 5, "message": ""})),
        line(answer(error={"code": "unavailable"})),
        line(answer(error={"code": "unavailable", "message": "\ud800"})),
        line(answer(codec=...)),
        line(answer())[:-2] + b',"version":1}\n',
        b"{" + b" " * MAX_LINE,
    ],
)
def test_malformed_answer_fails_the_handshake_of_the_client(data: bytes) -> None:
    client = ClientConnection(now=START)
    error = termination(caused(client.receive_data, START, data))
    assert isinstance(error, HandshakeError)
    assert error.code == "invalid_argument"


@pytest.mark.fault(81)
@pytest.mark.parametrize("ping", [0, 1, 500, 999, -1, 2**40 + 1, True, 1000.0])
def test_ping_interval_in_force_under_a_second_is_malformed(ping: object) -> None:
    client = ClientConnection(now=START)
    error = termination(caused(client.receive_data, START, line(answer(timeouts={"ping": ping}))))
    assert isinstance(error, HandshakeError)
    assert error.code == "invalid_argument"
    assert "timeouts.ping" in error.message


@pytest.mark.fault(81)
@pytest.mark.parametrize("ping", [None, 1000, 2**40])
def test_ping_interval_in_force_may_be_none_or_from_a_second_on(ping: int | None) -> None:
    client = ClientConnection(now=START)
    agreed = only(
        caused(client.receive_data, START, line(answer(timeouts={"ping": ping}))),
        HandshakeCompleted,
    ).agreed
    assert agreed.ping == ping


@pytest.mark.fault(102)
def test_line_of_many_names_costs_a_look_at_each() -> None:
    looks = 0

    class Name(str):
        def __eq__(self, other: object) -> bool:
            nonlocal looks
            looks += 1
            return str.__eq__(self, other)

        __hash__ = str.__hash__

    names = [(Name(f"n{number}"), 0) for number in range(1000)]
    with pytest.raises(ValueError, match="duplicate key 'n999'"):
        _unique([*names, (Name("n999"), 0)])
    assert looks < 3000


@pytest.mark.fault(6)
@pytest.mark.parametrize("end", [ServerConnection, ClientConnection])
def test_one_byte_a_second_does_not_put_the_handshake_deadline_off(end: type) -> None:
    connection = end(now=START)
    connection.data_to_send()
    seconds = 0
    while connection.state is State.HANDSHAKE:
        seconds += 1
        now = START + seconds
        connection.receive_data(now, b"{" if seconds == 1 else b" ")
        if connection.next_timeout() <= now:
            connection.handle_timeout(now)
    assert seconds == 10
    error = termination(connection.events())
    assert isinstance(error, HandshakeError)
    assert error.code == "deadline_exceeded"


@pytest.mark.fault(6)
def test_late_client_gets_a_refusal() -> None:
    server = ServerConnection(ServerConfig(handshake_timeout=2.0), now=START)
    assert server.next_timeout() == START + 2.0
    server.handle_timeout(START + 2.0)
    assert server_line(server.data_to_send())["error"]["code"] == "deadline_exceeded"
    assert server.state is State.CLOSING


@pytest.mark.fault(7)
@pytest.mark.parametrize("codec", CODECS)
def test_options_and_frames_in_one_segment_are_all_processed(codec: str) -> None:
    wire = Wire(codec)
    server = ServerConnection(now=START)
    requests = b"".join(wire.request(number, args=[number, 2]) for number in (1, 2, 3))
    events = caused(
        server.receive_data, START, line(options(codec=codec)) + requests + wire.request(4)[:9]
    )
    assert isinstance(events[0], HandshakeCompleted)
    assert [event.call.id for event in events[1:] if isinstance(event, RequestReceived)] == [
        1,
        2,
        3,
    ]
    [last] = caused(server.receive_data, START, wire.request(4)[9:])
    assert last.call.id == 4


@pytest.mark.fault(7)
@pytest.mark.parametrize("codec", CODECS)
def test_answer_and_frames_in_one_segment_are_all_processed(codec: str) -> None:
    wire = Wire(codec)
    client = ClientConnection(ClientConfig(codec=codec), now=START)
    first, second = wire.goaway(0)[:20], wire.goaway(0)[20:]
    events = caused(client.receive_data, START, line(answer(codec=codec)) + first)
    assert [type(event).__name__ for event in events] == ["HandshakeCompleted"]
    events = caused(client.receive_data, START, second)
    assert type(events[0]).__name__ == "GoAwayReceived"


@pytest.mark.fault(8)
def test_second_handshake_on_an_open_connection_is_a_violation() -> None:
    server = open_server()
    error = termination(caused(server.receive_data, START, line(options())))
    assert isinstance(error, RemoteProtocolError)
    assert "second option handshake" in str(error)


@pytest.mark.fault(8)
def test_second_answer_on_an_open_connection_is_a_violation() -> None:
    pair = Pair().open()
    call = pair.call("Arith.add", 1, 2)
    error = termination(caused(pair.client.receive_data, pair.now, line(answer()))[1:])
    assert isinstance(error, RemoteProtocolError)
    assert not pair.client.calls_in_flight
    assert call.sent


@pytest.mark.fault(3, 4)
def test_client_reports_what_the_server_supports() -> None:
    client = ClientConnection(now=START)
    refusal = {
        "magic": answer()["magic"],
        "error": {"code": "unimplemented", "message": "no"},
        "supported": {"versions": [9], "codecs": ["cbor"]},
    }
    error = termination(caused(client.receive_data, START, json.dumps(refusal).encode() + b"\n"))
    assert error.code == "unimplemented"
    assert error.supported == {"versions": [9], "codecs": ["cbor"]}


@pytest.mark.fault(91)
@pytest.mark.parametrize(
    ("token", "message"),
    [(None, "a token is required; none was shown"), ("wrong", "the token was refused")],
)
def test_missing_and_wrong_tokens_are_told_apart_in_plain_words(
    token: str | None, message: str
) -> None:
    pair = Pair(ClientConfig(token=token), ServerConfig(token="right"))
    pair.pump()
    assert str(termination(pair.client_events)) == f"unauthenticated: {message}"
