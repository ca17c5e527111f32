"""docs/protocol.md, "Frames", "Codecs" and "Headers": what a frame may be."""

from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID

import pytest

from rpc_fuzz.pair import only, outcome
from rpc_fuzz.wire import (
    CANCEL,
    ERROR,
    GOAWAY,
    NAMED,
    NOT_EXECUTED,
    ONE_WAY,
    PING,
    PONG,
    RAW,
    REQUEST,
    RESPONSE,
    START,
    Wire,
    frame,
    frames_in,
    line,
    open_client,
    open_server,
    options,
    prefix,
)
from rpc_proto import (
    CallCompleted,
    DataLoss,
    InvalidArgument,
    RequestReceived,
    ServerConfig,
    find_codec,
)
from rpc_proto.service.methods import Method
from support.driving import caused
from support.protocol_page import (
    WIRE,
    Served,
    check_violation,
    error_of,
    options_with,
    page,
    refusal,
    with_calls,
)

# Frames

VIOLATIONS = {
    "reserved type": frame(0x08),
    "type 0": frame(0x00),
    "type 0x7f": frame(0x7F),
    "option line": options_with(""),
    "NOT_EXECUTED on REQUEST": frame(REQUEST, 1, b'["S.m"]', flags=NOT_EXECUTED),
    "unknown flag on REQUEST": frame(REQUEST, 1, b'["S.m"]', flags=0x10),
    "RAW and NAMED": frame(REQUEST, 1, b'["S.m"]', flags=RAW | NAMED),
    "flag on CANCEL": frame(CANCEL, 1, flags=ONE_WAY),
    "flag on PING": frame(PING, flags=RAW),
    "flag on PONG": frame(PONG, flags=RAW),
    "flag on GOAWAY": frame(GOAWAY, body=b'["a","b"]', flags=RAW),
    "header of CANCEL": frame(CANCEL, 1, b"[]"),
    "header of PING": frame(PING, 1, b"[]"),
    "header of PONG": frame(PONG, 1, b"[]"),
    "header of GOAWAY": frame(GOAWAY, 0, b"[]", b'["a","b"]'),
    "body of CANCEL": frame(CANCEL, 1, body=b"1"),
    "body of PING": frame(PING, 1, body=b"1"),
    "body of PONG": frame(PONG, 1, body=b"1"),
    "RESPONSE from a client": frame(RESPONSE, 1),
    "ERROR from a client": WIRE.error(1, "aborted"),
    "id 0": frame(REQUEST, 0, b'["S.m"]'),
    "GOAWAY without a body": frame(GOAWAY),
    "GOAWAY of one": frame(GOAWAY, body=b'["a"]'),
    "GOAWAY of three": frame(GOAWAY, body=b'["a","b",null]'),
    "GOAWAY of numbers": frame(GOAWAY, body=b"[1,2]"),
    "GOAWAY a string": frame(GOAWAY, body=b'"ab"'),
    "GOAWAY a map": frame(GOAWAY, body=b'{"a":"b","c":"d"}'),
}

ANSWER_VIOLATIONS = {
    "NAMED on RESPONSE": frame(RESPONSE, 1, body=b"1", flags=NAMED),
    "NOT_EXECUTED on RESPONSE": frame(RESPONSE, 1, body=b"1", flags=NOT_EXECUTED),
    "RAW on ERROR": frame(ERROR, 1, body=b'["a","b",null]', flags=RAW),
    "REQUEST from a server": frame(REQUEST, 1, b'["S.m"]'),
    "CANCEL from a server": frame(CANCEL, 1),
    "answer to 0": frame(RESPONSE, 0),
    "answer to an id never used": frame(RESPONSE, 2),
    "error for an id never used": WIRE.error(2, "aborted"),
    "GOAWAY after a call never made": WIRE.goaway(2),
}


@page(
    "array of code and message",
    "has any other unknown type, or comes from the wrong end;",
    "has a flag that the table does not give to its type, or both RAW and NAMED;",
    "has a header or a body where the table says empty.",
    "It is a violation if a frame",
    "Besides those named above, two more are violations: a `{` where a frame should begin",
    "both strings; any other body is a violation.",
    "Where a rule says *violation*, the connection ends as described under",
    "A peer that sends a violation cannot be understood any more.",
    "The receiver sends GOAWAY with `invalid_argument` and a text, and closes the connection.",
)
@pytest.mark.parametrize("data", VIOLATIONS.values(), ids=VIOLATIONS)
def test_violation_by_a_client(data: bytes) -> None:
    server = open_server(codec="json")
    check_violation(server, caused(server.receive_data, START, data))


