"""How much a server's connections hold together, whatever their peers do."""

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rpc_fuzz.wire import (
    ERROR,
    NOT_EXECUTED,
    ONE_WAY,
    RAW,
    START,
    Frame,
    Wire,
    frames_in,
    line,
    open_client,
    options,
)
from rpc_proto import (
    ClientConfig,
    ClientConnection,
    InboundCall,
    RequestReceived,
    ResourceExhausted,
    ServerConfig,
    ServerConnection,
    ServerPort,
    State,
    Wish,
)
from rpc_proto.connection.memory import FREE, Account, Memory
from rpc_proto.http import Request, Response
from rpc_proto.service.dispatch import Dispatcher
from support.driving import caused

KIB = 1024
MIB = 1024 * 1024
QUANTUM = 64 * KIB
WIRE = Wire()
LARGE = MIB  # the largest body here
CONFIG = ServerConfig(
    max_body=LARGE, max_decoded=2 * MIB, memory=16 * MIB, ping_interval=None, frame_timeout=60.0
)


def connected(memory: Memory, config: ServerConfig = CONFIG) -> ServerConnection:
    server = ServerConnection(config, now=START, memory=memory)
    server.receive_data(START, line(options()))
    server.data_to_send()
    return server


def calls(events: list[Any]) -> list[InboundCall]:
    return [event.call for event in events if isinstance(event, RequestReceived)]


def errors(server: ServerConnection) -> list[tuple[int, str, int]]:
    """The id, the code and the flags of the errors that are to be sent."""
    answers = [Frame(*raw) for raw in frames_in(server.data_to_send())]
    return [
        (answer.call_id, WIRE.decode(answer.body)[0], answer.flags)
        for answer in answers
        if answer.type == ERROR
    ]


def feed(server: ServerConnection | ServerPort, data: bytes, now: float) -> list[Any]:
    """Give bytes as a driver does: piece by piece, as long as they are wanted."""
    events: list[Any] = []
    for at in range(0, len(data), 64 * KIB):
        if server.wish is Wish.PAUSE:
            break
        events += caused(server.receive_data, now, data[at : at + 64 * KIB])
    return events


def push(server: ServerConnection, data: bytes, now: float) -> list[Any]:
    """Give bytes, and wait while they are not wanted."""
    events: list[Any] = []
    while data:
        before = server.received
        events += feed(server, data, now)
        data = data[server.received - before :]
        while data and server.wish is Wish.PAUSE:
            now = server.next_timeout() or now
            events += caused(server.handle_timeout, now)
    return events


# The budget


def test_last_quarter_is_for_connections_that_hold_little() -> None:
    memory = Memory(4 * MIB)
    greedy, modest = Account(memory, 4 * MIB), Account(memory, 4 * MIB)
    assert greedy.cover(3 * MIB + FREE)
    assert not greedy.cover(3 * MIB + FREE + 1)
    assert modest.cover(FREE + 1)
    assert memory.used == 3 * MIB + QUANTUM


def test_what_is_not_held_any_more_is_given_back() -> None:
    memory = Memory(4 * MIB)
    account = Account(memory, 4 * MIB)
    assert account.cover(MIB)
    assert account.cover(FREE + 1)
    assert memory.used == QUANTUM
    assert account.cover(FREE)
    assert memory.used == 0


def test_what_several_hold_is_counted_once() -> None:
    memory = Memory(4 * MIB)
    page = bytes(2 * MIB)
    assert memory.share(page)
    assert memory.share(page)
    assert not memory.share(bytes(2 * MIB + 1))
    memory.unshare(page)
    assert memory.used == len(page)
    memory.unshare(page)
    assert memory.used == 0


def test_default_is_128_mib_or_four_times_the_largest_call() -> None:
    assert ServerConfig().budget == 128 * MIB
    assert ServerConfig(max_body=64 * MIB).budget == 256 * MIB
    assert ServerConfig(max_body=64 * MIB, memory=128 * MIB).budget == 128 * MIB
    with pytest.raises(ValueError, match=r"memory must be at least twice max_body \(67108864\)"):
        ServerConfig(max_body=64 * MIB, memory=128 * MIB - 1)


# Calls


@pytest.mark.fault(65)
def test_connection_at_its_share_stops_reading_and_then_refuses() -> None:
    memory = Memory(CONFIG.budget)
    server = connected(memory)
    taken: list[InboundCall] = []
    for number in range(1, 1025):
        if server.wish is Wish.PAUSE:
            break
        taken += calls(feed(server, WIRE.request(number, body=bytes(LARGE), flags=RAW), START))
    assert 3 <= len(taken) <= 4  # a quarter of 16 MiB
    assert memory.used <= CONFIG.share + QUANTUM
    at = START
    while server.wish is Wish.PAUSE:
        at = server.next_timeout() or at
        server.handle_timeout(at)
    assert at <= START + 1.25
    for call in taken:
        server.send_response(at, call, None)
    server.data_to_send()
    server.handle_timeout(server.next_timeout() or at)
    assert memory.used == 0


