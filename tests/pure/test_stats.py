"""The numbers of a server: counts, latencies, last errors, slowest calls; all bounded."""

import json
from typing import Any

import pytest

from rpc_fuzz.pair import Host, Pair
from rpc_fuzz.wire import Wire
from rpc_proto import CallError, ClientConfig, NotFound, ServerConfig
from rpc_proto.service.stats import BATCH, BOUNDS, REMOVED, UNKNOWN, MethodStats


class Arith:
    def add(self, a: int, b: int) -> int:
        return a + b

    def fail(self, code: str, message: str = "on purpose") -> None:
        raise CallError(code, message)

    def broken(self) -> object:
        return object()


def hosted(*, server: ServerConfig | None = None, **options: Any) -> tuple[Pair, Host]:
    pair = Pair(ClientConfig(ping_interval=None), server or ServerConfig(ping_interval=None)).open()
    return pair, Host(pair, Arith(), **options)


def numbers(host: Host, *connections: Any) -> Any:
    """The snapshot, as it arrives where it is read."""
    live = connections or [host.pair.server]
    return json.loads(json.dumps(host.dispatcher.snapshot(host.pair.now, live), allow_nan=False))


SLOW = ["Arith.add"]

# Calls


def test_each_method_has_its_own_counts() -> None:
    pair, host = hosted()
    for n in range(3):
        pair.call("Arith.add", n, n)
    pair.call("Arith.fail", "not_found")
    seen = numbers(host)
    add, fail = seen["methods"]["Arith.add"], seen["methods"]["Arith.fail"]
    assert (add["begun"], add["ended"], add["served"], add["failed"]) == (3, 3, 3, 0)
    assert (fail["begun"], fail["ended"], fail["served"], fail["failed"]) == (1, 1, 0, 1)
    assert (add["errors"], fail["errors"]) == ({}, {"not_found": 1})
    assert seen["calls"]["begun"] == 4
    assert seen["calls"]["errors"] == {"not_found": 1}


def test_registered_method_without_calls_is_there_with_zeros() -> None:
    _, host = hosted()
    add = numbers(host)["methods"]["Arith.add"]
    assert add["begun"] == add["in_flight"] == add["latency"]["count"] == 0
    assert add["latency"]["p50"] is None


def test_calls_that_run_and_calls_that_wait_are_in_flight() -> None:
    pair, host = hosted(slow=SLOW, max_concurrency=2)
    for n in range(3):
        pair.call("Arith.add", n, n)
    seen = numbers(host)
    assert seen["load"] == {"running": 2, "queued": 1, "streams": 0}
    add = seen["methods"]["Arith.add"]
    assert (add["begun"], add["in_flight"], add["ended"]) == (3, 3, 0)
    host.finish()
    host.finish()
    host.finish()
    add = numbers(host)["methods"]["Arith.add"]
    assert (add["begun"], add["in_flight"], add["ended"]) == (3, 0, 3)


def test_handler_that_outlives_its_connection_is_in_flight_until_it_ends() -> None:
    pair, host = hosted(slow=SLOW)
    pair.call("Arith.add", 1, 2)
    pair.lose()
    add = numbers(host)["methods"]["Arith.add"]
    assert (add["in_flight"], add["cancelled"], add["errors"]) == (1, 1, {"unavailable": 1})
    host.finish()
    add = numbers(host)["methods"]["Arith.add"]
    assert (add["begun"], add["in_flight"], add["ended"]) == (1, 0, 1)


def test_handler_that_returns_when_its_caller_has_gone_is_late() -> None:
    pair, host = hosted(slow=SLOW)
    for cancelled in (True, False):
        call = pair.call("Arith.add", 1, 2)
        if cancelled:
            pair.client.cancel(pair.now, call)
            pair.pump()
        host.finish()
    add = numbers(host)["methods"]["Arith.add"]
    assert (add["served"], add["late"], add["errors"]) == (2, 1, {"cancelled": 1})


def test_call_that_leaves_the_queue_unserved_has_ended() -> None:
    pair, host = hosted(slow=SLOW, max_concurrency=1)
    pair.call("Arith.add", 1, 2)
    waits = pair.call("Arith.add", 3, 4)
    pair.client.cancel(pair.now, waits)
    pair.pump()
    add = numbers(host)["methods"]["Arith.add"]
    assert (add["begun"], add["ended"], add["in_flight"], add["cancelled"]) == (2, 1, 1, 1)
    assert add["latency"]["count"] == 0


