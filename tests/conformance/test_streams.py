"""Streams over sockets: items both ways, their ends, back-pressure and cancellation."""

import gc
from typing import Any

import pytest

from conformance.links import Link
from conformance.model import Colour, Item
from conformance.runtimes import END, Streaming, outcome_of
from rpc_proto import (
    Cancelled,
    DataLoss,
    DeadlineExceeded,
    Internal,
    InvalidArgument,
    LocalProtocolError,
    NotFound,
    StreamEnded,
    Unavailable,
    Unimplemented,
)

FEATURE = "Streams: items to and from the server, with back-pressure"
ENDS = "Streams end early on either side, and handlers learn of it at once"
SERVICES = pytest.mark.parametrize("service", ["Streams", "PlainStreams"])
feature = pytest.mark.feature


def send_on(stream: Streaming, value: Any) -> None:
    """Send an item again and again, until that is refused."""
    while True:
        stream.send(value)


# Items


@feature(FEATURE)
@SERVICES
@pytest.mark.parametrize("n", [0, 1, 5000])
def test_items_of_the_server_come_in_order(link: Link, service: str, n: int):
    with link.host() as host, link.connect(host) as client:
        assert client.stream(f"{service}.count", n).rest() == list(range(n))


@feature(FEATURE)
@SERVICES
def test_items_of_an_iterator_are_the_argument(link: Link, service: str):
    with link.host() as host, link.connect(host) as client:
        assert client.call(f"{service}.total", iter(range(5000))) == sum(range(5000))
        chunks = [bytes(size) for size in (0, 1, 70_000, 300_000)]
        sizes = [len(chunk) for chunk in chunks]
        assert client.call(f"{service}.sizes", "n", iter(chunks)) == ["n", sizes]


@feature(FEATURE)
@SERVICES
def test_items_both_ways_by_turns(every_link: Link, service: str):
    with (
        every_link.host() as host,
        every_link.connect(host) as client,
        client.stream(f"{service}.echo") as stream,
    ):
        for value in [1, "two", None, [3.0], {"four": 4}]:
            stream.send(value)
            assert stream.take() == value
        stream.end()
        assert stream.take() is END
        assert stream.result() is None


@feature(FEATURE)
@SERVICES
def test_items_both_ways_at_the_same_time(link: Link, service: str):
    with link.host() as host, link.connect(host) as client:
        values = [f"{n}" * 50 for n in range(3000)]
        assert client.stream(f"{service}.echo", iter(values)).rest() == values


@feature(FEATURE)
@SERVICES
def test_typed_items_arrive_as_their_types(link: Link, service: str):
    with link.host() as host, link.connect(host) as client:
        stream = client.stream(
            f"{service}.items", iter([Item("pen", 1), Item("ink", 2, Colour.BLUE)]), returns=Item
        )
        assert stream.rest() == [Item("pen", 2), Item("ink", 3, Colour.BLUE)]


@feature(FEATURE)
@SERVICES
def test_large_items_pass(link: Link, service: str):
    with link.host() as host, link.connect(host) as client:
        found = client.stream(f"{service}.zeros", 3, 1_000_000, returns=bytes).rest()
        assert [len(item) for item in found] == [1_000_000] * 3


@feature(FEATURE)
@SERVICES
def test_context_holds_from_item_to_item_and_metadata_come_with_the_end(link: Link, service: str):
    with link.host() as host, link.connect(host) as client:
        stream = client.stream(f"{service}.context", 3, metadata={"a": "b"})
        assert stream.rest() == [[n, {"a": "b"}] for n in (1, 2, 3)]
        assert stream.real.metadata == {"seen": "3"}


@feature(FEATURE)
def test_unary_methods_and_streams_are_not_confused(link: Link):
    with link.host() as host, link.connect(host) as client:
        with pytest.raises(InvalidArgument, match="has to be called as a stream"):
            client.call("Streams.count", 1)
        with client.stream("Basic.echo", 5) as stream:
            assert stream.result() == 5
        with pytest.raises(Unimplemented):
            client.stream("Streams.missing").rest()


# Ends


@feature(ENDS)
@SERVICES
@pytest.mark.fault(114)
def test_items_before_an_error_are_delivered(link: Link, service: str):
    with link.host() as host, link.connect(host) as client:
        stream = client.stream(f"{service}.fails", 3)
        assert [stream.take() for _ in range(3)] == [0, 1, 2]
        with pytest.raises(NotFound, match="no more"):
            stream.take()


