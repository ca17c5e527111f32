"""What a server does with calls, whatever runs it: find the method, admit, answer, count.

The driver supplies the running: it gets a call that is ready and reports how its handler ended.
"""

from collections import OrderedDict
from collections.abc import Callable
from contextvars import copy_context
from typing import Any

from .context import ServerCall
from .errors import CallError, ResourceExhausted, Unimplemented, Unknown
from .server import ServerConnection
from .services import Method, reflect

__all__ = ["Dispatcher"]


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
        self.queue: OrderedDict[ServerCall, None] = OrderedDict()  # waiting for an end
        self._clock = clock
        self._debug = debug

    # Services

    def register(
        self,
        service: Any,
        name: str | None = None,
        wrap: Callable[[Method], Callable[..., Any]] | None = None,
    ) -> str:
        """Add the methods of an object under a name and return that; ValueError if it is taken.

        `wrap(method)` returns what runs in place of its function, in all else just like that.
        """
        methods = reflect(service, name)
        name = next(iter(methods)).rpartition(".")[0]
        if any(known.rpartition(".")[0] == name for known in self.methods):
            raise ValueError(f"a service named {name!r} is registered already")
        if wrap is not None:
            for method in methods.values():
                method.function = wrap(method)
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

    def begin(self, connection: ServerConnection, call: ServerCall, owner: Any) -> bool:
        """Take a call that arrived; whether it is to run now: else it is refused, or queued.

        To run it, call `call.invoke` in a context of its own; or `call.target.function` with
        `call.args` and `call.kwargs`, where `ambient_call` is the call. `owner` is what the driver
        keeps for the connection.
        """
        if call.ended:  # cancelled, or the connection ended, by the same bytes that brought it
            connection.conclude(call, self._clock())
            return False
        method = self.methods.get(call.method)
        if method is None:
            self._count_refused()
            error = Unimplemented(f"no method {call.method!r:.100} is registered here")
            connection.refuse(call, error, self._clock())
            return False
        try:
            call.args, call.kwargs = method.decode(connection.codec, call.flags, call.body)
        except CallError as wrong:
            self._count_refused()
            connection.refuse(call, wrong, self._clock())
            return False
        call.body = b""
        call.target = method
        call.connection = connection
        call.owner = owner
        call.clock = self._clock
        may_run = self._enter(call)
        if may_run is not None:
            return may_run
        call.target = None
        connection.send_error(
            call,
            ResourceExhausted(
                f"{self.running} handlers run and {len(self.queue)} calls wait",
                maybe_executed=False,
            ),
            self._clock(),
        )
        return False

    def handle(self, connection: ServerConnection, call: ServerCall) -> None:
        """Find, run and answer a call here and now, by a `def` handler: enough for a small loop."""
        if self.begin(connection, call, None):
            try:
                result = copy_context().run(call.invoke)
            except Exception as error:
                self.fail(call, error)
            else:
                self.succeed(call, result)

    def cancel(self, call: ServerCall, error: CallError) -> bool:
        """Take note of a `CallCancelled`; whether a handler runs that is to be stopped."""
        self._count_cancelled()
        if call.target is None:  # it never began, or has ended
            return False
        call.cancel(error)
        if not self._withdraw(call):
            return True
        call.target = None
        call.connection.conclude(call, self._clock())
        return False

    def succeed(self, call: ServerCall, result: Any) -> None:
        """Answer with the result of a handler that has ended."""
        self._leave(served=True)
        call.target = None
        call.connection.send_response(call, result, self._clock())

    def fail(self, call: ServerCall, error: BaseException) -> None:
        """Answer with what a handler raised; it has ended."""
        self._leave(served=False)
        call.target = None
        call.connection.send_error(call, self._to_call_error(error), self._clock())

    def is_unexpected(self, error: BaseException) -> bool:
        """Whether a handler's exception is one that the operator should hear of."""
        return isinstance(error, Exception) and not isinstance(error, CallError)

    def next_queued(self) -> ServerCall | None:
        """Return the next call that may run now, if one waits; call it after an end."""
        if not self.queue or self.running >= self._max_concurrency:
            return None
        call, _ = self.queue.popitem(last=False)
        self.running += 1
        return call

    # Where calls of several connections meet: a driver with threads puts a lock around each of
    # these, and around `next_queued`.

    def _enter(self, call: ServerCall) -> bool | None:
        """Whether the handler may run now; False if it has to wait, None if there is no room."""
        if self.running < self._max_concurrency and not self.queue:
            self.running += 1
            return True
        if len(self.queue) < self._max_queued:
            self.queue[call] = None
            return False
        self.refused += 1
        return None

    def _withdraw(self, call: ServerCall) -> bool:
        """Take a call out of the queue; whether it was there."""
        if call not in self.queue:
            return False
        del self.queue[call]
        return True

    def _leave(self, served: bool) -> None:
        """Take note of the end of a handler."""
        self.running -= 1
        if served:
            self.served += 1
        else:
            self.failed += 1

    def _count_refused(self) -> None:
        self.refused += 1

    def _count_cancelled(self) -> None:
        self.cancelled += 1

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