@pytest.mark.fault(65)
def test_half_a_body_on_each_of_many_connections_is_given_up_and_answered() -> None:
    memory = Memory(CONFIG.budget)
    whole = WIRE.request(7, body=bytes(LARGE), flags=RAW)
    half = len(whole) // 2
    servers = [connected(memory) for _ in range(100)]
    before = servers[0].received
    for server in servers:
        feed(server, whole[:half], START)
    assert memory.used <= memory.limit * 3 // 4 + 100 * QUANTUM
    waiting = [server for server in servers if server.wish is Wish.PAUSE]
    assert len(waiting) > 60
    given_up = 0
    for server in waiting:
        rest = whole[server.received - before :] + WIRE.request(8)
        ids = [call.id for call in calls(push(server, rest, START))]
        answers = errors(server)
        if answers:  # what still came of that body was not kept
            assert answers == [(7, "resource_exhausted", NOT_EXECUTED)]
        assert ids == ([8] if answers else [7, 8])
        given_up += len(answers)
    assert given_up > 60
    assert memory.used <= memory.limit


@pytest.mark.fault(65)
def test_small_calls_of_a_neighbour_go_on_while_all_memory_is_taken() -> None:
    memory = Memory(CONFIG.budget)
    assert memory.take(memory.limit, 0)
    neighbour = connected(memory)
    for number in range(1, 100):
        args = ["x" * 1000]
        (call,) = calls(caused(neighbour.receive_data, START, WIRE.request(number, args=args)))
        assert neighbour.wish is Wish.READ
        neighbour.send_response(START, call, "y" * 1000)
        assert errors(neighbour) == []


@pytest.mark.fault(65)
def test_whole_call_for_which_there_is_no_memory_is_refused() -> None:
    memory = Memory(CONFIG.budget)
    assert memory.take(memory.limit, 0)
    server = connected(memory)
    assert (
        calls(caused(server.receive_data, START, WIRE.request(1, body=bytes(FREE + 1), flags=RAW)))
        == []
    )
    assert errors(server) == [(1, "resource_exhausted", NOT_EXECUTED)]


def test_one_way_call_that_is_given_up_is_not_answered() -> None:
    memory = Memory(CONFIG.budget)
    assert memory.take(memory.limit, 0)
    server = connected(memory)
    data = WIRE.request(1, body=bytes(LARGE), flags=RAW | ONE_WAY)
    feed(server, data[: 64 * KIB], START)
    while server.wish is Wish.PAUSE:
        server.handle_timeout(server.next_timeout() or 0.0)
    feed(server, data[64 * KIB :], START + 2.0)
    assert server.data_to_send() == b""
    assert len(calls(caused(server.receive_data, START + 2.0, WIRE.request(2)))) == 1


def test_id_of_a_call_that_is_given_up_must_be_free() -> None:
    memory = Memory(CONFIG.budget)
    assert memory.take(memory.limit, 0)
    server = connected(memory)
    assert len(calls(caused(server.receive_data, START, WIRE.request(1)))) == 1
    feed(server, WIRE.request(1, body=bytes(LARGE), flags=RAW)[: 64 * KIB], START)
    while server.state is State.OPEN:
        server.handle_timeout(server.next_timeout() or 0.0)
    assert b"call 1 is in flight already" in server.data_to_send()


@pytest.mark.fault(65)
def test_result_that_cannot_be_held_becomes_an_error() -> None:
    memory = Memory(CONFIG.budget)
    server = connected(memory)
    (call,) = calls(caused(server.receive_data, START, WIRE.request(1)))
    assert memory.take(memory.limit, 0)
    server.send_response(START, call, bytes(MIB))
    assert errors(server) == [(1, "resource_exhausted", 0)]


@pytest.mark.fault(65)
def test_calls_count_until_their_handlers_end_whatever_becomes_of_the_connection() -> None:
    memory = Memory(CONFIG.budget)
    server = connected(memory)
    events = feed(server, WIRE.request(1, body=bytes(LARGE), flags=RAW), START)
    events += feed(server, WIRE.request(2, body=bytes(LARGE), flags=RAW | ONE_WAY), START)
    first, second = calls(events)
    server.receive_data(START, WIRE.cancel(1))
    assert memory.used >= 2 * LARGE
    server.connection_lost(START)
    assert memory.used >= 2 * LARGE
    server.conclude(START, first)
    assert LARGE <= memory.used <= LARGE + QUANTUM
    server.send_response(START, second, None)
    assert memory.used == 0


