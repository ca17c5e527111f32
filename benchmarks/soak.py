"""Calls in the middle of faults: servers and the registry are killed, stopped, drained, restarted.

python benchmarks/soak.py [--seconds 60] [--calm 20] [--seed N] [--backends NAME ...]
                          [--faults NAME ...] [--together]

Five servers on mixed backends, a registry and a balanced client for each backend are processes of
their own. Prints a table of figures; the exit code is 1 if a promise of docs/discovery.md was
broken. With --together all clients call at the same time. A calm run follows, in which one thing
happens after the other, to see how soon it is known.
"""

import argparse
import bisect
import json
import os
import random
import secrets
import selectors
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from soak_service import EXECUTIONS

HERE = Path(__file__).resolve().parent
# Processes run in another folder, where relative paths would mean something else.
PATH = os.pathsep.join(
    os.path.abspath(path) for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path
)
BACKENDS = ("asyncio", "gevent", "blocking")
SERVERS = ("asyncio", "gevent", "blocking", "asyncio", "gevent")
TTL = 3  # seconds; a server that is stopped for longer is forgotten
FAULTS = ("kill", "pause", "drain")
LANES = ((0, 1, 2), (3, 4))  # of each at most one is away at a time
WORKERS = 16
TIMEOUT = 5.0  # seconds, of each call; as in soak_client.py
LATE = 2.0  # seconds that a call may end behind its deadline, on a machine that is busy
START = 20.0  # seconds that a process may take to start
EXPECTED = {"unavailable", "deadline_exceeded"}


class Event(NamedTuple):
    """What was done. Times in seconds of the system's clock, which all processes share."""

    at: float
    what: str
    address: str = ""
    pid: int = 0


class Process:
    """A server or a registry, as the command starts it."""

    def __init__(self, log: int, executions: Path, *arguments: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "rpc_cli", *arguments],
            stdout=subprocess.PIPE,
            stderr=log,
            cwd=HERE,
            env={**os.environ, "PYTHONPATH": PATH, EXECUTIONS: str(executions)},
        )
        self.pid = self._process.pid
        self.address = ""
        self.started = 0.0
        self._read_address()

    def _read_address(self) -> None:
        pipe = self._process.stdout
        assert pipe is not None
        with selectors.DefaultSelector() as selector:
            selector.register(pipe, selectors.EVENT_READ)
            line = pipe.readline().split() if selector.select(START) else []
        if len(line) != 3:
            self.end()
            raise RuntimeError(f"a process did not start: {line}")
        self.address, self.started = line[2].decode(), time.monotonic()

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    def wait(self) -> int:
        return self._process.wait(START)

    def end(self) -> None:
        self._process.kill()
        self._process.wait()


