"""rpc_asyncio in memory: an event loop whose time is virtual and whose network has no sockets."""

import asyncio
import socket
import threading
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import Context, copy_context
from typing import Any, TypeVar

from rpc_asyncio import Client, Server
from rpc_asyncio.serving import ThreadStream
from rpc_proto import Address, Interceptor

from .network import End, Listening, Network
from .rig import RigBase
from .virtual import LONGEST, START, Deadlock, Outside, installed, replaced, too_long

__all__ = ["AsyncioRig", "VirtualLoop", "finish"]

Result = TypeVar("Result")


# Bytes that a transport keeps for a slow reader before it says so, as in asyncio.
_HIGH_WATER = 64 * 1024
_READ_SIZE = 256 * 1024

# Turns of a loop at the same moment, after which it is sure to be caught in a circle.
_MOST_TURNS = 300_000


class VirtualLoop(asyncio.BaseEventLoop):
    """An event loop that never waits: if nothing is ready, its time jumps to what comes next.

    Only threads in which handlers run are waited for, and virtual time stands still meanwhile.
    Connections lead through `network`; there are no sockets, signals and processes.
    """

    def __init__(self, start: float = START) -> None:
        super().__init__()
        self.now = start
        self._selector = self  # what BaseEventLoop waits with
        self._woken = False
        self._turns = 0  # since time has passed
        self._settling: list[Callable[[], object]] = []
        # So many real seconds a thread may take for what it does.
        self.patience: float | None = 60.0
        self.limit = start + LONGEST  # of time
        self.outside = Outside()
        self.network = Network(_Outer(self))

    def time(self) -> float:
        return self.now

    def select(self, timeout: float | None) -> tuple[()]:
        """Let time pass, as far as that is possible; not for users."""
        if timeout == 0:
            self._turns += 1
            if self._turns > _MOST_TURNS:
                raise Deadlock(f"something is done {_MOST_TURNS} times over, and no time passes")
            return ()
        self._turns = 0
        outside = self.outside
        with outside.changed:
            if not outside.changed.wait_for(self._is_called, self.patience):
                raise Deadlock(f"a thread does not come back within {self.patience:g} s")
            if self._woken:
                self._woken = False
                return ()
        if self._settling:
            settling, self._settling = self._settling, []
            for settled in settling:
                settled()
            return ()
        if timeout is None:
            raise Deadlock("everybody waits, and nothing is scheduled that could end that")
        if self.now >= self.limit:
            raise too_long()
        self.now += timeout
        return ()

    def when_settled(self, callback: Callable[[], object]) -> None:
        """Call a function when nothing more happens at this moment."""
        self._settling.append(callback)

    def _is_called(self) -> bool:
        return self._woken or self.outside.rests

    def _process_events(self, event_list: Any) -> None:
        pass

    def _write_to_self(self) -> None:
        with self.outside.changed:
            self._woken = True
            self.outside.changed.notify_all()

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> Any:  # type: ignore[override]
        self.outside.enter()
        future = super().run_in_executor(executor, func, *args)
        future.add_done_callback(lambda _: self.outside.leave())
        return future

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Let the drivers use the time and the network of this loop."""
        outside = self.outside
        wait_until = ThreadStream.wait_until

        def wait(stream: ThreadStream, ready: Callable[[], bool]) -> None:
            with outside.waiting(ready):
                wait_until(stream, ready)

        with (
            installed(self.time, self.network, outside, self.sleep_in_thread),
            replaced([(ThreadStream, "wait_until", wait)]),
        ):
            yield

    def sleep_in_thread(self, seconds: float) -> None:
        """Sleep in virtual time; for a thread of a handler."""
        over = threading.Event()
        self.call_soon_threadsafe(self.call_later, seconds, over.set)
        with self.outside.waiting(over.is_set):
            over.wait()

    # The network

    def add_reader(self, fd: Any, callback: Any, *args: Any) -> None:  # type: ignore[override]
        found = self.network.objects.get(fd)
        if found is None:
            raise NotImplementedError("this loop has no sockets")
        context = copy_context()  # and not that of whoever dials

        def readable() -> None:
            self.call_soon(look, context=context)

        def look() -> None:
            if found.on_readable is readable and found.is_readable:
                callback(*args)
                if found.is_readable:
                    readable()

        found.on_readable = readable
        if found.is_readable:
            readable()

    def remove_reader(self, fd: Any) -> bool:
        found = self.network.objects.get(fd)
        if found is None or found.on_readable is None:
            return False
        found.on_readable = None
        return True

    async def getaddrinfo(self, host: Any, port: Any, **_: Any) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 0, "", (host, port))]

    async def create_connection(
        self,
        protocol_factory: Callable[[], Any],
        host: Any = None,
        port: Any = None,
        **options: Any,
    ) -> Any:
        if options.get("ssl") or options.get("sock"):
            raise NotImplementedError("this loop has neither TLS nor sockets")
        return await self._dial(protocol_factory, Address("tcp", host, int(port)))

    async def create_server(
        self, protocol_factory: Callable[[], Any], host: Any = None, port: Any = None, **_: Any
    ) -> Any:
        listening = self.network.listen(Address("tcp", host or "", int(port)))
        return _Listener(self, listening, protocol_factory)

    async def create_unix_connection(
        self, protocol_factory: Callable[[], Any], path: Any = None, **_: Any
    ) -> Any:
        return await self._dial(protocol_factory, Address("unix", path=path))

    async def _dial(self, protocol_factory: Callable[[], Any], where: Address) -> Any:
        found: asyncio.Future[End] = self.create_future()

        def done(result: End | OSError) -> None:
            if found.cancelled():
                if isinstance(result, End):
                    result.close()
            elif isinstance(result, OSError):
                found.set_exception(result)
            else:
                found.set_result(result)

        self.network.dial(where, done)
        try:
            end = await found
        except asyncio.CancelledError:
            if found.done() and not found.cancelled() and found.exception() is None:
                found.result().close()  # it came at the same moment
            raise
        return await self.connect_accepted_socket(protocol_factory, end)

    async def connect_accepted_socket(
        self, protocol_factory: Callable[[], Any], sock: Any, **_: Any
    ) -> Any:
        protocol = protocol_factory()
        transport = MemoryTransport(self, sock, protocol)
        made = self.create_future()
        self.call_soon(transport.open, made)
        try:
            await made
        except BaseException:
            transport.abort()
            raise
        return transport, protocol


class _Outer:
    """The clock of what lies outside of all programs, for the network."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop

    def time(self) -> float:
        return self._loop.now

    def call_at(self, when: float, callback: Callable[[], object], /) -> Any:
        # In no context: neither that of who sends nor that of who receives.
        return asyncio.BaseEventLoop.call_at(self._loop, when, callback, context=Context())


