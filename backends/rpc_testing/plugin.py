"""The pytest plugin: fixtures that join a client to services in memory (docs/testing.md).

A coroutine function that takes `asyncio_rig` is run by this plugin, in virtual time.
"""

import inspect
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from .in_asyncio import AsyncioRig

__all__: list[str] = []


@pytest.fixture
def asyncio_rig() -> "Iterator[AsyncioRig]":
    """Servers and clients of rpc_asyncio in memory, in virtual time."""
    from .in_asyncio import AsyncioRig

    with AsyncioRig().open() as rig:
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
