"""What may come over a connection, right, nearly right and wrong, as strategies of hypothesis."""

import json
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from hypothesis import strategies as st

from rpc_fuzz.wire import (
    CANCEL,
    CODECS,
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
    Wire,
    answer,
    frame,
    line,
    options,
    prefix,
)
from rpc_proto import (
    CallCancelled,
    CallCompleted,
    CallFailed,
    ConnectionTerminated,
    Event,
    GoAwayReceived,
    HandshakeCompleted,
    HandshakeError,
    RequestReceived,
)

codecs = st.sampled_from(CODECS)

# Values

texts = st.text(st.characters(codec="utf-8"), max_size=20)
names = st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1, max_size=8)
_scalars = {
    "msgpack": st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**63), 2**64 - 1),
        st.floats(allow_nan=False),
        texts,
        st.binary(max_size=40),
    ),
    "json": st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**63), 2**64 - 1),
        st.floats(allow_nan=False, allow_infinity=False),
        texts,
    ),
}


def _nested(scalars: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.recursive(
        scalars,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
        max_leaves=12,
    )


_values = {codec: _nested(scalars) for codec, scalars in _scalars.items()}


def plain_values() -> st.SearchStrategy[Any]:
    """Values that every codec carries, whatever its name."""
    return _values["json"]


def values(codec: str) -> st.SearchStrategy[Any]:
    """Every value that the codec carries and gives back as it was."""
    return _values[codec]


metadata = st.dictionaries(texts, texts, max_size=3)
timeouts = st.one_of(
    st.none(),
    st.integers(-5, 10_000),
    st.sampled_from([0, 1, 2**53, 2**64 - 1, -(2**63), 0.5, -0.0, 1e300]),
)
# Few ids, so that they meet: in flight, ended, never used.
ids = st.sampled_from([1, 1, 2, 2, 3, 4, 5, 6, 0, 2**64 - 1])
chunks = st.lists(st.integers(1, 64), max_size=40)


def cut(data: bytes, sizes: Iterable[int]) -> list[bytes]:
    """The bytes in pieces of these sizes, and what is left in one piece."""
    pieces = []
    start = 0
    for size in sizes:
        if start >= len(data):
            break
        pieces.append(data[start : start + size])
        start += size
    pieces.append(data[start:])
    return pieces


# Frames

any_frames = st.builds(
    frame,
    st.integers(0, 255),
    ids,
    st.binary(max_size=20),
    st.binary(max_size=40),
    st.integers(0, 255) | st.sampled_from([0, RAW, NAMED, ONE_WAY, NOT_EXECUTED]),
)
any_prefixes = st.builds(
    prefix,
    st.sampled_from([REQUEST, RESPONSE, ERROR, CANCEL, PING, PONG, GOAWAY, 0, 8, 0x7B, 0x80]),
    st.sampled_from([0, 0, RAW, NAMED, ONE_WAY, 0x10, 0xFF]),
    st.integers(0, 2**16 - 1) | st.sampled_from([0, 1, 16384, 16385]),
    st.integers(0, 2**32 - 1) | st.sampled_from([0, 1, 2**24, 2**24 + 1]),
    ids,
)


# What streams carry is simple: these targets are about frames, and run often.
_light_values = st.one_of(
    st.none(),
    st.integers(-(2**63), 2**64 - 1),
    st.text("a\0\n{\u20ac", max_size=4),
    st.sampled_from([1.5, True, [], {}, [1, [2]], {"k": "v"}, {"": [None]}]),
)
_light_metadata = st.sampled_from([None, None, None, {}, {"k": "v"}, {"": "", "\u20ac": "\0"}])
_methods = st.sampled_from(["Echo.echo", "Echo.echo", "Arith.add", "", "a.b.c", "\0"])
_messages = st.sampled_from(["", "text", "\u20ac" * 400, "%s\r\n"])


@lru_cache
def requests(codec: str) -> st.SearchStrategy[bytes]:
    """A request that a client may send, or one whose body is anything."""
    wire = Wire(codec)

    def build(
        call_id: int, method: str, timeout: Any, sent: Any, shape: int, value: Any, body: bytes
    ) -> bytes:
        if shape & RAW:
            shape &= ~NAMED
        elif shape & NAMED:
            body = wire.encode([[value], {"name": value}])
        else:
            body = wire.encode([value, value])
        return wire.request(call_id, method, timeout=timeout, metadata=sent, body=body, flags=shape)

    return st.builds(
        build,
        ids,
        _methods,
        timeouts,
        _light_metadata,
        st.integers(0, 7),
        _light_values,
        st.binary(max_size=40),
    )


@lru_cache
def answers(codec: str) -> st.SearchStrategy[bytes]:
    """A response or an error that a server may send, or one whose body is anything."""
    wire = Wire(codec)

    def error(call_id: int, code: str, message: str, details: Any, flags: int) -> bytes:
        return wire.error(call_id, code, message, details, flags)

    return st.one_of(
        st.builds(wire.response, ids, _light_values, metadata=_light_metadata),
        st.builds(
            error,
            ids,
            st.sampled_from(["unavailable", "not_found", "own_code"]),
            _messages,
            _light_values,
            st.sampled_from([0, NOT_EXECUTED]),
        ),
        st.builds(
            frame,
            st.sampled_from([RESPONSE, RESPONSE, ERROR]),
            ids,
            body=st.binary(max_size=40),
            flags=st.sampled_from([RAW, RAW, 0]),
        ),
    )


@lru_cache
def controls(codec: str) -> st.SearchStrategy[bytes]:
    """Frames that either end may send."""
    wire = Wire(codec)
    return st.one_of(
        st.builds(frame, st.sampled_from([PING, PONG]), ids),
        st.builds(frame, st.just(0x80), ids, st.binary(max_size=9), st.binary(max_size=9)),
        st.builds(wire.goaway, st.sampled_from([0, 1, 2, 3, 9]), st.just("unavailable"), _messages),
    )


@lru_cache
def client_streams(codec: str, token: str | None = None) -> st.SearchStrategy[bytes]:
    """All that a client sends: its option line, then frames."""
    start = line(options(codec=codec, token=token, timeouts={"ping": 20_000}))
    one = st.one_of(
        requests(codec), requests(codec), st.builds(Wire(codec).cancel, ids), controls(codec)
    )
    return st.lists(one, max_size=6).map(lambda parts: start + b"".join(parts))


@lru_cache
def server_streams(codec: str) -> st.SearchStrategy[bytes]:
    """All that a server sends: the line that accepts, then frames."""
    start = line(answer(codec=codec, timeouts={"ping": 20_000}))
    one = st.one_of(answers(codec), answers(codec), controls(codec))
    return st.lists(one, max_size=6).map(lambda parts: start + b"".join(parts))


@st.composite
def mutated(draw: st.DrawFn, streams: st.SearchStrategy[bytes]) -> bytes:
    """A stream with some bytes changed, taken out, put in or doubled."""
    data = bytearray(draw(streams))
    for _ in range(draw(st.integers(1, 4))):
        if not data:
            break
        at = draw(st.integers(0, len(data) - 1))
        how = draw(st.sampled_from(["flip", "set", "delete", "insert", "double", "truncate"]))
        if how == "flip":
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif how == "set":
            data[at] = draw(st.sampled_from([0, 1, 0x0A, 0x7B, 0x7F, 0x80, 0xC1, 0xFF]))
        elif how == "delete":
            del data[at : at + draw(st.integers(1, 20))]
        elif how == "insert":
            data[at:at] = draw(st.binary(min_size=1, max_size=20) | any_prefixes)
        elif how == "double":
            data[at:at] = data[at : at + draw(st.integers(1, 40))]
        else:
            del data[at:]
    return bytes(data)


# HTTP

_fields = st.sampled_from(
    [
        b"X: y",
        b"Connection: close",
        b"Connection: keep-alive",
        b"Expect: 100-continue",
        b"If-None-Match: *",
        b"Upgrade: h2c",
        b"Content-Length: 3",
        b"Transfer-Encoding: gzip",
        b"X : y",
        b" folded",
        b"Host: y",
    ]
)
_targets = st.sampled_from(
    [b"/a", b"/big", b"/later", b"/fails", b"/rpc", b"/a?b=c&d", b"http://y/a", b"/%0d%0a", b"*"]
)
_bodies = st.sampled_from([b"", b"abc", b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n", b"x" * 101])


def _http_request(
    method: bytes, target: bytes, fields: list[bytes], body: bytes, shape: str, version: bytes
) -> bytes:
    if shape == "length" and body:
        fields = [*fields, b"Content-Length: %d" % len(body)]
    elif shape == "chunked":
        fields = [*fields, b"Transfer-Encoding: chunked"]
        body = b"".join(b"%x\r\n%b\r\n" % (len(one), one) for one in (body[:2], body[2:]) if one)
        body += b"0\r\n\r\n"
    else:
        body = b""
    head = [b"%b %b HTTP/1.%b" % (method, target, version), b"Host: x", *fields, b"", b""]
    return b"\r\n".join(head) + body


_http_requests = st.builds(
    _http_request,
    st.sampled_from([b"GET", b"POST", b"HEAD", b"OPTIONS"]),
    _targets,
    st.lists(_fields, max_size=2),
    _bodies,
    st.sampled_from(["none", "length", "chunked"]),
    st.sampled_from([b"1", b"1", b"1", b"0"]),
)
_connects = st.sampled_from(
    [
        b"CONNECT x:1 HTTP/1.1\r\nHost: x:1\r\n\r\n",
        b"CONNECT /rpc HTTP/1.0\n\n",
        b"CONNECT /no HTTP/1.0\r\n\r\n",
    ]
)


@lru_cache
def http_streams() -> st.SearchStrategy[bytes]:
    """Requests, most of which are right, and perhaps a CONNECT with what it leads to."""
    requests = st.lists(_http_requests, min_size=1, max_size=5).map(b"".join)
    ends = st.just(b"") | st.builds(bytes.__add__, _connects, client_streams("json"))
    return st.builds(bytes.__add__, requests, ends)


# Option lines

_json_values = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-10, 10),
        st.integers(-(2**70), 2**70),
        st.floats(),
        st.text(max_size=8),
    ),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)
