"""Carrying out operations in threads or greenlets: HTTP, files, etcd's gateway."""

import ssl as ssl_module
from collections.abc import Callable
from threading import Lock
from typing import Any, Protocol

from rpc_common.transport.fetch import Idle, fetch
from rpc_common.transport.runtime import Runtime
from rpc_discovery import FileRead, HttpRequest, HttpResponse, OperationFailed, PemFiles, ReadFile
from rpc_proto.http.client import Fetch

from .files import check_regular, read_regular

__all__ = [
    "Carrier",
    "carriers",
    "check_source",
    "code_of",
    "context_of",
    "describe",
    "fetch_of",
    "read_file",
]

Opened = Callable[[Any], None]  # takes a socket, whose shutdown ends the operation


class Carrier(Protocol):
    """Carries out one kind of operation, any number at the same time."""

    in_place: bool  # whether it never blocks and needs no thread

    def carry(self, operation: Any, message: Callable[[Any], None], opened: Opened) -> Any:
        """Return the result within the operation's timeout, or raise any error.

        `message` gets the messages of a stream, `opened` the socket in use.
        """

    def close(self) -> None:
        """Close what is kept for later operations; none follows."""


class HttpCarrier:
    """Sends requests, each over an idle or a new connection."""

    in_place = False

    def __init__(self, runtime: Runtime, ssl: ssl_module.SSLContext | PemFiles | None) -> None:
        self._runtime = runtime
        self._ssl = context_of(ssl)
        self._idle: Idle = {}
        self._lock = Lock()
        self._closed = False

    def carry(
        self, operation: HttpRequest, message: Callable[[bytes], None], opened: Opened
    ) -> HttpResponse:
        """Return the response; the pieces of a stream are its messages."""
        what = fetch_of(operation)
        part = message if operation.stream else None
        try:
            fetch(what, operation.timeout, self._runtime, self._ssl, opened, self._idle, part)
        finally:
            if self._closed:
                self._hang_up()
        return HttpResponse(what.status, what.body)

    def close(self) -> None:
        """Close the connections that were kept."""
        self._closed = True
        self._hang_up()

    def _hang_up(self) -> None:
        with self._lock:
            while self._idle:
                self._idle.popitem()[1].sock.close()


class EtcdCarrier:
    """Carries out operations of etcd through its JSON gateway."""

    in_place = False

    def __init__(self, http: HttpCarrier) -> None:
        self._http = http

    def carry(self, operation: Any, message: Callable[[Any], None], opened: Opened) -> Any:
        """Return etcd's answer; a watch sends messages."""
        from rpc_discovery.etcd.gateway import Exchange  # only for those who use it

        exchange = Exchange(operation)

        def take(data: bytes) -> None:
            for one in exchange.part(data):
                message(one)

        response = self._http.carry(exchange.request, take, opened)
        if exchange.request.stream and response.status == 200:
            take(response.body + b"\n")  # the last message may have no end of line
        return exchange.finish(response)

    def close(self) -> None:
        """Close nothing: the connections are those of `http`."""


class FileCarrier:
    """Reads files."""

    in_place = True

    def carry(
        self, operation: ReadFile, message: Callable[[Any], None], opened: Opened
    ) -> FileRead:
        """Return the content of the file."""
        return read_file(operation)

    def close(self) -> None:
        """Close nothing: no file stays open."""


def carriers(runtime: Runtime, ssl: ssl_module.SSLContext | PemFiles | None) -> dict[str, Carrier]:
    """Return a carrier for each kind of operation."""
    http = HttpCarrier(runtime, ssl)
    return {"http": http, "file": FileCarrier(), "etcd": EtcdCarrier(http)}


def read_file(operation: ReadFile) -> FileRead:
    """Read a file, which never blocks; OSError if it cannot be read."""
    try:
        return FileRead(*read_regular(operation.path, operation.limit, seen=operation.seen))
    except OSError as error:
        raise OperationFailed(str(error.strerror or error)) from None


def check_source(ssl: Any, transport: str | None) -> None:
    """Check TLS files and transport; raises OSError or ValueError."""
    if transport == "grpc":
        raise ValueError("only asyncio supports transport 'grpc'; use 'gateway' or None")
    context_of(ssl)


def context_of(ssl: ssl_module.SSLContext | PemFiles | None) -> ssl_module.SSLContext | None:
    """Return the SSLContext to use; OSError for unusable files, ValueError for other types."""
    if not isinstance(ssl, PemFiles):
        if not (ssl is None or hasattr(ssl, "wrap_bio")):
            raise ValueError(f"ssl must be an SSLContext, PemFiles or None, not {ssl!r:.80}")
        return ssl
    for path in ssl:
        if path is not None:
            check_regular(path)
    context = ssl_module.create_default_context(cafile=ssl.authority)
    if ssl.certificate is not None:
        context.load_cert_chain(ssl.certificate, ssl.key)
    return context


def fetch_of(request: HttpRequest) -> Fetch:
    """Return the exchange for a machine's request; ValueError if it cannot be sent."""
    return Fetch(
        request.method,
        request.url,
        request.headers,
        request.body,
        max_answer=request.max_answer,
        keep=request.keep,
    )


def describe(error: Exception, timeout: float) -> str:
    """Return why an operation failed."""
    if isinstance(error, TimeoutError):
        return f"no answer within {timeout:g} s"
    return str(error) or type(error).__name__


def code_of(error: Exception) -> int:
    """Return the gRPC status code that a source sent, or 0."""
    return error.code if isinstance(error, OperationFailed) else 0
