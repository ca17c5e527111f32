"""One face for the clients of all runtimes, so that a test is written once, as plain code.

Each runtime lives in a thread of its own where it needs one: an event loop, a hub. A test hands it
functions; `do` waits for the outcome, never longer than LIMIT.
"""

import abc
import asyncio
import importlib
import inspect
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, Self

import pytest

from conformance.backends import package
from conformance.hosts import LIMIT
from rpc_proto import Cancelled

# What a caller sees whose waiting was given up; the runtimes have different words for it.
GAVE_UP = "gave up"

Args = tuple[Any, ...]
Named = dict[str, Any]


class Pending:
    """A call under way."""

    def __init__(self, future: "Future[Any]", give_up: Callable[[], Any]) -> None:
        self._future = future
        self._give_up = give_up

    def outcome(self) -> Any:
        """Wait for the result, GAVE_UP or the error; return it."""
        return outcome_of(self._future)

    @property
    def done(self) -> bool:
        return self._future.done()

    def cancel(self) -> None:
        """Give the call up, as users of the runtime do."""
        self._give_up()


def outcome_of(future: "Future[Any]") -> Any:
    """Wait for a future; return its result or its error."""
    try:
        error = future.exception(LIMIT)
    except TimeoutError:
        raise AssertionError(f"no outcome within {LIMIT:g} s") from None
    return future.result() if error is None else error


class Runtime(abc.ABC):
    """Runs the clients of one backend."""

    name: str

    def __init__(self) -> None:
        self.module = importlib.import_module(package(self.name))
        self.kind = self.module.Client

    @abc.abstractmethod
    def spawn(self, function: Callable[[], Any]) -> "Future[Any]":
        """Run a function where the runtime's clients can be used; await what it returns."""

    @abc.abstractmethod
    def start(self, client: Any, method: str, args: Args, named: Named) -> Pending:
        """Begin a call that can be given up; calls begin in the order of these."""

    @abc.abstractmethod
    def close(self) -> None:
        """End the runtime."""

    def do(self, function: Callable[[], Any]) -> Any:
        """Run a function; return its result or raise its error."""
        outcome = outcome_of(self.spawn(function))
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    def connect(self, address: str, **options: Any) -> "Client":
        kind = self.kind
        return Client(self, self.do(lambda: kind.connect(address, **options)))

    def balance(self, *args: Any, **options: Any) -> "Client":
        kind = self.module.BalancedClient
        return Client(self, self.do(lambda: kind(*args, **options)))


class Client:
    """A client of any backend, for use from the test's thread."""

    def __init__(self, runtime: Runtime, real: Any) -> None:
        self._runtime = runtime
        self._real = real

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def do(self, function: Callable[[Any], Any]) -> Any:
        """Run a function of the real client inside its runtime."""
        return self._runtime.do(lambda: function(self._real))

    def spawn(self, function: Callable[[Any], Any]) -> "Future[Any]":
        """Begin a function of the real client inside its runtime."""
        return self._runtime.spawn(lambda: function(self._real))

    def call(self, method: str, *args: Any, **named: Any) -> Any:
        return self.do(lambda real: real.call(method, *args, **named))

    def request(self, method: str, *args: Any, **named: Any) -> Any:
        self._need("request")
        return self.do(lambda real: real.request(method, *args, **named))

    def notify(self, method: str, *args: Any, **named: Any) -> None:
        self._need("notify")
        self.do(lambda real: real.notify(method, *args, **named))

    def start(self, method: str, *args: Any, **named: Any) -> Pending:
        return self._runtime.start(self._real, method, args, named)

    def at_once(self, calls: Sequence[tuple[Any, ...]]) -> "list[Future[Any]]":
        """Begin many calls, each as a task, a greenlet or a thread of its own."""
        real = self._real

        def begin(method: str, *args: Any) -> "Future[Any]":
            return self._runtime.spawn(lambda: real.call(method, *args))

        return [begin(*call) for call in calls]

    def _need(self, name: str) -> None:
        if not hasattr(self._real, name):  # the client of a guest may have less
            pytest.skip(f"the client has no {name}()")

    def stream(self, method: str, *args: Any, **named: Any) -> "Streaming":
        self._need("stream")
        # In a list, because a stream can be awaited, which would begin it.
        made = self.do(lambda real: [real.stream(method, *args, **named)])
        return Streaming(self._runtime, *made)

    def close(self, grace: float = 0.0) -> None:
        self.do(lambda real: real.close(grace))

    @property
    def closed(self) -> bool:
        return self._real.closed

    @property
    def calls_in_flight(self) -> int:
        return self._real.calls_in_flight


END = object()  # in place of an item that will not come


