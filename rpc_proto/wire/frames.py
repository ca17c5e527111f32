"""Frames: a 16-byte prefix, then header, then body (docs/protocol.md, "Frames")."""

from enum import IntEnum
from io import BytesIO
from struct import Struct
from typing import Any, Final

__all__ = [
    "BYTES",
    "CREDIT_SIZE",
    "PART",
    "PREFIX_SIZE",
    "STREAMS",
    "Flag",
    "Frame",
    "FrameReader",
    "FrameType",
    "encode_prefix",
]

_PREFIX = Struct(">BBHIQ")  # type, flags, header length, body length, call id
PREFIX_SIZE = _PREFIX.size
encode_prefix = _PREFIX.pack
_decode_prefix = _PREFIX.unpack_from


class FrameType(IntEnum):
    """Frame types. Unknown types below 0x80 are a violation; from 0x80 on they are ignored."""

    REQUEST = 0x01
    RESPONSE = 0x02
    ERROR = 0x03
    CANCEL = 0x04
    PING = 0x05
    PONG = 0x06
    GOAWAY = 0x07
    ITEM = 0x08
    END = 0x09
    CREDIT = 0x0A
    # 0x0b to 0x0f are reserved for streams, too.


IGNORABLE = 0x80


class Flag:
    """The flags of a frame; a flag that its type does not have is a violation.

    Plain integers, because they are tested for each call and an enum's operators are slower.
    """

    RAW: Final = 0x01  # the one value is the body's bytes themselves
    NAMED: Final = 0x02  # the body is [positional arguments, named arguments]
    ONE_WAY: Final = 0x04  # no answer is wanted
    NOT_EXECUTED: Final = 0x08  # the handler surely did not start
    CLIENT_STREAM: Final = 0x10  # the client sends items until it sends END
    SERVER_STREAM: Final = 0x20  # the client takes items until the answer
    MORE: Final = 0x40  # a part of an item, and not the last


STREAMS: Final = Flag.CLIENT_STREAM | Flag.SERVER_STREAM

# Bytes. A larger item travels in parts of exactly this size and a last one that is not empty.
PART: Final = 64 * 1024

CREDIT_SIZE: Final = 4  # bytes of the body of a CREDIT, which is a number


_FLAGS: dict[int, int] = {
    FrameType.REQUEST: Flag.RAW | Flag.NAMED | Flag.ONE_WAY | STREAMS,
    FrameType.RESPONSE: Flag.RAW,
    FrameType.ERROR: Flag.NOT_EXECUTED,
    FrameType.CANCEL: 0,
    FrameType.PING: 0,
    FrameType.PONG: 0,
    FrameType.GOAWAY: 0,
    FrameType.ITEM: Flag.RAW | Flag.MORE,
    FrameType.END: 0,
    FrameType.CREDIT: 0,
}
_OF_STREAMS = frozenset({FrameType.ITEM, FrameType.END, FrameType.CREDIT})
_NO_HEADER = _OF_STREAMS | {
    *(FrameType.CANCEL, FrameType.PING, FrameType.PONG, FrameType.GOAWAY),
}
_NO_BODY = frozenset({FrameType.CANCEL, FrameType.PING, FrameType.PONG, FrameType.END})

# The frames that come with each call need no closer look; nor do items, but for their header.
_USUAL = frozenset({FrameType.REQUEST.value, FrameType.RESPONSE.value})
_USUAL_WITH_STREAMS = _USUAL | {FrameType.ITEM.value}
_UNUSUAL_FLAGS = ~Flag.RAW
_SHAPE = Flag.RAW | Flag.NAMED

# What a RAW frame can carry.
BYTES = frozenset({bytes, bytearray, memoryview})

# type, flags, call id, header, body; a plain tuple, built in a third of a named one's time
Frame = tuple[int, int, int, bytes, bytes]


class _Nothing(BytesIO):
    """Takes bytes and keeps none of them."""

    def write(self, _data: Any) -> int:
        return 0


