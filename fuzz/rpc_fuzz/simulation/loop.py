"""An event loop for many machines: each can stand still, crash, and have a clock of its own.

Which machine a callback belongs to is in its context. What a crashed machine still had to do is
never done; its connections are gone, and its objects stay as they were.
"""

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from contextvars import Context, ContextVar, copy_context
from typing import Any

from rpc_testing.in_asyncio import VirtualLoop
from rpc_testing.network import HOST

__all__ = ["MACHINE", "Machine", "SimulatedLoop", "bare_context"]


class Machine:
    """One life of a machine, from its start to its crash."""

    def __init__(self, loop: "SimulatedLoop", name: str, drift: float = 1.0) -> None:
        self.loop = loop
        self.name = name
        self.drift = drift  # seconds of its clock in a second
        self.paused = False
        self.crashed = False
        self.stood = 0.0  # seconds in which it was paused
        self._paused_at = 0.0
        self._born = loop.now
        self._parked: list[Callable[[], None]] = []
        self.tasks: dict[asyncio.Task[Any], None] = {}

    def __repr__(self) -> str:
        return f"<machine {self.name}>"

    def time(self) -> float:
        """Return what its clock shows, in seconds."""
        return self._born + (self.loop.now - self._born) * self.drift

    def outer(self, when: float) -> float:
        """Return the time of the world at which its clock shows that."""
        return self._born + (when - self._born) / self.drift

    @contextmanager
    def here(self) -> Iterator[None]:
        """Be this machine."""
        machine, host = MACHINE.set(self), HOST.set(self.name)
        try:
            yield
        finally:
            HOST.reset(host)
            MACHINE.reset(machine)

    def spawn(self, coroutine: Coroutine[Any, Any, Any]) -> "asyncio.Task[Any]":
        """Run a coroutine there."""
        with self.here():
            task: asyncio.Task[Any] = self.loop.create_task(coroutine)
            return task

    def pause(self) -> None:
        """Stand still, like a stopped process: bytes arrive, and nobody reads them."""
        if not self.paused:
            self.paused = True
            self._paused_at = self.loop.now

    def resume(self) -> None:
        """Go on, with all that was to be done meanwhile."""
        if self.paused:
            self.paused = False
            self.stood += self.loop.now - self._paused_at
            parked, self._parked = self._parked, []
            with self.here():
                for run in parked:
                    self.loop.call_soon(run)

    def crash(self) -> None:
        """End, without a word to anybody in this process."""
        self.crashed = True
        self.paused = False
        self._parked.clear()
        for task in self.tasks:
            task._log_destroy_pending = False  # type: ignore[attr-defined]

    def guard(self, run: Callable[[], None]) -> bool:
        """Return whether something may run now; if it stands still, it runs later."""
        if self.crashed:
            return False
        if self.paused:
            self._parked.append(run)
            return False
        return True


def bare_context() -> Context:
    """Return a context in which only the machine is the same; in place of `Context()`."""
    context = Context()
    machine = MACHINE.get()
    if machine is not None:
        context.run(MACHINE.set, machine)
        context.run(HOST.set, machine.name)
    return context


MACHINE: ContextVar[Machine | None] = ContextVar("rpc_fuzz_machine", default=None)


class _Guarded:
    """A callback of a machine."""

    __slots__ = ("_args", "_callback", "_context", "_machine", "handle")

    def __init__(
        self, machine: Machine, callback: Callable[..., Any], args: Any, context: Context
    ) -> None:
        self._machine = machine
        self._callback = callback
        self._args = args
        self._context = context
        self.handle: asyncio.Handle

    def __call__(self) -> None:
        if self._machine.guard(self._go_on):
            self._callback(*self._args)

    def _go_on(self) -> None:
        if not self.handle.cancelled():
            self._machine.loop.call_soon(self._callback, *self._args, context=self._context)


class SimulatedLoop(VirtualLoop):
    """The loop of all machines; code that belongs to none sees the time of the world."""

    def time(self) -> float:
        machine = MACHINE.get()
        return self.now if machine is None else machine.time()

    def call_soon(  # type: ignore[override]
        self, callback: Callable[..., Any], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        context = copy_context() if context is None else context  # an empty one is falsy
        machine = context.get(MACHINE)
        if machine is None:
            return super().call_soon(callback, *args, context=context)
        guarded = _Guarded(machine, callback, args, context)
        guarded.handle = super().call_soon(guarded, context=context)
        return guarded.handle

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., Any], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        here = MACHINE.get()
        at = when if here is None else here.outer(when)
        context = copy_context() if context is None else context  # an empty one is falsy
        machine = context.get(MACHINE)
        if machine is None:
            return super().call_at(at, callback, *args, context=context)
        guarded = _Guarded(machine, callback, args, context)
        guarded.handle = handle = super().call_at(at, guarded, context=context)
        return handle

    def create_task(self, coro: Any, **options: Any) -> Any:
        task = super().create_task(coro, **options)
        machine = MACHINE.get()
        if machine is not None:
            machine.tasks[task] = None
            task.add_done_callback(lambda done: machine.tasks.pop(done, None))
        return task
