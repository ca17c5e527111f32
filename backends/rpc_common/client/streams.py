"""Streams at a client, for all backends; and those of clients that block."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Generic, NamedTuple, NoReturn, Self, TypeVar

from rpc_proto import (
    CallCompleted,
    CallFailed,
    InvalidArgument,
    ItemsEnded,
    ItemsReceived,
    LocalProtocolError,
    StreamEnded,
    Writable,
)
from rpc_proto.connection.streams.halves import Half, ReceiveHalf, SendHalf
from rpc_proto.wire.headers import NO_METADATA

__all__ = ["OF_STREAMS", "Request", "Stream", "StreamBase", "SyncRunning", "refuse_send"]

Item = TypeVar("Item")

_OPEN = Half.OPEN

OF_STREAMS = frozenset({ItemsReceived, ItemsEnded, Writable})  # events


class Request(NamedTuple):
    """What a stream begins with; `source` is an iterable of items to send, or None."""

    method: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    returns: Any
    timeout: float | None
    metadata: Mapping[str, str] | None
    idle_timeout: float | None = None
    source: Any = None
    route: Mapping[str, Any] = NO_METADATA  # key and node, of a balanced client

    @classmethod
    def of(
        cls,
        method: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        options: Mapping[str, Any],
        default: float | None = math.inf,
    ) -> "Request":
        """Take an iterator out of the arguments; InvalidArgument if there are several.

        `default` is the timeout if the options have none.
        """
        found = [value for value in (*args, *kwargs.values()) if is_source(value)]
        if len(found) > 1:
            raise InvalidArgument(
                f"{method}: only one argument can be a stream of items, not {len(found)}",
                maybe_executed=False,
            )
        if found:
            args = tuple(value for value in args if value is not found[0])
            kwargs = {name: value for name, value in kwargs.items() if value is not found[0]}
        timeout = options.get("timeout")
        route = {name: options[name] for name in ("key", "node") if options.get(name) is not None}
        return cls(
            *(method, args, kwargs, options.get("returns")),
            default if timeout is None else timeout,
            *(options.get("metadata"), options.get("idle_timeout")),
            found[0] if found else None,
            route,
        )

    @classmethod
    def with_items(
        cls,
        method: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        options: Mapping[str, Any],
        default: float | None,
    ) -> "Request | None":
        """Return what a call begins with if one of its arguments is an iterator."""
        if not any(map(is_source, (*args, *kwargs.values()))):
            return None
        return cls.of(method, args, kwargs, options, default)


def is_source(value: Any) -> bool:
    """Whether an argument is an iterator, whose items are sent one by one."""
    return hasattr(value, "__next__") or hasattr(value, "__aiter__")


def refuse_send(running: Any) -> NoReturn:
    """Raise why no item can be sent any more."""
    event = running.event
    if type(event) is CallFailed:
        raise type(event.error)(event.error.message, event.error.details)
    if event is None and running.call.sending.state is Half.ENDED:
        raise LocalProtocolError("the items were ended with end()")
    raise StreamEnded(f"{running.call.method} has answered already: see result()")


class StreamBase(Generic[Item]):
    """A call with items; `client.stream(...)` returns it, and it begins when it is first used.

    Iterate it for the items of the server; the caller sends none then, unless one argument is an
    iterator. In a `with` block it is open in both directions. Whatever ends the iteration or the
    block early cancels the call at the server.
    """

    __slots__ = ("__weakref__", "_client", "_iterated", "_request", "_told", "running")

    def __init__(self, client: Any, request: Request) -> None:
        """Not for users: see `stream` of a client."""
        self._client = client
        self._request = request
        self.running: Any = None
        self._iterated = False  # by somebody who waits
        self._told = False  # what the call failed with was raised

    def __del__(self) -> None:
        running = getattr(self, "running", None)
        if running is not None and running.event is None:
            running.drop()

    def __repr__(self) -> str:
        running = self.running
        state = "not begun" if running is None else "running" if running.event is None else "ended"
        return f"<stream of {self._request.method}, {state}>"

    @property
    def metadata(self) -> Mapping[str, str]:
        """The metadata of the answer; empty before it has come."""
        event = self.running.event if self.running is not None else None
        metadata: Mapping[str, str] = getattr(event, "metadata", NO_METADATA)
        return metadata

    def done(self) -> bool:
        """Whether the call has ended; items that have arrived can still be taken."""
        return self.running is not None and self.running.event is not None

    def close(self) -> None:
        """Cancel the call, if it has not ended, and drop the items that were not taken."""
        running = self.running
        if running is None:
            return
        if running.event is None:
            running.give_up()
        if running.call.receiving is not None:
            running.call.receiving.items.clear()

    def _hold(self) -> None:
        if self._iterated:
            raise LocalProtocolError(f"{self!r} is iterated somewhere else already")
        self._iterated = True

    def _check_failure(self) -> None:
        """Raise what the call failed with, once."""
        running = self.running
        if running.failure is not None:
            failure, running.failure = running.failure, None
            self._told = True
            try:
                raise failure
            finally:
                del failure  # or error, traceback and frame would keep each other alive
        event: CallCompleted | CallFailed = running.event
        if type(event) is CallFailed and not self._told:
            self._told = True
            error = event.error
            try:
                raise error
            finally:
                del error, event

    def _value(self) -> Any:
        """Return the result of a call that has ended."""
        self._check_failure()
        event = self.running.event
        if type(event) is not CallCompleted:
            raise LocalProtocolError("what the stream failed with was raised before")
        return event.value


# Clients that block


class SyncRunning(ABC):
    """A stream that has begun: the waiter of its call.

    `event` is how the call ended, and `failure` what the iterator of the caller's items raised.
    """

    call: Any

    def __init__(self) -> None:
        self.event: Any = None
        self.is_fed = False  # from an iterator
        self.on_end: Callable[[], object] | None = None  # of a balanced client
        self.failure: BaseException | None = None

    def wake(self) -> None:
        """Let those that wait look again: an event has come, perhaps the last."""
        self.ring()
        if self.event is not None and self.on_end is not None:
            on_end, self.on_end = self.on_end, None
            on_end()

    @abstractmethod
    def ring(self) -> None:
        """Wake those that wait."""

    @abstractmethod
    def wait_until(self, ready: Callable[[], bool]) -> None:
        """Wait until `ready()` is true."""

    @abstractmethod
    def send_item(self, value: Any) -> None:
        """Send an item, whose half is writable."""

    @abstractmethod
    def end_items(self) -> None:
        """Send the end of the items."""

    @abstractmethod
    def grant(self) -> None:
        """Give the server credit."""

    @abstractmethod
    def give_up(self) -> None:
        """Cancel the call."""

    @abstractmethod
    def drop(self) -> None:
        """Cancel the call soon, from wherever a finalizer runs."""

    def send(self, value: Any) -> bool:
        """Send an item when the peer wants it; return whether it was sent."""
        half: SendHalf = self.call.sending
        if half.waits and half.state is _OPEN:
            self.wait_until(lambda: not half.waits or half.state is not _OPEN)
        if half.state is not _OPEN:
            return False
        self.send_item(value)
        return True

    def end(self) -> None:
        """End the items, if the call has not."""
        half: SendHalf = self.call.sending
        if half.rest is not None:
            self.wait_until(lambda: half.rest is None or half.state is not _OPEN)
        if half.state is _OPEN:
            self.end_items()

    def feed(self, source: Any) -> None:
        """Send all items of an iterator, and close it."""
        try:
            for value in source:
                if not self.send(value):
                    break
            else:
                self.end()
        except BaseException as error:
            if self.event is None:
                self.failure = error
                self.give_up()
            if not isinstance(error, Exception):
                raise
        finally:
            if hasattr(source, "close"):
                source.close()


class Stream(StreamBase[Item], Iterator[Item]):
    """A call with items; `client.stream(...)` returns it, and it begins when it is first used.

    `for item in client.stream(...)` takes the items of the server. In a `with` block the stream is
    open in both directions: `send`, `end`, `result`. Leaving the loop or the block early cancels
    the call at the server. A stream belongs to one thread or greenlet at a time for each direction.
    """

    __slots__ = ()

    def __enter__(self) -> Self:
        self.begin(True, True)
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Item:
        running = self.running
        if running is None:
            running = self.begin(self._request.source is not None, True)
        half: ReceiveHalf = running.call.receiving
        items = half.items
        if not items and running.event is None:
            self._client.check_here()
            self._hold()
            try:
                running.wait_until(lambda: bool(items) or running.event is not None)
            finally:
                self._iterated = False
        if not items:
            self._check_failure()
            raise StopIteration
        try:
            item: Item = half.take()
        except BaseException:
            self.close()
            raise
        if half.due:
            running.grant()
        return item

    def send(self, value: Any) -> None:
        """Send one item, when the server takes it.

        Raises what the call has failed with; StreamEnded if the server has answered already, and
        LocalProtocolError after `end`. InvalidArgument if the item cannot be encoded, and
        ResourceExhausted if it is larger than the server accepts; nothing was sent then.
        """
        self._client.check_here()
        running = self.running or self.begin(True, True)
        if not running.send(value):
            refuse_send(running)

    def end(self) -> None:
        """Say that no more items follow; the server's can still be taken."""
        self._client.check_here()
        (self.running or self.begin(True, True)).end()

    def result(self) -> Any:
        """End the items, wait for the answer, and return the result of the method.

        Items of the server that were not taken are dropped. Raises what the call failed with.
        """
        running = self.running or self.begin(True, True)
        call = running.call
        if running.event is None:
            self._client.check_here()
            if call.sending is not None and not running.is_fed:
                running.end()
            half = call.receiving
            items = half.items if half is not None else ()
            while running.event is None:
                running.wait_until(lambda: bool(items) or running.event is not None)
                while items:
                    half.take()
                if half is not None and half.due:
                    running.grant()
        return self._value()

    def send_source(self) -> Any:
        """Not for users: send the items of the iterator among the arguments; return the result."""
        try:
            self._client.begin_stream(self, self._request, True, False, here=True)
            return self.result()
        finally:
            self.close()

    def begin(self, sends: bool, takes: bool) -> Any:
        """Not for users: send the request, if that was not done."""
        if self.running is None:
            self._client.begin_stream(self, self._request, sends, takes)
        return self.running
