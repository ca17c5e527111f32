"""A program that is a server: what it says, and how signals end it; the drivers run it."""

import signal
import ssl as ssl_module
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from rpc_proto import LocalProtocolError

__all__ = ["SIGNALS", "Program", "handlers_restored"]

# What ends a server in order; a second one ends it at once.
SIGNALS = (signal.SIGTERM, signal.SIGINT)

Listen = list[tuple[str, ssl_module.SSLContext | None]]


@contextmanager
def handlers_restored() -> Iterator[None]:
    """Restore the handlers of SIGNALS at the end: event loops leave the default ones behind."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:  # else it was not made by Python
                signal.signal(number, handler)


class Program:
    """What `server.run` listens on, and what it does when something happens.

    With `stdin` the end of standard input ends the server, too.
    """

    stdin = False

    def __init__(self, listen: Listen, advertise: Any = None, grace: float = 5.0) -> None:
        if threading.current_thread() is not threading.main_thread():
            raise LocalProtocolError("run() handles signals, which only the main thread can")
        self.listen = listen
        self.advertise = advertise
        self.grace = grace

    def listening(self, address: str) -> None:
        """Say where the server can be reached: signals are heard from now on."""
        print(f"listening on {address}", flush=True)

    def failed(self, address: str, error: OSError | ValueError) -> NoReturn:
        """Raise what there is to say of an address that the server cannot listen on."""
        raise error

    def no_stdin(self) -> NoReturn:
        """Raise what there is to say of a standard input whose end cannot be waited for."""
        raise LocalProtocolError("standard input must be a pipe")

    def stopping(self, server: Any, number: int | None) -> None:
        """Record that the server begins to stop: which signal ended it, None for stdin."""

    def stopped(self) -> None:
        """Record that the server has stopped; in rpc_asyncio the loop still runs."""
