"""Trace context over real connections, and the spans of OpenTelemetry at both ends."""

import contextlib
import importlib
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest

from conformance.backends import package
from conformance.links import Link
from conformance.runtimes import GAVE_UP, Client, Runtime, until
from conformance.services import Basic, Counters, Failing, with_coroutines
from rpc_proto import DeadlineExceeded, NotFound, ServerConfig, Unimplemented, Unknown

pytest.importorskip("opentelemetry.sdk", reason="opentelemetry-sdk is not installed")

from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import NoOpTracerProvider, SpanKind, StatusCode

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
TRACED = {"traceparent": PARENT, "tracestate": "a=1"}
SPANS = "OpenTelemetry: spans at both ends, each the child of its caller's"
FLOWS = "Trace context flows on through calls that handlers make"


@pytest.mark.feature(FLOWS)
def test_trace_context_flows_on_over_two_hops(tcp_link: Link):
    with (
        tcp_link.host() as first,
        tcp_link.host_of_client_backend() as second,
        tcp_link.connect(first) as client,
    ):
        onward = [second.address(), first.address()]
        found = client.call("Hop.metadata", onward, metadata={**TRACED, "other": "stays"})
        assert found == [{**TRACED, "other": "stays"}, TRACED, TRACED]


@pytest.mark.feature(FLOWS)
def test_malformed_trace_context_goes_no_further(tcp_link: Link):
    forged = {"traceparent": "00-not-a-trace"}
    with tcp_link.host() as host, tcp_link.connect(host) as client:
        assert client.call("Hop.metadata", [host.address()], metadata=forged) == [forged, {}]


# Spans: client and server in this process, in one runtime


class Relay:
    """Passes a call on."""

    client: Any

    def relay(self, method: str) -> Any:
        return self.client.call(method)


class AsyncRelay(Relay):
    async def relay(self, method: str) -> Any:
        return await self.client.call(method)


AsyncRelay.__name__ = "Relay"


class World:
    """A server and a client of it, with one place for the spans of both."""

    def __init__(self, runtime: Runtime) -> None:
        self._exporter = InMemorySpanExporter()
        self.provider = TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.runtime = runtime
        self.counters = Counters()
        self.address = ""
        self.relay: Relay = AsyncRelay() if runtime.name == "asyncio" else Relay()

    @contextlib.contextmanager
    def serving(self, **options: Any) -> Iterator[None]:
        name = self.runtime.name
        gate = importlib.import_module(f"conformance.host_{name}").Gate(self.counters)
        plain = [Basic(self.counters), Failing()]
        if name == "asyncio":
            plain = [with_coroutines(service) for service in plain]
        server = importlib.import_module(package(name)).Server(**options)
        for service in (*plain, gate, self.relay):
            server.register(service)
        do = self.runtime.do
        self.address = do(lambda: server.start("tcp://127.0.0.1:0"))
        try:
            yield
        finally:
            do(lambda: server.stop(0.0))

    def connect(self, **options: Any) -> Client:
        client = self.runtime.connect(self.address, **options)
        self.relay.client = client._real
        return client

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2])

    def spans(self, count: int) -> dict[str, ReadableSpan]:
        """Wait for so many spans; return them by kind and name."""
        until(lambda: len(self._exporter.get_finished_spans()) >= count)
        spans = self._exporter.get_finished_spans()
        assert len(spans) == count
        return {f"{span.kind.name} {span.name}": span for span in spans}


@pytest.fixture
def world(client_backend: Runtime) -> World:
    return World(client_backend)


@pytest.fixture
def traced(world: World) -> Iterator[Client]:
    """Give a client whose server sends spans to the same place."""
    with (
        world.serving(tracer_provider=world.provider),
        world.connect(tracer_provider=world.provider) as client,
    ):
        yield client


def code_of(span: ReadableSpan) -> Any:
    return span.attributes["rpc.response.status_code"]


def is_child(span: ReadableSpan, parent: ReadableSpan) -> bool:
    return (
        span.parent is not None
        and span.parent.span_id == parent.context.span_id
        and span.context.trace_id == parent.context.trace_id
    )


