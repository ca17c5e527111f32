"""A server's statistics for Prometheus, by prometheus-client."""

from collections.abc import Callable, Iterator
from typing import Any

from rpc_proto.http.making import Pieces
from rpc_proto.http.messages import HttpError, Response

__all__ = ["as_metrics", "choose"]

_AT_ONCE = 20  # methods, of which each may have many buckets
_END = b"# EOF\n"  # of OpenMetrics

Encode = Callable[[Any], bytes]


def choose(accept: str) -> tuple[Encode, str]:
    """Return the encoder and the content type: OpenMetrics if accepted, else the text format.

    HttpError 501 without the extra.
    """
    try:
        from prometheus_client.exposition import choose_encoder
    except ImportError:
        raise HttpError(
            501, "metrics need prometheus-client: pip install 'rpc-proto[metrics]'"
        ) from None
    try:
        return choose_encoder(accept)
    except (TypeError, ValueError):  # the version in it is none
        return choose_encoder("")


def as_metrics(snapshot: dict[str, Any], encode: Encode, kind: str) -> Pieces:
    """Yield the page in pieces.

    `snapshot` is that of a server. Labels are registered methods, "(unknown)", "(removed)" and
    codes of the protocol: never anything a caller made up.
    """
    parts: list[bytes] = []
    ends = False
    for family in _Families(snapshot).collect():
        samples = family.samples
        # What belongs to one method stays together, however many buckets it has.
        starts = [
            place
            for place, sample in enumerate(samples)
            if not place or sample.labels.get("method") != samples[place - 1].labels.get("method")
        ]
        starts = starts[::_AT_ONCE] or [0]
        for place, start in enumerate(starts):
            family.samples = samples[start : starts[place + 1] if place + 1 < len(starts) else None]
            text = encode(_One(family))
            if text.endswith(_END):
                ends = True
                text = text[: -len(_END)]
            if place:  # HELP and TYPE stand before the first
                text = text[text.index(b"\n", text.index(b"# TYPE ")) + 1 :]
            parts.append(text)
            if place + 1 < len(starts):
                yield
    if ends:
        parts.append(_END)
    return Response(200, b"".join(parts), [("Content-Type", kind)])


class _One:
    """What an encoder takes for a registry: one family."""

    def __init__(self, family: Any) -> None:
        self._family = family

    def collect(self) -> Iterator[Any]:
        """Return it."""
        yield self._family


class _Families:
    """The families of one snapshot."""

    def __init__(self, snapshot: dict[str, Any]) -> None:
        self._snapshot = snapshot

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
            "Calls that ended, by status code; ok if the handler returned in time.",
            labels=["method", "code"],
        )
        for name, numbers in methods.items():
            calls.add_metric([name, "ok"], numbers["served"] - numbers["late"])
            for code, count in numbers["errors"].items():
                calls.add_metric([name, code], count)
        yield calls
        latency = HistogramMetricFamily(
            "rpc_server_call_duration_seconds",
            "Seconds from the arrival of a request to the end of its handler.",
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
            gauge,
            "rpc_server_calls_in_flight",
            "Calls whose handlers are running or queued.",
            "in_flight",
        )
        yield by_method(
            counter, "rpc_server_calls_refused", "Calls that were not accepted.", "refused"
        )
        yield by_method(
            counter,
            "rpc_server_deadline_overruns",
            "Calls whose deadline passed before the answer.",
            "deadline_overruns",
        )
        for key, what in (("items_received", "taken by handlers"), ("items_sent", "sent")):
            streaming = {name: found for name, found in methods.items() if found[key]}
            items = counter(f"rpc_server_{key}", f"Items of streams {what}.", labels=["method"])
            for name, numbers in streaming.items():  # most methods have none
                items.add_metric([name], numbers[key])
            yield items
        for kind, name, text, value in (
            (gauge, "handlers_running", "Running handlers.", load["running"]),
            (gauge, "queue_length", "Calls waiting for a handler to end.", load["queued"]),
            (
                gauge,
                "handlers_abandoned",
                "Handlers still running after their calls ended.",
                load["abandoned"],
            ),
            (
                gauge,
                "memory_bytes",
                "Bytes of the memory budget in use by connections.",
                load["memory"],
            ),
            (gauge, "connections", "Open connections.", connections["open"]),
            (counter, "connections_accepted", "Connections accepted.", connections["total"]),
            (
                counter,
                "handshakes_refused",
                "Connections refused in the handshake.",
                connections["refused_handshakes"],
            ),
            (
                counter,
                "protocol_violations",
                "Connections closed because the peer violated the protocol.",
                connections["violations"],
            ),
            (
                counter,
                "received_bytes",
                "Bytes received, without the overhead of TLS.",
                connections["bytes_received"],
            ),
            (
                counter,
                "sent_bytes",
                "Bytes sent, without the overhead of TLS.",
                connections["bytes_sent"],
            ),
            (gauge, "uptime_seconds", "Seconds since the server was created.", snapshot["uptime"]),
        ):
            yield kind(f"rpc_server_{name}", text, value=value)
