"""FrameReader and encode_prefix: a stream of bytes as frames."""

import pytest

from rpc_fuzz.wire import PING, RAW, REQUEST, RESPONSE, frame, prefix
from rpc_proto.wire.frames import PREFIX_SIZE, FrameReader, encode_prefix

ONE = frame(REQUEST, 1, b"header", b"body", RAW)
TWO = frame(RESPONSE, 2**64 - 1, b"", b"x" * 50)
CASES = {
    "nothing": (b"", []),
    "one": (ONE, [(REQUEST, RAW, 1, b"header", b"body")]),
    "two": (
        ONE + TWO,
        [(REQUEST, RAW, 1, b"header", b"body"), (RESPONSE, 0, 2**64 - 1, b"", b"x" * 50)],
    ),
    "empty": (frame(PING, 7), [(PING, 0, 7, b"", b"")]),
    "only a header": (frame(REQUEST, 1, b"h"), [(REQUEST, 0, 1, b"h", b"")]),
}


def test_prefix_is_sixteen_bytes_big_endian() -> None:
    assert encode_prefix(1, 2, 0x0304, 0x05060708, 0x090A0B0C0D0E0F10) == bytes(
        [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16]
    )
    assert PREFIX_SIZE == 16


@pytest.mark.parametrize(("data", "frames"), CASES.values(), ids=CASES)
def test_frames_come_out_of_one_read(data: bytes, frames: list) -> None:
    assert FrameReader(64, 64).feed(data) == frames


@pytest.mark.parametrize(("data", "frames"), CASES.values(), ids=CASES)
def test_frames_come_out_of_reads_of_a_byte(data: bytes, frames: list) -> None:
    reader = FrameReader(64, 64)
    assert [one for byte in data for one in reader.feed(bytes([byte]))] == frames


@pytest.mark.parametrize(("data", "frames"), CASES.values(), ids=CASES)
def test_frames_come_out_before_the_start_of_another(data: bytes, frames: list) -> None:
    reader = FrameReader(64, 64)
    assert reader.feed(data + b"\x01\x00") == frames
    assert reader.mid_frame


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_buffer_may_be_reused_after_the_read(kind: type) -> None:
    reader = FrameReader(64, 64)
    buffer = bytearray(ONE + TWO[:30])
    frames = reader.feed(kind(buffer))
    buffer[:] = bytes(len(buffer))
    frames += reader.feed(TWO[30:])
    assert [one[4] for one in frames] == [b"body", b"x" * 50]
    assert all(type(part) is bytes for one in frames for part in one[3:])


def test_missing_counts_down_and_is_zero_between_frames() -> None:
    reader = FrameReader(64, 64)
    seen = []
    for byte in TWO:
        reader.feed(bytes([byte]))
        seen.append(reader.missing)
    assert seen == [0] * 15 + list(range(50, -1, -1))
    assert not reader.mid_frame


def test_frames_before_a_violation_are_given_and_none_after_it() -> None:
    reader = FrameReader(64, 64)
    assert len(reader.feed(ONE + prefix(REQUEST, body_size=65) + ONE)) == 1
    assert reader.error is not None
    assert reader.feed(ONE) == []


def test_violation_is_found_as_soon_as_the_prefix_is_there() -> None:
    reader = FrameReader(64, 64)
    reader.feed(prefix(REQUEST, body_size=65)[:15])
    assert reader.error is None
    reader.feed(prefix(REQUEST, body_size=65)[15:])
    assert reader.error is not None


def test_limits_of_ignorable_frames_are_those_of_all() -> None:
    reader = FrameReader(64, 64)
    assert reader.feed(prefix(0x80, 0xFF, 65)) == []
    assert reader.error is not None
