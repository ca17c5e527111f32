"""docs/protocol.md, "Connections" and "Option handshake": the lines of both ends."""

import json
from typing import Any

import pytest

from rpc_fuzz.pair import only
from rpc_fuzz.wire import (
    PING,
    PONG,
    REQUEST,
    START,
    answer,
    frame,
    frames_in,
    line,
    open_client,
    options,
    server_line,
)
from rpc_proto import (
    ClientConfig,
    ClientConnection,
    HandshakeCompleted,
    RequestReceived,
    ServerConfig,
    ServerConnection,
    ServerPort,
    State,
)
from support.driving import caused
from support.protocol_page import (
    BASE,
    WIRE,
    accepted,
    options_with,
    page,
    refusal,
    told,
)

# Connections


@page(
    "`{` (0x7b) begins the option handshake.",
    "An upper-case letter begins HTTP/1.1",
    "Any other byte is refused with a line of the option handshake.",
)
@pytest.mark.parametrize("first", range(256))
def test_first_byte_tells_what_follows(first: int) -> None:
    server = ServerPort(now=START)
    server.receive_data(START, bytes([first]))
    if first == 0x7B or 0x41 <= first <= 0x5A:
        assert server.state is (State.HANDSHAKE if first == 0x7B else State.OPEN)
        assert server.data_to_send() == b""
    else:
        assert server_line(server.data_to_send())["error"]["code"] == "invalid_argument"


# Option handshake

GOOD_OPTIONS = {
    "shortest": options_with(""),
    "carriage return": options_with("")[:-1] + b"\r\n",
    "white space inside": ("{ \t\r" + BASE.replace(",", " ,\t") + " }\n").encode(),
    "white space behind": options_with("")[:-1] + b" \t \n",
    "unknown key": options_with(',"later":{"a":[1,null,1.5e3]}'),
    "unknown limit": options_with(',"limits":{"later":null}'),
    "token null": options_with(',"token":null'),
    "token empty": options_with(',"token":""'),
    "longest token": options_with(f',"token":"{"x" * 2048}"'),
    "escaped pair": options_with(',"token":"\\ud83d\\ude00"'),
    "ping null": options_with(',"timeouts":{"ping":null}'),
    "no limits in it": options_with(',"limits":{}'),
    "no timeouts in it": options_with(',"timeouts":{}'),
    "no features": options_with(',"features":[]'),
    "unknown feature": options_with(',"features":["later"]'),
    "feature twice": options_with(',"features":["later","later"]'),
    "most features": options_with(f',"features":{json.dumps([f"f{n}" for n in range(32)])}'),
    "longest feature": options_with(f',"features":["{"x" * 64}"]'),
    "feature of 64 code points": options_with(f',"features":["{chr(0x1F600) * 64}"]'),
    "16 deep": options_with(f',"later":{"[" * 15}{"]" * 15}'),
    "key of the other direction": options_with(',"error":null'),
}

BAD_VALUES = {
    "NaN": ',"later":NaN',
    "infinity": ',"later":[-Infinity]',
    "half a pair": ',"token":"\\ud800"',
    "half a pair in an unknown key": ',"\\udc00":1',
    "key twice": ',"version":1',
    "unknown key twice": ',"later":1,"later":1',
    "key twice inside": ',"later":[{"a":1,"a":1}]',
    "limits null": ',"limits":null',
    "timeouts null": ',"timeouts":null',
    "features null": ',"features":null',
    "limit null": ',"limits":{"header":null}',
    "limit with a fraction": ',"limits":{"header":1024.0}',
    "limit with an exponent": ',"limits":{"body":1e4}',
    "limit a bool": ',"limits":{"body":true}',
    "ping with a fraction": ',"timeouts":{"ping":2000.0}',
    "ping with an exponent": ',"timeouts":{"ping":2e3}',
    "features a string": ',"features":"streams"',
    "feature null": ',"features":[null]',
    "feature empty": ',"features":[""]',
    "feature of 65 code points": f',"features":["{chr(0x1F600) * 65}"]',
    "feature of 65": f',"features":["{"x" * 65}"]',
    "33 features": f',"features":{json.dumps([f"f{n}" for n in range(33)])}',
}

