"""The built-in service that tells whether to send calls here, as gRPC's health service does."""

from collections.abc import Callable

from rpc_proto.errors import NotFound

from .dispatch import Dispatcher
from .methods import expose, quick

__all__ = ["HEALTH", "Health"]

HEALTH = "rpc.Health"

_SERVING = "serving"
_NOT_SERVING = "not_serving"


class Health:
    """Whether this server, and each of its services, is to be called."""

    def __init__(self, dispatcher: Dispatcher, is_draining: Callable[[], bool]) -> None:
        self._dispatcher = dispatcher
        self._is_draining = is_draining
        self._unwell: set[str] = set()  # services, or "" for the server, that said so

    @expose
    @quick
    def check(self, service: str = "") -> str:
        """Return "serving" or "not_serving", of the whole server if no service is named."""
        if service and service not in self._dispatcher.services():
            raise NotFound(f"no service {service!r:.100} is registered here")
        return self._tell(service)

    def states(self) -> dict[str, str]:
        """Return {service: what `check` says}, with "" for the server."""
        return {name: self._tell(name) for name in ("", *sorted(self._dispatcher.services()))}

    def set(self, service: str, serving: bool) -> None:
        """Say how a service is, or "" for the server; ValueError if there is none of that name."""
        if service and service not in self._dispatcher.services():
            raise ValueError(f"no service named {service!r} is registered")
        if serving:
            self._unwell.discard(service)
        else:
            self._unwell.add(service)

    def forget(self, service: str) -> None:
        """Forget a service that was removed: a new one of the same name starts out serving."""
        self._unwell.discard(service)

    def _tell(self, service: str) -> str:
        well = service not in self._unwell and not self._is_draining()
        return _SERVING if well else _NOT_SERVING