@page(
    "An answer to an id never sent, 0 included, is a violation.",
    "An id that the client never sent is a violation.",
)
@pytest.mark.parametrize("data", ANSWER_VIOLATIONS.values(), ids=ANSWER_VIOLATIONS)
def test_violation_by_a_server(data: bytes) -> None:
    client, _ = with_calls(1)
    check_violation(client, caused(client.receive_data, START, data))


@page(
    "A receiver must ignore a frame of an unknown type from 0x80 on, whatever its flags and id, "
    "after reading it whole.",
)
@pytest.mark.parametrize("kind", [0x80, 0xFF])
def test_unknown_type_from_0x80_on_is_ignored(kind: int) -> None:
    odd = frame(kind, 2**64 - 1, b"header", b"body", 0xFF)
    assert [one.type for one in Served().send(odd, frame(PING, 1))] == [PONG]
    client, _ = with_calls(1)
    assert outcome(caused(client.receive_data, START, odd + WIRE.response(1, 5))) == 5


@page(
    "A length over the limit that the receiver stated is a violation, in a frame of any type; the "
    "receiver must find it at the prefix, before it stores anything for the frame.",
)
@pytest.mark.parametrize("kind", [REQUEST, PING, 0x80])
@pytest.mark.parametrize("sizes", [(257, 0), (0, 8193)])
def test_length_over_the_limit_is_found_at_the_prefix(kind: int, sizes: tuple[int, int]) -> None:
    server = open_server(ServerConfig(max_header=256, max_body=8192), codec="json")
    assert caused(server.receive_data, START, prefix(kind, 0, *sizes, 1)[:-1]) == []
    check_violation(server, caused(server.receive_data, START, prefix(kind, 0, *sizes, 1)[-1:]))


@page("Each end states what it accepts", "the other must keep to it.")
def test_ends_keep_to_the_limits_of_the_other() -> None:
    client = open_client(limits={"header": 256, "body": 8192, "calls": 1})
    with pytest.raises(Exception, match="resource_exhausted"):
        client.start_call(START, "S.m", ("x" * 9000,))
    assert client.data_to_send() == b""
    client.start_call(START, "S.m")
    client.start_call(START, "S.m")
    assert len(frames_in(client.data_to_send())) == 1
    server = open_server(codec="json", limits={"header": 256, "body": 8192})
    [event] = caused(server.receive_data, START, WIRE.request(1))
    assert isinstance(event, RequestReceived)
    server.send_response(START, event.call, "x" * 9000)
    [one] = frames_in(server.data_to_send())
    assert error_of(one) == ("resource_exhausted", False)


# Codecs


@page("A server must refuse a codec that it was not configured to allow.")
def test_codec_that_is_not_allowed_is_refused() -> None:
    assert refusal(line(options(codec="json")), ServerConfig(codecs=("msgpack",))) == (
        "unimplemented"
    )


BAD_JSON = {
    "byte order mark": b"\xef\xbb\xbf3",
    "bytes behind it": b"3 4",
    "half a pair": b'"\\ud800"',
    "not UTF-8": b'"\xff"',
    "NaN": b"NaN",
    "too large a number": b"1e999",
    "nothing but white space": b" ",
    "too deep": b"[" * 100_000 + b"]" * 100_000,
}
BAD_MSGPACK = {
    "bytes behind it": b"\x03\x04",
    "extension": b"\xd4\x05a",
    "not UTF-8": b"\xa1\xff",
    "half a pair": b"\xa3\xed\xa0\x80",
    "cut": b"\xa5ab",
    "too deep": b"\x91" * 100_000 + b"\xc0",
}
BAD_BODIES = {
    **{f"json {name}": ("json", body) for name, body in BAD_JSON.items()},
    **{f"msgpack {name}": ("msgpack", body) for name, body in BAD_MSGPACK.items()},
}


