"""The cases for servers, each with the section of docs/protocol.md that it is about."""

import json
from collections.abc import Callable
from typing import Any, NamedTuple

from rpc_fuzz.wire import (
    CANCEL,
    CLIENT_STREAM,
    CREDIT,
    END,
    GOAWAY,
    ITEM,
    MORE,
    NAMED,
    ONE_WAY,
    PING,
    PONG,
    RAW,
    REQUEST,
    RESPONSE,
    SERVER_STREAM,
    frame,
    line,
    options,
    prefix,
)
from rpc_proto.wire.handshake import MAGIC

from .peer import Failure, Peer, Skip, Target

__all__ = ["CASES", "Case"]

NOWHERE = "No.such_method"


class Case(NamedTuple):
    """A case: `run(target)` raises Failure, or Skip."""

    section: str
    name: str
    says: str
    run: Callable[[Any], None]


CASES: list[Case] = []


def case(section: str, says: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add a case; its function gets a connection, which is open but for sections at the start."""

    def add(function: Callable[..., None]) -> Callable[..., None]:
        def run(target: Target) -> None:
            with Peer(target.dial(), target.codec, target.timeout) as peer:
                function(peer, target)

        CASES.append(Case(section, function.__name__, says, run))
        return function

    return add


def _echo(target: Target) -> str:
    if target.echo is None:
        raise Skip("needs --echo METHOD")
    return target.echo


def _streams(peer: Peer, target: Target) -> str:
    if target.echo_stream is None:
        raise Skip("needs --echo-stream METHOD")
    answer = _open(peer, target, features=["streams"])
    if "streams" not in answer.get("features", []):
        raise Skip("the server does not offer the feature streams")
    return target.echo_stream


def _open(peer: Peer, target: Target, **changes: Any) -> dict[str, Any]:
    _connect(peer, target)
    return peer.hello(target.token, **changes)


def _connect(peer: Peer, target: Target) -> None:
    """With http:// and https://, send CONNECT first."""
    if target.address.startswith("http"):
        peer.send(b"CONNECT x:1 HTTP/1.1\r\nHost: x:1\r\n\r\n")
        peer.expect_http(200)


def _line(peer: Peer, target: Target, code: str, **changes: Any) -> None:
    """Send an option line with changes, which must be refused."""
    _connect(peer, target)
    changes.setdefault("token", target.token)
    peer.send(line(options(**{"codec": target.codec, **changes})))
    peer.expect_refusal(code)


def _call(peer: Peer, target: Target, call_id: int = 1, value: Any = "text", **how: Any) -> None:
    peer.send(peer.wire.request(call_id, _echo(target), (value,), **how))


# Connections


@case("Connections", "a first byte that is neither { nor a letter is refused with a line")
def garbage_first(peer: Peer, target: Target) -> None:
    peer.send(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 and so on\n")
    peer.expect_refusal("invalid_argument")


@case("Connections", "a client that ends at once is let go without a word")
def end_at_once(peer: Peer, target: Target) -> None:
    peer.end()
    peer.expect_end()


# Option handshake


@case("Option handshake", "a right line is accepted, with magic, version and codec")
def accepted(peer: Peer, target: Target) -> None:
    answer = _open(peer, target)
    wanted = {"magic": MAGIC, "version": 1, "codec": target.codec}
    for name, value in wanted.items():
        if answer.get(name) != value or type(answer[name]) is not type(value):
            raise Failure(f"{name} is {answer.get(name)!r}, and not {value!r}")


@case("Option handshake", "the limits that the server states are in their ranges")
def limits_in_range(peer: Peer, target: Target) -> None:
    answer = _open(peer, target)
    limits = answer.get("limits", {})
    for name, least, most in (
        ("header", 256, 65535),
        ("body", 8192, 2**32 - 1),
        ("calls", 1, 2**31),
    ):
        value = limits.get(name, most)
        if type(value) is not int or not least <= value <= most:
            raise Failure(f"limits.{name} is {value!r}, and not from {least} to {most}")
    ping = answer.get("timeouts", {}).get("ping")
    if ping is not None and (type(ping) is not int or not 1000 <= ping <= 2**40):
        raise Failure(f"timeouts.ping is {ping!r}")


@case("Option handshake", "unknown keys and features are ignored")
def unknown_keys(peer: Peer, target: Target) -> None:
    _open(peer, target, later={"x": [1, None]}, features=["later", "x" * 64])


@case("Option handshake", "white space inside and after the object is allowed")
def white_space(peer: Peer, target: Target) -> None:
    _connect(peer, target)
    fields = options(codec=target.codec, token=target.token)
    peer.send(json.dumps(fields, indent=1).replace("\n", "\t").encode() + b" \t\r\n")
    if "error" in peer.line():
        raise Failure("refused")


@case("Option handshake", "the line may come a byte at a time")
def byte_by_byte(peer: Peer, target: Target) -> None:
    _connect(peer, target)
    data = line(options(codec=target.codec, token=target.token))
    peer.send(*(data[at : at + 1] for at in range(len(data))))
    if "error" in peer.line():
        raise Failure("refused")


@case("Option handshake", "frames in the segment of the line are processed")
def frames_behind_the_line(peer: Peer, target: Target) -> None:
    _connect(peer, target)
    hello = line(options(codec=target.codec, token=target.token))
    peer.send(hello + frame(PING, 77) + peer.wire.request(1, NOWHERE))
    if "error" in peer.line():
        raise Failure("refused")
    if peer.expect(PONG).call_id != 77:
        raise Failure("the PONG has another id")
    peer.expect_error(1, "unimplemented", executed=False)


@case("Option handshake", "a wrong magic is invalid_argument")
def wrong_magic(peer: Peer, target: Target) -> None:
    _line(peer, target, "invalid_argument", magic=1)


@case("Option handshake", "a missing magic is invalid_argument")
def no_magic(peer: Peer, target: Target) -> None:
    _line(peer, target, "invalid_argument", magic=...)


@case("Option handshake", "another version is unimplemented")
def another_version(peer: Peer, target: Target) -> None:
    _line(peer, target, "unimplemented", version=2)


@case("Option handshake", "a missing version is invalid_argument")
def no_version(peer: Peer, target: Target) -> None:
    _line(peer, target, "invalid_argument", version=...)


@case("Option handshake", "a version that is no whole number is invalid_argument")
def text_as_version(peer: Peer, target: Target) -> None:
    _line(peer, target, "invalid_argument", version="1")


@case("Option handshake", "a number with a fraction is malformed")
def fraction(peer: Peer, target: Target) -> None:
    _line(peer, target, "invalid_argument", version=1.0)


@case("Option handshake", "an unknown codec is unimplemented")
def unknown_codec(peer: Peer, target: Target) -> None:
    _line(peer, target, "unimplemented", codec="pickle")


@case("Option handshake", "a missing codec is invalid_argument")
def no_codec(peer: Peer, target: Target) -> None:
    _line(peer, target, "invalid_argument", codec=...)


@case("Option handshake", "a body limit below 8192 is malformed")
def body_limit_too_small(peer: Peer, target: Target) -> None:
    _line(peer, target, "invalid_argument", limits={"header": 16384, "body": 8191})


@case("Option handshake", "a header limit above 65535 is malformed")
def header_limit_too_large(peer: Peer, target: Target) -> None:
    _line(peer, target, "invalid_argument", limits={"header": 65536, "body": 8192})


@case("Option handshake", "a token that is no string is malformed")
def token_of_another_type(peer: Peer, target: Target) -> None:
    _line(peer, target, "invalid_argument", token=5)


@case("Option handshake", "features that are no strings are malformed")
def features_of_another_type(peer: Peer, target: Target) -> None:
    _line(peer, target, "invalid_argument", features=[1])


@case("Option handshake", "a key that occurs twice is malformed")
def key_twice(peer: Peer, target: Target) -> None:
    _connect(peer, target)
    fields = line(options(codec=target.codec, token=target.token)).strip()
    peer.send(fields[:-1] + b',"version":1}\n')
    peer.expect_refusal("invalid_argument")


@case("Option handshake", "NaN is malformed")
def not_a_number(peer: Peer, target: Target) -> None:
    _connect(peer, target)
    fields = line(options(codec=target.codec, token=target.token)).strip()
    peer.send(fields[:-1] + b',"x":NaN}\n')
    peer.expect_refusal("invalid_argument")


@case("Option handshake", "a lone surrogate is malformed")
def lone_surrogate(peer: Peer, target: Target) -> None:
    _connect(peer, target)
    fields = line(options(codec=target.codec, token=target.token)).strip()
    peer.send(fields[:-1] + b',"x":"\\ud800"}\n')
    peer.expect_refusal("invalid_argument")


@case("Option handshake", "a line that is no JSON is malformed")
def no_json(peer: Peer, target: Target) -> None:
    _connect(peer, target)
    peer.send(b"{not json}\n")
    peer.expect_refusal("invalid_argument")


@case("Option handshake", "a line of 4096 bytes is accepted")
def longest_line(peer: Peer, target: Target) -> None:
    _connect(peer, target)
    data = line(options(codec=target.codec, token=target.token))
    peer.send(data[:-1] + b" " * (4096 - len(data)) + b"\n")
    if "error" in peer.line():
        raise Failure("refused")


@case("Option handshake", "a line of over 4096 bytes is refused, though it never ends")
def endless_line(peer: Peer, target: Target) -> None:
    _connect(peer, target)
    data = line(options(codec=target.codec, token=target.token))
    peer.send(data[:-1] + b" " * (4097 - len(data)))
    peer.expect_refusal("invalid_argument")


@case("Option handshake", "a stream that ends inside the line has no answer")
def cut_line(peer: Peer, target: Target) -> None:
    _connect(peer, target)
    peer.send(b'{"magic":1380991824,')
    peer.end()
    peer.expect_end()


@case("Option handshake", "a wrong token is unauthenticated")
def wrong_token(peer: Peer, target: Target) -> None:
    if target.token is None:
        raise Skip("needs --token")
    _line(peer, target, "unauthenticated", token=target.token + "x")


@case("Option handshake", "a missing token is unauthenticated")
def no_token(peer: Peer, target: Target) -> None:
    if target.token is None:
        raise Skip("needs --token")
    _line(peer, target, "unauthenticated", token=None)


# HTTP CONNECT


def _over_http(target: Target) -> None:
    if target.address.startswith("unix"):
        raise Skip("has no HTTP over a unix socket")


def _expect_connected(peer: Peer, target: Target, request: bytes) -> None:
    _over_http(target)
    peer.send(request)
    peer.expect_http(200)
    answer = peer.hello(target.token)
    if answer.get("version") != 1:
        raise Failure(f"the version is {answer.get('version')!r}")


@case("HTTP CONNECT", "CONNECT with a host and a port is accepted")
def connect_host(peer: Peer, target: Target) -> None:
    _expect_connected(peer, target, b"CONNECT a.example:80 HTTP/1.1\r\nHost: a.example:80\r\n\r\n")


@case("HTTP CONNECT", "CONNECT /rpc in HTTP/1.0 with bare LF is accepted, as programs in Go ask")
def connect_from_go(peer: Peer, target: Target) -> None:
    _expect_connected(peer, target, b"CONNECT /rpc HTTP/1.0\n\n")


@case("HTTP CONNECT", "the option line may follow the request in one segment")
def connect_and_line(peer: Peer, target: Target) -> None:
    _over_http(target)
    hello = line(options(codec=target.codec, token=target.token))
    peer.send(b"CONNECT /rpc HTTP/1.1\r\nHost: x\r\n\r\n" + hello)
    peer.expect_http(200)
    if "error" in peer.line():
        raise Failure("refused")


@case("HTTP CONNECT", "another path is 404")
def connect_elsewhere(peer: Peer, target: Target) -> None:
    _over_http(target)
    peer.send(b"CONNECT /other HTTP/1.1\r\nHost: x\r\n\r\n")
    peer.expect_http(404)


@case("HTTP CONNECT", "a request without Host is 400")
def connect_without_host(peer: Peer, target: Target) -> None:
    _over_http(target)
    peer.send(b"CONNECT /rpc HTTP/1.1\r\n\r\n")
    peer.expect_http(400)


@case("HTTP CONNECT", "Content-Length together with Transfer-Encoding is 400")
def two_lengths(peer: Peer, target: Target) -> None:
    _over_http(target)
    peer.send(
        b"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    )
    peer.expect_http(400)


@case("HTTP CONNECT", "white space before a colon is 400")
def space_before_colon(peer: Peer, target: Target) -> None:
    _over_http(target)
    peer.send(b"CONNECT /rpc HTTP/1.1\r\nHost : x\r\n\r\n")
    peer.expect_http(400)


@case("HTTP CONNECT", "a request line over 8192 bytes is 414")
def long_target(peer: Peer, target: Target) -> None:
    _over_http(target)
    peer.send(b"GET /" + b"x" * 8300 + b" HTTP/1.1\r\nHost: x\r\n\r\n")
    peer.expect_http(414)


@case("HTTP CONNECT", "over 100 fields are 431")
def many_fields(peer: Peer, target: Target) -> None:
    _over_http(target)
    fields = b"".join(b"X-%d: y\r\n" % number for number in range(120))
    peer.send(b"CONNECT /rpc HTTP/1.1\r\nHost: x\r\n" + fields + b"\r\n")
    peer.expect_http(431)


@case("HTTP CONNECT", "another version of HTTP is 505")
def other_http(peer: Peer, target: Target) -> None:
    _over_http(target)
    peer.send(b"CONNECT /rpc HTTP/2.0\r\nHost: x\r\n\r\n")
    peer.expect_http(505)


# Frames


@case("Frames", "a frame that comes a byte at a time is the same frame")
def frame_byte_by_byte(peer: Peer, target: Target) -> None:
    _open(peer, target)
    data = peer.wire.request(1, NOWHERE)
    peer.send(*(data[at : at + 1] for at in range(len(data))))
    peer.expect_error(1, "unimplemented", executed=False)


@case("Frames", "unknown types from 0x80 on are ignored, with any flags and id")
def ignorable(peer: Peer, target: Target) -> None:
    _open(peer, target)
    peer.send(frame(0x80, 2**64 - 1, b"header", b"body", 0xFF) + frame(0xFF, 0, b"", b"", 0x55))
    peer.expect_silence()


@case("Frames", "any other unknown type is a violation")
def unknown_type(peer: Peer, target: Target) -> None:
    _open(peer, target)
    peer.send(frame(0x0B, 9))
    peer.expect_violation()


@case("Frames", "a type that only a server sends is a violation")
def wrong_end(peer: Peer, target: Target) -> None:
    _open(peer, target)
    peer.send(frame(RESPONSE, 1))
    peer.expect_violation()


@case("Frames", "a flag that the type does not have is a violation")
def stray_flag(peer: Peer, target: Target) -> None:
    _open(peer, target)
    peer.send(frame(PING, 1, flags=RAW))
    peer.expect_violation()


@case("Frames", "RAW together with NAMED is a violation")
def raw_and_named(peer: Peer, target: Target) -> None:
    _open(peer, target)
    peer.send(peer.wire.request(1, NOWHERE, body=b"x", flags=RAW | NAMED))
    peer.expect_violation()


@case("Frames", "a PING with a body is a violation")
def ping_with_body(peer: Peer, target: Target) -> None:
    _open(peer, target)
    peer.send(frame(PING, 1, b"", b"x"))
    peer.expect_violation()


@case("Frames", "a body over the limit is a violation, found at the prefix")
def body_over_the_limit(peer: Peer, target: Target) -> None:
    answer = _open(peer, target)
    limit = answer.get("limits", {}).get("body", 2**32 - 1)
    if limit == 2**32 - 1:
        raise Skip("the server states no limit")
    peer.send(prefix(REQUEST, 0, 2, limit + 1, 1))
    peer.expect_violation()


@case("Frames", "a header over the limit is a violation, found at the prefix")
def header_over_the_limit(peer: Peer, target: Target) -> None:
    answer = _open(peer, target)
    limit = answer.get("limits", {}).get("header", 65535)
    if limit == 65535:
        raise Skip("the server states no limit")
    peer.send(prefix(REQUEST, 0, limit + 1, 0, 1))
    peer.expect_violation()


@case("Frames", "a second option line is a violation")
def second_line(peer: Peer, target: Target) -> None:
    _open(peer, target)
    peer.send(line(options(codec=target.codec)))
    peer.expect_violation()


@case("Frames", "the end of the stream inside a frame is a violation")
def cut_frame(peer: Peer, target: Target) -> None:
    if target.address.startswith(("tls", "https")):
        raise Skip("the end of a TLS client is the end of the connection")
    _open(peer, target)
    peer.send(peer.wire.request(1, NOWHERE)[:-1])
    peer.end()
    peer.expect_violation()


# Headers


@case("Headers", "an empty header of a REQUEST is a violation")
def empty_header(peer: Peer, target: Target) -> None:
    _open(peer, target)
    peer.send(frame(REQUEST, 1))
    peer.expect_violation()


@case("Headers", "a header that is no array is a violation")
def header_no_array(peer: Peer, target: Target) -> None:
    _open(peer, target)
    peer.send(frame(REQUEST, 1, peer.wire.encode({"method": NOWHERE})))
    peer.expect_violation()


@case("Headers", "a header that cannot be decoded is a violation")
def header_garbage(peer: Peer, target: Target) -> None:
    _open(peer, target)
    peer.send(frame(REQUEST, 1, b"\xc1\xff"))
    peer.expect_violation()


@case("Headers", "a method that is no string is a violation")
def method_no_string(peer: Peer, target: Target) -> None:
    _open(peer, target)
    peer.send(frame(REQUEST, 1, peer.wire.encode([5])))
    peer.expect_violation()


@case("Headers", "a timeout that is no number is a violation")
def timeout_no_number(peer: Peer, target: Target) -> None:
    _open(peer, target)
    peer.send(frame(REQUEST, 1, peer.wire.encode([NOWHERE, "soon"])))
    peer.expect_violation()


@case("Headers", "metadata that are no map of strings are a violation")
def metadata_of_numbers(peer: Peer, target: Target) -> None:
    _open(peer, target)
    peer.send(frame(REQUEST, 1, peer.wire.encode([NOWHERE, None, {"k": 1}])))
    peer.expect_violation()


@case("Headers", "over 64 entries of metadata are a violation")
def many_metadata(peer: Peer, target: Target) -> None:
    _open(peer, target)
    metadata = {f"k{number}": "v" for number in range(65)}
    peer.send(frame(REQUEST, 1, peer.wire.encode([NOWHERE, None, metadata])))
    peer.expect_violation()


@case("Headers", "a fifth field is a violation")
def fifth_field(peer: Peer, target: Target) -> None:
    _open(peer, target)
    peer.send(frame(REQUEST, 1, peer.wire.encode([NOWHERE, None, None, None, 1])))
    peer.expect_violation()


@case("Headers", "null for timeout and metadata is as if they were left out")
def null_fields(peer: Peer, target: Target) -> None:
    _open(peer, target)
    peer.send(frame(REQUEST, 1, peer.wire.encode([NOWHERE, None, None])))
    peer.expect_error(1, "unimplemented", executed=False)


@case("Headers", "a timeout of zero or less is deadline_exceeded, and the method does not run")
def timeout_of_zero(peer: Peer, target: Target) -> None:
    _open(peer, target)
    _call(peer, target, 1, timeout=0)
    peer.expect_error(1, "deadline_exceeded", executed=False)
    _call(peer, target, 2, timeout=-1.5)
    peer.expect_error(2, "deadline_exceeded", executed=False)


@case("Headers", "a timeout may have a fraction, and may be huge")
def odd_timeouts(peer: Peer, target: Target) -> None:
    _open(peer, target)
    _call(peer, target, 1, timeout=60_000.5)
    peer.expect_result(1, "text")
    _call(peer, target, 2, timeout=1e300)
    peer.expect_result(2, "text")


# Calls


@case("Calls", "an unknown method is unimplemented, and the connection goes on")
def unknown_method(peer: Peer, target: Target) -> None:
    _open(peer, target)
    for call_id, name in enumerate(("", "No.such", "a.b.c", "x\0y", "__class__", "No._private"), 1):
        peer.send(peer.wire.request(call_id, name, (1, "two")))
        peer.expect_error(call_id, "unimplemented", executed=False)


@case("Calls", "calls are answered, each with its own id")
def answers_by_id(peer: Peer, target: Target) -> None:
    _open(peer, target)
    method = _echo(target)
    peer.send(b"".join(peer.wire.request(n, method, (f"value {n}",)) for n in range(1, 21)))
    left = set(range(1, 21))
    while left:
        got = peer.expect(RESPONSE)
        if got.call_id not in left:
            raise Failure(f"call {got.call_id} is answered twice, or was never made")
        left.discard(got.call_id)
        if peer.decode(got.body) != f"value {got.call_id}":
            raise Failure(f"call {got.call_id} got {peer.decode(got.body)!r:.80}")


@case("Calls", "any id is accepted that is not 0 and not in flight")
def any_id(peer: Peer, target: Target) -> None:
    _open(peer, target)
    for call_id in (5, 2**64 - 1, 1, 5, 2**63):
        peer.send(peer.wire.request(call_id, NOWHERE))
        peer.expect_error(call_id, "unimplemented", executed=False)


@case("Calls", "the id 0 is a violation")
def id_zero(peer: Peer, target: Target) -> None:
    _open(peer, target)
    peer.send(peer.wire.request(0, NOWHERE))
    peer.expect_violation()


@case("Calls", "named arguments arrive under their names")
def named(peer: Peer, target: Target) -> None:
    _open(peer, target)
    body = peer.wire.encode([[], {"no_such_argument_of_any_method": 1}])
    peer.send(peer.wire.request(1, _echo(target), body=body, flags=NAMED))
    peer.expect_error(1, "invalid_argument", executed=False)


@case("Calls", "a body that cannot be decoded is invalid_argument, and the connection goes on")
def body_garbage(peer: Peer, target: Target) -> None:
    _open(peer, target)
    peer.send(peer.wire.request(1, _echo(target), body=b"\xc1\xff\xff"))
    peer.expect_error(1, "invalid_argument", executed=False)
    _call(peer, target, 2)
    peer.expect_result(2, "text")


@case("Calls", "bytes after the arguments are invalid_argument")
def trailing_bytes(peer: Peer, target: Target) -> None:
    _open(peer, target)
    body = peer.wire.encode(["text"])
    peer.send(peer.wire.request(1, _echo(target), body=body + b"\x01"))
    peer.expect_error(1, "invalid_argument", executed=False)


@case("Calls", "too many arguments are invalid_argument")
def too_many_arguments(peer: Peer, target: Target) -> None:
    _open(peer, target)
    peer.send(peer.wire.request(1, _echo(target), tuple(range(20))))
    peer.expect_error(1, "invalid_argument", executed=False)


@case("Calls", "nesting without end is invalid_argument")
def nesting(peer: Peer, target: Target) -> None:
    _open(peer, target)
    body = b"\x91" * 100_000 if target.codec == "msgpack" else b"[" * 100_000
    peer.send(peer.wire.request(1, _echo(target), body=body))
    peer.expect_error(1, "invalid_argument", executed=False)


@case("Calls", "a ONE_WAY call has no answer, whatever happens to it")
def one_way(peer: Peer, target: Target) -> None:
    _open(peer, target)
    peer.send(peer.wire.request(1, NOWHERE, flags=ONE_WAY))
    peer.expect_silence()


@case("Calls", "CANCEL for an id that is not in flight is ignored, 0 included")
def stray_cancel(peer: Peer, target: Target) -> None:
    _open(peer, target)
    peer.send(frame(CANCEL, 7) + frame(CANCEL, 0))
    peer.expect_silence()


@case("Calls", "values come back as they were")
def values(peer: Peer, target: Target) -> None:
    _open(peer, target)
    several: list[Any] = [
        None,
        True,
        0,
        -1,
        2**53,
        1.5,
        "",
        "h\u00e9llo \u4e16\u754c",
        [1, [2, []]],
        {"k": {"": [None]}},
    ]
    if target.codec == "msgpack":
        several += [b"\x00\xff", 2**64 - 1, -(2**63)]
    for call_id, value in enumerate(several, 1):
        _call(peer, target, call_id, value)
        peer.expect_result(call_id, value)


@case("Calls", "a RAW argument arrives as bytes, and comes back as bytes")
def raw(peer: Peer, target: Target) -> None:
    _open(peer, target)
    peer.send(peer.wire.request(1, _echo(target), body=b"\x00\xff{", flags=RAW))
    got = peer.expect(RESPONSE, 1)
    if not got.flags & RAW or got.body != b"\x00\xff{":
        raise Failure(f"the answer has flags {got.flags} and the body {got.body[:40]!r}")


@case("Calls", "a body of a million bytes passes")
def large_body(peer: Peer, target: Target) -> None:
    answer = _open(peer, target)
    if answer.get("limits", {}).get("body", 2**32) < 1_000_100:
        raise Skip("the server takes no such body")
    _call(peer, target, 1, "x" * 1_000_000)
    peer.expect_result(1, "x" * 1_000_000)


# Liveness


@case("Liveness", "a PING is answered with a PONG of the same id")
def ping(peer: Peer, target: Target) -> None:
    _open(peer, target)
    for call_id in (0, 1, 2**64 - 1):
        peer.send(frame(PING, call_id))
        got = peer.expect(PONG)
        if got.call_id != call_id:
            raise Failure(f"the PONG has id {got.call_id}, and the PING had {call_id}")


@case("Liveness", "a PONG that nobody asked for is no error")
def stray_pong(peer: Peer, target: Target) -> None:
    _open(peer, target)
    peer.send(frame(PONG, 5))
    peer.expect_silence()


# Shutdown


@case("Shutdown", "after a client's GOAWAY the server closes, once all is answered")
def client_goes_away(peer: Peer, target: Target) -> None:
    _open(peer, target)
    peer.send(peer.wire.request(1, NOWHERE) + peer.wire.goaway(0))
    peer.expect_error(1, "unimplemented", executed=False)
    _expect_goodbye(peer)


@case("Shutdown", "a client that only stops sending gets its answers, and then the end")
def client_stops_sending(peer: Peer, target: Target) -> None:
    if target.address.startswith(("tls", "https")):
        raise Skip("the end of a TLS client is the end of the connection")
    _open(peer, target)
    peer.send(peer.wire.request(1, NOWHERE))
    peer.end()
    peer.expect_error(1, "unimplemented", executed=False)
    _expect_goodbye(peer)


@case("Shutdown", "a GOAWAY that is no array of two strings is a violation")
def goaway_garbage(peer: Peer, target: Target) -> None:
    _open(peer, target)
    peer.send(frame(GOAWAY, 0, b"", peer.wire.encode([1, 2, 3])))
    peer.expect_violation()


def _expect_goodbye(peer: Peer) -> None:
    """Wait for the end, with or without a GOAWAY before it."""
    got = peer.frame()
    while got is not None and got.type in (PING, PONG):
        got = peer.frame()
    if got is not None:
        if got.type != GOAWAY:
            raise Failure(f"expected the end, and not a frame of type {got.type}")
        peer.expect_end()


# Violations


@case("Violations", "what came before a violation counts")
def before_a_violation(peer: Peer, target: Target) -> None:
    _open(peer, target)
    peer.send(frame(PING, 3))
    peer.expect(PONG)
    peer.send(frame(PING, 4) + frame(0x0B, 9))
    if peer.expect(PONG).call_id != 4:
        raise Failure("the PONG has another id")
    peer.expect_violation()


@case("Violations", "nothing after a violation is read")
def after_a_violation(peer: Peer, target: Target) -> None:
    _open(peer, target)
    peer.send(frame(0x0B, 9) + frame(PING, 4))
    peer.expect_violation()


# Streams


@case("Streams", "items come back in their order, and the answer ends the stream")
def items(peer: Peer, target: Target) -> None:
    method = _streams(peer, target)
    peer.send(
        peer.wire.request(1, method, flags=CLIENT_STREAM | SERVER_STREAM)
        + b"".join(frame(ITEM, 1, b"", peer.wire.encode(n)) for n in range(5))
        + frame(END, 1)
    )
    for number in range(5):
        if peer.decode(_next_item(peer).body) != number:
            raise Failure(f"item {number} is another one")
    peer.expect(RESPONSE, 1)


def _next_item(peer: Peer) -> Any:
    got = peer.frame()
    while got is not None and got.type in (CREDIT, PING):
        got = peer.frame()
    if got is None or got.type != ITEM:
        raise Failure(f"expected an ITEM, and not {got!r:.100}")
    return got


@case("Streams", "an ITEM for a call that is not in flight is ignored")
def stray_item(peer: Peer, target: Target) -> None:
    _streams(peer, target)
    peer.send(frame(ITEM, 9, b"", peer.wire.encode(1)) + frame(END, 9) + _credit(9, 5))
    peer.expect_silence()


def _credit(call_id: int, size: int) -> bytes:
    return frame(CREDIT, call_id, b"", size.to_bytes(4))


@case("Streams", "a CREDIT of 0 is a violation")
def no_credit(peer: Peer, target: Target) -> None:
    method = _streams(peer, target)
    peer.send(peer.wire.request(1, method, flags=CLIENT_STREAM | SERVER_STREAM) + _credit(1, 0))
    peer.expect_violation()


@case("Streams", "a second END is a violation")
def second_end(peer: Peer, target: Target) -> None:
    method = _streams(peer, target)
    request = peer.wire.request(1, method, flags=CLIENT_STREAM | SERVER_STREAM)
    # An item without credit is not sent, so the call is still in flight.
    item = frame(ITEM, 1, b"", peer.wire.encode("x" * 40_000))
    peer.send(request + item, frame(END, 1) + frame(END, 1))
    got = peer.frame()
    while got is not None and got.type in (CREDIT, ITEM, PING):
        got = peer.frame()
    if got is not None and got.type == RESPONSE:
        raise Skip("the call had ended already")
    if got is None or got.type != GOAWAY or peer.decode(got.body)[0] != "invalid_argument":
        raise Failure(f"expected GOAWAY with invalid_argument, and not {got!r:.100}")


@case("Streams", "a part of an item that is not 65536 bytes is a violation")
def short_part(peer: Peer, target: Target) -> None:
    method = _streams(peer, target)
    peer.send(
        peer.wire.request(1, method, flags=CLIENT_STREAM | SERVER_STREAM)
        + frame(ITEM, 1, b"", b"x" * 100, RAW | MORE)
    )
    peer.expect_violation()


@case("Streams", "a stream with ONE_WAY is a violation")
def one_way_stream(peer: Peer, target: Target) -> None:
    method = _streams(peer, target)
    peer.send(peer.wire.request(1, method, flags=CLIENT_STREAM | ONE_WAY))
    peer.expect_violation()


@case("Streams", "a method with a stream that is called without one is invalid_argument")
def stream_not_offered(peer: Peer, target: Target) -> None:
    method = _streams(peer, target)
    peer.send(peer.wire.request(1, method))
    peer.expect_error(1, "invalid_argument", executed=False)


@case("Streams", "without the feature, the frames of streams are a violation")
def feature_not_in_force(peer: Peer, target: Target) -> None:
    _open(peer, target)
    peer.send(frame(ITEM, 1, b"", peer.wire.encode(1)))
    peer.expect_violation()


@case("Streams", "a server that has no credit sends no item")
def items_wait_for_credit(peer: Peer, target: Target) -> None:
    method = _streams(peer, target)
    peer.send(peer.wire.request(1, method, flags=CLIENT_STREAM | SERVER_STREAM))
    item = frame(ITEM, 1, b"", peer.wire.encode("x" * 20_000))
    peer.send(item)
    _next_item(peer)  # more than all the credit there was
    peer.send(item)
    peer.expect_no_items()
    peer.send(_credit(1, 40_000))
    _next_item(peer)
