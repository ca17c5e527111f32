"""The option handshake: one line of JSON in each direction (docs/protocol.md, same title)."""

import json
from collections.abc import Iterable
from typing import Any, NamedTuple, NoReturn

from rpc_proto.errors import HandshakeError

from .bounds import LARGEST_BODY, LARGEST_HEADER, SMALLEST_BODY, SMALLEST_HEADER

__all__ = [
    "FEATURES",
    "MAGIC",
    "MAX_LINE",
    "VERSION",
    "Answer",
    "LineReader",
    "Options",
    "agree_features",
    "agree_ping",
    "encode_accept",
    "encode_options",
    "encode_refusal",
    "parse_answer",
    "parse_options",
]

MAGIC = 0x52504350  # "RPCP"
VERSION = 1
MAX_LINE = 4096  # bytes, with the newline

FEATURES = frozenset({"streams"})  # the optional parts of the protocol that both ends here have

_TOKEN_LIMIT = 2048
_MOST_FEATURES = 32
_LONGEST_FEATURE = 64
_SHORTEST_PING = 1000  # milliseconds
_LONGEST_PING = 2**40


class Options(NamedTuple):
    """The options a client proposes. Sizes in bytes; `ping` in milliseconds, None for no pings."""

    codec: str
    token: str | None
    max_header: int
    max_body: int
    ping: int | None
    features: frozenset[str] = frozenset()


class Answer(NamedTuple):
    """The options a server accepted. Sizes in bytes; `ping` in milliseconds, None for no pings."""

    codec: str
    max_header: int
    max_body: int
    max_calls: int
    ping: int | None
    features: frozenset[str] = frozenset()


def encode_options(options: Options) -> bytes:
    """Return the client's line; HandshakeError if it exceeds the limit of a line."""
    fields: dict[str, Any] = {"magic": MAGIC, "version": VERSION, "codec": options.codec}
    if options.token is not None:
        fields["token"] = options.token
    fields["limits"] = {"header": options.max_header, "body": options.max_body}
    fields["timeouts"] = {"ping": options.ping}
    line = _line(_with_features(fields, options.features))
    if len(line) > MAX_LINE:
        raise HandshakeError(
            "invalid_argument",
            f"the option line would be {len(line)} bytes, the limit is {MAX_LINE}: "
            "the token is too long",
        )
    return line


def encode_accept(answer: Answer) -> bytes:
    """Return the server's line that accepts."""
    fields = {
        "magic": MAGIC,
        "version": VERSION,
        "codec": answer.codec,
        "limits": {
            "header": answer.max_header,
            "body": answer.max_body,
            "calls": answer.max_calls,
        },
        "timeouts": {"ping": answer.ping},
    }
    return _line(_with_features(fields, answer.features))


def encode_refusal(code: str, message: str, codecs: Iterable[str]) -> bytes:
    """Return the server's line that refuses and lists what it supports."""
    return _line(
        {
            "magic": MAGIC,
            "error": {"code": code, "message": message[:1024]},
            "supported": {"versions": [VERSION], "codecs": list(codecs)},
        }
    )


def agree_ping(ours: float | None, theirs: int | None) -> int | None:
    """Return the ping interval in milliseconds: the smaller of the two, at least a second.

    0 from either end disables pings, for example for a client that does not read between calls.
    """
    if ours == 0 or theirs == 0:
        return None
    offers = [offer for offer in (None if ours is None else int(ours * 1000), theirs) if offer]
    return max(_SHORTEST_PING, min(offers)) if offers else None


def agree_features(theirs: frozenset[str]) -> frozenset[str]:
    """Return the features that both ends support."""
    return FEATURES & theirs


def parse_options(line: bytes) -> Options:
    """Parse a client's line; HandshakeError names the value and the rule it breaks."""
    fields = _parse(line)
    _check_magic(fields)
    version = _field(fields, "version", int)
    if version != VERSION:
        raise HandshakeError(
            "unimplemented", f"version {version!r:.40} is not supported, only version {VERSION}"
        )
    codec = _field(fields, "codec", str)
    token = fields.get("token")
    if token is not None and (type(token) is not str or len(token) > _TOKEN_LIMIT):
        _refuse(f"token must be a string of at most {_TOKEN_LIMIT} characters")
    limits = _field(fields, "limits", dict, {})
    return Options(
        codec=codec,
        token=token,
        max_header=_limit(limits, "header", SMALLEST_HEADER, LARGEST_HEADER),
        max_body=_limit(limits, "body", SMALLEST_BODY, LARGEST_BODY),
        ping=_ping(fields, 0),
        features=_features(fields),
    )


