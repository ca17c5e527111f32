"""The arguments of `connect`, checked, and the errors of connecting."""

import ssl as ssl_module
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from rpc_common.transport.http_proxies import Proxy, find_proxy
from rpc_proto import (
    Address,
    ClientConfig,
    ClientConnection,
    Codec,
    DeadlineExceeded,
    HandshakeError,
    Observer,
    Unavailable,
    parse_address,
)
from rpc_proto.connection.observers import Observers

if TYPE_CHECKING:
    from rpc_proto.trace import Trace

__all__ = ["Dialling", "explain", "refusal"]


class Dialling(NamedTuple):
    """The arguments of `connect`, checked."""

    where: Address
    config: ClientConfig
    ssl: ssl_module.SSLContext | None
    new_connection: Callable[..., ClientConnection]
    proxy: Proxy | None

    def __str__(self) -> str:
        return f"{self.where} through {self.proxy}" if self.proxy else str(self.where)

    @classmethod
    def check(
        cls,
        address: str,
        codec: str | Codec | None,
        token: str | None,
        ssl: ssl_module.SSLContext | None,
        config: ClientConfig | None,
        tracer_provider: Any,
        observers: Iterable[Observer],
        trace: "Callable[[Trace], None] | None",
        proxy: str | None,
        timeout: float,
    ) -> Self:
        """Raise ValueError for invalid arguments."""
        if not isinstance(timeout, (int, float)) or not timeout >= 0:
            raise ValueError(f"timeout must be seconds, 0 or more, not {timeout!r}")
        where = parse_address(address)
        through = find_proxy(proxy, where)
        if where.has_tls:
            ssl = ssl or ssl_module.create_default_context()
        elif ssl is not None:
            raise ValueError(f"ssl needs a tls:// or https:// address, not {address!r}")
        if tracer_provider is not None:
            from rpc_common.telemetry.otel import ClientSpans

            observers = (*observers, ClientSpans(tracer_provider, where))
        options: dict[str, Any] = {"observers": Observers(observers)}
        if where.has_http:
            options["connect"] = where.authority
        new_connection: Callable[..., ClientConnection] = partial(ClientConnection, **options)
        if trace is not None:
            new_connection = partial(_traced, trace, options)
        config = (config or ClientConfig()).override(codec=codec, token=token)
        return cls(where, config, ssl, new_connection, through)


def _traced(
    tell: "Callable[[Trace], None]", options: dict[str, Any], config: ClientConfig, *, now: float
) -> ClientConnection:
    from rpc_proto.trace import TracedClientConnection

    connection = TracedClientConnection(config, now=now, **options)
    tell(connection.trace)
    return connection


def explain(error: BaseException, target: Dialling, timeout: float) -> BaseException:
    """Return the exception that `connect` raises for this error."""
    if isinstance(error, (HandshakeError, Unavailable, OSError)):
        # The driver's frames refer to the connection, which may refer to the error.
        error.__traceback__ = None
    if isinstance(error, (HandshakeError, Unavailable)):
        return error
    if isinstance(error, TimeoutError):
        late = f"no connection to {target} within {timeout:g} s"
        return DeadlineExceeded(late, maybe_executed=False)
    if isinstance(error, OSError):
        likely = _likely_cause(error, target.where)
        return Unavailable(f"no connection to {target}: {error}{likely}", maybe_executed=False)
    if isinstance(error, RuntimeError) and "new thread" in str(error):  # to look up the name
        return Unavailable(f"no connection to {target}: {error}", maybe_executed=False)
    return error


def _likely_cause(error: OSError, where: Address) -> str:
    """Return the likely TLS problem if a reachable server closes the connection."""
    if where.scheme == "unix":
        return ""
    if not where.has_tls:
        scheme = "https" if where.has_http else "tls"
        is_cut = isinstance(error, (ConnectionResetError, BrokenPipeError))
        return f"; if it expects TLS, use {scheme}://" if is_cut else ""
    if isinstance(error, (ssl_module.SSLCertVerificationError, ConnectionRefusedError)):
        return ""  # whose text is enough
    reason = getattr(error, "reason", None) or ""
    if "ALERT" in reason:
        return "; it may require a client certificate that it trusts"
    scheme = "http" if where.has_http else "tcp"
    if reason in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST"):
        return f"; if it does not use TLS, use {scheme}://"
    if isinstance(error, (ssl_module.SSLError, ConnectionError)):
        return f"; it may require a client certificate, or not use TLS ({scheme}://)"
    return ""


def refusal(error: Exception | None) -> Exception:
    """Return the error of a connection that ended before the server accepted the options."""
    # There may be no error, for example behind a proxy that forwards to nothing.
    return error or ConnectionResetError("the server closed the connection before the handshake")
