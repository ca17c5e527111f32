"""Measure the memory of a client that follows a real etcd in which nodes come and go all the time.

python benchmarks/etcd_churn.py [--seconds 600] [--rate 100] [--nodes 200] [--backend asyncio]
                                [--transport gateway|grpc]

The client is a process of its own, and so is who makes the changes. The memory is flat if in the
last quarter of the time it is, in the median, at most 2 % more than in the second: the resident
memory, and the objects that are left after a garbage collection. The exit code is 1 if it is not,
or if the client does not see at the end what etcd holds.
"""

import argparse
import asyncio
import gc
import http.client
import json
import os
import random
import statistics
import subprocess
import sys
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from typing import Any, NamedTuple

from rpc_discovery import EtcdDiscovery
from rpc_proto import CallError
from rpc_testing import Etcd

BACKENDS = ("asyncio", "gevent", "blocking")
PREFIX = "/rpc"
TTL = 3600  # seconds; nobody renews
INTERVAL = 10.0  # seconds from one sample to the next
PATIENCE = 30.0  # seconds
ALLOWED = 0.02  # growth
PAGE = os.sysconf("SC_PAGE_SIZE")


class Sample(NamedTuple):
    """What a client is at a time."""

    at: float  # seconds from its start
    rss: int  # bytes
    objects: int
    nodes: int
    revision: int


# The client


def look(client: Any, began: float) -> None:
    """Print a sample of this process."""
    gc.collect()
    with open("/proc/self/statm") as file:
        rss = int(file.read().split()[1]) * PAGE
    at = time.monotonic() - began
    objects = len(gc.get_objects())
    print(json.dumps([at, rss, objects, len(client.nodes), client._machine.revision]), flush=True)


def follow(urls: list[str], backend: str, options: dict[str, Any]) -> None:
    """Follow etcd until this process is ended, and print a sample now and then."""
    discovery = EtcdDiscovery(urls, prefix=PREFIX, **options)
    began = time.monotonic()
    if backend == "asyncio":
        asyncio.run(_follow(discovery, began))
        return
    package = import_module(f"rpc_{backend}")
    sleep = import_module("gevent" if backend == "gevent" else "time").sleep
    client = package.BalancedClient(discovery)
    with suppress(CallError):  # but then there is a view
        client.call("Nobody.offers_that", timeout=PATIENCE)
    while True:
        look(client, began)
        sleep(INTERVAL)


async def _follow(discovery: EtcdDiscovery, began: float) -> None:
    client = import_module("rpc_asyncio").BalancedClient(discovery)
    with suppress(CallError):  # but then there is a view
        await client.call("Nobody.offers_that", timeout=PATIENCE)
    while True:
        look(client, began)
        await asyncio.sleep(INTERVAL)


# The changes


class Changes:
    """Registers nodes, describes them anew and takes them away, by the gateway."""

    def __init__(self, url: str, nodes: int, rate: float) -> None:
        self.made = 0
        self._rate = rate
        self._connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=PATIENCE)
        self._leases = [0] * nodes
        self._random = random.Random(1)

    def make(self) -> None:
        """Make changes until this process is ended; print how many were made each second."""
        began = time.monotonic()
        while True:
            late = time.monotonic() - began - self.made / self._rate
            if late < 0:
                time.sleep(-late)
            self._change(self._random.randrange(len(self._leases)))
            self.made += 1

    def _change(self, number: int) -> None:
        lease = self._leases[number]
        if lease and self._random.random() < 0.5:
            self._ask("lease/revoke", {"ID": lease})
            self._leases[number] = 0
            return
        if not lease:
            lease = self._leases[number] = int(self._ask("lease/grant", {"TTL": TTL})["ID"])
        address = f"tcp://10.0.{number // 250}.{number % 250 + 1}:4000"
        value = {
            "address": address,
            "services": {"Arith": "1d51334f9829"},
            "weight": self._random.randint(1, 9),
            "metadata": {"zone": f"eu-{self._random.randint(1, 3)}", "life": str(self.made)},
        }
        key = f"{PREFIX}/Arith/{address}"
        fields = {"key": _text(key), "value": _text(json.dumps(value)), "lease": lease}
        self._ask("kv/put", fields)

    def _ask(self, what: str, fields: dict[str, Any]) -> Any:
        self._connection.request("POST", f"/v3/{what}", json.dumps(fields))
        answer = self._connection.getresponse()
        body = answer.read()
        if answer.status != 200:
            raise RuntimeError(f"{what}: {body!r}")
        return json.loads(body)


