"""Parsing arguments and printing results: JSON, with a form for bytes."""

import base64
import json
import shlex
from collections.abc import Sequence
from typing import Any, NoReturn

__all__ = ["BYTES", "parse_arguments", "parse_pairs", "parse_value", "to_json"]

# How JSON, which has no bytes, writes them here: an object with just this key.
BYTES = "$base64"

_PYTHON_WORDS = {"True": "true", "False": "false", "None": "null"}


def parse_arguments(texts: Sequence[str]) -> tuple[list[Any], dict[str, Any]]:
    """Return the positional and the named arguments that `ARG...` stands for.

    `name=JSON` is a named one if the name is an identifier. ValueError says how to write it right.
    """
    positional: list[Any] = []
    named: dict[str, Any] = {}
    for text in texts:
        name, separator, value = text.partition("=")
        if separator and name.isidentifier():
            if name in named:
                raise ValueError(f"duplicate argument {name}")
            named[name] = parse_value(value, prefix=f"{name}=")
        else:
            positional.append(parse_value(text))
    return positional, named


def parse_pairs(texts: Sequence[str]) -> dict[str, str]:
    """Return the mapping of several `key=value`; ValueError if one is malformed."""
    pairs: dict[str, str] = {}
    for text in texts:
        key, separator, value = text.partition("=")
        if not separator or not key:
            raise ValueError(f"metadata must be key=value, not {text!r}")
        pairs[key] = value
    return pairs


def to_json(value: Any, indent: int | None = 2, ascii_only: bool = False) -> str:
    """Return a result as JSON; bytes become {"$base64": "..."}, other foreign values strings.

    Anything that could control a terminal, or mislead a reader, is escaped.
    """
    text = json.dumps(_plain(value), indent=indent, ensure_ascii=ascii_only)
    if text.isprintable():
        return text
    return "".join(
        character
        if character.isprintable() or character == "\n"
        else json.dumps(character)[1:-1]
        if character != "\x7f"
        else "\\u007f"
        for character in text
    )


def parse_value(text: str, prefix: str = "") -> Any:
    """Return the value of a JSON text; ValueError says how to write it right."""
    try:
        return json.loads(text, parse_constant=_refuse_constant, object_hook=_bytes_or_object)
    except RecursionError:
        raise ValueError(f"argument {text[:40]!r}... is nested too deeply") from None
    except json.JSONDecodeError as error:
        if text[:1] in tuple('{["'):
            raise ValueError(
                f"argument {text!r} is not JSON: {error.msg} at character {error.pos + 1}"
            ) from None
    except ValueError as error:
        if text not in _CONSTANTS:
            raise ValueError(f"argument {text[:80]!r}: {error}") from None
    right = _PYTHON_WORDS.get(text) or json.dumps(text, ensure_ascii=False)
    kind = "" if text in _PYTHON_WORDS else "a string is "
    raise ValueError(
        f"argument {prefix + text!r} is not JSON; {kind}written {shlex.quote(prefix + right)}"
    )


_CONSTANTS = ("NaN", "Infinity", "-Infinity")


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _bytes_or_object(value: dict[str, Any]) -> Any:
    if value.keys() != {BYTES}:
        return value
    try:
        return base64.b64decode(value[BYTES], validate=True)
    except (TypeError, ValueError):
        raise ValueError(f"{value[BYTES]!r} is not base64") from None


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, (str, int, float)):
        return value
    if isinstance(value, (bytes, bytearray, memoryview)):
        return {BYTES: base64.b64encode(value).decode()}
    if isinstance(value, dict):
        return {
            key if isinstance(key, str) else to_json(key, indent=None): _plain(item)
            for key, item in value.items()
        }
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(item) for item in value]
    return str(value)