def test_unknown_methods_are_counted_under_one_name() -> None:
    pair, host = hosted()
    for n in range(100):
        pair.call(f"Arith.guess{n}")
    seen = numbers(host)
    assert sorted(seen["methods"]) == [UNKNOWN, "Arith.add", "Arith.broken", "Arith.fail"]
    unknown = seen["methods"][UNKNOWN]
    assert (unknown["begun"], unknown["refused"]) == (0, 100)
    assert unknown["errors"] == {"unimplemented": 100}
    assert {error["method"] for error in seen["last_errors"]} == {UNKNOWN}


def test_undecodable_arguments_are_refused_under_the_method() -> None:
    pair, host = hosted()
    pair.call("Arith.add", "one", 2)
    add = numbers(host)["methods"]["Arith.add"]
    assert (add["begun"], add["refused"], add["errors"]) == (0, 1, {"invalid_argument": 1})


def test_call_over_the_limit_of_the_queue_is_refused() -> None:
    pair, host = hosted(slow=SLOW, max_concurrency=1, max_queued=1)
    for n in range(3):
        pair.call("Arith.add", n, n)
    add = numbers(host)["methods"]["Arith.add"]
    assert (add["begun"], add["refused"]) == (2, 1)
    assert add["errors"] == {"resource_exhausted": 1}


def test_call_that_the_connection_refuses_is_counted() -> None:
    pair, host = hosted(server=ServerConfig(max_calls=1, ping_interval=None), slow=SLOW)
    pair.call("Arith.add", 1, 2)
    flood = Wire("msgpack").request(77, "Arith.add", [1, 2])
    pair.server.receive_data(pair.now, flood)
    pair.report(pair.server)
    add = numbers(host)["methods"]["Arith.add"]
    assert (add["begun"], add["refused"]) == (1, 1)
    assert add["errors"] == {"resource_exhausted": 1}


def test_result_that_cannot_be_encoded_is_an_error_of_its_method() -> None:
    pair, host = hosted()
    pair.call("Arith.broken")
    broken = numbers(host)["methods"]["Arith.broken"]
    assert (broken["served"], broken["errors"]) == (1, {"internal": 1})


def test_deadline_that_passes_is_an_overrun() -> None:
    pair, host = hosted(slow=SLOW)
    call = pair.call("Arith.add", 1, 2, timeout=1.0)
    pair.up.held = True  # the server has to see for itself
    pair.advance(1.5)
    add = numbers(host)["methods"]["Arith.add"]
    assert (add["deadline_overruns"], add["cancelled"]) == (1, 1)
    assert add["errors"] == {"deadline_exceeded": 1}
    assert call.method == "Arith.add"


def test_cancel_at_the_callers_own_deadline_is_an_overrun_and_an_early_one_is_not() -> None:
    pair, host = hosted(slow=SLOW)
    early = pair.call("Arith.add", 1, 2, timeout=1.0)
    late = pair.call("Arith.add", 1, 2, timeout=1.0)
    pair.client.cancel(pair.now, early)
    pair.pump()
    pair.now += 0.99
    pair.client.cancel(pair.now, late)
    pair.pump()
    add = numbers(host)["methods"]["Arith.add"]
    assert (add["deadline_overruns"], add["errors"]) == (1, {"cancelled": 2})


def test_code_of_the_programs_own_is_other_among_the_counts_and_itself_among_the_errors() -> None:
    pair, host = hosted()
    for n in range(30):
        pair.call("Arith.fail", f"own-{n}")
    seen = numbers(host)
    assert seen["calls"]["errors"] == {"other": 30}
    assert seen["last_errors"][0]["code"] == "own-29"


def test_removed_service_stays_in_the_totals() -> None:
    pair, host = hosted(slow=SLOW)
    pair.call("Arith.add", 1, 2)
    pair.call("Arith.fail", "not_found")
    host.dispatcher.unregister("Arith")
    seen = numbers(host)
    assert list(seen["methods"]) == [REMOVED]
    assert (seen["calls"]["begun"], seen["calls"]["in_flight"]) == (2, 1)
    host.finish()
    host.dispatcher.register(Arith())
    seen = numbers(host)
    assert seen["methods"]["Arith.add"]["begun"] == 0
    assert seen["methods"][REMOVED]["served"] == 1
    assert seen["calls"]["errors"] == {"not_found": 1}


