"""Interceptors at servers and clients of all backends, and the ten of the examples."""

import asyncio
import importlib
import inspect
import logging
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import rpc_asyncio
import rpc_blocking
import rpc_gevent
from rpc_proto import (
    CallError,
    Invocation,
    LocalProtocolError,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    ServerConfig,
    Unavailable,
    Unknown,
    current_call,
    quick,
)

BACKENDS = {"asyncio": rpc_asyncio, "gevent": rpc_gevent, "blocking": rpc_blocking}
EXAMPLES = Path(__file__).parents[2] / "examples"
PAGE = EXAMPLES.parent / "docs" / "interceptors.md"


class Service:
    """In each kind of method."""

    def __init__(self) -> None:
        self.calls = 0

    def add(self, a: int, b: int) -> int:
        self.calls += 1
        return a + b

    @quick
    def twice(self, a: int) -> int:
        return 2 * a

    def see(self) -> list[Any]:
        call = current_call()
        call.set_reply_metadata({"by": "handler"})
        return [dict(call.metadata), call.peer.identity]

    def fail(self, kind: str) -> None:
        if kind == "key":
            raise KeyError("no such thing")
        raise NotFound("no")

    def login(self, *, user: str, password: str) -> str:
        return user


class AsyncService(Service):
    async def slow(self, a: int) -> int:
        await asyncio.sleep(0)
        return a + 1


class World:
    """A server and a client of one backend, driven from here without `await`."""

    def __init__(self, backend: str) -> None:
        self.backend = backend
        self.module = BACKENDS[backend]
        name = "interceptors_async" if backend == "asyncio" else "interceptors_sync"
        self.examples: Any = importlib.import_module(f"examples.{name}")
        self.service = AsyncService() if backend == "asyncio" else Service()

    def plain(self, function: Callable[..., Any]) -> Any:
        """Make an interceptor of this backend's kind out of a plain one that does not wait."""
        if self.backend != "asyncio":
            return function

        async def interceptor(call: Invocation, proceed: Any) -> Any:
            result = function(call, proceed)
            return await result if inspect.isawaitable(result) else result

        return interceptor

    def talk(
        self,
        conversation: Callable[[Callable[..., Any]], Any],
        server: list[Any] = [],  # noqa: B006 - it is only read
        client: list[Any] = [],  # noqa: B006
        **settings: Any,
    ) -> Any:
        """Serve with interceptors, and run `conversation(call)`; `call` works as a client's."""
        if self.backend == "asyncio":
            return asyncio.run(self._talk_async(conversation, server, client, settings))
        with self.module.Server(interceptors=server, **settings) as host:
            host.register(self.service, "Service")
            address = host.start("tcp://127.0.0.1:0")
            with self.module.Client.connect(address, interceptors=client) as real:
                return conversation(lambda name, *a, **k: getattr(real, name)(*a, **k))

    async def _talk_async(
        self, conversation: Any, server: list[Any], client: list[Any], settings: Any
    ) -> Any:
        loop = asyncio.get_running_loop()
        async with self.module.Server(interceptors=server, **settings) as host:
            host.register(self.service, "Service")
            address = await host.start("tcp://127.0.0.1:0")
            async with self.module.Client.connect(address, interceptors=client) as real:

                def do(name: str, *args: Any, **kwargs: Any) -> Any:
                    asked = getattr(real, name)(*args, **kwargs)
                    return asyncio.run_coroutine_threadsafe(asked, loop).result(20)

                return await asyncio.to_thread(conversation, do)


@pytest.fixture(params=BACKENDS)
def world(request: pytest.FixtureRequest) -> World:
    return World(request.param)


# What an interceptor may do


def test_interceptors_see_the_call_in_their_order_at_both_ends(world: World) -> None:
    seen: list[Any] = []

    def note(where: str) -> Any:
        def interceptor(call: Invocation, proceed: Any) -> Any:
            seen.append((where, call.method, call.args, dict(call.kwargs), call.one_way))
            return proceed(call)

        return world.plain(interceptor)

    result = world.talk(
        lambda do: do("call", "Service.add", 1, b=2),
        server=[note("server 1"), note("server 2")],
        client=[note("client")],
    )
    assert result == 3
    assert [one[0] for one in seen] == ["client", "server 1", "server 2"]
    assert {one[1:] for one in seen if not one[3]} == set()
    assert seen[0][1:] == ("Service.add", (1,), {"b": 2}, False)


