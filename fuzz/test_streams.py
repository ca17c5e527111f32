"""Streams between a client and a server, in any order of items, credit, ends, cancels and cuts.

What the machine knows is kept beside the ends under test: which items each side has sent, and which
the other has taken.
"""

import os
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from budget import spread
from rpc_fuzz.pair import Pair
from rpc_fuzz.strategies import codecs
from rpc_proto import (
    Aborted,
    CallCompleted,
    CallFailed,
    ClientConfig,
    RequestReceived,
    ServerConfig,
    State,
)
from rpc_proto.connection.streams.halves import WINDOW, Half, ReceiveHalf, SendHalf, cost

STREAM_EXAMPLES = int(os.environ.get("STREAM_EXAMPLES", "60"))

LARGEST = 200_000  # bytes of an item; more than three parts
CALLS = 4
BLOCKED = 200_000  # bytes that the transport could not write

# No part of it is like another.
NOISE = b"".join(number.to_bytes(4) for number in range(LARGEST // 4 + 1))
NOISE_TEXT = "".join(f"{number:07}" for number in range(LARGEST // 7 + 1))

sizes = st.sampled_from([0, 1, 50, 3000, 3000, 70_000, LARGEST])
seconds = st.sampled_from([0.0, 0.01, 0.1, 0.5, 1.0, 5.0])


class Flow:
    """One direction of a stream: what was sent, and what was taken."""

    def __init__(self) -> None:
        self.sent: list[Any] = []
        self.taken: list[Any] = []
        self.ended = False


class Streamed:
    """A stream, as both ends see it."""

    def __init__(self, call: Any) -> None:
        self.call = call
        self.served: Any = None
        self.up = Flow()
        self.down = Flow()
        self.answered = False


class Streams(RuleBasedStateMachine):
    """Everything that users, handlers, clocks and networks may do to streams."""

    @initialize(
        codec=codecs,
        chunk=st.sampled_from([None, None, 7, 100, 20_000]),
        window=st.sampled_from([WINDOW, 4 * WINDOW, 1024 * 1024]),
        opened=st.sampled_from([True, True, True, False]),
        patience=st.integers(0, 30),
    )
    def begin(
        self, codec: str, chunk: int | None, window: int, opened: bool, patience: int
    ) -> None:
        self.window = window
        self.patience = patience  # steps before anything breaks or ends
        self.steps = 0
        self.pair = Pair(
            ClientConfig(codec=codec, max_window=window, ping_interval=None),
            ServerConfig(max_calls=CALLS, max_window=window, ping_interval=None, refusals=1000),
            chunk=chunk,
        )
        self.streams: list[Streamed] = []
        self.by_id: dict[int, Streamed] = {}
        self.pair.on_server_event = self.arrived
        if opened:
            self.pair.open()

    def arrived(self, event: Any) -> None:
        if isinstance(event, RequestReceived):
            self.by_id[event.call.id].served = event.call

    def choose(self, data: st.DataObject, served: bool = False) -> Streamed | None:
        chosen = [one for one in self.streams if not served or one.served is not None]
        return data.draw(st.sampled_from(chosen)) if chosen else None

    # The client

    @precondition(lambda self: len(self.streams) < 8)
    @rule(
        ways=st.sampled_from([(True, False), (False, True), (True, True), (True, True)]),
        timeout=st.sampled_from([None, None, 0.5, 5.0]),
        idle=st.sampled_from([None, None, 0.3]),
    )
    def start(self, ways: tuple[bool, bool], timeout: float | None, idle: float | None) -> None:
        pair = self.pair
        if pair.client.state not in (State.HANDSHAKE, State.OPEN):
            return
        call = pair.client.start_call(
            pair.now,
            "S.m",
            deadline=None if timeout is None else pair.now + timeout,
            idle_timeout=idle,
            client_stream=ways[0],
            server_stream=ways[1],
        )
        stream = Streamed(call)
        self.streams.append(stream)
        self.by_id[call.id] = stream

    @rule(data=st.data(), size=sizes, raw=st.booleans(), times=st.integers(1, 20))
    def send_up(self, data: st.DataObject, size: int, raw: bool, times: int) -> None:
        stream = self.choose(data)
        if stream is not None:
            self.send(self.pair.client, stream.call, stream.up, size, raw, times)

    @rule(data=st.data(), size=sizes, raw=st.booleans(), times=st.integers(1, 20))
    def send_down(self, data: st.DataObject, size: int, raw: bool, times: int) -> None:
        stream = self.choose(data, served=True)
        if stream is not None and not stream.answered:
            self.send(self.pair.server, stream.served, stream.down, size, raw, times)

    def send(self, end: Any, call: Any, flow: Flow, size: int, raw: bool, times: int) -> None:
        half: SendHalf | None = call.sending
        for _ in range(times):
            if half is None or not half.writable:
                return
            value: Any = NOISE[:size] if raw else [len(flow.sent), NOISE_TEXT[:size]]
            before = half.count
            more = end.send_item(self.pair.now, call, value)
            assert half.count == before + 1
            assert more is half.writable
            flow.sent.append(value)

    @rule(data=st.data())
    def end_up(self, data: st.DataObject) -> None:
        stream = self.choose(data)
        half = stream.call.sending if stream is not None else None
        if half is not None and half.state is Half.OPEN and half.rest is None:
            assert stream is not None
            self.pair.client.end_items(self.pair.now, stream.call)
            stream.up.ended = True

    @rule(data=st.data(), up=st.booleans(), times=st.integers(1, 40))
    def take(self, data: st.DataObject, up: bool, times: int) -> None:
        stream = self.choose(data, served=up)
        if stream is None:
            return
        end: Any = self.pair.server if up else self.pair.client
        call = stream.served if up else stream.call
        flow = stream.up if up else stream.down
        for _ in range(times):
            if call.receiving is None or not call.receiving.items:
                return
            flow.taken.append(end.take_item(self.pair.now, call))

    @rule(data=st.data(), fails=st.booleans())
    def answer(self, data: st.DataObject, fails: bool) -> None:
        stream = self.choose(data, served=True)
        if stream is None or stream.answered:
            return
        served = stream.served
        if served.sending is not None and served.sending.rest is not None:
            return  # it waits for Writable
        stream.answered = True
        if fails:
            self.pair.server.send_error(self.pair.now, served, Aborted("no"))
        else:
            self.pair.server.send_response(self.pair.now, served, None)

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        stream = self.choose(data)
        if stream is not None:
            self.pair.client.cancel(self.pair.now, stream.call)

    # The network and the clock

    @rule()
    def carry_all(self) -> None:
        self.pair.pump()

    @rule(up=st.booleans(), times=st.integers(1, 8))
    def carry(self, up: bool, times: int) -> None:
        for _ in range(times):
            self.pair.carry(self.pair.up if up else self.pair.down)

    @rule(up=st.booleans(), held=st.booleans())
    def block(self, up: bool, held: bool) -> None:
        link = self.pair.up if up else self.pair.down
        link.held = held
        link.sender.unsent = BLOCKED if held else 0

    @rule(time=seconds)
    def wait(self, time: float) -> None:
        self.pair.advance(time)

    @precondition(lambda self: self.steps > self.patience)
    @rule(grace=seconds, client=st.booleans())
    def shut(self, grace: float, client: bool) -> None:
        end: Any = self.pair.client if client else self.pair.server
        end.shutdown(self.pair.now, grace)
        self.pair.report(end)

    @precondition(lambda self: self.steps > self.patience)
    @rule()
    def lose(self) -> None:
        self.pair.lose()

    # What is always true

    @invariant()
    def count_steps(self) -> None:
        self.steps += 1

    @invariant()
    def every_item_comes_once_and_in_order(self) -> None:
        for stream in self.streams:
            for flow in (stream.up, stream.down):
                assert flow.taken == flow.sent[: len(flow.taken)]

    @invariant()
    def nothing_is_held_beyond_the_window(self) -> None:
        for stream in self.streams:
            for half in (stream.call.receiving, getattr(stream.served, "receiving", None)):
                if half is not None:
                    self.check_books(half)

    def check_books(self, half: ReceiveHalf) -> None:
        assert WINDOW <= half.window <= self.window
        assert 0 <= half.taken <= half.received
        # "An item may begin while the credit is more than 0"
        most = cost(LARGEST + 100)
        assert half.credit >= -most
        assert half.held <= half.window + most
        assert half.held + max(half.credit, 0) <= half.window + most

    @invariant()
    def no_call_has_ended_twice(self) -> None:
        ended = [
            event.call.serial
            for event in self.pair.client_events
            if isinstance(event, (CallCompleted, CallFailed))
        ]
        assert len(ended) == len(set(ended))

    @invariant()
    def halves_of_ended_calls_are_closed(self) -> None:
        ended = {
            event.call.serial
            for event in self.pair.client_events
            if isinstance(event, (CallCompleted, CallFailed))
        }
        for stream in self.streams:
            for half in (stream.call.sending, stream.call.receiving):
                if half is not None:
                    if stream.call.serial in ended:
                        assert half.state is Half.CLOSED
                    elif stream.call in self.pair.client.calls:
                        assert half.state is not Half.CLOSED

    # The end of all things

    def teardown(self) -> None:
        pair = self.pair
        for link in (pair.up, pair.down):
            link.held = False
            link.sender.unsent = 0
        pair.pump()
        for _ in range(2 * len(self.streams) + 2):
            for stream in self.streams:
                self.finish(stream)
            pair.pump()
        pair.advance(30.0)
        for stream in self.streams:
            served = stream.served
            if served is not None and not stream.answered:
                pair.server.conclude(pair.now, served)
        pair.pump()
        for end in (pair.client, pair.server):
            assert not len(end.calls)
            assert not end._resting
        assert pair.client._items_held == 0
        assert pair.server._account.calls == 0
        self.every_item_comes_once_and_in_order()
        self.no_call_has_ended_twice()
        self.halves_of_ended_calls_are_closed()
        self.check_completeness()

    def finish(self, stream: Streamed) -> None:
        """Take what there is, and answer."""
        pair = self.pair
        served = stream.served
        for end, call, flow in (
            (pair.client, stream.call, stream.down),
            (pair.server, served, stream.up),
        ):
            while call is not None and call.receiving is not None and call.receiving.items:
                flow.taken.append(end.take_item(pair.now, call))  # type: ignore[attr-defined]
        half = stream.call.sending
        if half is not None and half.state is Half.OPEN and half.rest is None:
            pair.client.end_items(pair.now, stream.call)
        if (
            served is not None
            and not stream.answered
            and not served.ended
            and (served.sending is None or served.sending.rest is None)
            and (served.receiving is None or served.receiving.state is not Half.OPEN)
        ):
            stream.answered = True
            pair.server.send_response(pair.now, served, None)

    def check_completeness(self) -> None:
        """A stream that ended well has brought all items of the server."""
        completed = {
            event.call.serial
            for event in self.pair.client_events
            if isinstance(event, CallCompleted)
        }
        for stream in self.streams:
            if stream.call.serial in completed and stream.call.receiving is not None:
                assert stream.down.taken == stream.down.sent


TestStreams = Streams.TestCase
TestStreams.settings = settings(spread(), max_examples=STREAM_EXAMPLES, stateful_step_count=40)
