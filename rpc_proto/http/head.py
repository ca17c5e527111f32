"""The head of a request, checked before it is parsed: limits, and request smuggling.

Anything that two parsers might understand differently is refused here (RFC 9112, section 11); the
rest is left to h11.
"""

import re
from collections import Counter

from .messages import HttpError

__all__ = ["HOST", "MAX_HEAD", "MAX_LINE", "HeadReader"]

MAX_LINE = 8 * 1024  # bytes of the request line
MAX_HEAD = 32 * 1024  # bytes of all, with the empty line
MAX_FIELDS = 100

HOST = r"(?:\[[0-9A-Fa-f:.]+\]|[-A-Za-z0-9._~%!$&'()*+;=]*)"

_FRAMING = (b"content-length", b"transfer-encoding")
_ONCE = (*_FRAMING, b"host", b"expect")
_CONTROL = re.compile(rb"[^\t\x20-\x7e\x80-\xff]")
_EMPTY_LINES = re.compile(rb"(?:\r\n)*")
_HOST_FIELD = re.compile(rf"{HOST}(?::[0-9]*)?".encode())


class HeadReader:
    """Takes one head after the other from `buffer`, to which the caller appends."""

    __slots__ = ("_seen", "buffer")

    def __init__(self) -> None:
        self.buffer = bytearray()
        self._seen = 0

    def take(self) -> bytes | None:
        """Return the head with its empty line, once complete; HttpError if it is invalid.

        Bytes after it stay in the buffer.
        """
        buffer = self.buffer
        empty = _EMPTY_LINES.match(buffer)  # RFC 9112, 2.2: they may come before a request
        if empty is not None and empty.end():
            del buffer[: empty.end()]
        line = buffer.find(b"\n", 0, MAX_LINE + 2)
        line = len(buffer) if line < 0 else line
        if line - buffer.endswith(b"\r", 0, line) > MAX_LINE:
            raise HttpError(414, f"the request line is longer than {MAX_LINE} bytes")
        end = self._find_end()
        if end > MAX_HEAD or (end < 0 and len(buffer) >= MAX_HEAD):
            raise HttpError(431, f"the head is longer than {MAX_HEAD} bytes")
        if end < 0:
            return None
        head = bytes(buffer[:end])
        del buffer[:end]
        self._seen = 0
        if head.startswith(b"CONNECT ") and b"\r" not in head:
            head = head.replace(b"\n", b"\r\n")  # as sent by old programs; there is no body
        _check(head)
        return head

    def _find_end(self) -> int:
        """Return where the head ends, after its empty line; -1 if incomplete."""
        buffer = self.buffer
        start = max(0, self._seen - 3)
        self._seen = len(buffer)
        ends = [
            at + len(mark)
            for mark in (b"\n\r\n", b"\n\n")
            if (at := buffer.find(mark, start, MAX_HEAD + 4)) >= 0
        ]
        return min(ends, default=-1)


def _check(head: bytes) -> None:
    control = _CONTROL.search(head.replace(b"\r\n", b""))
    if control is not None:
        raise HttpError(400, f"the head contains the control character 0x{control[0].hex()}")
    request, *fields = head.split(b"\r\n")[:-2]
    if len(fields) > MAX_FIELDS:
        raise HttpError(431, f"the head has {len(fields)} fields, the limit is {MAX_FIELDS}")
    if any(field.startswith((b" ", b"\t")) for field in fields):
        raise HttpError(400, "a header field continues on the next line (obs-fold)")
    pairs = [field.partition(b":") for field in fields]
    values = {name.lower(): value.strip(b" \t") for name, _, value in pairs}
    # Some servers treat "_" like "-".
    names = Counter(name.lower().replace(b"_", b"-") for name, _, _ in pairs)
    for name in _ONCE:
        if names[name] > 1:
            raise HttpError(400, f"duplicate {name.decode()} header")
        if names[name] and name not in values:
            raise HttpError(400, f"{name.decode()} is not written with _")
    if all(names[name] for name in _FRAMING):
        raise HttpError(400, "both content-length and transfer-encoding")
    length = values.get(b"content-length", b"0")
    if not length.isdigit():
        raise HttpError(400, f"content-length must be digits, not {length[:40]!r}")
    host = values.get(b"host", b"")
    if not _HOST_FIELD.fullmatch(host):
        raise HttpError(400, f"host must be a host with or without a port, not {host[:80]!r}")
    version = request.rpartition(b" ")[2]
    if version not in (b"HTTP/1.1", b"HTTP/1.0"):
        if version.startswith(b"HTTP/") and len(version) == 8:
            raise HttpError(505, "only HTTP/1.1 and HTTP/1.0 are supported")
        raise HttpError(400, "the request line must be a method, a target and a version")
    if version == b"HTTP/1.0" and names[b"transfer-encoding"]:
        raise HttpError(400, "HTTP/1.0 does not have transfer-encoding")
    if values.get(b"expect", b"100-continue").lower() != b"100-continue":
        raise HttpError(417, "the only supported expectation is 100-continue")
