"""What a server does with calls, whatever runs it: find the method, admit, answer, count.

The driver supplies the running: it gets an `Invocation` and reports how its handler ended.
"""

from collections import OrderedDict
from collections.abc import Callable
from contextvars import copy_context
from typing import Any

from .calls import ServerCall
from .context import CallContext, ambient_call
from .errors import CallError, ResourceExhausted, Unimplemented, Unknown
from .server import ServerConnection
from .services import Method, reflect

__all__ = ["Dispatcher", "Invocation"]


class Invocation(CallContext):
    """One call on its way through a handler, and what the handler can know of it.

    The driver runs `target.function(*args, **kwargs)`, in a context in which `ambient_call` is the
    invocation. `owner` is what it keeps for the connection; `handle` is for what it runs the
    handler with: a task, a greenlet, a future.
    """

    __slots__ = ("args", "connection", "handle", "kwargs", "owner", "target")

    def __init__(
        self,
        connection: ServerConnection,
        call: ServerCall,
        clock: Callable[[], float],
        target: Method,
        arguments: tuple[tuple[Any, ...], dict[str, Any]],
        owner: Any,
    ) -> None:
        # What super().__init__ does; calling it would cost each call as much as all of this.
        self.call = call
        self.peer = connection.peer
        self.error = None
        self._clock = clock
        self._on_cancel = None
        self.connection = connection
        self.owner = owner
        self.target = target
        self.args, self.kwargs = arguments
        self.handle: Any = None

    def invoke(self) -> Any:
        """Call the handler, in a context of its own: `copy_context().run(invocation.invoke)`."""
        ambient_call.set(self)
        return self.target.function(*self.args, **self.kwargs)


class Dispatcher:
    """The services of one server and the calls that run on it, over all its connections.

    At most `max_concurrency` handlers run at a time; at most `max_queued` calls wait for one. A
    call leaves the queue unserved when its deadline passes or its caller gives up. The counters
    are for people to read: `served`, `failed`, `refused`, `cancelled`.
    """

    def __init__(
        self,
        *,
        clock: Callable[[], float],
        max_concurrency: int = 1000,
        max_queued: int = 10_000,
        debug: bool = False,
    ) -> None:
        for name, value in (("max_concurrency", max_concurrency), ("max_queued", max_queued)):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} must be a whole number, 1 or more, not {value!r}")
        self.methods: dict[str, Method] = {}
        self.running = 0
        self.served = 0
        self.failed = 0
        self.refused = 0
        self.cancelled = 0
        self._max_concurrency = max_concurrency
        self._max_queued = max_queued
        self.queue: OrderedDict[ServerCall, Invocation] = OrderedDict()  # waiting for an end
        self._clock = clock
        self._debug = debug

    # Services

    def register(self, service: Any, name: str | None = None) -> str:
        """Add the methods of an object under a name and return that; ValueError if it is taken."""
        methods = reflect(service, name)
        name = next(iter(methods)).rpartition(".")[0]
        if any(known.rpartition(".")[0] == name for known in self.methods):
            raise ValueError(f"a service named {name!r} is registered already")
        # A new table each time, so that whoever reads the old one meanwhile is not disturbed.
        self.methods = {**self.methods, **methods}
        return name

    def unregister(self, name: str) -> None:
        """Take a service away; its running calls go on. ValueError if there is none."""
        kept = {
            known: method
            for known, method in self.methods.items()
            if known.rpartition(".")[0] != name
        }
        if len(kept) == len(self.methods):
            raise ValueError(f"no service named {name!r} is registered")
        self.methods = kept

    # Calls

    def begin(
        self, connection: ServerConnection, call: ServerCall, owner: Any
    ) -> Invocation | None:
        """Take a call that arrived; return it ready to run, or None: refused, or in the queue."""
        if call.ended:  # cancelled, or the connection ended, by the same bytes that brought it
            connection.conclude(call, self._clock())
            return None
        method = self.methods.get(call.method)
        if method is None:
            self.refused += 1
            error = Unimplemented(f"no method {call.method!r:.100} is registered here")
            connection.refuse(call, error, self._clock())
            return None
        try:
            arguments = method.decode(connection.codec, call.flags, call.body)
        except CallError as wrong:
            self.refused += 1
            connection.refuse(call, wrong, self._clock())
            return None
        call.body = b""
        invocation = Invocation(connection, call, self._clock, method, arguments, owner)
        call.handler = invocation
        if self.running < self._max_concurrency and not self.queue:
            self.running += 1
            return invocation
        if len(self.queue) >= self._max_queued:
            self.refused += 1
            call.handler = None
            connection.send_error(
                call,
                ResourceExhausted(
                    f"{self.running} handlers run and {len(self.queue)} calls wait",
                    maybe_executed=False,
                ),
                self._clock(),
            )
            return None
        self.queue[call] = invocation
        return None

    def handle(self, connection: ServerConnection, call: ServerCall) -> None:
        """Find, run and answer a call here and now, by a `def` handler: enough for a small loop."""
        invocation = self.begin(connection, call, None)
        if invocation is not None:
            try:
                result = copy_context().run(invocation.invoke)
            except Exception as error:
                self.fail(invocation, error)
            else:
                self.succeed(invocation, result)

    def cancel(self, call: ServerCall, error: CallError) -> Invocation | None:
        """Take note of a `CallCancelled`; return the invocation whose handler is to be stopped."""
        self.cancelled += 1
        invocation: Invocation | None = call.handler
        if invocation is None:
            return None
        invocation.cancel(error)
        if self.queue.pop(call, None) is not None:
            call.handler = None
            invocation.connection.conclude(call, self._clock())
            return None
        return invocation

    def succeed(self, invocation: Invocation, result: Any) -> None:
        """Answer with the result of a handler that has ended."""
        self.running -= 1
        self.served += 1
        call = invocation.call
        call.handler = None  # or the two would keep each other, and the arguments, alive
        invocation.connection.send_response(call, result, self._clock())

    def fail(self, invocation: Invocation, error: BaseException) -> None:
        """Answer with what a handler raised; it has ended."""
        self.running -= 1
        self.failed += 1
        call = invocation.call
        call.handler = None
        invocation.connection.send_error(call, self._to_call_error(error), self._clock())

    def is_unexpected(self, error: BaseException) -> bool:
        """Whether a handler's exception is one that the operator should hear of."""
        return isinstance(error, Exception) and not isinstance(error, CallError)

    def next_queued(self) -> Invocation | None:
        """Return the next call that may run now, if one waits; call it after an end."""
        if not self.queue or self.running >= self._max_concurrency:
            return None
        _, invocation = self.queue.popitem(last=False)
        self.running += 1
        return invocation

    def _to_call_error(self, error: BaseException) -> CallError:
        try:
            if isinstance(error, CallError):
                # The handler did run, whatever a call that it made itself says of its own.
                return CallError.of(error.code, str(error.message), error.details)
            text = f"{type(error).__name__}: {error}"
        except Exception:  # an exception may be broken too: no text, no code
            text = type(error).__name__
        if not self._debug:
            return Unknown(text)
        import traceback

        return Unknown(text, "".join(traceback.format_exception(error)))
