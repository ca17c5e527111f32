"""What the servers of the suite offer: `async def` for asyncio, `def` for the other two.

Handlers count what happens to them under keys that the test chooses, and wait at gates that the
test opens. Counting and opening are done from the host's control thread, so that a test can follow
a server without a call that could itself be delayed.
"""

import functools
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

from conformance.model import Typed
from rpc_proto import CallError, NotFound, current_call

# No handler waits longer, in seconds, whatever becomes of its test.
LONGEST = 30.0
# What a hop takes at least, in seconds, so that there is a difference to see.
PAUSE = 0.02


class Counters:
    """Counts by name; a thread can wait until a count is reached."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._changed = threading.Condition()

    def add(self, what: str, key: str) -> None:
        with self._changed:
            self._counts[f"{what}:{key}"] += 1
            self._changed.notify_all()

    def get(self, name: str) -> int:
        with self._changed:
            return self._counts[name]

    def wait(self, name: str, least: int, timeout: float) -> int:
        with self._changed:
            self._changed.wait_for(lambda: self._counts[name] >= least, timeout)
            return self._counts[name]


class Basic:
    """Handlers that do not wait."""

    def __init__(self, counters: Counters) -> None:
        self._counters = counters

    def echo(self, value: Any = None) -> Any:
        return value

    def count(self, key: str, value: Any = None) -> Any:
        self._counters.add("runs", key)
        return value

    def zeros(self, size: int, key: str = "") -> bytes:
        self._counters.add("runs", key)
        return bytes(size)

    def exchange(self) -> dict[str, str]:
        call = current_call()
        call.set_reply_metadata({name: text[::-1] for name, text in call.metadata.items()})
        return dict(call.metadata)

    def time_left(self) -> float | None:
        return current_call().time_left


class Own(BaseException):
    """One that no `except Exception` catches."""


class Failing:
    """Handlers that fail in every way."""

    def not_found(self, key: str) -> None:
        raise NotFound(f"no key {key!r}", {"key": key})

    def own_code(self) -> None:
        raise CallError("teapot", "short and stout")

    def bug(self) -> None:
        raise ZeroDivisionError("a bug")

    def beyond(self, name: str) -> None:
        raise {"GeneratorExit": GeneratorExit, "Own": Own}[name](name)

    def unencodable(self) -> object:
        return object()


PLAIN: list[Callable[[Counters], Any]] = [Basic, lambda _: Failing(), lambda _: Typed()]


class PlainHop:
    """Passes calls on to the addresses given, one after the other, where `await` is not needed."""

    def __init__(self, client: Any, gate: Any, sleep: Callable[[float], None]) -> None:
        self._client = client
        self._gate = gate
        self._sleep = sleep

    def times(self, onward: list[str]) -> list[float | None]:
        self._sleep(PAUSE)
        times = [current_call().time_left]
        if onward:
            with self._client.connect(onward[0]) as client:
                times += client.call("Hop.times", onward[1:])
        return times

    def metadata(self, onward: list[str]) -> list[dict[str, str]]:
        found = [dict(current_call().metadata)]
        if onward:
            with self._client.connect(onward[0]) as client:
                found += client.call("Hop.metadata", onward[1:])
        return found

    def wait(self, onward: list[str], key: str) -> Any:
        if not onward:
            return self._gate.wait(key)
        with self._client.connect(onward[0]) as client:
            return client.call("Hop.wait", onward[1:], key, timeout=LONGEST)


PlainHop.__name__ = "Hop"


def _coroutine(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    async def run(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return run


def with_coroutines(service: Any) -> Any:
    """Give a service whose methods are the same as `async def`."""
    kind = type(service)
    methods = {
        name: _coroutine(function)
        for name, function in vars(kind).items()
        if not name.startswith("_")
    }
    twin = object.__new__(type(kind.__name__, (kind,), methods))
    twin.__dict__.update(service.__dict__)
    return twin
