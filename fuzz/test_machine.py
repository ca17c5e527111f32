"""A client and a server in any order of events, on a virtual clock: the rules of every call.

What the machine knows is kept beside the ends under test: which calls were started, which the
server was told of, which answers it gave. The invariants compare the two.
"""

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from budget import EXAMPLES, spread
from rpc_fuzz.pair import Link, Pair
from rpc_fuzz.strategies import any_frames, codecs
from rpc_fuzz.wire import frame
from rpc_proto import (
    Aborted,
    CallCancelled,
    CallCompleted,
    CallError,
    CallFailed,
    ClientConfig,
    ConnectionTerminated,
    InboundCall,
    OutboundCall,
    RequestReceived,
    ResourceExhausted,
    ServerConfig,
    State,
    Unavailable,
)
from rpc_proto.connection.base import Connection

QUEUE = 6  # calls that may wait at the client
CALLS = 3  # calls in flight at the server
HIGH_WATER = 1024
LARGEST = 3000  # bytes of an argument or a result

seconds = st.sampled_from([0.0, 0.001, 0.01, 0.1, 0.1, 0.5, 0.5, 1.0, 3.0, 10.0])
sizes = st.sampled_from([0, 1, 100, LARGEST])


class Life(RuleBasedStateMachine):
    """Everything that users, peers, handlers, clocks and networks may do to a connection."""

    @initialize(
        codec=codecs,
        chunk=st.sampled_from([None, 1, 7, 16, 100]),
        ping=st.sampled_from([None, 1.0, 20.0]),
        idle=st.sampled_from([None, 2.0]),
        handling=st.sampled_from([None, 0.5]),
        opened=st.sampled_from([True, True, True, False]),
        patience=st.sampled_from([0, 3, 10, 20]),
    )
    def begin(
        self,
        codec: str,
        chunk: int | None,
        ping: float | None,
        idle: float | None,
        handling: float | None,
        opened: bool,
        patience: int,
    ) -> None:
        self.patience = patience  # calls that are started before anything breaks or ends
        self.pair = Pair(
            ClientConfig(
                codec=codec,
                high_water=HIGH_WATER,
                max_queued_calls=QUEUE,
                ping_interval=ping,
                write_timeout=4.0,
            ),
            ServerConfig(
                max_calls=CALLS,
                high_water=HIGH_WATER,
                ping_interval=ping,
                idle_timeout=idle,
                handling_timeout=handling,
                write_timeout=4.0,
                refusals=20,
            ),
            chunk=chunk,
        )
        self.started: list[OutboundCall] = []
        self.gone: set[int] = set()  # one-way calls that had left when start_call returned
        self.handlers: list[InboundCall] = []  # those that have not ended
        self.answers: dict[InboundCall, Any] = {}  # what their callers must get
        self.broken = False  # the peer broke a rule: whatever it says then is not to be trusted
        self.pair.on_server_event = self.arrived
        self.seen: dict[Any, Any] = {}  # of each end what it last showed
        if opened:
            self.pair.open()

    def arrived(self, event: Any) -> None:
        if isinstance(event, RequestReceived):
            self.handlers.append(event.call)

    # The client's user

    @property
    def patient(self) -> bool:
        return len(self.started) < self.patience

    @rule(
        size=sizes,
        timeout=st.none() | seconds,
        one_way=st.sampled_from([False, False, False, True]),
        named=st.booleans(),
        times=st.integers(1, 4),
        then_carry=st.booleans(),
    )
    def start(
        self,
        size: int,
        timeout: float | None,
        one_way: bool,
        named: bool,
        times: int,
        then_carry: bool,
    ) -> None:
        for _ in range(times):
            self.start_one(size, timeout, one_way, named)
        if then_carry:
            self.pair.pump()

    def start_one(self, size: int, timeout: float | None, one_way: bool, named: bool) -> None:
        pair = self.pair
        before = (pair.client.calls_in_flight, pair.client._serial, pair.client.outbound)
        try:
            call = pair.client.start_call(
                pair.now,
                "Echo.echo",
                [len(self.started), "x" * size],
                {"key": "value"} if named else None,
                deadline=None if timeout is None else pair.now + timeout,
                one_way=one_way,
            )
        except (Unavailable, ResourceExhausted) as error:
            refusal = error
        else:
            self.started.append(call)
            if one_way and call.sent:
                self.gone.add(call.id)
            return
        assert refusal.maybe_executed is False
        after = (pair.client.calls_in_flight, pair.client._serial, pair.client.outbound)
        assert after == before

    @precondition(lambda self: self.started)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        call = data.draw(st.sampled_from(self.started))
        self.pair.client.cancel(self.pair.now, call)
        self.pair.report(self.pair.client)

    @precondition(lambda self: not self.patient)
    @rule(grace=seconds)
    def shut_client(self, grace: float) -> None:
        self.pair.client.shutdown(self.pair.now, grace)
        self.pair.report(self.pair.client)

    # The server's handlers

    @precondition(lambda self: self.handlers)
    @rule(
        data=st.data(),
        size=sizes,
        how=st.sampled_from(["value", "value", "value", "error", "nothing"]),
        times=st.integers(1, 3),
        then_carry=st.booleans(),
    )
    def end_handlers(
        self, data: st.DataObject, size: int, how: str, times: int, then_carry: bool
    ) -> None:
        for _ in range(min(times, len(self.handlers))):
            self.end_one(data.draw(st.sampled_from(self.handlers)), size, how)
        if then_carry:
            self.pair.pump()

    def end_one(self, call: InboundCall, size: int, how: str) -> None:
        self.handlers.remove(call)
        server, now = self.pair.server, self.pair.now
        waited = not call.ended and call in server.calls.by_id.values()
        if how == "value":
            answer: Any = [call.id, "y" * size]
            server.send_response(now, call, answer)
        elif how == "error":
            answer = "aborted"
            server.send_error(now, call, Aborted("y" * size))
        else:
            answer = "internal"
            server.conclude(now, call)
        if waited:
            self.answers[call] = answer

    @precondition(lambda self: not self.patient)
    @rule(grace=seconds)
    def shut_server(self, grace: float) -> None:
        self.pair.server.shutdown(self.pair.now, grace)
        self.pair.report(self.pair.server)

    # The network and the clock

    @rule(up=st.booleans(), times=st.integers(1, 8))
    def carry(self, up: bool, times: int) -> None:
        link = self.pair.up if up else self.pair.down
        for _ in range(times):
            if not self.pair.carry(link):
                break

    @rule()
    def carry_all(self) -> None:
        self.pair.pump()

    @rule(up=st.booleans(), held=st.booleans())
    def block(self, up: bool, held: bool) -> None:
        link = self.pair.up if up else self.pair.down
        link.held = held

    @rule(time=seconds)
    def wait(self, time: float) -> None:
        self.pair.advance(time)

    @rule()
    def wake_early(self) -> None:
        for end in (self.pair.client, self.pair.server):
            self.wake(end)

    @rule()
    def step(self) -> None:
        self.pair.step()

    @precondition(lambda self: not self.patient)
    @rule()
    def half_close(self) -> None:
        if self.pair.up.data or self.pair.client.outbound:
            self.broken = True  # the end may come inside a frame
        self.pair.half_close()

    @precondition(lambda self: not self.patient)
    @rule()
    def lose(self) -> None:
        self.pair.lose()

    @precondition(lambda self: not self.patient)
    @rule(up=st.booleans(), data=any_frames | st.binary(max_size=20))
    def intrude(self, up: bool, data: bytes) -> None:
        """Bytes that no end of ours wrote."""
        link: Link = self.pair.up if up else self.pair.down
        if not link.ended and not link.data:
            self.broken = True
            link.data += data

    @rule(up=st.booleans(), kind=st.sampled_from([0x80, 0xFF]))
    def send_ignorable(self, up: bool, kind: int) -> None:
        link: Link = self.pair.up if up else self.pair.down
        if not link.ended and not link.data and link.sender.state is State.OPEN:
            if not link.carried:
                return
            link.data += frame(kind, 1, b"h", b"b", 0xFF)

    # What is always true

    def wake(self, end: Connection) -> None:
        end.handle_timeout(self.pair.now)
        self.pair.report(end)
        later = end.next_timeout()
        assert later is None or later > self.pair.now

    @invariant()
    def queues_are_bounded(self) -> None:
        client, server = self.pair.client, self.pair.server
        assert len(client._queue) <= QUEUE
        largest = LARGEST + 200
        assert client.outbound <= HIGH_WATER + largest + 16 * len(self.started) + 200
        one_way = sum(call.one_way for call in server.calls)
        assert len(server.calls) - one_way <= CALLS
        for end in (client, server):
            assert len(end.calls.deadlines) <= 2 * len(self.started) + 65

    @invariant()
    def no_end_reports_after_its_last_event(self) -> None:
        for events in (self.pair.client_events, self.pair.server_events):
            ends = [type(event) is ConnectionTerminated for event in events]
            assert not any(ends[:-1])

    @invariant()
    def no_call_has_ended_twice(self) -> None:
        ended = [
            event.call.serial
            for event in self.pair.client_events
            if isinstance(event, (CallCompleted, CallFailed))
        ]
        assert len(ended) == len(set(ended))
        assert not self.gone & set(ended)
        told = [
            id(event.call) for event in self.pair.server_events if isinstance(event, CallCancelled)
        ]
        assert len(told) == len(set(told))
        assert not {id(call) for call in self.answers} & set(told)

    @invariant()
    def closed_end_wants_nothing_more(self) -> None:
        for end in (self.pair.client, self.pair.server):
            if end.state is State.CLOSED:
                assert end.next_timeout() is None
                assert end.data_to_send() == b""

    @invariant()
    def end_of_the_same_version_has_not_changed(self) -> None:
        for end in (self.pair.client, self.pair.server):
            before, timeout = self.seen.get(end, ((-1,), None))
            if before[0] != end.version:
                self.pair.report(end)  # as a driver does then
            at = end.next_timeout()
            assert at is None or at >= end._now
            seen = (end.version, end.state, end.wish)
            if before[0] == end.version:
                assert before == seen
                assert at is None or (timeout is not None and at >= timeout)
                assert not end._events
            self.seen[end] = (seen, at)

    # The end of all things

    def teardown(self) -> None:
        pair = self.pair
        for link in (pair.up, pair.down):
            link.held = False
        pair.pump()
        while self.handlers:
            call = self.handlers.pop(0)
            if not call.ended:
                self.answers[call] = [call.id, ""]
            pair.server.send_response(pair.now, call, [call.id, ""])
            pair.pump()
        for end in (pair.client, pair.server):
            end.shutdown(pair.now, 1.0)
            pair.report(end)
        pair.pump()
        while self.handlers:
            pair.server.conclude(pair.now, self.handlers.pop())
        pair.advance(60.0)
        pair.lose()
        self.check_ends()
        self.queues_are_bounded()
        self.no_end_reports_after_its_last_event()
        self.no_call_has_ended_twice()
        self.closed_end_wants_nothing_more()

    def check_ends(self) -> None:
        pair = self.pair
        for end in (pair.client, pair.server):
            assert end.state is State.CLOSED
            assert not len(end.calls)
        assert not pair.client._queue
        served: dict[int, InboundCall] = {call.id: call for call in pair.requests()}
        told = {event.call for event in pair.server_events if isinstance(event, CallCancelled)}
        for asked in served.values():
            assert (asked in told) is not (asked in self.answers)
        ends = {
            event.call.id: event
            for event in pair.client_events
            if isinstance(event, (CallCompleted, CallFailed))
        }
        for call in self.started:
            assert (call.id in ends) is not (call.id in self.gone)
            if call.id in ends and not self.broken:
                self.check_outcome(ends[call.id], served.get(call.id))

    def check_outcome(self, event: Any, served: InboundCall | None) -> None:
        if isinstance(event, CallFailed):
            error: CallError = event.error
            # "False only when the handler surely did not start, so that a retry is safe."
            assert error.maybe_executed or served is None
            if error.code in ("aborted", "internal"):
                assert served is not None
                assert self.answers[served] == error.code
        elif not event.call.flags & 4:
            assert served is not None
            assert event.value == self.answers[served]


TestLife = Life.TestCase
TestLife.settings = settings(
    spread(), max_examples=max(60, EXAMPLES // 100), stateful_step_count=40
)
