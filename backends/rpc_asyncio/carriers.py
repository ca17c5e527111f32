"""Carrying out operations on an event loop: HTTP, files, and etcd in two ways."""

import asyncio
import ssl as ssl_module
import sys
from collections.abc import Callable, Collection
from typing import Any, Protocol

from rpc_common.discovery.carriers import context_of, fetch_of, read_file
from rpc_common.transport.forks import Forks
from rpc_discovery import FileRead, HttpRequest, HttpResponse, PemFiles, ReadFile
from rpc_proto.http.client import Fetch

__all__ = ["Carrier", "carriers", "check_source", "fetch"]

_READ_SIZE = 64 * 1024
# Seconds after which another address of a host is tried in parallel (RFC 8305).
_NEXT_ADDRESS = 0.25

# A connection that may be used again, by its origin.
Idle = dict[str, tuple[asyncio.StreamReader, asyncio.StreamWriter]]
_NONE: Any = (None, None)

TlsSettings = ssl_module.SSLContext | PemFiles | None


class Carrier(Protocol):
    """Carries out one kind of operation, any number at the same time."""

    @property
    def closing(self) -> Collection["asyncio.Task[None]"]:
        """What `close` has started and not waited for."""

    async def carry(self, operation: Any, message: Callable[[Any], None]) -> Any:
        """Return the result within the operation's timeout, or raise any error.

        `message` gets the messages of a stream.
        """

    def close(self) -> None:
        """Close what is kept for later operations; running ones are cancelled."""


class HttpCarrier:
    """Sends requests, each over an idle or a new connection."""

    closing: Collection["asyncio.Task[None]"] = ()

    def __init__(self, ssl: TlsSettings) -> None:
        self._ssl = context_of(ssl)
        self._idle: Idle = {}

    async def carry(self, operation: HttpRequest, message: Callable[[bytes], None]) -> HttpResponse:
        """Return the response; the pieces of a stream are its messages."""
        what = fetch_of(operation)
        async with asyncio.timeout(operation.timeout) as limit:

            def part(data: bytes) -> None:
                limit.reschedule(None)
                message(data)

            await fetch(what, self._ssl, self._idle, part if operation.stream else None)
        return HttpResponse(what.status, what.body)

    def close(self) -> None:
        """Close the connections that were kept."""
        while self._idle:
            _, (_, writer) = self._idle.popitem()
            writer.transport.abort()


class FileCarrier:
    """Reads files."""

    closing: Collection["asyncio.Task[None]"] = ()

    async def carry(self, operation: ReadFile, message: Callable[[Any], None]) -> FileRead:
        """Return the content of the file."""
        return read_file(operation)

    def close(self) -> None:
        """Close nothing: no file stays open."""


class EtcdCarrier:
    """Carries out operations of etcd, over gRPC if possible, otherwise through its gateway.

    `transport` is "grpc", "gateway", or None for whichever is available.
    """

    def __init__(self, http: HttpCarrier, ssl: TlsSettings, transport: str | None) -> None:
        self._http = http
        self._ssl = ssl
        self._transport = transport
        self._grpc: Any = None
        self._is_there = transport != "gateway"  # gRPC, as far as is known

    @property
    def closing(self) -> Collection["asyncio.Task[None]"]:
        """Closing gRPC channels."""
        return self._grpc.closing if self._grpc is not None else ()

    async def carry(self, operation: Any, message: Callable[[Any], None]) -> Any:
        """Return etcd's answer; a watch sends messages."""
        grpc = self.grpc_for(operation.endpoint)
        if grpc is not None:
            return await grpc.carry(operation, message)
        from rpc_discovery.etcd.gateway import Exchange  # only for those who use it

        exchange = Exchange(operation)

        def take(data: bytes) -> None:
            for one in exchange.part(data):
                message(one)

        response = await self._http.carry(exchange.request, take)
        if exchange.request.stream and response.status == 200:
            take(response.body + b"\n")  # the last message may have no end of line
        return exchange.finish(response)

    def close(self) -> None:
        """Close the channels of gRPC."""
        if self._grpc is not None:
            self._grpc.close()

    def grpc_for(self, endpoint: str) -> Any:
        """Return the gRPC carrier, or None to use the gateway."""
        has_pems = isinstance(self._ssl, PemFiles)
        if not has_pems and (self._ssl is not None or endpoint.startswith("https:")):
            return None  # what gRPC cannot be given
        if self._grpc is None and self._is_there:
            # gRPC would block in patched modules. Another thread may be importing gevent.
            is_patched = getattr(sys.modules.get("gevent.monkey"), "is_module_patched", None)
            try:
                if self._transport is None and is_patched is not None and is_patched("socket"):
                    raise RuntimeError("gRPC does not work with modules patched by gevent")
                self._grpc = _load_grpc()(self._ssl)
            except (ImportError, RuntimeError):
                if self._transport is not None:
                    raise
                self._is_there = False
        return self._grpc


def carriers(ssl: TlsSettings, transport: str | None) -> dict[str, Carrier]:
    """Return a carrier for each kind of operation."""
    http = HttpCarrier(ssl)
    return {"http": http, "file": FileCarrier(), "etcd": EtcdCarrier(http, ssl, transport)}


def check_source(ssl: Any, transport: str | None) -> None:
    """Check TLS files and transport; raises OSError, ImportError or RuntimeError."""
    if transport == "grpc":
        _load_grpc()
    context_of(ssl)


def _load_grpc() -> Any:
    try:
        from . import etcd_grpc
    except ImportError as error:
        raise ImportError("transport 'grpc' needs: pip install 'rpc-proto[etcd]'") from error
    if Forks.count != etcd_grpc.BORN:
        raise RuntimeError("transport 'grpc' cannot be used in a child of a process that used it")
    return etcd_grpc.Grpc


async def fetch(
    what: Fetch,
    ssl: ssl_module.SSLContext | None = None,
    idle: Idle | None = None,
    part: Callable[[bytes], None] | None = None,
) -> None:
    """Send a request and receive the response into it; OSError or ValueError.

    `idle` has the reusable connections. `part(data)` gets the pieces of a successful response as
    they arrive.
    """
    where = what.where
    reader, writer = (idle or {}).pop(what.origin, _NONE)
    if writer is not None and (writer.is_closing() or reader.at_eof()):
        writer.transport.abort()
        writer = None
    if writer is None:
        context = (ssl or ssl_module.create_default_context()) if where.has_tls else None
        racing: dict[str, Any] = {}
        loop = asyncio.get_running_loop()
        # Other loops may not have it, and with eager tasks it hangs in some versions of Python.
        if isinstance(loop, asyncio.BaseEventLoop) and loop.get_task_factory() is None:
            racing = {"happy_eyeballs_delay": _NEXT_ADDRESS}
        reader, writer = await asyncio.open_connection(
            where.host, where.port, ssl=context, **racing
        )
    try:
        complete = False
        writer.write(what.data)
        while not complete:
            complete = what.receive(await reader.read(_READ_SIZE))
            if part is not None and what.status == 200 and (data := what.take()):
                part(data)
    finally:
        if idle is not None and what.reusable and what.origin not in idle:
            idle[what.origin] = reader, writer
        else:
            writer.transport.abort()
