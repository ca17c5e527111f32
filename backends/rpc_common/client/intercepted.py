"""The interceptors of clients, for all backends."""

import math
from collections.abc import Iterable, Mapping
from time import monotonic
from typing import TYPE_CHECKING, Any

from rpc_proto import CallCompleted, Peer
from rpc_proto.service.context import inherit

if TYPE_CHECKING:
    from rpc_proto import Interceptor, Invocation
    from rpc_proto.service.interceptors import Proceed

__all__ = ["Intercepted"]


class Intercepted:
    """Sends a client's calls through its interceptors: `proceed(invocation(...))`."""

    def __init__(
        self, client: Any, interceptors: "tuple[Interceptor, ...]", innermost: "Proceed"
    ) -> None:
        from rpc_proto.service.interceptors import check_awaited, layers

        self.proceed = layers(interceptors, innermost)
        self.check = check_awaited
        self._client = client
        self._peer = Peer(client.address)

    @staticmethod
    def checked(
        interceptors: "Iterable[Interceptor]", *, coroutines: bool
    ) -> "tuple[Interceptor, ...]":
        """Return them as a tuple; TypeError if one is not what the backend needs."""
        checked = tuple(interceptors)
        if checked:  # what is behind this is not imported for nothing
            from rpc_proto.service.interceptors import check_interceptors

            check_interceptors(checked, coroutines=coroutines)
        return checked

    def invocation(
        self,
        method: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        returns: Any,
        timeout: float | None,
        metadata: Mapping[str, str] | None,
        one_way: bool = False,
    ) -> "Invocation":
        """Return a call as interceptors see it."""
        from rpc_proto.service.interceptors import Invocation

        default = self._client.call_timeout
        deadline, metadata = inherit(timeout, default, monotonic(), metadata)
        return Invocation(
            method, args, kwargs, metadata or {}, deadline, self._peer, one_way, returns
        )

    @staticmethod
    def start(what: "Invocation") -> tuple[Any, ...]:
        """Return the arguments for `_start` of a client, for a call from the last interceptor."""
        deadline = what.deadline
        timeout = math.inf if deadline is None else max(0.0, deadline - monotonic())
        return (
            *(what.method, tuple(what.args), dict(what.kwargs), what.returns, timeout),
            *(what.metadata, what.one_way),
        )

    @staticmethod
    def answer(what: "Invocation", event: CallCompleted) -> Any:
        """Return the result of a call, and keep the metadata that came with it."""
        what.reply_metadata.clear()
        what.reply_metadata.update(event.metadata)
        return event.value