@pytest.mark.feature(SPANS)
def test_span_of_the_server_is_the_child_of_the_clients(world: World, traced: Client):
    assert traced.call("Basic.echo", 1) == 1
    spans = world.spans(2)
    client, server = spans["CLIENT Basic/echo"], spans["SERVER Basic/echo"]
    assert client.parent is None
    assert is_child(server, client)
    assert client.attributes == {
        "rpc.system.name": "rpc_proto",
        "rpc.method": "Basic/echo",
        "rpc.response.status_code": "ok",
        "server.address": "127.0.0.1",
        "server.port": world.port,
    }
    assert {**server.attributes, "network.peer.port": 0} == {
        "rpc.system.name": "rpc_proto",
        "rpc.method": "Basic/echo",
        "rpc.response.status_code": "ok",
        "network.peer.address": "127.0.0.1",
        "network.peer.port": 0,
    }
    for span in (client, server):
        assert span.status.status_code is StatusCode.UNSET


@pytest.mark.feature(SPANS)
def test_every_kind_of_call_has_its_spans(world: World, traced: Client):
    traced.request("Basic.echo", 1)
    world.spans(2)
    traced.do(lambda real: real.service("Basic").echo(1))
    world.spans(4)
    traced.notify("Basic.echo", 1)
    until(lambda: len(world._exporter.get_finished_spans()) == 6)
    assert all(code_of(span) == "ok" for span in world._exporter.get_finished_spans())


@pytest.mark.feature(SPANS)
def test_span_of_the_caller_is_the_parent(world: World, traced: Client):
    tracer = world.provider.get_tracer("test")

    def call(real: Any) -> Any:
        with tracer.start_as_current_span("around"):
            return real.call("Basic.echo")

    if world.runtime.name == "asyncio":

        async def call(real: Any) -> Any:
            with tracer.start_as_current_span("around"):
                return await real.call("Basic.echo")

    traced.do(call)
    spans = world.spans(3)
    assert is_child(spans["CLIENT Basic/echo"], spans["INTERNAL around"])


@pytest.mark.feature(SPANS)
def test_error_that_a_handler_answers_with_is_one_to_its_caller_only(world: World, traced: Client):
    with pytest.raises(NotFound):
        traced.call("Failing.not_found", "k")
    spans = world.spans(2)
    client, server = spans["CLIENT Failing/not_found"], spans["SERVER Failing/not_found"]
    assert code_of(client) == code_of(server) == "not_found"
    assert client.status.status_code is StatusCode.ERROR
    assert client.status.description == "no key 'k'"
    assert client.attributes["error.type"] == "not_found"
    assert server.status.status_code is StatusCode.UNSET
    assert "error.type" not in server.attributes
    assert server.events == ()


@pytest.mark.feature(SPANS)
def test_bug_in_a_handler_is_an_error_at_both_ends(world: World, traced: Client):
    with pytest.raises(Unknown):
        traced.call("Failing.bug")
    for span in world.spans(2).values():
        assert code_of(span) == span.attributes["error.type"] == "unknown"
        assert span.status.status_code is StatusCode.ERROR
        if span.kind is SpanKind.SERVER:
            (event,) = span.events
            assert event.attributes["exception.type"] == "ZeroDivisionError"


@pytest.mark.feature(SPANS)
def test_call_that_no_handler_sees_has_a_span_at_its_client_only(world: World, traced: Client):
    with pytest.raises(Unimplemented):
        traced.call("No.such")
    (span,) = world.spans(1).values()
    assert (span.kind, code_of(span)) == (SpanKind.CLIENT, "unimplemented")


@pytest.mark.feature(SPANS)
def test_deadline_ends_the_spans_of_both_ends(world: World, traced: Client, key):
    with pytest.raises(DeadlineExceeded):
        traced.call("Gate.wait", key, timeout=0.2)
    for span in world.spans(2).values():
        assert span.name == "Gate/wait"
        # The client's cancel may be there before the server's own timer.
        assert code_of(span) == "deadline_exceeded" or (
            span.kind is SpanKind.SERVER and code_of(span) == "cancelled"
        )
    assert world.counters.get(f"started:{key}") == 1


@pytest.mark.feature(SPANS)
def test_deadline_at_the_server_is_an_error_of_its_span(world: World, key):
    config = ServerConfig(handling_timeout=0.2)
    with world.serving(tracer_provider=world.provider, config=config), world.connect() as client:
        with pytest.raises(DeadlineExceeded):
            client.call("Gate.wait", key)
        (span,) = world.spans(1).values()
        assert code_of(span) == span.attributes["error.type"] == "deadline_exceeded"
        assert span.status.status_code is StatusCode.ERROR


