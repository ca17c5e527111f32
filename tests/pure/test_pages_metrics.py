"""/metrics: what Prometheus reads, checked by its own parsers and its own linter."""

import shutil
import subprocess
import sys
from typing import Any

import pytest

from rpc_proto.http import HttpError
from support.pages import ask, method, numbers

NO_CLIENT = "prometheus-client, of the extra metrics, is not installed"
OPENMETRICS = "application/openmetrics-text; version=1.0.0, text/plain; version=0.0.4; q=0.5"

SNAPSHOT = numbers(
    {
        "Arith.add": method(
            120,
            late=2,
            in_flight=5,
            deadline_overruns=2,
            items_sent=7,
            errors={"not_found": 17},
        ),
        "rpc.Health.check": method(0),
        "(unknown)": method(0, refused=4, errors={"unimplemented": 4}),
    }
)


@pytest.fixture
def samples() -> dict[Any, float]:
    """What the parser of the text format finds: {(name, *labels by their names): value}."""
    parser = pytest.importorskip("prometheus_client.parser", reason=NO_CLIENT)
    text = ask("/metrics", SNAPSHOT).body.decode()
    return {
        (sample.name, *(label for _, label in sorted(sample.labels.items()))): sample.value
        for family in parser.text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_calls_are_told_by_method_and_code(samples):
    calls = {key[1:]: value for key, value in samples.items() if key[0] == "rpc_server_calls_total"}
    assert calls == {
        ("ok", "Arith.add"): 118,
        ("not_found", "Arith.add"): 17,
        ("ok", "rpc.Health.check"): 0,
        ("ok", "(unknown)"): 0,
        ("unimplemented", "(unknown)"): 4,
    }
    assert samples["rpc_server_calls_in_flight", "Arith.add"] == 5
    assert samples["rpc_server_calls_refused_total", "(unknown)"] == 4
    assert samples["rpc_server_deadline_overruns_total", "Arith.add"] == 2
    assert samples["rpc_server_items_sent_total", "Arith.add"] == 7
    assert ("rpc_server_items_sent_total", "rpc.Health.check") not in samples
    assert ("rpc_server_items_received_total", "Arith.add") not in samples


def test_latencies_are_a_cumulative_histogram_in_seconds(samples):
    name = "rpc_server_call_duration_seconds"
    assert samples[f"{name}_count", "Arith.add"] == 120
    assert samples[f"{name}_sum", "Arith.add"] == pytest.approx(0.36)
    assert samples[f"{name}_bucket", "0.0025", "Arith.add"] == 0
    assert samples[f"{name}_bucket", "0.005", "Arith.add"] == 120
    assert samples[f"{name}_bucket", "10.0", "Arith.add"] == 120
    assert samples[f"{name}_bucket", "+Inf", "Arith.add"] == 120


def test_the_load_and_the_connections_are_told(samples):
    assert {key[0]: value for key, value in samples.items() if len(key) == 1} == {
        "rpc_server_handlers_running": 5,
        "rpc_server_handlers_abandoned": 3,
        "rpc_server_queue_length": 2,
        "rpc_server_memory_bytes": 1000,
        "rpc_server_connections": 4,
        "rpc_server_connections_accepted_total": 40,
        "rpc_server_handshakes_refused_total": 2,
        "rpc_server_protocol_violations_total": 1,
        "rpc_server_received_bytes_total": 2048,
        "rpc_server_sent_bytes_total": 4096,
        "rpc_server_uptime_seconds": 93784,
    }


def test_the_linter_of_prometheus_has_no_complaint():
    pytest.importorskip("prometheus_client", reason=NO_CLIENT)
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool, of Debian's package prometheus, is not installed")
    done = subprocess.run(
        [promtool, "check", "metrics"],
        input=ask("/metrics", SNAPSHOT).body,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=20.0,
    )
    assert (done.returncode, done.stdout.decode()) == (0, "")


def test_who_accepts_openmetrics_gets_it():
    parser = pytest.importorskip("prometheus_client.openmetrics.parser", reason=NO_CLIENT)
    response = ask("/metrics", SNAPSHOT, accept=OPENMETRICS)
    assert dict(response.headers)["Content-Type"].startswith("application/openmetrics-text; ")
    families = {
        family.name: family
        for family in parser.text_string_to_metric_families(response.body.decode())
    }
    assert families["rpc_server_calls"].type == "counter"
    assert families["rpc_server_call_duration_seconds"].type == "histogram"


@pytest.mark.parametrize(
    "accept",
    ["", "*/*", "text/html", "text/plain; version=abc", "application/openmetrics-text; version=x"],
)
def test_everybody_else_gets_plain_text(accept):
    pytest.importorskip("prometheus_client", reason=NO_CLIENT)
    response = ask("/metrics", SNAPSHOT, accept=accept)
    assert dict(response.headers)["Content-Type"].startswith("text/plain; version=0.0.4")


def test_without_the_client_the_page_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "prometheus_client.exposition", None)
    with pytest.raises(HttpError, match=r"pip install 'rpc-proto\[metrics\]'") as refused:
        ask("/metrics", SNAPSHOT)
    assert refused.value.status == 501
