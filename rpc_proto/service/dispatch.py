"""Dispatching calls: find the method, admit the call, answer it, count it.

Running handlers is up to the driver: it gets jobs that are ready and reports how they ended.
"""

from collections.abc import Callable, Iterable, Iterator
from contextvars import copy_context
from heapq import nsmallest
from typing import Any, Protocol

from rpc_proto.connection.calls import InboundCall
from rpc_proto.connection.events import CallCancelled, Event, RequestReceived, Writable
from rpc_proto.connection.observers import Observer
from rpc_proto.connection.server import ServerConnection
from rpc_proto.errors import CallError, Internal, ResourceExhausted, Unimplemented, Unknown
from rpc_proto.wire.codecs import SMALL
from rpc_proto.wire.frames import STREAMS, Flag

from .context import Job
from .lanes import Lane
from .methods import Method, is_function, reflect
from .stats import BATCH, REMOVED, UNKNOWN, MethodStats, ServerStats

__all__ = ["Dispatcher"]

_RAW = Flag.RAW
_MOST_STREAMS = 20  # that a snapshot shows


class Lock(Protocol):
    """The interface of threading.Lock."""

    def acquire(self) -> bool: ...

    def release(self) -> None: ...

    def __enter__(self) -> Any: ...

    def __exit__(self, *_: object) -> Any: ...


