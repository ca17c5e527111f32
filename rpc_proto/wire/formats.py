"""The two built-in codecs, msgpack and json (docs/protocol.md, "Codecs")."""

import json
from typing import Any

import msgspec

from .codecs import Codec, Decode
from .typed import has_untyped

__all__ = ["JSON", "MSGPACK"]

# What things may take in memory, in bytes. Containers count for four times as much as they take:
# making them costs as much time again, since the garbage collector looks at them meanwhile.
_CONTAINER = 240
_BOXED = 64  # a string without its text, an integer, a float; with the pointer to it
_PLAIN = 9  # any other byte: of a text, or a value that is a pointer only

_LITTLE = 1024 * 1024  # bytes that are not worth a closer look
_FEW = 16  # values that are looked at one by one in any case

# Values that are looked at one by one, where there is no quicker way.
_STEPS = 200_000


# msgpack


def _refuse_extension(code: int, _data: memoryview) -> Any:
    raise ValueError(f"msgpack extension type {code} is not part of the protocol")


_any = msgspec.msgpack.Decoder(ext_hook=_refuse_extension).decode

_Key = str | int


def _nested(depth: int) -> Any:
    """Return the type of untyped values: without bytes, which no union has beside strings."""
    kind: Any = None | bool | int | float | str
    for _ in range(depth):
        kind = None | bool | int | float | str | list[kind] | dict[_Key, kind]
    return kind


# Six levels, as it doubles with each.
_shallow = msgspec.msgpack.Decoder(_nested(6), ext_hook=_refuse_extension).decode

_MAP_16, _MAP_32 = 0xDE, 0xDF  # heads of the maps with more than 15 entries
_TINY = 256  # bytes, in which there are too few keys to matter


def _is_harmless(data: bytes) -> bool:
    """Whether no map in these bytes can have more than 15 entries."""
    return _MAP_16 not in data and _MAP_32 not in data


def _decode_msgpack(data: bytes) -> Any:
    """Return the value; in a large map only strings and integers are keys.

    Python's hashes of other keys, like tuples of floats, are no secret: a peer that chooses them
    to be all the same makes a table of n entries cost n * n / 2 comparisons.
    """
    if len(data) < _TINY or _is_harmless(data):
        return _any(data)
    try:
        return _shallow(data)
    except msgspec.ValidationError:  # such a key; or bytes, or more levels
        _check_keys(data)
        return _any(data)


# For each first byte: 0 and above, the bytes that follow; below, what kind of length does.
_LENGTH_8, _LENGTH_16, _LENGTH_32, _ARRAY, _MAP = -1, -2, -4, -8, -16
_FOLLOWS = [0] * 256
for _first in range(0x80, 0x90):
    _FOLLOWS[_first] = _MAP
for _first in range(0x90, 0xA0):
    _FOLLOWS[_first] = _ARRAY
for _first in range(0xA0, 0xC0):
    _FOLLOWS[_first] = _first - 0xA0
_FOLLOWS[0xC4:0xCA] = [_LENGTH_8, _LENGTH_16, _LENGTH_32] * 2  # bin, ext
_FOLLOWS[0xCA:0xD4] = [4, 8, 1, 2, 4, 8, 1, 2, 4, 8]  # floats, integers
_FOLLOWS[0xD4:0xD9] = [2, 3, 5, 9, 17]  # ext of a fixed size
_FOLLOWS[0xD9:0xDC] = [_LENGTH_8, _LENGTH_16, _LENGTH_32]  # str
_FOLLOWS[0xDC:0xE0] = [_ARRAY, _ARRAY, _MAP, _MAP]
_IS_KEY = [
    first < 0x80 or 0xA0 <= first < 0xC0 or 0xCC <= first < 0xD4 or 0xD9 <= first < 0xDC
    for first in range(0xE0)
] + [True] * 32


def _check_keys(data: bytes) -> None:
    """Raise ValueError if a map with more than 15 entries has keys of another kind."""
    outer: list[tuple[int, bool]] = []
    left, keyed = 1, False  # values to come in this container; whether it is a large map
    at = 0
    try:
        for _ in range(_STEPS):
            while not left:
                if not outer:
                    return
                left, keyed = outer.pop()
            first = data[at]
            if keyed and not left & 1 and not _IS_KEY[first]:
                raise ValueError(
                    "a map of more than 15 entries has a key that is neither a string nor an "
                    "integer: use a type that says so"
                )
            at += 1
            left -= 1
            follows = _FOLLOWS[first]
            if follows >= 0:
                at += follows
            elif follows >= _LENGTH_32:
                size = int.from_bytes(data[at : at - follows])
                at += size - follows + (0xC7 <= first <= 0xC9)  # the type of an ext
            else:
                count = first & 0x0F
                if first >= 0xDC:
                    width = 4 if first & 1 else 2
                    count = int.from_bytes(data[at : at + width])
                    at += width
                outer.append((left, keyed))
                keyed = follows == _MAP and count > 15
                left = 2 * count if follows == _MAP else count
    except IndexError:
        raise ValueError("the data ends too early") from None
    raise ValueError(
        f"a value of more than {_STEPS} parts, with bytes or more than 6 levels in it, needs types"
    )


