"""Faults in the framing: lengths, types, cuts and floods."""

import tracemalloc
from collections.abc import Callable

import pytest

from rpc_fuzz.pair import Pair, only, outcome, termination
from rpc_fuzz.wire import (
    CODECS,
    GOAWAY,
    NAMED,
    PING,
    PONG,
    RAW,
    REQUEST,
    RESPONSE,
    START,
    Frame,
    Wire,
    frame,
    frames_in,
    open_client,
    open_server,
    prefix,
)
from rpc_proto import (
    CallCancelled,
    CallCompleted,
    ClientConfig,
    RemoteProtocolError,
    RequestReceived,
    ServerConfig,
    State,
)
from rpc_proto.wire.frames import FrameReader
from support.driving import caused

KIB = 1024
MIB = 1024 * 1024


def violation(events: list) -> RemoteProtocolError:
    error = termination(events)
    assert isinstance(error, RemoteProtocolError)
    return error


def peak_of(action: Callable[[], object]) -> int:
    """The most bytes that were allocated at a time."""
    tracemalloc.start()
    try:
        action()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.fault(10)
@pytest.mark.parametrize(
    "sizes", [{"body_size": 2**32 - 1}, {"header_size": 2**16 - 1, "body_size": 2**32 - 1}]
)
def test_largest_length_ends_the_connection_at_the_prefix_without_an_allocation(
    sizes: dict[str, int],
) -> None:
    server = open_server()
    events: list = []
    data = prefix(REQUEST, call_id=1, **sizes)
    assert peak_of(lambda: events.extend(caused(server.receive_data, START, data))) < 64 * KIB
    violation(events)


@pytest.mark.fault(10)
def test_largest_length_from_a_server_ends_the_connection_at_the_prefix() -> None:
    client = open_client()
    call = client.start_call(START, "Arith.add")
    events = caused(
        client.receive_data, START, prefix(RESPONSE, body_size=2**32 - 1, call_id=call.id)
    )
    violation(events)


@pytest.mark.fault(10)
def test_announced_body_costs_only_what_has_arrived() -> None:
    server = open_server(ServerConfig(max_body=2**32 - 1))
    data = prefix(REQUEST, body_size=2**32 - 1, call_id=1) + bytes(KIB)
    assert peak_of(lambda: caused(server.receive_data, START, data)) < 64 * KIB
    assert server.state is State.OPEN
    assert server.missing == 2**32 - 1 - KIB


@pytest.mark.fault(11)
@pytest.mark.parametrize("codec", CODECS)
def test_body_of_exactly_the_limit_is_accepted(codec: str) -> None:
    server = open_server(ServerConfig(max_body=8 * KIB), codec)
    data = Wire(codec).request(1, body=bytes(8 * KIB), flags=RAW)
    assert len(only(caused(server.receive_data, START, data), RequestReceived).call.body) == 8 * KIB


@pytest.mark.fault(11)
@pytest.mark.parametrize("codec", CODECS)
def test_body_one_byte_over_the_limit_ends_the_connection(codec: str) -> None:
    server = open_server(ServerConfig(max_body=8 * KIB), codec)
    data = Wire(codec).request(1, body=bytes(8 * KIB + 1), flags=RAW)
    error = violation(caused(server.receive_data, START, data[:16]))
    assert "8193" in str(error)


@pytest.mark.fault(11)
def test_limits_of_the_client_bound_answers_in_the_same_way() -> None:
    client = open_client(ClientConfig(max_body=8 * KIB))
    exact, over = (client.start_call(START, "Arith.add") for _ in range(2))
    body = bytes(8 * KIB)
    [event] = caused(client.receive_data, START, frame(RESPONSE, exact.id, body=body, flags=RAW))
    assert event.value == body
    violation(
        caused(client.receive_data, START, frame(RESPONSE, over.id, body=body + b"x", flags=RAW))
    )


@pytest.mark.fault(12)
def test_request_without_header_is_a_violation() -> None:
    violation(caused(open_server().receive_data, START, frame(REQUEST, 1)))


@pytest.mark.fault(12)
@pytest.mark.parametrize("codec", CODECS)
def test_request_without_body_has_no_arguments(codec: str) -> None:
    server = open_server(codec=codec)
    call = only(caused(server.receive_data, START, Wire(codec).request(1)), RequestReceived).call
    assert call.body == b""


@pytest.mark.fault(12)
@pytest.mark.parametrize("codec", CODECS)
def test_response_without_body_is_none(codec: str) -> None:
    client = open_client(codec=codec)
    call = client.start_call(START, "Arith.add")
    assert (
        only(caused(client.receive_data, START, frame(RESPONSE, call.id)), CallCompleted).value
        is None
    )