class Dispatcher(Observer):
    """The services of one server, and the calls that run on it, over all its connections.

    At most `max_concurrency` handlers run at a time; at most `max_queued` calls wait for one, and
    one more per connection above that. If a driver runs `def` handlers in threads, `threads` is
    the limit for these, unless `max_concurrency` is smaller. Methods marked as quick are neither
    queued nor limited. `Lane` describes how much of a limit one connection may use, and whose turn
    is next.

    A call leaves the queue unserved when its deadline passes or its caller cancels it. `snapshot`
    returns the statistics; errors are included if this is an observer of each connection. A driver
    with threads passes a `lock`, which guards what calls of several connections share.
    `report(error, message)` is called for what user code raised outside handlers: a callback of
    `on_cancel()`, or a codec that raises a BaseException. Without it, `serve` raises that at the
    end.
    """

    def __init__(
        self,
        *,
        clock: Callable[[], float],
        max_concurrency: int = 1000,
        max_queued: int = 10_000,
        threads: int | None = None,
        debug: bool = False,
        lock: Lock | None = None,
        report: Callable[[BaseException, str], None] | None = None,
    ) -> None:
        limits = {"max_concurrency": max_concurrency, "max_queued": max_queued}
        if threads is not None:
            limits["threads"] = threads
        for name, value in limits.items():
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} must be a whole number, 1 or more, not {value!r}")
        self.methods: dict[str, Method] = {}
        self.stats = ServerStats(lock)
        self._max_queued = max_queued
        self._handlers = Lane(max_concurrency)
        self._threads = self._handlers
        self._lanes = [self._handlers]
        if threads is not None:
            self._threads = Lane(min(threads, max_concurrency))
            self._lanes.append(self._threads)
        self._outliving: set[InboundCall] = set()  # cancelled, but their handlers still run
        self._lock = lock  # None rather than a context manager without effect, which takes time
        self._clock = clock
        self._debug = debug
        self._report = report
        self._failure: BaseException | None = None

    @property
    def running(self) -> int:
        """Number of running handlers, except quick ones."""
        return sum(lane.running for lane in self._lanes)

    @property
    def queued(self) -> int:
        """Number of calls that wait for a handler to end."""
        return sum(lane.queued for lane in self._lanes)

    # Services

    def register(
        self,
        service: Any,
        name: str | None = None,
        wrap: Callable[[Method], Callable[..., Any]] | None = None,
    ) -> str:
        """Add the methods of an object under a name and return the name; ValueError if it is taken.

        `wrap(method)` returns what to run in place of the method's function. If that turns a plain
        function into a coroutine function, it must set `method.is_async`.
        """
        methods = reflect(service, name)
        if is_function(service):
            (name,) = methods
            taken = name in self.methods
        else:
            name = next(iter(methods)).rpartition(".")[0]
            taken = name in self.services()
        if taken:
            kind = "method" if is_function(service) else "service"
            raise ValueError(f"a {kind} named {name!r} is registered already")
        for method in methods.values():
            if not method.is_quick or method.is_async:
                method.lane = self._handlers if method.is_async else self._threads
            if wrap is not None:
                method.function = wrap(method)
        # A new table each time, so that concurrent readers of the old one are not disturbed.
        self.methods = {**self.methods, **methods}
        return name

    def unregister(self, name: str) -> None:
        """Remove a service, or one method by its full name; running calls continue.

        ValueError if no service or method has that name.
        """
        kept = {
            known: method
            for known, method in self.methods.items()
            if name not in (known, known.rpartition(".")[0])
        }
        if len(kept) == len(self.methods):
            raise ValueError(f"no service or method named {name!r} is registered")
        removed = [method for known, method in self.methods.items() if known not in kept]
        with self.stats.lock:
            self.methods = kept
            for method in removed:  # they still count in the totals
                self.stats.removed.add(method.stats)
                method.stats = self.stats.removed

    def services(self) -> set[str]:
        """Return the names of the services."""
        return {known.rpartition(".")[0] for known in self.methods}

    # Numbers

    def snapshot(self, now: float, connections: Iterable[ServerConnection] = ()) -> dict[str, Any]:
        """Return all statistics as JSON-able values: those of ServerStats.snapshot, and the load.

        `load` has the numbers of `running` and `queued` calls, and of them `streams`. `streams` are
        the oldest 20 of those: `age` in seconds, `method`, `peer`, `items_received` and
        `items_sent`. `connections` are the open ones;
        calls in flight are counted there, because counting each call at its start would slow it
        down.
        """
        connections = list(connections)
        in_flight = set(self._outliving)
        for connection in connections:
            in_flight.update(connection.calls)
        with self.stats.lock:
            streams = [call for call in in_flight if call.flags & STREAMS and call.job is not None]
            load = {"running": self.running, "queued": self.queued, "streams": len(streams)}
            methods = {name: stats.copy() for name, stats in self._records()}
            for call in in_flight:
                if call.job is not None:
                    method = call.job.method
                    name = method.name if method.stats is not self.stats.removed else REMOVED
                    methods[name].in_flight += 1
                    if call.flags & STREAMS:
                        methods[name].count_items(call)
        oldest = nsmallest(_MOST_STREAMS, streams, key=lambda call: (call.arrived, call.id))
        return {
            "load": load,
            "streams": [
                {
                    "age": now - call.arrived,
                    "method": call.method,
                    "peer": call.connection.peer.address,
                    "items_received": call.receiving.count if call.receiving else 0,
                    "items_sent": call.sending.count if call.sending else 0,
                }
                for call in oldest
            ],
            **self.stats.snapshot(methods, now, connections),
        }

    def total(self, name: str) -> int:
        """Return one of the counts of MethodStats, summed over all methods."""
        return sum(getattr(stats, name) for _, stats in self._records())

    def failed(self, now: float, call: Any, error: CallError, size: int) -> None:
        """Count a call that ended with an error."""
        with self.stats.lock:
            stats = self._stats_of(call)
            name = call.method if stats is not self.stats.unknown else UNKNOWN
            self.stats.count_error(stats, name, call, error, now)

    def _records(self) -> Iterator[tuple[str, MethodStats]]:
        for name, method in self.methods.items():
            yield name, method.stats
        yield UNKNOWN, self.stats.unknown
        yield REMOVED, self.stats.removed

    def _stats_of(self, call: InboundCall) -> MethodStats:
        method = self.methods.get(call.method) if call.job is None else call.job.method
        return method.stats if method is not None else self.stats.unknown

    # Calls

    def receive(self, events: Iterable[Event], owner: Any = None) -> list[Job]:
        """Take the events of a connection, and return the jobs to run or to stop.

        Run a job without an `error` now: call its `run` in a context of its own, then `finish`. A
        job with an `error` is already running and must be stopped. Events that are not about calls
        are ignored; for `SendBufferDrained` see `resume`. `owner` is the driver's object for the
        connection, which each job carries.
        """
        jobs: list[Job] = []
        for event in events:
            if type(event) is RequestReceived:
                job = self._begin(event.call, owner)
            elif type(event) is CallCancelled:
                job = self._cancel(event.call, event.error)
            else:
                continue
            if job is not None:
                jobs.append(job)
        return jobs

    def serve(self, events: Iterable[Event]) -> None:
        """Run the `def` handlers of the calls that have arrived, in place: enough for small loops.

        A method's items are sent as long as the peer takes them, and further ones at `Writable`. A
        method that takes items would have to wait, and is answered with `unimplemented`. A
        BaseException of a handler or a codec that is not an Exception is raised after the answers.
        """
        events = list(events)
        for job in self.receive(events):
            if job.error is None:
                self._run_here(job)
            elif job.handler is not None:
                self._end_here(job, job.error)
        for event in events:
            call: Any = event.call if type(event) is Writable else None
            if call is not None and call.job is not None:
                self._send_here(call.job)
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def _run_here(self, job: Job) -> None:
        streams = job.method.streams
        if streams & Flag.CLIENT_STREAM:
            why = f"{job.method.name} takes items, for which this server cannot wait"
            self.finish(job, None, Unimplemented(why))
            return
        context = copy_context()
        try:
            result = context.run(job.run)
            if streams:
                job.handler = context, iter(result)
        except BaseException as error:
            self._failed_here(job, error)
        else:
            if streams:
                self._send_here(job)
            else:
                self.finish(job, result)

    def _send_here(self, job: Job) -> None:
        """Send the items of a method, as many as may be sent now."""
        context, iterator = job.handler
        half: Any = job.call.sending
        connection: ServerConnection = job.call.connection
        try:
            while half.writable:
                try:
                    value = context.run(next, iterator)
                except StopIteration:
                    self._end_here(job, None)
                    return
                connection.send_item(self._clock(), job.call, value)
        except BaseException as error:
            job.handler = None
            self._failed_here(job, error)

    def _end_here(self, job: Job, error: BaseException | None) -> None:
        (context, iterator), job.handler = job.handler, None
        try:
            if hasattr(iterator, "close"):
                context.run(iterator.close)
        except BaseException as raised:
            self._failed_here(job, raised)
        else:
            self.finish(job, None, error)

    def _failed_here(self, job: Job, error: BaseException) -> None:
        self.finish(job, None, error)
        if not isinstance(error, Exception):
            self._failure = self._failure or error

    def _begin(self, call: InboundCall, owner: Any) -> Job | None:
        """Take a call that arrived; return it if it may run now, else refuse or queue it."""
        connection: ServerConnection = call.connection
        if call.ended:  # cancelled, or the connection ended, by the same bytes that brought it
            connection.conclude(self._clock(), call)
            return None
        try:
            method = self.methods[call.method]
        except KeyError:
            unknown = Unimplemented(f"no method {call.method!r:.100} is registered here")
            connection.refuse(self._clock(), call, unknown)
            return None
        try:
            body = call.body
            if len(body) > SMALL and not call.flags & _RAW:
                connection.reserve(call, connection.check_encoded(body, method.weight))
            if method.streams:
                method.prepare_stream(connection.codec, call)
            args, kwargs = method.decode(connection.codec, call.flags, body)
        except CallError as wrong:
            wrong.maybe_executed = False
            connection.refuse(self._clock(), call, wrong)
            return None
        except BaseException as error:  # of a codec or of a type, and more than an Exception
            text = f"the arguments of {method.name} could not be decoded"
            connection.send_error(self._clock(), call, Internal(text, maybe_executed=False))
            self._failed(error, f"{call.method}: its arguments could not be decoded")
            return None
        call.body = b""
        call.job = job = Job(call, method, args, kwargs, self._clock, owner)
        lane = method.lane
        if lane is None:
            return job
        lock = self._lock
        if lock is not None:
            lock.acquire()
        try:
            if lane.enter(connection):
                return job
            if self.queued < self._max_queued or not lane.waits(connection):
                lane.wait(job, connection)
                return None
        finally:
            if lock is not None:
                lock.release()
        call.job = None
        full = ResourceExhausted(
            f"{lane.running} handlers are running and {self.queued} calls are waiting",
            maybe_executed=False,
        )
        connection.send_error(self._clock(), call, full)
        return None

    def _cancel(self, call: InboundCall, error: CallError) -> Job | None:
        """Record that nobody waits for a call; return it if its handler must be stopped."""
        job: Job | None = call.job
        with self.stats.lock:
            self._stats_of(call).cancelled += 1
        if job is None:  # it never began, or has ended
            return None
        with self.stats.lock:
            waits = job.lane is not None and job.lane.withdraw(job, call.connection)
            if waits:
                job.method.stats.withdrawn += 1
        if not waits:
            self._outliving.add(call)
        try:
            job.cancel(error)  # which raises what a callback does
        except BaseException as raised:
            self._failed(raised, f"{call.method}: a callback of on_cancel() failed")
        if not waits:
            return job
        call.job = None
        call.connection.conclude(self._clock(), call)
        return None

    def postpone(self, job: Job) -> None:
        """Put a job back at the head of its queue, because its peer reads too slowly.

        Another may run in its place: see `next_queued`.
        """
        connection = job.call.connection
        with self.stats.lock:
            job.lane.leave(connection)
            job.lane.wait(job, connection, first=True)

    def resume(self, connection: ServerConnection) -> bool:
        """Handle a `SendBufferDrained`; return whether jobs may run now (see `next_queued`)."""
        with self.stats.lock:
            for lane in self._lanes:
                lane.resume(connection)
        return self.queued > 0

    def finish(self, job: Job, result: Any, error: BaseException | None = None) -> bool:
        """Answer a call whose handler has ended, with its result or with the exception it raised.

        Returns whether other calls are waiting: see `next_queued`. A BaseException of a codec that
        is not an Exception is raised at the end; calls may then be waiting, too.
        """
        clock = self._clock
        now = clock()
        call = job.call
        connection = call.connection
        latency = now - call.arrived
        lock = self._lock
        if lock is not None:
            lock.acquire()
        lane = job.lane
        try:
            if lane is not None:
                lane.leave(connection)
            method = job.method.stats
            latencies = method.latencies
            latencies.append(latency)
            if error is not None:
                method.failed += 1
            elif job.error is not None:
                method.late += 1
            if call.flags & STREAMS:
                method.count_items(call)
            if len(latencies) >= BATCH:
                method.fold()
        finally:
            if lock is not None:
                lock.release()
        try:
            if error is None:
                connection.send_response(now, call, result)
            else:
                connection.send_error(now, call, self._to_call_error(error))
        finally:
            if job.error is not None:
                self._outliving.discard(call)
            call.job = None
        stats = self.stats
        if latency > stats.slow_from or now >= stats.turns_at:
            stats.note_slow(job, now, clock())
        return lane is not None and lane.queued > 0

    def is_unexpected(self, error: BaseException) -> bool:
        """Whether a handler's exception should be reported to the operator."""
        return not isinstance(error, CallError)

    def next_queued(self) -> Job | None:
        """Return the next waiting job that may run, or None; call it when a handler has ended."""
        with self.stats.lock:
            for lane in self._lanes:
                job = lane.next()
                if job is not None:
                    job.began = self._clock()
                    return job
        return None

    def _failed(self, error: BaseException, message: str) -> None:
        if self._report is not None:
            self._report(error, message)
        else:
            self._failure = self._failure or error

    def _to_call_error(self, error: BaseException) -> CallError:
        try:
            if isinstance(error, CallError):
                # The handler did run, whatever the error of a nested call says.
                return CallError.of(str(error.code), str(error.message), error.details)
            unknown = Unknown(f"{type(error).__name__}: {error}")
            if self._debug:
                import traceback

                unknown.details = "".join(traceback.format_exception(error))
        except BaseException:  # an exception may be broken, too
            return Unknown(type(error).__name__)
        return unknown
