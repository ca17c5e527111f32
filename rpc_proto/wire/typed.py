"""Decoding values as annotated types, validated by msgspec."""

from collections.abc import Callable, Iterator
from functools import lru_cache, wraps
from typing import Any, TypeVar, cast, get_args

from .codecs import Codec, Decode

__all__ = [
    "argument_decoder",
    "argument_outline",
    "check_decodable",
    "check_encodable",
    "check_hashed_size",
    "convert",
    "convert_argument",
    "decoder",
    "has_chosen_hashes",
    "has_untyped",
    "nodes",
]

# Bytes. A smaller body has too few set members or keys for colliding hashes to matter.
HASHED_SIZE = 16 * 1024

Function = TypeVar("Function", bound=Callable[..., Any])


def _remembered(function: Function) -> Function:
    """Cache a function's results, except for unhashable types such as an Annotated with a list."""
    cached = lru_cache(maxsize=1024)(function)

    @wraps(function)
    def call(*args: Any) -> Any:
        try:
            return cached(*args)
        except TypeError:
            return function(*args)

    return cast("Function", call)


@_remembered
def decoder(codec: Codec, kind: Any) -> Decode:
    """Return a function from bytes of `codec` to `kind`; TypeError if no value can be of `kind`."""
    check_decodable(kind)
    decode = codec.decoder(kind)
    if not has_chosen_hashes(kind, short_integers=codec.short_integers):
        return decode

    def decode_few(data: bytes) -> Any:
        check_hashed_size(data)
        return decode(data)

    return decode_few


def check_hashed_size(data: bytes) -> None:
    """Raise ValueError if a body is large enough for an attack by colliding hashes."""
    if len(data) > HASHED_SIZE:
        raise ValueError(
            f"a body of {len(data)} bytes; the limit is {HASHED_SIZE} where the type has sets, or "
            "maps with keys, of anything but strings and short integers"
        )


def convert(value: Any, kind: Any) -> Any:
    """Convert a decoded value to `kind`; ValueError with the path to what does not fit."""
    import msgspec

    return msgspec.convert(value, kind, str_keys=True)


def argument_decoder(codec: Codec, kind: Any) -> Decode:
    """Return a function like `decoder` does, but one that raises ValueError for unknown fields.

    msgspec alone would drop such fields. For results that is right: a newer server may add fields.
    """
    from .outlines import explain_unknown_field, outline

    decode = decoder(codec, kind)
    shape = outline(kind, codec.unread)
    if shape is not None and has_untyped(shape):  # which bytes are not decoded into directly
        shape = outline(kind, Any)
    if shape is None:
        return decode
    check = codec.decoder(shape)

    def decode_whole(data: bytes) -> Any:
        value = decode(data)
        try:
            check(data)
        except ValueError as error:
            raise ValueError(explain_unknown_field(str(error), kind)) from None
        return value

    return decode_whole


def convert_argument(value: Any, kind: Any) -> Any:
    """Convert a decoded value to `kind`; ValueError for a mismatch or an unknown field."""
    converted = convert(value, kind)
    shape = argument_outline(kind)
    if shape is not None:
        from .outlines import explain_unknown_field

        try:
            convert(value, shape)
        except ValueError as error:
            raise ValueError(explain_unknown_field(str(error), kind)) from None
    return converted


@_remembered
def argument_outline(kind: Any) -> Any:
    """Return the outline with which `convert_argument` finds unknown fields; None if unneeded."""
    from .outlines import outline

    return outline(kind, Any)


def check_decodable(kind: Any) -> None:
    """Raise TypeError if no decoded value can be of that type, or of a type inside it."""
    from msgspec import inspect, msgpack

    from . import outlines  # noqa: F401 - not at the first call: no file may be left to open then

    msgpack.Decoder(kind)  # refuses unions that cannot be told apart, and the like
    for node in nodes(kind):
        cls = getattr(node, "cls", None)
        if isinstance(node, inspect.CustomType) or hasattr(cls, "__pydantic_fields__"):
            # A pydantic dataclass would be made without its defaults and its checks.
            raise TypeError(f"no value can be decoded as {cls}")
        if hasattr(node, "key_type") and any(_is_record(part) for part in nodes(node.key_type)):
            raise TypeError("a record cannot be the key of a map")


def check_encodable(kind: Any) -> None:
    """Raise TypeError if no value of that type, or of a type inside it, can be encoded."""
    from msgspec import inspect

    try:
        found = list(nodes(kind))
    except TypeError:  # what cannot be told apart when decoded, Never and the like
        for part in get_args(kind):
            check_encodable(part)
        return
    for node in found:
        if isinstance(node, inspect.CustomType) and not _has_encodable(node.cls):
            raise TypeError(f"no value of {node.cls} can be encoded")


def _has_encodable(cls: Any) -> bool:
    """Whether values of a class or of a known subclass can be encoded."""
    from msgspec import inspect

    try:
        if any(issubclass(one, cls) for one in (dict, list, str, int, float, bytes)):
            return True
    except TypeError:  # a Protocol, which says nothing of its classes
        return True
    if issubclass(cls, (dict, list, tuple, set, frozenset)):
        return True
    if not isinstance(inspect.type_info(cls), inspect.CustomType):
        return True
    return any(_has_encodable(one) for one in type.__subclasses__(cls))


def _is_record(node: Any) -> bool:
    from msgspec import inspect

    return isinstance(node, (inspect.DataclassType, inspect.TypedDictType))


@_remembered
def weight(kind: Any) -> int:
    """Return how much longer values of the type take to decode than plain values, as a factor."""
    return 2 if any(map(_is_record, nodes(kind))) else 1


def has_untyped(kind: Any) -> bool:
    """Return whether the type or a part of it is Any."""
    from msgspec import inspect

    return any(isinstance(node, inspect.AnyType) for node in nodes(kind))


def has_chosen_hashes(kind: Any, *, short_integers: bool) -> bool:
    """Return whether the type has sets or map keys whose hashes a peer can choose.

    Python randomises the hashes of strings and bytes, and of dates and times, which it hashes as
    bytes, but not those of numbers, tuples and types made of them. A peer can make these all equal,
    and a table of n entries then costs n * n / 2 comparisons.
    """
    from msgspec import inspect

    safe: tuple[type, ...] = (
        *(inspect.StrType, inspect.BytesType, inspect.BoolType, inspect.NoneType),
        *(inspect.EnumType, inspect.LiteralType),
        *(inspect.DateTimeType, inspect.DateType, inspect.TimeType),
    )
    if short_integers:
        safe = (*safe, inspect.IntType)
    for node in nodes(kind):
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


def nodes(kind: Any) -> Iterator[Any]:
    """Yield the msgspec.inspect descriptions of a type and of all types inside it."""
    from msgspec import inspect

    todo: list[Any] = [kind if isinstance(kind, inspect.Type) else inspect.type_info(kind)]
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
