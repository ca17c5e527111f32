"""The blocking server of the suite: its handlers are plain functions in threads."""

import threading
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from conformance.host import Host
from conformance.services import LONGEST, Counters, PlainHop
from conformance.streams import PlainStreams
from rpc_blocking import Client, Server
from rpc_proto import current_call

__all__ = ["HOST"]


class Gates:
    """Gates at which a thread waits for the opening or for what else sets its event."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: set[str] = set()
        self._waiting: defaultdict[str, list[threading.Event]] = defaultdict(list)

    def open(self, key: str) -> None:
        with self._lock:
            self._open.add(key)
            for woken in self._waiting.pop(key, ()):
                woken.set()

    def wake(self, key: str, woken: threading.Event) -> None:
        """Set the event when the gate is opened."""
        with self._lock:
            if key in self._open:
                woken.set()
            else:
                self._waiting[key].append(woken)


gates = Gates()


class Gate:
    """Handlers that wait until the test opens their gate."""

    def __init__(self, counters: Counters) -> None:
        self._counters = counters

    def wait(self, key: str, value: Any = "through") -> Any:
        call = current_call()
        woken = threading.Event()
        self._counters.add("started", key)
        call.on_cancel(woken.set)
        gates.wake(key, woken)
        woken.wait(LONGEST)
        if call.cancelled:
            self._counters.add("cancelled", key)
        self._counters.add("ended", key)
        call.raise_if_cancelled()
        return value

    def stubborn(self, key: str) -> str:
        """Take note of the cancellation and go on."""
        woken = threading.Event()
        self._counters.add("started", key)
        current_call().on_cancel(lambda: self._counters.add("cancelled", key))
        gates.wake(key, woken)
        woken.wait(LONGEST)
        self._counters.add("ended", key)
        return "too late"


class BlockingHost(Host):
    """Runs a server with threads."""

    def run(self) -> None:
        gate = Gate(self.counters)
        hop = PlainHop(Client, gate, time.sleep)
        self.make_server(Server, [*self.plain_services(), gate, hop])
        streams = PlainStreams(self.counters, gate, Client.connect)
        for name in ("Streams", "PlainStreams"):
            self.server.register(streams, name)
        self.serving([self.server.start(**where) for where in self.addresses()])
        threading.Event().wait()

    def ask(self, function: Callable[[], Any]) -> Any:
        return function()

    def open(self, key: str) -> None:
        gates.open(key)

    def begin_stop(self, grace: float) -> None:
        threading.Thread(target=self.stop, args=(grace,), name="stop", daemon=True).start()


HOST = BlockingHost