def _text(data: str) -> str:
    return b64encode(data.encode()).decode()


# Who watches both


@contextmanager
def started(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Give this program in another role, as a process that ends with this one."""
    command = [sys.executable, os.path.abspath(__file__), *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def measure(given: argparse.Namespace) -> bool:
    """Run it all, print what was measured, and return whether the memory is flat."""
    shared = [f"--backend={given.backend}", f"--nodes={given.nodes}", f"--rate={given.rate}"]
    if given.transport:
        shared.append(f"--transport={given.transport}")
    samples: list[Sample] = []
    with Etcd() as etcd:
        shared += [f"--url={etcd.endpoints[0]}"]
        with started("--role=client", *shared) as client:
            with started("--role=changes", *shared) as changes:
                read(client, samples, lambda: samples[-1].at < given.seconds)
                if changes.poll() is not None:
                    raise RuntimeError(f"the changes ended with {changes.returncode}")
            held = count(etcd)
            read(client, samples, lambda: samples[-1].at < given.seconds + INTERVAL)
    last = samples.pop()
    made = samples[-1].revision - samples[0].revision
    transport = given.transport or "default transport"
    rate = made / (samples[-1].at - samples[0].at)
    print(f"rpc_{given.backend}, {transport}: {rate:.0f} changes a second, {made} in all")
    print(f"nodes at the end: {last.nodes} seen, {held} held")
    flat = [
        judge("resident memory, MiB", [(s.at, s.rss / 2**20) for s in samples]),
        judge("objects", [(s.at, float(s.objects)) for s in samples]),
    ]
    return all(flat) and last.nodes == held


def read(client: subprocess.Popen[str], samples: list[Sample], more: Callable[[], bool]) -> None:
    """Read samples of the client, one at least, as long as there shall be more."""
    assert client.stdout is not None
    while True:
        line = client.stdout.readline()
        if not line:
            raise RuntimeError(f"the client ended with {client.wait()}")
        samples.append(Sample(*json.loads(line)))
        print(*(f"{name}={value:.6g}" for name, value in samples[-1]._asdict().items()), flush=True)
        if not more():
            return


def count(etcd: Etcd) -> int:
    """Return how many nodes etcd holds; each has one key here."""
    return len(etcd.ctl("get", "--prefix", "--keys-only", PREFIX).split())


def judge(what: str, values: list[tuple[float, float]]) -> bool:
    """Print how something grew; whether it did not."""
    quarter = len(values) // 4
    second = statistics.median(value for _, value in values[quarter : 2 * quarter])
    last = statistics.median(value for _, value in values[-quarter:])
    half = values[len(values) // 2 :]
    slope = statistics.linear_regression([at for at, _ in half], [value for _, value in half]).slope
    flat = last <= second * (1 + ALLOWED)
    print(
        f"{what}: second quarter {second:.6g}, last {last:.6g} ({last / second - 1:+.2%}), "
        f"second half {slope * 3600:+.4g} an hour: {'flat' if flat else 'NOT FLAT'}"
    )
    return flat


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600.0, help="at least 80")
    parser.add_argument("--rate", type=float, default=100.0, help="changes a second")
    parser.add_argument("--nodes", type=int, default=200, help="of which two thirds are there")
    parser.add_argument("--backend", choices=BACKENDS, default="asyncio")
    parser.add_argument("--transport", choices=("gateway", "grpc"))
    parser.add_argument("--role", choices=("all", "client", "changes"), default="all")
    parser.add_argument("--url", help="of etcd, for the roles")
    given = parser.parse_args()
    if given.role == "client":
        options = {"transport": given.transport} if given.transport else {}
        follow([given.url], given.backend, options)
    elif given.role == "changes":
        Changes(given.url, given.nodes, given.rate).make()
    elif given.seconds < 8 * INTERVAL:
        parser.error("there must be at least eight samples: --seconds 80")
    elif not measure(given):
        sys.exit(1)


if __name__ == "__main__":
    main()
