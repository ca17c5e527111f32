"""Views of a client whose calls have options, so that these share no names with arguments."""

import asyncio
import importlib
from collections.abc import Callable
from typing import Any

import pytest

from rpc_proto import DeadlineExceeded, InvalidArgument, LocalProtocolError, current_call, quick

BACKENDS = ["asyncio", "gevent", "blocking"]


class Store:
    __service__ = "my.Store"

    def put(self, key: str, timeout: int, metadata: str = "") -> list[Any]:
        return [key, timeout, metadata]

    @quick
    def see(self) -> dict[str, str]:
        call = current_call()
        call.set_reply_metadata({"by": "server"})
        return dict(call.metadata)

    def left(self) -> float:
        left = current_call().time_left
        assert left is not None
        return left


def add(a: int, b: int) -> int:
    return a + b


@quick
def twice(a: int) -> int:
    return 2 * a


class StoreApi:
    __service__ = "my.Store"

    def put(self, key: str, timeout: int, metadata: str = "") -> list[Any]: ...

    def left(self) -> float: ...


def talk(backend: str, conversation: Callable[[Any, Any], Any], *, balanced: bool = False) -> Any:
    """Run `conversation(client, do)`; `do` waits for what a call returns, if that is needed."""
    module: Any = importlib.import_module(f"rpc_{backend}")
    if backend == "asyncio":
        return asyncio.run(_talk(module, conversation, balanced))
    with module.Server() as server:
        _register(server)
        address = server.start("tcp://127.0.0.1:0")
        made = module.BalancedClient(address) if balanced else module.Client.connect(address)
        with made as client:
            return conversation(client, lambda result: result)


async def _talk(module: Any, conversation: Any, balanced: bool) -> Any:
    loop = asyncio.get_running_loop()
    async with module.Server() as server:
        _register(server)
        address = await server.start("tcp://127.0.0.1:0")
        made = module.BalancedClient(address) if balanced else module.Client.connect(address)
        async with made as client:

            async def wait(awaitable: Any) -> Any:
                return await awaitable

            def do(awaitable: Any) -> Any:
                return asyncio.run_coroutine_threadsafe(wait(awaitable), loop).result(20)

            return await asyncio.to_thread(conversation, client, do)


def _register(server: Any) -> None:
    server.register(Store())
    assert server.register(add, "Math.add") == "Math.add"
    assert server.register(twice, "Math.twice") == "Math.twice"


@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
def test_keywords_of_a_view_are_the_methods(backend: str, balanced: bool) -> None:
    def conversation(client: Any, do: Any) -> None:
        view = client.with_options(timeout=5.0, metadata={"tenant": "acme"})
        assert do(view.call("my.Store.put", "k", timeout=60, metadata="m")) == ["k", 60, "m"]
        assert do(view.call("my.Store.see")) == {"tenant": "acme"}
        assert 4 < do(view.call("my.Store.left")) <= 5
        reply = do(view.request("my.Store.see"))
        assert (reply.value, dict(reply.metadata)) == ({"tenant": "acme"}, {"by": "server"})
        assert do(view.notify("my.Store.see")) is None
        assert do(view.service(StoreApi).put("k", timeout=7)) == ["k", 7, ""]

    talk(backend, conversation, balanced=balanced)


@pytest.mark.parametrize("backend", BACKENDS)
def test_views_of_views_add_to_them(backend: str) -> None:
    def conversation(client: Any, do: Any) -> None:
        first = client.with_options(timeout=5.0, metadata={"a": "1", "b": "1"})
        second = first.with_options(metadata={"b": "2"})
        assert do(second.call("my.Store.see")) == {"a": "1", "b": "2"}
        assert 4 < do(second.call("my.Store.left")) <= 5
        assert do(first.call("my.Store.see")) == {"a": "1", "b": "1"}
        assert "timeout=5.0" in repr(second)

    talk(backend, conversation)


@pytest.mark.parametrize("backend", BACKENDS)
def test_view_can_start_calls_and_say_what_results_become(backend: str) -> None:
    def conversation(client: Any, do: Any) -> None:
        view = client.with_options(returns=str)
        pending = view.start("my.Store.put", "k", timeout=1)
        wait = pending if backend == "asyncio" else pending.result
        with pytest.raises(Exception, match="str"):
            do(wait if backend == "asyncio" else wait())

    if backend == "asyncio":
        pytest.skip("asyncio's calls are started in its loop; test_pending.py shows them")
    talk(backend, conversation)


@pytest.mark.parametrize("backend", BACKENDS)
def test_balanced_view_has_what_is_for_balanced_calls(backend: str) -> None:
    def conversation(client: Any, do: Any) -> None:
        view = client.with_options(key="k", idempotent=True, hedge=True)
        assert do(view.call("Math.add", 1, 2)) == 3
        with pytest.raises(LocalProtocolError, match="has no start"):
            view.start("Math.add", 1, 2)
        with pytest.raises(LocalProtocolError, match="hedge works with call"):
            view.request("Math.add", 1, 2)

    talk(backend, conversation, balanced=True)


@pytest.mark.parametrize("backend", BACKENDS)
def test_functions_are_served_under_full_names(backend: str) -> None:
    def conversation(client: Any, do: Any) -> None:
        assert do(client.call("Math.add", 1, b=2)) == 3
        assert do(client.call("Math.twice", 2)) == 4
        with pytest.raises(InvalidArgument):
            do(client.call("Math.add", "x", 2))
        assert {"add", "twice"} <= {*do(client.call("rpc.Introspection.services"))["Math"]}

    talk(backend, conversation)


@pytest.mark.parametrize("backend", BACKENDS)
def test_function_needs_a_full_name_that_is_free(backend: str) -> None:
    server = importlib.import_module(f"rpc_{backend}").Server()
    for name in (None, "add"):
        with pytest.raises(TypeError, match=r'register\(add, "Service\.add"\)'):
            server.register(add, name)
    server.register(add, "Math.add")
    with pytest.raises(ValueError, match=r"a method named 'Math\.add' is registered already"):
        server.register(add, "Math.add")
    server.unregister("Math.add")
    server.register(add, "Math.add")


def test_proxy_lists_the_methods_that_its_class_declares() -> None:
    def conversation(client: Any, do: Any) -> None:
        assert {"put", "left"} <= {*dir(client.service(StoreApi))}
        assert "put" not in dir(client.service("my.Store"))

    talk("blocking", conversation)


@pytest.mark.parametrize("backend", BACKENDS)
def test_connect_that_takes_too_long_is_a_deadline(backend: str) -> None:
    import socket

    module: Any = importlib.import_module(f"rpc_{backend}")

    async def connect(address: str) -> None:
        await module.Client.connect(address, timeout=0.1)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"tcp://127.0.0.1:{listener.getsockname()[1]}"

        def dial() -> None:
            if backend == "asyncio":
                asyncio.run(connect(address))
            else:
                module.Client.connect(address, timeout=0.1)

        with pytest.raises(DeadlineExceeded, match="no connection to") as caught:
            dial()
    assert isinstance(caught.value, TimeoutError)
    assert caught.value.maybe_executed is False
