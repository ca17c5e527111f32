"""Recording a connection and replaying it without a network, to debug it.

Use a traced connection or port in place of a plain one: it records every input, command and output
in its `trace`. `replay` feeds the same steps to a new connection; the two traces are equal if the
core behaves the same.
"""

# ruff: noqa: D102  # the methods are described where they are defined

import json
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Self, TypeVar

from .config import ClientConfig, Peer, ServerConfig
from .connection.calls import InboundCall, OutboundCall
from .connection.client import ClientConnection
from .connection.events import (
    CallCancelled,
    CallCompleted,
    CallFailed,
    Event,
    HandshakeCompleted,
    RequestReceived,
    ResponsePromised,
)
from .connection.port import ServerPort
from .connection.server import ServerConnection
from .errors import CallError
from .wire.codecs import Codec
from .wire.frames import BYTES

if TYPE_CHECKING:
    from .http.messages import Application

__all__ = [
    "Trace",
    "TracedClientConnection",
    "TracedServerConnection",
    "TracedServerPort",
    "replay",
]

Result = TypeVar("Result")

# The parts of a step that are its outcome.
_OUTCOME = frozenset({"events", "started", "result", "raised"})


class Trace:
    """Everything that went through a connection, as steps that can be saved as JSON.

    It contains tokens in plain text. `start` has the end (client or server), the time it began, and
    the settings that can be saved; `config` has all settings, in the recording process only.
    """

    def __init__(self, start: dict[str, Any], config: ClientConfig | ServerConfig | None) -> None:
        self.start = start
        self.config = config
        self.steps: list[dict[str, Any]] = []

    def to_lines(self) -> Iterator[str]:
        """Return the trace as lines of JSON: one for the start and one for each step."""
        return (json.dumps(thing) + "\n" for thing in (self.start, *self.steps))

    @classmethod
    def from_lines(cls, lines: Iterable[str]) -> Self:
        """Return the trace that `to_lines` saved; an open file can be passed as lines."""
        start, *steps = map(json.loads, lines)
        trace = cls(start, None)
        trace.steps = steps
        return trace


_Above: Any = object  # whatever class it stands before


class _Recorder:
    """Records what is done to a transport's connections; of nested calls only the outermost."""

    def __init__(self, end: str, config: Any, now: float, **given: str | None) -> None:
        settings = {name: value for name, value in vars(config).items() if _can_save(value)}
        self.trace = Trace({"end": end, "now": now, **given, "settings": settings}, config)
        self.busy = False
        self.known: list[Any] = []  # the calls; their place is their name in the trace
        self._places: dict[int, int] = {}
        self._taken: dict[int, int] = {}  # items that were taken from streams, by place

    def step(self, run: Callable[..., Result], args: tuple[Any, ...], /, **given: Any) -> Result:
        """Do something and record it with its outcome."""
        if self.busy:
            return run(*args)
        step = {"do": run.__name__, **given, **self._takes()}
        self.trace.steps.append(step)
        self.busy = True
        try:
            result = run(*args)
        except Exception as error:
            step["raised"] = f"{type(error).__name__}: {error}"
            raise
        finally:
            self.busy = False
        if isinstance(result, OutboundCall):
            step["started"] = [self.place(result), result.sent]
        elif result is not None:
            step["result"] = _pack(result) if isinstance(result, (bytes, memoryview)) else result
        return result

    def happened(self, events: list[Event], codec: Codec | None) -> None:
        """Record an event."""
        if events and not self.busy:
            described = [self._describe(event, codec) for event in events]
            self.trace.steps.append({"do": "events", **self._takes(), "events": described})

    def _takes(self) -> dict[str, Any]:
        """Return how many items have been taken from streams, where that has changed.

        Taking is no command of the connection, but its events depend on it.
        """
        changed = []
        for place, before in self._taken.items():
            count = self.known[place].receiving.count
            if count != before:
                self._taken[place] = count
                changed.append([place, count])
        return {"taken": changed} if changed else {}

    def place(self, call: Any) -> int:
        """Return the index of a call, and keep the call alive so that no other gets its id()."""
        place = self._places.setdefault(id(call), len(self.known))
        if place == len(self.known):
            self.known.append(call)
            if call.receiving is not None:
                self._taken[place] = 0
        return place

    def _describe(self, event: Event, codec: Codec | None) -> list[Any]:
        told: list[Any] = [type(event).__name__]
        call = getattr(event, "call", None)
        if call is not None:
            told.append(self.place(call))
        if isinstance(event, RequestReceived):
            told += [event.call.id, event.call.method, event.call.deadline]
        elif isinstance(event, CallCompleted):
            plain = event.call.returns is None  # a type cannot be saved, so its values are omitted
            told += [dict(event.metadata), _note(codec, event.value) if plain else None]
        elif isinstance(event, HandshakeCompleted):
            told += event.agreed[:-1]
            told.append(sorted(event.agreed.features))
        elif isinstance(event, ResponsePromised):
            told.append(event.promise.deadline)
        elif isinstance(event, (CallFailed, CallCancelled)):
            told.append(_explain(codec, event.error))
        else:
            told += [str(getattr(event, name)) for name in event.__slots__]
        return told