_field_names = st.sampled_from(
    ["magic", "version", "codec", "token", "limits", "timeouts", "features", "error", "supported"]
)
_limits = st.dictionaries(
    st.sampled_from(["header", "body", "calls", "other"]),
    st.one_of(_json_values, st.sampled_from([0, 1, 256, 8192, 65535, 65536, 2**31, 2**32 - 1])),
    max_size=3,
)
_changes = st.one_of(
    st.tuples(_field_names, _json_values),
    st.tuples(st.just("limits"), _limits),
    st.tuples(st.just("timeouts"), st.dictionaries(st.just("ping"), _json_values)),
    st.tuples(st.just("timeouts"), st.just({"ping": 500})),
    st.tuples(st.just("features"), st.lists(st.sampled_from(["streams", "x", "", 1]), max_size=40)),
    st.tuples(st.just("version"), st.sampled_from([True, "1", 1.0, 2, None])),
    st.tuples(st.just("codec"), st.sampled_from(["json", "msgpack", "pickle"])),
    st.tuples(st.just("token"), st.text(max_size=12) | st.none()),
    st.tuples(_field_names, st.just(...)),
)


@st.composite
def option_lines(draw: st.DrawFn) -> bytes:
    """An option line or an answer, right or nearly so, with its newline."""
    fields = draw(st.sampled_from([options, answer]))(**dict(draw(st.lists(_changes, max_size=3))))
    text = json.dumps(fields, ensure_ascii=draw(st.booleans()))
    return text.encode("utf-8", "surrogatepass") + b"\n"


# What two ends did, in a form that can be compared


def trace(events: Iterable[Event], *, exact: bool = True) -> list[Any]:
    """Events as plain values; without `exact`, texts that quote what had arrived are left out."""
    return [_plain(event, exact) for event in events]


def _plain(event: Event, exact: bool) -> Any:
    name = type(event).__name__
    if isinstance(event, RequestReceived):
        call = event.call
        return name, call.id, call.method, call.deadline, dict(call.metadata), call.flags, call.body
    if isinstance(event, CallCancelled):
        return name, event.call.id, event.error.code
    if isinstance(event, CallCompleted):
        return name, event.call.id, repr(event.value), dict(event.metadata)
    if isinstance(event, CallFailed):
        error = event.error
        text = error.message if exact else ""
        return name, event.call.id, error.code, text, repr(error.details), error.maybe_executed
    if isinstance(event, HandshakeCompleted):
        return name, event.agreed
    if isinstance(event, GoAwayReceived):
        return name, event.code, event.message
    assert isinstance(event, ConnectionTerminated)
    if isinstance(event.error, HandshakeError):
        return name, event.error.code, event.error.message if exact else ""
    return name, repr(event.error)
