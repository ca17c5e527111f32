"""Runs `async def` tests on both event loops and checks that each leaves nothing behind."""

import asyncio
import gc
import inspect
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import uvloop

from support.certificates import Authority

LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.SelectorEventLoop,
    "uvloop": uvloop.new_event_loop,
}

# No test may take longer, in seconds, whatever it waits for.
LONGEST = 30.0


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "plain_loop: an async test that runs on asyncio's own loop")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if inspect.iscoroutinefunction(metafunc.function):
        plain = metafunc.definition.get_closest_marker("plain_loop") is not None
        metafunc.fixturenames.append("loop_name")
        metafunc.parametrize("loop_name", ["asyncio"] if plain else list(LOOPS))


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    names = inspect.signature(pyfuncitem.obj).parameters
    arguments = {name: pyfuncitem.funcargs[name] for name in names}
    run(pyfuncitem.obj(**arguments), LOOPS[str(pyfuncitem.callspec.params["loop_name"])])
    return True


def run(
    body: Coroutine[Any, Any, None], make_loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    """Run the body of a test; fail if it leaves a task, a timer or an unseen exception behind."""
    unseen: list[dict[str, Any]] = []
    with asyncio.Runner(loop_factory=make_loop) as runner:
        loop = runner.get_loop()
        loop.set_exception_handler(lambda _, context: unseen.append(context))
        runner.run(_bounded(body))
        gc.collect()
    assert not unseen


async def _bounded(body: Coroutine[Any, Any, None]) -> None:
    async with asyncio.timeout(LONGEST):
        await body
    for _ in range(10):  # what is closing takes a few turns of the loop
        await asyncio.sleep(0)
    assert asyncio.all_tasks() == {asyncio.current_task()}
    timers = getattr(asyncio.get_running_loop(), "_scheduled", [])
    assert [timer for timer in timers if not timer.cancelled()] == []


@pytest.fixture(scope="session")
def other_authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Certificates of an authority that nobody in the tests trusts."""
    return Authority(tmp_path_factory.mktemp("other-authority"))
