"""Registries, nodes and watches in any order of events: afterwards the views tell the truth.

Nodes come, go, are killed and change; registries are killed and begin anew, with a snapshot or
without; the network loses, parts and delays; the clock jumps; a registry says nonsense.
"""

import json
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from budget import EXAMPLES, spread
from rpc_discovery import HttpResponse, Node, Registration, RegistryWatch
from rpc_discovery.registry import Registry
from rpc_fuzz.registries import Cluster, added_up, ask, seen, truth

TTL = 30.0
GRACE = 30.0
WAIT = 30.0
TIMEOUT = 5.0

# After the last fault: a request that hangs is given up and repeated (6 s and a backoff of 10 s)
# and so the node is known, or it lapses after its ttl; a question that hangs is given up and
# repeated (36 s and 5 s); nodes that were held go after the grace period. A second for the rest.
BOUND = max(TIMEOUT + 1 + TTL / 3, TTL + 0.25) + (WAIT + TIMEOUT + 1 + 5) + GRACE + 1

ADDRESSES = [f"tcp://10.0.0.{n}:50000" for n in range(1, 9)]
addresses = st.sampled_from(ADDRESSES)
services = st.sets(st.sampled_from(["Arith", "Log", "Time"]), max_size=3)
seconds = st.sampled_from([0.0, 0.01, 0.1, 1.0, 5.0, 12.0, 31.0, 70.0])
urls = st.integers(0, 1)