# Latencies


def test_latency_is_from_the_arrival_to_the_end_of_the_handler() -> None:
    pair, host = hosted(slow=SLOW)
    pair.call("Arith.add", 1, 2)
    pair.advance(0.3)
    host.finish()
    latency = numbers(host)["methods"]["Arith.add"]["latency"]
    assert (latency["count"], latency["sum"]) == (1, pytest.approx(0.3))
    assert latency["p50"] == latency["p99"] == pytest.approx(0.3)
    assert [count for bound, count in latency["buckets"] if bound < 0.3] == [0] * 11
    assert [count for bound, count in latency["buckets"] if bound > 0.3] == [1] * 5


def test_bound_of_a_bucket_belongs_to_it() -> None:
    stats = MethodStats()
    stats.latencies += [0.0, *BOUNDS, 1000.0]
    stats.fold()
    assert stats.buckets == list(range(2, len(BOUNDS) + 2))
    assert stats.folded == len(BOUNDS) + 2


def test_percentiles_are_those_of_the_calls_of_late() -> None:
    stats = MethodStats()
    for latency in [10.0] * BATCH + [n / 1000 for n in range(1, BATCH + 1)]:
        stats.latencies.append(latency)
        if len(stats.latencies) == BATCH:
            stats.fold()
    told = stats.copy().latency()
    assert (told["count"], told["p50"], told["p99"]) == (2 * BATCH, 0.256, 0.507)


def test_reading_changes_nothing() -> None:
    pair, host = hosted()
    for n in range(5):
        pair.call("Arith.add", n, n)
    assert numbers(host) == numbers(host)


# The last errors


def test_last_errors_tell_when_what_and_who() -> None:
    pair, host = hosted()
    pair.call("Arith.fail", "not_found", "first")
    pair.advance(2.0)
    pair.call("Arith.fail", "aborted", "second")
    last, first = numbers(host)["last_errors"]
    assert (first["code"], first["message"], first["age"]) == ("not_found", "first", 2.0)
    assert (last["code"], last["method"], last["peer"]) == ("aborted", "Arith.fail", "")


def test_errors_are_kept_up_to_fifty_and_their_texts_clipped() -> None:
    pair, host = hosted()
    for n in range(60):
        pair.call("Arith.fail", "internal", f"{n}" + "x" * 5000)
    errors = numbers(host)["last_errors"]
    assert len(errors) == 50
    assert errors[0]["message"].startswith("59")
    assert max(len(error["message"]) for error in errors) == 200


def test_text_that_is_no_unicode_can_still_be_shown() -> None:
    pair, host = hosted()
    pair.call("Arith.fail", "internal")
    call = pair.requests()[-1]
    host.dispatcher.failed(pair.now, call, NotFound("a \udcff b"), 0)
    assert numbers(host)["last_errors"][0]["message"] == "a ? b"


# The slowest calls


def test_slow_call_tells_where_its_time_went() -> None:
    pair, host = hosted(slow=SLOW, max_concurrency=1)
    pair.call("Arith.add", 1, 2)
    pair.call("Arith.add", 3, 4)
    pair.advance(1.0)
    host.finish()
    pair.advance(0.25)
    host.finish()
    slowest, other = numbers(host)["slowest"]
    assert (slowest["latency"], slowest["queue"], slowest["handler"]) == (1.25, 1.0, 0.25)
    assert (other["latency"], other["queue"], other["handler"]) == (1.0, 0.0, 1.0)
    assert (slowest["method"], slowest["age"], slowest["send"]) == ("Arith.add", 0.0, 0.0)


def test_only_the_twenty_slowest_are_kept() -> None:
    pair, host = hosted(slow=SLOW)
    for n in range(100):
        pair.call("Arith.add", n, n)
        pair.advance(0.001 * ((n * 37) % 100 + 1))
        host.finish()
    latencies = [round(call["latency"], 6) for call in numbers(host)["slowest"]]
    assert latencies == [round(0.001 * n, 6) for n in range(100, 80, -1)]


