"""The head of a request, before a parser believes it: limits, and what smuggles requests.

Whatever two readers of the same bytes may understand differently is refused here (RFC 9112,
section 11); the rest is left to h11.
"""

import re
from collections import Counter

from .messages import HttpError

__all__ = ["MAX_HEAD", "HeadReader"]

MAX_LINE = 8 * 1024  # bytes of the request line
MAX_HEAD = 32 * 1024  # bytes of all, with the empty line
MAX_FIELDS = 100

_ONCE = (b"content-length", b"transfer-encoding", b"host")
_CONTROL = re.compile(rb"[^\t\n\r\x20-\x7e\x80-\xff]")


class HeadReader:
    """Collects the bytes of one head and keeps what came behind it."""

    __slots__ = ("_buffer", "_seen")

    def __init__(self, data: bytes = b"") -> None:
        self._buffer = bytearray(data)
        self._seen = 0

    def __len__(self) -> int:
        return len(self._buffer)

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        """Take bytes."""
        self._buffer += data

    def take(self) -> bytes | None:
        """Return the head with its empty line once it is there; HttpError if it is not acceptable.

        Any more bytes are left for `rest`.
        """
        buffer = self._buffer
        while buffer.startswith((b"\r\n", b"\n")):  # RFC 9112, 2.2: empty lines before a request
            del buffer[: 1 + buffer.startswith(b"\r")]
        end = self._find_end()
        line_end = buffer.find(b"\n", 0, MAX_LINE + 2)
        if line_end < 0 and len(buffer) > MAX_LINE:
            raise HttpError(414, f"the request line is longer than {MAX_LINE} bytes")
        if end < 0:
            if len(buffer) >= MAX_HEAD:
                raise HttpError(431, f"the head is longer than {MAX_HEAD} bytes")
            return None
        if end > MAX_HEAD:
            raise HttpError(431, f"the head is longer than {MAX_HEAD} bytes")
        head = bytes(buffer[:end])
        del buffer[:end]
        self._seen = 0
        _check(head)
        return head

    def rest(self) -> bytes:
        """Return the bytes behind the head, and forget them."""
        rest = bytes(self._buffer)
        self._buffer.clear()
        return rest

    def _find_end(self) -> int:
        """Return where the head ends, behind its empty line; -1 if that has not come."""
        buffer = self._buffer
        start = max(0, self._seen - 3)
        self._seen = len(buffer)
        ends = [
            at + len(mark)
            for mark in (b"\n\r\n", b"\n\n")
            if (at := buffer.find(mark, start, MAX_HEAD + 4)) >= 0
        ]
        return min(ends, default=-1)


def _check(head: bytes) -> None:
    control = _CONTROL.search(head)
    if control is not None:
        raise HttpError(400, f"the head holds the control character 0x{control[0].hex()}")
    lines = [line.removesuffix(b"\r") for line in head.split(b"\n")][:-2]
    if any(b"\r" in line for line in lines):
        raise HttpError(400, "the head holds a CR without an LF")
    request, fields = lines[0], lines[1:]
    if len(fields) > MAX_FIELDS:
        raise HttpError(431, f"the head has {len(fields)} fields, the limit is {MAX_FIELDS}")
    if any(field.startswith((b" ", b"\t")) for field in fields):
        raise HttpError(400, "a field goes on in the next line (obs-fold)")
    pairs = [field.partition(b":") for field in fields]
    names = Counter(name.lower() for name, _, _ in pairs)
    for name in _ONCE:
        if names[name] > 1:
            raise HttpError(400, f"{name.decode()} stands there {names[name]} times")
    if b"content-length" in names and b"transfer-encoding" in names:
        raise HttpError(400, "both content-length and transfer-encoding")
    for name, _, value in pairs:
        if name.lower() == b"content-length" and not value.strip(b" \t").isdigit():
            raise HttpError(400, f"content-length must be digits, not {value[:40]!r}")
    version = request.rpartition(b" ")[2]
    if version not in (b"HTTP/1.1", b"HTTP/1.0"):
        if version.startswith(b"HTTP/") and len(version) == 8:
            raise HttpError(505, "only HTTP/1.1 and HTTP/1.0 are spoken here")
        raise HttpError(400, "the request line must be a method, a target and a version")
    if version == b"HTTP/1.0" and b"transfer-encoding" in names:
        raise HttpError(400, "HTTP/1.0 knows no transfer-encoding")