@feature(ENDS)
@SERVICES
@pytest.mark.fault(113)
@pytest.mark.parametrize("how", ["close", "drop"])
def test_leaving_closes_the_generator(link: Link, service: str, key: str, how: str):
    with link.host() as host, link.connect(host) as client:
        stream = client.stream(f"{service}.count", 10**9, key)
        assert stream.take() == 0
        getattr(stream, how)()
        gc.collect()
        host.wait("closed", key)
        host.settle(running=0)
        assert client.call("Basic.echo", 1) == 1


@feature(ENDS)
@SERVICES
@pytest.mark.fault(113)
def test_leaving_ends_the_wait_of_a_handler(link: Link, service: str, key: str):
    with link.host() as host, link.connect(host) as client:
        stream = client.stream(f"{service}.waits", key)
        assert stream.take() == 1
        host.wait("started", key)
        stream.close()
        host.wait("closed", key)


@feature(ENDS)
@SERVICES
@pytest.mark.fault(115)
def test_generator_that_ignores_its_closing_keeps_its_slot(link: Link, service: str, key: str):
    with link.own_host() as host, link.connect(host) as client:
        stream = client.stream(f"{service}.stubborn", key)
        assert stream.take() == 1
        stream.close()
        host.wait("closing", key)
        host.wait("started", key)
        assert host.stats["running"] == 1
        assert client.call("Basic.echo", 1) == 1
        host.open(key)
        host.settle(running=0)


class Ours(Exception):
    """Of the caller's own iterator."""


@feature(ENDS)
@SERVICES
@pytest.mark.fault(116)
@pytest.mark.parametrize("n", [0, 1, 2000])
def test_iterator_that_raises_cancels_the_call(link: Link, service: str, key: str, n: int):
    def chunks() -> Any:
        yield from [b"chunk"] * n
        raise Ours

    with link.host() as host, link.connect(host) as client:
        with pytest.raises(Ours):
            client.call(f"{service}.sizes", "n", chunks(), key)
        host.settle(running=0)
        assert client.call("Basic.echo", 1) == 1


@feature(ENDS)
@SERVICES
@pytest.mark.fault(117)
def test_answer_before_the_items_end_is_the_result(link: Link, service: str):
    with link.host() as host, link.connect(host) as client:
        assert client.call(f"{service}.first", iter(range(10**9))) == [0]
        with client.stream(f"{service}.first", 2) as stream:
            stream.send(1)
            stream.send(2)
            with pytest.raises(StreamEnded, match="has answered already"):
                send_on(stream, 3)
            assert stream.result() == [1, 2]


@feature(ENDS)
@SERVICES
@pytest.mark.fault(126)
def test_bad_items_fail_at_their_position(link: Link, service: str):
    with link.host() as host, link.connect(host) as client:
        with pytest.raises(InvalidArgument, match=rf"item 3 of {service}\.total is bad"):
            client.call(f"{service}.total", iter([1, 2, "three"]))
        stream = client.stream(f"{service}.count", 3, returns=str)
        with pytest.raises(DataLoss, match=rf"item 1 of {service}\.count is bad"):
            stream.take()
        stream = client.stream(f"{service}.bad", 2)
        assert [stream.take(), stream.take()] == [0, 1]
        with pytest.raises(Internal, match=rf"item 3 of {service}\.bad cannot be encoded"):
            stream.take()
        with client.stream(f"{service}.echo") as stream:
            with pytest.raises(InvalidArgument, match=rf"item 1 of {service}\.echo cannot"):
                stream.send(object())
            stream.send(1)
            assert stream.take() == 1


@feature(ENDS)
def test_nothing_can_be_sent_after_the_end(link: Link):
    with (
        link.host() as host,
        link.connect(host) as client,
        client.stream("Streams.echo") as stream,
    ):
        stream.end()
        with pytest.raises(LocalProtocolError):
            stream.send(1)


@feature(ENDS)
@pytest.mark.fault(119)
def test_lost_connection_ends_streams_and_keeps_what_came(tcp_link: Link, key: str):
    with tcp_link.own_host() as host, tcp_link.connect(host) as client:
        stream = client.stream("Streams.waits", key)
        assert stream.take() == 1
        host.wait("started", key)
        host.kill()
        with pytest.raises(Unavailable):
            stream.take()
        with pytest.raises(Unavailable):
            client.stream("Streams.count", 1).rest()


@feature(ENDS)
@pytest.mark.fault(120)
def test_drain_ends_endless_streams_and_lets_others_finish(tcp_link: Link, key: str):
    with tcp_link.own_host() as host, tcp_link.connect(host) as client:
        endless = client.stream("Streams.count", 10**9)
        assert endless.take() == 0
        finite = client.stream("Streams.waits", key)
        assert finite.take() == 1
        host.wait("started", key)
        host.begin_stop(1.0)
        host.open(key)
        assert finite.rest() == [2]
        with pytest.raises(Unavailable, match="shutting down"):
            endless.rest()
        assert host.stopped()


