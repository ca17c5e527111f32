"""Streams of both ends: items, credit, turns, ends and silence."""

from typing import Any

import pytest

from rpc_fuzz.pair import Pair, only, outcome, termination
from rpc_fuzz.wire import (
    CANCEL,
    CLIENT_STREAM,
    CREDIT,
    END,
    ERROR,
    ITEM,
    MORE,
    PING,
    RAW,
    REQUEST,
    SERVER_STREAM,
    START,
    Wire,
    frame,
    frames_in,
    open_client,
    open_server,
)
from rpc_proto import (
    CallCancelled,
    CallCompleted,
    CallError,
    CallFailed,
    Cancelled,
    ClientConfig,
    ConnectionTerminated,
    DataLoss,
    DeadlineExceeded,
    InvalidArgument,
    ItemsEnded,
    ItemsReceived,
    LocalProtocolError,
    NotFound,
    Observer,
    RemoteProtocolError,
    ResourceExhausted,
    ServerConfig,
    State,
    Unavailable,
    Unimplemented,
    Writable,
)
from rpc_proto.connection.observers import Observers
from rpc_proto.connection.streams.halves import WINDOW, Half, cost
from rpc_proto.wire.frames import PART
from support.driving import caused
from support.protocol_page import page

FEATURES: Any = {"features": ["streams"]}
QUIET = ServerConfig(ping_interval=None)


class Stream:
    """One stream between two ends in memory."""

    def __init__(
        self, pair: Pair | None = None, up: bool = False, down: bool = False, **options: Any
    ) -> None:
        self.pair = pair or Pair().open()
        self.call, self.served = self.pair.request(
            "S.m", client_stream=up, server_stream=down, **options
        )

    def send(self, *values: Any) -> bool:
        """The client sends items, each when it may."""
        return self._send(self.pair.client, self.call, values)

    def answer(self, *values: Any) -> bool:
        """The server sends items."""
        return self._send(self.pair.server, self.served, values)

    def _send(self, end: Any, call: Any, values: Any) -> bool:
        ready = call.sending.writable
        for value in values:
            ready = end.send_item(self.pair.now, call, value)
        self.pair.pump()
        return bool(ready)

    def take(self, count: int | None = None) -> list[Any]:
        """The client takes items."""
        return self._take(self.pair.client, self.call, count)

    def serve(self, count: int | None = None) -> list[Any]:
        """The server takes items."""
        return self._take(self.pair.server, self.served, count)

    def _take(self, end: Any, call: Any, count: int | None) -> list[Any]:
        taken = []
        while call.receiving.items and (count is None or len(taken) < count):
            taken.append(end.take_item(self.pair.now, call))
        self.pair.pump()
        return taken

    @property
    def outcome(self) -> Any:
        return outcome(self.pair.ends(self.call))


def down(**options: Any) -> Stream:
    return Stream(down=True, **options)


def up(**options: Any) -> Stream:
    return Stream(up=True, **options)


VALUES = [1, "two", [3.0], {"four": None}, None, True, b"six", b"", ""]


# What streams are for


@page(
    "and from the server until the answer.",
    "the client takes items until the answer |",
    "for one that sends items, for the most part, null with an empty body.",
    "The server's end is the answer, as of every call:",
)
def test_server_stream_brings_its_items_in_order_and_then_ends() -> None:
    stream = down()
    stream.answer(*VALUES)
    stream.pair.respond(stream.served)
    assert stream.take() == VALUES
    assert stream.outcome is None


@page(
    "from the client until its END",
    "the client sends items until its END |",
    "the result of a method that only takes items",
)
def test_client_stream_brings_its_items_and_its_end_and_has_a_result() -> None:
    stream = up()
    stream.send(*VALUES)
    stream.pair.client.end_items(stream.pair.now, stream.call)
    stream.pair.pump()
    assert stream.serve() == VALUES
    assert only(stream.pair.server_events, ItemsEnded).error is None
    stream.pair.respond(stream.served, 9)
    assert stream.outcome == 9


@page(
    "A call has a stream if its REQUEST has CLIENT_STREAM, SERVER_STREAM or both;",
    "Each direction is independent of the other.",
    "A direction that the method does not need stays unused.",
)
def test_both_directions_at_once() -> None:
    stream = Stream(up=True, down=True)
    for number in range(3):
        stream.send(number)
        assert stream.serve() == [number]
        stream.answer(-number)
        assert stream.take() == [-number]
    stream.pair.client.end_items(stream.pair.now, stream.call)
    stream.answer("still")
    stream.pair.respond(stream.served)
    assert stream.take() == ["still"]
    assert stream.outcome is None


@page(
    "The body of an ITEM is one value in the codec of the connection;",
    "with RAW it is the bytes of one value that is bytes.",
)
def test_items_have_the_type_that_the_caller_wants() -> None:
    stream = down(returns=set[int])
    stream.answer([1, 2, 2])
    assert stream.take() == [{1, 2}]


def test_one_event_tells_of_all_items_until_they_are_taken() -> None:
    stream = down()
    stream.answer(1, 2)
    stream.answer(3)
    assert len([e for e in stream.pair.client_events if isinstance(e, ItemsReceived)]) == 1
    assert stream.take() == [1, 2, 3]
    stream.answer(4)
    assert len([e for e in stream.pair.client_events if isinstance(e, ItemsReceived)]) == 2


