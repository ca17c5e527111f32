"""The built-in service that lists a server's services."""

from typing import Any

from rpc_proto.wire.frames import Flag

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
        """Return {service: {method: {"signature", "doc", "kind", "takes", "gives"}}}.

        `kind` is "unary", "client_stream", "server_stream" or "bidirectional"; `takes` and `gives`
        are the types of the items in each direction, and absent where there are none.
        """
        services: dict[str, dict[str, Any]] = {}
        for full, method in sorted(self._dispatcher.methods.items()):
            name, _, short = full.rpartition(".")
            about = {"signature": method.signature, "doc": method.doc, "kind": method.kind}
            if method.takes is not None:
                about["takes"] = _type_name(method.takes.type)
            if method.streams & Flag.SERVER_STREAM:
                about["gives"] = _type_name(method.returns)
            services.setdefault(name, {})[short] = about
        return services


def _type_name(kind: Any) -> str:
    if kind is None:
        return "Any"
    return kind.__name__ if isinstance(kind, type) else str(kind).removeprefix("typing.")
