"""OpenTelemetry spans for calls, by its semantic conventions for RPC; loaded only if needed.

A span's name is its method in the form "Service/method". Errors are those of the conventions for
gRPC, which has the same codes: for a client, every code but "ok"; for a server, those that are its
fault. If a sampler, a span processor or a propagator raises, only the span is lost, with a log
line.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

from rpc_proto import Address, CallError, Observer, OutboundCall, __version__
from rpc_proto.service.context import Job, ambient_call
from rpc_proto.service.methods import Method

from .log import get_log

try:
    from opentelemetry import trace
    from opentelemetry.context import attach
    from opentelemetry.propagate import extract, inject
    from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer, TracerProvider
except ImportError as error:
    raise ImportError("a tracer_provider needs: pip install 'rpc-proto[otel]'") from error

__all__ = ["ClientSpans", "server_spans"]

_log = get_log("rpc_common")

_SERVER_ERRORS = frozenset(
    {"unknown", "deadline_exceeded", "unimplemented", "internal", "unavailable", "data_loss"}
)


def _tracer(provider: TracerProvider) -> Tracer:
    return provider.get_tracer("rpc_proto", __version__)


def _name(method: str) -> str:
    """Return "Service/method", which is how the conventions write it."""
    service, _, short = method.rpartition(".")
    return f"{service}/{short}"


def _describe(method: str) -> dict[str, str | int]:
    return {"rpc.system.name": "rpc_proto", "rpc.method": method}


def _set_outcome(span: Span, code: str, message: str, is_error: bool) -> None:
    span.set_attribute("rpc.response.status_code", code)
    if is_error:
        span.set_attribute("error.type", code)
        span.set_status(Status(StatusCode.ERROR, message))


# The server's end: around the function of a method


def server_spans(
    provider: TracerProvider, cancellation: type[BaseException]
) -> Callable[[Method], Callable[..., Any]]:
    """Return a wrapper of methods' functions that adds spans, for Dispatcher.register.

    `cancellation` is what handlers raise when they are cancelled.
    """
    tracer = _tracer(provider)

    def wrap(method: Method) -> Callable[..., Any]:
        function = method.function
        span = partial(_serve, tracer, _name(method.name), cancellation)

        async def run_async(*args: Any, **kwargs: Any) -> Any:
            with span():
                return await function(*args, **kwargs)

        def run(*args: Any, **kwargs: Any) -> Any:
            with span():
                return function(*args, **kwargs)

        return run_async if method.is_async else run

    return wrap


@contextmanager
def _serve(tracer: Tracer, name: str, cancellation: type[BaseException]) -> Iterator[None]:
    job = ambient_call.get()
    assert job is not None
    span = None
    try:
        span = _start(tracer, name, job)
    except Exception:
        _log.exception("no span for %s", name)
    failure: BaseException | None = None
    try:
        yield
    except BaseException as error:
        failure = error
        raise
    finally:
        if job.error is not None:  # the outcome the caller already has, whatever the handler did
            failure = job.error
        if span is not None:
            try:
                _end_served(span, failure, cancellation)
            except Exception:
                _log.exception("the span of %s could not be ended", name)
        del failure  # its traceback holds this frame


def _start(tracer: Tracer, name: str, job: Job) -> Span:
    attributes = _describe(name)
    host, colon, port = job.call.connection.peer.address.rpartition(":")
    if colon:
        attributes |= {"network.peer.address": host, "network.peer.port": int(port)}
    context = extract(job.call.metadata)
    span = tracer.start_span(name, context, SpanKind.SERVER, attributes)
    context = trace.set_span_in_context(span, context)
    attach(context)  # for good: a handler has a context of its own
    carrier: dict[str, str] = {}
    inject(carrier, context)
    if carrier:  # a no-op provider adds nothing, so the incoming context is passed on
        job.flows_on = carrier
    return span


def _end_served(
    span: Span, failure: BaseException | None, cancellation: type[BaseException]
) -> None:
    if failure is None:
        _set_outcome(span, "ok", "", False)
    elif isinstance(failure, CallError):
        code = str(failure.code)
        _set_outcome(span, code, str(failure.message), code in _SERVER_ERRORS)
    elif isinstance(failure, cancellation):
        _set_outcome(span, "cancelled", "", False)
    else:
        with suppress(Exception):  # an exception may be broken, too
            span.record_exception(failure)
        _set_outcome(span, "unknown", type(failure).__name__, True)
    span.end()


# The client's end: an observer of its connection, through which the calls of every driver go


class ClientSpans(Observer):
    """A span for each call to one server, from its start to its end."""

    def __init__(self, provider: TracerProvider, where: Address) -> None:
        self._tracer = _tracer(provider)
        self._server: dict[str, str | int] = {"server.address": where.host or where.path}
        if where.port:
            self._server["server.port"] = where.port
        self._spans: dict[Any, Span] = {}

    def carry(self, call: OutboundCall) -> Mapping[str, str] | None:
        """Start the span, and return metadata that makes it the parent of the server's span."""
        name = _name(call.method)
        carrier = dict(call.metadata or ())
        try:
            current = trace.get_current_span().get_span_context()
            # In a handler without a span of its own, what came with its call is the parent.
            context = None if current.is_valid else extract(carrier)
            attributes = _describe(name) | self._server
            span = self._tracer.start_span(name, context, SpanKind.CLIENT, attributes)
            self._spans[call] = span
            inject(carrier, trace.set_span_in_context(span, context))
        except Exception:
            _log.exception("no span for %s", name)
            return None
        return carrier

    def answered(self, now: float, call: Any, size: int) -> None:
        _end(self._spans.pop(call, None), None)

    def failed(self, now: float, call: Any, error: CallError, size: int) -> None:
        _end(self._spans.pop(call, None), error)


def _end(span: Span | None, error: Exception | None) -> None:
    if span is None:
        return
    try:
        if error is None:
            _set_outcome(span, "ok", "", False)
        elif isinstance(error, CallError):
            _set_outcome(span, str(error.code), str(error.message), True)
        else:
            span.set_attribute("error.type", type(error).__name__)
            span.set_status(Status(StatusCode.ERROR, str(error)))
        span.end()
    except Exception:
        _log.exception("the span of a call could not be ended")
