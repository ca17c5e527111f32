"""Ten interceptors for rpc_gevent and rpc_blocking; interceptors_async.py has them for rpc_asyncio.

Those that need settings are made by a function. Pass them to a server or a client:

    Server(interceptors=[timing, require_role({"Orders.delete": "admin"})])
    Client.connect(address, interceptors=[retry(3), circuit_breaker(5, 10.0)])
"""

import logging
import time
from collections import defaultdict, deque
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import Any

from rpc_proto import (
    InvalidArgument,
    Invocation,
    PermissionDenied,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
)

log = logging.getLogger(__name__)
tenant: ContextVar[str] = ContextVar("tenant")


# [auth]
def require_role(roles: Mapping[str, str]) -> Any:
    """Let only callers with a role call the methods that ask for one."""

    def interceptor(call: Invocation, proceed: Any) -> Any:
        needed = roles.get(call.method)
        if needed is not None and call.peer.identity != needed:
            raise PermissionDenied(f"{call.method} is for {needed}")
        return proceed(call)

    return interceptor


# [rate limit]
def rate_limit(most: int, seconds: float) -> Any:
    """Allow each peer so many calls in so many seconds."""
    recent: dict[str, deque[float]] = defaultdict(deque)

    def interceptor(call: Invocation, proceed: Any) -> Any:
        times, now = recent[call.peer.address.rpartition(":")[0]], time.monotonic()
        while times and times[0] < now - seconds:
            times.popleft()
        if len(times) >= most:
            raise ResourceExhausted(f"at most {most} calls in {seconds:g} s")
        times.append(now)
        return proceed(call)

    return interceptor


# [retry]
def retry(attempts: int, pause: float = 0.05) -> Any:
    """Client: try again when the server certainly did not run the call."""

    def interceptor(call: Invocation, proceed: Any) -> Any:
        attempt = 1
        while True:
            try:
                return proceed(call)
            except (Unavailable, ResourceExhausted) as error:
                if error.maybe_executed or attempt == attempts:
                    raise
            time.sleep(pause * attempt)
            attempt += 1

    return interceptor


# [cache]
def cache(seconds: float, methods: set[str]) -> Any:
    """Client: answer calls of some methods from memory for a while."""
    known: dict[Any, tuple[float, Any]] = {}

    def interceptor(call: Invocation, proceed: Any) -> Any:
        if call.method not in methods:
            return proceed(call)
        key = call.method, call.args, tuple(sorted(call.kwargs.items()))
        until, value = known.get(key, (0.0, None))
        if until < time.monotonic():
            value = proceed(call)
            known[key] = time.monotonic() + seconds, value
        return value

    return interceptor


# [timing]
def timing(call: Invocation, proceed: Any) -> Any:
    """Server: tell the caller how long the call took."""
    began = time.monotonic()
    try:
        return proceed(call)
    finally:
        call.reply_metadata["took-ms"] = f"{(time.monotonic() - began) * 1000:.1f}"


# [tenant]
def tenant_from_metadata(call: Invocation, proceed: Any) -> Any:
    """Server: make the caller's tenant known to the handler, and insist on one."""
    name = call.metadata.get("tenant")
    if not name:
        raise Unauthenticated("the metadata must name a tenant")
    tenant.set(name)
    return proceed(call)


# [redaction]
def log_calls(secret: set[str]) -> Any:
    """Log each call with its arguments, but for those by the names of secrets."""

    def interceptor(call: Invocation, proceed: Any) -> Any:
        shown = {name: "***" if name in secret else value for name, value in call.kwargs.items()}
        log.info("%s %r %r", call.method, call.args, shown)
        return proceed(call)

    return interceptor


# [circuit breaker]
def circuit_breaker(failures: int, seconds: float) -> Any:
    """Client: after so many failures in a row, fail at once for a while."""
    failed, opened = 0, float("-inf")

    def interceptor(call: Invocation, proceed: Any) -> Any:
        nonlocal failed, opened
        if failed >= failures and time.monotonic() < opened + seconds:
            raise Unavailable("the circuit is open", maybe_executed=False)
        try:
            result = proceed(call)
        except Unavailable:
            failed, opened = failed + 1, time.monotonic()
            raise
        failed = 0
        return result

    return interceptor


# [audit]
def audit(write: Callable[[dict[str, Any]], None]) -> Any:
    """Write down who called what, and what came of it."""

    def interceptor(call: Invocation, proceed: Any) -> Any:
        entry = {"who": call.peer.identity or call.peer.address, "method": call.method}
        try:
            result = proceed(call)
        except BaseException as error:
            write({**entry, "error": type(error).__name__})
            raise
        write({**entry, "error": None})
        return result

    return interceptor


# [errors]
def map_errors(call: Invocation, proceed: Any) -> Any:
    """Server: answer what the application raises with a code of its own."""
    try:
        return proceed(call)
    except (ValueError, KeyError) as error:
        raise InvalidArgument(str(error)) from error
