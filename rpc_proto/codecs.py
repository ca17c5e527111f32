"""How values become bytes: the type of a codec, and how one is found by its name."""

from collections.abc import Callable
from typing import Any

__all__ = ["BUILT_IN", "Codec", "Decode", "Encode", "find_codec"]

Encode = Callable[[Any], bytes]
Decode = Callable[[bytes], Any]

BUILT_IN = ("msgpack", "json")


class Codec:
    """A name and two functions; what travels in the option handshake is the name.

    `encode(value)` returns bytes and `decode(data)` the value again; both may raise any exception
    for what they cannot do. The least a codec must carry: None, bool, int, float, str, and lists
    and string-keyed dicts of these (docs/protocol.md, "Codecs").
    """

    __slots__ = ("decode", "encode", "name")

    def __init__(self, name: str, encode: Encode, decode: Decode) -> None:
        if not (isinstance(name, str) and 0 < len(name) <= 32 and name.isascii()):
            raise ValueError(f"codec name must be 1 to 32 ASCII characters, not {name!r}")
        self.name = name
        self.encode = encode
        self.decode = decode

    def __repr__(self) -> str:
        return f"<Codec {self.name}>"

    def decoder(self, kind: Any) -> Decode:
        """Return a function that decodes bytes into a value of the type `kind`, validated."""
        from msgspec import convert

        decode = self.decode
        return lambda data: convert(decode(data), kind, str_keys=True)


def find_codec(codec: "str | Codec") -> Codec:
    """Return the codec of that name, or the codec itself; ValueError for an unknown name.

    The built-in ones are loaded here, not when the package is imported: the library beneath them
    takes longer to import than the whole core.
    """
    if isinstance(codec, Codec):
        return codec
    if codec not in BUILT_IN:
        raise ValueError(f"codec must be one of {', '.join(BUILT_IN)} or a Codec, not {codec!r}")
    from . import formats

    return formats.MSGPACK if codec == "msgpack" else formats.JSON
