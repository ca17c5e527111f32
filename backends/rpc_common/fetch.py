"""One HTTP request, in place, for runtimes that wait in place."""

import ssl as ssl_module
from collections.abc import Callable
from time import monotonic
from typing import Any

from rpc_proto.http.client import Fetch

from .runtime import Runtime
from .sockets import dial
from .tls import Tls

__all__ = ["fetch"]

_READ_SIZE = 64 * 1024


def fetch(
    what: Fetch,
    timeout: float,
    runtime: Runtime,
    ssl: ssl_module.SSLContext | None = None,
    opened: Callable[[Any], None] | None = None,
) -> None:
    """Send a request and receive the answer into it; OSError, TimeoutError or ValueError.

    `opened(sock)` is told of the socket: shutting that down ends the wait.
    """
    deadline = monotonic() + timeout
    sock = dial(what.where, None, deadline, runtime.socket, runtime.look_up)
    try:
        if opened is not None:
            opened(sock)
        tls = None
        if what.where.has_tls:
            context = ssl or ssl_module.create_default_context()
            tls = Tls(context, server_side=False, hostname=what.where.host)
        _set_patience(sock, deadline)
        sock.sendall(what.data if tls is None else tls.encrypt(what.data))
        complete = False
        while not complete:
            _set_patience(sock, deadline)
            data = sock.recv(_READ_SIZE)
            if tls is not None and data:
                data = tls.decrypt(data)
                sock.sendall(tls.pending())
                if not data:
                    continue
            complete = what.receive(data)
    finally:
        sock.close()


def _set_patience(sock: Any, deadline: float) -> None:
    left = deadline - monotonic()
    if left <= 0:
        raise TimeoutError
    sock.settimeout(left)