@pytest.mark.fault(12)
def test_raw_request_without_body_is_one_empty_argument() -> None:
    server = open_server()
    data = Wire().request(1, body=b"", flags=RAW)
    call = only(caused(server.receive_data, START, data), RequestReceived).call
    assert (call.flags, call.body) == (RAW, b"")


@pytest.mark.fault(12)
def test_frames_of_zero_lengths_each_consume_their_prefix() -> None:
    server = open_server()
    assert caused(server.receive_data, START, frame(PONG) * 1000) == []
    assert server.state is State.OPEN
    assert server.missing == 0


@pytest.mark.fault(12)
def test_empty_reads_change_nothing() -> None:
    server = open_server()
    data = Wire().request(1, args=[1, 2])
    events = []
    for byte in data:
        events += caused(server.receive_data, START, b"")
        events += caused(server.receive_data, START, bytes([byte]))
    only(events, RequestReceived)


@pytest.mark.fault(13)
def test_header_longer_than_its_cap_ends_the_connection_at_the_prefix() -> None:
    server = open_server(ServerConfig(max_header=256))
    error = violation(
        caused(server.receive_data, START, prefix(REQUEST, header_size=257, call_id=1))
    )
    assert "257" in str(error)


@pytest.mark.fault(13)
def test_header_of_exactly_its_cap_is_accepted() -> None:
    wire = Wire()
    size = 256 - len(wire.encode(["S.m", None, {"k": "x" * 200}])) + 200
    data = wire.request(1, "S.m", metadata={"k": "x" * size})
    assert Frame(*FrameReader(256, 0).feed(data)[0]).header
    server = open_server(ServerConfig(max_header=256))
    only(caused(server.receive_data, START, data), RequestReceived)


@pytest.mark.fault(14)
@pytest.mark.parametrize("kind", [0x00, 0x08, 0x0F, 0x10, 0x41, 0x7F])
@pytest.mark.parametrize("end", ["server", "client"])
def test_unknown_frame_type_is_a_violation(kind: int, end: str) -> None:
    connection = open_server() if end == "server" else open_client()
    violation(caused(connection.receive_data, START, prefix(kind)))


@pytest.mark.fault(14)
@pytest.mark.parametrize("kind", [0x80, 0xAA, 0xFF])
@pytest.mark.parametrize("end", ["server", "client"])
def test_frame_type_of_the_ignorable_range_is_ignored_whole_and_counted(
    kind: int, end: str
) -> None:
    connection = open_server() if end == "server" else open_client()
    data = frame(kind, 7, b"header", b"body", flags=0xFF)
    assert caused(connection.receive_data, START, data + frame(PING, 3)) == []
    assert connection.ignored == 1
    assert frames_in(connection.data_to_send()) == [Frame(PONG, 0, 3, b"", b"")]


@pytest.mark.fault(14)
@pytest.mark.parametrize(
    "data",
    [
        prefix(REQUEST, 0x10, call_id=1),
        prefix(REQUEST, 0x80, call_id=1),
        prefix(RESPONSE, NAMED, call_id=1),
        prefix(PING, 1),
        prefix(PING, header_size=1),
        prefix(PONG, body_size=1),
        prefix(4, body_size=1, call_id=1),
        prefix(GOAWAY, header_size=1),
        prefix(GOAWAY, 1),
    ],
)
@pytest.mark.parametrize("end", ["server", "client"])
def test_flag_or_part_that_a_frame_type_does_not_have_is_a_violation(data: bytes, end: str) -> None:
    connection = open_server() if end == "server" else open_client()
    violation(caused(connection.receive_data, START, data))


@pytest.mark.fault(15)
@pytest.mark.parametrize("codec", CODECS)
def test_end_inside_a_frame_is_a_violation_and_delivers_nothing_partial(codec: str) -> None:
    data = Wire(codec).request(1, args=[1, 2])
    for cut in range(1, len(data)):
        server = open_server(codec=codec)
        assert caused(server.receive_data, START, data[:cut]) == []
        events = caused(server.receive_eof, START)
        violation(events)
        assert len(events) == 1
        [goaway] = frames_in(server.data_to_send())
        assert (goaway.type, goaway.call_id) == (GOAWAY, 0)
        assert server.state is State.CLOSING


