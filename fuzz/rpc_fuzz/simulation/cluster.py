"""The machines of a simulation, what they run, and what happens to them."""

import asyncio
import hashlib
import re
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from logging import ERROR, LogRecord
from random import Random
from typing import Any

from rpc_asyncio import BalancedClient, Client, Server
from rpc_common.discovery.advertising import Advertisement, EtcdAdvertisement
from rpc_discovery import EtcdDiscovery, Registry, RegistryDiscovery
from rpc_proto import (
    CallError,
    ClientConfig,
    DeadlineExceeded,
    InboundCall,
    Observer,
    OutboundCall,
    ServerConfig,
    ServerConnection,
    Unavailable,
)
from rpc_testing.network import Path

from .etcd_server import EtcdCluster
from .loop import Machine, SimulatedLoop
from .plan import Fault, Plan

__all__ = ["Cluster"]

PORT = 7000
REGISTRY_PORT = 9000
TTL = 6.0
GRACE = 10.0
WAIT = 8.0
TIMEOUT = 2.0
PROBE = 5.0
PING = 5.0
CONNECT = 2.0
CLOSE = 3.0

# A deadline may be missed by that, in seconds.
LATE = 0.001

# Until all views tell the truth after the last fault: see `fuzz/test_discovery.py` and
# `fuzz/test_etcd.py`, which derive the sums. A pause that ends at the last moment adds nothing.
REGISTRY_BOUND = max(TIMEOUT + 1 + TTL / 3, TTL + 0.25) + (WAIT + TIMEOUT + 1 + 5) + GRACE + 1
_HANGS = TIMEOUT + 1 + 15
ETCD_BOUND = (_HANGS + TTL + TIMEOUT + 1 + 2) + (_HANGS + 60 + PROBE + TIMEOUT + 1 + 2) + GRACE + 1

_SLOWEST_CLOCK = 0.98

# A deadline may come early by that share, since the clocks of two machines differ.
EARLY = 0.05

# Seconds until a client has connected again to a server that is back, and then without faults.
_RECOVERY = 40.0
_CALM = 6.0

_RARE = ("collect", "collect", "chat", "chat", "note")

# Why a call may fail.
_EXPECTED = re.compile(
    "the deadline of|no connection to|not connected|no node|Connection refused|connection was lost|"
    "is shutting down|is going away|server closed the connection|connection was closed|"
    "nothing was received|inside a frame|hung up|connection is clos|connection is drain|"
    "calls are running|wait already|too many|handshake"
)


class Ends(Observer):
    """Counts how calls ended at one end of connections."""

    def __init__(self, violated: Callable[[str], None]) -> None:
        self._violated = violated
        self.open: dict[Any, None] = {}

    def started(self, now: float, call: InboundCall | OutboundCall) -> None:
        if call in self.open:
            self._violated(f"{call!r} began twice")
        self.open[call] = None

    def answered(self, now: float, call: InboundCall | OutboundCall, size: int) -> None:
        self._end(call)

    def failed(
        self, now: float, call: InboundCall | OutboundCall, error: CallError, size: int
    ) -> None:
        if isinstance(call, OutboundCall) or call in self.open:
            self._end(call)  # what a server refuses on arrival did not begin

    def _end(self, call: Any) -> None:
        if call not in self.open:
            self._violated(f"{call!r} ended twice")
        self.open.pop(call, None)


class Bank:
    """What the servers serve; the cluster's ledger sees each execution."""

    def __init__(self, cluster: "Cluster", node: str) -> None:
        self._cluster = cluster
        self._node = node

    async def deposit(self, token: str, wait: float, filler: str = "") -> list[str]:
        """Must not be executed twice."""
        self._cluster.executed(token, self._node)
        if wait:
            await asyncio.sleep(wait)
        return [token, self._node, filler]

    async def count(
        self, token: str, number: int, gap: float, filler: str
    ) -> AsyncIterator[list[Any]]:
        """A stream of items."""
        self._cluster.executed(token, self._node)
        for item in range(number):
            if gap:
                await asyncio.sleep(gap)
            yield [token, item, filler]

    async def collect(self, token: str, items: AsyncIterator[str]) -> list[Any]:
        """Takes items."""
        self._cluster.executed(token, self._node)
        return [token, [len(item) async for item in items]]

    async def chat(self, token: str, items: AsyncIterator[int]) -> AsyncIterator[list[Any]]:
        """Answers each item."""
        self._cluster.executed(token, self._node)
        async for item in items:
            yield [token, item]

    async def note(self, token: str) -> None:
        """Has no answer."""
        self._cluster.executed(token, self._node)