def _note(codec: Codec | None, value: Any) -> Any:
    """Return what is needed to make the codec produce the same again."""
    if type(value) in BYTES:
        return {"raw": _pack(value)}
    try:
        assert codec is not None
        return {"encoded": _pack(codec.encode(value))}
    except Exception as error:  # a codec may raise anything
        return {"unencodable": str(error)}


def _explain(codec: Codec | None, error: CallError) -> list[Any]:
    details = None if error.details is None else _note(codec, error.details)
    return [str(error.code), str(error.message), details, error.maybe_executed]


class _Traced(_Above):  # type: ignore[misc]
    """Records the inputs and outputs that both ends have; a mixin that comes before their class."""

    _recorder: _Recorder

    @property
    def trace(self) -> Trace:
        """The steps so far, with their outcomes."""
        return self._recorder.trace

    # Inputs, outputs, and the commands of both ends

    def receive_data(self, now: float, data: bytes | bytearray | memoryview) -> None:
        self._recorder.step(super().receive_data, (now, data), now=now, data=_pack(data))

    def receive_eof(self, now: float) -> None:
        self._recorder.step(super().receive_eof, (now,), now=now)

    def connection_lost(self, now: float, reason: str = "the connection was lost") -> None:
        self._recorder.step(super().connection_lost, (now, reason), now=now, reason=reason)

    def handle_timeout(self, now: float) -> None:
        self._recorder.step(super().handle_timeout, (now,), now=now)

    def shutdown(self, now: float, grace: float = 0.0) -> None:
        self._recorder.step(super().shutdown, (now, grace), now=now, grace=grace)

    def events(self) -> list[Event]:
        recorder = self._recorder
        busy, recorder.busy = recorder.busy, True
        events: list[Event] = super().events()
        recorder.busy = busy
        recorder.happened(events, getattr(self, "codec", None))
        return events

    def data_to_send(self) -> bytes:
        data: bytes = self._recorder.step(super().data_to_send, ())
        return data

    def next_buffer(self) -> bytes | memoryview:
        data: bytes | memoryview = self._recorder.step(super().next_buffer, ())
        return data


class _TracedStreams(_Above):  # type: ignore[misc]
    """Records the commands about streams."""

    _recorder: _Recorder

    def send_item(self, now: float, call: Any, value: Any) -> bool:
        told = {"call": self._recorder.place(call), "value": _note(self.codec, value)}
        step = super().send_item
        accepted: bool = self._recorder.step(step, (now, call, value), now=now, **told)
        return accepted

    def end_items(self, now: float, call: Any) -> None:
        told = {"call": self._recorder.place(call)}
        self._recorder.step(super().end_items, (now, call), now=now, **told)

    def take_item(self, now: float, call: Any) -> Any:
        return super().take_item(now, call)  # what it gives is recorded as taken, and granted

    def grant(self, now: float, call: Any) -> None:
        told = {"call": self._recorder.place(call)}
        self._recorder.step(super().grant, (now, call), now=now, **told)


class TracedServerConnection(_TracedStreams, _Traced, ServerConnection):
    """A ServerConnection with a `trace`."""

    def __init__(
        self,
        config: ServerConfig | None = None,
        *,
        now: float,
        recorder: _Recorder | None = None,
        **options: Any,
    ) -> None:
        super().__init__(config, now=now, **options)
        self._recorder = recorder or _Recorder(
            "server", self._config, now, address=self.peer.address
        )

    def turn_away(self, now: float, code: str, message: str) -> None:
        told = {"code": code, "message": message}
        self._recorder.step(super().turn_away, (now, code, message), now=now, **told)

    def send_response(self, now: float, call: InboundCall, value: Any) -> None:
        told = (
            {} if self._recorder.busy else {**self._name(call), "value": _note(self.codec, value)}
        )
        self._recorder.step(super().send_response, (now, call, value), now=now, **told)

    def send_error(self, now: float, call: InboundCall, error: CallError) -> None:
        told = (
            {}
            if self._recorder.busy
            else {**self._name(call), "error": _explain(self.codec, error)}
        )
        self._recorder.step(super().send_error, (now, call, error), now=now, **told)

    def refuse(self, now: float, call: InboundCall, error: CallError) -> None:
        told = {**self._name(call), "error": _explain(self.codec, error)}
        self._recorder.step(super().refuse, (now, call, error), now=now, **told)

    def conclude(self, now: float, call: InboundCall) -> None:
        self._recorder.step(super().conclude, (now, call), now=now, **self._name(call))

    def _name(self, call: InboundCall) -> dict[str, Any]:
        return {"call": self._recorder.place(call), "reply_metadata": dict(call.reply_metadata)}


