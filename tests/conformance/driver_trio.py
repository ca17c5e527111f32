"""The plug for the client of examples/trio_client.py, which the suite can run, too.

CONFORMANCE_DRIVERS=conformance.driver_trio pytest tests/conformance -k trio
"""

import importlib.util
import queue
import ssl
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import trio

from conformance.hosts import LIMIT
from conformance.runtimes import GAVE_UP, Args, Named, Pending, Runtime
from rpc_proto import ClientConfig, State, parse_address

_EXAMPLE = Path(__file__).parents[2] / "examples" / "trio_client.py"
_spec = importlib.util.spec_from_file_location("trio_client", _EXAMPLE)
assert _spec is not None
assert _spec.loader is not None
_example = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_example)

_KNOWN = {"codec", "token", "config", "ssl", "timeout"}


class Lacks(AttributeError):
    """The client of the example has less than those of the backends."""


class Driven:
    """What the suite asks of a client, by way of that of the example."""

    def __init__(
        self, client: Any, stream: Any, scope: trio.CancelScope, ended: trio.Event
    ) -> None:
        self._client = client
        self._stream = stream
        self._scope = scope
        self._ended = ended
        self.call = client.call
        self.connection = client._connection

    @property
    def closed(self) -> bool:
        return self.connection.state is not State.OPEN

    @property
    def calls_in_flight(self) -> int:
        return self.connection.calls_in_flight

    def __getattr__(self, name: str) -> Any:
        raise Lacks(f"the client has no {name}()")

    async def close(self, grace: float = 0.0) -> None:
        self.connection.shutdown(trio.current_time(), grace)
        self._client._act()
        with trio.move_on_after(LIMIT):
            await self._ended.wait()
        self._scope.cancel()
        await self._stream.aclose()


class TrioRuntime(Runtime):
    """Runs clients in a thread with trio."""

    name = "trio"

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[Any] = queue.SimpleQueue()
        started: Future[Any] = Future()
        self._thread = threading.Thread(
            target=lambda: trio.run(self._live, started), name="trio", daemon=True
        )
        self._thread.start()
        self._token, self._nursery = started.result(LIMIT)

    async def _live(self, started: "Future[Any]") -> None:
        async with trio.open_nursery() as nursery:
            started.set_result((trio.lowlevel.current_trio_token(), nursery))
            await trio.sleep_forever()

    def spawn(self, function: Callable[[], Any]) -> "Future[Any]":
        return self._spawn(function, trio.CancelScope)

    def _spawn(self, function: Callable[[], Any], make_scope: Callable[[], Any]) -> "Future[Any]":
        future: Future[Any] = Future()

        async def run() -> None:
            try:
                with make_scope() as scope:
                    result = function()
                    if hasattr(result, "__await__"):
                        result = await result
                if scope.cancelled_caught:
                    result = GAVE_UP
            except Exception as error:
                future.set_exception(error)
            else:
                future.set_result(result)

        self._token.run_sync_soon(self._nursery.start_soon, run)
        return future

    def start(self, client: Any, method: str, args: Args, named: Named) -> Pending:
        scope = trio.CancelScope()
        begun = threading.Event()  # trio begins tasks in any order

        def begin() -> Any:
            begun.set()
            return client.call(method, *args, **named)

        future = self._spawn(begin, lambda: scope)
        begun.wait(LIMIT)
        return Pending(future, lambda: self._token.run_sync_soon(scope.cancel))

    @property
    def kind(self) -> Any:  # type: ignore[override]
        return TrioKind(self)

    def do(self, function: Callable[[], Any]) -> Any:
        try:
            return super().do(function)
        except Lacks as error:
            pytest.skip(str(error))

    def connect(self, address: str, **options: Any) -> Any:
        unknown = set(options) - _KNOWN
        if unknown or address.startswith("http"):
            pytest.skip(f"the client has no {', '.join(sorted(unknown)) or 'HTTP'}")
        return super().connect(address, **options)

    def close(self) -> None:
        self._token.run_sync_soon(self._nursery.cancel_scope.cancel)
        self._thread.join(LIMIT)


class TrioKind:
    """Connects."""

    def __init__(self, runtime: TrioRuntime) -> None:
        self._runtime = runtime

    async def connect(
        self,
        address: str,
        *,
        codec: str | None = None,
        token: str | None = None,
        config: ClientConfig | None = None,
        ssl: ssl.SSLContext | None = None,
        timeout: float = 10.0,
    ) -> Driven:
        where = parse_address(address)
        stream: Any
        with trio.fail_after(timeout):
            if where.scheme == "unix":
                stream = await trio.open_unix_socket(where.path)
            else:
                stream = await trio.open_tcp_stream(where.host, where.port)
            if ssl is not None:
                stream = trio.SSLStream(
                    stream, ssl, server_hostname=where.host, https_compatible=True
                )
        config = (config or ClientConfig()).override(codec=codec, token=token)
        client = _example.TrioClient(stream, config)
        scope = trio.CancelScope()

        ended = trio.Event()

        async def run() -> None:
            with scope:
                await client.run()
            ended.set()

        self._runtime._nursery.start_soon(run)
        return Driven(client, stream, scope, ended)


RUNTIME = TrioRuntime

# Of the cases about calls, deadlines and the network: what the example leaves to who uses it.
BEYOND = {"test_timeout_that_is_no_time_is_refused": "the example does not check its arguments"}
