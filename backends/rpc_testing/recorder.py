"""Which calls were made: an interceptor of servers that writes them down."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from rpc_proto import Invocation

__all__ = ["Recorded", "Recorder"]


class Recorded:
    """A call that reached its handler.

    `method` is "Service.method". `result` or `error` is how the handler has ended, after `seconds`;
    while it runs, all three are None.
    """

    __slots__ = ("args", "began", "error", "kwargs", "metadata", "method", "result", "seconds")

    def __init__(self, call: Invocation, began: float) -> None:
        self.method = call.method
        self.args = call.args
        self.kwargs: Mapping[str, Any] = call.kwargs
        self.metadata = call.metadata
        self.began = began
        self.result: Any = None
        self.error: BaseException | None = None
        self.seconds: float | None = None

    def __repr__(self) -> str:
        given = [repr(value) for value in self.args]
        given += [f"{name}={value!r}" for name, value in self.kwargs.items()]
        return f"{self.method}({', '.join(given)})"


class Recorder:
    """Writes down each call that reaches a handler."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.calls: list[Recorded] = []
        self._clock = clock

    def _begin(self, call: Invocation) -> Recorded:
        recorded = Recorded(call, self._clock())
        self.calls.append(recorded)
        return recorded

    def _end(
        self, recorded: Recorded, result: Any = None, error: BaseException | None = None
    ) -> None:
        recorded.result = result
        recorded.error = error
        recorded.seconds = self._clock() - recorded.began

    async def record_async(
        self, call: Invocation, proceed: Callable[[Invocation], Awaitable[Any]]
    ) -> Any:
        """Record a call; an interceptor for rpc_asyncio."""
        recorded = self._begin(call)
        try:
            result = await proceed(call)
        except BaseException as error:
            self._end(recorded, error=error)
            raise
        self._end(recorded, result)
        return result

    def record(self, call: Invocation, proceed: Callable[[Invocation], Any]) -> Any:
        """Record a call; an interceptor for rpc_gevent and rpc_blocking."""
        recorded = self._begin(call)
        try:
            result = proceed(call)
        except BaseException as error:
            self._end(recorded, error=error)
            raise
        self._end(recorded, result)
        return result
