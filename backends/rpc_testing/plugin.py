"""The pytest plugin: fixtures that join a client to services in memory (docs/testing.md).

A coroutine function that takes `asyncio_rig` is run by this plugin, in virtual time.
"""

import inspect
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from .in_asyncio import AsyncioRig
    from .in_gevent import GeventRig
    from .in_threads import BlockingRig

__all__: list[str] = []


@pytest.fixture
def asyncio_rig() -> "Iterator[AsyncioRig]":
    """Servers and clients of rpc_asyncio in memory, in virtual time."""
    from .in_asyncio import AsyncioRig

    with AsyncioRig().open() as rig:
        yield rig


@pytest.fixture
def gevent_rig() -> "Iterator[GeventRig]":
    """Servers and clients of rpc_gevent in memory, in virtual time."""
    from .in_gevent import GeventRig

    with GeventRig().open() as rig:
        yield rig


@pytest.fixture
def blocking_rig() -> "Iterator[BlockingRig]":
    """Servers and clients for threads in memory, in virtual time."""
    from .in_threads import BlockingRig

    with BlockingRig().open() as rig:
        yield rig


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a coroutine function in the loop of the rig that it takes."""
    function = pyfuncitem.obj
    rig: Any = pyfuncitem.funcargs.get("asyncio_rig")
    if rig is None or not inspect.iscoroutinefunction(function):
        return None
    names = inspect.signature(function).parameters
    rig.run(function(**{name: pyfuncitem.funcargs[name] for name in names}))
    return True
