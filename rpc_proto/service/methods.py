"""Services by reflection: an object's public methods, their parameters and their types."""

import functools
import inspect
import re
import typing
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple, TypeVar

from rpc_proto.errors import InvalidArgument
from rpc_proto.wire.codecs import Codec, Decode, explain
from rpc_proto.wire.frames import STREAMS, Flag
from rpc_proto.wire.typed import (
    argument_decoder,
    argument_outline,
    check_decodable,
    check_encodable,
    check_hashed_size,
    convert,
    convert_argument,
    decoder,
    has_chosen_hashes,
    weight,
)

from .stats import MethodStats
from .streamed import NOT_STREAMED, is_asynchronous, is_generator, item_type

__all__ = [
    "Declared",
    "Method",
    "Parameter",
    "Streamed",
    "annotated_methods",
    "expose",
    "is_function",
    "quick",
    "reflect",
    "service_name",
]

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*", re.ASCII)

_NO_NAMED: dict[str, Any] = {}
_GLANCE = 256  # bytes; in smaller bodies, counting the arguments first costs more than it can save
_SHAPE = Flag.RAW | Flag.NAMED
_INDEX = re.compile(r"`\$\[([0-9]+)\]")  # how msgspec names an element of the outer array

Function = TypeVar("Function", bound=Callable[..., Any])


def expose(function: Function) -> Function:
    """Mark a method as callable from outside; then only the marked methods of its class are.

    Overrides of a marked method are marked, too. TypeError for anything but a function.
    """
    return _mark(function, _EXPOSED)


def quick(function: Function) -> Function:
    """Mark a `def` method as one that never blocks: it runs at once, not in the thread pool."""
    return _mark(function, _QUICK)


_EXPOSED, _QUICK = "__rpc_exposed__", "__rpc_quick__"


def _mark(function: Function, mark: str) -> Function:
    try:
        setattr(function, mark, True)
    except AttributeError:
        raise TypeError(f"only a function can be marked, not {function!r:.80}") from None
    return function


def _has_mark(found: Any, mark: str) -> bool:
    """Whether a function, or one that it wraps, has a mark."""
    seen: set[int] = set()
    while found is not None and id(found) not in seen:
        seen.add(id(found))
        own = getattr(found, "__dict__", {})
        if mark in own:
            return True
        # staticmethod and classmethod; functools.partialmethod; functools.wraps
        inner = [getattr(found, name, None) for name in ("__func__", "func")]
        found = next(filter(None, [*inner, own.get("__wrapped__")]), None)
    return False


def _hides_mark(function: Any) -> bool:
    """Whether a decorator without functools.wraps hides a mark."""
    for cell in getattr(function, "__closure__", None) or ():
        with suppress(ValueError):  # an empty cell
            inner = cell.cell_contents
            for mark in (_EXPOSED, _QUICK):
                if callable(inner) and _has_mark(inner, mark) and not _has_mark(function, mark):
                    return True
    return False


class Parameter(NamedTuple):
    """One parameter of a method; `kind` is one of inspect.Parameter's."""

    name: str
    type: Any
    kind: Any
    required: bool


_KINDS = {
    0: "unary",
    Flag.CLIENT_STREAM: "client_stream",
    Flag.SERVER_STREAM: "server_stream",
    STREAMS: "bidirectional",
}


