"""Bytes: however they are cut, and whatever they are."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from budget import spread
from rpc_fuzz.strategies import (
    any_frames,
    any_prefixes,
    chunks,
    client_streams,
    codecs,
    cut,
    mutated,
    server_streams,
    trace,
)
from rpc_fuzz.wire import PING, START, answer, frame, line, open_client, open_server, options
from rpc_proto import (
    CallCancelled,
    CallCompleted,
    CallFailed,
    ClientConfig,
    ClientConnection,
    ConnectionTerminated,
    Event,
    RequestReceived,
    ServerConfig,
    ServerConnection,
    State,
)
from rpc_proto.connection.base import Connection
from rpc_proto.wire.frames import PREFIX_SIZE, FrameReader
from support.driving import caused


def new_server() -> ServerConnection:
    return ServerConnection(ServerConfig(max_calls=3, refusals=4), now=START)


def new_client(codec: str) -> ClientConnection:
    client = ClientConnection(ClientConfig(codec=codec), now=START)
    for number in range(4):
        deadline = START + 5 if number == 1 else None
        client.start_call(START, "Echo.echo", (number,), deadline=deadline)
    return client


def fed(end: Connection, pieces: list[bytes], *, exact: bool = True) -> Any:
    """All that can be seen of an end that got these pieces."""
    events: list[Event] = []
    for piece in pieces:
        events += caused(end.receive_data, START, piece)
    out = end.data_to_send() if exact else b""
    return trace(events, exact=exact), out, end.state, end.ignored, end.next_timeout()


def check_life(end: Connection, pieces: list[bytes], pause: float, finish: str) -> None:
    """Feed an end, let time pass, finish it; hold it to what must be true of every end."""
    now = START
    events: list[Event] = []
    for piece in pieces:
        events += caused(end.receive_data, now, piece)
        now += pause
        at = end.next_timeout()
        if at is not None and at <= now:
            events += caused(end.handle_timeout, now)
            later = end.next_timeout()
            assert later is None or later > now
        end.data_to_send()
    if finish == "eof":
        events += caused(end.receive_eof, now)
    elif finish == "shutdown":
        events += caused(end.shutdown, now)
    events += caused(end.connection_lost, now)
    assert end.state is State.CLOSED
    assert end.next_timeout() is None
    assert end.data_to_send() == b""
    assert not len(end.calls)
    kinds = [type(event) for event in events]
    assert kinds.count(ConnectionTerminated) == 1
    assert kinds[-1] is ConnectionTerminated
    begun = [event.call for event in events if isinstance(event, RequestReceived)]
    if isinstance(end, ServerConnection):
        ended = [event.call for event in events if isinstance(event, CallCancelled)]
        assert sorted(map(id, begun)) == sorted(map(id, ended))
    else:
        done = [event.call.id for event in events if isinstance(event, (CallCompleted, CallFailed))]
        assert len(done) == len(set(done)) == end._serial


lives = st.tuples(
    st.sampled_from([0.0, 0.0, 0.5, 7.0, 30.0]), st.sampled_from(["eof", "shutdown", "loss"])
)


# Cuts


@spread(2)
@given(st.data(), codecs, chunks)
def test_any_cut_of_a_client_stream_gives_the_same_events(
    data: st.DataObject, codec: str, sizes: list[int]
) -> None:
    stream = data.draw(client_streams(codec))
    whole = fed(new_server(), [stream])
    assert whole[0][0][0] == "HandshakeCompleted"
    assert fed(new_server(), cut(stream, sizes)) == whole


@spread(2)
@given(st.data(), codecs, chunks)
def test_any_cut_of_a_server_stream_gives_the_same_events(
    data: st.DataObject, codec: str, sizes: list[int]
) -> None:
    stream = data.draw(server_streams(codec))
    whole = fed(new_client(codec), [stream])
    assert "HandshakeCompleted" in [entry[0] for entry in whole[0]]
    assert fed(new_client(codec), cut(stream, sizes)) == whole


@spread()
@given(st.data(), codecs, chunks)
def test_any_cut_of_a_broken_client_stream_gives_the_same_events(
    data: st.DataObject, codec: str, sizes: list[int]
) -> None:
    stream = data.draw(mutated(client_streams(codec)))
    whole = fed(new_server(), [stream], exact=False)
    assert fed(new_server(), cut(stream, sizes), exact=False) == whole


@spread()
@given(st.data(), codecs, chunks)
def test_any_cut_of_a_broken_server_stream_gives_the_same_events(
    data: st.DataObject, codec: str, sizes: list[int]
) -> None:
    stream = data.draw(mutated(server_streams(codec)))
    whole = fed(new_client(codec), [stream], exact=False)
    assert fed(new_client(codec), cut(stream, sizes), exact=False) == whole


@spread(2)
@given(st.lists(any_frames | any_prefixes | st.binary(max_size=40), max_size=6), chunks)
def test_any_cut_of_any_frames_gives_the_same_frames(parts: list[bytes], sizes: list[int]) -> None:
    stream = b"".join(parts)
    whole, pieces = FrameReader(64, 128), FrameReader(64, 128)
    frames = whole.feed(stream)
    assert [one for piece in cut(stream, sizes) for one in pieces.feed(piece)] == frames
    assert (pieces.error, pieces.missing, pieces.mid_frame) == (
        whole.error,
        whole.missing,
        whole.mid_frame,
    )
    read = b"".join(frame(*one[:1], one[2], one[3], one[4], one[1]) for one in frames)
    assert stream.startswith(read)
    if whole.error is None and not whole.mid_frame:
        assert stream == read


# Any bytes


@spread()
@given(st.lists(st.binary(max_size=100), max_size=5), lives)
def test_any_bytes_in_the_handshake_of_a_server(pieces: list[bytes], life: Any) -> None:
    check_life(new_server(), pieces, *life)


@spread()
@given(st.lists(st.binary(max_size=100), max_size=5), lives, codecs)
def test_any_bytes_in_the_handshake_of_a_client(pieces: list[bytes], life: Any, codec: str) -> None:
    check_life(new_client(codec), pieces, *life)


open_pieces = st.lists(st.binary(max_size=100) | any_frames | any_prefixes, max_size=6)


@spread()
@given(open_pieces, lives, codecs)
def test_any_bytes_at_an_open_server(pieces: list[bytes], life: Any, codec: str) -> None:
    check_life(new_server(), [line(options(codec=codec)), *pieces], *life)


@spread()
@given(open_pieces, lives, codecs)
def test_any_bytes_at_an_open_client(pieces: list[bytes], life: Any, codec: str) -> None:
    check_life(new_client(codec), [line(answer(codec=codec)), *pieces], *life)


@spread()
@given(st.data(), codecs, chunks, lives)
def test_any_change_to_a_client_stream(
    data: st.DataObject, codec: str, sizes: list[int], life: Any
) -> None:
    stream = data.draw(mutated(client_streams(codec)))
    check_life(new_server(), cut(stream, sizes), *life)


@spread()
@given(st.data(), codecs, chunks, lives)
def test_any_change_to_a_server_stream(
    data: st.DataObject, codec: str, sizes: list[int], life: Any
) -> None:
    stream = data.draw(mutated(server_streams(codec)))
    check_life(new_client(codec), cut(stream, sizes), *life)


# Work


def copied_by(reader: FrameReader, pieces: list[bytes]) -> int:
    """Bytes that a reader moved to keep them: what it holds counts when it is a new object."""
    copied = 0
    held: Any = None
    for piece in pieces:
        reader.feed(piece)
        copied += len(piece) + len(reader._prefix)
        if reader._fields and reader._part is not held:
            held = reader._part
            copied += held.tell()
    return copied


@spread(0.5)
@given(st.lists(st.integers(0, 5000), min_size=1, max_size=5), st.integers(1, 700))
def test_bytes_copied_are_linear_in_the_bytes_received(bodies: list[int], size: int) -> None:
    stream = b"".join(frame(1, 1, b"head", bytes(body)) for body in bodies)
    pieces = [stream[start : start + size] for start in range(0, len(stream), size)]
    copied = copied_by(FrameReader(64, 8192), pieces)
    # A piece is copied once, twice where a frame begins in it, with a part of a prefix before it.
    assert copied <= 3 * len(stream) + PREFIX_SIZE * len(pieces)


@pytest.mark.parametrize("make", [open_server, open_client])
def test_frames_handled_are_as_many_as_came(make: Callable[[], Connection]) -> None:
    end = make()
    for size in (1, 7, 16, 100):
        stream = frame(PING, 1) * 100
        for start in range(0, len(stream), size):
            end.receive_data(START, stream[start : start + size])
        assert len(end.data_to_send()) == len(stream)
