"""Registries, registrations and watches in one process, on a virtual clock and a bad network."""

import heapq
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from rpc_discovery import HttpRequest, HttpResponse, Node, Registration, RegistryWatch, ViewChanged
from rpc_discovery.registry import Registry
from rpc_proto.http import HttpError, Promise, Request, Response
from rpc_proto.http.making import Making


def made(response: Any, now: float = 0.0) -> Any:
    """The response that an application gave, made to its end."""
    while isinstance(response, Making):
        response.advance(now)
        assert response.error is None
        response = response.response or response
    return response


def ask(
    registry: Any,
    now: float,
    method: str = "GET",
    target: str = "/registry/nodes",
    body: bytes = b"",
    headers: dict[str, str] | None = None,
) -> Any:
    """Ask a registry; an error becomes the response that a server makes of it."""
    kind = {"content-type": "application/json"} if body else {}
    try:
        return made(registry(Request(method, target, {**kind, **(headers or {})}, body), now))
    except HttpError as error:
        return Response.text(error.message, error.status, error.headers)


@dataclass
class Network:
    """What may happen to a request on its way. Times in seconds."""

    delay: float = 0.01
    loss: float = 0.0  # share of the requests, and of the answers, that vanish
    cut: set[tuple[str, str]] = field(default_factory=set)  # (name of who asks, registry)


