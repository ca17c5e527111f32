"""Proxies: `client.service(...)` returns a service as an object, in any driver."""

from collections.abc import Callable
from typing import Any

from rpc_proto.wire.frames import Flag

from .methods import Declared, annotated_methods, service_name

__all__ = ["ServiceProxy", "service_proxy"]

Invoke = Callable[..., Any]  # (kind, method, args, kwargs, returns) -> what the driver returns


class ServiceProxy:
    """Each attribute is a method of the service; calling it calls the server."""

    __slots__ = ("_declared", "_invoke", "_name")

    def __init__(self, invoke: Invoke, name: str, declared: dict[str, Declared] | None) -> None:
        self._invoke = invoke
        self._name = name
        self._declared = declared

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("_"):  # no service has such a method, but copy and pickle ask
            raise AttributeError(name)
        invoke = self._invoke
        method = f"{self._name}.{name}"
        if self._declared is None:
            return lambda *args, **kwargs: invoke("call", method, args, kwargs, None)
        declared = self._declared.get(name)
        if declared is None:
            raise AttributeError(f"{self._name} has no method {name!r}")
        returns = declared.returns
        if declared.streams:
            return _streaming(invoke, method, declared)
        return lambda *args, **kwargs: invoke("call", method, args, kwargs, returns)

    def __dir__(self) -> list[str]:
        """List the methods that are known: those that a class declares."""
        return sorted({*super().__dir__(), *(self._declared or ())})

    def __repr__(self) -> str:
        return f"<ServiceProxy {self._name}>"


def service_proxy(invoke: Invoke, service: Any) -> ServiceProxy:
    """Return a proxy for a service by name, or typed by a class that declares its methods."""
    if isinstance(service, str):
        return ServiceProxy(invoke, service, None)
    declared = {method.name: method for method in annotated_methods(service)}
    return ServiceProxy(invoke, service_name(service), declared)


def _streaming(invoke: Invoke, method: str, declared: Declared) -> Callable[..., Any]:
    kind = "stream" if declared.streams & Flag.SERVER_STREAM else "call"
    takes = declared.takes

    def call(*args: Any, **kwargs: Any) -> Any:
        if takes is not None:
            if takes.name in kwargs:
                kwargs[takes.name] = _iterator(kwargs[takes.name])
            elif takes.place < len(args):
                place = takes.place
                args = (*args[:place], _iterator(args[place]), *args[place + 1 :])
        return invoke(kind, method, args, kwargs, declared.returns)

    return call


def _iterator(items: Any) -> Any:
    return items if hasattr(items, "__aiter__") else iter(items)
