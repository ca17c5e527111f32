"""Values as the types that annotations promise: decoding with validation, through msgspec."""

from functools import lru_cache
from typing import Any

from .codecs import Codec, Decode

__all__ = ["check_decodable", "convert", "decoder"]


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


def check_decodable(kind: Any) -> None:
    """Raise TypeError if no decoded value can be of that type, or of one inside it."""
    from msgspec import inspect, msgpack

    msgpack.Decoder(kind)  # refuses unions that cannot be told apart, and the like
    todo: list[Any] = [inspect.type_info(kind)]
    seen: set[int] = set()
    while todo:
        node = todo.pop()
        if isinstance(node, inspect.CustomType):
            raise TypeError(f"no value can be decoded as {node.cls}")
        if id(node) not in seen:
            seen.add(id(node))
            for name in node.__struct_fields__:
                value = getattr(node, name)
                parts = value if isinstance(value, tuple) else (value,)
                todo += [part for part in parts if isinstance(part, (inspect.Type, inspect.Field))]
