"""Values as the types that annotations promise: decoding with validation, through msgspec."""

from functools import lru_cache
from typing import Any

from .codecs import Codec, Decode

__all__ = ["convert", "decoder"]


@lru_cache(maxsize=1024)
def _cached(codec: Codec, kind: Any) -> Decode:
    return codec.decoder(kind)


def decoder(codec: Codec, kind: Any) -> Decode:
    """Return what decodes bytes of `codec` into `kind`; TypeError if no value can be of `kind`."""
    try:
        hash(kind)
    except TypeError:  # an Annotated with a list in it, say
        return codec.decoder(kind)
    return _cached(codec, kind)


def convert(value: Any, kind: Any) -> Any:
    """Return a decoded value as `kind`; ValueError says where it does not fit."""
    import msgspec

    return msgspec.convert(value, kind, str_keys=True)
