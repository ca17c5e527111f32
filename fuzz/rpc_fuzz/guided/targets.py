"""What coverage-guided fuzzing calls with bytes: each raises AssertionError if a promise breaks.

Any other exception is a broken promise, too: the core raises none, whatever bytes arrive.
"""

from collections.abc import Callable
from typing import Any

from rpc_fuzz.pair import Pair
from rpc_fuzz.wire import START, answer, line, open_client, open_server, options
from rpc_proto import (
    Aborted,
    CallCompleted,
    CallFailed,
    ConnectionTerminated,
    HandshakeError,
    RequestReceived,
    ServerConfig,
    ServerPort,
    State,
    find_codec,
)
from rpc_proto.connection.base import Connection
from rpc_proto.connection.streams.halves import Half
from rpc_proto.http import Request, Response
from rpc_proto.wire.frames import FrameReader
from rpc_proto.wire.handshake import parse_answer, parse_options

__all__ = ["SEEDS", "TARGETS"]

TARGETS: dict[str, Callable[[bytes], None]] = {}


def target(function: Callable[[bytes], None]) -> Callable[[bytes], None]:
    """Add a target."""
    TARGETS[function.__name__] = function
    return function


def _pieces(data: bytes) -> tuple[bytes, list[bytes]]:
    """Take the first bytes for what to cut, and return the rest, whole and in pieces."""
    size, rest = data[0] % 19 + 1, data[1:]
    return rest, [rest[at : at + size] for at in range(0, len(rest), size)]


# Frames and lines


@target
def framing(data: bytes) -> None:
    """However a stream is cut, it has the same frames and the same violation."""
    if not data:
        return
    whole, pieces = _pieces(data)
    one, other = (FrameReader(300, 5000, streams=True) for _ in range(2))
    frames = one.feed(whole)
    assert [frame for piece in pieces for frame in other.feed(piece)] == frames
    assert one.error == other.error
    if one.error is None:
        assert one.mid_frame == other.mid_frame
        assert one.missing == other.missing


@target
def handshake(data: bytes) -> None:
    """A line is understood, or refused with a code."""
    parsers: list[Callable[[bytes], object]] = [parse_options, parse_answer]
    for parse in parsers:
        refused: HandshakeError | None = None
        try:
            parse(data)
        except HandshakeError as error:
            refused = error
        assert refused is None or (refused.code and refused.message)


# Connections


def _check_end(end: Connection, now: float) -> None:
    at = end.next_timeout()
    assert at is None or at >= now
    if end.state is State.CLOSED:
        assert at is None
        assert not end.data_to_send()


@target
def server(data: bytes) -> None:
    """A server takes any bytes behind a handshake, and answers each call once."""
    if len(data) < 2:
        return
    whole, pieces = _pieces(data[1:])
    config = ServerConfig(ping_interval=None, max_calls=5, refusals=20)
    codec = "json" if data[0] & 1 else "msgpack"
    changes: dict[str, Any] = {"features": ["streams"]} if data[0] & 2 else {}
    seen: list[list[str]] = []
    for parts in ([whole], pieces):
        end = open_server(config, codec, **changes)
        told: list[str] = []
        calls: list[
            Any
        ] = []  # answered when all has come: whether an id is in flight depends on it
        for part in parts:
            end.receive_data(START, part)
            for event in end.events():
                if isinstance(event, RequestReceived):
                    told.append(f"{event.call.id} {event.call.method!r} {event.call.body!r}")
                    calls.append(event.call)
                elif isinstance(event, ConnectionTerminated):
                    told.append("terminated")
            end.data_to_send()
            _check_end(end, START)
        seen.append(told)
        for call in calls:
            if data[0] & 4:
                end.send_response(START, call, [call.id])
            else:
                end.send_error(START, call, Aborted("no"))
        end.data_to_send()
        _check_end(end, START)
        end.receive_eof(START)
        end.handle_timeout(START + 100.0)
        end.events()
        _check_end(end, START + 100.0)
    assert seen[0] == seen[1]


@target
def client(data: bytes) -> None:
    """A client takes any bytes behind a handshake, and each of its calls ends once."""
    if len(data) < 2:
        return
    _, pieces = _pieces(data[1:])
    codec = "json" if data[0] & 1 else "msgpack"
    end = open_client(codec=codec, features=["streams"])
    calls = [end.start_call(START, "A.b", [1], deadline=START + 5.0) for _ in range(3)]
    calls.append(end.start_call(START, "A.c", client_stream=True, server_stream=True))
    ended: list[Any] = []
    for number, part in enumerate(pieces):
        end.receive_data(START, part)
        ended += _ends(end)
        if number == data[0] % 7:
            end.cancel(START, calls[0])
        end.data_to_send()
        _check_end(end, START)
    end.connection_lost(START)
    ended += _ends(end)
    assert sorted(call.id for call in ended) == [call.id for call in calls]
    _check_end(end, START)


def _ends(end: Any) -> list[Any]:
    return [event.call for event in end.events() if isinstance(event, (CallCompleted, CallFailed))]


# HTTP