@pytest.mark.feature(SPANS)
def test_cancellation_ends_the_spans_of_both_ends(world: World, traced: Client, key):
    call = traced.start("Gate.wait", key)
    assert world.counters.wait(f"started:{key}", 1, 10) == 1
    call.cancel()
    assert call.outcome() == GAVE_UP
    spans = world.spans(2)
    client, server = spans["CLIENT Gate/wait"], spans["SERVER Gate/wait"]
    assert code_of(client) == code_of(server) == "cancelled"
    assert client.status.status_code is StatusCode.ERROR
    assert server.status.status_code is StatusCode.UNSET


@pytest.mark.feature(SPANS)
def test_call_of_a_handler_nests_under_its_span(world: World, traced: Client):
    traced.call("Relay.relay", "Basic.echo")
    spans = world.spans(4)
    chain = [
        spans[name]
        for name in (
            "CLIENT Relay/relay",
            "SERVER Relay/relay",
            "CLIENT Basic/echo",
            "SERVER Basic/echo",
        )
    ]
    assert all(is_child(inner, outer) for outer, inner in pairwise(chain))


@pytest.mark.feature(SPANS)
def test_call_by_a_client_without_spans_carries_that_of_its_handler(world: World):
    with world.serving(tracer_provider=world.provider), world.connect() as client:
        client.call("Relay.relay", "Basic.echo", metadata=TRACED)
        spans = world.spans(2)
        outer, inner = spans["SERVER Relay/relay"], spans["SERVER Basic/echo"]
        assert outer.parent is not None
        assert f"{outer.parent.span_id:016x}" == PARENT.split("-")[2]
        assert is_child(inner, outer)


@pytest.mark.feature(SPANS)
def test_call_by_a_handler_without_a_span_is_the_child_of_what_came_along(world: World):
    with (
        world.serving(),
        world.connect() as plain,
        world.connect(tracer_provider=world.provider),
    ):
        plain.call("Relay.relay", "Basic.exchange", metadata=TRACED)
        (span,) = world.spans(1).values()
        assert span.parent is not None
        assert f"{span.parent.span_id:016x}" == PARENT.split("-")[2]


@pytest.mark.feature(SPANS)
def test_provider_that_does_nothing_lets_the_trace_through(world: World):
    nothing = NoOpTracerProvider()
    with (
        world.serving(tracer_provider=nothing),
        world.connect(tracer_provider=nothing) as client,
    ):
        assert client.call("Relay.relay", "Basic.exchange", metadata=TRACED) == TRACED


class Breaking(SpanProcessor):
    """Raises at the start or at the end of each span."""

    def __init__(self, when: str) -> None:
        self._when = when

    def _fail(self, when: str) -> None:
        if when == self._when:
            raise OSError(f"no space left at the {when}")

    def on_start(self, span: Any, parent_context: Any = None) -> None:
        self._fail("start")

    def on_end(self, span: ReadableSpan) -> None:
        self._fail("end")


@pytest.mark.fault(137)
@pytest.mark.feature(SPANS)
@pytest.mark.parametrize("when", ["start", "end"])
def test_span_processor_that_raises_costs_lines_and_no_call(
    world: World, when: str, caplog: pytest.LogCaptureFixture
):
    provider = TracerProvider()
    provider.add_span_processor(Breaking(when))
    with (
        world.serving(tracer_provider=provider),
        world.connect(tracer_provider=provider) as client,
    ):
        assert client.call("Basic.echo", 1) == 1
        with pytest.raises(NotFound):
            client.call("Failing.not_found", "k")
        client.notify("Basic.echo", 1)
        assert client.call("Basic.echo", 2) == 2
    lines = [record for record in caplog.records if record.name == "rpc_common"]
    assert len(lines) == 8  # four calls, two ends


@pytest.mark.feature(SPANS)
def test_opentelemetry_is_loaded_only_when_asked_for(client_backend: Runtime):
    name = package(client_backend.name)
    code = f"import {name}, sys; {name}.Server(); assert 'opentelemetry' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=20)


def test_missing_opentelemetry_is_said_with_the_extra_to_install(
    client_backend: Runtime, monkeypatch: pytest.MonkeyPatch
):
    module = importlib.import_module(package(client_backend.name))
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    monkeypatch.delitem(sys.modules, "rpc_common.telemetry.otel", raising=False)
    with pytest.raises(ImportError, match=r"rpc-proto\[otel\]"):
        module.Server(tracer_provider=object())