@page(
    "The one extension allowed is the timestamp (-1); any other is an error.",
    "Strings are UTF-8 of the *str* family",
    "NaN and infinities cannot be sent.",
    "The receiver limits the depth.",
    "the answer cannot be decoded",
    "A value must take up its whole body: bytes after it are an error.",
    "So is a lone surrogate in a string.",
    "A result that cannot be decoded fails its call with `data_loss`, and the connection stays "
    "open.",
)
@pytest.mark.parametrize(("codec", "body"), BAD_BODIES.values(), ids=BAD_BODIES)
def test_result_that_cannot_be_decoded_is_data_loss(codec: str, body: bytes) -> None:
    client, _ = with_calls(2, codec)
    error = outcome(caused(client.receive_data, START, frame(RESPONSE, 1, body=body)))
    assert isinstance(error, DataLoss)
    assert outcome(caused(client.receive_data, START, Wire(codec).response(2, 5))) == 5


@page("white space around the value is allowed.")
def test_white_space_around_a_value_is_allowed() -> None:
    client, _ = with_calls(1)
    assert outcome(
        caused(client.receive_data, START, frame(RESPONSE, 1, body=b"\r\n\t [ 3 ] \n"))
    ) == [3]


@page(
    "A sender must not repeat a key of a map; a receiver takes the last value of a key that is "
    "repeated.",
)
@pytest.mark.parametrize(
    ("codec", "body"), [("json", b'{"a":1,"a":2}'), ("msgpack", b"\x82\xa1a\x01\xa1a\x02")]
)
def test_last_value_of_a_repeated_key_counts(codec: str, body: bytes) -> None:
    client, _ = with_calls(1, codec)
    assert outcome(caused(client.receive_data, START, frame(RESPONSE, 1, body=body))) == {"a": 2}


class Colour(Enum):
    RED = "red"


@dataclass
class Record:
    at: Any


_MOMENT = datetime(2024, 2, 29, 12, 30, tzinfo=UTC)


@page(
    "A field that a parameter's type does not have is refused with `invalid_argument`; one that "
    "a result's type does not have is ignored, as the server may be newer.",
)
def test_unknown_field_is_refused_in_a_parameter_and_ignored_in_a_result() -> None:
    def put(record: Record) -> None: ...

    with pytest.raises(InvalidArgument, match="Record has no field 'to'"):
        Method("S.put", put).decode(find_codec("json"), 0, b'[{"at":1,"to":2}]')
    client = open_client(codec="json")
    client.start_call(START, "S.m", returns=Record)
    answer = frame(RESPONSE, 1, body=b'{"at":1,"to":2}')
    assert outcome(caused(client.receive_data, START, answer)) == Record(1)


ENCODED = {
    "date and time": (_MOMENT, b"\xd6\xff\x65\xe0\x78\xc8", b'"2024-02-29T12:30:00Z"'),
    "without an offset": (
        _MOMENT.replace(tzinfo=None),
        b"\xb32024-02-29T12:30:00",
        b'"2024-02-29T12:30:00"',
    ),
    "bytes": (b"\x00\xff", b"\xc4\x02\x00\xff", b'"AP8="'),
    "record": (Record(1), b"\x81\xa2at\x01", b'{"at":1}'),
    "enumeration": (Colour.RED, b"\xa3red", b'"red"'),
    "set": ({1}, b"\x91\x01", b"[1]"),
    "UUID": (
        UUID(int=1),
        b"\xd9\x24" + str(UUID(int=1)).encode(),
        b'"%s"' % str(UUID(int=1)).encode(),
    ),
    "decimal": (Decimal("1.50"), b"\xa41.50", b'"1.50"'),
}


@page(
    "A date and time with an offset is a timestamp; without one it is a string as in RFC 3339, "
    "without the offset.",
    "Bytes are a string in base64 (RFC 4648, section 4) where a parameter or result is declared as "
    "bytes",
    "A date and time is a string as in RFC 3339.",
    "In both, a record (a dataclass, for example) is a map from field names to values, an "
    "enumeration is the value of its member, a set is an array, a UUID or a decimal is a string.",
)
@pytest.mark.parametrize(("value", "packed", "text"), ENCODED.values(), ids=ENCODED)
def test_values_in_both_codecs(value: Any, packed: bytes, text: bytes) -> None:
    for codec, data in (("msgpack", packed), ("json", text)):
        wire = Wire(codec)
        assert wire.encode(value) == data
        assert wire.codec.decoder(type(value))(data) == value


