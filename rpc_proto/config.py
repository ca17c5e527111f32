"""What an embedder or a user may set, with its default, its unit and its bounds."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from .codecs import BUILT_IN, Codec

__all__ = ["MAX_TIMEOUT", "ClientConfig", "Peer", "ServerConfig"]

# Longer timeouts are clipped to this, in seconds: a year.
MAX_TIMEOUT = 366 * 86400.0

# An error with its longest text fits into the smallest body, whatever the codec makes of it.
SMALLEST_BODY = 8 * 1024
SMALLEST_HEADER = 256
LARGEST_BODY = 2**32 - 1
LARGEST_HEADER = 2**16 - 1


@dataclass(frozen=True, slots=True)
class Peer:
    """Who is at the other end: `address` as the transport names it, and what TLS verified.

    `certificate` is the verified client certificate as `ssl.SSLSocket.getpeercert` gives it, or
    None; `identity` is what the server's `authenticate` function returned.
    """

    address: str = ""
    certificate: dict[str, Any] | None = None
    identity: Any = None


def _check(name: str, value: Any, low: float, high: float, whole: bool) -> None:
    right = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
    if not right or not low <= value <= high:
        unit = "a whole number" if whole else "a number"
        raise ValueError(f"{name} must be {unit} from {low:g} to {high:g}, not {value!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Config:
    """What both ends set. Sizes in bytes, times in seconds; None switches a time limit off."""

    max_header: int = 16 * 1024
    """Largest header that is accepted."""
    max_body: int = 16 * 1024 * 1024
    """Largest body that is accepted."""
    high_water: int = 1024 * 1024
    """Outbound bytes from which on a server stops reading and a client stops sending calls."""
    handshake_timeout: float = 10.0
    """From the first moment of the connection to the end of the option handshake."""
    ping_interval: float | None = 20.0
    """Silence after which a ping is sent; after twice as much the peer is dead. The smaller one
    of the two ends' is in force, at least 1."""
    write_timeout: float = 30.0
    """How long outbound bytes may stay above the high-water mark."""
    close_timeout: float = 5.0
    """How long the last bytes may take to leave before the connection is dropped."""

    def __post_init__(self) -> None:
        _check("max_header", self.max_header, SMALLEST_HEADER, LARGEST_HEADER, whole=True)
        _check("max_body", self.max_body, SMALLEST_BODY, LARGEST_BODY, whole=True)
        _check("high_water", self.high_water, 1024, 2**40, whole=True)
        for name in ("handshake_timeout", "write_timeout", "close_timeout"):
            _check(name, getattr(self, name), 0.001, MAX_TIMEOUT, whole=False)
        if self.ping_interval is not None:
            _check("ping_interval", self.ping_interval, 1.0, MAX_TIMEOUT, whole=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientConfig(_Config):
    """Settings of a client's end. Sizes in bytes, times in seconds."""

    codec: str | Codec = "msgpack"
    """`"msgpack"`, `"json"`, or a `Codec` of your own that the server knows too."""
    token: str | None = field(default=None, repr=False)
    """Shown to the server in the option handshake."""
    call_timeout: float = 60.0
    """The timeout of a call that sets none; `math.inf` for none at all."""
    max_queued_calls: int = 65_536
    """Calls that may wait for the handshake, for a free slot, or for a peer that reads slowly."""

    def __post_init__(self) -> None:
        # Zero-argument super() does not work in a dataclass with slots.
        _Config.__post_init__(self)
        _check("call_timeout", self.call_timeout, 0.001, float("inf"), whole=False)
        _check("max_queued_calls", self.max_queued_calls, 1, 2**31, whole=True)

    def override(self, codec: str | Codec | None, token: str | None) -> "ClientConfig":
        """Return the settings with what is not None put in place."""
        changes: dict[str, Any] = {}
        if codec is not None:
            changes["codec"] = codec
        if token is not None:
            changes["token"] = token
        return replace(self, **changes) if changes else self


Authenticate = Callable[[str | None, Peer], Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig(_Config):
    """Settings of a server's end. Sizes in bytes, times in seconds."""

    codecs: tuple[str | Codec, ...] = ("msgpack", "json")
    """The codecs that clients may choose; nothing else is ever loaded."""
    token: str | None = field(default=None, repr=False)
    """The token that clients must show, compared in constant time; None lets everybody in."""
    authenticate: Authenticate | None = None
    """`authenticate(token, peer)` instead of `token`: a falsy result refuses the connection, any
    other is the peer's `identity`; True means that there is none to speak of."""
    max_calls: int = 1024
    """Calls in flight on one connection; a call counts until its handler has really ended."""
    handling_timeout: float | None = None
    """The longest that a handler may take, whatever deadline the caller set."""
    idle_timeout: float | None = None
    """How long a connection may be without a call before it is asked to leave."""
    refusals: int = 1000
    """Refused calls (over a limit, unknown, undecodable) after which a connection is ended; a
    tenth of them is forgiven each second."""

    def __post_init__(self) -> None:
        _Config.__post_init__(self)
        _check("max_calls", self.max_calls, 1, 2**31, whole=True)
        _check("refusals", self.refusals, 1, 2**31, whole=True)
        for name in ("handling_timeout", "idle_timeout"):
            if getattr(self, name) is not None:
                _check(name, getattr(self, name), 0.001, MAX_TIMEOUT, whole=False)
        codecs = self.codecs if isinstance(self.codecs, (tuple, list)) else ()
        if not codecs or not all(isinstance(c, Codec) or c in BUILT_IN for c in codecs):
            raise ValueError(
                f"codecs must be a tuple of {', '.join(BUILT_IN)} or Codecs, not {self.codecs!r}"
            )
        if self.token is not None and (not isinstance(self.token, str) or not self.token):
            raise ValueError("token must be a string that is not empty")
        if self.token is not None and self.authenticate is not None:
            raise ValueError("set either token or authenticate, not both")

    def override(self, token: str | None, authenticate: Authenticate | None) -> "ServerConfig":
        """Return the settings with what is not None put in place."""
        changes: dict[str, Any] = {}
        if token is not None:
            changes["token"] = token
        if authenticate is not None:
            changes["authenticate"] = authenticate
        return replace(self, **changes) if changes else self
