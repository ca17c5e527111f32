"""/debug/rpc: what it shows, that nothing foreign in it runs, and that its size is bounded."""

import json
from base64 import b64encode
from hashlib import sha256
from typing import Any

import pytest

from rpc_proto import __version__
from rpc_proto.http import HttpError
from rpc_proto.pages.debug import MAX_METHODS
from support.pages import PAYLOAD, Seen, ask, counts, method, numbers, offered

SLOW = {
    "age": 3.0,
    "method": "Arith.add",
    "peer": "10.0.0.1:5",
    "latency": 0.5,
    "queue": 0.1,
    "handler": 0.4,
    "send": 0.0001,
}
ERROR = {
    "age": 4.0,
    "method": "Arith.add",
    "code": "not_found",
    "message": "no such number",
    "peer": "10.0.0.1:5",
}


def everywhere(value: Any, text: str) -> Any:
    """The same value with each of its strings replaced, keys of what is named freely included."""
    if isinstance(value, str):
        return text
    if isinstance(value, dict):
        return {key: everywhere(found, text) for key, found in value.items()}
    if isinstance(value, list):
        return [everywhere(found, text) for found in value]
    return value


def seen(snapshot: dict[str, Any], services: Any = None) -> Seen:
    return Seen(ask("/debug/rpc", snapshot, services).body.decode())


def test_the_page_shows_methods_calls_errors_connections_slow_calls_and_limits():
    services = offered("Arith.add", signature="(a: int) -> int", doc="Add one.\n\nNot shown.")
    add = method(12345, in_flight=5, errors={"not_found": 17})
    text = seen(numbers({"Arith.add": add}, slowest=[SLOW], last_errors=[ERROR]), services).text
    for shown in (
        "serving",
        f"version {__version__}, up 1 d 2 h",
        "add\n(a: int) -> int\nAdd one.",
        "12,345",
        "3.00 ms\n200 ms",
        "2.0 KiB\n4.0 KiB sent",
        "40 so far",
        "3\nstill running",
        "500 ms",
        "queue 100 ms, handler 400 ms, send 100 µs",
        "not_found\nno such number",
        "4 s ago, 10.0.0.1:5",
        "max_body\n16.0 MiB",
        "idle_timeout\nnone",
        "max_calls\n1,024",
    ):
        assert shown in text
    assert "Not shown" not in text


def test_the_json_says_the_same():
    snapshot = numbers(slowest=[SLOW], last_errors=[ERROR])
    response = ask("/debug/rpc?format=json", snapshot, offered("Arith.add", doc=PAYLOAD))
    data = json.loads(response.body)
    assert data["slowest"] == [SLOW]
    assert data["last_errors"] == [ERROR]
    assert data["connections"]["bytes_received"] == 2048
    (service,) = data["services"]
    assert (service["name"], service["health"]) == ("Arith", "serving")
    (add,) = service["methods"]
    assert (add["name"], add["begun"], add["latency"]["p50"]) == ("add", 12345, 0.003)
    assert add["doc"] == PAYLOAD
    assert ("Content-Type", "application/json") in response.headers


def test_a_form_that_does_not_exist_is_refused():
    with pytest.raises(HttpError, match="html or json, not 'xml'") as refused:
        ask("/debug/rpc?format=xml", numbers())
    assert refused.value.status == 400


def test_text_of_strangers_is_text_wherever_it_stands():
    hostile = f"{PAYLOAD}.{PAYLOAD}"
    snapshot = numbers(
        {
            hostile: method(3, errors={PAYLOAD: 1}),
            "(unknown)": method(1, errors={PAYLOAD: 1}),
            PAYLOAD: method(1),
        },
        slowest=[everywhere(SLOW, PAYLOAD)],
        last_errors=[everywhere(ERROR, PAYLOAD), {**everywhere(ERROR, PAYLOAD), "method": None}],
        calls=counts(1, errors={PAYLOAD: 1}),
        limits={PAYLOAD: 5},
        health={"": PAYLOAD, PAYLOAD: PAYLOAD},
    )
    services = {PAYLOAD: {PAYLOAD: {"signature": PAYLOAD, "doc": PAYLOAD}}}
    page = ask("/debug/rpc", snapshot, services).body.decode()
    assert "<script>window" not in page
    assert "<img" not in page
    found = Seen(page)
    assert [name for name, _ in found.tags].count("script") == 1
    for name, attributes in found.tags:
        assert name not in ("img", "iframe", "object", "form", "base")
        assert not any(attribute.startswith("on") for attribute in attributes)
        assert "style" not in attributes  # which the policy forbids
        assert PAYLOAD not in attributes.values()
    assert found.text.count(PAYLOAD) == 18  # it is shown, as what it is


@pytest.mark.fault(144)
def test_text_that_is_no_utf_8_or_would_change_how_the_page_reads_is_shown_escaped():
    message = "a\udc80\x00\x1b[31m\u202e"
    response = ask("/debug/rpc", numbers(last_errors=[{**ERROR, "message": message}]))
    assert rb"a\udc80\x00\x1b[31m\u202e" in response.body


def test_only_the_script_and_the_style_of_the_page_itself_may_be_used():
    response = ask("/debug/rpc", numbers())
    found = Seen(response.body.decode())
    policy = dict(response.headers)["Content-Security-Policy"]
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    for kind in ("script", "style"):
        digest = b64encode(sha256(found.inside[kind].encode()).digest()).decode()
        assert rules.pop(f"{kind}-src") == f"'sha256-{digest}'"
    assert rules == {
        "default-src": "'none'",
        "connect-src": "'self'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }


def test_without_a_script_the_page_is_loaded_again():
    tags = seen(numbers()).tags
    assert ("meta", {"http-equiv": "refresh", "content": "2"}) in tags
    assert ("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}) in tags


def test_the_size_is_bounded_and_the_methods_called_most_are_shown():
    methods = {
        f"{'S' * 150}{number // 10:04}.{'m' * 150}{number:05}": method(number)
        for number in range(5000)
    }
    services = offered(*methods, signature="(" + '"<' * 500 + ")", doc="<&" * 5000)
    error = {**ERROR, "message": '"' * 200, "peer": '"' * 60}
    snapshot = numbers(methods, last_errors=[error] * 50, slowest=[SLOW] * 20)
    page = ask("/debug/rpc", snapshot, services)
    assert len(page.body) < 1024 * 1024
    text = Seen(page.body.decode()).text
    assert f"{5000 - MAX_METHODS:,} less frequently called methods are not shown" in text
    assert "4,999\n" in text
    data = json.loads(ask("/debug/rpc?format=json", snapshot, services).body)
    shown = [one["begun"] for service in data["services"] for one in service["methods"]]
    assert sorted(shown) == list(range(5000 - MAX_METHODS, 5000))
    assert data["methods_left_out"] == 5000 - MAX_METHODS


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0.0, "0 µs"),
        (0.0000123, "12 µs"),
        (0.00999, "9.99 ms"),
        (0.0999, "99.9 ms"),
        (0.5, "500 ms"),
        (1.234, "1.23 s"),
        (75.25, "75.2 s"),
        (150.0, "2 min 30 s"),
        (7300.0, "2 h 1 min"),
        (7200.0, "2 h 0 s"),
        (90061.0, "1 d 1 h"),
    ],
)
def test_times_are_shown_in_the_unit_that_fits(seconds, shown):
    snapshot = numbers(slowest=[{**SLOW, "latency": seconds}])
    assert f"\n{shown}\n" in seen(snapshot).text
