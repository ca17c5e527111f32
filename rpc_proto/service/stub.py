"""Proxies: `client.service(...)` returns a service as an object, in any driver."""

from collections.abc import Callable
from typing import Any

from .methods import annotated_methods, service_name

__all__ = ["ServiceProxy", "service_proxy"]

Invoke = Callable[..., Any]  # (method, args, kwargs, returns) -> what the driver's calls return


class ServiceProxy:
    """Each attribute is a method of the service; calling it calls the server."""

    __slots__ = ("_invoke", "_name", "_returns")

    def __init__(self, invoke: Invoke, name: str, returns: dict[str, Any] | None) -> None:
        self._invoke = invoke
        self._name = name
        self._returns = returns

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("_"):  # no service has such a method, but copy and pickle ask
            raise AttributeError(name)
        returns = None
        if self._returns is not None:
            if name not in self._returns:
                raise AttributeError(f"{self._name} has no method {name!r}")
            returns = self._returns[name]
        invoke = self._invoke
        method = f"{self._name}.{name}"
        return lambda *args, **kwargs: invoke(method, args, kwargs, returns)

    def __dir__(self) -> list[str]:
        """List the methods that are known: those that a class declares."""
        return sorted({*super().__dir__(), *(self._returns or ())})

    def __repr__(self) -> str:
        return f"<ServiceProxy {self._name}>"


def service_proxy(invoke: Invoke, service: Any) -> ServiceProxy:
    """Return a proxy for a service by name, or typed by a class that declares its methods."""
    if isinstance(service, str):
        return ServiceProxy(invoke, service, None)
    returns = {method.name: method.returns for method in annotated_methods(service)}
    return ServiceProxy(invoke, service_name(service), returns)