@pytest.mark.parametrize("method", ["add", "twice", "slow"])
def test_each_kind_of_method_goes_through(world: World, method: str) -> None:
    if method == "slow" and world.backend != "asyncio":
        pytest.skip("only asyncio has coroutine methods")
    arguments = (1, 2) if method == "add" else (1,)
    through: list[str] = []

    def interceptor(call: Invocation, proceed: Any) -> Any:
        through.append(call.method)
        return proceed(call)

    got = world.talk(
        lambda do: do("call", f"Service.{method}", *arguments), server=[world.plain(interceptor)]
    )
    assert got == {"add": 3, "twice": 2, "slow": 2}[method]
    assert through == [f"Service.{method}"]


def test_interceptor_may_answer_refuse_and_change(world: World) -> None:
    def interceptor(call: Invocation, proceed: Any) -> Any:
        if call.args == (0, 0):
            return "answered"
        if call.args == (1, 1):
            raise PermissionDenied("not you")
        return proceed(call.replace(args=(call.args[0], 10)))

    def conversation(do: Any) -> list[Any]:
        with pytest.raises(PermissionDenied, match="not you"):
            do("call", "Service.add", 1, 1)
        return [do("call", "Service.add", 0, 0), do("call", "Service.add", 5, 5)]

    assert world.talk(conversation, server=[world.plain(interceptor)]) == ["answered", 15]
    assert world.talk(conversation, client=[world.plain(interceptor)]) == ["answered", 15]


def test_metadata_that_an_interceptor_changes_reaches_the_handler(world: World) -> None:
    def add(name: str) -> Any:
        def interceptor(call: Invocation, proceed: Any) -> Any:
            return proceed(call.replace(metadata={**call.metadata, name: "1"}))

        return world.plain(interceptor)

    seen, _ = world.talk(
        lambda do: do("call", "Service.see", metadata={"own": "1"}),
        server=[add("server")],
        client=[add("client")],
    )
    assert seen == {"own": "1", "client": "1", "server": "1"}


def test_reply_metadata_goes_through_both_onions(world: World) -> None:
    seen: list[dict[str, str]] = []

    def at_server(call: Invocation, proceed: Any) -> Any:
        call.reply_metadata["more"] = "server"
        return proceed(call)

    async def looking(call: Invocation, proceed: Any) -> Any:
        result = await proceed(call)
        seen.append(dict(call.reply_metadata))
        return result

    def looking_too(call: Invocation, proceed: Any) -> Any:
        result = proceed(call)
        seen.append(dict(call.reply_metadata))
        return result

    at_client = looking if world.backend == "asyncio" else looking_too
    reply = world.talk(
        lambda do: do("request", "Service.see"), server=[world.plain(at_server)], client=[at_client]
    )
    assert dict(reply.metadata) == {"by": "handler", "more": "server"}
    assert seen == [reply.metadata]


def test_one_way_calls_go_through(world: World) -> None:
    seen: list[bool] = []

    def interceptor(call: Invocation, proceed: Any) -> Any:
        seen.append(call.one_way)
        return proceed(call)

    def conversation(do: Any) -> None:
        assert do("notify", "Service.twice", 1) is None
        do("call", "Service.twice", 1)

    both = [world.plain(interceptor)]
    world.talk(conversation, server=both, client=both)
    assert sorted(seen) == [False, False, True, True]


def test_deadline_is_the_callers(world: World) -> None:
    left: list[float] = []

    def at_client(call: Invocation, proceed: Any) -> Any:
        left.append(call.deadline - time.monotonic())
        return proceed(call.replace(deadline=time.monotonic() + 5.0))

    def at_server(call: Invocation, proceed: Any) -> Any:
        left.append(call.deadline - time.monotonic())
        return proceed(call.replace(deadline=None))

    def conversation(do: Any) -> None:
        with pytest.raises(Unknown, match="cannot change the deadline"):
            do("call", "Service.add", 1, 2, timeout=60.0)

    world.talk(conversation, server=[world.plain(at_server)], client=[world.plain(at_client)])
    assert 50 < left[0] <= 60
    assert 4 < left[1] <= 5.1


