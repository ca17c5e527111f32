"""What the clients of all backends share."""

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import partial
from time import monotonic
from typing import Any, NamedTuple, TypeVar, overload

from rpc_common.transport.forks import Owner
from rpc_proto import (
    CallCompleted,
    CallFailed,
    ClientConnection,
    Event,
    LocalProtocolError,
    OutboundCall,
    State,
)
from rpc_proto.service.context import inherit
from rpc_proto.service.stub import service_proxy

from .intercepted import Intercepted
from .options import WithOptions
from .streams import Request

__all__ = ["ClientBase", "Reply", "hand_out", "outcome", "warn_unclosed"]

Api = TypeVar("Api")


class Reply(NamedTuple):
    """The result of a call, with the metadata of the answer."""

    value: Any
    metadata: Mapping[str, str]


def warn_unclosed(client: Any) -> None:
    """Warn that a client was collected without being closed; must not raise."""
    # Not with the client as the warning's source, which would resurrect it.
    warnings.warn(f"unclosed {client!r}", ResourceWarning, stacklevel=3)


_TAKEN: Any = object()


def outcome(waiter: Any) -> CallCompleted:
    """Take the last event of a call from its waiter; raise the error of a failed call."""
    event: CallCompleted | CallFailed = waiter.event
    if event is _TAKEN:
        raise LocalProtocolError("the result of this call was already taken")
    event.call.waiter = None  # or call, waiter and result would keep each other alive
    if type(event) is CallCompleted:
        return event
    waiter.event = _TAKEN  # or error, traceback, frame and waiter would keep each other alive
    try:
        raise event.error  # type: ignore[union-attr]
    finally:
        del event


def hand_out(events: list[Event], otherwise: Callable[[Event], None]) -> list[Any]:
    """Give each waiter the last event of its call, and return the waiters.

    `otherwise` gets all other events.
    """
    waiters: list[Any] = []
    for event in events:
        kind = type(event)
        if kind is CallCompleted or kind is CallFailed:
            call = event.call  # type: ignore[attr-defined]
            waiter = call.waiter
            call.waiter = None  # or call, waiter and result would keep each other alive
            waiter.event = event
            waiters.append(waiter)
        else:
            otherwise(event)
    return waiters


class ClientBase(ABC):
    """A connection to one server."""

    connection: ClientConnection  # read-only: its state, what was agreed, its counters
    call_timeout: float
    address: str
    _owner: Owner
    _intercepted: Intercepted | None = None
    is_owned = False  # by a balanced client, which warns for all

    def __del__(self) -> None:
        # Absent if `__init__` did not run; in a child process, the parent has to close it.
        owner = getattr(self, "_owner", None)
        if owner is not None and owner.lives_here and self._is_open():
            try:
                if not self.is_owned:
                    warn_unclosed(self)
            finally:
                self.let_go()

    @abstractmethod
    def _is_open(self) -> bool:
        """Whether there is still something to close."""

    @abstractmethod
    def let_go(self) -> None:
        """Close the connection at once, without waiting; from any thread."""

    def __repr__(self) -> str:
        name = type(self).__module__.partition(".")[0]
        in_flight = self.calls_in_flight
        return (
            f"<{name}.Client of {self.address}, {self.connection.state.value}, "
            f"{in_flight} call{'s' if in_flight != 1 else ''} in flight>"
        )

    @property
    def closed(self) -> bool:
        """Whether the connection accepts no more calls."""
        return self.connection.state is not State.OPEN

    @property
    def calls_in_flight(self) -> int:
        """Number of calls that have not ended."""
        return self.connection.calls_in_flight

    @overload
    def service(
        self,
        service: str,
        *,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> Any: ...
    @overload
    def service(
        self,
        service: Callable[..., Api],
        *,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> Api: ...
    def service(
        self,
        service: Any,
        *,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> Any:
        """Return a proxy: `client.service("Arith").add(1, 2)`, with `await` in asyncio.

        Pass a class that declares the methods instead of a name to get a typed proxy: results are
        decoded to its annotations. `timeout`, in seconds, and `metadata` apply to each call through
        the proxy, where all keywords are arguments of the method. A method that a class declares
        as a stream returns what `stream` does; one that takes items accepts any iterable.
        """

        options = {"timeout": timeout, "metadata": metadata}

        def invoke(
            kind: str, method: str, args: tuple[Any, ...], kwargs: dict[str, Any], returns: Any
        ) -> Any:
            return self.perform(kind, method, args, kwargs, {**options, "returns": returns})

        return service_proxy(invoke, service)

    def with_options(
        self,
        *,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
        returns: Any = None,
    ) -> WithOptions:
        """Return a view of this client whose calls all have these options.

        In `client.with_options(timeout=1.0).call("Store.put", key, timeout=60)`, 1.0 is the timeout
        of the call, in seconds, and 60 an argument of the method.
        """
        return WithOptions(self, {"timeout": timeout, "metadata": metadata, "returns": returns})

    @abstractmethod
    def perform(
        self,
        kind: str,
        method: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        options: Mapping[str, Any],
    ) -> Any:
        """Do what `call`, `request`, `notify`, `start` or `stream` does, with any keywords.

        `options` are those that `with_options` takes.
        """

    def _let_through(self, intercepted: Intercepted) -> None:
        """Send all calls through interceptors; without any, these methods stay as they are."""
        self._intercepted = intercepted
        for kind in ("call", "request", "notify", "start"):
            setattr(self, kind, partial(self._through, kind))

    def _with_items(
        self,
        method: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        options: Mapping[str, Any],
    ) -> Request | None:
        """Return what a call begins with if one of its arguments is an iterator."""
        return Request.with_items(method, args, kwargs, options, self.call_timeout)

    def _begin_through(self, request: Request, begin: "Callable[[Request], Any]") -> Any:
        """Send the beginning of a stream through the interceptors, and then call `begin`."""
        intercepted = self._intercepted
        assert intercepted is not None
        given = (request.method, request.args, request.kwargs, request.returns)
        what = intercepted.invocation(*given, request.timeout, request.metadata)

        def begin_now(what: Any) -> Any:
            method, args, kwargs, returns, timeout, metadata, _ = Intercepted.start(what)
            changed = Request(
                *(method, args, kwargs, returns, timeout, metadata),
                *(request.idle_timeout, request.source),
            )
            return begin(changed)

        what.begin = begin_now
        return intercepted.proceed(what)

    def _through(
        self,
        kind: str,
        method: str,
        /,
        *args: Any,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
        returns: Any = None,
        **kwargs: Any,
    ) -> Any:
        options = {"timeout": timeout, "metadata": metadata, "returns": returns}
        return self.perform(kind, method, args, kwargs, options)

    def _start(
        self,
        now: float,
        waiter: Any,
        method: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        returns: Any = None,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
        one_way: bool = False,
    ) -> OutboundCall:
        deadline, metadata = inherit(timeout, self.call_timeout, now, metadata)
        return self.connection.start_call(
            now,
            method,
            args,
            kwargs,
            deadline=deadline,
            metadata=metadata,
            returns=returns,
            one_way=one_way,
            waiter=waiter,
        )

    def _start_stream(
        self, waiter: Any, request: Request, sends: bool, takes: bool
    ) -> OutboundCall:
        now = monotonic()
        deadline, metadata = inherit(request.timeout, math.inf, now, request.metadata)
        return self.connection.start_call(
            now,
            request.method,
            request.args,
            request.kwargs,
            deadline=deadline,
            metadata=metadata,
            returns=request.returns,
            waiter=waiter,
            client_stream=sends,
            server_stream=takes,
            idle_timeout=request.idle_timeout,
        )
