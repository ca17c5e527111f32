"""Settings of both ends, with their defaults, units and bounds."""

from collections.abc import Callable
from typing import Any, NamedTuple

from .settings import Settings
from .wire.bounds import LARGEST_BODY, LARGEST_HEADER, MAX_TIMEOUT, SMALLEST_BODY, SMALLEST_HEADER
from .wire.codecs import BUILT_IN, Codec

__all__ = ["ClientConfig", "Config", "Peer", "ServerConfig"]


class Peer(NamedTuple):
    """The other end of a connection: its address as the transport reports it, and its identity.

    `certificate` is the verified client certificate as `ssl.SSLSocket.getpeercert` gives it, or
    None; `identity` is what the server's `authenticate` function returned.
    """

    address: str = ""
    certificate: dict[str, Any] | None = None
    identity: Any = None


def _check_range(name: str, value: Any, low: float, high: float, whole: bool) -> None:
    right = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
    if not right or not low <= value <= high:
        unit = "a whole number" if whole else "a number"
        raise ValueError(f"{name} must be {unit} from {low:g} to {high:g}, not {value!r}")


class Config(Settings):
    """Settings of both ends. Sizes in bytes, times in seconds; None turns a time limit off."""

    max_header: int = 16 * 1024
    """Largest header to accept, in bytes."""
    max_body: int = 16 * 1024 * 1024
    """Largest body to accept, in bytes."""
    max_encoded: int = 4 * 1024 * 1024
    """Largest body to decode, in bytes. A lone bytes value is not decoded: `max_body` limits it."""
    max_decoded: int = 32 * 1024 * 1024
    """Most memory, in bytes, that a decoded body may take, as `Codec.growth` estimates it."""
    high_water: int = 1024 * 1024
    """Unsent bytes at which a server stops reading and a client stops sending calls."""
    max_window: int = 4 * 1024 * 1024
    """Most bytes of a stream's items that the peer may send ahead of the consumer. A stream begins
    with 16 KiB, and gets more while its consumer keeps up."""
    handshake_timeout: float = 10.0
    """Seconds from the start of the connection to the end of the option handshake."""
    ping_interval: float | None = 20.0
    """Seconds of silence before a ping is sent; after twice as long the peer counts as dead. The
    smaller value of the two ends applies, at least 1. If either end sets 0, nobody pings."""
    frame_timeout: float = 30.0
    """Seconds that one frame may take to arrive, plus one for each 64 KiB of it."""
    write_timeout: float = 30.0
    """Seconds that unsent bytes may stay above `high_water`, unless at least 16 KiB/s are sent."""
    close_timeout: float = 5.0
    """Seconds that the last bytes may take to be sent before the connection is dropped."""

    def _check(self) -> None:
        _check_range("max_header", self.max_header, SMALLEST_HEADER, LARGEST_HEADER, whole=True)
        _check_range("max_body", self.max_body, SMALLEST_BODY, LARGEST_BODY, whole=True)
        _check_range("max_encoded", self.max_encoded, SMALLEST_BODY, LARGEST_BODY, whole=True)
        _check_range("max_decoded", self.max_decoded, 1024 * 1024, 2**40, whole=True)
        _check_range("high_water", self.high_water, 1024, 2**40, whole=True)
        _check_range("max_window", self.max_window, 16 * 1024, 2**31, whole=True)
        for name in ("handshake_timeout", "frame_timeout", "write_timeout", "close_timeout"):
            _check_range(name, getattr(self, name), 0.001, MAX_TIMEOUT, whole=False)
        if self.ping_interval:
            _check_range("ping_interval", self.ping_interval, 1.0, MAX_TIMEOUT, whole=False)