class Discovery(RuleBasedStateMachine):
    """Everything that may happen to nodes, registries, readers and what lies between them."""

    @initialize(
        registries=st.integers(1, 2),
        seed=st.integers(0, 2**16),
        start=st.sampled_from([0.0, 1e6, -1e3]),
        wait=st.sampled_from([WAIT, WAIT, 0.0]),
        nodes=st.integers(0, 8),
    )
    def begin(self, registries: int, seed: int, start: float, wait: float, nodes: int) -> None:
        self.cluster = Cluster(registries, seed, start)
        for address in ADDRESSES[:nodes]:
            self.cluster.register(Node(address, ["Arith"]), TTL)
        for name, service in (("all", None), ("arith", "Arith")):
            self.cluster.watch(name, service=service, wait=wait, grace=GRACE, timeout=TIMEOUT)
        self.cluster.run(1.0)

    def url(self, number: int) -> str:
        return self.cluster.urls[number % len(self.cluster.urls)]

    # Nodes

    @rule(address=addresses, offers=services)
    def start_node(self, address: str, offers: set[str]) -> None:
        if address not in self.cluster.registrations:
            self.cluster.register(Node(address, offers), TTL)

    @rule(address=addresses)
    def kill_node(self, address: str) -> None:
        if address in self.cluster.registrations:
            self.cluster.kill_node(address)

    @rule(address=addresses)
    def stop_node(self, address: str) -> None:
        self.cluster.tell(address, "stop", self.cluster.now)

    @rule(address=addresses, offers=services, weight=st.integers(0, 9))
    def change_node(self, address: str, offers: set[str], weight: int) -> None:
        now = self.cluster.now
        self.cluster.tell(address, "update", now, services=offers, weight=weight)

    @rule(address=addresses, times=st.integers(1, 20))
    def flap(self, address: str, times: int) -> None:
        for _ in range(times):
            self.stop_node(address)
            self.cluster.run(0.05)
            self.cluster.registrations.pop(address, None)
            self.start_node(address, {"Arith"})
            self.cluster.run(0.05)

    @rule()
    def kill_all_nodes(self) -> None:
        self.cluster.registrations.clear()

    # Registries

    @rule(number=urls)
    def kill_registry(self, number: int) -> None:
        self.cluster.kill_registry(self.url(number))

    @rule(number=urls, restored=st.booleans())
    def restart_registry(self, number: int, restored: bool) -> None:
        old = self.cluster.registries[self.url(number)]
        self.cluster.kill_registry(self.url(number))
        saved = None
        if restored and old is not None:
            saved = json.loads(json.dumps(old.snapshot(self.cluster.now)))
        self.cluster.start_registry(self.url(number), saved)

    @rule(number=urls, body=st.binary(max_size=40), address=st.text(max_size=20))
    def intrude(self, number: int, body: bytes, address: str) -> None:
        registry = self.cluster.registries[self.url(number)]
        if registry is not None:
            ask(registry, self.cluster.now, "POST", body=body or b"x")
            ask(registry, self.cluster.now, "POST", body=json.dumps({"address": address}).encode())

    @rule(
        name=st.sampled_from(["all", "arith", *ADDRESSES]),
        status=st.sampled_from([200, 200, 304, 500, 0]),
        body=st.binary(max_size=20)
        | st.fixed_dictionaries(
            {
                "epoch": st.sampled_from(["liar-1", "liar-2", "", 5]),
                "revision": st.integers(-1, 9) | st.none(),
                "nodes": st.lists(
                    st.fixed_dictionaries({"address": addresses | st.text(max_size=9)}) | st.none(),
                    max_size=4,
                ),
            },
            optional={"since": st.integers(-1, 9), "gone": st.lists(addresses, max_size=3)},
        ).map(lambda value: json.dumps(value).encode()),
    )
    def lie(self, name: str, status: int, body: bytes) -> None:
        """Answer what is on its way with something that no registry of ours would say."""
        actor: Any = self.cluster._actors().get(name)
        if actor is not None:
            for link in actor.links.values():
                if link.request is not None:
                    lie = HttpResponse(status, body)
                    self.cluster.tell(name, "result", self.cluster.now, link.request.id, lie)
                    break

    # The network and the clock

    @rule(loss=st.sampled_from([0.0, 0.2, 0.9]), delay=st.sampled_from([0.001, 0.1, 2.0]))
    def disturb(self, loss: float, delay: float) -> None:
        self.cluster.network.loss = loss
        self.cluster.network.delay = delay

    @rule(name=st.sampled_from(["all", "arith", *ADDRESSES]), number=urls)
    def cut(self, name: str, number: int) -> None:
        self.cluster.network.cut.add((name, self.url(number)))

    @rule(number=urls)
    def part_all_nodes(self, number: int) -> None:
        self.cluster.network.cut |= {(address, self.url(number)) for address in ADDRESSES}

    @rule()
    def heal(self) -> None:
        self.cluster.network.cut = set()
        self.disturb(0.0, 0.01)

    @rule(time=seconds)
    def wait(self, time: float) -> None:
        self.cluster.run(time)

    @rule(time=st.sampled_from([10.0, 3600.0]))
    def jump(self, time: float) -> None:
        self.cluster.jump(time)

    # What is always true

    @invariant()
    def nothing_grows_without_bound(self) -> None:
        for registry in self.cluster.registries.values():
            if registry is not None:
                self.check_registry(registry)
        for watch in self.cluster.watches.values():
            self.check_watch(watch)

    def check_registry(self, registry: Registry) -> None:
        assert len(registry._expiries) <= 2 * len(registry.entries) + 66
        assert len(registry._departed) <= len(ADDRESSES) + 20
        assert len(registry._changed) <= 1000
        assert registry._size == 200 + sum(len(e.text) + 1 for e in registry.entries.values())
        assert len(registry._receipts) <= 2

    def check_watch(self, watch: RegistryWatch) -> None:
        for link in watch.links.values():
            assert not link.removed.keys() & link.nodes.keys()
        assert len(watch._guard._sizes) <= 400
        assert (watch.stale_since is None) == (watch.stale_reason == "")

    @invariant()
    def events_add_up_to_the_view(self) -> None:
        for name, watch in self.cluster.watches.items():
            assert added_up(self.cluster.events[name]) == seen(watch)

    # The end of all things

    def teardown(self) -> None:
        cluster = self.cluster
        self.heal()
        for url in cluster.urls:
            if cluster.registries[url] is None:
                cluster.start_registry(url)
        cluster.run(BOUND)
        nodes = truth(cluster)
        assert seen(cluster.watches["all"]) == nodes
        offering = {address: node for address, node in nodes.items() if "Arith" in node.services}
        assert seen(cluster.watches["arith"]) == offering
        for watch in cluster.watches.values():
            assert watch.stale_since is None
        for address, actor in cluster.registrations.items():
            assert isinstance(actor, Registration)
            known = [] if address not in nodes else cluster.urls
            assert actor.registered(cluster.now) == known
        self.nothing_grows_without_bound()
        self.events_add_up_to_the_view()
        exchanges = cluster.exchanges
        cluster.run(100.0)
        busiest = 100 / 8 * len(nodes) * len(cluster.urls) + 100 / 4 * 2 * len(cluster.urls)
        assert cluster.exchanges - exchanges <= busiest + 20


TestDiscovery = Discovery.TestCase
TestDiscovery.settings = settings(
    spread(), max_examples=max(20, EXAMPLES // 200), stateful_step_count=30
)
