"""A discovery of your own: an HTTP endpoint that returns a JSON list of addresses."""

import json
from typing import Any

from rpc_discovery import (
    Discovery,
    Event,
    HttpRequest,
    HttpResponse,
    Node,
    SourceFailed,
    View,
    ViewChanged,
    ViewMachine,
)

EVERY = 1.0  # seconds


class AddressList(Discovery):
    """The addresses that `url` returns, for example ["tcp://10.0.0.1:7000"]."""

    def __init__(self, url: str) -> None:
        self.url = url

    def open(self, now: float, rng: Any) -> ViewMachine:
        return AddressListMachine(self.url, now)


class AddressListMachine:
    """Asks again a second after each answer or failure, and keeps the last good view."""

    done = False

    def __init__(self, url: str, now: float) -> None:
        self.url = url
        self.view = View()
        self.stale_since: float | None = None
        self._due: float | None = now  # None while a request is on its way
        self._asks = False
        self._serial = 0
        self._events: list[Event] = []

    def operations_to_send(self) -> list[HttpRequest]:
        if not self._asks:
            return []
        self._asks = False
        return [HttpRequest(self._serial, self.url, "GET", self.url, (), b"", timeout=2.0)]

    def operations_to_cancel(self) -> list[int]:
        return []

    def events(self) -> list[Event]:
        events, self._events = self._events, []
        return events

    def next_timeout(self) -> float | None:
        return self._due

    def handle_timeout(self, now: float) -> None:
        if self._due is not None and now >= self._due:
            self._due, self._asks, self._serial = None, True, self._serial + 1

    def result(self, now: float, operation_id: int, result: HttpResponse) -> None:
        try:
            nodes = [Node(address) for address in json.loads(result.body)]
        except (TypeError, ValueError) as error:
            self.failed(now, operation_id, f"status {result.status}: {error}")
            return
        self._due, self.stale_since = now + EVERY, None
        view = View(nodes, self.view.revision + 1)
        added, removed = self.view.changes(view)
        if added or removed:
            self.view = view
            self._events.append(ViewChanged(view, added, removed))

    def message(self, now: float, operation_id: int, message: Any) -> None:
        pass

    def failed(self, now: float, operation_id: int, error: str, code: int = 0) -> None:
        self._due = now + EVERY
        if self.stale_since is None:
            self.stale_since = now
            self._events.append(SourceFailed(self.url, error))
