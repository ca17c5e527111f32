"""The built-in health service, which tells callers whether to send calls, like gRPC's."""

from collections.abc import Callable

from rpc_proto.errors import NotFound

from .dispatch import Dispatcher
from .methods import expose, quick

__all__ = ["HEALTH", "Health"]

HEALTH = "rpc.Health"

_SERVING = "serving"
_NOT_SERVING = "not_serving"


class Health:
    """Whether this server, and each of its services, is ready for calls."""

    def __init__(self, dispatcher: Dispatcher, is_draining: Callable[[], bool]) -> None:
        self._dispatcher = dispatcher
        self._is_draining = is_draining
        self._unwell: set[str] = set()  # services, or "" for the server, that are not serving

    @expose
    @quick
    def check(self, service: str = "") -> str:
        """Return "serving" or "not_serving", for the whole server if no service is named."""
        if service and service not in self._dispatcher.services():
            raise NotFound(f"no service {service!r:.100} is registered here")
        return self._tell(service)

    def states(self) -> dict[str, str]:
        """Return {service: result of `check`}, with "" for the server."""
        return {name: self._tell(name) for name in ("", *sorted(self._dispatcher.services()))}

    def set(self, service: str, serving: bool) -> None:
        """Set the state of a service, or of the server (""); ValueError for an unknown service."""
        if service and service not in self._dispatcher.services():
            raise ValueError(f"no service named {service!r} is registered")
        if serving:
            self._unwell.discard(service)
        else:
            self._unwell.add(service)

    def forget(self, service: str) -> None:
        """Forget a removed service, so that a new one with its name starts out as serving."""
        self._unwell.discard(service)

    def _tell(self, service: str) -> str:
        well = service not in self._unwell and not self._is_draining()
        return _SERVING if well else _NOT_SERVING
