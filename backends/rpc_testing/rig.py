"""What the rigs of all backends share."""

from abc import abstractmethod
from collections.abc import Callable, Iterable
from typing import Any

from .network import Network
from .recorder import Recorded, Recorder
from .virtual import START

__all__ = ["Clock", "RigBase"]


class Clock:
    """The time of a rig, which passes only when everybody waits."""

    def __init__(self, time: Callable[[], float], advance: Callable[[float], Any]) -> None:
        self._time = time
        self._advance = advance

    @property
    def now(self) -> float:
        """Seconds since the rig was made."""
        return round(self._time() - START, 9)  # or 0.4 would be 0.39999999999997726

    def advance(self, seconds: float) -> Any:
        """Let time pass, with everything that happens until then and at that moment.

        In asyncio, `await` it.
        """
        return self._advance(seconds)


class RigBase:
    """Servers and clients in one process: no socket, and no waiting.

    `connect` joins a client to services. `clock` is the time of everything, `network` has the
    faults, and `calls` what the handlers were asked, in the order in which they began.
    """

    network: Network
    _server: type[Any]  # of the backend

    def __init__(self, time: Callable[[], float]) -> None:
        self.clock = Clock(time, self._pass)
        self._recorder = Recorder(time)
        self._open: list[Any] = []  # what is to be closed, in the order in which it was opened

    @property
    def calls(self) -> list[Recorded]:
        """The calls that reached a handler."""
        return self._recorder.calls

    @abstractmethod
    def _pass(self, seconds: float) -> Any:
        """Let time pass."""

    def _make_server(
        self, record: Any, services: Iterable[Any], interceptors: Iterable[Any], settings: Any
    ) -> Any:
        server = self._server(interceptors=(record, *interceptors), **settings)
        for service in services:
            server.register(service)
        self._open.append(server)
        return server
