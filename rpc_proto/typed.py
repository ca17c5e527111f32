"""Values as the types that annotations promise: decoding with validation, through msgspec."""

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from .codecs import Codec, Decode

__all__ = [
    "check_decodable",
    "check_hashed_size",
    "convert",
    "decoder",
    "has_chosen_hashes",
    "has_untyped",
]

# Bytes of a body whose type has sets or keys with chosen hashes: too few to make trouble with.
HASHED_SIZE = 16 * 1024


@lru_cache(maxsize=1024)
def _cached(codec: Codec, kind: Any) -> Decode:
    return _decoder(codec, kind)


def decoder(codec: Codec, kind: Any) -> Decode:
    """Return what decodes bytes of `codec` into `kind`; TypeError if no value can be of `kind`."""
    try:
        hash(kind)
    except TypeError:  # an Annotated with a list in it, say
        return _decoder(codec, kind)
    return _cached(codec, kind)


def _decoder(codec: Codec, kind: Any) -> Decode:
    decode = codec.decoder(kind)
    if not has_chosen_hashes(kind, short_integers=codec.short_integers):
        return decode

    def decode_few(data: bytes) -> Any:
        check_hashed_size(data)
        return decode(data)

    return decode_few


def check_hashed_size(data: bytes) -> None:
    """Raise ValueError if a body for a type with chosen hashes has room for too many of them."""
    if len(data) > HASHED_SIZE:
        raise ValueError(
            f"a body of {len(data)} bytes; the limit is {HASHED_SIZE} where the type has sets, or "
            "maps with keys, of anything but strings and short integers"
        )


def convert(value: Any, kind: Any) -> Any:
    """Return a decoded value as `kind`; ValueError says where it does not fit."""
    import msgspec

    return msgspec.convert(value, kind, str_keys=True)


def check_decodable(kind: Any) -> None:
    """Raise TypeError if no decoded value can be of that type, or of one inside it."""
    from msgspec import inspect, msgpack

    msgpack.Decoder(kind)  # refuses unions that cannot be told apart, and the like
    for node in _nodes(kind):
        if isinstance(node, inspect.CustomType):
            raise TypeError(f"no value can be decoded as {node.cls}")


def has_untyped(kind: Any) -> bool:
    """Return whether a part of the type is anything at all."""
    from msgspec import inspect

    return any(isinstance(node, inspect.AnyType) for node in _nodes(kind))


def has_chosen_hashes(kind: Any, *, short_integers: bool) -> bool:
    """Return whether the type has sets, or keys of maps, whose hashes a peer can choose.

    Python keeps the hashes of strings and bytes a secret, and of dates and times, which it hashes
    as bytes; not those of numbers, tuples and what is made of them. So a peer can make them all the
    same, and a table of n entries then costs n * n / 2 comparisons.
    """
    from msgspec import inspect

    safe: tuple[type, ...] = (
        *(inspect.StrType, inspect.BytesType, inspect.BoolType, inspect.NoneType),
        *(inspect.EnumType, inspect.LiteralType),
        *(inspect.DateTimeType, inspect.DateType, inspect.TimeType),
    )
    if short_integers:
        safe = (*safe, inspect.IntType)
    for node in _nodes(kind):
        if isinstance(node, (inspect.SetType, inspect.FrozenSetType)):
            key = node.item_type
        elif isinstance(node, inspect.DictType) and not isinstance(node.key_type, inspect.AnyType):
            key = node.key_type  # keys of any type are checked with all that is untyped
        else:
            continue
        parts = key.types if isinstance(key, inspect.UnionType) else (key,)
        if not all(isinstance(part, safe) for part in parts):
            return True
    return False


def _nodes(kind: Any) -> Iterator[Any]:
    """Find the descriptions of a type and of all inside it."""
    from msgspec import inspect

    todo: list[Any] = [inspect.type_info(kind)]
    seen: set[int] = set()
    while todo:
        node = todo.pop()
        if id(node) not in seen:
            seen.add(id(node))
            yield node
            for name in node.__struct_fields__:
                value = getattr(node, name)
                parts = value if isinstance(value, tuple) else (value,)
                todo += [part for part in parts if isinstance(part, (inspect.Type, inspect.Field))]
