"""What an embedder or a user may set, with its default, its unit and its bounds."""

from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn, Self, dataclass_transform

from .wire.bounds import LARGEST_BODY, LARGEST_HEADER, MAX_TIMEOUT, SMALLEST_BODY, SMALLEST_HEADER
from .wire.codecs import BUILT_IN, Codec

__all__ = ["ClientConfig", "Config", "Peer", "ServerConfig", "Settings"]


class Peer(NamedTuple):
    """Who is at the other end: `address` as the transport names it, and what TLS verified.

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


@dataclass_transform(kw_only_default=True, frozen_default=True)
class Settings:
    """Fields with defaults, given by name, checked once and never changed.

    To a type checker this is a dataclass; the real ones would double the time that importing the
    package takes.
    """

    def __init__(self, **settings: Any) -> None:
        known = [vars(kind).get("__annotations__", {}) for kind in type(self).__mro__]
        for name in settings:
            if not any(name in fields for fields in known):
                raise TypeError(f"{type(self).__name__} has no setting {name!r}")
        self.__dict__.update(settings)
        self._check()

    def _check(self) -> None:
        """Raise ValueError for a setting out of its bounds."""

    def override(self, **settings: Any) -> Self:
        """Return these settings with those given that are not None in their place."""
        changes = {name: value for name, value in settings.items() if value is not None}
        return type(self)(**{**self.__dict__, **changes}) if changes else self

    def __setattr__(self, name: str, value: Any) -> NoReturn:
        raise AttributeError(f"settings cannot be changed: {name}")

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and self.__dict__ == other.__dict__

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        shown = {**self.__dict__, **({"token": "..."} if "token" in self.__dict__ else {})}
        fields = ", ".join(f"{name}={value!r}" for name, value in shown.items())
        return f"{type(self).__name__}({fields})"


class Config(Settings):
    """What both ends set. Sizes in bytes, times in seconds; None switches a time limit off."""

    max_header: int = 16 * 1024
    """Largest header that is accepted."""
    max_body: int = 16 * 1024 * 1024
    """Largest body that is accepted."""
    max_encoded: int = 4 * 1024 * 1024
    """Largest body that is decoded; one bytes value alone travels unencoded, up to `max_body`."""
    max_decoded: int = 32 * 1024 * 1024
    """Largest `Codec.growth` of a body that is decoded: about the memory that it may take."""
    high_water: int = 1024 * 1024
    """Outbound bytes from which on a server stops reading and a client stops sending calls."""
    handshake_timeout: float = 10.0
    """From the first moment of the connection to the end of the option handshake."""
    ping_interval: float | None = 20.0
    """Silence after which a ping is sent; after twice as much the peer is dead. The smaller one
    of the two ends' is in force, at least 1; with 0 at either of them nobody pings."""
    frame_timeout: float = 30.0
    """How long a frame that has begun may take to arrive, and a second more for each 64 KiB."""
    write_timeout: float = 30.0
    """How long outbound bytes may stay above the high-water mark, unless 16 KiB/s leave."""
    close_timeout: float = 5.0
    """How long the last bytes may take to leave before the connection is dropped."""

    def _check(self) -> None:
        _check_range("max_header", self.max_header, SMALLEST_HEADER, LARGEST_HEADER, whole=True)
        _check_range("max_body", self.max_body, SMALLEST_BODY, LARGEST_BODY, whole=True)
        _check_range("max_encoded", self.max_encoded, SMALLEST_BODY, LARGEST_BODY, whole=True)
        _check_range("max_decoded", self.max_decoded, 1024 * 1024, 2**40, whole=True)
        _check_range("high_water", self.high_water, 1024, 2**40, whole=True)
        for name in ("handshake_timeout", "frame_timeout", "write_timeout", "close_timeout"):
            _check_range(name, getattr(self, name), 0.001, MAX_TIMEOUT, whole=False)
        if self.ping_interval:
            _check_range("ping_interval", self.ping_interval, 1.0, MAX_TIMEOUT, whole=False)


class ClientConfig(Config):
    """Settings of a client's end. Sizes in bytes, times in seconds."""

    codec: str | Codec = "msgpack"
    """`"msgpack"`, `"json"`, or a `Codec` of your own that the server knows too."""
    token: str | None = None
    """Shown to the server in the option handshake."""
    call_timeout: float = 60.0
    """The timeout of a call that sets none; `math.inf` for none at all."""
    max_queued_calls: int = 65_536
    """Calls that may wait for the handshake, for a free slot, or for a peer that reads slowly."""
    max_queued_bytes: int = 64 * 1024 * 1024
    """Bytes of the arguments of all that wait; a call for which no other waits may have more."""

    def _check(self) -> None:
        super()._check()
        _check_range("call_timeout", self.call_timeout, 0.001, float("inf"), whole=False)
        _check_range("max_queued_calls", self.max_queued_calls, 1, 2**31, whole=True)
        _check_range("max_queued_bytes", self.max_queued_bytes, 1, 2**50, whole=True)


# With what the process itself takes, and the connections, that fits into 512 MiB.
_MEMORY = 128 * 1024 * 1024

Authenticate = Callable[[str | None, Peer], Any]


class ServerConfig(Config):
    """Settings of a server's end. Sizes in bytes, times in seconds."""

    codecs: tuple[str | Codec, ...] = ("msgpack", "json")
    """The codecs that clients may choose; nothing else is ever loaded."""
    token: str | None = None
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
    max_http_body: int = 1024 * 1024
    """Largest body of an HTTP request that is accepted."""
    memory: int | None = None
    """Bytes that all connections of the server may hold together (docs/limits.md, "Memory"): by
    default 128 MiB, or four times the largest of `max_body` and `max_decoded` if that is more."""
    refusals: int = 1000
    """Refused calls (over a limit, unknown, undecodable) after which a connection is ended; each
    256 KiB of their bodies count as one more, and a tenth is forgiven each second."""

    @property
    def _largest(self) -> int:
        return max(self.max_body, self.max_decoded)

    @property
    def budget(self) -> int:
        """The number of `memory`, also by default."""
        return max(_MEMORY, 4 * self._largest) if self.memory is None else self.memory

    @property
    def share(self) -> int:
        """Bytes that one connection may hold of the budget: a quarter, or its largest call."""
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
