"""What a call carries: values, names, metadata, errors, sizes; and many at once."""

import dataclasses
import datetime
import random
from typing import Any

import pytest

from conformance.links import Link
from conformance.model import Colour, Item, Order, Typed
from conformance.runtimes import outcome_of, until
from rpc_proto import (
    CallError,
    Cancelled,
    ClientConfig,
    DataLoss,
    DeadlineExceeded,
    Internal,
    InvalidArgument,
    LocalProtocolError,
    NotFound,
    ResourceExhausted,
    Unavailable,
    Unimplemented,
    Unknown,
)

NOON = datetime.datetime(2024, 2, 29, 12, 30, 15, 125000, tzinfo=datetime.UTC)
ORDER = Order(
    id=1,
    placed=NOON,
    items=[Item("pen", 3), Item("ink \N{BLACK NIB}", colour=Colour.BLUE)],
    prices={"pen": 1.5, "ink": 0.1},
    seal=bytes(range(256)),
)

# Values


@pytest.mark.feature("Typed values: dataclasses, enums, times, bytes, unions, containers")
def test_typed_values_arrive_as_their_types(every_link: Link):
    with every_link.host() as host, every_link.connect(host) as client:
        confirmed = client.call("Typed.confirm", ORDER, Colour.BLUE, returns=Order)
        assert confirmed == dataclasses.replace(
            ORDER,
            id=2,
            items=[Item("pen", 3, Colour.BLUE), Item("ink \N{BLACK NIB}", 1, Colour.BLUE)],
            seal=bytes(range(255, -1, -1)),
        )


@pytest.mark.feature("Typed values: dataclasses, enums, times, bytes, unions, containers")
def test_typed_proxy_converts_arguments_and_results(link: Link):
    with link.host() as host, link.connect(host) as client:
        later = client.do(lambda real: real.service(Typed).postpone(NOON, days=1))
        assert later == NOON + datetime.timedelta(days=1)
        assert client.do(lambda real: real.service(Typed).other(Colour.RED)) is Colour.BLUE
        groups = client.do(lambda real: real.service(Typed).group(ORDER.items))
        assert groups == {item.name: [item] for item in ORDER.items}


@pytest.mark.feature("Typed values: dataclasses, enums, times, bytes, unions, containers")
@pytest.mark.parametrize(("value", "half"), [(None, None), (8, 4), ("\xe9" * 4, "\xe9" * 2)])
def test_unions_keep_the_kind_of_their_value(link: Link, value, half):
    with link.host() as host, link.connect(host) as client:
        assert client.call("Typed.half", value) == half


@pytest.mark.feature("Arguments in order, by name, with defaults, any number")
def test_arguments_in_order_and_by_name(link: Link):
    with link.host() as host, link.connect(host) as client:
        assert client.call("Typed.add", 1, 2) == 3
        assert client.call("Typed.add", b=2, a=1) == 3
        assert client.call("Typed.add", 1, b=2) == 3
        assert client.call("Typed.total", 1, 2, 3, 4) == 10
        assert client.call("Typed.total") == 0
        assert client.call("Typed.confirm", order=ORDER, returns=Order).id == 2


@pytest.mark.fault(75)
@pytest.mark.feature("Proxies: client.service(name), client.service(Class)")
def test_proxy_has_a_timeout_and_metadata_of_its_own(link: Link, key):
    with link.host() as host, link.connect(host) as client:
        said = client.do(lambda real: real.service("Basic", metadata={"a": "bc"}).exchange())
        assert said == {"a": "bc"}
        left = client.do(lambda real: real.service("Basic", timeout=5.0).time_left())
        assert 0 < left <= 5.0
        with pytest.raises(DeadlineExceeded):
            client.do(lambda real: real.service("Gate", timeout=0.2).wait(key))


@pytest.mark.feature("Proxies: client.service(name), client.service(Class)")
def test_proxy_by_name(link: Link):
    with link.host() as host, link.connect(host) as client:
        assert client.do(lambda real: real.service("Typed").add(1, b=2)) == 3


