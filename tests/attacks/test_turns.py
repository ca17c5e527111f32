"""Connections whose input takes long read little at a time, and one after the other."""

import pytest
from fairness import INPUTS, measure_one
from victim import BACKENDS

from rpc_common.transport.turns import FIRST_READ, LARGEST_READ, SHORT, Turns, next_read

MILLISECOND = 0.001


class Link:
    closed = False


A, B = Link(), Link()


def settle(size: int, rate: float) -> int:
    """The size of a read after a while, for a peer whose bytes take `rate` seconds each."""
    for _ in range(30):
        size = next_read(size, size, size * rate)
    return size


@pytest.mark.fault(18)
@pytest.mark.parametrize("per_byte", [1e-5, 1e-6, 2e-7, 5e-8])
def test_reads_shrink_until_one_takes_about_a_millisecond(per_byte):
    for start in (FIRST_READ, LARGEST_READ):
        size = settle(start, per_byte)
        assert size == 1024 or SHORT < size * per_byte <= MILLISECOND


def test_reads_that_take_no_time_grow_to_the_largest():
    assert settle(FIRST_READ, 1e-9) == LARGEST_READ


def test_a_peer_that_sends_little_gets_large_reads_again():
    size = next_read(LARGEST_READ, LARGEST_READ, 1.0)
    assert size == 1024
    for _ in range(64):
        size = next_read(size, 50, 20e-6)
    assert size == LARGEST_READ


def test_a_small_read_that_takes_long_does_not_make_the_next_one_larger():
    assert next_read(4096, 100, 0.5) == 1024


def test_connections_that_wait_take_turns():
    turns = Turns()
    assert turns.add(A, MILLISECOND)  # the driver begins to call `next`
    assert not turns.add(B, MILLISECOND)
    assert turns.next() == A
    assert not turns.add(A, MILLISECOND)
    assert [turns.next(), turns.next()] == [B, A]
    assert turns.next() is None
    assert turns.add(A, MILLISECOND)  # and begins again


def test_connection_that_alone_is_slow_waits_for_nobody():
    turns = Turns()
    assert turns.are_contended(A)  # who knows who else is
    assert not turns.are_contended(A)
    assert turns.are_contended(B)
    assert turns.are_contended(A)
    turns.add(B, MILLISECOND)
    assert turns.are_contended(A)


def test_connection_that_was_slow_once_waits_for_one_of_those_that_always_are():
    turns = Turns()
    once = Link()
    for _ in range(8):
        turns.add(Link(), 30 * MILLISECOND)
    for _ in range(1000):
        turns.add(once, MILLISECOND)
        served = [turns.next(), turns.next()]
        assert once in served
        served.remove(once)
        turns.add(served[0], 30 * MILLISECOND)
    assert len(turns._by_seconds) < 100


def test_slow_connection_does_not_wait_for_ever():
    turns = Turns()
    slow, quick = Link(), Link()
    turns.add(slow, 30 * MILLISECOND)
    for _ in range(3):
        turns.add(quick, MILLISECOND)
    assert slow in [turns.next(), turns.next()]


def test_nobody_waits_for_connections_that_are_closed():
    turns = Turns()
    gone = Link()
    for _ in range(100):
        turns.add(gone, MILLISECOND / 2)
    turns.add(A, MILLISECOND)
    gone.closed = True
    assert turns.next() is A
    assert turns.next() is None
    assert turns.add(B, MILLISECOND)


@pytest.mark.fault(18)
@pytest.mark.timeout(120)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "name",
    [
        "one-way calls of a quick method",
        "pings",
        "unknown methods",
        "ignorable frames",
        "16 KB of metadata",  # more than is allowed: each such call ends its connection
    ],
)
def test_floods_of_tiny_frames_cost_a_neighbour_little(name, backend):
    if backend == "gevent":
        pytest.importorskip("gevent")
    kind = INPUTS[name]()
    # CPU time that the server spends from a neighbour's request to the answer: other work on the
    # machine does not count, but may delay the neighbour, so the best of some rounds does.
    rounds = (measure_one(backend, kind, 0.4, peers=8).beside_cpu for _ in range(4))
    assert any(seconds < 0.04 for seconds in rounds)