class Cluster:
    """Carries requests and time; `run(seconds)` goes from one due moment to the next."""

    def __init__(self, registries: int = 1, seed: int = 0, start: float = 0.0) -> None:
        self.now = start
        self.random = random.Random(seed)
        self.network = Network()
        self.urls = [f"http://registry-{number}:9999" for number in range(registries)]
        self.registries: dict[str, Registry | None] = {}
        self.registrations: dict[str, Registration] = {}
        self.watches: dict[str, RegistryWatch] = {}
        self.events: dict[str, list[Any]] = {}
        self.exchanges = 0
        self.open: dict[str, list[Callable[[], None]]] = {url: [] for url in self.urls}
        self._lives = count(1)
        self._order = count()
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        for url in self.urls:
            self.start_registry(url)

    # Who is there

    def start_registry(self, url: str, snapshot: Any = None) -> Registry:
        registry = Registry(f"life-{next(self._lives)}")
        if snapshot is not None:
            registry.restore(snapshot, self.now)
        self.registries[url] = registry
        return registry

    def kill_registry(self, url: str) -> None:
        """As SIGKILL does: its connections break."""
        self.registries[url] = None
        breaks, self.open[url] = self.open[url], []
        for lose in breaks:
            lose()

    def register(self, node: Node, ttl: float = 30.0) -> Registration:
        registration = Registration(node, self.urls, now=self.now, rng=self.random.random, ttl=ttl)
        self.registrations[node.address] = registration
        self.events.setdefault(node.address, [])
        self.flush()
        return registration

    def kill_node(self, address: str) -> None:
        """As SIGKILL does: without a farewell."""
        del self.registrations[address]

    def watch(self, name: str = "watch", **settings: Any) -> RegistryWatch:
        watch = RegistryWatch(self.urls, now=self.now, rng=self.random.random, **settings)
        self.watches[name] = watch
        self.events[name] = []
        self.flush()
        return watch

    def tell(self, name: str, method: str, *args: Any, **more: Any) -> None:
        """Call a command or an input of one of them, if it is still there."""
        actor = self._actors().get(name)
        if actor is not None:
            getattr(actor, method)(*args, **more)
            self.events[name] += actor.events()
            due = actor.next_timeout()
            assert due is None or due > self.now, (method, due, self.now)

    # Time

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while True:
            self.flush()
            times = [actor.next_timeout() for actor in self._everybody()]
            times.append(self._due[0][0] if self._due else None)
            at = min((at for at in times if at is not None), default=end)
            if at > end:
                break
            self.now = max(self.now, at)
            self._step()
        self.now = end

    def jump(self, seconds: float) -> None:
        """Let the clock go on while everything stands still, as when a machine sleeps."""
        self.now += seconds

    def _step(self) -> None:
        while self._due and self._due[0][0] <= self.now:
            heapq.heappop(self._due)[2]()
        for registry in self.registries.values():
            if registry is not None:
                registry.handle_timeout(self.now)
                due = registry.next_timeout()
                assert due is None or due > self.now
        for name, actor in self._actors().items():
            due = actor.next_timeout()
            if due is not None and due <= self.now:
                self.tell(name, "handle_timeout", self.now)

    def _later(self, delay: float, action: Callable[[], None]) -> float:
        at = self.now + delay
        heapq.heappush(self._due, (at, next(self._order), action))
        return at

    def _actors(self) -> dict[str, Any]:
        return {**self.registrations, **self.watches}

    def _everybody(self) -> list[Any]:
        return [r for r in self.registries.values() if r is not None] + [*self._actors().values()]

    # The network

    def flush(self) -> None:
        for name, actor in self._actors().items():
            for request in actor.operations_to_send():
                self._send(name, actor, request)

    def _send(self, name: str, actor: Any, request: HttpRequest) -> None:
        self.exchanges += 1
        done: list[str] = []

        def report(method: str, *args: Any) -> None:
            if not done and self._actors().get(name) is actor:
                done.append(method)
                self.tell(name, method, self.now, request.id, *args)

        def give_up() -> None:
            report("failed", f"no answer within {request.timeout:g} s")

        self._later(request.timeout, give_up)
        if (name, request.registry) in self.network.cut or self._loses():
            return
        self._later(self.network.delay, lambda: self._arrive(request, report))

    def _loses(self) -> bool:
        return self.random.random() < self.network.loss

    def _arrive(self, request: HttpRequest, report: Callable[..., None]) -> None:
        registry = self.registries[request.registry]
        if registry is None:
            self._later(self.network.delay, lambda: report("failed", "connection refused"))
            return
        target = request.url.removeprefix(request.registry)
        headers = {name.lower(): value for name, value in request.headers}
        outcome = ask(registry, self.now, request.method, target, request.body, headers)

        def answer(response: Response) -> None:
            etag = dict(response.headers).get("ETag")
            status, body = response.status, response.body
            if status == 200 and etag is not None and headers.get("if-none-match") == etag:
                status, body = 304, b""
            if not self._loses() and self.registries[request.registry] is registry:
                self._later(
                    self.network.delay, lambda: report("result", HttpResponse(status, body))
                )

        if isinstance(outcome, Promise):
            promise = outcome
            self.open[request.registry].append(lambda: report("failed", "connection lost"))
            promise.on_settled(lambda: answer(promise.response or Response(500)))
            self._later(promise.deadline - self.now, lambda: self._settle(promise, answer))
            self._later(request.timeout, promise.abandon)
        else:
            answer(outcome)

    def _settle(self, promise: Promise, answer: Callable[[Response], None]) -> None:
        if promise.response is None and not promise.abandoned:
            promise.settle_late(max(self.now, promise.deadline))
            assert promise.response is not None
            answer(promise.response)


def truth(cluster: Cluster) -> dict[str, Node]:
    """The nodes that live and have not said farewell."""
    return {
        address: registration.node
        for address, registration in cluster.registrations.items()
        if registration._stops_at is None
    }


def seen(watch: RegistryWatch) -> dict[str, Node]:
    return {node.address: node for node in watch.view}


def added_up(events: Iterable[object]) -> dict[str, Node]:
    """Return the nodes that events of a view leave; none comes twice, or goes but never came."""
    nodes: dict[str, Node] = {}
    for event in events:
        if isinstance(event, ViewChanged):
            for node in event.removed:
                assert nodes.pop(node.address) == node
            for node in event.added:
                assert node.address not in nodes
                nodes[node.address] = node
    return nodes
