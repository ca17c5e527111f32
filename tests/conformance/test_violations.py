"""What a peer sees that breaks the rules, or whose frames are cut: a stranger's tester, by hand."""

import contextlib
import json
import socket
from collections.abc import Iterator

import pytest

from conformance.hosts import LIMIT
from conformance.runtimes import Runtime, until
from conformance.wire import Peer, accepted, dialled
from rpc_fuzz.wire import (
    CANCEL,
    GOAWAY,
    PING,
    PONG,
    REQUEST,
    RESPONSE,
    Frame,
    answer,
    frame,
    line,
    options,
)
from rpc_proto import Unavailable

FEATURE = "What a peer gets wrong costs its call or its connection, nobody else's"
WRONG = frame(0x08, 9)  # a type that nobody sends yet


@pytest.fixture(params=["tcp", "unix"])
def peer(server_backend, request) -> Iterator[Peer]:
    """A peer whose options the server has accepted."""
    with server_backend() as host, accepted(host.address(request.param)) as peer:
        peer.host = host
        yield peer


def told(frames: list[Frame]) -> list[tuple[int, int]]:
    return [(one.type, one.call_id) for one in frames]


def check_goodbye(goaway: Frame, last_call: int) -> None:
    assert (goaway.type, goaway.call_id) == (GOAWAY, last_call)
    assert json.loads(goaway.body)[0] == "invalid_argument"


@pytest.mark.fault(82)
@pytest.mark.feature(FEATURE)
def test_server_says_goaway_to_a_peer_whose_frame_is_cut(peer, key):
    peer.request(1, "Basic.echo", "before")
    assert peer.receive().value == "before"
    peer.request(2, "Gate.wait", key)
    peer.host.wait("started", key)
    peer.send(peer.wire.request(3, "Basic.count", [key])[:20])
    peer.half_close()
    [goaway] = peer.frames()
    check_goodbye(goaway, last_call=2)
    peer.host.wait("cancelled", key)
    assert peer.host.count("runs", key) == 0
    peer.host.settle(connections=0, running=0)


@pytest.mark.fault(82)
@pytest.mark.feature(FEATURE)
def test_answers_before_a_violation_arrive_and_then_goaway(peer):
    peer.request(1, "Basic.echo", "before")
    peer.send(frame(PING, 77))
    while peer.frame().type != RESPONSE:
        pass
    peer.send(frame(PING, 78) + WRONG)
    *before, goaway = peer.frames()
    assert (PONG, 78) in told(before)
    check_goodbye(goaway, last_call=1)


@pytest.mark.fault(82)
@pytest.mark.feature(FEATURE)
def test_calls_in_the_segment_of_a_violation_are_named_by_goaway_and_not_answered(peer, key):
    calls = [peer.wire.request(n, "Basic.count", [key]) for n in (1, 2)]
    peer.send(b"".join(calls) + WRONG + peer.wire.request(3, "Basic.count", [key]))
    [goaway] = peer.frames()
    check_goodbye(goaway, last_call=2)
    peer.host.settle(connections=0, running=0)
    assert peer.host.count("runs", key) == 0


@pytest.mark.fault(82)
@pytest.mark.feature(FEATURE)
def test_goaway_reaches_a_peer_that_goes_on_sending(peer):
    """Closing a socket with unread bytes would reset the connection, and destroy the GOAWAY."""
    peer.send(WRONG + bytes(1 << 20))
    [goaway] = peer.frames()
    check_goodbye(goaway, last_call=0)


@pytest.mark.fault(82)
@pytest.mark.feature(FEATURE)
@pytest.mark.parametrize("transport", ["tcp", "tls"])
def test_goaway_follows_answers_that_wait_for_a_peer_that_goes_on_sending(
    server_backend, suite, key, transport: str
):
    """A reset would also destroy what the kernel has not sent yet."""
    dialling = {"receive_buffer": 4096, "tls": suite.trusting if transport == "tls" else None}
    with server_backend() as host, accepted(host.address(transport), **dialling) as peer:
        before = host.log().count("protocol violation")
        served = host.stats["served"]
        for call in range(1, 9):
            peer.request(call, "Basic.zeros", 100_000, key)
        until(lambda: host.stats["served"] == served + 8)
        peer.send(WRONG)
        until(lambda: host.log().count("protocol violation") > before)
        for _ in range(3):  # what is closed answers the first with a reset
            peer.send(bytes(100_000))
        *answers, goaway = peer.frames()
        assert [one.type for one in answers] == [RESPONSE] * 8
        check_goodbye(goaway, last_call=8)


@pytest.mark.fault(82)
@pytest.mark.feature(FEATURE)
def test_options_calls_and_a_violation_in_one_segment(server_backend):
    with server_backend() as host, dialled(host.address()) as peer:
        request = peer.wire.request(1, "Basic.echo", [1])
        peer.send(line(options(codec="json")) + request + frame(CANCEL, 1, body=b"x"))
        assert "error" not in peer.line()
        [goaway] = peer.frames()
        check_goodbye(goaway, last_call=1)


# The client's end


class Answering:
    """A server by hand, for one connection."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self.address = f"tcp://127.0.0.1:{listener.getsockname()[1]}"

    @contextlib.contextmanager
    def accepting(self) -> Iterator[Peer]:
        plain, _ = self._listener.accept()
        plain.settimeout(LIMIT)
        peer = Peer(plain)
        try:
            fields = peer.line()
            peer.send(line(answer(codec=fields["codec"])))
            yield peer
        finally:
            peer.close()


@pytest.fixture
def by_hand() -> Iterator[Answering]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(LIMIT)
        yield Answering(listener)


@pytest.mark.fault(82)
@pytest.mark.feature(FEATURE)
@pytest.mark.parametrize("how", ["cut", "violation"])
def test_client_keeps_the_answers_before_a_violation_and_says_goaway(
    client_backend: Runtime, by_hand: Answering, how: str
):
    connecting = client_backend.spawn(
        lambda: client_backend.kind.connect(by_hand.address, codec="json")
    )
    with by_hand.accepting() as peer:
        real = connecting.result(LIMIT)
        calls = [
            client_backend.start(real, "Basic.echo", (n,), {"timeout": LIMIT}) for n in range(3)
        ]
        seen = told([peer.frame() for _ in calls])
        assert seen == [(REQUEST, 1), (REQUEST, 2), (REQUEST, 3)]
        refused = peer.wire.error(2, "aborted", "no")
        peer.send(peer.wire.response(1, "first") + refused)
        if how == "cut":
            peer.send(peer.wire.response(3, "third")[:-1])
            peer.half_close()
        else:
            peer.send(WRONG + peer.wire.response(3, "third"))
        first, second, third = (call.outcome() for call in calls)
        assert first == "first"
        assert second.code == "aborted"
        assert isinstance(third, Unavailable)
        assert third.maybe_executed
        *_, goaway = peer.frames()
        check_goodbye(goaway, last_call=0)
    client_backend.do(real.close)
