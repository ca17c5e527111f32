"""Servers as programs: what they print, and how signals stop them; the drivers run them."""

import signal
import ssl as ssl_module
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from rpc_proto import LocalProtocolError

__all__ = ["SIGNALS", "Program", "handlers_restored"]

# The signals that stop a server gracefully; a second one stops it at once.
SIGNALS = (signal.SIGTERM, signal.SIGINT)

Listen = list[tuple[str, ssl_module.SSLContext | None]]


@contextmanager
def handlers_restored() -> Iterator[None]:
    """Restore the handlers of SIGNALS at the end, because event loops leave the default ones."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:  # None if it was not installed from Python
                signal.signal(number, handler)


class Program:
    """What `server.run` listens on, and what it prints.

    With `stdin`, the end of standard input stops the server, too.
    """

    stdin = False

    def __init__(self, listen: Listen, advertise: Any = None, grace: float = 5.0) -> None:
        if threading.current_thread() is not threading.main_thread():
            raise LocalProtocolError("run() handles signals, so call it in the main thread")
        self.listen = listen
        self.advertise = advertise
        self.grace = grace

    def listening(self, address: str) -> None:
        """Print the address; from now on signals are handled."""
        print(f"listening on {address}", flush=True)

    def failed(self, address: str, error: OSError | ValueError) -> NoReturn:
        """Raise the error of an address that the server cannot listen on."""
        raise error

    def no_stdin(self) -> NoReturn:
        """Raise the error of a standard input whose end cannot be waited for."""
        raise LocalProtocolError("standard input must be a pipe")

    def stopping(self, server: Any, number: int | None) -> None:
        """Record that the server begins to stop, by which signal, or None for standard input."""

    def stopped(self) -> None:
        """Record that the server has stopped; in rpc_asyncio the loop still runs."""
