"""One blocking HTTP request, for gevent and threads."""

import ssl as ssl_module
from collections.abc import Callable
from socket import MSG_PEEK
from time import monotonic
from typing import Any

from rpc_proto.http.client import Fetch

from .runtime import Runtime
from .sockets import dial
from .tls import Tls

__all__ = ["Idle", "Line", "fetch"]

_READ_SIZE = 64 * 1024


class Line:
    """A connection for one request after another."""

    __slots__ = ("sock", "tls")

    def __init__(self, sock: Any, tls: Tls | None) -> None:
        self.sock = sock
        self.tls = tls

    def is_quiet(self) -> bool:
        """Whether the server has sent nothing since the last response, such as EOF."""
        try:
            self.sock.settimeout(0)
            self.sock.recv(1, MSG_PEEK)
        except BlockingIOError:
            return True
        except OSError:
            pass
        return False


Idle = dict[str, Line]  # that may be used again, by origin


def fetch(
    what: Fetch,
    timeout: float,
    runtime: Runtime,
    ssl: ssl_module.SSLContext | None = None,
    opened: Callable[[Any], None] | None = None,
    idle: Idle | None = None,
    part: Callable[[bytes], None] | None = None,
) -> None:
    """Send a request and receive the response into it; OSError, TimeoutError or ValueError.

    `opened(sock)` is called with the socket, whose shutdown ends the wait. `idle` has the reusable
    connections. `part(data)` gets the pieces of a successful response as they arrive; `timeout`
    then limits the first one.
    """
    until = monotonic() + timeout
    deadline: float | None = until
    line = idle.pop(what.origin, None) if idle is not None else None
    if line is not None and not line.is_quiet():
        line.sock.close()
        line = None
    if line is None:
        line = Line(dial(what.where, None, until, runtime.socket, runtime.look_up), None)
    sock = line.sock
    try:
        if opened is not None:
            opened(sock)
        if line.tls is None and what.where.has_tls:
            context = ssl or ssl_module.create_default_context()
            line.tls = Tls(context, server_side=False, hostname=what.where.host)
        tls = line.tls
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
            if part is not None and what.status == 200 and (data := what.take()):
                deadline = None
                part(data)
    finally:
        spare = idle if what.reusable else None
        if spare is None or spare.setdefault(what.origin, line) is not line:
            sock.close()


def _set_patience(sock: Any, deadline: float | None) -> None:
    left = None if deadline is None else deadline - monotonic()
    if left is not None and left <= 0:
        raise TimeoutError
    sock.settimeout(left)