@pytest.mark.fault(77)
def test_arguments_count_at_what_they_can_grow_to() -> None:
    class Work:
        def take(self, *values: Any) -> None: ...

    memory = Memory(CONFIG.budget)
    dispatcher = Dispatcher(clock=lambda: START)
    dispatcher.register(Work())
    server = connected(memory)
    body = b"\xdc\x10\x00" + b"\x90" * 0x1000  # 4,096 empty lists
    events = caused(server.receive_data, START, WIRE.request(1, "Work.take", body=body))
    (job,) = dispatcher.receive(events)
    assert memory.used > 64 * len(body)
    dispatcher.finish(job, None)
    assert memory.take(memory.limit - 4 * QUANTUM - memory.used, 0)
    events = caused(server.receive_data, START, WIRE.request(2, "Work.take", body=body))
    assert dispatcher.receive(events) == []
    assert errors(server) == [(2, "resource_exhausted", NOT_EXECUTED)]


@pytest.mark.parametrize("codec", ["msgpack", "json"])
def test_texts_count_at_their_size(codec: str) -> None:
    class Work:
        def take(self, text: str) -> None: ...

    memory = Memory(CONFIG.budget)
    dispatcher = Dispatcher(clock=lambda: START)
    dispatcher.register(Work())
    server = ServerConnection(CONFIG, now=START, memory=memory)
    server.receive_data(START, line(options(codec=codec)))
    server.data_to_send()
    wire = Wire(codec)
    for number in range(1, 51):  # 2.5 MB in all
        request = wire.request(number, "Work.take", ["x" * 50_000])
        assert len(dispatcher.receive(caused(server.receive_data, START, request))) == 1
    assert memory.used < 4 * MIB


def test_what_the_driver_could_not_write_counts() -> None:
    memory = Memory(CONFIG.budget)
    server = connected(memory)
    (call,) = calls(caused(server.receive_data, START, WIRE.request(1)))
    server.send_response(START, call, bytes(MIB))
    buffer = server.next_buffer()
    while server.outbound:
        buffer = server.next_buffer()
    server.unsent = len(buffer)
    server.handle_timeout(START + 0.25)
    assert 0 < memory.used <= 256 * KIB
    server.unsent = 0
    server.handle_timeout(START + 0.5)
    assert memory.used == 0


def test_large_results_leave_in_pieces_that_are_no_copies() -> None:
    server = connected(Memory(CONFIG.budget))
    (call,) = calls(caused(server.receive_data, START, WIRE.request(1)))
    body = bytes(range(256)) * (4 * KIB)
    server.send_response(START, call, body)
    pieces = []
    while server.outbound:
        pieces.append(server.next_buffer())
    assert max(map(len, pieces)) <= 256 * KIB
    assert all(piece.obj is body for piece in pieces if isinstance(piece, memoryview))
    assert b"".join(pieces)[16:] == body


def test_peer_that_reads_slowly_but_steadily_is_kept() -> None:
    server = connected(Memory(64 * MIB), CONFIG.override(high_water=64 * KIB, memory=64 * MIB))
    (call,) = calls(caused(server.receive_data, START, WIRE.request(1)))
    server.send_response(START, call, bytes(LARGE))
    for second in range(60):  # 16 KiB each
        server._out[:1], taken = [memoryview(server._out[0])[16 * KIB :]], 16 * KIB
        server.outbound -= taken
        server.sent += taken
        server.handle_timeout(START + second + 1)
        assert server.state is State.OPEN


# HTTP


def answering(memory: Memory, body: bytes) -> ServerPort:
    def application(request: Request, now: float) -> Response:
        return Response(200, body)

    return ServerPort(CONFIG, now=START, application=application, memory=memory)


@pytest.mark.fault(65)
def test_http_bodies_are_held_up_to_the_budget() -> None:
    memory = Memory(CONFIG.budget)
    head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n"
    servers = [answering(memory, b"") for _ in range(100)]
    for server in servers:
        feed(server, head + bytes(900_000), START)
    assert memory.used <= memory.limit
    waiting = [server for server in servers if server.wish is Wish.PAUSE]
    assert len(waiting) > 60
    while waiting[0].wish is Wish.PAUSE:
        waiting[0].handle_timeout(waiting[0].next_timeout() or 0.0)
    assert waiting[0].data_to_send().startswith(b"HTTP/1.1 503 ")
    for server in servers:
        server.connection_lost(START + 2.0)
    assert memory.used == 0


