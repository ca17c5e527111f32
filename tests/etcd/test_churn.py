"""Nodes of each backend come, go, die and change while leaders die: the view is what etcd holds.

Servers register themselves and a client follows, as users have them; etcdctl says what is true.
"""

import json
import random
import statistics
import threading
import time
from base64 import b64decode
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import NamedTuple

import pytest

from etcd.conftest import ALL
from rpc_common.discovery.advertising import EtcdAdvertisement
from rpc_discovery import EtcdDiscovery

# Seconds. The ttl of a node that may fall silent, and of one that stays or says farewell: long
# enough that its lease outlives an election.
SHORT, LONG = 2.0, 10.0
# A follower waits for a leader for one to two seconds, and once more if the votes are split.
ELECTION = 4.0
# A change while leaders live; and while they die: a request may hang (2 s), and is sent again after
# a pause (2 s), by when the next leader may be dead. The rest is for a busy machine.
CALM = 0.1 + 2.9
BOUND = 2 * ELECTION + 2.0 + 2.0 + 4.0
# etcd begins to count anew with each leader, a second later, and looks twice a second.
SILENT = ELECTION + 1.0 + SHORT + 0.5 + 3.0
# A grant whose answer went down with a leader leaves a lease without keys, which nobody knows.
UNKNOWN = SILENT - SHORT + LONG


class Form(NamedTuple):
    """How long nodes come and go, before leaders die and meanwhile, and how many there are."""

    calm: float
    seconds: float
    most: int
    least: int
    period: float  # from one leader's death to the next one's
    kills: int


FORM = Form(10.0, 60.0, 20, 12, 5.0, 100) if ALL else Form(1.0, 2.5, 6, 4, 0.0, 1)
KINDS = ["silence", "farewell", "come", "change", "return"]


class Arith:
    def add(self, a: int, b: int) -> int:
        return a + b


class Log:
    def line(self, text: str) -> None:
        pass


class Said(NamedTuple):
    """What is known of a node: what it offers, and which of its lives it is in."""

    services: frozenset[str]
    life: str


class Serving:
    """A server with its registration."""

    def __init__(self, run, urls, settings, ttl, life, address="tcp://127.0.0.1:0"):
        self.ttl = ttl
        self.life = life
        self.offers = {"Arith"}
        self._run = run

        def start():
            self._server = run.module.Server()
            self._server.register(Arith())
            advertise = EtcdAdvertisement(urls, ttl=ttl, metadata={"life": life}, **settings)
            return self._server.start(address, advertise=advertise)

        self.address = run.do(start)

    def change(self):
        if "Log" in self.offers:
            self._run.do(lambda: self._server.unregister("Log"))
        else:
            self._run.do(lambda: self._server.register(Log()))
        self.offers ^= {"Log"}

    def leave(self):
        self._run.do(lambda: self._server.stop(grace=0.0))

    def fall_silent(self):
        """End as with SIGKILL, as far as etcd can tell: without a word, its connections broken."""

        def stop():
            for pump in self._server._registrations.pumps:
                pump.stop()
            return self._server.stop(grace=0.0)

        self._run.do(stop)

    @property
    def said(self):
        return Said(frozenset(self.offers), self.life)


