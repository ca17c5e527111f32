"""Which call runs next: a limit of handlers, a share of it for each connection, and turns."""

from typing import Any

import pytest

from rpc_fuzz.pair import Host, Pair
from rpc_proto import ClientConfig, SendBufferDrained, ServerConfig, quick
from rpc_proto.service.dispatch import Dispatcher

LARGE = bytes(2048)
HIGH_WATER = 1024


class Work:
    def wait(self, text: str = "") -> str:
        return text

    async def coroutine(self) -> None: ...

    @quick
    def quick(self) -> str:
        return "at once"

    def large(self) -> bytes:
        return LARGE


SLOW = ["Work.wait", "Work.coroutine"]


def connected() -> Pair:
    client = ClientConfig(ping_interval=None)
    return Pair(client, ServerConfig(ping_interval=None, high_water=HIGH_WATER)).open()


def hosted(**options: Any) -> tuple[Pair, Host]:
    pair = connected()
    return pair, Host(pair, Work(), **{"slow": SLOW, **options})


def another(host: Host) -> Pair:
    """One more connection of the host's server."""
    pair = connected()

    def handle(event: Any) -> None:
        for job in host.dispatcher.receive([event]):
            host._start(job)

    pair.on_server_event = handle
    return pair


def texts(host: Host) -> list[str]:
    return [job.args[0] for job in host.running]


@pytest.mark.fault(96)
def test_one_connection_has_three_quarters_of_the_handlers() -> None:
    pair, host = hosted(max_concurrency=8)
    for _ in range(20):
        pair.call("Work.wait", "flood")
    assert (len(host.running), host.dispatcher.queued) == (6, 14)
    other = another(host)
    calls = [other.call("Work.wait", "other") for _ in range(2)]
    assert texts(host) == ["flood"] * 6 + ["other"] * 2
    for running in host.running[6:]:
        host.finish(running)
    other.pump()
    assert [other.outcome(call) for call in calls] == ["other"] * 2
    assert len(host.running) == 6


@pytest.mark.fault(96)
@pytest.mark.parametrize(("limit", "share"), [(1, 1), (2, 2), (3, 3), (4, 3), (16, 12)])
def test_share_of_a_small_limit_is_never_nothing(limit: int, share: int) -> None:
    pair, host = hosted(max_concurrency=limit)
    for _ in range(20):
        pair.call("Work.wait")
    assert len(host.running) == share


@pytest.mark.fault(96)
def test_connections_take_turns() -> None:
    pair, host = hosted(max_concurrency=1)
    for number in range(3):
        pair.call("Work.wait", f"a{number}")
    other = another(host)
    for number in range(2):
        other.call("Work.wait", f"b{number}")
    order = []
    while host.running:
        order += texts(host)
        host.finish()
    assert order == ["a0", "b0", "a1", "b1", "a2"]


@pytest.mark.fault(96)
def test_quick_methods_do_not_wait_for_a_place() -> None:
    pair, host = hosted(max_concurrency=1, max_queued=1)
    for _ in range(2):
        pair.call("Work.wait")
    assert pair.outcome(pair.call("Work.quick")) == "at once"
    assert (host.dispatcher.running, host.dispatcher.queued) == (1, 1)


@pytest.mark.fault(96)
def test_full_queue_still_takes_one_call_of_a_connection_that_has_none_there() -> None:
    pair, host = hosted(max_concurrency=1, max_queued=2)
    calls = [pair.call("Work.wait", "a") for _ in range(4)]
    assert pair.outcome(calls[3]).code == "resource_exhausted"
    other = another(host)
    first, second = (other.call("Work.wait", "b") for _ in range(2))
    assert other.outcome(second).code == "resource_exhausted"
    while host.running:
        host.finish()
        other.pump()
    assert other.outcome(first) == "b"
    assert [pair.outcome(call) for call in calls[:3]] == ["a"] * 3


@pytest.mark.fault(94)
def test_plain_handlers_have_the_limit_of_the_threads() -> None:
    pair, host = hosted(max_concurrency=8, threads=2)
    for _ in range(4):
        pair.call("Work.wait")
        pair.call("Work.coroutine")
    names = [job.method.name for job in host.running]
    assert (names.count("Work.wait"), names.count("Work.coroutine")) == (2, 4)
    assert (host.dispatcher.running, host.dispatcher.queued) == (6, 2)


@pytest.mark.fault(94)
def test_call_that_is_cancelled_while_it_waits_for_a_thread_keeps_nothing() -> None:
    pair, host = hosted(max_concurrency=8, threads=1)
    pair.call("Work.wait")
    waiting = pair.call("Work.wait", "x" * 1000)
    [_, served] = pair.server.calls
    pair.client.cancel(pair.now, waiting)
    pair.report(pair.client)
    pair.pump()
    assert host.dispatcher.queued == 0
    assert served not in pair.server.calls
    assert host.stopped == []


@pytest.mark.fault(95)
def test_no_call_begins_while_the_peer_does_not_read_its_answers() -> None:
    pair, host = hosted()
    pair.down.held = True
    calls = [pair.call("Work.large") for _ in range(20)]
    assert len(host.ran) == 1
    assert pair.server.outbound < HIGH_WATER + 2 * len(LARGE)
    pair.down.held = False
    pair.pump()
    pair.advance(0.0)
    assert [pair.outcome(call) for call in calls] == [LARGE] * 20
    assert (host.dispatcher.running, host.dispatcher.queued) == (0, 0)


@pytest.mark.fault(95)
def test_calls_held_back_for_their_reader_do_not_hold_back_others() -> None:
    pair, host = hosted(max_concurrency=1)
    pair.down.held = True
    for _ in range(3):
        pair.call("Work.large")
    other = another(host)
    call = other.call("Work.wait", "on")
    host.finish()
    other.pump()
    assert other.outcome(call) == "on"


@pytest.mark.fault(95)
def test_call_that_was_to_run_can_be_put_back_before_the_others() -> None:
    pair, host = hosted(max_concurrency=3)
    for number in range(4):
        pair.call("Work.wait", str(number))
    second = host.running.pop(1)
    host.dispatcher.postpone(second)
    assert (host.dispatcher.running, host.dispatcher.queued) == (2, 2)
    host.finish()
    assert texts(host) == ["2", "1", "3"]


@pytest.mark.fault(95)
def test_calls_held_back_end_with_their_connection() -> None:
    pair, host = hosted()
    pair.down.held = True
    for _ in range(5):
        pair.call("Work.large")
    pair.lose()
    assert (host.dispatcher.running, host.dispatcher.queued) == (0, 0)
    assert len(host.ran) == 1


def test_drained_buffer_is_told_only_while_there_are_calls() -> None:
    pair = connected()
    pair.down.held = True
    _, served = pair.request("Work.large")
    pair.server.send_response(pair.now, served, LARGE)
    pair.down.held = False
    pair.pump()
    pair.advance(0.0)
    assert not [event for event in pair.server_events if isinstance(event, SendBufferDrained)]


def test_limit_of_threads_is_a_whole_number() -> None:
    with pytest.raises(ValueError, match="threads must be a whole number, 1 or more, not 0"):
        Dispatcher(clock=float, threads=0)
