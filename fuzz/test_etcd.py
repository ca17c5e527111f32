"""etcd, nodes and watches in any order of events: afterwards the views tell the truth.

Nodes come, go, are killed and change; servers stop, stand still, restart and lose their data;
leases and keys vanish, or may not be written; histories are compacted; answers are lost, late and
out of order; streams die without a word; the clock jumps.
"""

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from budget import EXAMPLES, spread
from rpc_discovery import Node
from rpc_fuzz.etcd import URLS, World, held, seen
from rpc_fuzz.registries import added_up

TTL = 10.0
GRACE = 30.0
TIMEOUT = 2.0
PROBE = 5.0

# After the last fault. A registration: what hangs is given up, and after a pause, which is longer
# if a login was refused, its keys are written again; or it looks for them within a ttl, and its
# last answer may have come late. A watch: the same; and one that died without a word is taken up
# again after a minute, by a probe. Nodes that were held go after the grace period.
HANGS = TIMEOUT + 1 + 15
BOUND = (HANGS + TTL + TIMEOUT + 1 + 2) + (HANGS + 60 + PROBE + TIMEOUT + 1 + 2) + GRACE + 1

ADDRESSES = [f"tcp://10.0.0.{n}:50000" for n in range(1, 7)]
addresses = st.sampled_from(ADDRESSES)
services = st.sets(st.sampled_from(["Arith", "Log", "Time"]), max_size=3)
urls = st.sampled_from(URLS)


class Etcd(RuleBasedStateMachine):
    """Everything that may happen to nodes, servers, readers and what lies between them."""

    @initialize(
        seed=st.integers(0, 2**16),
        start=st.sampled_from([0.0, 1e6]),
        nodes=st.integers(0, 6),
        secret=st.booleans(),
    )
    def begin(self, seed: int, start: float, nodes: int, secret: bool) -> None:
        self.world = World(seed, start)
        self.login = {"user": "alice", "password": "secret"} if secret else {}
        self.world.store.password = "secret" if secret else None
        for address in ADDRESSES[:nodes]:
            self.start_node(address, {"Arith"})
        for name, service in (("all", None), ("arith", "Arith")):
            self.world.watch(
                name, service=service, grace=GRACE, timeout=TIMEOUT, probe=PROBE, **self.login
            )
        self.world.run(1.0)

    # Nodes

    @rule(address=addresses, offers=services)
    def start_node(self, address: str, offers: set[str]) -> None:
        if address not in self.world.actors:
            self.world.register(Node(address, offers), TTL, timeout=TIMEOUT, **self.login)

    @rule(address=addresses)
    def kill_node(self, address: str) -> None:
        if address in self.world.actors:
            self.world.kill(address)

    @rule(address=addresses)
    def stop_node(self, address: str) -> None:
        if address in self.world.actors:
            self.world.tell(self.world.actors[address], "stop", self.world.now)

    @rule(address=addresses)
    def forget_node(self, address: str) -> None:
        actor = self.world.actors.get(address)
        if actor is not None and actor.done:
            self.world.kill(address)

    @rule(address=addresses, offers=services, weight=st.integers(0, 9))
    def change_node(self, address: str, offers: set[str], weight: int) -> None:
        if address in self.world.actors:
            actor = self.world.actors[address]
            actor.update(self.world.now, services=offers, weight=weight)
            self.world.events[address] += actor.events()

    # Servers

    @rule(url=urls)
    def stop_server(self, url: str) -> None:
        self.world.stop(url)

    @rule(wiped=st.booleans())
    def restart(self, wiped: bool) -> None:
        self.world.restart(wiped)

    @rule(url=urls)
    def freeze(self, url: str) -> None:
        self.world.frozen.add(url)

    @rule()
    def thaw(self) -> None:
        self.world.thaw()

    @rule()
    def compact(self) -> None:
        self.world.store.compact()

    @rule(data=st.data())
    def revoke(self, data: st.DataObject) -> None:
        if self.world.store.leases:
            lease = data.draw(st.sampled_from(sorted(self.world.store.leases)))
            self.world.store.end_lease(lease)

    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        if self.world.store.kvs:
            key = data.draw(st.sampled_from(sorted(self.world.store.kvs)))
            self.world.store.write([], [key])

    @rule(forbidden=st.booleans())
    def forbid(self, forbidden: bool) -> None:
        self.world.store.forbidden = forbidden

    @rule()
    def write_elsewhere(self) -> None:
        self.world.store.write([(b"/other", b"1")], [])

    # The network and the clock

    @rule(loss=st.sampled_from([0.0, 0.2, 0.9]), delay=st.sampled_from([0.001, 0.1, 1.0, 4.0]))
    def disturb(self, loss: float, delay: float) -> None:
        self.world.loss, self.world.delay = loss, delay

    @rule(silently=st.booleans())
    def break_streams(self, silently: bool) -> None:
        self.world.break_streams(silently=silently)

    @rule()
    def heal(self) -> None:
        self.disturb(0.0, 0.01)

    @rule(time=st.sampled_from([0.0, 0.01, 0.1, 1.0, 5.0, 12.0, 70.0]))
    def wait(self, time: float) -> None:
        self.world.run(time)

    @rule(time=st.sampled_from([10.0, 3600.0]))
    def jump(self, time: float) -> None:
        self.world.now += time

    # What is always true

    @invariant()
    def nothing_grows_without_bound(self) -> None:
        for name, actor in self.world.actors.items():
            if name in ADDRESSES:
                assert len(actor._ended) <= 4
            else:
                assert len(actor._nodes) <= len(actor._entries) <= len(ADDRESSES) * 4
                assert len(actor._keys) <= len(actor._entries)
                assert (actor.stale_since is None) == (actor.stale_reason == "")

    @invariant()
    def events_add_up_to_the_view(self) -> None:
        for name in ("all", "arith"):
            shown = {node.address: node for node in self.world.actors[name].view}
            assert added_up(self.world.events[name]) == shown

    # The end of all things

    def teardown(self) -> None:
        world = self.world
        self.heal()
        self.forbid(False)
        world.thaw()
        if world.down:
            world.restart()
        world.run(BOUND)
        living: dict[str, Any] = {
            address: actor
            for address, actor in world.actors.items()
            if address in ADDRESSES and actor._stops_at is None
        }
        truth = {address: set(actor.node.services) for address, actor in living.items()}
        assert held(world.store) == truth
        assert seen(world.actors["all"]) == truth
        arith = {address: {"Arith"} for address, offered in truth.items() if "Arith" in offered}
        assert seen(world.actors["arith"]) == arith
        for node in world.actors["all"].view:
            assert node == living[node.address].node
        for name in ("all", "arith"):
            assert world.actors[name].stale_since is None
        for actor in living.values():
            assert actor.registered(world.now) == [actor.endpoint]
        assert len(world.store.leases) == len(living)
        self.nothing_grows_without_bound()
        self.events_add_up_to_the_view()
        operations = world.operations
        world.run(100.0)
        each = 100 / (TTL / 3 * 0.8) + 100 / TTL
        assert world.operations - operations <= each * len(living) + 2 * 100 / 4 + 20


TestEtcd = Etcd.TestCase
TestEtcd.settings = settings(
    spread(), max_examples=max(20, EXAMPLES // 200), stateful_step_count=40
)
