"""The base of configuration classes."""

from collections.abc import Iterator
from typing import Any, NoReturn, Self, dataclass_transform

__all__ = ["Settings"]


class _Help:
    """The docstring of a class with those of its fields, which are read when it is asked for."""

    def __init__(self, text: str | None) -> None:
        self._text = text

    def __get__(self, _: object, kind: type) -> str | None:
        if self._text is None:  # python -OO
            return None
        fields = [field for base in reversed(kind.__mro__[:-2]) for field in _fields(base)]
        return "\n".join([self._text.rstrip(), *fields])


def _fields(kind: type) -> Iterator[str]:
    """Return the fields that a class defines, each with its default and its docstring."""
    import ast
    from inspect import getsource
    from itertools import pairwise
    from textwrap import dedent, indent

    try:
        body = ast.parse(dedent(getsource(kind))).body[0].body  # type: ignore[attr-defined]
    except (OSError, TypeError):  # there is no source
        body = []
    texts: dict[str, str] = {
        ast.unparse(field.target): text.value.value  # type: ignore[attr-defined]
        for field, text in pairwise(body)
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr)
    }
    for name in kind.__annotations__:
        text = dedent(f"    {texts.get(name, '')}").strip()
        yield f"\n{name} = {getattr(kind, name)!r}\n{indent(text, '    ')}"


@dataclass_transform(kw_only_default=True, frozen_default=True)
class Settings:
    """Base of the configuration classes: keyword-only fields, validated once and then immutable.

    Type checkers see a dataclass. Real dataclasses would double the time it takes to import the
    package.
    """

    def __init_subclass__(cls) -> None:
        cls.__doc__ = _Help(cls.__doc__)  # type: ignore[assignment]

    def __init__(self, **settings: Any) -> None:
        known = [vars(kind).get("__annotations__", {}) for kind in type(self).__mro__]
        for name in settings:
            if not any(name in fields for fields in known):
                raise TypeError(f"{type(self).__name__} has no setting {name!r}")
        self.__dict__.update(settings)
        self._check()

    def _check(self) -> None:
        """Raise ValueError for a setting out of its bounds."""

    def override(self, **settings: Any) -> Self:
        """Return a copy in which each given setting that is not None replaces the old value."""
        changes = {name: value for name, value in settings.items() if value is not None}
        return type(self)(**{**self.__dict__, **changes}) if changes else self

    def __setattr__(self, name: str, value: Any) -> NoReturn:
        raise AttributeError(f"settings cannot be changed: {name}")

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and self.__dict__ == other.__dict__

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        shown = {**self.__dict__, **({"token": "..."} if "token" in self.__dict__ else {})}
        fields = ", ".join(f"{name}={value!r}" for name, value in shown.items())
        return f"{type(self).__name__}({fields})"
