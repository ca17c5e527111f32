"""The numbers of a server for Prometheus, by prometheus-client."""

from collections.abc import Callable, Iterator
from typing import Any

from .messages import HttpError, Response

__all__ = ["as_metrics"]


def as_metrics(snapshot: dict[str, Any], accept: str) -> Response:
    """Return the text format, or OpenMetrics for who accepts that; HttpError 501 without the extra.

    `snapshot` is what a server's method of that name returns. A label is a method that is
    registered, "(unknown)" or "(removed)", or a code of the protocol: nothing that a caller made
    up.
    """
    try:
        from prometheus_client.exposition import choose_encoder
        from prometheus_client.registry import CollectorRegistry
    except ImportError:
        raise HttpError(
            501, "metrics need prometheus-client: pip install 'rpc-proto[metrics]'"
        ) from None
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(snapshot))
    try:
        encode, kind = choose_encoder(accept)
    except (TypeError, ValueError):  # the version in it is none
        encode, kind = choose_encoder("")
    headers = [("Content-Type", kind), ("X-Content-Type-Options", "nosniff")]
    return Response(200, encode(registry), headers)


class _Collector:
    """Tells the registry one snapshot."""

    def __init__(self, snapshot: dict[str, Any]) -> None:
        self._snapshot = snapshot

    def describe(self) -> list[Any]:
        """Return nothing: the names are not in anybody's way in a registry of one's own."""
        return []

    def collect(self) -> Iterator[Any]:
        """Return the families."""
        from prometheus_client.metrics_core import (
            CounterMetricFamily,
            GaugeMetricFamily,
            HistogramMetricFamily,
        )

        snapshot = self._snapshot
        methods = snapshot["methods"]
        load, connections = snapshot["load"], snapshot["connections"]

        calls = CounterMetricFamily(
            "rpc_server_calls",
            "Calls that ended, by code; ok if the handler returned in time.",
            labels=["method", "code"],
        )
        for name, numbers in methods.items():
            calls.add_metric([name, "ok"], numbers["served"] - numbers["late"])
            for code, count in numbers["errors"].items():
                calls.add_metric([name, code], count)
        yield calls
        latency = HistogramMetricFamily(
            "rpc_server_call_duration_seconds",
            "From the arrival of a request to the end of its handler.",
            labels=["method"],
        )
        for name, numbers in methods.items():
            times = numbers["latency"]
            if not times["count"]:
                continue  # most of the page is these
            buckets = [(str(bound), count) for bound, count in times["buckets"]]
            latency.add_metric([name], [*buckets, ("+Inf", times["count"])], times["sum"])
        yield latency

        def by_method(kind: Callable[..., Any], name: str, text: str, key: str) -> Any:
            family = kind(name, text, labels=["method"])
            for method, numbers in methods.items():
                family.add_metric([method], numbers[key])
            return family

        gauge, counter = GaugeMetricFamily, CounterMetricFamily
        yield by_method(
            gauge, "rpc_server_calls_in_flight", "Calls whose handlers run or wait to.", "in_flight"
        )
        yield by_method(
            counter, "rpc_server_calls_refused", "Calls that were not taken on.", "refused"
        )
        yield by_method(
            counter,
            "rpc_server_deadline_overruns",
            "Calls whose deadline passed before the answer.",
            "deadline_overruns",
        )
        for kind, name, text, value in (
            (gauge, "handlers_running", "Handlers that run.", load["running"]),
            (gauge, "queue_length", "Calls that wait for a handler to end.", load["queued"]),
            (
                gauge,
                "handlers_abandoned",
                "Handlers for whose answer nobody waits, and that cannot be stopped.",
                load["abandoned"],
            ),
            (gauge, "connections", "Connections that are open.", connections["open"]),
            (counter, "connections_accepted", "Connections so far.", connections["total"]),
            (
                counter,
                "handshakes_refused",
                "Connections that were refused in the handshake.",
                connections["refused_handshakes"],
            ),
            (
                counter,
                "protocol_violations",
                "Connections ended because the peer violated the protocol.",
                connections["violations"],
            ),
            (
                counter,
                "received_bytes",
                "Bytes received, without what TLS adds.",
                connections["bytes_received"],
            ),
            (counter, "sent_bytes", "Bytes sent, without TLS.", connections["bytes_sent"]),
            (gauge, "uptime_seconds", "Since the server was made.", snapshot["uptime"]),
        ):
            yield kind(f"rpc_server_{name}", text, value=value)
