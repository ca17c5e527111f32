"""Request bodies, with a length or chunked (RFC 9112, sections 6 and 7)."""

import re

from .head import MAX_LINE
from .messages import HttpError

__all__ = ["BodyReader"]

# They may be tiny, and other connections wait.
_LINES_AT_ONCE = 100

_MAX_EXTRAS = MAX_LINE  # bytes of all extensions and trailers, which are ignored

# What a chunked body may contain besides data: its pattern and its greatest length.
_SIZE = re.compile(rb"([0-9A-Fa-f]{1,16})([ \t]*;[\t\x20-\x7e\x80-\xff]*)?\r\n"), 256
_END = re.compile(rb"\r\n"), 2
_TRAILER = re.compile(rb"(?:[-!#$%&'*+.^_`|~0-9A-Za-z]+:[\t\x20-\x7e\x80-\xff]*)?\r\n"), MAX_LINE


class BodyReader:
    """Reads one body from a buffer; without a length it is chunked.

    Stricter than h11, which accepts any bytes in a chunk's line, and trailers that end with LF.
    """

    __slots__ = (
        "_at",
        "_buffer",
        "_extras",
        "_left",
        "_limit",
        "_line",
        "_seen",
        "complete",
        "data",
    )

    def __init__(self, buffer: bytearray, length: int | None, limit: int) -> None:
        self.data = bytearray()
        self.complete = length == 0
        self._buffer = buffer
        self._limit = limit
        self._left = length or 0  # bytes of the body, or of the chunk
        self._line = None if length is not None else _SIZE  # what stands behind them
        self._at = 0  # in the buffer, during `read`
        self._seen = 0  # bytes of a line whose end has not come
        self._extras = 0
        self._check_size()

    def read(self) -> bool:
        """Read what is there; return whether more bytes are needed. HttpError if it is invalid."""
        stuck = False
        for _ in range(_LINES_AT_ONCE):
            stuck = not self._take_data() or not self._take_line()
            if stuck or self.complete:
                break
        del self._buffer[: self._at]
        self._at = 0
        return stuck

    def _take_data(self) -> bool:
        if self._left:
            data = self._buffer[self._at : self._at + self._left]
            self.data += data
            self._at += len(data)
            self._left -= len(data)
        return not self._left

    def _take_line(self) -> bool:
        line = self._line
        if line is None:
            self.complete = True
            return True
        pattern, longest = line
        start = self._at
        end = self._buffer.find(b"\n", start + self._seen, start + longest) + 1
        if not end:
            self._seen = len(self._buffer) - start
            if self._seen < longest:
                return False
            end = start + longest
        self._seen = 0
        found = pattern.fullmatch(self._buffer, start, end)
        if found is None:
            shown = bytes(self._buffer[start : min(end, start + 40)])
            raise HttpError(400, f"the chunked body is malformed at {shown!r}")
        self._at = end
        if line is _END:
            self._line = _SIZE
        elif line is _SIZE:
            self._left = int(found[1], 16)
            self._check_size()
            self._count_extras(found[2])
            self._line = _END if self._left else _TRAILER
        elif end - start == len(b"\r\n"):
            self.complete = True
        else:
            self._count_extras(found[0])
        return True

    def _check_size(self) -> None:
        if self._left + len(self.data) > self._limit:
            raise HttpError(413, f"the body is longer than {self._limit} bytes")

    def _count_extras(self, text: bytes | None) -> None:
        self._extras += len(text or b"")
        if self._extras > _MAX_EXTRAS:
            raise HttpError(400, f"chunk extensions and trailers exceed {_MAX_EXTRAS} bytes")
