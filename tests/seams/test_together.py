"""Everything that can watch or surround a call, on one server at once."""

import asyncio
import logging
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import rpc_asyncio
import rpc_blocking
import rpc_gevent
from rpc_proto import Invocation, NotFound, Observer
from rpc_proto.trace import Trace, replay


class Service:
    def add(self, a: int, b: int) -> int:
        return a + b

    def fail(self) -> None:
        raise NotFound("no")


class Counts(Observer):
    def __init__(self) -> None:
        self.seen: list[str] = []

    def answered(self, now: float, call: Any, size: int) -> None:
        self.seen.append("answered")

    def failed(self, now: float, call: Any, error: Any, size: int) -> None:
        self.seen.append("failed")


class Everything:
    """The settings of a server that has all of it, and what they brought."""

    def __init__(self, is_async: bool) -> None:
        self.exporter = InMemorySpanExporter()
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.counts = Counts()
        self.traces: list[Trace] = []
        self.intercepted: list[str] = []
        self.settings = {
            "access_log": True,
            "tracer_provider": provider,
            "observers": [self.counts],
            "interceptors": [self.around_async if is_async else self.around],
            "trace": self.traces.append,
        }

    def around(self, call: Invocation, proceed: Any) -> Any:
        self.intercepted.append(call.method)
        return proceed(call)

    async def around_async(self, call: Invocation, proceed: Any) -> Any:
        self.intercepted.append(call.method)
        return await proceed(call)


def talk(module: Any, everything: Everything) -> dict[str, Any]:
    with module.Server(**everything.settings) as server:
        server.register(Service())
        with module.Client.connect(server.start("tcp://127.0.0.1:0")) as client:
            assert client.call("Service.add", 1, 2) == 3
            with pytest.raises(NotFound):
                client.call("Service.fail")
            numbers: dict[str, Any] = server.snapshot()
    return numbers


async def talk_async(everything: Everything) -> dict[str, Any]:
    async with rpc_asyncio.Server(**everything.settings) as server:  # type: ignore[arg-type]
        server.register(Service())
        address = await server.start("tcp://127.0.0.1:0")
        async with rpc_asyncio.Client.connect(address) as client:
            assert await client.call("Service.add", 1, 2) == 3
            with pytest.raises(NotFound):
                await client.call("Service.fail")
            return server.snapshot()


@pytest.mark.parametrize("backend", ["asyncio", "gevent", "blocking"])
def test_log_spans_trace_numbers_observer_and_interceptor_together(
    backend: str, caplog: pytest.LogCaptureFixture
) -> None:
    everything = Everything(backend == "asyncio")
    with caplog.at_level(logging.INFO, f"rpc_{backend}.access"):
        if backend == "asyncio":
            numbers = asyncio.run(talk_async(everything))
        else:
            numbers = talk(rpc_gevent if backend == "gevent" else rpc_blocking, everything)
    access = [one.getMessage() for one in caplog.records if one.name.endswith(".access")]
    assert [" ".join(line.split()[1:3]) for line in access] == [
        "Service.add ok",
        "Service.fail not_found",
    ]
    spans = everything.exporter.get_finished_spans()
    assert [span.name for span in spans] == ["Service/add", "Service/fail"]
    assert everything.counts.seen == ["answered", "failed"]
    assert everything.intercepted == ["Service.add", "Service.fail"]
    assert numbers["methods"]["Service.add"]["served"] == 1
    assert numbers["methods"]["Service.fail"]["errors"] == {"not_found": 1}
    (trace,) = everything.traces
    assert sum(step["do"] == "send_response" for step in trace.steps) == 1
    assert replay(Trace.from_lines(trace.to_lines())).steps == trace.steps