def test_typed_proxies_go_through(world: World) -> None:
    if world.backend == "asyncio":
        pytest.skip("its proxies have coroutines; test_asyncio_service_goes_through shows them")
    seen: list[str] = []

    def interceptor(call: Invocation, proceed: Any) -> Any:
        seen.append(call.method)
        return proceed(call)

    with world.module.Server() as host:
        host.register(Service())
        address = host.start("tcp://127.0.0.1:0")
        with world.module.Client.connect(address, interceptors=[interceptor]) as client:
            assert client.service("Service").add(1, 2) == 3
            pending = client.start("Service.add", 3, 4)
            assert pending.result() == 7
            assert pending.done()
            with pytest.raises(LocalProtocolError, match="already taken"):
                pending.result()
            assert list(client.call_many("Service.twice", [(n,) for n in range(5)])) == [
                *range(0, 10, 2)
            ]
    assert len(seen) == 7


async def _service_through() -> list[str]:
    seen: list[str] = []

    async def interceptor(call: Invocation, proceed: Any) -> Any:
        seen.append(call.method)
        return await proceed(call)

    async with rpc_asyncio.Server() as host:
        host.register(Service())
        address = await host.start("tcp://127.0.0.1:0")
        async with rpc_asyncio.Client.connect(address, interceptors=[interceptor]) as client:
            assert await client.service("Service").add(1, 2) == 3
    return seen


def test_asyncio_service_goes_through() -> None:
    assert asyncio.run(_service_through()) == ["Service.add"]


def test_pending_call_that_is_cancelled_ends(world: World) -> None:
    if world.backend == "asyncio":
        pytest.skip("asyncio has tasks to cancel")

    class Waits:
        def wait(self) -> None:
            current_call().on_cancel(lambda: None)
            while not current_call().cancelled:
                world.module.Server._runtime.sleep(0.001)

    with world.module.Server() as host:
        host.register(Waits())
        address = host.start("tcp://127.0.0.1:0")
        through = [lambda call, proceed: proceed(call)]
        with world.module.Client.connect(address, interceptors=through) as client:
            pending = client.start("Waits.wait")
            while host.stats["running"] == 0:
                world.module.Server._runtime.sleep(0.001)
            pending.cancel()
            with pytest.raises(CallError) as caught:
                pending.result()
            assert caught.value.code == "cancelled"


@pytest.mark.parametrize("end", ["server", "client"])
def test_interceptor_of_the_other_kind_is_refused(world: World, end: str) -> None:
    async def coroutine(call: Invocation, proceed: Any) -> Any: ...

    def function(call: Invocation, proceed: Any) -> Any: ...

    wrong = function if world.backend == "asyncio" else coroutine
    for bad in (wrong, 5):
        with pytest.raises(TypeError, match="an interceptor must be a"):
            world.talk(lambda do: None, **{end: [bad]})


@pytest.mark.parametrize("end", ["server", "client"])
def test_interceptor_that_forgets_to_await_is_told(end: str) -> None:
    world = World("asyncio")

    async def forgets(call: Invocation, proceed: Any) -> Any:
        return proceed(call)

    def conversation(do: Any) -> None:
        kind = Unknown if end == "server" else TypeError
        with pytest.raises(kind, match="returned an awaitable"):
            do("call", "Service.add", 1, 2)

    world.talk(conversation, **{end: [forgets]})


def test_what_is_not_an_interceptors_to_change_is_refused() -> None:
    call = Invocation("S.m", (), {}, {}, None, None, False)
    with pytest.raises(LocalProtocolError, match="cannot change 'method'"):
        call.replace(method="S.other")


# The ten of the examples


def test_each_example_is_short_and_on_the_page() -> None:
    for kind in ("async", "sync"):
        parts = re.split(r"# \[[a-z ]+\]\n", (EXAMPLES / f"interceptors_{kind}.py").read_text())[1:]
        assert len(parts) == 10
        for part in parts:
            code = [line for line in part.strip().splitlines() if line.strip()]
            assert len(code) <= 15, part
            if kind == "async":
                assert f"```python\n{part.strip()}\n```" in PAGE.read_text()