BAD_OPTIONS = {
    **{name: options_with(text) for name, text in BAD_VALUES.items()},
    "white space before": b" " + options_with(""),
    "byte order mark": b"\xef\xbb\xbf" + options_with(""),
    "array": b"[1]\n",
    "not UTF-8": options_with(',"later":"').replace(b'"later":"', b'"later":"\xff"'),
    "newline inside": options_with("").replace(b",", b",\n", 1),
    "two objects": options_with("")[:-1] + options_with(""),
    "magic missing": b'{"version":1,"codec":"json"}\n',
    "magic with a fraction": options_with("").replace(b"1824,", b"1824.0,"),
    "magic with an exponent": options_with("").replace(b"1380991824", b"1.380991824e9"),
    "another magic": options_with("").replace(b"1380991824", b"1380991825"),
    "version missing": options_with("").replace(b'"version":1,', b""),
    "version null": options_with("").replace(b'"version":1', b'"version":null'),
    "version a string": options_with("").replace(b'"version":1', b'"version":"1"'),
    "version true": options_with("").replace(b'"version":1', b'"version":true'),
    "version with a fraction": options_with("").replace(b'"version":1', b'"version":1.0'),
    "codec missing": options_with("").replace(b',"codec":"json"', b""),
    "codec null": options_with("").replace(b'"json"', b"null"),
    "token a number": options_with(',"token":1'),
    "token too long": options_with(f',"token":"{"x" * 2049}"'),
    "4097 bytes": options_with(" " * (4097 - len(options_with("")))),
}


@page(
    "White space, a carriage return before the newline included, may be inside "
    "and after the object",
    "A receiver must ignore keys that it does not know;",
    "Lengths of strings count Unicode code points.",
    "it may treat a line that is nested more than 16 deep as malformed.",
    "an end must ignore names that it does not know",
)
@pytest.mark.parametrize("data", GOOD_OPTIONS.values(), ids=GOOD_OPTIONS)
def test_option_line_is_accepted(data: bytes) -> None:
    assert accepted(data)["codec"] == "json"


@page(
    "`1.0` and `1e3` are malformed.",
    "name of the [codec](#codecs) for everything after the handshake",
    "array of at most 32 strings of 1 to 64 characters",
    "string of at most 2048 characters, or null",
    "but not before it; a byte order mark is refused like any other first byte.",
    "A line is *malformed* if it is not such an object, if a key occurs twice in any object of it",
    "Whole numbers must be written without a fraction or an exponent",
    "So is null, unless the table allows it",
    "the line is malformed; `version` missing or not a whole number is, too",
)
@pytest.mark.fault(80)
@pytest.mark.parametrize("data", BAD_OPTIONS.values(), ids=BAD_OPTIONS)
def test_malformed_option_line_is_invalid_argument(data: bytes) -> None:
    assert refusal(data) == "invalid_argument"


@page("at most 4096 bytes with the newline.")
def test_option_line_of_4096_bytes_is_accepted() -> None:
    data = options_with(" " * (4096 - len(options_with(""))))
    assert len(data) == 4096
    accepted(data)


RANGES = {
    ("limits", "header"): (256, 65535),
    ("limits", "body"): (8192, 4294967295),
    ("timeouts", "ping"): (0, 2**40),
}


@page(
    "largest frame header that the client accepts, 256 to 65535",
    "largest frame body that the client accepts, 8192 to 4294967295",
    "in milliseconds, 0 to 2^40, or null for none; 0 asks that nobody ping",
)
@pytest.mark.parametrize(("where", "bounds"), RANGES.items())
def test_options_are_accepted_in_their_ranges_only(
    where: tuple[str, str], bounds: tuple[int, int]
) -> None:
    group, name = where
    low, high = bounds
    for value in bounds:
        accepted(line(options(codec="json", **{group: {name: value}})))
    for value in (low - 1, high + 1):
        assert refusal(line(options(**{group: {name: value}}))) == "invalid_argument"