class Cluster:
    """Five servers and a registry, and what is done to them."""

    def __init__(self, folder: Path, backend: str, seconds: float, seed: int) -> None:
        self.executions = folder / "executions"
        self.errors = folder / "errors"
        self.events: list[Event] = []
        self.failures: list[str] = []
        self._log = os.open(self.errors, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        self._snapshot = folder / "snapshot"
        self._backend = backend  # of the registry
        self._seconds = seconds
        self._seed = seed
        self._over = threading.Event()
        self._servers: list[Process | None] = [None] * len(SERVERS)
        self._registry = self._start_registry("tcp://127.0.0.1:0")
        with ThreadPoolExecutor() as pool:
            list(pool.map(self._start_server, range(len(SERVERS))))
        self._threads: list[threading.Thread] = []

    def wait_for_calls(self, backends: list[str]) -> None:
        """Wait until each client has made a call: without a registry none can begin."""
        deadline = time.monotonic() + START
        while time.monotonic() < deadline:
            if self.executions.exists():
                seen = self.executions.read_text()
                if all(f"{backend}-" in seen for backend in backends):
                    return
            time.sleep(0.05)
        self.failures.append("a client made no call at all")

    def break_things(self, faults: list[str]) -> None:
        """Begin; `end` stops that."""
        for slots in LANES:
            self._begin(self._break_servers, slots, faults)
        self._begin(self._break_registry)

    def break_in_turn(self) -> None:
        """Take the registry away for a while, then one server after the other; `end` stops that."""
        self._begin(self._break_in_turn)

    def end(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()
        for process in (*self._servers, self._registry):
            if process is not None:
                process.end()
        os.close(self._log)

    def _begin(self, function: Any, *args: Any) -> None:
        def run() -> None:
            try:
                function(*args)
            except Exception as error:
                self.failures.append(f"the soak itself failed: {error!r}")

        self._threads.append(threading.Thread(target=run))
        self._threads[-1].start()

    def _tell(self, what: str, process: Process, at: float | None = None) -> None:
        at = time.monotonic() if at is None else at
        self.events.append(Event(at, what, process.address, process.pid))

    @property
    def url(self) -> str:
        """The registry's."""
        return self._registry.address

    def _start(self, backend: str, *arguments: str) -> Process:
        return Process(self._log, self.executions, *arguments, f"--backend={backend}")

    def _start_server(self, slot: int, address: str = "tcp://127.0.0.1:0") -> None:
        backend = SERVERS[slot]
        arguments = [f"soak_service:{backend.title()}Work=Work", f"--registry={self.url}"]
        process = self._start(backend, "serve", *arguments, f"--listen={address}", f"--ttl={TTL}")
        self._servers[slot] = process
        self._tell("start", process, process.started)

    def _start_registry(self, address: str) -> Process:
        options = f"--listen={address}", f"--snapshot={self._snapshot}"
        process = self._start(self._backend, "registry", *options)
        self._tell("registry up", process, process.started)
        return process

    def _break_in_turn(self) -> None:
        self._over.wait(self._seconds / 5)
        self._tell("registry down", self._registry)
        self._registry.end()
        self._over.wait(self._seconds / 5)
        self._registry = self._start_registry(self._registry.address)
        self._over.wait(2.0)
        slot = 0
        while not self._over.is_set():
            slot = (slot + 1) % len(SERVERS)
            process = self._servers[slot]
            assert process is not None
            self._tell("kill", process)
            process.end()
            self._over.wait(0.3)
            self._start_server(slot)
            self._over.wait(1.0)

    def _break_servers(self, slots: tuple[int, ...], chosen: list[str]) -> None:
        rng = random.Random(f"{self._seed}/{slots}")
        faults: list[str] = []
        self._over.wait(rng.uniform(0.5, 1.0))
        while not self._over.wait(rng.uniform(0.2, 1.2)):
            slot = rng.choice(slots)
            process = self._servers[slot]
            assert process is not None
            if not faults:
                faults = rng.sample(chosen, len(chosen))
            fault = faults.pop()
            self._tell(fault, process)
            if fault == "pause":
                process.signal(signal.SIGSTOP)
                self._over.wait(rng.uniform(1.0, 4.5))
                process.signal(signal.SIGCONT)
                self._tell("resume", process)
                continue
            process.signal(signal.SIGKILL if fault == "kill" else signal.SIGTERM)
            code = process.wait()
            if fault == "drain" and code != 0:
                self.failures.append(f"a server that was drained ended with {code}")
            self._over.wait(rng.uniform(0.0, 1.5))
            same = rng.random() < 0.5
            self._start_server(slot, process.address if same else "tcp://127.0.0.1:0")

    def _break_registry(self) -> None:
        down = min(6.0, self._seconds / 8)
        for lost in (False, True):
            if self._over.wait(self._seconds / 3 - down):
                return
            self._tell("registry down", self._registry)
            self._registry.end()
            self._over.wait(down)
            if lost:
                self._snapshot.unlink(missing_ok=True)
            self._registry = self._start_registry(self._registry.address)


class Caller:
    """A client that runs."""

    def __init__(self, folder: Path, backend: str, url: str, seconds: float, seed: int) -> None:
        self.backend = backend
        self._results = folder / f"results-{backend}"
        arguments = [backend, url, seconds, seed, WORKERS, self._results]
        with open(folder / "errors", "ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, str(HERE / "soak_client.py"), *map(str, arguments)], stderr=log
            )
        self._limit = seconds + TIMEOUT + START

    def results(self) -> dict[str, Any]:
        try:
            code = self._process.wait(self._limit)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        if code:
            raise RuntimeError(f"the client of rpc_{self.backend} ended with {code}")
        found: dict[str, Any] = json.loads(self._results.read_text())
        return found


class Span(NamedTuple):
    """A time from one event to another."""

    begin: float
    end: float

    def __contains__(self, at: object) -> bool:
        return isinstance(at, float) and self.begin <= at < self.end


def outages(events: list[Event], end: float) -> list[Span]:
    """Return when the registry was away."""
    spans = []
    for event in events:
        if event.what == "registry down":
            back = [e.at for e in events if e.what == "registry up" and e.at > event.at]
            spans.append(Span(event.at, min(back, default=end)))
    return spans


def judge(
    cluster: Cluster, results: dict[str, Any], executions: list[list[str]]
) -> tuple[dict[str, str], list[str]]:
    """Return the figures, and the promises that were broken."""
    calls = results["calls"]
    events = sorted(cluster.events)
    broken = list(cluster.failures)
    own = {call[0] for call in calls} | set(results["unfinished"])
    executed = Counter(line[0] for line in executions if line[0] in own)

    def check(what: str, wrong: list[Any]) -> None:
        if wrong:
            broken.append(f"{what}: {len(wrong)}, as {wrong[0]}")

    puts = [call for call in calls if call[1] == "put"]
    gets = [call for call in calls if call[1] != "put"]
    failed_gets = [call for call in gets if call[4] is not None]
    failed_puts = [call for call in puts if call[4] is not None]
    doubles = [call for call in puts if executed[call[0]] > 1]
    denied = [call for call in failed_puts if not call[5]]
    lies = [call for call in denied if executed[call[0]]]
    late = [call for call in calls if call[3] - call[2] > TIMEOUT + LATE]
    check("idempotent calls failed", failed_gets)
    check("other calls failed otherwise", [c for c in failed_puts if c[4] not in EXPECTED])
    check("calls that may run only once ran twice", doubles)
    check("failed calls ran though that was denied", lies)
    check(
        "calls succeeded and never ran", [c for c in calls if c[4] is None and not executed[c[0]]]
    )
    check("calls ended long behind their deadline", late)
    check("calls never ended", results["unfinished"])
    if {event.what for event in events}.isdisjoint({"kill", "pause"}):
        check("calls failed though servers only drained", failed_puts)

    seconds = sorted(call[3] - call[2] for call in calls)
    codes = Counter(call[4] for call in failed_puts)
    did = Counter(event.what for event in events)
    maybe = len(failed_puts) - len(denied)
    ran = sum(executed[call[0]] > 0 for call in failed_puts)
    figures = {
        "calls": f"{len(calls)}",
        "killed, stopped, drained": f"{did['kill']}, {did['pause']}, {did['drain']}",
        "registry killed": f"{did['registry down']}",
        "idempotent calls": f"{len(gets)}",
        "- that failed": f"{len(failed_gets)}",
        "- executed more than once": f"{sum(executed[call[0]] > 1 for call in gets)}",
        "other calls": f"{len(puts)}",
        "- executed twice": f"{len(doubles)}",
        "- failed as": ", ".join(f"{n} {code}" for code, n in sorted(codes.items())) or "0",
        "- said: surely not executed": f"{len(denied)}, of which were: {len(lies)}",
        "- said: maybe executed": f"{maybe}, of which were: {ran - len(lies)}",
        "never ended": f"{len(results['unfinished'])}",
        "longest call": f"{seconds[-1]:.2f} s",
        "p50, p99, p99.9": ", ".join(
            f"{seconds[int(len(seconds) * share)] * 1000:.0f}" for share in (0.5, 0.99, 0.999)
        )
        + " ms",
    }
    return figures, broken


def measure(
    cluster: Cluster, results: dict[str, Any], executions: list[list[str]]
) -> dict[str, str]:
    """Return how soon it is known that a server went or came, and the rate without a registry."""
    calls, events = results["calls"], sorted(cluster.events)
    began, ended = min(call[2] for call in calls), max(call[3] for call in calls)
    own = {call[0] for call in calls}
    times = sorted(call[3] for call in calls)
    (down,) = outages(events, ended)
    up = Span(max(began + 0.5, 2 * down.begin - down.end), down.begin)  # as long, if it can be
    during, before = (
        (bisect.bisect(times, span.end) - bisect.bisect(times, span.begin))
        / (span.end - span.begin)
        for span in (down, up)
    )
    failed = sum(call[4] is not None and call[2] in down for call in calls)

    sent: dict[str, list[float]] = {}
    for address, at in results["attempts"]:
        sent.setdefault(address, []).append(at)
    lasts: list[float] = []
    for event in events:
        if event.what == "kill" and began <= event.at <= ended:
            again = [e.at for e in events if e.address == event.address and e.at > event.at]
            there = sorted(sent.get(event.address, []))
            last = bisect.bisect_left(there, min(again, default=ended))
            if last:
                lasts.append(max(0.0, there[last - 1] - event.at))

    first_runs: dict[int, float] = {}
    for call_id, pid, at in executions:
        if call_id in own:
            first_runs.setdefault(int(pid), float(at))
    firsts = [
        first_runs[event.pid] - event.at
        for event in events
        if event.what == "start" and event.at > began and event.pid in first_runs
    ]
    return {
        "calls a second, registry up": f"{before:.0f}",
        "calls a second, registry down": f"{during:.0f} for {down.end - down.begin:.1f} s",
        "calls that failed meanwhile": f"{failed}",
        "SIGKILL to the last call sent there": describe(lasts),
        "start to the first call": describe(firsts),
        "CPU of the client": f"{results['cpu'] / (ended - began):.0%} of a core",
    }


def describe(seconds: list[float]) -> str:
    if not seconds:
        return "-"
    return (
        f"median {statistics.median(seconds) * 1000:.1f} ms, longest {max(seconds) * 1000:.1f} ms"
        f" of {len(seconds)}"
    )


def soak(
    backends: list[str], seconds: float, seed: int, faults: list[str] | None
) -> dict[str, tuple[dict[str, str], list[str]]]:
    """Run a cluster with these clients; return the figures and the broken promises of each.

    Without `faults` it is a calm run, and the figures are others.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            cluster = Cluster(folder, backends[0], seconds, seed)
        except RuntimeError:
            print((folder / "errors").read_text(), file=sys.stderr)
            raise
        try:
            callers = [Caller(folder, backend, cluster.url, seconds, seed) for backend in backends]
            cluster.wait_for_calls(backends)
            if faults is None:
                cluster.break_in_turn()
            else:
                cluster.break_things(faults)
            results = {caller.backend: caller.results() for caller in callers}
        finally:
            cluster.end()
        errors = (folder / "errors").read_text()
        executions = [line.split() for line in cluster.executions.read_text().splitlines()]
        if "Traceback" in errors:
            cluster.failures.append("a process told of an exception")
        found = {}
        for backend, result in results.items():
            figures, broken = judge(cluster, result, executions)
            if faults is None:
                figures = measure(cluster, result, executions)
            found[backend] = (figures, broken)
        if any(broken for _, broken in found.values()):
            print(errors[-20_000:], *sorted(cluster.events), sep="\n", file=sys.stderr)
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(10**6))
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, default=list(BACKENDS))
    parser.add_argument("--calm", type=float, default=20.0, help="seconds; 0 leaves that out")
    parser.add_argument("--faults", nargs="+", choices=FAULTS, default=list(FAULTS))
    parser.add_argument("--together", action="store_true")
    given = parser.parse_args()
    load = os.getloadavg()[0]
    print(f"{given.seconds:g} s, --seed {given.seed}; load average before: {load:.2f}", flush=True)
    runs = [given.backends] if given.together else [[backend] for backend in given.backends]
    fine = True
    for seconds, faults in ((given.seconds, given.faults), (given.calm, None)):
        found: dict[str, tuple[dict[str, str], list[str]]] = {}
        for backends in runs:
            found |= soak(backends, seconds, given.seed, faults) if seconds else {}
        if found:
            show(found)
        fine = fine and not any(broken for _, broken in found.values())
    if not fine:
        sys.exit(1)


def show(found: dict[str, tuple[dict[str, str], list[str]]]) -> None:
    """Print figures as a table, and the promises that were broken."""
    print("| |", " | ".join(found), "|")
    print("|---|", "---|" * len(found), sep="")
    for name in next(iter(found.values()))[0]:
        print(f"| {name} |", " | ".join(figures[name] for figures, _ in found.values()), "|")
    for backend, (_, broken) in found.items():
        for what in broken:
            print(f"BROKEN, {backend}: {what}")
    print(flush=True)


if __name__ == "__main__":
    main()