# Headers

BAD_REQUEST_HEADERS = {
    "empty": b"",
    "null": b"null",
    "a map": b'{"method":"S.m"}',
    "no fields": b"[]",
    "four fields": b'["S.m",null,null,null]',
    "method null": b"[null]",
    "timeout a string": b'["S.m","5"]',
    "timeout true": b'["S.m",true]',
    "timeout infinite": b'["S.m",1e999]',
    "metadata a list": b'["S.m",null,[]]',
    "metadata value null": b'["S.m",null,{"a":null}]',
    "metadata value a number": b'["S.m",null,{"a":1}]',
    "byte order mark": b'\xef\xbb\xbf["S.m"]',
    "bytes behind it": b'["S.m"]1',
    "half a pair": b'["S.\\ud800"]',
}


@page("Anything else is a violation, an empty header of a REQUEST and further fields included.")
@pytest.mark.parametrize("header", BAD_REQUEST_HEADERS.values(), ids=BAD_REQUEST_HEADERS)
def test_malformed_header_of_a_request_is_a_violation(header: bytes) -> None:
    server = open_server(codec="json")
    check_violation(server, caused(server.receive_data, START, frame(REQUEST, 1, header)))


@page(
    "An *answer* header has one field: metadata.",
)
@pytest.mark.parametrize("kind", [RESPONSE, ERROR])
@pytest.mark.parametrize("header", [b"[]", b"null", b"{}", b"[null,null]", b'[{"a":1}]', b"[[]]"])
def test_malformed_header_of_an_answer_is_a_violation(header: bytes, kind: int) -> None:
    client, _ = with_calls(1)
    body = b'["a","b",null]'
    check_violation(client, caused(client.receive_data, START, frame(kind, 1, header, body)))


@page(
    "A *request* header has 1 to 3 fields: the method, the timeout, the metadata.",
    "A header that is not empty is an array in the agreed codec.",
    "Fields at the end may be left out.",
    "any finite number, also with a fraction or an exponent, or null for none.",
    "The server counts from when the frame arrives.",
    "A receiver may shorten a timeout longer than a year.",
    "metadata: a map of at most 64 entries from strings to strings, or null.",
)
@pytest.mark.parametrize(
    ("header", "timeout"),
    [
        (b'["S.m"]', None),
        (b'["S.m",null]', None),
        (b'["S.m",null,null]', None),
        (b' [ "S.m" , 1500 ] ', 1.5),
        (b'["S.m",1.5e3]', 1.5),
        (b'["S.m",1500.0,{}]', 1.5),
        (b'["S.m",0.5,{"a":"b"}]', 0.0005),
        (b'["S.m",1e300]', 366 * 86400.0),
        (b'["S.m",' + b"9" * 1000 + b"]", 366 * 86400.0),
    ],
)
def test_header_of_a_request(header: bytes, timeout: float | None) -> None:
    server = open_server(codec="json")
    [event] = caused(server.receive_data, START, frame(REQUEST, 1, header))
    assert isinstance(event, RequestReceived)
    assert event.call.method == "S.m"
    assert event.call.deadline == (None if timeout is None else START + timeout)


@page(
    "Zero or less is answered with `deadline_exceeded` and NOT_EXECUTED, and the method does not "
    "run.",
)
@pytest.mark.parametrize("timeout", [b"0", b"-0.0", b"-1", b"-1e300", b"0e5"])
def test_timeout_of_zero_or_less_is_answered_without_running_the_method(timeout: bytes) -> None:
    served = Served()
    header = b'["S.nothing",' + timeout + b"]"
    assert error_of(served.ask(header)) == ("deadline_exceeded", True)
    assert served.send(frame(REQUEST, 2, header, flags=ONE_WAY)) == []
    assert served.service.ran == []


@page("Without metadata there is no header: no bytes.")
def test_answer_without_metadata_has_no_header() -> None:
    assert Served().ask(b'["S.nothing"]') == (RESPONSE, 0, 1, b"", b"")
    client, _ = with_calls(1)
    event = only(
        caused(client.receive_data, START, frame(RESPONSE, 1, b"[null]", b"3")), CallCompleted
    )
    assert (event.value, dict(event.metadata)) == (3, {})