@pytest.mark.fault(15)
def test_end_inside_a_frame_comes_behind_the_events_before_it() -> None:
    server = open_server()
    wire = Wire()
    events = caused(server.receive_data, START, wire.request(1) + wire.request(2)[:20])
    events += caused(server.receive_eof, START)
    assert [type(event) for event in events[:2]] == [RequestReceived, CallCancelled]
    violation(events)


@pytest.mark.fault(15)
def test_reset_inside_an_answer_fails_the_call_as_maybe_executed() -> None:
    client = open_client()
    call = client.start_call(START, "Arith.add")
    client.receive_data(START, Wire().response(call.id, "x" * 100)[:50])
    events = caused(client.connection_lost, START, "reset by peer")
    error = outcome(events)
    assert (error.code, error.maybe_executed) == ("unavailable", True)
    assert "inside a frame" in str(termination(events))


@pytest.mark.fault(16)
@pytest.mark.parametrize("codec", CODECS)
def test_mebibyte_a_byte_at_a_time_gives_the_same_event(codec: str) -> None:
    data = Wire(codec).request(1, body=bytes(range(256)) * (4 * KIB), flags=RAW, timeout=5000)
    whole = only(caused(open_server(codec=codec).receive_data, START, data), RequestReceived).call
    server = open_server(codec=codec)
    events = []
    for start in range(len(data)):
        events += caused(server.receive_data, START, data[start : start + 1])
    bitwise = only(events, RequestReceived).call
    assert (bitwise.method, bitwise.deadline, bitwise.body) == (
        whole.method,
        whole.deadline,
        whole.body,
    )


@pytest.mark.fault(16)
def test_bytes_held_of_a_frame_are_never_copied_again_as_more_arrive() -> None:
    # What grows in place keeps its identity; a copy for each piece would make the cost quadratic.
    reader = FrameReader(16 * KIB, 16 * MIB)
    reader.feed(prefix(REQUEST, RAW, 0, MIB, 1))
    reader.feed(b"x")
    held = reader._part
    for _ in range(1000):
        reader.feed(b"x" * KIB)
        assert reader._part is held
    assert reader.missing == MIB - 1 - 1000 * KIB


@pytest.mark.fault(16)
def test_memory_while_a_body_trickles_in_is_its_own_size() -> None:
    reader = FrameReader(16 * KIB, 16 * MIB)
    reader.feed(prefix(REQUEST, RAW, 0, MIB, 1))

    def trickle() -> None:
        for _ in range(1023):
            reader.feed(b"x" * KIB)

    # A quarter for the way in which a bytearray grows.
    assert peak_of(trickle) < MIB * 5 // 4 + 64 * KIB


@pytest.mark.fault(17)
def test_endless_body_is_capped_as_a_whole() -> None:
    # The only message of several pieces is a frame whose length was checked at its prefix.
    server = open_server(ServerConfig(max_body=64 * KIB))
    server.receive_data(START, prefix(REQUEST, RAW, 0, 64 * KIB, 1))
    for _ in range(63):
        assert caused(server.receive_data, START, bytes(KIB)) == []
    assert server.missing == KIB
    # What comes behind the announced length is another frame, here one of an unknown type.
    violation(caused(server.receive_data, START, bytes(2 * KIB)))


@pytest.mark.fault(17)
@pytest.mark.parametrize("kind", [0x08, 0x09])
def test_frame_types_reserved_for_streams_are_violations_until_they_exist(kind: int) -> None:
    violation(caused(open_server().receive_data, START, prefix(kind, call_id=1)))


@pytest.mark.fault(18)
def test_flood_of_tiny_frames_leaves_a_bounded_answer() -> None:
    server = open_server(ServerConfig(high_water=64 * KIB, ping_interval=None))
    server.receive_data(START, frame(PING) * 100_000)
    # Those over the high-water mark are not answered: the peer would have to read first.
    assert len(server.data_to_send()) <= 64 * KIB + 16
    assert server.ignored == 100_000 - 64 * KIB // 16


@pytest.mark.fault(18)
def test_flood_of_tiny_requests_leaves_a_bounded_table() -> None:
    server = open_server(ServerConfig(max_calls=16, refusals=10_000))
    data = b"".join(Wire().request(number, "S.m") for number in range(1, 5001))
    server.receive_data(START, data)
    assert server.calls_in_flight == 16


@pytest.mark.fault(18)
def test_connections_share_no_state_so_a_flood_on_one_leaves_another_alone() -> None:
    flooded, other = Pair().open(), Pair().open()
    flooded.server.receive_data(flooded.now, frame(PONG) * 100_000)
    call, served = other.request("Arith.add", 1, 2)
    other.respond(served, 3)
    assert other.outcome(call) == 3