def test_response_that_many_get_is_counted_once() -> None:
    memory = Memory(CONFIG.budget)
    page = bytes(MIB)
    servers = [answering(memory, page) for _ in range(100)]
    for server in servers:
        server.receive_data(START, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert server.outbound > len(page)
    assert memory.used == len(page)
    for server in servers:
        server.data_to_send()
        server.receive_data(START, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert server.outbound > len(page)
        server.connection_lost(START)
    assert memory.used == 0


def test_response_for_which_there_is_no_memory_is_cut_off() -> None:
    memory = Memory(CONFIG.budget)
    server = answering(memory, bytes(MIB))
    assert memory.take(memory.limit, 0)
    server.receive_data(START, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    assert server.state is State.CLOSING
    assert len(server.data_to_send()) < KIB


def test_requests_behind_a_large_response_are_served_when_it_has_left() -> None:
    memory = Memory(CONFIG.budget)
    server = answering(memory, bytes(100 * KIB))
    server.receive_data(START, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 3)
    now = START
    for _ in range(3):
        assert 100 * KIB < server.outbound < 101 * KIB
        server.data_to_send()
        now = server.next_timeout() or now
        server.handle_timeout(now)
    assert now < START + 0.1


# The client


def caller() -> ClientConnection:
    """A client's end whose only slot is taken."""
    config = ClientConfig(max_queued_bytes=100 * KIB, ping_interval=None)
    client = open_client(config, limits={"header": 16 * KIB, "body": LARGE, "calls": 1})
    client.start_call(START, "Arith.add", [1])
    return client


@pytest.mark.fault(65)
def test_calls_that_wait_at_a_client_are_bounded_in_bytes() -> None:
    client = caller()
    client.start_call(START, "Arith.add", [bytes(200 * KIB)])  # for which no other waits
    with pytest.raises(ResourceExhausted, match="max_queued_bytes, 102400") as caught:
        client.start_call(START, "Arith.add", [b"x"])
    assert not caught.value.maybe_executed


def test_room_at_a_client_is_free_again_when_its_calls_have_gone() -> None:
    client = caller()
    body = bytes(40 * KIB)
    cancelled = client.start_call(START, "Arith.add", [body])
    client.start_call(START, "Arith.add", [body], deadline=START + 1.0)
    with pytest.raises(ResourceExhausted):
        client.start_call(START, "Arith.add", [body])
    client.cancel(START, cancelled)
    client.start_call(START, "Arith.add", [body])
    client.handle_timeout(START + 1.0)
    client.start_call(START, "Arith.add", [body])
    client.receive_data(START + 1.0, WIRE.response(1))
    client.start_call(START, "Arith.add", [body])
    with pytest.raises(ResourceExhausted):
        client.start_call(START, "Arith.add", [body])


# Whatever happens

ACTIONS = st.tuples(
    st.sampled_from(["feed", "answer", "read", "cancel", "lose", "wait"]),
    st.integers(0, 3),
    st.integers(0, 2**20),
)


@given(st.lists(ACTIONS, max_size=60))
@settings(suppress_health_check=[HealthCheck.too_slow])
def test_books_are_right_whatever_happens(actions: list[tuple[str, int, int]]) -> None:
    config = CONFIG.override(memory=4 * MIB)
    memory = Memory(config.budget)
    servers = [connected(memory, config) for _ in range(4)]
    running: list[list[InboundCall]] = [[] for _ in servers]
    pending = [b""] * 4
    ids = [0] * 4
    now = START
    for action, which, number in actions:
        server = servers[which]
        now += 0.01
        if action == "feed" and server.wish is Wish.READ and server.state is State.OPEN:
            if not pending[which]:
                ids[which] += 1
                size = number % 600_000
                pending[which] = WIRE.request(ids[which], body=bytes(size), flags=RAW)
            part, pending[which] = pending[which][:number], pending[which][number:]
            running[which] += calls(caused(server.receive_data, now, part))
        elif action == "answer" and running[which]:
            call = running[which].pop(number % len(running[which]))
            server.send_response(now, call, bytes(number))
        elif action == "read":
            server.next_buffer()
        elif action == "cancel" and running[which]:
            if not pending[which]:
                server.receive_data(now, WIRE.cancel(running[which][0].id))
        elif action == "lose":
            server.connection_lost(now)
        elif action == "wait":
            now += number / 2**20
            for each in servers:
                each.handle_timeout(now)
        leased = sum(each._account.leased - FREE for each in servers)
        assert memory.used == leased <= memory.limit
    for server, left in zip(servers, running, strict=True):
        server.connection_lost(now)
        for call in left:
            server.conclude(now, call)
    assert memory.used == 0