class FrameReader:
    """Splits a stream of bytes into frames; never holds more than the largest frame allowed.

    With `streams`, the frames of streams are known, too; the header of an ITEM is for the caller to
    refuse. After a violation, `error` describes it and `feed` returns nothing more.
    """

    __slots__ = (
        "_fields",
        "_later",
        "_part",
        "_prefix",
        "_streams",
        "_usual",
        "begun",
        "error",
        "lacking",
        "max_body",
        "max_header",
    )

    def __init__(self, max_header: int, max_body: int, *, streams: bool = False) -> None:
        self._streams = streams
        self._usual = _USUAL_WITH_STREAMS if streams else _USUAL
        self.max_header = max_header
        self.max_body = max_body
        self.error: str | None = None
        self._prefix = b""  # the start of one
        # The fields of a frame whose prefix has arrived, header and body once they are complete,
        # and what there is of the next of these. It grows in place, so that what trickles in costs
        # linear time; never holds more than has arrived, whatever length the prefix announced; and
        # is given away without a copy.
        self._fields: list[Any] = []
        self.lacking = 0  # bytes of that which are still to come; 0 between frames
        self.begun = 0  # frames that did not arrive in one piece, so far
        self._later = 0  # and of the body behind it, if it is the header
        self._part: BytesIO

    @property
    def missing(self) -> int:
        """Bytes still missing of a frame whose prefix has arrived; 0 between frames."""
        return self.lacking + self._later

    @property
    def arrived(self) -> int:
        """Bytes held of the incomplete frame."""
        if not self._fields:
            return 0
        return self._part.tell() + (len(self._fields[3]) if len(self._fields) > 3 else 0)

    @property
    def mid_frame(self) -> bool:
        """Whether a frame is incomplete, so that an end of the stream now would truncate it."""
        return bool(self._fields or self._prefix)

    def feed(self, data: bytes | bytearray | memoryview) -> list[Frame]:
        """Take the next bytes and return the frames they complete, in order.

        No reference to `data` is kept: the caller may reuse the buffer.
        """
        if self.error is not None:
            return []
        frames: list[Frame] = []
        if self._fields:
            if len(data) < self.lacking:
                self._part.write(data)
                self.lacking -= len(data)
                return frames
            data = self._complete(data)
            if len(self._fields) < 5:
                return frames
            kind, flags, call_id, header, body = self._fields
            frames.append((kind, flags, call_id, header, body))
            self._fields = []
        elif self._prefix:
            data = b"".join((self._prefix, data))
            self._prefix = b""
        if type(data) is not bytes:
            data = data.tobytes() if type(data) is memoryview else bytes(data)
        start = 0
        end = len(data)
        max_header = self.max_header
        max_body = self.max_body
        usual = self._usual
        while end - start >= PREFIX_SIZE:
            kind, flags, header_size, body_size, call_id = _decode_prefix(data, start)
            # Limits are enforced at the prefix, before anything of the frame is stored.
            if (
                kind not in usual
                or flags & _UNUSUAL_FLAGS
                or header_size > max_header
                or body_size > max_body
            ):
                self.error = self._check(kind, flags, header_size, body_size)
                if self.error is not None:
                    return frames
            body_start = start + PREFIX_SIZE + header_size
            stop = body_start + body_size
            if stop > end:
                self._fields = [kind, flags, call_id]
                self._part = BytesIO()
                self.lacking, self._later = header_size, body_size
                self.begun += 1
                self._complete(data[start + PREFIX_SIZE :])
                return frames
            frames.append(
                (
                    kind,
                    flags,
                    call_id,
                    data[start + PREFIX_SIZE : body_start],
                    data[body_start:stop],
                )
            )
            start = stop
        if start < end:
            self._prefix = data[start:]
        return frames

    def _complete(self, data: bytes | bytearray | memoryview) -> memoryview:
        """Add to the incomplete frame; return the bytes after it."""
        view = memoryview(data)
        while len(view) >= self.lacking:
            self._part.write(view[: self.lacking])
            view = view[self.lacking :]
            self._fields.append(self._part.getvalue())
            self._part = BytesIO()
            self.lacking, self._later = self._later, 0
            if len(self._fields) == 5:
                return view
        self._part.write(view)
        self.lacking -= len(view)
        return view[:0]

    def skip(self) -> tuple[int, int, int]:
        """Discard the incomplete frame; return its type, flags and call id.

        Once the rest has arrived, an empty frame of an ignorable type takes its place.
        """
        kind, flags, call_id = self._fields[:3]
        self._fields = [IGNORABLE, 0, call_id, b""]
        self.lacking += self._later
        self._later = 0
        self._part = _Nothing()
        return kind, flags, call_id

    def _check(self, kind: int, flags: int, header_size: int, body_size: int) -> str | None:
        if kind == 0x7B:  # an opening brace, so its lengths mean nothing
            return "a second option handshake, or text, where a frame should begin"
        if header_size > self.max_header:
            return f"header of {header_size} bytes; the limit is {self.max_header}"
        if body_size > self.max_body:
            return f"body of {body_size} bytes; the limit is {self.max_body}"
        if kind >= IGNORABLE:
            return None
        known = _FLAGS.get(kind)
        if known is None or (kind in _OF_STREAMS and not self._streams):
            return f"unknown frame type 0x{kind:02x}"
        name = FrameType(kind).name
        if not self._streams:
            known &= ~STREAMS
        if flags & ~known:
            return f"{name} with unknown flags 0x{flags & ~known:02x}"
        if kind == FrameType.REQUEST and flags & _SHAPE == _SHAPE:
            return "REQUEST with both RAW and NAMED"
        if flags & Flag.ONE_WAY and flags & STREAMS:
            return "REQUEST of a stream with ONE_WAY"
        if header_size and kind in _NO_HEADER:
            return f"{name} with a header of {header_size} bytes; it has none"
        if body_size and kind in _NO_BODY:
            return f"{name} with a body of {body_size} bytes; it has none"
        if kind == FrameType.CREDIT and body_size != CREDIT_SIZE:
            return f"CREDIT with a body of {body_size} bytes, not {CREDIT_SIZE}"
        return None
