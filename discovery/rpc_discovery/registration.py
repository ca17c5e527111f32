"""One node at one or more registries, kept alive by heartbeats (docs/discovery.md)."""

from collections.abc import Iterable, Mapping
from urllib.parse import quote

from .documents import LONGEST_TTL, SHORTEST_TTL, USUAL_TTL, describe_node, encode
from .machines import HttpRequest, Rng
from .nodes import Node
from .polling import RegistryPoller, RegistryState, explain

__all__ = ["Registration"]

_JSON = (("Content-Type", "application/json"),)


class _RegistryOfNode(RegistryState):
    def __init__(self, url: str, now: float) -> None:
        super().__init__(url, now)
        self.sent = 0  # the version of the description that was sent last
        self.known = 0  # the version the registry has


class Registration(RegistryPoller[_RegistryOfNode]):
    """Keeps a node registered: at once, every third of `ttl`, and when its description changes.

    Whatever a registry answers, it is retried, at the latest after a third of `ttl`, independently
    of other registries. See `RegistryPoller` for inputs and outputs; the commands are `update` and
    `stop`. Times are in seconds; `now` is monotonic.
    """

    def __init__(
        self,
        node: Node,
        registries: Iterable[str],
        *,
        now: float,
        rng: Rng,
        ttl: float = USUAL_TTL,
        token: str | None = None,
        timeout: float = 5.0,
    ) -> None:
        if not SHORTEST_TTL <= ttl <= LONGEST_TTL:
            raise ValueError(f"ttl must be from {SHORTEST_TTL} to {LONGEST_TTL} s, not {ttl!r}")
        links = [_RegistryOfNode(url, now) for url in registries]
        super().__init__(links, token=token, timeout=min(timeout, ttl / 3), rng=rng)
        self.node = node
        self.ttl = ttl
        self._version = 1
        self._stops_at: float | None = None
        self._body = self._describe()
        self._finish(now)

    # Getters

    @property
    def done(self) -> bool:
        """Whether it was stopped and has nothing left to do."""
        return all(link.due_at is None and link.request is None for link in self.links.values())

    def registered(self, now: float) -> list[str]:
        """Return the registries that have the node's current description."""
        return [
            link.url
            for link in self.links.values()
            if link.answered_at is not None
            and now < link.answered_at + self.ttl
            and link.known == self._version
        ]

    # Commands

    def update(
        self,
        now: float,
        *,
        services: Iterable[str] | Mapping[str, str] | None = None,
        weight: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """Change the node's description, which is sent at once; ValueError as from `Node`."""
        node = self.node.replace(services, weight, metadata)
        if node != self.node and self._stops_at is None:
            self.node = node
            self._version += 1
            self._body = self._describe()
            for link in self.links.values():
                if not link.failures:
                    link.due_at = now
        self._finish(now)

    def stop(self, now: float, limit: float = 5.0) -> None:
        """Remove the node from the registries; `done` within `limit` seconds.

        It waits for a heartbeat in flight, which could otherwise arrive after the removal.
        """
        if self._stops_at is None:
            self._stops_at = now + limit
            for link in self.links.values():
                link.due_at = now if link.sent else None
        self._finish(now)

    # Requests and responses

    def _describe(self) -> bytes:
        return encode({**describe_node(self.node), "ttl": self.ttl})

    def _compose(self, link: _RegistryOfNode, now: float) -> HttpRequest:
        if self._stops_at is not None:
            query = f"?address={quote(self.node.address, safe='')}"
            timeout = min(self._timeout, self._stops_at - now)
            return self._request(link, "DELETE", query, timeout=timeout)
        link.sent = self._version
        return self._request(link, "POST", timeout=self._timeout, headers=_JSON, body=self._body)

    def _accept(
        self, link: _RegistryOfNode, sent: HttpRequest, status: int, body: bytes, now: float
    ) -> float:
        gone = sent.method == "DELETE"
        if not 200 <= status < 300 and not (gone and status == 404):
            raise ValueError(explain(status, body))
        link.known = 0 if gone else link.sent
        if gone:
            link.due_at = None
        if link.sent != self._version or self._stops_at is not None:
            return 0.0
        return self.ttl / 3 * (1 - 0.2 * self._rng())

    def _longest_backoff(self) -> float:
        return self.ttl / 3

    def _also_at(self) -> float | None:
        return None if self._stops_at is None or self.done else self._stops_at

    def _conclude(self, now: float) -> None:
        if self._stops_at is not None and now >= self._stops_at:
            for link in self.links.values():
                link.due_at = link.request = None