class _Listener(asyncio.AbstractServer):
    """What `create_server` returns."""

    def __init__(self, loop: VirtualLoop, listening: Listening, factory: Any) -> None:
        self._loop = loop
        self._listening = listening
        self._factory = factory
        loop.add_reader(listening.fileno(), listening.accept, self._take)

    def _take(self, end: End, _: Any) -> None:
        self._loop.create_task(self._loop.connect_accepted_socket(self._factory, end))

    def close(self) -> None:
        self._loop.remove_reader(self._listening.fileno())
        self._listening.close()

    def get_loop(self) -> VirtualLoop:
        return self._loop

    def is_serving(self) -> bool:
        return True

    async def start_serving(self) -> None:
        pass

    async def serve_forever(self) -> None:
        await self._loop.create_future()

    async def wait_closed(self) -> None:
        pass


class MemoryTransport(asyncio.Transport):
    """Reads and writes an end of a link, as the transports of asyncio do with sockets."""

    def __init__(self, loop: VirtualLoop, end: End, protocol: Any) -> None:
        extra = {"peername": end.getpeername(), "sockname": end.getsockname(), "socket": end}
        super().__init__(extra)
        self._loop = loop
        self._context = copy_context()  # and not that of the peer
        self._end = end
        self._protocol = protocol
        self._unsent = bytearray()
        self._high_water = _HIGH_WATER
        self._paused = False
        self._reading = True
        self._looking = False  # soon
        self._closing = False
        self._lost = False
        self._finishing = False  # writes nothing more once all is sent
        self._eof = False

    def open(self, made: "asyncio.Future[None]") -> None:
        """Begin; not for users."""
        self._end.on_readable = self._look_soon
        self._end.on_writable = self._write_soon
        self._protocol.connection_made(self)
        self._look_soon()
        if not made.cancelled():
            made.set_result(None)

    # Reading

    def _look_soon(self) -> None:
        if self._reading and not self._looking and not self._closing and not self._eof:
            self._looking = True
            self._loop.call_soon(self._look, context=self._context)

    def _look(self) -> None:
        self._looking = False
        if not self._reading or self._closing or self._eof or not self._end.is_readable:
            return
        protocol = self._protocol
        buffered = isinstance(protocol, asyncio.BufferedProtocol)
        buffer = protocol.get_buffer(-1) if buffered else bytearray(_READ_SIZE)
        try:
            size = self._end.recv_into(buffer)
        except BlockingIOError:
            return
        except OSError as error:
            self._lose(error)
            return
        if not size:
            self._eof = True
            if not protocol.eof_received():
                self.close()
            return
        if buffered:
            protocol.buffer_updated(size)
        else:
            protocol.data_received(bytes(buffer[:size]))
        self._look_soon()

    def is_reading(self) -> bool:
        return self._reading and not self._closing

    def pause_reading(self) -> None:
        self._reading = False

    def resume_reading(self) -> None:
        self._reading = True
        self._look_soon()

    # Writing

    def write(self, data: Any) -> None:
        if self._lost or not len(data):
            return
        if self._finishing:
            raise RuntimeError("Cannot call write() after write_eof()")
        self._unsent += data
        self._write()

    def _write_soon(self) -> None:
        self._loop.call_soon(self._write, context=self._context)

    def _write(self) -> None:
        if self._lost:
            return
        try:
            while self._unsent:
                sent = self._end.send(bytes(self._unsent))
                del self._unsent[:sent]
        except BlockingIOError:
            pass
        except OSError as error:
            self._lose(error)
            return
        if len(self._unsent) > self._high_water and not self._paused:
            self._paused = True
            self._protocol.pause_writing()
        elif self._paused and len(self._unsent) <= self._high_water // 4:
            self._paused = False
            self._protocol.resume_writing()
        if not self._unsent and not self._lost:
            if self._closing:
                self._lose(None)
            elif self._finishing:
                self._end.outgoing.end()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._high_water = _HIGH_WATER if high is None else high

    def get_write_buffer_size(self) -> int:
        return len(self._unsent)

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self._finishing = True
        self._write()

    # The end

    def is_closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        if not self._closing:
            self._closing = True
            if not self._unsent:
                self._lose(None)

    def abort(self) -> None:
        if not self._lost:
            self._unsent.clear()
            self._lose(None, abort=True)

    def _lose(self, error: OSError | None, abort: bool = False) -> None:
        if self._lost:
            return
        self._lost = self._closing = True
        self._loop.call_soon(self._tell_lost, error, abort, context=self._context)

    def _tell_lost(self, error: OSError | None, abort: bool) -> None:
        try:
            self._protocol.connection_lost(error)
        finally:
            if abort and self._end.incoming.waits:
                self._end.link.reset()
            self._end.close()

    def set_protocol(self, protocol: Any) -> None:
        self._protocol = protocol

    def get_protocol(self) -> Any:
        return self._protocol


