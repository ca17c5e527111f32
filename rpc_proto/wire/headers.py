"""Frame headers in the agreed codec (docs/protocol.md, "Headers").

Calling a method again with the same options produces the same bytes, so both directions are cached.
"""

from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import Any

from .bounds import MAX_TIMEOUT
from .codecs import Codec

__all__ = ["LONGEST_CACHED", "MOST_METADATA", "NO_METADATA", "HeaderError", "Headers"]

NO_METADATA: Mapping[str, str] = MappingProxyType({})

MOST_METADATA = 64  # entries

_CACHED = 512
LONGEST_CACHED = 256  # bytes, so that a cache stays under about 256 KiB


class HeaderError(ValueError):
    """A header from the peer violates the protocol; the text says how."""


Request = tuple[str, float | None, Mapping[str, str]]


class Headers:
    """Encodes and parses headers in one codec; connections share `Headers.of(codec)`."""

    __slots__ = ("_codec", "parse_cached", "request_plain")

    def __init__(self, codec: Codec) -> None:
        self._codec = codec
        self.request_plain = lru_cache(_CACHED)(self._request_plain)
        self.parse_cached = lru_cache(_CACHED)(self._parse_request)

    @staticmethod
    @lru_cache(maxsize=16)
    def of(codec: Codec) -> "Headers":
        """Return the one for this codec."""
        return Headers(codec)

    def _request_plain(self, method: str, timeout_ms: int | None) -> bytes:
        if timeout_ms is None:
            return self._codec.encode([method])
        return self._codec.encode([method, timeout_ms])

    def request(self, method: str, timeout_ms: int | None, metadata: Mapping[str, str]) -> bytes:
        """Encode the header of a request with metadata; TypeError if the metadata is malformed."""
        return self._codec.encode([method, timeout_ms, _checked(metadata)])

    def stream(
        self,
        method: str,
        timeout_ms: int | None,
        metadata: Mapping[str, str],
        idle_ms: int | None,
    ) -> bytes:
        """Encode the header of a request for a stream; TypeError if the metadata is malformed."""
        if idle_ms is None:
            if not metadata:
                return self.request_plain(method, timeout_ms)
            return self.request(method, timeout_ms, metadata)
        return self._codec.encode([method, timeout_ms, _checked(metadata) or None, idle_ms])

    def answer(self, metadata: Mapping[str, str]) -> bytes:
        """Encode the header of a response or an error; empty without metadata."""
        if len(metadata) > MOST_METADATA:
            raise TypeError(f"metadata of {len(metadata)} entries; the limit is {MOST_METADATA}")
        return self._codec.encode([dict(metadata)]) if metadata else b""

    def parse_request(self, header: bytes) -> Request:
        """Return (method, timeout in seconds or None, metadata); HeaderError if it is malformed."""
        if len(header) <= LONGEST_CACHED:
            return self.parse_cached(header)
        return self._parse_request(header)

    def parse_stream(self, header: bytes) -> tuple[Request, float | None]:
        """Return the same of a request for a stream, and its idle timeout in seconds or None."""
        fields = self._fields(header, 1, 4)
        idle = _seconds(fields[3], "idle timeout") if len(fields) > 3 else None
        if idle is not None and idle <= 0:
            raise HeaderError(f"the idle timeout must be more than 0, not {fields[3]!r:.40}")
        return _request(fields), idle

    def _parse_request(self, header: bytes) -> Request:
        return _request(self._fields(header, 1, 3))

    def parse_answer(self, header: bytes) -> Mapping[str, str]:
        """Return the metadata of a response or an error; HeaderError if it is malformed."""
        if not header:
            return NO_METADATA
        return _metadata(self._fields(header, 1, 1)[0])

    def _fields(self, header: bytes, fewest: int, most: int) -> list[Any]:
        try:
            fields = self._codec.decode(header)
        except Exception as error:  # a codec may raise anything
            raise HeaderError(f"the header is not valid {self._codec.name}: {error}") from None
        if type(fields) not in (list, tuple) or not fewest <= len(fields) <= most:
            raise HeaderError(f"the header must be an array of {fewest} to {most} fields")
        return list(fields)


def _checked(metadata: Mapping[str, str]) -> dict[str, str]:
    fields = dict(metadata)
    if len(fields) > MOST_METADATA:
        raise TypeError(f"metadata of {len(fields)} entries; the limit is {MOST_METADATA}")
    for name, value in fields.items():
        if type(name) is not str or type(value) is not str:
            raise TypeError(f"metadata must map strings to strings, not {name!r} to {value!r}")
    return fields


def _request(fields: list[Any]) -> Request:
    method = fields[0]
    if type(method) is not str:
        raise HeaderError(f"the method must be a string, not {method!r:.40}")
    timeout = _seconds(fields[1], "timeout") if len(fields) > 1 else None
    return method, timeout, _metadata(fields[2]) if len(fields) > 2 else NO_METADATA


def _seconds(value: Any, what: str) -> float | None:
    if value is None:
        return None
    if type(value) not in (int, float) or (value - value) != 0:
        raise HeaderError(f"the {what} must be a finite number, not {value!r:.40}")
    # Clipped before the division: a JSON integer may be too large for a float.
    seconds: float = max(-1, min(value, MAX_TIMEOUT * 1000)) / 1000
    return seconds


def _metadata(fields: Any) -> Mapping[str, str]:
    if fields is None:
        return NO_METADATA
    if type(fields) is not dict:
        raise HeaderError(f"metadata must be a map, not {fields!r:.40}")
    if len(fields) > MOST_METADATA:
        raise HeaderError(f"metadata of {len(fields)} entries; the limit is {MOST_METADATA}")
    for name, value in fields.items():
        if type(name) is not str or type(value) is not str:
            raise HeaderError(f"metadata must map strings to strings, not {name!r:.40}")
    return MappingProxyType(fields)