class ClientConfig(Config):
    """Settings of a client. Sizes in bytes, times in seconds; None turns a time limit off."""

    codec: str | Codec = "msgpack"
    """`"msgpack"`, `"json"`, or your own `Codec`, which the server must know too."""
    token: str | None = None
    """The token sent to the server in the option handshake."""
    call_timeout: float = 60.0
    """Default timeout of a call, in seconds; `math.inf` for none."""
    max_queued_calls: int = 65_536
    """Most calls that may wait for the handshake, for a free slot, or for a slow peer."""
    max_queued_bytes: int = 64 * 1024 * 1024
    """Most bytes of arguments that waiting calls may hold; a call waiting alone may exceed it."""
    max_buffered_items: int = 64 * 1024 * 1024
    """Most bytes of items that all streams of a connection may hold until they are taken."""

    def _check(self) -> None:
        super()._check()
        _check_range("call_timeout", self.call_timeout, 0.001, float("inf"), whole=False)
        _check_range("max_queued_calls", self.max_queued_calls, 1, 2**31, whole=True)
        _check_range("max_queued_bytes", self.max_queued_bytes, 1, 2**50, whole=True)
        _check_range("max_buffered_items", self.max_buffered_items, 1024 * 1024, 2**50, whole=True)


# Together with the process itself and its connections, this fits into 512 MiB.
_MEMORY = 128 * 1024 * 1024

Authenticate = Callable[[str | None, Peer], Any]


class ServerConfig(Config):
    """Settings of a server. Sizes in bytes, times in seconds; None turns a time limit off."""

    codecs: tuple[str | Codec, ...] = ("msgpack", "json")
    """The codecs that clients may choose from; no other is ever loaded."""
    token: str | None = None
    """The token that clients must present, compared in constant time; None accepts everyone."""
    authenticate: Authenticate | None = None
    """A function `authenticate(token, peer)`, instead of `token`. A falsy result refuses the
    connection; any other result becomes `Peer.identity`, except True, which sets none."""
    max_calls: int = 1024
    """Most calls in flight on one connection; a call counts until its handler has returned."""
    handling_timeout: float | None = None
    """Most seconds that a handler may take, whatever deadline the caller set."""
    idle_timeout: float | None = None
    """Seconds without a call after which a connection is closed, gracefully."""
    max_http_body: int = 1024 * 1024
    """Largest body of an HTTP request to accept, in bytes."""
    memory: int | None = None
    """Most bytes that all connections may hold together (docs/limits.md, "Memory"). By default
    128 MiB, or four times the larger of `max_body` and `max_decoded` if that is more."""
    refusals: int = 1000
    """Most refused calls (over a limit, unknown, undecodable) before a connection is closed. Each
    256 KiB of their bodies counts as one more; a tenth is forgiven every second."""

    @property
    def _largest(self) -> int:
        return max(self.max_body, self.max_decoded)

    @property
    def budget(self) -> int:
        """The value of `memory`, or its default."""
        return max(_MEMORY, 4 * self._largest) if self.memory is None else self.memory

    @property
    def share(self) -> int:
        """Bytes of the budget for one connection: a quarter, or its largest call if more."""
        return max(self.budget // 4, self._largest + 64 * 1024)

    def _check(self) -> None:
        super()._check()
        _check_range("max_calls", self.max_calls, 1, 2**31, whole=True)
        _check_range("max_http_body", self.max_http_body, 0, 2**31, whole=True)
        _check_range("refusals", self.refusals, 1, 2**31, whole=True)
        if self.memory is not None:
            _check_range("memory", self.memory, 1024 * 1024, 2**50, whole=True)
            if self.memory < 2 * self._largest:
                raise ValueError(
                    f"memory must be at least twice max_body ({self.max_body}) and twice "
                    f"max_decoded ({self.max_decoded}), not {self.memory}"
                )
        for name in ("handling_timeout", "idle_timeout"):
            if getattr(self, name) is not None:
                _check_range(name, getattr(self, name), 0.001, MAX_TIMEOUT, whole=False)
        codecs = self.codecs if isinstance(self.codecs, (tuple, list)) else ()
        if not codecs or not all(isinstance(c, Codec) or c in BUILT_IN for c in codecs):
            raise ValueError(
                f"codecs must be a tuple of {', '.join(BUILT_IN)} or Codecs, not {self.codecs!r}"
            )
        if self.token is not None and (not isinstance(self.token, str) or not self.token):
            raise ValueError("token must be a string that is not empty")
        if self.token is not None and self.authenticate is not None:
            raise ValueError("set either token or authenticate, not both")