@page(
    "the largest that the *server* accepts; same ranges",
    "calls that may be in flight at a time on this connection, 1 to 2^31",
    "the ping interval in force in milliseconds, 1000 to 2^40, or null for none",
)
@pytest.mark.fault(81)
@pytest.mark.parametrize(
    ("where", "bounds"),
    [
        (("limits", "header"), (256, 65535)),
        (("limits", "body"), (8192, 4294967295)),
        (("limits", "calls"), (1, 2**31)),
        (("timeouts", "ping"), (1000, 2**40)),
    ],
)
def test_answers_are_accepted_in_their_ranges_only(
    where: tuple[str, str], bounds: tuple[int, int]
) -> None:
    group, name = where
    low, high = bounds
    for value in bounds:
        assert told(line(answer(codec="json", **{group: {name: value}}))) is None
    for value in (low - 1, high + 1):
        assert told(line(answer(codec="json", **{group: {name: value}}))) == "invalid_argument"


@page("same defaults", "default 2^31", "default 65535", "default 4294967295", "default null")
def test_options_left_out_have_the_same_defaults_in_both_directions() -> None:
    server = ServerConnection(now=START)
    server.receive_data(START, options_with(""))
    assert server._send_limits == (65535, 4294967295)
    client = ClientConnection(ClientConfig(codec="json"), now=START)
    [event] = caused(client.receive_data, START, options_with(""))
    assert isinstance(event, HandshakeCompleted)
    assert event.agreed == ("json", 65535, 4294967295, 2**31, None, frozenset())


@pytest.mark.parametrize("text", BAD_VALUES.values(), ids=BAD_VALUES)
def test_malformed_answer_is_refused_by_the_client(text: str) -> None:
    if "token" not in text:
        assert told(options_with(text)) == "invalid_argument"


@page(
    "A client that does not read between its calls proposes 0: it could not answer a PING then.",
    "The ping interval in force is the smaller of the two proposals, but at least 1000; it is null "
    "if neither end proposed one, or if either proposed 0.",
)
@pytest.mark.parametrize(
    ("ours", "theirs", "in_force"),
    [
        (None, None, None),
        (20.0, None, 20000),
        (None, 3000, 3000),
        (20.0, 3000, 3000),
        (2.0, 3000, 2000),
        (20.0, 1, 1000),
        (20.0, 0, None),
        (0, 3000, None),
    ],
)
def test_ping_interval_in_force(ours: Any, theirs: Any, in_force: Any) -> None:
    server = ServerConnection(ServerConfig(ping_interval=ours), now=START)
    server.receive_data(START, line(options(timeouts={"ping": theirs})))
    assert server_line(server.data_to_send())["timeouts"] == {"ping": in_force}


@page("both ends use what its line says.")
def test_client_pings_as_the_line_of_the_server_says() -> None:
    client = open_client(ClientConfig(ping_interval=20.0), timeouts={"ping": 1500})
    assert client.next_timeout() == START + 1.5
    client = open_client(ClientConfig(ping_interval=20.0), timeouts={"ping": None})
    assert client.next_timeout() is None


@page(
    "must not use a feature that is not in force.",
    "Version 1 has one feature, `streams`: see [Streams](#streams).",
)
def test_features_that_nobody_else_has_are_not_in_force() -> None:
    assert "features" not in accepted(options_with(',"features":["later"]'))
    assert accepted(options_with(',"features":["later","streams"]'))["features"] == ["streams"]
    client = open_client(features=["later"])
    assert client.agreed is not None
    assert client.agreed.features == frozenset()


@page(
    "another version, or a codec that the server does not allow",
    "A server checks the line in this order: JSON, magic, version, the other values, codec, token.",
)
def test_server_checks_the_line_in_order() -> None:
    config = ServerConfig(token="secret", codecs=("json",))
    wrong: dict[str, Any] = {"codec": "cbor", "token": "wrong", "limits": None, "version": 2}
    fields: dict[str, Any] = {"magic": 1, **wrong}
    seen = []
    for right in (
        {"magic": 1380991824},
        {"version": 1},
        {"limits": {}},
        {"codec": "json"},
        {"token": "secret"},
    ):
        seen.append(refusal(line(fields), config))
        fields.update(right)
    assert seen == [
        "invalid_argument",
        "unimplemented",
        "invalid_argument",
        "unimplemented",
        "unauthenticated",
    ]
    server = ServerConnection(config, now=START)
    only(caused(server.receive_data, START, line(fields)), HandshakeCompleted)