class Streaming:
    """A stream of any backend, for use from the test's thread."""

    def __init__(self, runtime: Runtime, real: Any) -> None:
        self._runtime = runtime
        self.real = real

    def __enter__(self) -> Self:
        self._do("__aenter__" if self._awaits else "__enter__")
        return self

    def __exit__(self, *_: object) -> None:
        self._do("close")

    @property
    def _awaits(self) -> bool:
        return hasattr(self.real, "__aiter__")

    def _do(self, name: str, *args: Any) -> Any:
        return self._runtime.do(lambda: getattr(self.real, name)(*args))

    def take(self) -> Any:
        """Take an item; END if there are no more."""
        ahead: Any = anext if self._awaits else next
        return self._runtime.do(lambda: ahead(self.real, END))

    def rest(self) -> list[Any]:
        """Take all that follow."""

        def take_all() -> list[Any]:
            return list(self.real)

        async def take_all_later() -> list[Any]:
            return [item async for item in self.real]

        return list(self._runtime.do(take_all_later if self._awaits else take_all))

    def send(self, value: Any) -> None:
        self._do("send", value)

    def begin_send(self, value: Any) -> "Future[Any]":
        return self._runtime.spawn(lambda: self.real.send(value))

    def end(self) -> None:
        self._do("end")

    def result(self) -> Any:
        return self._do("result")

    def close(self) -> None:
        self._do("close")

    def drop(self) -> None:
        """Let the garbage collector have it, as leaving a loop does."""
        self.real = None


def until(condition: Callable[[], Any]) -> None:
    """Wait for what no event tells."""
    end = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < end, f"not within {LIMIT:g} s"
        time.sleep(0.005)


class AsyncioRuntime(Runtime):
    """Clients on an event loop in a thread."""

    name = "asyncio"
    make_loop: Callable[[], asyncio.AbstractEventLoop] = asyncio.SelectorEventLoop

    def __init__(self) -> None:
        super().__init__()
        self._loop = self.make_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="loop", daemon=True)
        self._thread.start()

    def spawn(self, function: Callable[[], Any]) -> "Future[Any]":
        async def run() -> Any:
            result = function()
            return await result if inspect.isawaitable(result) else result

        return asyncio.run_coroutine_threadsafe(run(), self._loop)

    def start(self, client: Any, method: str, args: Args, named: Named) -> Pending:
        task: asyncio.Task[Any]

        async def run() -> Any:
            nonlocal task
            task = asyncio.create_task(client.call(method, *args, **named))
            try:
                return await task
            except asyncio.CancelledError:
                return GAVE_UP

        future = asyncio.run_coroutine_threadsafe(run(), self._loop)
        return Pending(future, lambda: self._loop.call_soon_threadsafe(lambda: task.cancel()))

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(LIMIT)
        self._loop.close()


class BlockingRuntime(Runtime):
    """Clients in whatever thread uses them."""

    name = "blocking"

    def spawn(self, function: Callable[[], Any]) -> "Future[Any]":
        future: Future[Any] = Future()

        def run() -> None:
            try:
                result = function()
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(result)

        threading.Thread(target=run, name="caller", daemon=True).start()
        return future

    def start(self, client: Any, method: str, args: Args, named: Named) -> Pending:
        if not hasattr(client, "call_many"):  # nobody can give a thread up that waits for itself
            return Pending(self.spawn(lambda: client.call(method, *args, **named)), lambda: None)
        pending = client.start(method, *args, **named)
        given_up = threading.Event()

        def wait() -> Any:
            try:
                return pending.result()
            except Cancelled:
                if given_up.is_set():
                    return GAVE_UP
                raise

        def give_up() -> None:
            given_up.set()
            pending.cancel()

        return Pending(self.spawn(wait), give_up)

    def close(self) -> None:
        pass


class GeventRuntime(Runtime):
    """Clients in the hub of a thread; jobs come in through a queue that wakes it."""

    name = "gevent"

    def __init__(self) -> None:
        super().__init__()
        self._jobs: queue.SimpleQueue[Callable[[], Any]] = queue.SimpleQueue()
        ready: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, args=(ready,), name="hub", daemon=True)
        self._thread.start()
        ready.result(LIMIT)

    def _run(self, ready: "Future[None]") -> None:
        import gevent
        from gevent.event import Event

        hub = gevent.get_hub()
        self._end = Event()
        self._waker = hub.loop.async_()
        self._waker.start(self._take_jobs)
        ready.set_result(None)
        self._end.wait()
        self._waker.stop()
        self._waker.close()
        hub.destroy(destroy_loop=True)

    def _take_jobs(self) -> None:
        while not self._jobs.empty():
            self._jobs.get()()

    def _post(self, job: Callable[[], Any]) -> None:
        self._jobs.put(job)
        self._waker.send()

    def spawn(self, function: Callable[[], Any]) -> "Future[Any]":
        return self._greenlet(function)[0]

    def _greenlet(self, function: Callable[[], Any]) -> "tuple[Future[Any], list[Any]]":
        import gevent

        future: Future[Any] = Future()
        greenlets: list[Any] = []

        def run() -> Any:
            try:
                return None, function()
            except Exception as error:
                return error, None

        def begin() -> None:
            greenlet = gevent.spawn(run)
            greenlet.link(finish)  # also called if it is killed before it began
            greenlets.append(greenlet)

        def finish(greenlet: Any) -> None:
            if isinstance(greenlet.value, gevent.GreenletExit):
                future.set_result(GAVE_UP)
                return
            error, value = greenlet.value
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(value)

        self._post(begin)
        return future, greenlets

    def start(self, client: Any, method: str, args: Args, named: Named) -> Pending:
        future, greenlets = self._greenlet(lambda: client.call(method, *args, **named))
        return Pending(future, lambda: self._post(lambda: greenlets[0].kill(block=False)))

    def close(self) -> None:
        self._post(self._end.set)
        self._thread.join(LIMIT)


RUNTIMES: dict[str, type[Runtime]] = {
    kind.name: kind for kind in (AsyncioRuntime, GeventRuntime, BlockingRuntime)
}
