"""Deadlines and cancellation: when a caller is told, and how far they reach."""

import math
import time

import pytest

from conformance.links import Link
from conformance.runtimes import GAVE_UP, until
from rpc_proto import CallError, ClientConfig, DeadlineExceeded

# Two slow cores may add so much to a time, in seconds.
SLACK = 5.0


@pytest.mark.feature("Deadlines end the call and cancel the handler")
def test_deadline_fails_the_call_and_cancels_the_handler(link: Link, key):
    with link.host() as host, link.connect(host) as client:
        client.call("Basic.echo")
        began = time.monotonic()
        with pytest.raises(DeadlineExceeded) as caught:
            client.call("Gate.wait", key, timeout=0.5)
        assert 0.45 < time.monotonic() - began < SLACK
        assert isinstance(caught.value, TimeoutError)
        assert caught.value.maybe_executed
        host.wait("cancelled", key)
        host.settle(running=0)
        assert client.calls_in_flight == 0
        assert client.call("Basic.echo", "on") == "on"


@pytest.mark.feature("Deadlines end the call and cancel the handler")
def test_default_timeout_is_that_of_the_config(link: Link, key):
    config = ClientConfig(call_timeout=0.3)
    with link.host() as host, link.connect(host, config=config) as client:
        with pytest.raises(DeadlineExceeded):
            client.call("Gate.wait", key)
        host.settle(running=0)


@pytest.mark.feature("Deadlines end the call and cancel the handler")
def test_timeout_of_zero_fails_without_a_word_to_the_server(link: Link, key):
    with link.host() as host, link.connect(host) as client:
        with pytest.raises(DeadlineExceeded) as caught:
            client.call("Basic.count", key, timeout=0)
        assert not caught.value.maybe_executed
        assert client.call("Basic.echo", "next") == "next"
        assert host.count("runs", key) == 0


@pytest.mark.feature("Deadlines end the call and cancel the handler")
def test_many_deadlines_expire_each_at_its_time(link: Link, key):
    with link.host() as host, link.connect(host) as client:
        client.call("Basic.echo")
        began = time.monotonic()
        timeouts = [0.3 + 0.02 * (n * 7 % 20) for n in range(20)]
        calls = [client.start("Gate.wait", key, timeout=timeout) for timeout in timeouts]
        outcomes = {type(call.outcome()) for call in calls}
        assert outcomes == {DeadlineExceeded}
        assert 0.6 < time.monotonic() - began < SLACK
        assert client.calls_in_flight == 0


@pytest.mark.feature("Deadlines end the call and cancel the handler")
def test_handling_timeout_of_the_server_ends_a_call_whatever_its_caller_wants(link: Link, key):
    with link.host(config={"handling_timeout": 0.3}) as host, link.connect(host) as client:
        with pytest.raises(DeadlineExceeded):
            client.call("Gate.wait", key, timeout=math.inf)
        host.wait("cancelled", key)


@pytest.mark.feature("Handlers see their deadline")
def test_handler_sees_the_time_that_is_left(link: Link):
    with link.host() as host, link.connect(host) as client:
        assert 5 < client.call("Basic.time_left", timeout=10) <= 10.1
        assert client.call("Basic.time_left", timeout=math.inf) is None


@pytest.mark.feature("A call whose deadline passes in the server's queue never runs")
def test_deadline_that_passes_in_the_queue_of_the_server(link: Link, key):
    with link.host(max_concurrency=1) as host, link.connect(host) as client:
        first = client.start("Gate.wait", key)
        host.wait("started", key)
        queued = client.start("Basic.count", key, timeout=0.4)
        host.settle(queued=1)
        assert isinstance(queued.outcome(), DeadlineExceeded)
        host.settle(queued=0)
        host.open(key)
        assert first.outcome() == "through"
        assert client.call("Basic.echo", "on") == "on"
        assert host.count("runs", key) == 0


@pytest.mark.feature("Deadlines and cancellation reach through calls that handlers make")
def test_deadline_shrinks_over_two_hops(tcp_link: Link):
    with (
        tcp_link.host() as first,
        tcp_link.host_of_client_backend() as second,
        tcp_link.connect(first) as client,
    ):
        times = client.call("Hop.times", [second.address(), first.address()], timeout=10)
        assert len(times) == 3
        assert 10 > times[0] > times[1] + 0.01 > times[2] + 0.02 > 0