@page(
    "a [status code](#errors) and a text, both strings",
    "Or the server refuses, and closes the connection after the line:",
    "A line with the key `error` is a refusal, whatever else it contains.",
    "arrays of what the server supports | optional",
    "A client that receives a malformed line, another version or another codec closes the "
    "connection.",
)
@pytest.mark.parametrize(
    ("data", "code"),
    [
        (options_with(',"error":{"code":"unavailable","message":"full"}'), "unavailable"),
        (b'{"magic":1380991824,"error":{"code":"own_code","message":""}}\n', "own_code"),
        (b'{"magic":1380991824,"error":{"code":"a","message":"","later":1}}\n', "a"),
        (b'{"magic":1380991824,"error":{"code":"a"}}\n', "invalid_argument"),
        (b'{"magic":1380991824,"error":{"code":1,"message":""}}\n', "invalid_argument"),
        (options_with(',"error":null'), "invalid_argument"),
        (b'{"magic":1,"error":{"code":"a","message":""}}\n', "invalid_argument"),
        (options_with("").replace(b'"version":1', b'"version":2'), "invalid_argument"),
        (options_with("").replace(b"json", b"msgpack"), "invalid_argument"),
        (b"[]\n", "invalid_argument"),
    ],
)
def test_line_that_does_not_accept_ends_the_connection_of_the_client(
    data: bytes, code: str
) -> None:
    assert told(data) == code


@page(
    "The server answers with a line of its own.",
    "the server is shutting down",
    "the server has too many connections",
)
@pytest.mark.parametrize("code", ["unavailable", "resource_exhausted"])
def test_server_that_takes_nobody_says_why(code: str) -> None:
    server = ServerConnection(now=START)
    server.turn_away(START, code, "go away")
    server.receive_data(START, options_with(""))
    assert server_line(server.data_to_send())["error"]["code"] == code


@page("the line did not arrive in time, counted from the start of the connection")
def test_line_that_is_late_is_refused() -> None:
    server = ServerConnection(ServerConfig(handshake_timeout=2.0), now=START)
    server.receive_data(START + 1.9, b"{")
    server.handle_timeout(START + 2.0)
    assert server_line(server.data_to_send())["error"]["code"] == "deadline_exceeded"


@page("the token is missing or wrong", "the token could not be checked")
def test_token_that_is_refused_or_cannot_be_checked() -> None:
    secret = ServerConfig(token="secret")
    assert refusal(options_with(""), secret) == "unauthenticated"
    assert refusal(options_with(',"token":null'), secret) == "unauthenticated"
    assert refusal(options_with(',"token":"wrong"'), secret) == "unauthenticated"

    def fail(token: str | None, peer: object) -> bool:
        raise OSError("the directory is down")

    assert refusal(options_with(""), ServerConfig(authenticate=fail)) == "internal"


@page("A stream that ends before the newline has no answer.")
@pytest.mark.parametrize("data", [b"", b"{", options_with("")[:-1]])
def test_stream_that_ends_before_the_newline_has_no_answer(data: bytes) -> None:
    server = ServerConnection(now=START)
    server.receive_data(START, data)
    server.receive_eof(START)
    assert server.data_to_send() == b""
    assert server.state is State.CLOSED


@page("A client must not send a frame before it has been accepted.")
def test_client_sends_no_frame_before_it_is_accepted() -> None:
    client = ClientConnection(ClientConfig(codec="json"), now=START)
    client.start_call(START, "S.m")
    assert client.data_to_send().endswith(b"}\n")
    client.receive_data(START, options_with(""))
    assert [one.type for one in frames_in(client.data_to_send())] == [REQUEST]


@page(
    "A server must still process frames that arrive together with the options: everything after "
    "the newline is frames.",
)
def test_frames_behind_the_options_are_processed() -> None:
    server = ServerConnection(now=START)
    events = caused(server.receive_data, START, options_with("") + frame(PING, 7) + WIRE.request(1))
    assert [type(event) for event in events] == [HandshakeCompleted, RequestReceived]
    _, _, frames = server.data_to_send().partition(b"\n")
    assert [(one.type, one.call_id) for one in frames_in(frames)] == [(PONG, 7)]