@target
def http(data: bytes) -> None:
    """A port takes any first bytes; requests cut in another way are the same requests."""
    if not data:
        return
    whole, pieces = _pieces(data)
    seen: list[list[Any]] = []
    for parts in ([whole], pieces):
        asked: list[Any] = []

        def show(request: Request, now: float, asked: list[Any] = asked) -> Response:
            asked.append((request.method, request.target, dict(request.headers), request.body))
            return Response(200, b"ok")

        port = ServerPort(ServerConfig(), now=START, application=show)
        for part in parts:
            port.receive_data(START, part)
            port.events()
            port.data_to_send()
            for _ in range(20):  # pages and requests take turns
                port.handle_timeout(START)
                port.events()
                port.data_to_send()
        port.receive_eof(START)
        port.events()
        seen.append(asked)
    assert seen[0] == seen[1]


# Codecs


def _decoding(name: str) -> Callable[[bytes], None]:
    codec = find_codec(name)

    def decode(data: bytes) -> None:
        bound = codec.growth(data)
        try:
            value = codec.decode(data)
        except (ValueError, RecursionError):  # msgspec's errors are ValueErrors
            return
        again = codec.encode(value)
        assert codec.encode(codec.decode(again)) == again
        assert bound >= len(data)

    return decode


TARGETS["msgpack"] = _decoding("msgpack")
TARGETS["json"] = _decoding("json")

# Streams


@target
def streams(data: bytes) -> None:
    """Bytes are commands: items arrive once, in order, and never without credit."""
    pair = Pair().open()
    calls: list[Any] = []
    served: dict[int, Any] = {}
    sent: dict[tuple[int, bool], list[int]] = {}
    taken: dict[tuple[int, bool], list[int]] = {}

    def arrived(event: Any) -> None:
        if isinstance(event, RequestReceived):
            served[event.call.id] = event.call

    pair.on_server_event = arrived
    for number, code in enumerate(data[:400]):
        kind, which = code & 7, code >> 3
        if kind == 0 and len(calls) < 4:
            sends, takes = bool(which & 1), bool(which & 2)
            if sends or takes:
                start = pair.client.start_call
                calls.append(start(pair.now, "S.m", client_stream=sends, server_stream=takes))
            continue
        if kind == 7:
            pair.advance((which & 7) / 10)
            continue
        if kind == 6:
            pair.carry(pair.up if which & 1 else pair.down)
            continue
        if not calls:
            continue
        call = calls[which % len(calls)]
        up = bool(which & 4)
        end: Any = pair.client if up else pair.server
        half_call = call if up else served.get(call.id)
        if half_call is None:
            continue
        half = half_call.sending
        if kind in (1, 2) and half is not None and half.writable:
            size = (10, 20_000, 70_000, 200_000)[number & 3]
            end.send_item(pair.now, half_call, [number, "x" * size])
            sent.setdefault((call.id, up), []).append(number)
        elif kind == 3:
            other: Any = pair.server if up else pair.client
            receiver = served.get(call.id) if up else call
            if receiver is not None and receiver.receiving is not None and receiver.receiving.items:
                value = other.take_item(pair.now, receiver)
                taken.setdefault((call.id, up), []).append(value[0])
        elif kind == 4 and up and half is not None and half.state is Half.OPEN:
            if half.rest is None:
                pair.client.end_items(pair.now, call)
        elif kind == 5:
            if up:
                pair.client.cancel(pair.now, call)
            elif not half_call.ended and (half is None or half.rest is None):
                pair.server.send_response(pair.now, half_call, None)
    pair.pump()
    for key, numbers in taken.items():
        assert numbers == sent[key][: len(numbers)]
    pair.lose()
    assert not len(pair.client.calls)
    assert len(_all_ends(pair)) == len(calls)


def _all_ends(pair: Pair) -> list[Any]:
    return [event for event in pair.client_events if isinstance(event, (CallCompleted, CallFailed))]


# What to begin with

SEEDS: dict[str, list[bytes]] = {
    "framing": [b"\x03" + bytes.fromhex("01000002000000030000000000000001") + b"ab123"],
    "handshake": [line(options()), line(answer())],
    "server": [
        b"\x04\x05" + bytes.fromhex("0100000800000003000000000000000191a64b762e67657491a178"),
        b"\x02\x07" + bytes.fromhex("0b000000000000000000000000000009"),
    ],
    "client": [b"\x00\x05" + bytes.fromhex("0200000000000001000000000000000103")],
    "http": [
        b"\x07GET /a HTTP/1.1\r\nHost: x\r\n\r\n",
        (
            b"\x07POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
            b"3\r\nabc\r\n0\r\n\r\n"
        ),
        b"\x07CONNECT /rpc HTTP/1.0\n\n" + line(options()),
    ],
    "msgpack": [bytes.fromhex("92 01 82 a1 61 c0 a1 62 cb3ff0000000000000")],
    "json": [b'[1, {"a": null, "b": [1.5, "\\u20ac"]}]'],
    "streams": [bytes([0x18, 6, 0x0E, 1, 0x21, 6, 0x0E, 0x23, 3, 0x24, 5])],
}
