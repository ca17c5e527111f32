"""Clients with options for all their calls."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar, overload

__all__ = ["WithOptions"]

Api = TypeVar("Api")


class WithOptions:
    """A view of a client whose calls all have these options; `client.with_options` returns it.

    Every keyword of a call is an argument of the method, whatever its name. The methods return what
    those of the client return: in rpc_asyncio, await `call`, `request` and `notify`.
    """

    __slots__ = ("_client", "_options")

    def __init__(self, client: Any, options: Mapping[str, Any]) -> None:
        self._client = client
        self._options = {name: value for name, value in options.items() if value is not None}

    def __repr__(self) -> str:
        given = ", ".join(f"{name}={value!r}" for name, value in self._options.items())
        return f"<{self._client!r} with {given or 'no options'}>"

    def with_options(self, **options: Any) -> "WithOptions":
        """Return a view with more options; metadata is merged.

        The options are those of the client's `with_options`.
        """
        more: WithOptions = self._client.with_options(**options)
        merged = {**self._options, **more._options}
        if "metadata" in self._options and "metadata" in more._options:
            merged["metadata"] = {**self._options["metadata"], **more._options["metadata"]}
        return WithOptions(self._client, merged)

    def call(self, method: str, /, *args: Any, **kwargs: Any) -> Any:
        """Call "Service.method" and return its result."""
        return self._client.perform("call", method, args, kwargs, self._options)

    def request(self, method: str, /, *args: Any, **kwargs: Any) -> Any:
        """Like `call`, but return the server's metadata with the result: a `Reply`."""
        return self._client.perform("request", method, args, kwargs, self._options)

    def notify(self, method: str, /, *args: Any, **kwargs: Any) -> Any:
        """Send a one-way call, which has no answer."""
        return self._client.perform("notify", method, args, kwargs, self._options)

    def start(self, method: str, /, *args: Any, **kwargs: Any) -> Any:
        """Send a call and return at once: a `Pending`. Not for balanced clients."""
        return self._client.perform("start", method, args, kwargs, self._options)

    def stream(self, method: str, /, *args: Any, **kwargs: Any) -> Any:
        """Return a call with items: a `Stream`."""
        return self._client.perform("stream", method, args, kwargs, self._options)

    @overload
    def service(self, service: str) -> Any: ...
    @overload
    def service(self, service: Callable[..., Api]) -> Api: ...
    def service(self, service: Any) -> Any:
        """Return a proxy whose calls have the options: see the client's `service`."""
        return self._client.service(service, **self._options)