_NO_CONTAINERS = bytes(first for first in range(256) if _FOLLOWS[first] not in (_ARRAY, _MAP))
_NO_HEADS = bytes(first for first in range(256) if _FOLLOWS[first] == 0)


def _bound_msgpack(data: bytes) -> int:
    """Return what the values can take if each byte that could be a head is one."""
    heads = data.translate(None, _NO_HEADS)
    containers = len(heads.translate(None, _NO_CONTAINERS))
    boxed = len(heads) - containers
    return containers * _CONTAINER + boxed * _BOXED + (len(data) - len(heads)) * _PLAIN


def _walk(data: bytes, steps: int) -> tuple[int, int]:
    """Return what so many of the values take, at most, and where the rest begins."""
    size = len(data)
    at = exact = 0
    for _ in range(steps):
        if at >= size:
            break
        first = data[at]
        at += 1
        follows = _FOLLOWS[first]
        if follows >= 0:
            at += follows
            exact += _BOXED + 4 * follows if follows else _PLAIN
        elif follows >= _LENGTH_32:
            length = int.from_bytes(data[at : at - follows])
            at -= follows
            plain = first < 0xC7 or data[at : at + length].isascii()
            exact += _BOXED + min(length, size) * (1 if plain else 4)
            at += length + (0xC7 <= first <= 0xC9)
        else:
            exact += _CONTAINER
            if first >= 0xDC:
                at += 4 if first & 1 else 2
    return exact, at


class _Msgpack(Codec):
    __slots__ = ()

    short_integers = True
    unread = msgspec.Raw

    def decoder(self, kind: Any) -> Decode:
        # Straight into the type, without the plain value between: a quarter of the time.
        direct: Decode = msgspec.msgpack.Decoder(kind, ext_hook=_refuse_extension).decode
        if not has_untyped(kind):
            return direct

        def decode(data: bytes) -> Any:
            if len(data) < _TINY or _is_harmless(data):
                return direct(data)
            return msgspec.convert(_decode_msgpack(data), kind)

        return decode

    def growth(self, data: bytes) -> int:
        # What texts and bytes hold looks like heads, too. So the first values are counted as what
        # they are: often there are few. And more of them, where that makes a difference.
        size = len(data)
        exact, at = _walk(data, _FEW)
        if at >= size:
            return exact
        bound = _bound_msgpack(data)
        if bound < 16 * size or bound < _LITTLE:
            return bound
        exact, at = _walk(data, _STEPS // 10)
        return exact if at >= size else min(bound, exact + _bound_msgpack(data[at:]))

    def count(self, data: bytes) -> int | None:
        first = data[0]
        if 0x90 <= first < 0xA0:
            return first & 0x0F
        if first in (0xDC, 0xDD):
            return int.from_bytes(data[1 : 3 if first == 0xDC else 5])
        return None


# msgspec checks a length against the bytes that are there before it allocates, and counts depth.
MSGPACK = _Msgpack("msgpack", msgspec.msgpack.Encoder().encode, _decode_msgpack)


# JSON

# msgspec's own JSON encoder would turn NaN into null without a word; this one refuses it.
_json_text = json.JSONEncoder(
    ensure_ascii=False,
    check_circular=False,  # a value that contains itself is nested too deeply, as in msgpack
    allow_nan=False,
    separators=(",", ":"),
    default=msgspec.to_builtins,
).encode


def _encode_json(value: Any) -> bytes:
    try:
        text = _json_text(value)
    except TypeError:  # perhaps of a key: `default` is asked for values only
        text = _json_text(msgspec.to_builtins(value, str_keys=True))
    return text.encode()


# Numbers take little room, but some take long to read: 10 us with an exponent of three digits, and
# time that grows with the square of the digits. They count for what other values make of that time.
_DIGITS = bytes.maketrans(b"123456789E", b"000000000e")  # without signs
_THREE_DIGITS, _EXPONENT = b"0e000", 3072
_LONG, _DIGIT = b"0" * 100, 16

_NO_STRUCTURE = bytes(byte for byte in range(256) if byte not in b'[{,"')


class _Json(Codec):
    __slots__ = ()

    unread = msgspec.Raw

    def decoder(self, kind: Any) -> Decode:
        return msgspec.json.Decoder(kind).decode

    def growth(self, data: bytes) -> int:
        # What looks like structure inside texts counts as such: it is rare there.
        structure = data.translate(None, _NO_STRUCTURE)
        containers = structure.count(b"[") + structure.count(b"{")
        boxed = structure.count(b",") + structure.count(b'"') // 2
        texts = len(data) * 4
        if data.isascii() and b"\\" not in data:
            texts = len(data)
        numbers = 0
        digits = data.translate(_DIGITS, b"+-")
        if _THREE_DIGITS in digits or _LONG in digits:
            numbers = digits.count(_THREE_DIGITS) * _EXPONENT
            numbers += digits.count(_LONG) * len(_LONG) * _DIGIT
        return containers * _CONTAINER + boxed * _BOXED + texts + numbers


JSON = _Json("json", _encode_json, msgspec.json.Decoder().decode)
