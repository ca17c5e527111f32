"""The gevent server of the suite: its handlers are plain functions in greenlets."""

from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import gevent
from gevent.event import Event

from conformance.host import Host
from conformance.services import LONGEST, Counters, PlainHop
from conformance.streams import PlainStreams
from rpc_gevent import Client, Server

__all__ = ["HOST"]

gates: defaultdict[str, Event] = defaultdict(Event)


class Gate:
    """Handlers that wait until the test opens their gate."""

    def __init__(self, counters: Counters) -> None:
        self._counters = counters

    def wait(self, key: str, value: Any = "through") -> Any:
        self._counters.add("started", key)
        try:
            gates[key].wait(LONGEST)
        except gevent.GreenletExit:
            self._counters.add("cancelled", key)
            raise
        finally:
            self._counters.add("ended", key)
        return value

    def stubborn(self, key: str) -> str:
        """Go on in spite of being killed."""
        self._counters.add("started", key)
        while not gates[key].is_set():
            try:
                gates[key].wait(LONGEST)
            except gevent.GreenletExit:
                self._counters.add("cancelled", key)
        self._counters.add("ended", key)
        return "too late"


class GeventHost(Host):
    """Runs a server in the hub of the main thread, without any patching."""

    def run(self) -> None:
        self._loop = gevent.get_hub().loop
        busy = self._loop.async_()  # keeps the hub alive, whatever else there is to do
        busy.start(lambda: None)
        gate = Gate(self.counters)
        hop = PlainHop(Client, gate, gevent.sleep)
        self.make_server(Server, [*self.plain_services(), gate, hop])
        streams = PlainStreams(self.counters, gate, Client.connect)
        for name in ("Streams", "PlainStreams"):
            self.server.register(streams, name)
        self.serving([self.server.start(**where) for where in self.addresses()])
        Event().wait()

    def ask(self, function: Callable[[], Any]) -> Any:
        answer: Future[Any] = Future()
        self._loop.run_callback_threadsafe(lambda: answer.set_result(function()))
        return answer.result(LONGEST)

    def open(self, key: str) -> None:
        self._loop.run_callback_threadsafe(lambda: gates[key].set())

    def begin_stop(self, grace: float) -> None:
        self._loop.run_callback_threadsafe(lambda: gevent.spawn(self.stop, grace))


HOST = GeventHost