class Cluster:
    """All machines in one loop."""

    def __init__(self, loop: SimulatedLoop, plan: Plan) -> None:
        self.loop = loop
        self.plan = plan
        self.network = loop.network
        self.random = Random(plan.seed)
        self.began = loop.now
        self.machines: dict[str, Machine | None] = dict.fromkeys(plan.machines)
        self.servers: dict[str, Server] = {}
        self.clients: dict[str, Any] = {}
        self.callers: dict[str, list[asyncio.Task[Any]]] = {}
        self.executions: Counter[str] = Counter()
        self.outcomes: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.violations: list[str] = []
        self.not_executed: list[str] = []  # tokens of calls that said so
        self.ends: list[tuple[Machine, Ends]] = []
        self.most_late = 0.0
        self.converged: list[tuple[float, float]] = []  # seconds, and the bound
        self.calls = 0
        self.open: dict[str, Machine] = {}  # calls that have not ended, by token
        self.idempotent: set[str] = set()
        self.most_held = 0
        self._lives = 0
        self._ending = False
        self._calm = False
        self._recovering = False
        self._hash = hashlib.sha256()
        self.trace: list[str] | None = None
        self.etcd = EtcdCluster(loop, [n for n in plan.machines if n.startswith("etcd-")])
        for source in plan.machines:
            for goal in plan.machines:
                if source != goal:
                    self.network.set_path(source, goal, Path())

    # What has happened

    @property
    def now(self) -> float:
        """Seconds since the beginning."""
        return self.loop.now - self.began

    @property
    def registries(self) -> list[str]:
        """The URLs of all registries."""
        return [f"http://registry-{n}:{REGISTRY_PORT}" for n in range(self.plan.registries)]

    @property
    def digest(self) -> str:
        """The hash of all that was told so far."""
        return self._hash.hexdigest()

    def tell(self, *what: Any) -> None:
        """Add something to the trace."""
        line = f"{self.now:.6f} {' '.join(map(str, what))}\n"
        self._hash.update(line.encode())
        if self.trace is not None:
            self.trace.append(line)

    def violated(self, text: str) -> None:
        """Record that a promise was broken."""
        self.tell("VIOLATED", text)
        self.violations.append(f"{self.now:.3f} {text}")

    def heard(self, record: LogRecord) -> None:
        """Take a line that a driver logs: no error is expected, and no violation."""
        text = record.getMessage()
        is_cut = "inside a frame" in text or "before the end of the line" in text
        if "protocol violation" in text and not is_cut:
            self.violated(f"the log says: {text}")
        elif record.levelno >= ERROR:
            error = record.exc_info[1] if record.exc_info else None
            self.violated(f"the log says: {text} {error!r}")

    def executed(self, token: str, node: str) -> None:
        """A handler runs."""
        self.executions[token] += 1
        self.tell("runs", token, node)

    def _observe(self, machine: Machine) -> Ends:
        ends = Ends(self.violated)
        self.ends.append((machine, ends))
        return ends

    # Starting

    async def start(self) -> None:
        """Start all machines."""
        late = [f"server-{self.plan.servers + n}" for n in range(self.plan.late)]
        for name in self.machines:
            if name not in late:
                await self.start_machine(name)

    async def start_machine(self, name: str) -> None:
        """Start a machine, perhaps again."""
        self.tell("starts", name)
        machine = Machine(self.loop, name, self.plan.drifts.get(name, 1.0))
        self.machines[name] = machine
        kind = name.partition("-")[0]
        if kind == "etcd":
            self.etcd.start(machine)
            return
        start = {"server": self._serve, "client": self._call, "registry": self._register}[kind]
        await machine.spawn(start(name, machine))

    async def _serve(self, name: str, machine: Machine) -> None:
        server = Server(
            config=ServerConfig(ping_interval=PING, close_timeout=CLOSE, high_water=64 * 1024),
            observers=[self._observe(machine)],
            max_concurrency=40,
            max_queued=20,
        )
        server.register(Bank(self, name))
        self.servers[name] = server
        await server.start(
            f"tcp://{name}:{PORT}",
            advertise=[
                Advertisement(self.registries, ttl=TTL),
                EtcdAdvertisement(self.etcd.urls, ttl=TTL, timeout=TIMEOUT, transport="gateway"),
            ],
        )

    async def _register(self, name: str, machine: Machine) -> None:
        self._lives += 1
        server = Server(config=ServerConfig(ping_interval=PING, close_timeout=CLOSE))
        server.mount(Registry(f"life{self._lives}"))
        self.servers[name] = server
        await server.start(f"tcp://{name}:{REGISTRY_PORT}")

    async def _call(self, name: str, machine: Machine) -> None:
        number = int(name.partition("-")[2])
        ends = self._observe(machine)
        config = ClientConfig(ping_interval=PING, close_timeout=CLOSE)
        shared: dict[str, Any] = {
            "codec": self.plan.codec,
            "config": config,
            "observers": [ends],
        }
        client: Any
        if number % 3 == 2:
            address = f"tcp://server-{number % self.plan.servers}:{PORT}"
            client = PlainClient(address, shared)
        else:
            if number % 3 == 0:
                discovery: Any = RegistryDiscovery(
                    self.registries, service="Bank", wait=WAIT, grace=GRACE, timeout=TIMEOUT
                )
            else:
                discovery = EtcdDiscovery(
                    self.etcd.urls,
                    service="Bank",
                    grace=GRACE,
                    timeout=TIMEOUT,
                    probe=PROBE,
                    transport="gateway",
                )
            client = BalancedClient(
                discovery,
                balancer=self.random.choice(["round_robin", "least_loaded", "random"]),
                connect_timeout=CONNECT,
                **shared,
            )
        self.clients[name] = client
        self.callers[name] = [
            machine.spawn(self._make_calls(name, machine, client, caller)) for caller in range(3)
        ]

    # Calling

    async def _make_calls(self, name: str, machine: Machine, client: Any, caller: int) -> None:
        random = Random(f"{self.plan.seed} {name} {caller} {self._lives}")
        while not self._ending:
            await asyncio.sleep(1.5 if self._recovering else random.choice([0.0, 0.01, 0.2, 1.0]))
            self.calls += 1
            token = f"{name}/{self.calls}"
            await self._make_call(machine, client, token, random)

    async def _make_call(self, machine: Machine, client: Any, token: str, random: Random) -> None:
        kind = random.choice([*["deposit"] * 6, "read", "read", "count", "count", *_RARE])
        timeout = random.choice([0.05, 0.5, 2.0, 8.0])
        wait = random.choice([0.0, 0.0, 0.02, 0.3, 3.0])
        size = random.choice([0, 10, 10, 1000, 1000, 50_000, 200_000])
        items = random.choice([0, 1, 5, 40])
        self.tell("calls", token, kind, timeout)
        began, stood = machine.time(), machine.stood
        idempotent = kind == "read"
        calm = self._calm
        if idempotent:
            self.idempotent.add(token)
        self.open[token] = machine
        try:
            await self._do(client, kind, token, timeout, wait, size, items, idempotent)
        except CallError as error:
            outcome = error.code
            if not _EXPECTED.search(error.message):
                self.violated(f"{token} failed, and nobody knows why: {error}")
            if not error.maybe_executed:
                outcome += " not executed"
                self.not_executed.append(token)
        else:
            outcome = "ok"
        del self.open[token]
        self.outcomes[outcome] += 1
        # A machine that stood still could not look at its clock.
        late = machine.time() - began - timeout - (machine.stood - stood) * machine.drift
        self.most_late = max(self.most_late, late)
        self.tell("ends", token, outcome)
        if late > LATE:
            self.violated(f"{token} ended {late:.4f} s after its deadline, {outcome}")
        early = timeout - (machine.time() - began)
        if outcome == "deadline_exceeded" and early > EARLY * timeout + 0.01:
            self.violated(f"{token} ended {early:.4f} s before its deadline, {outcome}")
        takes = wait if kind in ("deposit", "read") else items * wait / 10 if kind == "count" else 0
        if calm and outcome != "ok" and timeout > 1.1 * takes + 0.4:
            self.violated(f"{token}, {kind}, ended with {outcome} when all was calm")

    async def _do(
        self,
        client: Any,
        kind: str,
        token: str,
        timeout: float,
        wait: float,
        size: int,
        items: int,
        idempotent: bool,
    ) -> None:
        if kind == "note":
            await client.notify("Bank.note", token, timeout=timeout)
        elif kind in ("deposit", "read"):
            filler = "x" * size
            how = {"idempotent": idempotent} if isinstance(client, BalancedClient) else {}
            answer = await client.call("Bank.deposit", token, wait, filler, timeout=timeout, **how)
            self._check(token, answer[0] == token and answer[2] == filler, answer)
        elif kind == "count":
            got = []
            filler = "x" * (size // 10)
            stream = client.stream("Bank.count", token, items, wait / 10, filler, timeout=timeout)
            async for item in stream:
                got.append(item)
            self._check(token, got == [[token, n, filler] for n in range(items)], got)
        elif kind == "collect":
            sizes = [n * size // 40 for n in range(items)]
            sent = iter(["x" * length for length in sizes])
            answer = await client.call("Bank.collect", token, sent, timeout=timeout)
            self._check(token, answer == [token, sizes], answer)
        else:
            async with client.stream("Bank.chat", token, timeout=timeout) as stream:
                for number in range(items):
                    await stream.send(number)
                    item = await anext(stream)
                    self._check(token, item == [token, number], item)
                await stream.result()

    def _check(self, token: str, holds: bool, answer: Any) -> None:
        if not holds:
            self.violated(f"{token} got what belongs to another call: {answer!r:.200}")

    # Faults

    async def suffer(self) -> None:
        """Let the faults of the plan happen, and then heal everything."""
        pending = [self.loop.create_task(self._happen(fault)) for fault in self.plan.faults]
        await asyncio.sleep(self.plan.length)
        if pending:
            await asyncio.wait(pending)
        for task in pending:
            task.result()
        self.tell("healed")
        for number in range(self.plan.late):
            await self.start_machine(f"server-{self.plan.servers + number}")

    async def _happen(self, fault: Fault) -> None:
        await asyncio.sleep(max(0.0, fault.at - self.now))
        self.faults[fault.kind] += 1
        self.tell("fault", fault.kind, fault.who, fault.whom, fault.lasts, fault.value)
        undo = getattr(self, f"_fault_{fault.kind}")(fault)
        if asyncio.iscoroutine(undo):
            undo = await undo
        if undo is not None:
            # What still lasts at the end of all faults is healed then.
            await asyncio.sleep(max(0.0, min(fault.lasts, self.plan.length - self.now)))
            again = undo()
            if asyncio.iscoroutine(again):
                await again

    def _paths(self, who: str, back: bool = True) -> Iterable[Path]:
        for other in self.plan.machines:
            if other != who:
                yield self.network.path(who, other)
                if back:
                    yield self.network.path(other, who)

    def _fault_latency(self, fault: Fault) -> Callable[[], None]:
        def wait() -> float:
            return self.random.random() * fault.value

        paths = [path for name in self.plan.machines for path in self._paths(name, back=False)]
        for path in paths:
            path.jitter = wait

        def undo() -> None:
            for path in paths:
                path.jitter = None

        return undo

    def _fault_slow(self, fault: Fault) -> Callable[[], None]:
        paths = list(self._paths(fault.who))
        for path in paths:
            path.rate = fault.value

        def undo() -> None:
            for path in paths:
                path.rate = float("inf")

        return undo

    def _stall(self, paths: list[Path]) -> Callable[[], None]:
        for path in paths:
            path.stalls += 1

        def undo() -> None:
            for path in paths:
                path.stalls -= 1
            self.network.go_on()

        return undo

    def _fault_one_way(self, fault: Fault) -> Callable[[], None]:
        return self._stall([self.network.path(fault.who, fault.whom)])

    def _fault_isolate(self, fault: Fault) -> Callable[[], None]:
        return self._stall(list(self._paths(fault.who)))

    def _fault_reset(self, fault: Fault) -> None:
        for link in self.network.of(fault.who):
            link.reset()

    def _fault_reset_after(self, fault: Fault) -> None:
        for link in self.network.of(fault.who):
            link.down.breaks_at = link.down.carried + int(fault.value)

    def _fault_cut(self, fault: Fault) -> None:
        for link in self.network.of(fault.who):
            link.cut()

    def _fault_half_close(self, fault: Fault) -> None:
        for link in self.network.of(fault.who):
            link.up.end()

    def _fault_refuse(self, fault: Fault) -> Callable[[], None]:
        self.network.refusing = True

        def undo() -> None:
            self.network.refusing = False

        return undo

    def _fault_lose_answer(self, fault: Fault) -> None:
        self.network.drop_answer(int(fault.value))

    def _fault_pause(self, fault: Fault) -> Callable[[], None] | None:
        machine = self.machines[fault.who]
        if machine is None or machine.paused:
            return None
        machine.pause()
        return machine.resume

    def _fault_kill(self, fault: Fault) -> Any:
        return self._end_machine(fault.who, vanishes=False)

    def _fault_gone(self, fault: Fault) -> None:
        others = [name for name in self.servers if name.startswith("server") and name != fault.who]
        if others:
            self._end_machine(fault.who, vanishes=False)

    def _fault_power(self, fault: Fault) -> Any:
        return self._end_machine(fault.who, vanishes=True)

    def _end_machine(self, name: str, vanishes: bool) -> Any:
        machine = self.machines[name]
        if machine is None:
            return None
        machine.crash()
        self.machines[name] = None
        self.servers.pop(name, None)
        self.clients.pop(name, None)
        self.callers.pop(name, None)
        if name.startswith("etcd"):
            self.etcd.members[name] = None
        links = list(self.network.of(name))
        self.network.close_host(name)
        for link in links:
            if vanishes:
                link.vanish()
            else:
                link.reset()

        async def restart() -> None:
            for link in links:
                link.reset()
            await self.start_machine(name)

        return restart

    @property
    def lost(self) -> int:
        """Calls that have not ended, but for those of machines that have crashed."""
        return sum(not machine.crashed for machine in self.open.values())

    async def _fault_drain(self, fault: Fault) -> Any:
        machine, server = self.machines[fault.who], self.servers.get(fault.who)
        if machine is None or machine.paused or server is None:
            return None
        self.servers.pop(fault.who)
        self.machines[fault.who] = None
        await machine.spawn(server.stop(1.0))
        self._check_rest(fault.who, server)
        machine.crash()

        async def restart() -> None:
            await self.start_machine(fault.who)

        return restart

    def _fault_wipe(self, fault: Fault) -> Any:
        return self._end_machine(fault.who, vanishes=False)

    def _fault_compact(self, fault: Fault) -> None:
        self.etcd.store.compact()
        self.etcd.told()

    def _fault_lose_leases(self, fault: Fault) -> None:
        for lease in list(self.etcd.store.leases):
            self.etcd.store.end_lease(lease)
        self.etcd.told()

    def _fault_elect(self, fault: Fault) -> None:
        self.etcd.elect()

    def _fault_erase(self, fault: Fault) -> None:
        self.etcd.store.wipe()
        self.etcd.elect()
        for name in self.etcd.members:
            for link in self.network.of(name):
                link.reset()
        self.etcd.told()

    # Afterwards

    async def converge(self) -> None:
        """Wait until all views tell the truth, which must not take longer than the bound."""
        healed = self.now
        truth = sorted(f"tcp://{name}:{PORT}" for name in self.servers if "server" in name)
        for name, client in self.clients.items():
            if not isinstance(client, BalancedClient):
                continue
            is_etcd = isinstance(client.discovery, EtcdDiscovery)
            bound = (ETCD_BOUND if is_etcd else REGISTRY_BOUND) / _SLOWEST_CLOCK
            while sorted(node.address for node in client.nodes) != truth:
                if self.now - healed > bound:
                    seen = sorted(node.address for node in client.nodes)
                    self.violated(f"{name} sees {seen} after {bound:.1f} s, and not {truth}")
                    break
                await asyncio.sleep(0.1)
            self.converged.append((self.now - healed, bound))
            self.tell("converged", name)

    async def calm_down(self) -> None:
        """Let clients get over it; then no call may fail."""
        self._recovering = True
        await asyncio.sleep(_RECOVERY)
        self._recovering = False
        self._calm = all(
            client.address in {f"tcp://{name}:{PORT}" for name in self.servers}
            for client in self.clients.values()
            if isinstance(client, PlainClient)
        )
        self.tell("calm", self._calm)
        await asyncio.sleep(_CALM)

    async def drain(self) -> None:
        """End everything, and look at what is left."""
        self._ending = True
        await asyncio.sleep(15.0)  # longer than any call
        for name, tasks in self.callers.items():
            for task in tasks:
                if not task.done():
                    self.violated(f"a call of {name} has not ended")
                elif task.exception() is not None:
                    self.violated(f"{name}: {task.exception()!r}")
        for name, server in self.servers.items():
            left = [
                link.connection.calls_in_flight
                for link in server.links
                if isinstance(link.connection, ServerConnection)
            ]
            if any(left):
                self.violated(f"{name} still has {sum(left)} calls, though all have ended")
        for name, client in list(self.clients.items()):
            machine = self.machines[name]
            assert machine is not None
            await machine.spawn(client.close())
        for name, server in list(self.servers.items()):
            machine = self.machines[name]
            assert machine is not None
            await machine.spawn(server.stop(1.0))
            self._check_rest(name, server)
        for machine, ends in self.ends:
            if not machine.crashed and ends.open:
                self.violated(f"{len(ends.open)} calls at {machine.name} did not end")
        for token in self.not_executed:
            if self.executions[token]:
                self.violated(f"{token} ran, though its caller was told that it did not")
        for token, times in self.executions.items():
            if times > 1 and token not in self.idempotent:
                self.violated(f"{token} ran {times} times")
        self.etcd.close()
        await asyncio.sleep(1.0)
        links = [link for link in self.network.links if "etcd" not in link.host]
        if links:
            self.violated(f"connections are left: {links}")

    def _check_rest(self, name: str, server: Server) -> None:
        for what in ("connections", "running", "queued", "abandoned", "tasks"):
            if server.stats[what]:
                self.violated(f"{name} has stopped with {server.stats[what]} {what}")
        memory = server.snapshot()["load"]["memory"]
        if memory:
            self.violated(f"{name} has stopped, and {memory} bytes are counted as held")

    async def watch_bounds(self) -> None:
        """Look, again and again, at what servers hold."""
        while True:
            await asyncio.sleep(0.25)
            for name, server in self.servers.items():
                held = server.snapshot()["load"]["memory"]
                self.most_held = max(self.most_held, held)
                if held > server.config.budget:
                    self.violated(f"{name} holds {held} bytes")
                for link in server.links:
                    connection = link.connection
                    if connection is not None and connection.outbound > 64 * 1024 + 200_000:
                        self.violated(f"{name} has {connection.outbound} bytes to send")


class PlainClient:
    """A plain client that connects again when it has to."""

    def __init__(self, address: str, options: dict[str, Any]) -> None:
        self.address = address
        self._options = options
        self._client: Client | None = None
        self._dialling = asyncio.Lock()
        self._closing: list[asyncio.Task[None]] = []

    async def _connected(self, timeout: float) -> Client:
        async with self._dialling:
            if self._client is None or self._client.closed:
                if self._client is not None:
                    self._closing.append(asyncio.create_task(self._client.close(CLOSE)))
                self._client = None
                self._client = await Client.connect(self.address, timeout=timeout, **self._options)
            return self._client

    async def call(self, method: str, *args: Any, timeout: float) -> Any:
        clock = asyncio.get_running_loop().time
        until = clock() + timeout
        try:
            async with asyncio.timeout(timeout):
                client = await self._connected(timeout)
        except TimeoutError:
            raise DeadlineExceeded("not connected in time", maybe_executed=False) from None
        return await client.call(method, *args, timeout=max(0.0, until - clock()))

    async def notify(self, method: str, *args: Any, timeout: float) -> None:
        client = await self._connected(timeout)
        await client.notify(method, *args, timeout=timeout)

    def stream(self, method: str, *args: Any, timeout: float) -> Any:
        client = self._client
        if client is None or client.closed:
            raise Unavailable("not connected", maybe_executed=False)
        return client.stream(method, *args, timeout=timeout)

    async def close(self) -> None:
        if self._client is not None:
            await self._client.close()
        await asyncio.gather(*self._closing)