class AsyncioRig(RigBase):
    """Servers and clients of rpc_asyncio in one process: no socket, and no waiting.

    `connect` joins a client to services. `clock` is the time of everything, `network` has the
    faults, and `calls` what the handlers were asked, in the order in which they began.
    """

    _server = Server

    def __init__(self) -> None:
        self.loop = VirtualLoop()
        self.network = self.loop.network
        super().__init__(self.loop.time)

    def run(self, coroutine: Coroutine[Any, Any, Result]) -> Result:
        """Run a coroutine to its end."""
        return self.loop.run_until_complete(coroutine)

    async def serve(
        self,
        *services: Any,
        address: str = "tcp://here:0",
        interceptors: Iterable[Interceptor] = (),
        **settings: Any,
    ) -> str:
        """Serve objects with a server that has these settings; return its address."""
        record = self._recorder.record_async
        server: Server = self._make_server(record, services, interceptors, settings)
        return await server.start(address)

    async def connect(
        self, *services: Any, server: Mapping[str, Any] | None = None, **options: Any
    ) -> Client:
        """Serve objects, and return a client that is connected to them.

        `server` has the settings of the Server; `options` are those of `Client.connect`.
        """
        client = await Client.connect(await self.serve(*services, **(server or {})), **options)
        self._open.append(client)
        return client

    async def _pass(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        settled = asyncio.Event()
        self.loop.when_settled(settled.set)
        await settled.wait()

    async def _close(self) -> None:
        self.network.resume()
        for one in reversed(self._open):
            if isinstance(one, Client):
                await one.close()
            else:
                await one.stop(grace=0.0)

    @contextmanager
    def open(self) -> "Iterator[AsyncioRig]":
        """Use the rig; at the end, everything that it opened is closed."""
        try:
            with self.loop.installed():
                asyncio.set_event_loop(self.loop)
                try:
                    yield self
                    self.run(self._close())
                finally:
                    finish(self.loop)
                    asyncio.set_event_loop(None)
        finally:
            self.loop.close()


def finish(loop: VirtualLoop) -> None:
    """Cancel what is left, as asyncio.run does."""
    left = asyncio.all_tasks(loop)
    for task in left:
        task.cancel()
    if left:
        loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.run_until_complete(loop.shutdown_default_executor())