def test_items_that_have_arrived_can_be_taken_after_the_end() -> None:
    stream = down()
    stream.answer(1, 2)
    stream.pair.fail(stream.served, NotFound("no more"))
    assert stream.take() == [1, 2]
    assert isinstance(stream.outcome, NotFound)


def test_items_may_be_sent_before_the_connection_is_open() -> None:
    pair = Pair()
    call = pair.client.start_call(pair.now, "S.m", client_stream=True)
    assert call.sending is not None
    assert not call.sending.writable
    pair.open()
    assert isinstance(pair.client_events[-1], Writable)
    assert pair.client.send_item(pair.now, call, 1)


def test_observers_are_told_of_each_item() -> None:
    class Counter(Observer):
        def __init__(self) -> None:
            self.seen: list[tuple[str, int, bool]] = []

        def item(self, now: float, call: Any, size: int, sent: bool) -> None:
            self.seen.append((call.method, size, sent))

    pair = Pair().open()
    client, server = Counter(), Counter()
    pair.client._observers = Observers([client])
    pair.server._observers = Observers([server])
    stream = Stream(pair, up=True, down=True)
    stream.send(b"up")
    stream.answer(b"")
    assert client.seen == [("S.m", 18, True), ("S.m", 16, False)]
    assert server.seen == [("S.m", 18, False), ("S.m", 16, True)]


