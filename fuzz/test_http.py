"""HTTP at a server's end: however the bytes are cut, whatever they are, and what they cost."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from budget import spread
from rpc_fuzz.strategies import chunks, client_streams, cut, http_streams, mutated
from rpc_fuzz.wire import START
from rpc_proto import (
    ConnectionTerminated,
    Event,
    HttpServed,
    RequestReceived,
    ResponsePromised,
    ServerConfig,
    ServerPort,
    State,
)
from rpc_proto.http import Promise, Request, Response
from rpc_proto.http.body import BodyReader
from rpc_proto.http.head import MAX_HEAD, HeadReader
from rpc_proto.http.messages import HttpError
from support.driving import caused

HIGH_WATER = 4096
LARGEST = 3000  # bytes of a page
MAX_BODY = 100


class Site:
    """A server, the pages that it shows, and the promises that it has given."""

    def __init__(self) -> None:
        config = ServerConfig(
            max_http_body=MAX_BODY,
            high_water=HIGH_WATER,
            max_calls=3,
            refusals=4,
            write_timeout=60.0,
        )
        self.server = ServerPort(config, now=START, application=self.show)
        self.seen: list[Any] = []
        self.promises: list[Promise] = []
        self.events: list[Event] = []
        self.sent = b""
        self.now = START

    def show(self, request: Request, now: float) -> Response | Promise:
        self.seen.append((request.method, request.target, dict(request.headers), request.body))
        assert len(request.body) <= MAX_BODY
        if request.path == "/later":
            promise = Promise(START + 2.0, lambda now: Response.text("late"))
            self.promises.append(promise)
            return promise
        if request.path == "/fails":
            raise RuntimeError("it fails")
        return Response(200, bytes(LARGEST if request.path == "/big" else 3))

    def feed(self, data: bytes) -> None:
        self.take(caused(self.server.receive_data, self.now, data))

    def wait_until(self, time: float) -> None:
        """Let time pass, with every wake-up on the way."""
        while (at := self.server.next_timeout()) is not None and at <= time:
            self.now = max(self.now, at)
            events = caused(self.server.handle_timeout, self.now)
            later = self.server.next_timeout()
            assert later is None or later > self.now
            self.take(events)  # and write, for which the next request may wait
        self.now = max(self.now, time)

    def take(self, events: list[Event]) -> None:
        self.events += events
        # Two answers of 100 may come before the page that fills it.
        assert self.server.outbound < HIGH_WATER + LARGEST + 1500
        self.sent += self.server.data_to_send()

    def outcome(self, exact: bool = True) -> Any:
        """All that can be seen; without `exact`, not what quotes the option line that had come."""
        told = [
            tuple(str(getattr(event, name)) for name in event.__slots__)
            for event in self.events
            if isinstance(event, HttpServed)
        ]
        return self.seen, told, self.sent if exact else b"", self.server.state


def visited(pieces: list[bytes], exact: bool = True) -> Any:
    site = Site()
    for piece in pieces:
        site.feed(piece)
        site.wait_until(site.now)
    site.wait_until(START + 1.0)
    return site.outcome(exact)


# Cuts


@spread(2)
@given(http_streams(), chunks)
def test_any_cut_of_requests_gives_the_same_answers(stream: bytes, sizes: list[int]) -> None:
    assert visited(cut(stream, sizes)) == visited([stream])


@spread(2)
@given(mutated(http_streams()), chunks)
def test_any_cut_of_broken_requests_gives_the_same_answers(stream: bytes, sizes: list[int]) -> None:
    assert visited(cut(stream, sizes), exact=False) == visited([stream], exact=False)


# Any bytes


@spread(2)
@given(
    mutated(http_streams()) | st.binary(max_size=200).map(lambda data: b"A" + data),
    chunks,
    st.sampled_from([0.0, 0.0, 0.3, 7.0]),
    st.sampled_from(["eof", "loss", "shutdown", "silence"]),
    st.booleans(),
)
def test_any_bytes_that_begin_like_http(
    stream: bytes, sizes: list[int], pause: float, finish: str, settles: bool
) -> None:
    site = Site()
    for piece in cut(stream, sizes):
        site.feed(piece)
        site.wait_until(site.now + pause)
        if settles:
            for promise in site.promises:
                promise.settle(Response.text("settled"))
    if finish == "eof":
        site.take(caused(site.server.receive_eof, site.now))
    elif finish == "shutdown":
        site.take(caused(site.server.shutdown, site.now))
    elif finish == "silence":
        site.wait_until(site.now + 200.0)
    site.take(caused(site.server.connection_lost, site.now))
    assert site.server.state is State.CLOSED
    assert site.server.next_timeout() is None
    kinds = [type(event) for event in site.events]
    assert kinds.count(ConnectionTerminated) == 1
    assert kinds[-1] is ConnectionTerminated
    assert all(promise.abandoned or promise.response for promise in site.promises)
    assert kinds.count(ResponsePromised) == len(site.promises)


@spread()
@given(http_streams(), client_streams("json"), chunks)
def test_a_tunnel_gives_the_calls_that_the_bytes_behind_it_would_give(
    pages: bytes, stream: bytes, sizes: list[int]
) -> None:
    def calls(site: Site) -> list[Any]:
        return [
            (event.call.id, event.call.method, event.call.body)
            for event in site.events
            if isinstance(event, RequestReceived)
        ]

    plain = Site()
    plain.feed(stream)
    site = Site()
    head = b"CONNECT x:1 HTTP/1.1\r\nHost: x:1\r\n\r\n"
    for piece in cut(b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n" + head + stream, sizes):
        site.feed(piece)
    assert calls(site) == calls(plain)
    assert site.server.state is plain.server.state
    assert site.sent.endswith(plain.sent)


# Work


class Counted(bytearray):
    """A buffer that counts the bytes that are searched in it or moved."""

    work = 0

    def find(self, what: Any, start: int = 0, end: int | None = None) -> int:  # type: ignore[override]
        found = super().find(what, start, len(self) if end is None else end)
        stop = len(self) if end is None else min(end, len(self))
        self.work += max(0, (found if found >= 0 else stop) - start)
        return found

    def __getitem__(self, where: Any) -> Any:
        taken = super().__getitem__(where)
        self.work += len(taken) if isinstance(where, slice) else 1
        return taken


def head_work(head: bytes, size: int) -> int:
    reader = HeadReader()
    reader.buffer = Counted()
    taken = None
    for start in range(0, len(head), size):
        reader.buffer += head[start : start + size]
        taken = reader.take()
    assert taken == head
    return reader.buffer.work


def body_work(body: bytes, length: int | None, size: int) -> int:
    buffer = Counted()
    reader = BodyReader(buffer, length, 2**20)
    for start in range(0, len(body), size):
        buffer += body[start : start + size]
        while not reader.read() and not reader.complete:
            pass
    assert reader.complete
    assert not buffer
    return buffer.work


@pytest.mark.parametrize("size", [1, 100, 65536])
def test_bytes_searched_in_a_head_are_linear(size: int) -> None:
    for fields in (b"X: " + b"a" * 32000, b"\r\n".join([b"X: " + b"a" * 300] * 99)):
        head = b"GET / HTTP/1.1\r\nHost: x\r\n" + fields + b"\r\n\r\n"
        # Two marks from three bytes before; and the end of the request line, which is near.
        assert head_work(head, size) <= 3 * len(head) + 30 * (len(head) // size + 1)


@pytest.mark.parametrize("size", [1, 100, 65536])
@pytest.mark.parametrize("chunk", [1, 10, 5000])
def test_bytes_touched_in_a_body_are_linear(size: int, chunk: int) -> None:
    total = 100_000
    chunked = (b"%x;ext\r\n" % chunk + bytes(chunk) + b"\r\n") * (total // chunk) + b"0\r\n\r\n"
    if chunk < 100:
        chunked = chunked.replace(b";ext", b"")
    for body, length in ((bytes(total), total), (chunked, None)):
        assert body_work(body, length, size) <= 3 * len(body)


@spread()
@given(st.binary(max_size=300), st.integers(0, 40), chunks, st.booleans())
def test_a_body_is_what_was_sent(data: bytes, size: int, sizes: list[int], upper: bool) -> None:
    written = b"".join(
        (b"%X\r\n" if upper else b"%x;a=b\r\n") % len(piece) + piece + b"\r\n"
        for piece in cut(data, [size] * 10 if size else [])
        if piece
    )
    for stream, length in ((data, len(data)), (written + b"0\r\nX: y\r\n\r\n", None)):
        buffer = bytearray()
        reader = BodyReader(buffer, length, 300)
        for piece in cut(stream + b"next", sizes):
            buffer += piece
            reader.read()
        while not reader.complete:
            reader.read()
        assert bytes(reader.data) == data
        assert buffer == b"next"


@spread()
@given(st.binary(max_size=60), chunks)
def test_any_chunked_body_is_read_or_refused(data: bytes, sizes: list[int]) -> None:
    buffer = bytearray()
    reader = BodyReader(buffer, None, 30)
    for piece in cut(data, sizes):
        buffer += piece
        try:
            reader.read()
        except HttpError:
            break
        assert len(reader.data) <= 30
    assert len(buffer) <= MAX_HEAD