class Churn:
    """The nodes of a test, what is done to them, and what a client and etcdctl say of them."""

    def __init__(self, runtime, cluster, prefix, settings):
        self.nodes: dict[str, Serving] = {}
        self.silent: dict[str, Said] = {}  # etcd may show them for their ttl
        self.did: Counter[str] = Counter()
        self.took: list[float] = []
        self.bound = CALM
        self.empty = 0  # views
        self.missing: list[str] = []  # nodes that stayed, and were not in a view
        self.views = 0
        self._run = runtime
        self._cluster = cluster
        self._settings = {"prefix": prefix, **settings}
        self._random = random.Random(prefix)
        self._steady: set[str] = set()
        self._lives = count(1)
        self._kinds = KINDS[::-1]

    def follow(self):
        """Begin to watch when all nodes are there, as a client does with its first call."""
        began = time.monotonic()
        while self.ask() != {address: node.said for address, node in self.nodes.items()}:
            assert time.monotonic() < began + CALM
        discovery = EtcdDiscovery(self._cluster.endpoints, **self._settings)
        self.client = self._run.do(lambda: self._run.module.BalancedClient(discovery))
        apply = self.client._apply

        def note(view):
            apply(view)
            self.views += 1
            self.empty += not view
            addresses = {node.address for node in view}
            self.missing += self._steady - addresses

        self.client._apply = note
        assert self._run.do(lambda: self.client.call("Arith.add", 1, 2, timeout=20.0)) == 3

    def come(self, ttl, address="tcp://127.0.0.1:0"):
        life = str(next(self._lives))
        node = Serving(self._run, self._cluster.endpoints, self._settings, ttl, life, address)
        self.silent.pop(node.address, None)
        self.nodes[node.address] = node

    def go_on(self, seconds):
        """Do one to three things at once, wait until etcd and the client know, and so on."""
        end = time.monotonic() + seconds
        while (began := time.monotonic()) < end:
            at_once(self._choose(self._random.randint(1, 3)))
            self.agree(began)

    def agree(self, began):
        """Wait until the client sees what etcdctl sees, and that is as it should be."""
        while True:
            told = self.ask()
            view = self.client.nodes
            seen = {n.address: Said(frozenset(n.services), n.metadata["life"]) for n in view}
            wanted = {address: node.said for address, node in self.nodes.items()}
            silent = {
                address: said
                for address, said in (told or {}).items()
                if self.silent.get(address) == said
            }
            if told == seen == {**silent, **wanted}:
                break
            late = time.monotonic() - began
            assert late < self.bound, (
                f"after {late:.1f} s: {told=} {seen=} {wanted=} {self.silent=}"
            )
        self.took.append(time.monotonic() - began)
        self._steady = {a for a, node in self.nodes.items() if node.ttl == LONG}

    def ask(self):
        """Return what etcd holds by a linearizable read; None if it cannot be had now."""
        prefix = self._settings["prefix"]
        try:
            answer = self._cluster.ctl(
                "--command-timeout=500ms", "get", "--prefix", f"{prefix}/", "-w", "json"
            )
        except RuntimeError:
            return None
        found: dict[str, Said] = {}
        kvs = json.loads(answer).get("kvs", [])
        for kv in sorted(kvs, key=lambda kv: kv["mod_revision"]):
            _, _, service, _ = b64decode(kv["key"]).decode().split("/", 3)
            value = json.loads(b64decode(kv["value"]))
            known = found.get(value["address"], Said(frozenset(), ""))
            said = Said(known.services | {service}, value["metadata"]["life"])
            found[value["address"]] = said
        return found

    def end(self):
        """Let all nodes say farewell at once; wait until there are only silent ones."""
        self._steady = set()
        leaving, self.nodes = self.nodes, {}
        self.did["farewell"] += len(leaving)
        began = time.monotonic()
        at_once([node.leave for node in leaving.values()])
        while (told := self.ask()) is None or not set(told) <= set(self.silent):
            late = time.monotonic() - began
            assert late < CALM, f"after {late:.1f} s: {told=} {self.silent=}"

    def _choose(self, number):
        """Return what to do now, each to another node."""
        free = list(self.nodes.values())
        self._random.shuffle(free)
        gone = list(self.silent)
        acts = []
        for _ in range(number):
            if not self._kinds:  # all of them, however short it is
                self._kinds = self._random.sample(KINDS, len(KINDS))
            self._act(self._kinds.pop(), free, gone, acts)
        return acts

    def _act(self, what, free, gone, acts):
        room = len(self.nodes) < FORM.most
        spare = len(self.nodes) > FORM.least
        restless = [node for node in free if node.ttl == SHORT]
        if what == "silence" and spare and restless:
            node = restless[0]
            free.remove(node)
            del self.nodes[node.address]
            self.silent[node.address] = node.said
            acts.append(node.fall_silent)
        elif what == "farewell" and spare:
            node = next((node for node in free if node.ttl == LONG), free[0])
            free.remove(node)
            del self.nodes[node.address]
            self._steady = self._steady - {node.address}
            acts.append(node.leave)
        elif what == "return" and gone and room:
            address = gone.pop()
            acts.append(lambda: self.come(SHORT, address))
        elif what == "come" and room:
            ttl = self._random.choice([SHORT, LONG])
            acts.append(lambda: self.come(ttl))
        else:
            what = "change"
            acts.append(free.pop().change)
        self.did[what] += 1


class Killer:
    """Kills the leader, again and again, and starts it again."""

    def __init__(self, cluster):
        self.kills = 0
        self.failure: BaseException | None = None
        self._cluster = cluster
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._over.set()
        self._thread.join()

    def _run(self):
        try:
            at = time.monotonic() + FORM.period
            while self.kills < FORM.kills and not self._over.wait(max(0.0, at - time.monotonic())):
                at += FORM.period
                leader = self._cluster.leader()
                leader.kill()
                self.kills += 1
                leader.start()
        except BaseException as error:
            self.failure = error


def at_once(acts):
    with ThreadPoolExecutor(FORM.most) as pool:
        for done in [pool.submit(act) for act in acts]:
            done.result()


def leases(cluster):
    return set(cluster.ctl("lease", "list").split()[3:])


@pytest.mark.slow
def test_view_is_what_etcd_holds_while_nodes_come_and_go_and_leaders_die(cluster, cast, recovered):
    before = leases(cluster)
    churn = Churn(cast.runtime, cluster, cast.prefix, {"transport": cast.transport})
    for number in range(FORM.most):
        churn.come(SHORT if number % 2 else LONG)
    churn.follow()
    churn.agree(time.monotonic())
    began = time.monotonic()
    churn.go_on(FORM.calm)
    churn.bound = BOUND
    with Killer(cluster) as killer:
        churn.go_on(FORM.seconds)
    if killer.failure is not None:
        raise killer.failure
    churn.agree(time.monotonic())
    churn.end()
    ended = time.monotonic()
    recovered("churn: a change, in the middle", statistics.median(churn.took))
    recovered("churn: a change, at most", max(churn.took))
    while (left := churn.ask()) or leases(cluster) - before:
        late = time.monotonic() - ended
        assert late < (SILENT if left else UNKNOWN), f"after {late:.1f} s: {left}"
    recovered("churn: all are gone", time.monotonic() - ended)
    cast.runtime.do(churn.client.close)
    print(
        f"{dict(churn.did)} in {ended - began:.0f} s with {killer.kills} leaders killed; "
        f"{len(churn.took)} times the view was etcd's, after {statistics.median(churn.took):.2f} s "
        f"in the middle and {max(churn.took):.2f} s at most; {churn.views} views"
    )
    assert killer.kills >= min(FORM.kills, FORM.seconds // (FORM.period + BOUND))
    assert churn.empty == 0
    assert churn.missing == []