def test_role_is_required_where_it_is(world: World) -> None:
    config = ServerConfig(authenticate=lambda token, peer: "user")

    def conversation(do: Any) -> int:
        with pytest.raises(PermissionDenied, match="is for admin"):
            do("call", "Service.twice", 1)
        return do("call", "Service.add", 1, 2)

    roles = world.examples.require_role({"Service.twice": "admin", "Service.add": "user"})
    assert world.talk(conversation, server=[roles], config=config) == 3


def test_rate_is_limited(world: World) -> None:
    def conversation(do: Any) -> None:
        for _ in range(3):
            do("call", "Service.twice", 1)
        with pytest.raises(ResourceExhausted, match="at most 3 calls in 60 s"):
            do("call", "Service.twice", 1)

    world.talk(conversation, server=[world.examples.rate_limit(3, 60.0)])


def test_call_is_tried_again(world: World) -> None:
    tries = 0

    def unwilling(call: Invocation, proceed: Any) -> Any:
        nonlocal tries
        tries += 1
        if tries < 3:
            raise Unavailable("not yet", maybe_executed=False)
        return proceed(call)

    got = world.talk(
        lambda do: do("call", "Service.add", 1, 2),
        client=[world.examples.retry(3, 0.001), world.plain(unwilling)],
    )
    assert (got, tries) == (3, 3)


def test_answers_are_cached(world: World) -> None:
    def conversation(do: Any) -> list[int]:
        return [do("call", "Service.add", 1, 2) for _ in range(3)]

    assert world.talk(conversation, client=[world.examples.cache(60.0, {"Service.add"})]) == [3] * 3
    assert world.service.calls == 1


def test_caller_learns_how_long_it_took(world: World) -> None:
    reply = world.talk(
        lambda do: do("request", "Service.add", 1, 2), server=[world.examples.timing]
    )
    assert float(reply.metadata["took-ms"]) >= 0


def test_tenant_is_known(world: World) -> None:
    tenants: list[str] = []

    def look(call: Invocation, proceed: Any) -> Any:
        tenants.append(world.examples.tenant.get())
        return proceed(call)

    def conversation(do: Any) -> None:
        with pytest.raises(CallError, match="must name a tenant"):
            do("call", "Service.twice", 1)
        do("call", "Service.twice", 1, metadata={"tenant": "acme"})

    world.talk(conversation, server=[world.examples.tenant_from_metadata, world.plain(look)])
    assert tenants == ["acme"]


def test_secrets_are_not_logged(world: World, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, world.examples.__name__):
        world.talk(
            lambda do: do("call", "Service.login", user="eve", password="hunter2"),
            server=[world.examples.log_calls({"password"})],
        )
    assert "'eve'" in caplog.text
    assert "hunter2" not in caplog.text


def test_circuit_opens(world: World) -> None:
    asked = 0

    def down(call: Invocation, proceed: Any) -> Any:
        nonlocal asked
        asked += 1
        raise Unavailable("down")

    def conversation(do: Any) -> None:
        for _ in range(5):
            with pytest.raises(Unavailable):
                do("call", "Service.twice", 1)

    breaker = world.examples.circuit_breaker(2, 60.0)
    world.talk(conversation, client=[breaker, world.plain(down)])
    assert asked == 2


def test_calls_are_audited(world: World) -> None:
    entries: list[dict[str, Any]] = []

    def conversation(do: Any) -> None:
        do("call", "Service.twice", 1)
        with pytest.raises(NotFound):
            do("call", "Service.fail", "other")

    world.talk(conversation, server=[world.examples.audit(entries.append)])
    assert [(one["method"], one["error"]) for one in entries] == [
        ("Service.twice", None),
        ("Service.fail", "NotFound"),
    ]


def test_errors_are_mapped(world: World) -> None:
    def conversation(do: Any) -> None:
        with pytest.raises(CallError, match="no such thing") as caught:
            do("call", "Service.fail", "key")
        assert caught.value.code == "invalid_argument"

    world.talk(conversation, server=[world.examples.map_errors])