@pytest.mark.feature("Deadlines and cancellation reach through calls that handlers make")
def test_deadline_cancels_the_handlers_of_every_hop(tcp_link: Link, key):
    with (
        tcp_link.host() as first,
        tcp_link.host_of_client_backend() as second,
        tcp_link.connect(first) as client,
    ):
        began = time.monotonic()
        with pytest.raises(DeadlineExceeded):
            client.call("Hop.wait", [second.address()], key, timeout=1.0)
        assert 0.9 < time.monotonic() - began < SLACK
        second.wait("cancelled", key)
        first.settle(running=0)
        second.settle(running=0)


@pytest.mark.feature("Deadlines and cancellation reach through calls that handlers make")
def test_cancellation_reaches_the_handlers_of_every_hop(tcp_link: Link, key):
    with (
        tcp_link.host() as first,
        tcp_link.host_of_client_backend() as second,
        tcp_link.connect(first) as client,
    ):
        call = client.start("Hop.wait", [second.address()], key)
        second.wait("started", key)
        call.cancel()
        assert call.outcome() == GAVE_UP
        second.wait("cancelled", key)
        first.settle(running=0)
        second.settle(running=0)


@pytest.mark.feature("A caller that gives up cancels the handler")
def test_caller_that_gives_up_cancels_the_handler(link: Link, key):
    with link.host() as host, link.connect(host) as client:
        call = client.start("Gate.wait", key)
        host.wait("started", key)
        call.cancel()
        assert call.outcome() == GAVE_UP
        host.wait("cancelled", key)
        host.settle(running=0)
        assert client.calls_in_flight == 0
        assert client.call("Basic.echo", "on") == "on"


@pytest.mark.feature("A caller that gives up cancels the handler")
def test_caller_that_gives_up_leaves_the_queue_of_the_server(link: Link, key):
    with link.host(max_concurrency=1) as host, link.connect(host) as client:
        first = client.start("Gate.wait", key)
        host.wait("started", key)
        queued = client.start("Basic.count", key)
        host.settle(queued=1)
        queued.cancel()
        host.settle(queued=0)
        host.open(key)
        assert first.outcome() == "through"
        assert queued.outcome() == GAVE_UP
        assert host.count("runs", key) == 0


@pytest.mark.fault(45)
@pytest.mark.feature("A caller that gives up cancels the handler")
def test_calls_given_up_while_their_answers_come_have_one_outcome_each(link: Link):
    with link.host() as host, link.connect(host) as client:
        calls = [client.start("Basic.echo", n) for n in range(100)]
        for call in calls:
            call.cancel()
        for n, call in enumerate(calls):
            assert call.outcome() in (n, GAVE_UP)
        until(lambda: client.calls_in_flight == 0)
        assert client.call("Basic.echo", "on") == "on"


@pytest.mark.fault(49)
@pytest.mark.feature("A handler that outlives its deadline: one answer, counted until it ends")
def test_handler_that_outlives_its_deadline_is_counted_until_it_ends(link: Link, key):
    with link.host() as host, link.connect(host) as client:
        with pytest.raises(DeadlineExceeded):
            client.call("Gate.stubborn", key, timeout=0.3)
        host.wait("cancelled", key)
        assert host.stats["running"] == 1
        assert client.call("Basic.echo", "on") == "on"
        host.open(key)
        host.wait("ended", key)
        host.settle(running=0, abandoned=0)
        assert client.call("Basic.echo", "still on") == "still on"


@pytest.mark.fault(49)
@pytest.mark.feature("A handler that outlives its deadline: one answer, counted until it ends")
def test_answer_of_the_server_does_not_wait_for_a_stubborn_handler(link: Link, key):
    """The client sets no deadline, so that the answer has to come from the server."""
    with link.host(config={"handling_timeout": 0.3}) as host, link.connect(host) as client:
        began = time.monotonic()
        with pytest.raises(CallError) as caught:
            client.call("Gate.stubborn", key, timeout=math.inf)
        assert time.monotonic() - began < SLACK
        assert caught.value.code == "deadline_exceeded"
        host.open(key)
        host.wait("ended", key)
