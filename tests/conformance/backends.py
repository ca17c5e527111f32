"""Which backends this machine can run: the one place where the suite looks."""

import os
from importlib.util import find_spec
from itertools import product
from typing import NamedTuple

# A backend and what it needs besides itself.
NEEDS: dict[str, tuple[str, ...]] = {"asyncio": (), "gevent": ("gevent",), "blocking": ()}


def package(backend: str) -> str:
    """Name the package of a backend."""
    return f"rpc_{backend}"


def _missing(backend: str) -> str | None:
    for name in (package(backend), *NEEDS[backend]):
        if find_spec(name) is None:
            return name
    return None


INSTALLED = tuple(backend for backend in NEEDS if _missing(backend) is None)
if not INSTALLED:
    raise RuntimeError("no backend can be imported")
LEFT_OUT = {
    backend: f"{name} is not installed"
    for backend in NEEDS
    if (name := _missing(backend)) is not None
}


class Pair(NamedTuple):
    """The backend of the client and that of the server."""

    client: str
    server: str

    def __str__(self) -> str:
        return f"{self.client}-to-{self.server}"


# Clients that are not of this project: CONFORMANCE_DRIVERS names modules, each with a RUNTIME (see
# `conformance.runtimes.Runtime`). Then only pairs with these run.
GUESTS = tuple(filter(None, os.environ.get("CONFORMANCE_DRIVERS", "").split(",")))

PAIRS = [Pair(*pair) for pair in product(GUESTS or INSTALLED, INSTALLED)]
