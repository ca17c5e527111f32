"""The numbers and the health of a server, after all that can become of a call."""

import time

import pytest

from conformance.links import Link, Suite
from conformance.wire import accepted
from rpc_proto import CallError, HandshakeError, NotFound, ResourceExhausted

TOKEN = "a token for the numbers"

# A server of their own, so that no other test adds to the numbers.
FRESH = {"token": TOKEN, "max_concurrency": 2, "max_queued": 1}


@pytest.mark.feature("Numbers of a server: calls, errors, latencies, connections")
def test_numbers_after_a_mixture_of_calls(link: Link, key):
    with link.own_host(**FRESH) as host:
        with pytest.raises(HandshakeError):
            link.connect(host, token="wrong")
        with link.connect(host, token=TOKEN) as client:
            for n in range(5):
                assert client.call("Basic.echo", n) == n
            for _ in range(3):
                client.notify("Basic.count", key)
            host.wait("runs", key, 3)
            for _ in range(2):
                with pytest.raises(NotFound):
                    client.call("Failing.not_found", key)
            for code in ("unknown", "internal"):
                with pytest.raises(CallError):
                    client.call("Failing.bug" if code == "unknown" else "Failing.unencodable")
            for n in range(4):
                with pytest.raises(CallError):
                    client.call(f"Made.up{n}")
            with pytest.raises(CallError):
                client.call("Typed.add", "one", 2)
            running = [client.start("Gate.wait", key, n) for n in range(2)]
            host.wait("started", key, 2)
            queued = client.start("Gate.wait", key, 2)
            host.settle(running=2, queued=1)
            with pytest.raises(ResourceExhausted):
                client.call("Gate.wait", key, 3)
            busy = host.snapshot()
            queued.cancel()
            running[0].cancel()
            host.settle(cancelled=2, queued=0)
            host.open(key)
            assert running[1].outcome() == 1
        host.settle(connections=0, running=0)
        seen = host.snapshot()
    gate = busy["methods"]["Gate.wait"]
    assert (gate["begun"], gate["in_flight"], gate["refused"]) == (3, 3, 1)
    assert (busy["load"]["running"], busy["load"]["queued"]) == (2, 1)
    assert busy["connections"]["open"] == 1

    methods = seen["methods"]
    assert (methods["Basic.echo"]["served"], methods["Basic.echo"]["errors"]) == (5, {})
    assert methods["Basic.echo"]["latency"]["count"] == 5
    assert methods["Basic.count"]["served"] == 3
    assert methods["Failing.not_found"]["failed"] == 2
    assert methods["Failing.bug"]["errors"] == {"unknown": 1}
    assert methods["Failing.unencodable"]["errors"] == {"internal": 1}
    assert methods["(unknown)"]["refused"] == 4
    assert methods["Typed.add"]["errors"] == {"invalid_argument": 1}
    gate = methods["Gate.wait"]
    assert (gate["begun"], gate["ended"], gate["in_flight"]) == (3, 3, 0)
    assert gate["errors"] == {"cancelled": 2, "resource_exhausted": 1}
    calls = seen["calls"]
    assert (calls["begun"], calls["ended"], calls["in_flight"]) == (15, 15, 0)
    assert (calls["refused"], calls["cancelled"]) == (6, 2)
    assert calls["errors"] == {
        "not_found": 2,
        "unknown": 1,
        "internal": 1,
        "unimplemented": 4,
        "invalid_argument": 1,
        "cancelled": 2,
        "resource_exhausted": 1,
    }
    assert seen["connections"]["refused_handshakes"] == 1
    assert (seen["connections"]["total"], seen["connections"]["open"]) == (2, 0)
    assert len(seen["last_errors"]) == 13
    slowest = [call for call in seen["slowest"] if call["method"] == "Gate.wait"]
    assert slowest[0]["latency"] == pytest.approx(
        sum(slowest[0][part] for part in ("queue", "handler"))
    )


@pytest.mark.feature("Numbers of a server: calls, errors, latencies, connections")
def test_numbers_of_deadlines_violations_and_bytes(server_backend, suite: Suite, key):
    with server_backend(max_connections=77) as host:
        before = host.snapshot()
        with accepted(host.address()) as peer:
            peer.request(1, "Gate.wait", key, timeout=50)
            assert peer.receive().value[0] == "deadline_exceeded"
            during = host.snapshot()
            peer.send(b"\x7f" * 16)
            assert peer.receive() is None
        host.settle(connections=0, running=0)
        after = host.snapshot()
    then, now = before["calls"], after["calls"]
    assert now["deadline_overruns"] - then["deadline_overruns"] == 1
    assert now["errors"]["deadline_exceeded"] == then["errors"].get("deadline_exceeded", 0) + 1
    assert after["connections"]["violations"] - before["connections"]["violations"] == 1
    assert during["connections"]["open"] == 1
    for name in ("bytes_received", "bytes_sent"):
        assert before["connections"][name] < during["connections"][name]
        assert during["connections"][name] < after["connections"][name]
    received = [numbers["connections"]["bytes_received"] for numbers in (during, after)]
    assert received[1] - received[0] == 16


@pytest.mark.feature("Numbers of a server: calls, errors, latencies, connections")
def test_numbers_tell_limits_time_and_state(server_backend):
    with server_backend(max_connections=76, config={"max_calls": 5}) as host:
        seen = host.snapshot()
    assert (seen["limits"]["max_connections"], seen["limits"]["max_calls"]) == (76, 5)
    assert abs(seen["time"] - time.time()) < 60
    assert 0 < seen["uptime"] < 3600
    assert seen["draining"] is False
    assert "token" not in str(seen)


@pytest.mark.feature("Health of a server and its services")
def test_health_is_told_and_can_be_set(link: Link):
    with link.host() as host, link.connect(host) as client:
        assert client.call("rpc.Health.check") == "serving"
        host.set_health("Basic", False)
        assert client.call("rpc.Health.check", "Basic") == "not_serving"
        assert client.call("rpc.Health.check") == "serving"
        host.set_health("Basic", True)
        assert client.call("rpc.Health.check", "Basic") == "serving"
        with pytest.raises(NotFound):
            client.call("rpc.Health.check", "Missing")


@pytest.mark.feature("Health of a server and its services")
def test_server_that_drains_is_not_healthy(link: Link, key):
    with link.own_host() as host, link.connect(host) as client:
        call = client.start("Gate.wait", key)
        host.wait("started", key)
        host.begin_stop(grace=20)
        seen = host.snapshot()
        while not seen["draining"]:
            seen = host.snapshot()
        assert set(seen["health"].values()) == {"not_serving"}
        host.open(key)
        assert call.outcome() == "through"
        assert host.stopped()


@pytest.mark.feature("Health of a server and its services")
def test_health_can_be_switched_off(server_backend):
    with server_backend(health=False) as host, accepted(host.address()) as peer:
        peer.request(1, "rpc.Health.check")
        assert peer.receive().value[0] == "unimplemented"