@pytest.mark.feature("Bytes travel as they are")
@pytest.mark.parametrize("size", [0, 1, 65536, 300_001])
def test_bytes_travel_unchanged(every_link: Link, size):
    data = random.Random(size).randbytes(size)
    with every_link.host() as host, every_link.connect(host) as client:
        assert client.call("Typed.reverse", data, returns=bytes) == data[::-1]


@pytest.mark.feature("Bodies of 64 MiB in both directions, with raised limits")
def test_bodies_of_64_mib_in_both_directions(tcp_link: Link):
    size = 64 * 1024 * 1024
    data = random.Random(1).randbytes(1024) * (size // 1024)
    limits: dict[str, Any] = {"max_body": size}
    with (
        tcp_link.own_host(config=limits) as host,
        tcp_link.connect(host, config=ClientConfig(**limits)) as client,
    ):
        assert client.call("Basic.echo", data, returns=bytes) == data


# Order


@pytest.mark.feature("Many calls at once over one connection, answered out of order")
def test_two_hundred_calls_at_once_are_answered_out_of_order(link: Link, key):
    with link.host() as host, link.connect(host) as client:
        slow = client.at_once([("Gate.wait", key, n) for n in range(50)])
        fast = client.at_once([("Basic.echo", n) for n in range(150)])
        assert [outcome_of(one) for one in fast] == list(range(150))
        host.wait("started", key, 50)
        assert not any(one.done() for one in slow)
        host.open(key)
        assert [outcome_of(one) for one in slow] == list(range(50))
        assert client.calls_in_flight == 0


@pytest.mark.feature("A slow call delays no fast one, on its connection or another")
def test_slow_call_delays_no_fast_one(link: Link, key):
    with link.host() as host, link.connect(host) as client, link.connect(host) as other:
        slow = client.start("Gate.wait", key)
        host.wait("started", key)
        assert client.call("Basic.echo", "same connection", timeout=5) == "same connection"
        assert other.call("Basic.echo", "other connection", timeout=5) == "other connection"
        assert not slow.done
        host.open(key)
        assert slow.outcome() == "through"


# One-way calls, metadata, introspection


@pytest.mark.feature("One-way calls")
def test_one_way_call_runs_its_handler_and_leaves_nothing_behind(link: Link, key):
    with link.host() as host, link.connect(host) as client:
        assert client.do(lambda real: real.notify("Basic.count", key)) is None
        host.wait("runs", key)
        assert client.calls_in_flight == 0


@pytest.mark.feature("One-way calls")
def test_one_way_call_to_nobody_is_lost_without_a_word(link: Link):
    with link.host() as host, link.connect(host) as client:
        client.notify("Basic.missing", 1)
        assert client.call("Basic.echo", "next") == "next"


@pytest.mark.feature("One-way calls")
def test_one_way_calls_run_in_great_number(link: Link, key):
    with link.host() as host, link.connect(host) as client:
        for _ in range(300):
            client.notify("Basic.count", key)
        host.wait("runs", key, 300)


@pytest.mark.feature("Metadata in both directions")
def test_metadata_travels_in_both_directions(link: Link):
    with link.host() as host, link.connect(host) as client:
        metadata = {"trace": "abc", "\xfcser": "d\xe9f"}
        reply = client.request("Basic.exchange", metadata=metadata)
        assert reply.value == metadata
        assert dict(reply.metadata) == {"trace": "cba", "\xfcser": "f\xe9d"}
        assert dict(client.request("Basic.exchange").metadata) == {}


@pytest.mark.feature("Introspection of what a server offers")
def test_introspection_tells_what_is_offered(link: Link):
    with link.host() as host, link.connect(host) as client:
        services = client.call("rpc.Introspection.services")
        assert set(services) == {
            "Basic",
            "Failing",
            "Gate",
            "Hop",
            "PlainStreams",
            "Streams",
            "Typed",
            "rpc.Health",
            "rpc.Introspection",
        }
        assert services["Typed"]["add"]["signature"] == "(a: int, b: int) -> int"


# Errors


@pytest.mark.fault(37)
@pytest.mark.feature("Errors with code, message and details")
def test_error_that_a_handler_raises_arrives_as_it_is(link: Link):
    with link.host() as host, link.connect(host) as client:
        with pytest.raises(NotFound, match="no key 'k'") as caught:
            client.call("Failing.not_found", "k")
        assert caught.value.details == {"key": "k"}
        assert caught.value.maybe_executed
        with pytest.raises(CallError, match="short and stout") as own:
            client.call("Failing.own_code")
        assert (type(own.value), own.value.code) == (CallError, "teapot")
        assert client.call("Basic.echo", "on") == "on"


@pytest.mark.fault(37)
@pytest.mark.feature("Errors with code, message and details")
def test_bug_in_a_handler_fails_only_its_call_and_shows_no_traceback(link: Link):
    with link.host() as host, link.connect(host) as client:
        with pytest.raises(Unknown, match="ZeroDivisionError: a bug") as caught:
            client.call("Failing.bug")
        assert caught.value.details is None
        assert client.call("Basic.echo", "on") == "on"


@pytest.mark.fault(37)
@pytest.mark.feature("Errors with code, message and details")
def test_traceback_travels_when_debugging(link: Link):
    with link.host(debug=True) as host, link.connect(host) as client:
        with pytest.raises(Unknown) as caught:
            client.call("Failing.bug")
        assert "in bug" in caught.value.details


@pytest.mark.fault(37)
@pytest.mark.feature("Errors with code, message and details")
def test_result_that_cannot_be_encoded_fails_only_its_call(link: Link):
    with link.host() as host, link.connect(host) as client:
        with pytest.raises(Internal, match="cannot be encoded"):
            client.call("Failing.unencodable")
        assert client.call("Basic.echo", "on") == "on"


@pytest.mark.feature("Errors with code, message and details")
def test_result_of_another_type_than_asked_for_is_data_loss(link: Link):
    with link.host() as host, link.connect(host) as client:
        with pytest.raises(DataLoss, match=r"Basic\.echo"):
            client.call("Basic.echo", "text", returns=int)
        assert client.call("Basic.echo", "on") == "on"


@pytest.mark.fault(19, 20)
@pytest.mark.feature("What is not registered does not exist")
@pytest.mark.parametrize(
    "method", ["Basic.missing", "Missing.echo", "Basic._counters", "x", "a\0b"]
)
def test_names_that_were_not_registered_do_not_exist(link: Link, method):
    with link.host() as host, link.connect(host) as client:
        with pytest.raises(Unimplemented) as caught:
            client.call(method, "a body", 1)
        assert not caught.value.maybe_executed
        assert client.call("Basic.echo", "on") == "on"


@pytest.mark.feature("Arguments that do not fit are refused before the handler runs")
@pytest.mark.parametrize(
    ("method", "args", "named", "why"),
    [
        ("Typed.add", (1,), {}, "takes 2 arguments"),
        ("Typed.add", (1, "two"), {}, r"`b`"),
        ("Typed.add", (1,), {"c": 2}, "has no parameter 'c'"),
        ("Typed.other", ("green",), {}, r"`colour`"),
        ("Typed.group", ([{"name": "pen", "count": "many"}],), {}, r"items\[0\]\.count"),
        ("Typed.add", (object(), 2), {}, "cannot be encoded"),
    ],
)
def test_arguments_that_do_not_fit_are_named_and_nothing_runs(link: Link, method, args, named, why):
    with link.host() as host, link.connect(host) as client:
        with pytest.raises(InvalidArgument, match=why) as caught:
            client.call(method, *args, **named)
        assert not caught.value.maybe_executed
        assert client.call("Basic.echo", "on") == "on"


@pytest.mark.feature("Misuse raises before anything is sent")
@pytest.mark.parametrize("timeout", [-1, float("nan")])
def test_timeout_that_is_no_time_is_refused(link: Link, timeout):
    with link.host() as host, link.connect(host) as client:
        with pytest.raises(ValueError, match="timeout must be seconds"):
            client.call("Basic.echo", 1, timeout=timeout)
        assert client.calls_in_flight == 0
        assert client.call("Basic.echo", "on") == "on"


@pytest.mark.feature("Misuse raises before anything is sent")
def test_method_that_is_no_name_is_refused(link: Link):
    with link.host() as host, link.connect(host) as client:
        with pytest.raises(LocalProtocolError, match="method must be a string"):
            client.call("")
        assert client.calls_in_flight == 0


# Sizes


@pytest.mark.fault(37)
@pytest.mark.feature("Limits on sizes: header, body")
def test_bodies_over_a_limit_fail_only_their_call(link: Link, key):
    size = 16 * 1024
    config = ClientConfig(max_body=size)
    with link.host(config={"max_body": size}) as host, link.connect(host, config=config) as client:
        assert client.call("Basic.echo", bytes(size), returns=bytes) == bytes(size)
        with pytest.raises(ResourceExhausted) as caught:
            client.call("Basic.count", key, bytes(size + 1))
        assert not caught.value.maybe_executed
        with pytest.raises(ResourceExhausted) as caught:
            client.call("Basic.zeros", size + 1)
        assert caught.value.maybe_executed
        assert client.call("Basic.echo", "on") == "on"
        assert host.count("runs", key) == 0


# Closing


@pytest.mark.feature("Closing a client: at once, with grace")
def test_close_fails_the_calls_that_wait_and_cancels_their_handlers(link: Link, key):
    with link.host() as host, link.connect(host) as client:
        waiting = client.start("Gate.wait", key)
        host.wait("started", key)
        client.close()
        assert isinstance(waiting.outcome(), Cancelled)
        host.wait("cancelled", key)
        assert client.closed
        with pytest.raises(Unavailable) as caught:
            client.call("Basic.echo", 1)
        assert not caught.value.maybe_executed


@pytest.mark.feature("Closing a client: at once, with grace")
def test_close_with_grace_waits_for_the_calls_in_flight(link: Link, key):
    with link.host() as host, link.connect(host) as client:
        waiting = client.start("Gate.wait", key)
        host.wait("started", key)
        closing = client.spawn(lambda real: real.close(grace=15))
        until(lambda: client.closed)
        assert not closing.done()
        host.open(key)
        assert waiting.outcome() == "through"
        assert outcome_of(closing) is None


@pytest.mark.feature("Closing a client: at once, with grace")
def test_client_may_be_closed_twice(link: Link):
    with link.host() as host, link.connect(host) as client:
        client.close()
        client.close()
        assert client.closed


# Calls that are begun and waited for later


@pytest.mark.feature("start: begin a call now, wait for it later (gevent, blocking)")
def test_submitted_calls_are_waited_for_in_any_order(sync_link: Link, key):
    with sync_link.host() as host, sync_link.connect(host) as client:
        slow = client.do(lambda real: real.start("Gate.wait", key))
        fast = client.do(lambda real: real.start("Basic.echo", "fast"))
        assert client.do(lambda _: fast.result()) == "fast"
        host.open(key)
        assert client.do(lambda _: slow.result()) == "through"
        assert client.calls_in_flight == 0


@pytest.mark.feature("start: begin a call now, wait for it later (gevent, blocking)")
def test_submitted_call_that_is_cancelled_cancels_its_handler(sync_link: Link, key):
    with sync_link.host() as host, sync_link.connect(host) as client:
        call = client.do(lambda real: real.start("Gate.wait", key))
        host.wait("started", key)
        client.do(lambda _: call.cancel())
        host.wait("cancelled", key)
        with pytest.raises(Cancelled):
            client.do(lambda _: call.result())
        assert client.call("Basic.echo", "on") == "on"


@pytest.mark.feature("start: begin a call now, wait for it later (gevent, blocking)")
def test_submitted_call_that_fails_raises_where_it_is_waited_for(sync_link: Link, key):
    with sync_link.host() as host, sync_link.connect(host) as client:
        failing = client.do(lambda real: real.start("Failing.not_found", "k"))
        late = client.do(lambda real: real.start("Gate.wait", key, timeout=0.3))
        with pytest.raises(NotFound):
            client.do(lambda _: failing.result())
        with pytest.raises(DeadlineExceeded):
            client.do(lambda _: late.result())