@pytest.mark.parametrize("size", [65_537, 200_000, 300_001])
def test_parts_of_an_item_keep_their_order(size: int) -> None:
    item = b"".join(number.to_bytes(4) for number in range(size // 4 + 1))[:size]
    stream = Stream(up=True, down=True)
    pair = stream.pair
    pair.client.send_item(pair.now, stream.call, item)
    pair.server.send_item(pair.now, stream.served, item)
    pair.pump()
    assert pair.server.take_item(pair.now, stream.served) == item
    assert pair.client.take_item(pair.now, stream.call) == item


def test_items_go_on_when_the_transport_has_taken_what_it_could_not() -> None:
    stream = Stream(up=True, down=True)
    pair = stream.pair
    ends: list[tuple[Any, Any, Any]] = [
        (pair.client, stream.call, stream.served),
        (pair.server, stream.served, stream.call),
    ]
    for end, call, other in ends:
        pair.up.held = pair.down.held = True
        end.send_item(pair.now, call, bytes(500_000))
        end.unsent = 300_000  # what was sent before stays in the transport
        taken = end.data_to_send()
        assert call.sending.rest is not None
        end.unsent = 0  # it has left, and nothing comes from the peer
        assert end.outbound
        taken += end.data_to_send()
        assert call.sending.rest is None
        pair.up.held = pair.down.held = False
        peer = pair.server if end is pair.client else pair.client
        peer.receive_data(pair.now, taken)
        assert peer.take_item(pair.now, other) == bytes(500_000)


# Misuse


def test_commands_for_a_half_that_is_not_there_are_refused() -> None:
    stream = down()
    call, _ = stream.pair.request("S.unary")
    for wrong in (stream.call, call):
        with pytest.raises(LocalProtocolError, match="no stream in this direction"):
            stream.pair.client.send_item(stream.pair.now, wrong, 1)
        with pytest.raises(LocalProtocolError, match="no stream in this direction"):
            stream.pair.client.end_items(stream.pair.now, wrong)
    with pytest.raises(LocalProtocolError, match="has arrived"):
        stream.pair.client.take_item(stream.pair.now, stream.call)
    with pytest.raises(LocalProtocolError, match="has arrived"):
        stream.pair.client.take_item(stream.pair.now, call)


def test_nothing_can_be_sent_after_the_end() -> None:
    stream = up()
    stream.pair.client.end_items(stream.pair.now, stream.call)
    with pytest.raises(LocalProtocolError, match="ended at this end"):
        stream.send(1)
    with pytest.raises(LocalProtocolError, match="ended at this end"):
        stream.pair.client.end_items(stream.pair.now, stream.call)
    stream.pair.respond(stream.served)
    with pytest.raises(LocalProtocolError, match="closed at this end"):
        stream.send(1)


def test_an_item_that_must_wait_is_refused_before_its_time() -> None:
    stream = down()
    assert not stream.answer(b"x" * WINDOW)
    with pytest.raises(LocalProtocolError, match="wait for Writable"):
        stream.answer(1)


def test_a_stream_cannot_end_before_an_item_that_waits() -> None:
    stream = Stream(up=True, down=True)
    pair = stream.pair
    item = b"x" * (WINDOW + 200_000)
    pair.up.held = pair.down.held = True  # so the parts wait
    stream.pair.client.send_item(pair.now, stream.call, item)
    stream.pair.server.send_item(pair.now, stream.served, item)
    with pytest.raises(LocalProtocolError, match="wait for Writable"):
        pair.client.end_items(pair.now, stream.call)
    with pytest.raises(LocalProtocolError, match="wait for Writable"):
        pair.server.send_response(pair.now, stream.served, None)
    pair.up.held = pair.down.held = False
    pair.pump()
    assert pair.client.take_item(pair.now, stream.call) == item
    assert pair.server.take_item(pair.now, stream.served) == item
    pair.client.end_items(pair.now, stream.call)
    pair.server.send_response(pair.now, stream.served, None)
    pair.pump()
    assert len(pair.ends(stream.call)) == 1


@pytest.mark.parametrize("idle", [0, -1, float("nan")])
def test_idle_timeout_must_be_seconds(idle: float) -> None:
    with pytest.raises(LocalProtocolError, match="idle_timeout must be seconds"):
        down(idle_timeout=idle)


def test_one_way_call_has_no_stream() -> None:
    with pytest.raises(LocalProtocolError, match="one-way"):
        Pair().open().client.start_call(START, "S.m", one_way=True, server_stream=True)


def test_value_that_cannot_be_encoded_is_refused_with_its_position() -> None:
    stream = Stream(up=True, down=True)
    stream.send(1)
    with pytest.raises(InvalidArgument, match=r"item 2 of S\.m cannot be encoded as msgpack"):
        stream.send(object())
    with pytest.raises(CallError, match=r"item 1 of S\.m cannot be encoded") as caught:
        stream.answer(object())
    assert caught.value.code == "internal"
    assert stream.serve() == [1]


def test_item_larger_than_the_peer_accepts_is_refused() -> None:
    stream = Stream(Pair(ClientConfig(max_body=8192)).open(), down=True)
    with pytest.raises(ResourceExhausted, match=r"item 1 of S\.m has 70000 bytes"):
        stream.answer(b"x" * 70000)


@page(
    "That of a stream may have a fourth, the idle timeout.",
    "- idle timeout: milliseconds more than 0, or null; see [silence](#silence).",
)
def test_idle_timeout_travels_and_the_handler_sees_it() -> None:
    assert down(idle_timeout=1.5).served.idle_timeout == 1.5
    assert down().served.idle_timeout is None


# Credit


@page(
    "An item that begins without credit fails the call with `resource_exhausted`;",
)
@pytest.mark.fault(106)
def test_item_without_credit_fails_its_stream_and_no_other() -> None:
    server = open_server(QUIET, **FEATURES)
    wire = Wire()
    server.receive_data(START, wire.request(1, flags=CLIENT_STREAM) + wire.request(2))
    one = frame(ITEM, 1, b"", b"\0" * (WINDOW - 16), RAW)
    assert not [e for e in caused(server.receive_data, START, one) if isinstance(e, CallCancelled)]
    events = caused(server.receive_data, START, frame(ITEM, 1, b"", b"\0", RAW))
    assert only(events, CallCancelled).error.code == "resource_exhausted"
    assert server.state is State.OPEN
    [sent] = frames_in(server.data_to_send())
    assert (sent.type, sent.call_id) == (ERROR, 1)
    assert wire.decode(sent.body)[0] == "resource_exhausted"


@page(
    "if it was the server's, the client cancels the call.",
)
@pytest.mark.fault(106)
def test_client_cancels_a_stream_whose_server_ignores_credit() -> None:
    client = open_client(**FEATURES)
    call = client.start_call(START, "S.m", server_stream=True)
    client.data_to_send()
    one = frame(ITEM, 1, b"", b"\0" * (WINDOW - 16), RAW)
    client.receive_data(START, one)
    events = caused(client.receive_data, START, frame(ITEM, 1, b"", b"\0", RAW))
    assert only(events, CallFailed).error.code == "resource_exhausted"
    assert [sent.type for sent in frames_in(client.data_to_send())] == [CANCEL]
    assert len(call.receiving.items) == 1  # type: ignore[union-attr]


@pytest.mark.fault(106)
def test_peer_that_goes_on_ignoring_credit_loses_the_connection() -> None:
    server = open_server(ServerConfig(refusals=3), **FEATURES)
    for number in range(1, 6):
        data = Wire().request(number, flags=CLIENT_STREAM)
        data += frame(ITEM, number, b"", b"\0" * WINDOW, RAW) + frame(ITEM, number)
        events = caused(server.receive_data, START, data)
        if server.state is not State.OPEN:
            break
    assert number == 4
    assert "more than 3 refused calls" in str(termination(events))


def credit(amount: int, call_id: int = 1) -> bytes:
    return frame(CREDIT, call_id, b"", amount.to_bytes(4, "big"))


@page(
    "A CREDIT of 0 is a violation, and so is one that takes the credit over 2^32 - 1.",
)
@pytest.mark.fault(107)
@pytest.mark.parametrize("amounts", [[0], [2**32 - 1, 2**32 - 1], [2**32 - WINDOW]])
def test_credit_of_nothing_or_too_much_is_a_violation(amounts: list[int]) -> None:
    server = open_server(QUIET, **FEATURES)
    server.receive_data(START, Wire().request(1, flags=SERVER_STREAM))
    events = caused(server.receive_data, START, b"".join(map(credit, amounts)))
    assert isinstance(termination(events), RemoteProtocolError)


@pytest.mark.fault(107)
def test_credit_for_a_stream_that_ended_is_ignored() -> None:
    server = open_server(QUIET, **FEATURES)
    [event] = caused(server.receive_data, START, Wire().request(1, flags=SERVER_STREAM))
    server.send_response(START, event.call, None)
    assert caused(server.receive_data, START, credit(5) + credit(0) + credit(5, 77)) == []
    assert server.ignored == 3
    assert server.state is State.OPEN


@page(
    "An item may begin while the credit is more than 0, and then go on to its end, which may "
    "take the credit below 0: so an item of any size can pass.",
)
@pytest.mark.fault(108)
@pytest.mark.parametrize("size", [WINDOW, PART, PART + 1, 3 * PART, 1_000_000])
def test_item_larger_than_the_window_passes_and_the_next_waits(size: int) -> None:
    stream = down()
    assert not stream.answer(b"x" * size)
    assert not stream.served.sending.writable
    assert stream.take() == [b"x" * size]
    assert stream.served.sending.writable
    assert isinstance(stream.pair.server_events[-1], Writable)


@page(
    "A receiver gives credit for what its application has taken, not for what has arrived;",
)
def test_credit_comes_when_items_are_taken_not_when_they_arrive() -> None:
    stream = down()
    half = stream.served.sending
    assert not stream.answer(*[b"x" * 1008] * 16)
    assert half.credit == 0
    stream.take(7)
    assert half.credit == 0
    stream.take(1)
    assert half.credit == 8 * 1024


@page(
    "Each direction of a stream has a credit of its own, which counts bytes of ITEM frames, "
    "their prefixes included.",
    "It is 16384 at the beginning.",
    "An ITEM takes its length from it; CREDIT adds to it.",
)
def test_credit_follows_the_frames_of_an_item() -> None:
    for size in (0, 1, PART - 1, PART, PART + 1, 2 * PART, 2 * PART + 1):
        stream = down()
        half = stream.call.receiving
        stream.answer(b"x" * size)
        assert half.received == cost(size)
        assert half.credit == WINDOW - cost(size)
        stream.take()
        assert half.taken == half.received


@page(
    "it should not let credit run out while the application waits.",
)
def test_window_grows_for_a_consumer_that_keeps_up_and_not_beyond_its_limit() -> None:
    stream = Stream(Pair(ClientConfig(max_window=100_000)).open(), down=True)
    half = stream.call.receiving
    windows = []
    for _ in range(100):
        stream.answer(b"x" * 5000)
        stream.take()
        stream.pair.now += 0.001
        windows.append(half.window)
    assert windows[-1] == 100_000
    assert windows == sorted(windows)


def test_window_does_not_grow_for_a_slow_stream() -> None:
    stream = down()
    for _ in range(50):
        stream.answer(b"x" * 5000)
        stream.take()
        stream.pair.advance(1.0)
    assert stream.call.receiving.window == WINDOW


@page(
    "a receiver that never takes anything holds no more than it gave credit for.",
    "There is no credit for the connection as a whole: a stream that nobody takes from does "
    "not stop another.",
)
@pytest.mark.fault(111)
def test_consumer_that_never_takes_holds_no_more_than_the_window() -> None:
    stream = down(timeout=10.0)
    sent = 0
    while stream.served.sending.writable:
        stream.answer(b"x" * 100)
        sent += 1
    assert stream.call.receiving.held <= WINDOW + cost(100)
    other, served = stream.pair.request("S.other")
    stream.pair.respond(served, 1)
    assert stream.pair.outcome(other) == 1
    stream.pair.advance(10.0)
    assert isinstance(stream.outcome, DeadlineExceeded)
    assert only(stream.pair.server_events, CallCancelled).call is stream.served
    assert len(stream.take()) == sent


def test_million_empty_items_are_bounded() -> None:
    stream = up()
    count = 0
    while stream.call.sending.writable and count < 1_000_000:
        stream.pair.client.send_item(stream.pair.now, stream.call, b"")
        count += 1
    assert count == WINDOW // 16


def test_server_counts_what_handlers_do_not_take() -> None:
    stream = up()
    stream.send(b"x" * 10_000)
    account = stream.pair.server._account
    assert account.calls >= 10_016
    stream.serve()
    stream.pair.client.cancel(stream.pair.now, stream.call)
    stream.pair.pump()
    assert account.calls == 0
    stream.pair.server.conclude(stream.pair.now, stream.served)
    assert account.calls == 0


def test_server_without_memory_for_an_item_fails_the_stream() -> None:
    config = ServerConfig(
        max_body=2**20, max_decoded=2**20, memory=2**21, ping_interval=None, max_calls=100
    )
    pair = Pair(server=config).open()
    streams = [Stream(pair, up=True) for _ in range(3)]
    for stream in streams:
        stream.send(b"x" * 2**20)
    errors = [stream.outcome for stream in streams if pair.ends(stream.call)]
    assert errors
    assert {error.code for error in errors} == {"resource_exhausted"}
    assert pair.server.state is State.OPEN


def test_client_holds_no_more_than_it_is_set_to() -> None:
    pair = Pair(ClientConfig(max_buffered_items=2**20)).open()
    streams = [Stream(pair, down=True) for _ in range(3)]
    for stream in streams:
        stream.answer(b"x" * 700_000)
    [failed] = [stream for stream in streams[:2] if pair.ends(stream.call)]
    assert failed.outcome.code == "resource_exhausted"


# Ends


@page(
    "After its END, a client must not send another ITEM or END in that call: both are violations.",
)
@pytest.mark.fault(109)
@pytest.mark.parametrize("what", [frame(ITEM, 1), frame(END, 1)])
def test_item_or_end_after_end_is_a_violation(what: bytes) -> None:
    server = open_server(QUIET, **FEATURES)
    server.receive_data(START, Wire().request(1, flags=CLIENT_STREAM) + frame(END, 1))
    assert isinstance(termination(caused(server.receive_data, START, what)), RemoteProtocolError)


@page(
    "An ITEM, END or CREDIT for a call that is no longer in flight is ignored;",
)
@pytest.mark.fault(109)
def test_end_for_a_call_that_is_not_there_is_ignored() -> None:
    server = open_server(QUIET, **FEATURES)
    [event] = caused(server.receive_data, START, Wire().request(1, flags=CLIENT_STREAM))
    server.send_response(START, event.call, None)
    assert caused(server.receive_data, START, frame(END, 1) + frame(END, 9)) == []
    assert server.ignored == 2


@page(
    "An ITEM, END or CREDIT for a direction that the REQUEST has not opened fails the call "
    "with `invalid_argument`, and the connection goes on.",
)
@pytest.mark.fault(110)
@pytest.mark.parametrize("flags", [0, SERVER_STREAM])
@pytest.mark.parametrize("kind", [ITEM, END])
def test_item_for_a_call_without_such_a_stream_fails_that_call(flags: int, kind: int) -> None:
    server = open_server(QUIET, **FEATURES)
    server.receive_data(START, Wire().request(1, flags=flags))
    events = caused(server.receive_data, START, frame(kind, 1))
    assert only(events, CallCancelled).error.code == "invalid_argument"
    assert server.state is State.OPEN


@pytest.mark.fault(110)
@pytest.mark.parametrize("options", [{}, {"client_stream": True}])
def test_item_that_a_client_did_not_want_fails_its_call(options: Any) -> None:
    client = open_client(**FEATURES)
    client.start_call(START, "S.m", **options)
    client.data_to_send()
    events = caused(client.receive_data, START, frame(ITEM, 1))
    assert only(events, CallFailed).error.code == "invalid_argument"
    assert client.state is State.OPEN
    assert frames_in(client.data_to_send())[-1].type == CANCEL


@page(
    "a client takes one for an id that it never used for a violation.",
)
@pytest.mark.parametrize("call_id", [0, 2])
@pytest.mark.parametrize("kind", [ITEM, END, CREDIT])
def test_frames_of_streams_for_a_call_never_made_are_a_violation(kind: int, call_id: int) -> None:
    client = open_client(**FEATURES)
    client.start_call(START, "S.m", server_stream=True)
    client.data_to_send()
    data = frame(kind, call_id, b"", b"\0\0\0\1" if kind == CREDIT else b"")
    assert isinstance(termination(caused(client.receive_data, START, data)), RemoteProtocolError)


def test_items_that_cross_a_cancel_are_ignored() -> None:
    stream = down()
    stream.answer(1)
    stream.pair.server.send_item(stream.pair.now, stream.served, 2)
    stream.pair.client.cancel(stream.pair.now, stream.call)
    stream.pair.pump()
    assert stream.pair.client.ignored == 1
    assert stream.pair.client.state is State.OPEN
    assert stream.take() == [1]


@pytest.mark.fault(114)
def test_items_before_an_error_are_delivered() -> None:
    stream = down()
    stream.answer(1, 2, 3)
    stream.pair.fail(stream.served, NotFound("gone"))
    assert stream.take() == [1, 2, 3]
    assert stream.outcome.code == "not_found"


@page(
    "The answer ends both directions at once.",
    "A server may answer before the END of the client, which then stops sending.",
)
@pytest.mark.fault(117)
def test_answer_before_the_items_end_is_kept_and_the_sender_is_told() -> None:
    stream = up()
    stream.send(1)
    stream.pair.client.send_item(stream.pair.now, stream.call, 2)
    stream.pair.respond(stream.served, "enough")
    assert stream.outcome == "enough"
    assert stream.call.sending.state is Half.CLOSED
    with pytest.raises(LocalProtocolError, match="closed"):
        stream.send(3)
    assert stream.pair.server.state is State.OPEN
    assert stream.pair.server.ignored == 1


@pytest.mark.fault(118)
@pytest.mark.parametrize("first", ["cancel", "answer"])
def test_cancel_that_crosses_the_end_leaves_one_outcome_and_nothing_else(first: str) -> None:
    stream = Stream(up=True, down=True)
    pair = stream.pair
    stream.send(b"x" * 5000)
    stream.answer(b"x" * 5000)
    if first == "cancel":
        pair.client.cancel(pair.now, stream.call)
        pair.server.send_response(pair.now, stream.served, None)
    else:
        pair.server.send_response(pair.now, stream.served, None)
        pair.client.cancel(pair.now, stream.call)
    pair.pump()
    assert len(pair.ends(stream.call)) == 1
    assert pair.server._account.calls == 0
    assert pair.client._items_held == 0
    assert not pair.client.calls_in_flight
    assert not pair.server.calls_in_flight


@pytest.mark.fault(119)
def test_lost_connection_fails_the_stream_and_keeps_what_came() -> None:
    stream = Stream(up=True, down=True)
    stream.send(1, 2)
    stream.answer(3, 4)
    stream.pair.lose()
    assert isinstance(stream.outcome, Unavailable)
    assert stream.take() == [3, 4]
    assert only(stream.pair.server_events, CallCancelled).error.code == "unavailable"


@pytest.mark.fault(120)
def test_drain_lets_finite_streams_finish_and_ends_endless_ones() -> None:
    pair = Pair().open()
    finite, endless = Stream(pair, up=True, down=True), Stream(pair, down=True)
    pair.shut_server(grace=5.0)
    assert finite.answer(1)
    finite.send(2)
    assert finite.serve() == [2]
    pair.respond(finite.served)
    assert finite.take() == [1]
    assert finite.outcome is None
    endless.answer("more")
    pair.advance(5.0)
    assert endless.outcome.code == "unavailable"
    assert endless.take() == ["more"]
    assert pair.server.state is State.CLOSED


@pytest.mark.fault(121)
def test_streams_over_the_limit_wait_at_the_client_and_none_is_lost() -> None:
    pair = Pair(server=ServerConfig(max_calls=100)).open()
    calls = [pair.client.start_call(pair.now, "S.m", server_stream=True) for _ in range(10_000)]
    pair.pump()
    done = 0
    while pair.server.calls_in_flight:
        assert pair.server.calls_in_flight <= 100
        for served in list(pair.server.calls):
            pair.server.send_item(pair.now, served, served.id)
            pair.server.send_response(pair.now, served, None)
            done += 1
        pair.pump()
    assert done == 10_000
    for call in calls:
        assert pair.client.take_item(pair.now, call) == call.id


@pytest.mark.fault(121)
def test_server_refuses_streams_over_its_limit() -> None:
    server = open_server(ServerConfig(max_calls=2), **FEATURES)
    data = b"".join(Wire().request(n, flags=SERVER_STREAM) for n in range(1, 5))
    server.receive_data(START, data)
    refused = frames_in(server.data_to_send())
    assert [(sent.type, sent.call_id) for sent in refused] == [(ERROR, 3), (ERROR, 4)]


@page(
    "the slot of a stream is free when its handler has ended.",
)
@pytest.mark.fault(122)
def test_stream_keeps_its_slot_until_its_handler_has_ended() -> None:
    stream = down()
    stream.pair.client.cancel(stream.pair.now, stream.call)
    stream.pair.pump()
    assert stream.pair.server.calls_in_flight == 1
    assert stream.served.sending.state is Half.CLOSED
    stream.pair.server.conclude(stream.pair.now, stream.served)
    assert stream.pair.server.calls_in_flight == 0


# Silence


@page(
    "A stream with an idle timeout fails with `deadline_exceeded` when so much time has "
    "passed without an item in either direction.",
    "Both ends watch it.",
)
@pytest.mark.fault(112)
@pytest.mark.parametrize("direction", ["up", "down"])
def test_silent_producer_fails_the_stream_at_both_ends(direction: str) -> None:
    stream = Stream(up=direction == "up", down=direction == "down", idle_timeout=2.0)
    send = stream.send if direction == "up" else stream.answer
    take = stream.serve if direction == "up" else stream.take
    for number in range(5):
        send(number)
        assert take() == [number]
        stream.pair.advance(1.5)
    assert not stream.pair.ends(stream.call)
    stream.pair.advance(0.5)
    assert isinstance(stream.outcome, DeadlineExceeded)
    assert "no item of S.m for 2 s" in str(stream.outcome)
    assert only(stream.pair.server_events, CallCancelled).error.code == "deadline_exceeded"


@page(
    "Time does not count while an item waits for its taker or for credit,",
)
@pytest.mark.fault(112)
def test_slow_consumer_is_not_a_silent_producer() -> None:
    stream = down(idle_timeout=2.0)
    while stream.answer(b"x" * 1000):
        pass
    stream.pair.advance(20.0)
    assert not stream.pair.ends(stream.call)
    stream.take()
    stream.pair.advance(1.9)
    assert not stream.pair.ends(stream.call)
    stream.pair.advance(2.1)
    assert isinstance(stream.outcome, DeadlineExceeded)


@page(
    "or while only the answer is awaited.",
)
def test_wait_for_the_result_is_not_silence() -> None:
    stream = up(idle_timeout=2.0)
    stream.pair.client.end_items(stream.pair.now, stream.call)
    stream.pair.advance(60.0)
    stream.pair.respond(stream.served, 1)
    assert stream.outcome == 1


# Large items and turns


@page(
    "a large item then delays the rest by about one part.",
)
@pytest.mark.fault(124)
def test_large_item_delays_another_stream_by_one_part() -> None:
    pair = Pair().open()
    large, small = Stream(pair, down=True), Stream(pair, down=True)
    pair.server.send_item(pair.now, large.served, b"x" * 10_000_000)
    first = bytes(pair.server.next_buffer())
    assert len(first) < 2 * PART
    pair.server.send_item(pair.now, small.served, "quick")
    waited = 0
    while True:
        data = bytes(pair.server.next_buffer())
        at = data.find(b"quick")
        if at >= 0:
            break
        waited += len(data)
    assert waited + at < PART + 3 * 16


@pytest.mark.fault(124)
def test_streams_with_large_items_take_turns() -> None:
    pair = Pair().open()
    streams = [Stream(pair, down=True) for _ in range(3)]
    for stream in streams:
        pair.server.send_item(pair.now, stream.served, b"x" * (4 * PART))
    frames = frames_in(pair.server.data_to_send())
    assert [sent.call_id for sent in frames] == [1, 1, 2, 3, 1, 2, 3, 1, 2, 3, 2, 3]
    assert [sent.flags for sent in frames].count(RAW | MORE) == 9


@page(
    "A sender should send control frames ahead of the items that wait,",
)
def test_control_frames_overtake_what_waits() -> None:
    stream = down()
    pair = stream.pair
    pair.server.send_item(pair.now, stream.served, b"x" * (100 * PART))
    pair.server.receive_data(pair.now, frame(PING, 5))
    frames = frames_in(bytes(pair.server.data_to_send()))
    assert [sent.type for sent in frames[:3]].count(6) == 1


@pytest.mark.fault(125)
@pytest.mark.parametrize("chunk", [1, 7, 16, 100])
def test_items_cut_anywhere_are_the_same_items(chunk: int) -> None:
    stream = Stream(Pair(chunk=chunk).open(), up=True, down=True)
    values = [1, b"x" * 100, "y" * 200, [None] * 30]
    for value in values:
        stream.send(value)
        stream.answer(value)
    other, served = stream.pair.request("S.other")
    stream.pair.respond(served, 1)
    assert stream.serve() == values
    assert stream.take() == values
    assert stream.pair.outcome(other) == 1


@page(
    "A body of at most 65536 bytes is one frame.",
    "Frames of other calls may come between the parts.",
    "an item of a [stream](#streams), or a part of one |",
    "a part of an item, and not the last one |",
)
@pytest.mark.fault(125)
def test_parts_with_other_frames_between_are_one_item() -> None:
    client = open_client(**FEATURES)
    calls = [client.start_call(START, "S.m", server_stream=True) for _ in range(2)]
    unary = client.start_call(START, "S.n")
    client.data_to_send()
    part = frame(ITEM, 1, b"", b"x" * PART, RAW | MORE)
    events = caused(
        client.receive_data,
        START,
        part
        + frame(ITEM, 2, b"", b"\x07")
        + Wire().response(3, 9)
        + frame(PING)
        + part
        + frame(ITEM, 1, b"", b"y", RAW),
    )
    assert client.take_item(START, calls[0]) == b"x" * (2 * PART) + b"y"
    assert client.take_item(START, calls[1]) == 7
    assert only(events, CallCompleted).call is unary


@page(
    "A larger one is cut into parts: all but the last have MORE and exactly 65536 bytes, the "
    "last has 1 to 65536, and RAW is the same in all of them.",
    "Anything else is a violation; so is an ITEM of more than 65536 bytes,",
)
@pytest.mark.parametrize(
    "parts",
    [
        [(RAW | MORE, 5)],
        [(RAW | MORE, 0)],
        [(RAW | MORE, PART), (RAW, 0)],
        [(RAW | MORE, PART), (0, 5)],
        [(RAW, PART + 1)],
    ],
)
def test_parts_of_another_size_are_a_violation(parts: Any) -> None:
    client = open_client(**FEATURES)
    client.start_call(START, "S.m", server_stream=True)
    client.data_to_send()
    data = b"".join(frame(ITEM, 1, b"", b"x" * size, flags) for flags, size in parts)
    assert isinstance(termination(caused(client.receive_data, START, data)), RemoteProtocolError)


@page(
    "and an END inside an item.",
)
def test_end_inside_an_item_is_a_violation() -> None:
    server = open_server(QUIET, **FEATURES)
    server.receive_data(START, Wire().request(1, flags=CLIENT_STREAM))
    data = frame(ITEM, 1, b"", b"x" * PART, RAW | MORE) + frame(END, 1)
    assert isinstance(termination(caused(server.receive_data, START, data)), RemoteProtocolError)


@page(
    "An item as a whole may have as many bytes as `limits.body` of the receiver; a larger one"
    " fails the call with `resource_exhausted`.",
)
def test_item_over_the_limit_of_the_receiver_fails_its_stream() -> None:
    client = open_client(ClientConfig(max_body=PART), **FEATURES)
    client.start_call(START, "S.m", server_stream=True)
    client.data_to_send()
    part = frame(ITEM, 1, b"", b"x" * PART, RAW | MORE)
    events = caused(client.receive_data, START, part + frame(ITEM, 1, b"", b"x", RAW))
    assert only(events, CallFailed).error.code == "resource_exhausted"


# Bad items


@page(
    "at the client with `data_loss`.",
)
@pytest.mark.fault(126)
def test_bad_item_fails_at_its_position() -> None:
    stream = down(returns=int)
    stream.answer(1, 2, "three")
    assert stream.take(2) == [1, 2]
    with pytest.raises(DataLoss, match=r"item 3 of S\.m is bad: Expected `int`, got `str`"):
        stream.take()


@page(
    "An item that cannot be decoded, or does not fit, fails the call: at the server with "
    "`invalid_argument`,",
)
@pytest.mark.fault(126)
def test_bad_item_at_a_server_is_an_invalid_argument() -> None:
    server = open_server(QUIET, **FEATURES)
    data = Wire().request(1, flags=CLIENT_STREAM) + frame(ITEM, 1, b"", b"\xc1")
    call = caused(server.receive_data, START, data)[0].call  # type: ignore[attr-defined]
    with pytest.raises(InvalidArgument, match=r"item 1 of Arith\.add is bad"):
        server.take_item(START, call)


@pytest.mark.fault(126)
def test_item_that_would_grow_too_much_is_refused_with_its_position() -> None:
    stream = Stream(Pair(ClientConfig(max_decoded=2**20)).open(), down=True)
    stream.answer([{}] * 30_000)
    with pytest.raises(ResourceExhausted, match=r"item 1 of S\.m is a body of"):
        stream.take()


# Deadlines, half-closed connections, other versions


@pytest.mark.fault(128)
def test_deadline_while_an_item_waits_for_credit_sends_nothing_of_it() -> None:
    stream = up(timeout=1.0)
    assert not stream.send(b"x" * WINDOW)
    stream.pair.advance(1.0)
    assert isinstance(stream.outcome, DeadlineExceeded)
    assert stream.call.sending.rest is None
    assert stream.pair.client.outbound == 0


@page(
    "When the client has closed its sending direction, no more credit can come.",
    "The server then sends the items of its streams without credit, as fast as the transport "
    "takes them,",
)
@pytest.mark.fault(129)
def test_half_closed_connection_gets_the_rest_of_its_stream_and_is_closed() -> None:
    server = open_server(QUIET, **FEATURES)
    data = Wire().request(1, flags=CLIENT_STREAM | SERVER_STREAM)
    [event] = caused(server.receive_data, START, data)
    call = event.call  # type: ignore[attr-defined]
    sent = 0
    while server.send_item(START, call, b"x" * 1000):
        sent += 1
    written = server.data_to_send()
    ended, writable = caused(server.receive_eof, START)
    assert isinstance(ended, ItemsEnded)
    assert ended.error is not None
    assert ended.error.code == "unavailable"
    assert isinstance(writable, Writable)
    for _ in range(100):  # far beyond the credit
        server.send_item(START, call, b"x" * 1000)
        written += server.data_to_send()
    server.send_response(START, call, None)
    written += server.data_to_send()
    kinds = [one.type for one in frames_in(written) if one.type != PING]
    assert kinds == [ITEM] * (sent + 101) + [2]
    assert server.state is State.CLOSING


@pytest.mark.fault(131)
def test_server_without_streams_is_a_clear_error_and_unary_calls_go_on() -> None:
    client = open_client()
    for options in ({"client_stream": True}, {"server_stream": True}):
        with pytest.raises(Unimplemented, match="the server has no streams") as caught:
            client.start_call(START, "S.m", **options)  # type: ignore[arg-type]
        assert not caught.value.maybe_executed
    assert client.data_to_send() == b""
    client.start_call(START, "S.m")
    assert [sent.type for sent in frames_in(client.data_to_send())] == [REQUEST]


@pytest.mark.fault(131)
def test_stream_that_waited_for_a_server_without_streams_fails() -> None:
    from rpc_fuzz.wire import answer, line
    from rpc_proto import ClientConnection

    client = ClientConnection(now=START)
    call = client.start_call(START, "S.m", server_stream=True)
    client.data_to_send()
    events = caused(client.receive_data, START, line(answer()))
    assert only(events, CallFailed).call is call
    assert only(events, CallFailed).error.code == "unimplemented"
    assert client.data_to_send() == b""


@page(
    "ITEM, END, CREDIT, CLIENT_STREAM and SERVER_STREAM exist only while the feature "
    "`streams` is in force.",
)
@pytest.mark.fault(131)
@pytest.mark.parametrize(
    "data",
    [
        Wire().request(1, flags=SERVER_STREAM),
        Wire().request(1, flags=CLIENT_STREAM),
        frame(ITEM, 1),
        frame(END, 1),
        credit(1),
    ],
)
def test_streams_that_were_not_agreed_are_a_violation(data: bytes) -> None:
    events = caused(open_server(QUIET).receive_data, START, data)
    assert isinstance(termination(events), RemoteProtocolError)


@page(
    "such a REQUEST with ONE_WAY is a violation.",
    "RAW, NAMED, ONE_WAY, CLIENT_STREAM, SERVER_STREAM |",
)
@pytest.mark.parametrize(
    "data",
    [
        frame(ITEM, 1, b"h"),
        frame(END, 1, b"h"),
        frame(END, 1, b"", b"b"),
        frame(CREDIT, 1, b"", b"\1"),
        frame(CREDIT, 1, b"", b"\0\0\0\0\1"),
        frame(ITEM, 1, b"", b"", 2),
        frame(END, 1, b"", b"", MORE),
        Wire().request(2, flags=SERVER_STREAM | 4),
    ],
)
def test_malformed_frames_of_streams_are_violations(data: bytes) -> None:
    server = open_server(QUIET, **FEATURES)
    server.receive_data(START, Wire().request(1, flags=CLIENT_STREAM))
    assert isinstance(termination(caused(server.receive_data, START, data)), RemoteProtocolError)


def test_client_shutdown_cancels_streams_at_the_end_of_the_grace() -> None:
    stream = Stream(up=True, down=True)
    stream.pair.shut_client(grace=1.0)
    assert stream.send(1)
    stream.pair.advance(1.0)
    assert isinstance(stream.outcome, Cancelled)
    assert only(stream.pair.client_events, ConnectionTerminated).error is None
