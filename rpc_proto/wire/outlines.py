"""Outlines of types, used to find unknown fields in a value's records.

msgspec silently drops fields that a dataclass does not have. The outline of a type has the same
records, as structs that forbid other fields, and ignores everything else.
"""

import re
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any, Literal, Union
from uuid import UUID

import msgspec
from msgspec import inspect

from .typed import nodes

__all__ = ["explain_unknown_field", "outline"]

_RECORDS = (inspect.DataclassType, inspect.TypedDictType)
_OBJECTS = (*_RECORDS, inspect.NamedTupleType, inspect.StructType)

_SCALARS: dict[type, Any] = {
    inspect.AnyType: Any,
    inspect.NoneType: None,
    inspect.BoolType: bool,
    inspect.IntType: int,
    inspect.FloatType: float,
    inspect.StrType: str,
    inspect.BytesType: bytes,
    inspect.ByteArrayType: bytearray,
    inspect.MemoryViewType: memoryview,
    inspect.ExtType: msgspec.msgpack.Ext,
    inspect.RawType: msgspec.Raw,
    inspect.DateTimeType: datetime,
    inspect.DateType: date,
    inspect.TimeType: time,
    inspect.TimeDeltaType: timedelta,
    inspect.DecimalType: Decimal,
    inspect.UUIDType: UUID,
}

_UNKNOWN = re.compile(
    r"Object contains unknown field `(?P<field>.*?)`(?P<where> - at `\$(?P<path>[^`]*)`)?",
    re.DOTALL,
)
_STEP = re.compile(r"\[(?P<index>[0-9]+)\]|\[\.\.\.\]|\.(?P<field>[^.\[]+)")


def explain_unknown_field(text: str, kind: Any) -> str:
    """Return msgspec's message about an unknown field, with the name of the type added."""
    found = _UNKNOWN.fullmatch(text)
    cls = _record_at(inspect.type_info(kind), found["path"] or "") if found else None
    if found is None or cls is None:
        return text
    return f"{cls.__name__} has no field {found['field']!r:.80}{found['where'] or ''}"


def outline(kind: Any, unread: Any) -> Any:
    """Return the outline of a type, or None if it has no records.

    `unread` is the type of everything that is ignored: msgspec.Raw when decoding bytes, Any when
    converting values. The outline accepts whatever `kind` accepts, except unknown fields.
    """
    node = inspect.type_info(kind)
    return _Outliner(unread).of(node) if _has_records(node) else None


def _has_records(node: Any) -> bool:
    return any(isinstance(part, _RECORDS) for part in nodes(node))


def _bare(node: Any) -> Any:
    """Return a description without the metadata of an Annotated."""
    return _bare(node.type) if isinstance(node, inspect.Metadata) else node


class _Outliner:
    def __init__(self, unread: Any) -> None:
        self._unread = unread
        self._structs: dict[
            int, Any
        ] = {}  # by the id of the description, as types may be recursive

    def of(self, node: Any) -> Any:
        return self._outline(node) if _has_records(node) else self._unread

    def _outline(self, node: Any) -> Any:
        node = _bare(node)
        if isinstance(node, _OBJECTS):
            return self._structs.get(id(node)) or self._struct(node)
        if isinstance(node, inspect.UnionType):
            return Union[tuple(self._member(member) for member in node.types)]  # noqa: UP007
        if hasattr(node, "key_type"):
            return dict[_scalar(node.key_type), self.of(node.value_type)]  # type: ignore[misc]
        if isinstance(node, inspect.TupleType):
            return tuple[tuple(self.of(item) for item in node.item_types)]  # type: ignore[misc]
        return list[self.of(node.item_type)]  # type: ignore[misc]  # and sets of hashable records

    def _member(self, node: Any) -> Any:
        """Return the outline of a member of a union, enough to tell the members apart."""
        node = _bare(node)
        if isinstance(node, (inspect.NamedTupleType, inspect.TupleType)):
            return self._outline(node) if _has_records(node) else list[self._unread]  # type: ignore[name-defined]
        if isinstance(node, _OBJECTS) or hasattr(node, "key_type") or hasattr(node, "item_type"):
            return self._outline(node)
        return _scalar(node)

    def _struct(self, node: Any) -> Any:
        names = {f"f{index}": field.encode_name for index, field in enumerate(node.fields)}
        is_struct = isinstance(node, inspect.StructType)
        made = self._structs[id(node)] = msgspec.defstruct(
            node.cls.__name__,
            [(name, Any, None) for name in names],
            rename=names,
            forbid_unknown_fields=isinstance(node, _RECORDS),
            array_like=isinstance(node, inspect.NamedTupleType) or (is_struct and node.array_like),
            tag=node.tag if is_struct else None,
            tag_field=node.tag_field if is_struct else None,
            gc=False,
        )
        # Its fields may refer back to it; msgspec reads them when it first makes a decoder.
        made.__annotations__ = {
            name: self.of(field.type) for name, field in zip(names, node.fields, strict=True)
        }
        return made


def _scalar(node: Any) -> Any:
    """Return the described type, which has no records: a key, or a member of a union."""
    node = _bare(node)
    if isinstance(node, inspect.NoneType):
        return None
    if type(node) in _SCALARS:
        return _SCALARS[type(node)]
    if isinstance(node, inspect.UnionType):
        return Union[tuple(_scalar(part) for part in node.types)]  # noqa: UP007
    if isinstance(node, inspect.LiteralType):
        return Literal[tuple(node.values)]
    if isinstance(node, inspect.TupleType):
        return tuple[tuple(_scalar(item) for item in node.item_types)]  # type: ignore[misc]
    if isinstance(node, inspect.VarTupleType):
        return tuple[_scalar(node.item_type), ...]  # type: ignore[misc]
    if isinstance(node, inspect.FrozenSetType):
        return frozenset[_scalar(node.item_type)]  # type: ignore[misc]
    return node.cls  # an enumeration, a named tuple, a struct


def _record_at(node: Any, path: str) -> Any:
    """Return the class of the record at a msgspec path, or None if there is none."""
    for step in _STEP.finditer(path):
        inner = [_step(part, step["index"], step["field"]) for part in _parts(node)]
        node = next((one for one in inner if one is not None), None)
    return next((part.cls for part in _parts(node) if isinstance(part, _RECORDS)), None)


def _parts(node: Any) -> Any:
    node = _bare(node)
    return [_bare(part) for part in getattr(node, "types", (node,))]


def _step(node: Any, index: str | None, name: str | None) -> Any:
    if name is not None:
        fields = getattr(node, "fields", ())
        return next((field.type for field in fields if field.encode_name == name), None)
    if index is not None and hasattr(node, "fields"):
        return node.fields[int(index)].type
    if index is not None and hasattr(node, "item_types"):
        return node.item_types[int(index)]
    if index is None and hasattr(node, "value_type"):
        return node.value_type
    return getattr(node, "item_type", None)
