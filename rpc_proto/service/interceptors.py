"""Interceptors: functions around each call, at the server or at the client (docs/guide.md).

An interceptor gets the call and `proceed`, which continues with it; its return value is the result
of the call. It may observe, change the call (`proceed(call.replace(...))`), answer by itself, raise
a CallError, retry, or map one error to another. Interceptors are coroutine functions in rpc_asyncio
and plain functions in the other backends. The first of several is the outermost.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from rpc_proto.config import Peer
from rpc_proto.errors import LocalProtocolError

from .context import ambient_call
from .methods import Method

__all__ = [
    "Interceptor",
    "Invocation",
    "check_awaited",
    "check_interceptors",
    "intercepting",
    "layers",
]

Proceed = Callable[["Invocation"], Any]
Interceptor = Callable[["Invocation", Proceed], Any]


class Invocation:
    """A call as an interceptor sees it.

    `method` is "Service.method"; `args` and `kwargs` are its arguments, at a server already decoded
    to the method's types. `metadata` maps strings to strings. `deadline` is when the caller stops
    waiting, in seconds of `time.monotonic()`, or None; only a client's interceptor may change it.
    `peer` is the other end: at a server the caller, at a client the server's address. `one_way` is
    whether the call has no answer; `returns`, at a client, is the requested type of the result.
    Of a call with a stream, `args` or `kwargs` has the iterator of the caller's items at a server,
    and `proceed` returns the iterator of the method's; at a client it returns the stream itself, as
    soon as that has begun.
    `reply_metadata` is the metadata of the answer: it is complete once `proceed` has returned, and
    a server's interceptor may add to it.
    """

    __slots__ = (
        "args",
        "begin",
        "deadline",
        "kwargs",
        "metadata",
        "method",
        "one_way",
        "peer",
        "reply_metadata",
        "returns",
    )

    def __init__(
        self,
        method: str,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        metadata: Mapping[str, str],
        deadline: float | None,
        peer: Peer,
        one_way: bool,
        returns: Any = None,
    ) -> None:
        self.method = method
        self.args = args
        self.kwargs = kwargs
        self.metadata = metadata
        self.deadline = deadline
        self.peer = peer
        self.one_way = one_way
        self.returns = returns
        self.reply_metadata: dict[str, str] = {}
        self.begin: Callable[[Invocation], Any] | None = None  # at a client, for a stream

    def __repr__(self) -> str:
        return f"<Invocation of {self.method}>"

    def replace(self, **changes: Any) -> "Invocation":
        """Return a copy with other `args`, `kwargs`, `metadata` or `deadline`.

        LocalProtocolError for anything else: an interceptor cannot change the method or the caller.
        """
        for name in changes:
            if name not in ("args", "kwargs", "metadata", "deadline"):
                raise LocalProtocolError(f"an interceptor cannot change {name!r} of a call")
        changed = Invocation(
            self.method,
            tuple(changes.get("args", self.args)),
            changes.get("kwargs", self.kwargs),
            changes.get("metadata", self.metadata),
            changes.get("deadline", self.deadline),
            self.peer,
            self.one_way,
            self.returns,
        )
        changed.reply_metadata = self.reply_metadata
        changed.begin = self.begin
        return changed


def check_interceptors(
    interceptors: Iterable[Interceptor], *, coroutines: bool
) -> tuple[Interceptor, ...]:
    """Return them as a tuple; TypeError if one is not the kind of function the backend needs."""
    checked = tuple(interceptors)
    for interceptor in checked:
        if not callable(interceptor):
            raise TypeError(f"an interceptor must be a function, not {interceptor!r}")
        function = interceptor if inspect.isroutine(interceptor) else type(interceptor).__call__
        if inspect.iscoroutinefunction(function) is not coroutines:
            kind = "a coroutine function (async def)" if coroutines else "a plain function (def)"
            raise TypeError(f"an interceptor must be {kind} in this backend: {interceptor!r}")
    return checked


def layers(interceptors: Iterable[Interceptor], innermost: Proceed) -> Proceed:
    """Return a function that goes through all interceptors, in order, and then to `innermost`."""
    proceed = innermost
    for interceptor in reversed(tuple(interceptors)):
        proceed = _layer(interceptor, proceed)
    return proceed


def check_awaited(result: Any) -> Any:
    """Return the result; TypeError if an interceptor forgot to await it."""
    if hasattr(result, "__await__"):
        if hasattr(result, "close"):
            result.close()
        raise TypeError("an interceptor returned an awaitable: use 'await proceed(call)' in it")
    return result


def _layer(interceptor: Interceptor, proceed: Proceed) -> Proceed:
    return lambda call: interceptor(call, proceed)


# At a server


def intercepting(
    method: Method, interceptors: tuple[Interceptor, ...], beside: Callable[..., Any] | None = None
) -> Callable[..., Any]:
    """Return what to run in place of a method's function.

    In a backend whose interceptors are coroutines, `await beside(function, *args, **kwargs)` runs a
    blocking function.
    """
    function = method.function
    waits_in_place = not method.is_async and not method.is_quick

    def innermost(call: Invocation) -> Any:
        _take_over(call)
        return function(*call.args, **call.kwargs)

    async def innermost_async(call: Invocation) -> Any:
        _take_over(call)
        assert beside is not None
        if waits_in_place:
            result = await beside(function, *call.args, **call.kwargs)
        else:
            result = function(*call.args, **call.kwargs)
            if is_async and hasattr(result, "__await__"):  # else what gives the items of a stream
                result = await result
        return result

    is_async = method.is_async
    if beside is None:
        around = layers(interceptors, innermost)

        def run(*args: Any, **kwargs: Any) -> Any:
            call = _invocation(args, kwargs)
            try:
                return around(call)
            finally:
                _reply(call)

        return run

    around_async = layers(interceptors, innermost_async)

    async def run_async(*args: Any, **kwargs: Any) -> Any:
        call = _invocation(args, kwargs)
        try:
            return check_awaited(await around_async(call))
        finally:
            _reply(call)

    method.is_async = True
    return run_async


def _invocation(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Invocation:
    job = ambient_call.get()
    assert job is not None
    call = job.call
    return Invocation(
        *(call.method, args, kwargs, call.metadata, call.deadline, call.connection.peer),
        call.one_way,
    )


def _take_over(call: Invocation) -> None:
    """Pass the interceptors' changes on to the handler."""
    job = ambient_call.get()
    assert job is not None
    if call.deadline != job.call.deadline:
        raise LocalProtocolError("a server's interceptor cannot change the deadline of a call")
    if call.metadata is not job.call.metadata:
        job.call.metadata = call.metadata


def _reply(call: Invocation) -> None:
    """Send the metadata of the handler and the interceptors with the answer."""
    job = ambient_call.get()
    assert job is not None
    if call.reply_metadata:
        job.call.reply_metadata = {**job.call.reply_metadata, **call.reply_metadata}
