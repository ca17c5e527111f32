"""The built-in service that lists a server's services."""

from typing import Any

from .dispatch import Dispatcher
from .methods import quick

__all__ = ["INTROSPECTION", "Introspection"]

INTROSPECTION = "rpc.Introspection"


class Introspection:
    """Lists this server's services."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher

    @quick
    def services(self) -> dict[str, dict[str, Any]]:
        """Return {service: {method: {"signature": ..., "doc": ...}}}."""
        services: dict[str, dict[str, Any]] = {}
        for full, method in sorted(self._dispatcher.methods.items()):
            name, _, short = full.rpartition(".")
            services.setdefault(name, {})[short] = {
                "signature": method.signature,
                "doc": method.doc,
            }
        return services
