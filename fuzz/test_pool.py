"""The pool of a balanced client in any order of views, dials, calls, failures and time.

The machine does what a driver does: a call that has a node that is connected goes there, else the
node is dialled, and the call waits until some dial has ended.
"""

from random import Random

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from budget import EXAMPLES, spread
from rpc_discovery import Node, View
from rpc_discovery.pool import BalancedCall, Pool, Target
from rpc_proto import CODES, CallError, HandshakeError, Unavailable
from support.balancing import NAMES

ADDRESSES = [f"tcp://host:{number}" for number in range(1, 9)]
SERVICES = st.lists(st.sampled_from(["S", "T"]), max_size=2, unique=True)
NODES = st.dictionaries(
    st.sampled_from(ADDRESSES), st.tuples(SERVICES, st.sampled_from([1.0, 0.0, 3.0])), max_size=8
)
SECONDS = st.sampled_from([0.0, 0.01, 0.15, 1.0, 11.0, 40.0, 4000.0])
CHOICE = st.integers(0, 20)


class Driver(RuleBasedStateMachine):
    """One caller, with as many calls on their way as it likes."""

    @initialize(
        seed=st.integers(0, 100),
        balancer=st.sampled_from(NAMES),
        max_age=st.sampled_from([None, 1.0, 60.0]),
        max_attempts=st.integers(1, 4),
        start=st.sampled_from([0.0, -1e3, 1e6]),
    )
    def begin(
        self, seed: int, balancer: str, max_age: float | None, max_attempts: int, start: float
    ) -> None:
        self.now = self.start = start
        self.max_attempts = max_attempts
        self.pool = Pool(
            now=start,
            rng=Random(seed).random,
            balancer=balancer,
            max_age=max_age,
            max_attempts=max_attempts,
        )
        self.known: set[Target] = set()
        self.running: list[tuple[BalancedCall, Target, float]] = []
        self.waiting: list[BalancedCall] = []
        self.succeeded = self.executed_again = 0

    # What the world does

    @rule(nodes=NODES)
    def see(self, nodes: dict[str, tuple[list[str], float]]) -> None:
        view = View([Node(at, offers, weight=w) for at, (offers, w) in nodes.items()])
        removed = self.pool.update(view, self.now)
        assert {target.node.address for target in removed}.isdisjoint(nodes)
        assert set(self.pool.targets) == set(nodes)
        for target in removed:
            target.client = None
        self.known |= set(self.pool.targets.values())

    @rule(which=CHOICE, times=st.integers(1, 20))
    def flap(self, which: int, times: int) -> None:
        """A node comes and goes ten times a second."""
        view = self.pool.view or View()
        address = ADDRESSES[which % len(ADDRESSES)]
        others = [node for node in view if node.address != address]
        for _ in range(times):
            self.pool.update(View([*others, Node(address)]), self.now)
            self.known |= set(self.pool.targets.values())
            self.now += 0.1
            self.pool.update(View(others), self.now)

    @rule(seconds=SECONDS)
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(which=CHOICE, good=st.booleans(), refused=st.booleans())
    def dial_ends(self, which: int, good: bool, refused: bool) -> None:
        dialled = sorted(
            (target for target in self.known if target.dialling),
            key=lambda target: (target.node.address, target.since),
        )
        if not dialled:
            return
        target = dialled[which % len(dialled)]
        target.dialling = None
        if good:
            if not target.gone:
                target.client = object()
                self.pool.connected(target, self.now)
        else:
            error = HandshakeError("unauthenticated", "no") if refused else Unavailable("refused")
            self.pool.unreachable(target, error, self.now, target.client is not None)
        self.let_go_on()

    @rule(which=CHOICE)
    def lose(self, which: int) -> None:
        """A connection breaks, and its calls with it."""
        connected = [target for target in self.known if target.client is not None]
        if connected:
            target = sorted(connected, key=lambda t: t.node.address)[which % len(connected)]
            target.client = None
            first = True
            for entry in [entry for entry in self.running if entry[1] is target]:
                self.fail(entry, Unavailable("lost", maybe_executed=True), first)
                first = False

    # What callers do

    @rule(
        service=st.sampled_from(["S", "T", "X"]),
        key=st.none() | st.text(max_size=3),
        node=st.none() | st.none() | st.sampled_from(ADDRESSES),
        seconds=st.none() | st.sampled_from([0.0, 0.1, 5.0]),
        idempotent=st.booleans(),
        times=st.integers(1, 8),
    )
    def call(
        self,
        service: str,
        key: str | None,
        node: str | None,
        seconds: float | None,
        idempotent: bool,
        times: int,
    ) -> None:
        for _ in range(times):
            deadline = None if seconds is None else self.now + seconds
            self.go_on(BalancedCall(service, deadline, idempotent=idempotent, key=key, node=node))

    @rule(which=CHOICE)
    def second_try(self, which: int) -> None:
        if self.running:
            whole, target, _ = self.running[which % len(self.running)]
            other = self.pool.hedge(whole, self.now)
            if other is not None:
                self.executed_again += 1
                assert target in other.tried
                self.go_on(other)

    @rule(which=CHOICE)
    def succeed(self, which: int) -> None:
        if self.running:
            _, target, started = self.running.pop(which % len(self.running))
            self.pool.succeeded(target, started, self.now)
            self.succeeded += 1

    @rule(which=CHOICE)
    def give_up(self, which: int) -> None:
        if self.running:
            self.pool.cancelled(self.running.pop(which % len(self.running))[1])

    @rule(which=CHOICE, code=st.sampled_from(sorted(CODES)), maybe=st.booleans())
    def fail_one(self, which: int, code: str, maybe: bool) -> None:
        if self.running:
            error = CallError.of(code, "no", maybe_executed=maybe)
            self.fail(self.running[which % len(self.running)], error, True)

    # What a driver does

    def fail(
        self, entry: tuple[BalancedCall, Target, float], error: CallError, blamed: bool
    ) -> None:
        whole, target, started = entry
        self.running.remove(entry)
        maybe, executed = error.maybe_executed, whole.maybe_executed or error.maybe_executed
        pause = self.pool.failed(whole, target, error, started, self.now, blamed)
        assert whole.attempts <= self.max_attempts
        if pause is None:
            assert error.maybe_executed == executed or error.code != "unavailable"
            return
        assert 0 <= pause <= 1
        assert whole.attempts < self.max_attempts
        assert not maybe or whole.idempotent
        self.executed_again += maybe or error.code == "resource_exhausted"
        self.go_on(whole)

    def go_on(self, whole: BalancedCall) -> None:
        try:
            target = self.pool.pick_for(whole, self.now)
        except CallError as error:
            honest = error.maybe_executed == whole.maybe_executed
            assert honest
            return
        assert self.pool.targets.get(target.node.address) is target
        assert not target.gone
        if whole.node is None:
            services = target.node.services
            assert not services or whole.service in services
            assert target.node.weight
        if target.client is not None:
            target.begin(self.now)
            self.running.append((whole, target, self.now))
            return
        assert target.retry_at is None or target.retry_at <= self.now
        if not target.dialling:
            self.pool.dialling(target)
            target.dialling = True
        self.waiting.append(whole)

    def let_go_on(self) -> None:
        waiting, self.waiting = self.waiting, []
        for whole in waiting:
            self.go_on(whole)

    # What is always true

    @invariant()
    def calls_are_counted(self) -> None:
        for target in self.known:
            assert target.in_flight == sum(one[1] is target for one in self.running)

    @invariant()
    def repeats_are_in_the_budget(self) -> None:
        assert self.executed_again <= 0.2 * self.succeeded + 10 * (self.now - self.start + 10) + 1

    @invariant()
    def nothing_grows(self) -> None:
        pool = self.pool
        targets = set(pool.targets.values())
        assert pool._down <= targets
        assert pool.dials <= targets
        assert pool._away == pool._down | pool.dials
        assert pool._hopeless <= pool._away
        assert set(pool.ejection.ejected) <= targets
        assert len(pool._balancers) <= 3
        for whole in self.waiting:
            assert len(whole.reasons) <= 3

    @invariant()
    def somebody_who_waits_waits_for_a_dial(self) -> None:
        assert not self.waiting or any(target.dialling for target in self.known)

    def teardown(self) -> None:
        while self.running:
            self.pool.cancelled(self.running.pop()[1])
        self.calls_are_counted()
        self.pool.update(View(), self.now)
        self.nothing_grows()


TestDriver = Driver.TestCase
TestDriver.settings = settings(
    spread(), max_examples=max(60, EXAMPLES // 100), stateful_step_count=40
)