def test_slow_call_of_long_ago_makes_room() -> None:
    pair, host = hosted(slow=SLOW)
    for _ in range(20):
        pair.call("Arith.add", 1, 2)
        pair.advance(5.0)
        host.finish()
    pair.advance(301.0)
    pair.call("Arith.add", 1, 2)
    host.finish()
    latencies = [call["latency"] for call in numbers(host)["slowest"]]
    assert latencies == [5.0] * 20  # the quick one would come behind them
    pair.advance(301.0)
    assert [call["latency"] for call in numbers(host)["slowest"]] == [0.0]
    pair.advance(301.0)
    assert numbers(host)["slowest"] == []


def test_failed_call_can_be_among_the_slowest() -> None:
    pair, host = hosted(slow=["Arith.fail"])
    pair.call("Arith.fail", "internal")
    pair.advance(3.0)
    host.finish()
    assert numbers(host)["slowest"][0]["method"] == "Arith.fail"


# Connections


@pytest.mark.parametrize("chunk", [None, 1, 7])
def test_bytes_are_those_that_were_carried(chunk: int | None) -> None:
    pair = Pair(ClientConfig(ping_interval=None), ServerConfig(ping_interval=None), chunk=chunk)
    host = Host(pair.open(), Arith())
    for n in range(10):
        pair.call("Arith.add", n, n)
    seen = numbers(host)["connections"]
    assert (seen["open"], seen["bytes_received"]) == (1, pair.up.carried)
    assert seen["bytes_sent"] == pair.down.carried


def test_bytes_behind_the_handshake_are_counted_once() -> None:
    pair = Pair(ClientConfig(ping_interval=None), ServerConfig(ping_interval=None))
    line = pair.client.data_to_send()
    frame = Wire("msgpack").request(1, "Arith.add", [1, 2])
    pair.server.receive_data(pair.now, line + frame)
    assert pair.server.received == len(line) + len(frame)


def test_bytes_of_closed_connections_stay_in_the_sums() -> None:
    pair, host = hosted()
    pair.call("Arith.add", 1, 2)
    stats = host.dispatcher.stats
    stats.connected()
    stats.closed(pair.server)
    seen = host.dispatcher.snapshot(pair.now)["connections"]
    assert (seen["total"], seen["open"]) == (1, 0)
    assert (seen["bytes_received"], seen["bytes_sent"]) == (pair.up.carried, pair.down.carried)


def test_violations_and_refused_handshakes_are_told_apart() -> None:
    pair = Pair(ClientConfig(ping_interval=None), ServerConfig(ping_interval=None)).open()
    host = Host(pair)
    other = Pair(ClientConfig(), ServerConfig(token="secret"))
    other.pump()
    pair.server.receive_data(pair.now, b"\x7f" * 16)
    pair.report(pair.server)
    for events in (pair.server_events, other.server_events):
        host.dispatcher.stats.terminated("a peer", events[-1].error, pair.now)  # type: ignore[attr-defined]
    seen = numbers(host)
    assert seen["connections"]["violations"] == seen["connections"]["refused_handshakes"] == 1
    codes = [(error["method"], error["code"]) for error in seen["last_errors"]]
    assert codes == [(None, "unauthenticated"), (None, "protocol_violation")]


# Memory


def test_memory_does_not_grow_with_the_calls() -> None:
    pair, host = hosted()
    for n in range(3 * BATCH + 1):
        pair.call("Arith.add", n, n)
    stats = host.dispatcher.methods["Arith.add"].stats
    assert len(stats.latencies) < BATCH
    assert len(stats.recent) == BATCH
    assert stats.ended == 3 * BATCH + 1
    assert not host.dispatcher._outliving


def test_cancelled_calls_are_let_go_when_their_handlers_have_ended() -> None:
    pair, host = hosted(slow=["Arith.add", "Arith.fail"])
    calls = [pair.call("Arith.add", 1, 2), pair.call("Arith.fail", "internal")]
    for call in calls:
        pair.client.cancel(pair.now, call)
    pair.pump()
    assert len(host.dispatcher._outliving) == 2
    host.finish()
    host.finish()
    assert not host.dispatcher._outliving