class Method:
    """A method that can be called: its function, and how to decode its arguments.

    `streams` has the flags that a call of it needs, 0 for a unary one. `takes` is the parameter for
    the items that the caller sends, or None; it is not among `parameters`, and its type is that of
    an item. `returns` is the type of the result, or, with SERVER_STREAM, of an item.
    """

    __slots__ = (
        "_by_arity",
        "_decoders",
        "_exact",
        "_hashed",
        "_items",
        "_keywords",
        "_least",
        "_most",
        "_named",
        "_place",
        "_positional",
        "_rest",
        "_rest_type",
        "doc",
        "function",
        "is_async",
        "is_quick",
        "lane",
        "name",
        "parameters",
        "returns",
        "signature",
        "stats",
        "streams",
        "takes",
        "weight",
    )

    def __init__(self, name: str, function: Callable[..., Any], *, is_quick: bool = False) -> None:
        """Raise TypeError if the signature, or a type in it, cannot be served."""
        self.name = name
        self.stats = MethodStats()
        self.function = function
        self.is_quick = is_quick
        self.lane: Any = None  # where its calls wait for their turn: a Dispatcher's
        self.doc = inspect.getdoc(function) or ""
        about = _signature(name, function)
        self.parameters, self.takes, self.returns, self.streams, self.signature = about
        self.is_async = is_asynchronous(function)
        self._check_streams()
        kinds = inspect.Parameter
        self._positional = [
            p
            for p in self.parameters
            if p.kind in (kinds.POSITIONAL_ONLY, kinds.POSITIONAL_OR_KEYWORD)
        ]
        self._named = {
            p.name: p
            for p in self.parameters
            if p.kind in (kinds.KEYWORD_ONLY, kinds.POSITIONAL_OR_KEYWORD)
        }
        self._rest = next((p for p in self.parameters if p.kind is kinds.VAR_POSITIONAL), None)
        rest: Any = self._rest.type if self._rest else None
        self._rest_type: Any = tuple[rest, ...]
        self._keywords = next((p for p in self.parameters if p.kind is kinds.VAR_KEYWORD), None)
        self._least = sum(p.required for p in self._positional)
        self._most = len(self._positional)
        self._by_arity: dict[int, Any] = {}
        self._decoders: dict[Codec, Decode] = {}
        # Most methods take a fixed number of arguments, decoded straight into their types.
        plain = len(self._positional) == len(self.parameters) == self._least
        self._exact = self._types(self._most) if plain else None
        if self._rest is not None and len(self.parameters) == 1:
            self._exact = self._rest_type
        self._check_types()
        self.weight = max((weight(p.type) for p in self.parameters), default=1)
        self._hashed = any(has_chosen_hashes(p.type, short_integers=False) for p in self.parameters)

    def __repr__(self) -> str:
        return f"<Method {self.name}{self.signature}>"

    @property
    def kind(self) -> str:
        """One of "unary", "client_stream", "server_stream" and "bidirectional"."""
        return _KINDS[self.streams]

    def prepare_stream(self, codec: Codec, call: Any) -> None:
        """Let the items of a call be decoded as the method wants; InvalidArgument if it has none.

        `call` is an InboundStream, or a call whose caller expected no stream.
        """
        missing = self.streams & ~call.flags
        if missing:
            what = "sends items" if missing & Flag.SERVER_STREAM else "takes items"
            raise InvalidArgument(
                f"{self.name} {what}: it has to be called as a stream",
                {"kind": self.kind},
                maybe_executed=False,
            )
        if self.takes is not None:
            kind = self.takes.type
            half = call.receiving
            half.decode = self._item_decoder(codec)
            half.check = partial(call.connection.check_encoded, weight=weight(kind))
            half.convert = None if kind in (bytes, Any) else partial(convert, kind=kind)

    def with_stream(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], items: Any
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments with the caller's items in their place."""
        assert self.takes is not None
        place = self._place
        if place is None or len(args) < place:
            return args, {**kwargs, self.takes.name: items}
        return (*args[:place], items, *args[place:]), kwargs

    def _item_decoder(self, codec: Codec) -> Decode:
        assert self.takes is not None
        decode = self._items.get(codec)
        if decode is None:
            kind = self.takes.type
            decode = codec.decode if kind is Any else argument_decoder(codec, kind)
            self._items[codec] = decode
        return decode

    def _check_streams(self) -> None:
        takes = self.takes
        if self.streams and self.is_quick:
            raise TypeError(f"{self.name} has a stream, which waits for its peer; it is not quick")
        self._place: int | None = None
        self._items: dict[Codec, Decode] = {}
        if takes is None:
            return
        if takes.is_async is not self.is_async:
            need = "an AsyncIterable" if self.is_async else "an Iterable"
            kind = "a coroutine function" if self.is_async else "a plain function"
            raise TypeError(f"{self.name} is {kind}: its parameter {takes.name} must be {need}")
        if takes.kind is not inspect.Parameter.KEYWORD_ONLY:
            self._place = takes.place
            if takes.kind is inspect.Parameter.POSITIONAL_ONLY and not all(
                p.required for p in self.parameters[: takes.place]
            ):
                raise TypeError(f"{self.name}: parameter {takes.name} stands behind optional ones")

    def decode(
        self, codec: Codec, flags: int, body: bytes
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments in a request's body; InvalidArgument says what is wrong."""
        try:
            if not flags & _SHAPE and self._exact is not None and body:
                decode = self._decoders.get(codec)
                if decode is None:
                    decode = self._decoders[codec] = argument_decoder(codec, self._exact)
                if len(body) > _GLANCE:
                    self._check_count(codec, body)
                return decode(body), _NO_NAMED
            named: dict[str, Any] = {}
            positional: list[Any] = []
            if flags & Flag.RAW:
                if self._exact == tuple[bytes]:
                    return (body,), _NO_NAMED
                positional = [body]
            elif flags & Flag.NAMED:
                if self._hashed:
                    check_hashed_size(body)
                positional, named = decoder(codec, tuple[list[Any], dict[str, Any]])(body)
            elif body:
                self._check_count(codec, body)
                if self._hashed:
                    check_hashed_size(body)
                positional = decoder(codec, list[Any])(body)
            return self._bind(positional, named)
        except InvalidArgument:
            raise
        except Exception as error:  # a codec may raise anything
            text = self._explain(error, codec, flags, body)
            raise InvalidArgument(text, maybe_executed=False) from None

    def _check_count(self, codec: Codec, body: bytes) -> None:
        """Refuse a wrong number of arguments before any of them is decoded."""
        count = codec.count(body)
        if count is not None and (
            count < self._least or (count > self._most and self._rest is None)
        ):
            self._refuse(f"takes {self._takes()}, got {count}")

    def _bind(
        self, positional: list[Any], named: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        count = len(positional)
        if count > self._most and self._rest is None:
            self._refuse(f"takes {self._takes()}, got {count}")
        args = convert_argument(positional[: self._most], self._types(min(count, self._most)))
        if self._rest is not None and count > self._most:
            args += self._convert_rest(positional[self._most :])
        given = {p.name for p in self._positional[:count]}
        kwargs: dict[str, Any] = {}
        for name, value in named.items():
            parameter = self._named.get(name, self._keywords)
            if parameter is None:
                self._refuse(f"has no parameter {name!r:.80}")
            if name in given and name in self._named:
                self._refuse(f"got two values for {name}")
            try:
                kwargs[name] = convert_argument(value, parameter.type)
            except ValueError as error:
                text = str(error).replace("`$", f"`{name}")
                if text == str(error):
                    text += f" - at `{name}`"
                raise InvalidArgument(f"{self.name}: {text}", maybe_executed=False) from None
        missing = [
            p.name
            for p in self.parameters
            if p.required
            and p.name not in given
            and not (p.name in kwargs and p.name in self._named)
        ]
        if missing:
            plural = "s" if len(missing) > 1 else ""
            names = ", ".join(map(repr, missing))
            raise InvalidArgument(
                f"{self.name}: missing required argument{plural} {names}", maybe_executed=False
            )
        return args, kwargs

    def _convert_rest(self, values: list[Any]) -> tuple[Any, ...]:
        try:
            rest: tuple[Any, ...] = convert_argument(values, self._rest_type)
        except ValueError as error:
            # Indices as they are in the outer array, for _explain.
            text = _INDEX.sub(lambda found: f"`$[{int(found[1]) + self._most}]", str(error))
            raise ValueError(text) from None
        return rest

    def _types(self, count: int) -> Any:
        kind = self._by_arity.get(count)
        if kind is None:
            types = [p.type for p in self._positional[:count]]
            kind = tuple[tuple(types)] if types else tuple[()]  # type: ignore[misc]
            self._by_arity[count] = kind
        return kind

    def _takes(self) -> str:
        names = ", ".join(p.name for p in self._positional)
        least, most = self._least, self._most
        if self._rest is not None:
            return f"at least {least} arguments"
        few = f"{least} to {most}" if least != most else str(most)
        return f"{few} argument{'' if most == 1 else 's'}" + (f" ({names})" if names else "")

    def _refuse(self, why: str) -> typing.NoReturn:
        raise InvalidArgument(f"{self.name} {why}", maybe_executed=False)

    def _explain(self, error: Exception, codec: Codec, flags: int, body: bytes) -> str:
        text = explain(error)
        if text.startswith("Expected `array` of length") and not flags & _SHAPE:
            # msgspec's message has the wrong count if it stopped before the end.
            with suppress(Exception):
                count = codec.count(body)
                if count is None:
                    count = len(codec.decode(body))
                if not self._least <= count <= self._most:
                    return f"{self.name} takes {self._takes()}, got {count}"

        def parameter(match: re.Match[str]) -> str:
            index = int(match[1])
            if index < self._most:
                return f"`{self._positional[index].name}"
            return f"`{self._rest.name}[{index - self._most}]" if self._rest else match[0]

        return f"{self.name}: {_INDEX.sub(parameter, text)}"

    def _check_types(self) -> None:
        for parameter in self.parameters:
            try:
                check_decodable(parameter.type)
                # Made now, because a call must not need to open a file: there may be no descriptors
                # left.
                argument_outline(parameter.type)
            except TypeError as error:
                raise TypeError(f"{self.name}: parameter {parameter.name}: {error}") from None
        if self.takes is not None:
            try:
                check_decodable(self.takes.type)
                argument_outline(self.takes.type)
            except TypeError as error:
                raise TypeError(f"{self.name}: items of {self.takes.name}: {error}") from None
        try:
            check_encodable(self.returns)
        except TypeError as error:
            what = "items" if self.streams & Flag.SERVER_STREAM else "result"
            raise TypeError(f"{self.name}: {what}: {error}") from None


class Streamed(NamedTuple):
    """The parameter that gets the caller's items; `type` is that of an item."""

    name: str
    type: Any
    kind: Any
    place: int  # among all parameters
    is_async: bool


class _Signature(NamedTuple):
    parameters: list[Parameter]
    takes: Streamed | None
    returns: Any
    streams: int
    text: str


def _signature(name: str, function: Callable[..., Any]) -> _Signature:
    try:
        signature = inspect.signature(function)
        target = function if hasattr(function, "__annotations__") else type(function).__call__
        hints = typing.get_type_hints(inspect.unwrap(target), include_extras=True)
    except (NameError, TypeError, ValueError) as error:
        raise TypeError(f"{name}: its signature cannot be read: {error}") from None
    parameters: list[Parameter] = []
    takes: Streamed | None = None
    streams = 0
    for place, p in enumerate(signature.parameters.values()):
        hint = hints.get(p.name, Any)
        item, is_async = item_type(hint)
        if item is NOT_STREAMED:
            may_miss = p.default is not p.empty or p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
            parameters.append(Parameter(p.name, hint, p.kind, not may_miss))
        elif takes is not None or p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD):
            raise TypeError(f"{name}: only one parameter can be a stream of items, not {p.name}")
        else:
            takes = Streamed(p.name, item, p.kind, place, is_async)
            streams = int(Flag.CLIENT_STREAM)
    # None as the type of a result means "whatever the codec gives".
    returns = hints.get("return")
    item, _ = item_type(returns)
    if item is NOT_STREAMED and is_generator(function):
        item = Any
    if item is not NOT_STREAMED:
        streams |= Flag.SERVER_STREAM
        returns = None if item is Any else item
    return _Signature(
        parameters, takes, returns, streams, str(signature).replace("collections.abc.", "")
    )


def service_name(service: Any) -> str:
    """Return the service name of a class or an object.

    It is the class's `__service__` if it has one, and otherwise the name of the class.
    """
    kind = service if isinstance(service, type) else type(service)
    name = getattr(kind, "__service__", kind.__name__)
    _check_name(name)
    return str(name)


def _check_name(name: Any) -> None:
    if not isinstance(name, str) or not _NAME.fullmatch(name) or len(name) > 200:
        raise ValueError(f"a service name is made of dotted identifiers, not {name!r:.80}")


def _public_functions(kind: type) -> Iterator[tuple[str, Any, bool]]:
    """Find the methods a class offers, and whether they are quick, without touching properties."""
    found = []
    exposed = []
    for name in dir(kind):
        if name.startswith("_"):
            continue
        static = inspect.getattr_static(kind, name)
        # An override inherits the marks: otherwise it would no longer be offered, or, if it was the
        # only marked method, all others would be.
        defined = [vars(base)[name] for base in kind.__mro__ if name in vars(base)] or [static]
        is_exposed = any(_has_mark(one, _EXPOSED) for one in defined)
        if isinstance(static, (staticmethod, classmethod)):
            function: Any = static.__func__
        elif isinstance(static, functools.partialmethod):
            function = static.func
        else:
            function = static
        # Objects that count as routines only because of __get__, like cached_property, are not
        # callable.
        if not inspect.isroutine(function) or not callable(function):
            if is_exposed:
                raise TypeError(f"{kind.__name__}.{name} is marked but is not a method")
            continue
        if _hides_mark(function):
            raise TypeError(
                f"{kind.__name__}.{name}: a decorator hides the mark of the function below it; "
                "let it use functools.wraps, or mark what it returns"
            )
        entry = (name, function, any(_has_mark(one, _QUICK) for one in defined))
        found.append(entry)
        if is_exposed:
            exposed.append(entry)
    yield from exposed or found


def is_function(service: Any) -> bool:
    """Whether the registered object is a function, and not an object with methods."""
    return inspect.isroutine(service) or isinstance(service, functools.partial)


def reflect(service: Any, name: str | None = None) -> dict[str, Method]:
    """Return the methods that an object offers, by full name "Service.method".

    A function is one method and needs a full name. Raises TypeError for anything but a function or
    an object with methods, and ValueError for an invalid name.
    """
    if isinstance(service, type):
        raise TypeError(f"register an object, not the class {service.__name__}; add ()")
    if is_function(service):
        if not isinstance(name, str) or "." not in name:
            short = getattr(service, "__name__", "function")
            raise TypeError(
                f'a function needs a full name as a method: register({short}, "Service.{short}")'
            )
        _check_name(name)
        return {name: Method(name, service, is_quick=_has_mark(service, _QUICK))}
    name = service_name(service) if name is None else name
    _check_name(name)
    methods = {
        f"{name}.{short}": Method(f"{name}.{short}", getattr(service, short), is_quick=is_quick)
        for short, _, is_quick in _public_functions(type(service))
    }
    if not methods:
        raise TypeError(f"{service!r:.80} has no public methods")
    return methods


class Declared(NamedTuple):
    """A method as a class declares it; see `Method` for the meaning."""

    name: str
    returns: Any
    streams: int
    takes: Streamed | None


def annotated_methods(kind: Any) -> list[Declared]:
    """Return the methods that a class declares, with the types of their results."""
    if not isinstance(kind, type):
        raise TypeError(f"a service is named by a string or declared by a class, not {kind!r:.80}")
    declared = []
    for name, function, _ in _public_functions(kind):
        about = _signature(f"{kind.__name__}.{name}", function)
        takes = about.takes
        static = inspect.getattr_static(kind, name)
        if takes is not None and not isinstance(static, staticmethod):
            takes = takes._replace(place=takes.place - 1)  # without self
        declared.append(Declared(name, about.returns, about.streams, takes))
    return declared