class TracedServerPort(_Traced, ServerPort):
    """A ServerPort with a `trace`, which includes the steps of its connections."""

    def __init__(
        self,
        config: ServerConfig | None = None,
        *,
        now: float,
        make: Callable[..., Any] = TracedServerConnection,
        **options: Any,
    ) -> None:
        config = config or ServerConfig()
        peer = options.get("peer") or Peer()
        self._recorder = _Recorder("port", config, now, address=peer.address)
        super().__init__(config, now=now, make=partial(make, recorder=self._recorder), **options)

    @property
    def codec(self) -> Codec | None:
        """The codec of the calls; None before the handshake."""
        return getattr(self.connection, "codec", None)

    def turn_away(self, now: float, code: str, message: str) -> None:
        told = {"code": code, "message": message}
        self._recorder.step(super().turn_away, (now, code, message), now=now, **told)


class TracedClientConnection(_TracedStreams, _Traced, ClientConnection):
    """A ClientConnection with a `trace`."""

    def __init__(
        self,
        config: ClientConfig | None = None,
        *,
        now: float,
        connect: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(config, now=now, connect=connect, **options)
        self._recorder = _Recorder("client", self._config, now, connect=connect)

    def start_call(
        self,
        now: float,
        method: str,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> OutboundCall:
        saved = ("deadline", "one_way", "client_stream", "server_stream", "idle_timeout")
        told: dict[str, Any] = {name: options[name] for name in saved if name in options}
        if options.get("metadata"):
            told["metadata"] = dict(options["metadata"])
        told["args"] = [_note(self.codec, arg) for arg in args]
        told["kwargs"] = {name: _note(self.codec, arg) for name, arg in (kwargs or {}).items()}
        start = super().start_call

        def start_call() -> OutboundCall:
            return start(now, method, args, kwargs, **options)

        return self._recorder.step(start_call, (), now=now, method=method, **told)

    def cancel(self, now: float, call: OutboundCall, error: CallError | None = None) -> None:
        told = {"call": self._recorder.place(call), "error": error and _explain(self.codec, error)}
        self._recorder.step(super().cancel, (now, call, error), now=now, **told)


def replay(trace: Trace, config: Any = None, application: "Application | None" = None) -> Trace:
    """Feed the steps of a trace to a new connection and return its trace.

    The two traces are equal if the core behaves the same. Pass `config` if the settings cannot be
    saved (your own codecs, `authenticate`), and `application` if there was one. The application
    must answer the same again: a promise that something else settled is not part of a trace.
    """
    start = trace.start
    config = config or trace.config
    again: Any
    if start["end"] == "client":
        config = config or ClientConfig(**start["settings"])
        again = TracedClientConnection(config, now=start["now"], connect=start.get("connect"))
    else:
        config = config or ServerConfig(**start["settings"])
        peer = Peer(start["address"])
        if start["end"] == "server":
            again = TracedServerConnection(config, now=start["now"], peer=peer)
        else:
            again = TracedServerPort(config, now=start["now"], peer=peer, application=application)
    for step in trace.steps:
        # Calls are answered where they arrived.
        _repeat(again if hasattr(again, step["do"]) else again.connection, again._recorder, step)
    recorded: Trace = again.trace
    return recorded


def _repeat(connection: Any, recorder: _Recorder, step: Mapping[str, Any]) -> None:
    given = {name: value for name, value in step.items() if name not in _OUTCOME}
    known: Codec | None = getattr(connection, "codec", None)  # a server's comes with the handshake
    failure = ""

    def revive(note: Mapping[str, str]) -> Any:
        nonlocal failure
        if "raw" in note:
            return b64decode(note["raw"])
        if "encoded" in note:
            return connection.codec.decode(b64decode(note["encoded"]))
        failure = note["unencodable"]
        return object()

    def encode(value: Any) -> bytes:
        assert known is not None
        try:
            return known.encode(value)
        except Exception as error:
            raise ValueError(failure) from error

    for place, count in given.pop("taken", ()):
        half = recorder.known[place].receiving
        while half.items and half.count < count:
            with suppress(Exception):  # of one that was bad
                half.take()
    if "data" in given:
        given["data"] = b64decode(given["data"])
    if "call" in given:
        given["call"] = recorder.known[given["call"]]
    if "reply_metadata" in given:
        given["call"].reply_metadata = given.pop("reply_metadata")
    if given.get("error"):
        code, message, details, executed = given["error"]
        details = details and revive(details)
        given["error"] = CallError.of(code, message, details, maybe_executed=executed)
    if "value" in given:
        given["value"] = revive(given["value"])
    if "args" in given:
        given["args"] = tuple(map(revive, given["args"]))
        given["kwargs"] = {name: revive(note) for name, note in given["kwargs"].items()}
    if failure and known is not None:
        connection.codec = Codec(known.name, encode, known.decode)
    with suppress(Exception):  # it is in the trace, to be compared like the rest
        getattr(connection, given.pop("do"))(**given)
    if failure and known is not None:
        connection.codec = known


def _pack(data: bytes | bytearray | memoryview) -> str:
    return b64encode(data).decode()


def _can_save(setting: Any) -> bool:
    if isinstance(setting, (tuple, list)):
        return all(map(_can_save, setting))
    return setting is None or isinstance(setting, (bool, int, float, str))