@feature(ENDS)
@SERVICES
@pytest.mark.fault(112)
def test_silence_ends_a_stream(link: Link, service: str, key: str):
    with link.host() as host, link.connect(host) as client:
        stream = client.stream(f"{service}.waits", key, idle_timeout=0.1)
        assert stream.take() == 1
        with pytest.raises(DeadlineExceeded, match="no item"):
            stream.take()
        host.wait("closed", key)


@feature(ENDS)
@SERVICES
def test_deadline_covers_the_whole_stream(link: Link, service: str, key: str):
    with link.host() as host, link.connect(host) as client:
        stream = client.stream(f"{service}.waits", key, timeout=0.2)
        assert stream.take() == 1
        with pytest.raises(DeadlineExceeded):
            stream.take()
        host.wait("closed", key)


# Back-pressure


@feature(FEATURE)
@SERVICES
@pytest.mark.fault(111)
def test_consumer_that_stops_holds_nobody_up(link: Link, service: str, key: str):
    with link.host() as host, link.connect(host) as client:
        stream = client.stream(f"{service}.zeros", 10**6, 1000, key)
        stream.take()
        assert client.stream("Streams.count", 2000).rest() == list(range(2000))
        assert client.call("Basic.echo", 1) == 1
        made = host.count("made", key)
        assert made < 300  # a window, and what a thread works ahead
        stream.close()


@feature(FEATURE)
@SERVICES
@pytest.mark.fault(128)
def test_deadline_while_send_waits_for_credit(link: Link, service: str, key: str):
    with link.host() as host, link.connect(host) as client:
        stream = client.stream(f"{service}.ignores", key, timeout=0.3)
        with stream, pytest.raises(DeadlineExceeded):
            send_on(stream, bytes(1000))
        host.settle(running=0)


@feature(FEATURE)
@pytest.mark.fault(127)
def test_stream_through_two_servers(link: Link, key: str):
    with link.host() as host, link.connect(host) as client:
        stream = client.stream("Streams.forward", host.address(), 3, key)
        assert stream.rest() == [0, 1, 2]
        stream = client.stream("Streams.forward", host.address(), 10**9, key)
        assert stream.take() == 0
        stream.close()
        host.wait("closed", key, 2)
        stream = client.stream("Streams.forward", host.address(), 10**9, key, timeout=0.3)
        assert stream.take() == 0
        host.wait("closed", key, 3)  # by the deadline, although nobody takes


@feature(FEATURE)
@pytest.mark.fault(130)
def test_two_consumers_of_one_stream_are_an_error(link: Link, key: str):
    with link.host() as host, link.connect(host) as client:
        stream = client.stream("Streams.waits", key)
        assert stream.take() == 1
        ahead: Any = anext if hasattr(stream.real, "__aiter__") else next
        first = client.spawn(lambda _: ahead(stream.real, END))
        host.wait("started", key)
        second = outcome_of(client.spawn(lambda _: ahead(stream.real, END)))
        outcomes = [second]
        host.open(key)
        outcomes.append(outcome_of(first))
        assert sorted(map(str, outcomes)) == sorted(
            map(str, [second, *(o for o in outcomes if o == 2)])
        )
        assert any(isinstance(outcome, LocalProtocolError) for outcome in outcomes)
        assert stream.take() is END


@feature(FEATURE)
@pytest.mark.fault(133)
def test_streams_cut_into_pieces_by_a_proxy(tcp_link: Link):
    with tcp_link.host() as host, tcp_link.through_proxy(host, seed=1, largest=50) as (_, client):
        assert client.stream("Streams.count", 500).rest() == list(range(500))
        values = [f"{n}" * 10 for n in range(100)]
        assert client.stream("Streams.echo", iter(values)).rest() == values


@feature(FEATURE)
def test_many_streams_at_once(link: Link):
    with link.host() as host, link.connect(host) as client:
        running = [client.stream("Streams.count", 3) for _ in range(50)]
        for stream in running:
            assert stream.take() == 0
        for stream in running:
            assert stream.rest() == [1, 2]


@feature(ENDS)
def test_closed_client_ends_its_streams(link: Link, key: str):
    with link.host() as host:
        client = link.connect(host)
        stream = client.stream("Streams.waits", key)
        assert stream.take() == 1
        client.close()
        with pytest.raises((Cancelled, Unavailable)):
            stream.take()
        host.wait("closed", key)


def test_stream_says_what_it_is(link: Link):
    with link.host() as host, link.connect(host) as client:
        stream: Streaming = client.stream("Streams.count", 0)
        assert repr(stream.real) == "<stream of Streams.count, not begun>"
        assert stream.rest() == []
        assert repr(stream.real) == "<stream of Streams.count, ended>"