def parse_answer(line: bytes) -> Answer:
    """Parse a server's line; HandshakeError for a refusal and for anything malformed."""
    fields = _parse(line)
    _check_magic(fields)
    if "error" in fields:
        error = _field(fields, "error", dict)
        code = _field(error, "code", str, where="error.")
        message = _field(error, "message", str, where="error.")
        supported = fields.get("supported")
        raise HandshakeError(code, message, supported if type(supported) is dict else None)
    version = _field(fields, "version", int)
    if version != VERSION:
        _refuse(f"the server chose version {version!r:.40}, not {VERSION}")
    limits = _field(fields, "limits", dict, {})
    return Answer(
        codec=_field(fields, "codec", str),
        max_header=_limit(limits, "header", SMALLEST_HEADER, LARGEST_HEADER),
        max_body=_limit(limits, "body", SMALLEST_BODY, LARGEST_BODY),
        max_calls=_limit(limits, "calls", 1, 2**31),
        ping=_ping(fields, _SHORTEST_PING),
        features=_features(fields),
    )


class LineReader:
    """Collects one line of at most `MAX_LINE` bytes and keeps the bytes after it."""

    __slots__ = ("_line",)

    def __init__(self) -> None:
        self._line = bytearray()

    @property
    def started(self) -> bool:
        """Whether any byte has come."""
        return bool(self._line)

    def feed(self, data: bytes | bytearray | memoryview) -> tuple[bytes, bytes] | None:
        """Return (line, bytes after it) once the newline has arrived, else None.

        Raises HandshakeError as soon as the bytes cannot be an option line: the first byte is not
        `{`, or there is no newline within the limit.
        """
        seen = len(self._line)
        self._line += data
        if self._line and self._line[0] != 0x7B:
            _refuse(_guess(bytes(self._line[:64])))
        end = self._line.find(b"\n", seen, MAX_LINE)
        if end < 0:
            if len(self._line) >= MAX_LINE:
                _refuse(f"the option line is longer than {MAX_LINE} bytes")
            return None
        line = bytes(self._line[:end])
        rest = bytes(self._line[end + 1 :])
        self._line.clear()
        return line, rest


def _guess(start: bytes) -> str:
    if start[0] in (0x15, 0x16):  # an alert or a greeting
        return "the peer speaks TLS here; use tls:// on both ends or on neither"
    if start.startswith((b"HTTP/", b"GET ", b"POST ", b"HEAD ", b"PUT ", b"CONNECT ", b"PRI ")):
        return f"the peer speaks HTTP here: {start!r}"
    return f"the option line must begin with '{{', not {start!r}"


def _refuse(message: str) -> NoReturn:
    raise HandshakeError("invalid_argument", message)


def _line(fields: dict[str, Any]) -> bytes:
    return json.dumps(fields, separators=(",", ":")).encode() + b"\n"


def _with_features(fields: dict[str, Any], features: frozenset[str]) -> dict[str, Any]:
    return {**fields, "features": sorted(features)} if features else fields


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for name, value in pairs:
        if name in fields:
            raise ValueError(f"duplicate key {name!r:.40}")
        fields[name] = value
    return fields


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON value")


_decode = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_constant).decode


def _parse(line: bytes) -> dict[str, Any]:
    try:
        fields = _decode(line.decode("utf-8"))
        if b"\\u" in line:
            json.dumps(fields, ensure_ascii=False).encode()  # raises for half of a surrogate pair
    except (ValueError, RecursionError) as error:
        _refuse(f"the option line is not a JSON object: {error}")
    if type(fields) is not dict:
        _refuse(f"the option line must be a JSON object, not {fields!r:.40}")
    return fields


def _check_magic(fields: dict[str, Any]) -> None:
    magic = fields.get("magic")
    if type(magic) is not int or magic != MAGIC:
        _refuse(f"magic must be {MAGIC}, not {magic!r:.40}")


_REQUIRED: Any = object()


_KINDS = {str: "a string", dict: "an object", list: "an array", int: "a whole number"}


def _field(
    fields: dict[str, Any], name: str, kind: type, default: Any = _REQUIRED, where: str = ""
) -> Any:
    value = fields.get(name, default)
    if value is _REQUIRED:
        _refuse(f"{where}{name} is missing; it must be {_KINDS[kind]}")
    if type(value) is not kind:
        _refuse(f"{where}{name} must be {_KINDS[kind]}, not {value!r:.40}")
    return value


def _limit(limits: dict[str, Any], name: str, low: int, high: int) -> int:
    value = limits.get(name, high)
    if type(value) is not int or not low <= value <= high:
        _refuse(f"limits.{name} must be a whole number from {low} to {high}, not {value!r:.40}")
    return value


def _ping(fields: dict[str, Any], shortest: int) -> int | None:
    timeouts = _field(fields, "timeouts", dict, {})
    value = timeouts.get("ping")
    if value is None:
        return None
    if type(value) is not int or not shortest <= value <= _LONGEST_PING:
        _refuse(
            f"timeouts.ping must be null or milliseconds from {shortest} to {_LONGEST_PING}, "
            f"not {value!r:.40}"
        )
    return value


def _features(fields: dict[str, Any]) -> frozenset[str]:
    names = _field(fields, "features", list, [])
    if len(names) > _MOST_FEATURES:
        _refuse(f"features must be at most {_MOST_FEATURES} names, not {len(names)}")
    for name in names:
        if type(name) is not str or not 0 < len(name) <= _LONGEST_FEATURE:
            _refuse(
                f"features must be strings of 1 to {_LONGEST_FEATURE} characters, not {name!r:.40}"
            )
    return frozenset(names)
