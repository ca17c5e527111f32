"""Codecs, which turn values into bytes, and how to find one by name."""

from collections.abc import Callable
from typing import Any

__all__ = [
    "BUILT_IN",
    "SMALL",
    "WORST_GROWTH",
    "Codec",
    "Decode",
    "Encode",
    "explain",
    "find_codec",
]

Encode = Callable[[Any], bytes]
Decode = Callable[[bytes], Any]

BUILT_IN = ("msgpack", "json")

# How many times the size of its bytes a value may take, whatever it is: MessagePack's empty maps.
WORST_GROWTH = 240

SMALL = 48  # bytes, which keep every limit, whatever is in them, and count nowhere


class Codec:
    """A name, which travels in the option handshake, and two functions.

    `encode(value)` returns bytes and `decode(data)` returns the value; both may raise any exception
    for input they cannot handle. A codec must support at least None, bool, int, float, str, and
    lists and string-keyed dicts of these (docs/protocol.md, "Codecs"). `decode` gets untrusted
    bytes and must run in linear time: beware of maps whose keys' hashes a peer can choose. `growth`
    is the largest ratio of a decoded value's size in memory to the size of its bytes.
    """

    __slots__ = ("_growth", "decode", "encode", "name")

    # Whether its integers have at most 64 bits: any number of longer ones can share a hash.
    short_integers = False

    # The type of what `decoder` is to pass over without a look at it.
    unread: Any = Any

    def __init__(
        self, name: str, encode: Encode, decode: Decode, *, growth: int = WORST_GROWTH
    ) -> None:
        if not (isinstance(name, str) and 0 < len(name) <= 32 and name.isascii()):
            raise ValueError(f"codec name must be 1 to 32 ASCII characters, not {name!r}")
        self.name = name
        self.encode = encode
        self.decode = decode
        self._growth = growth

    def __repr__(self) -> str:
        return f"<Codec {self.name}>"

    def decoder(self, kind: Any) -> Decode:
        """Return a function that decodes bytes into a value of the type `kind`, validated."""
        from msgspec import convert

        decode = self.decode
        return lambda data: convert(decode(data), kind, str_keys=True)

    def growth(self, data: bytes) -> int:
        """Return an upper bound, in bytes, of the memory that decoding `data` can take."""
        return len(data) * self._growth

    def count(self, data: bytes) -> int | None:
        """Return how many elements the array in `data` has, if that can be told at a glance."""
        return None


def find_codec(codec: "str | Codec") -> Codec:
    """Return the codec with that name, or the codec itself; ValueError for an unknown name.

    The built-in codecs are loaded here rather than when the package is imported: msgspec takes
    longer to import than the whole core.
    """
    if isinstance(codec, Codec):
        return codec
    if codec not in BUILT_IN:
        raise ValueError(f"codec must be one of {', '.join(BUILT_IN)} or a Codec, not {codec!r}")
    from . import formats

    return formats.MSGPACK if codec == "msgpack" else formats.JSON


def explain(error: BaseException) -> str:
    """Return a description of a codec's exception, worded the same for every codec."""
    if isinstance(error, RecursionError):
        return "the value is nested too deeply for Python's stack, or contains itself"
    try:
        return str(error) or type(error).__name__
    except BaseException:  # an exception may be broken, too
        return type(error).__name__
