"""A program that ends COUNT times, AT_ONCE at a time, with all that has threads still alive.

Each end is that of a child, which is cheaper than a new interpreter. It prints how they ended.
Usage: exits.py COUNT AT_ONCE FILE-WITHOUT-NODES handler|none
"""

import os
import random
import signal
import sys
import time
from collections import Counter
from contextlib import suppress

from rpc_blocking import BalancedClient, Client, Server
from rpc_discovery import FileDiscovery, Registry, RegistryDiscovery
from rpc_proto import Unavailable


class Echo:
    def echo(self, value: int) -> int:
        return value

    def never_end(self) -> None:
        time.sleep(3600)


def start_registry() -> tuple[int, str]:
    """Return the process and the URL of a registry, in a process of its own."""
    ear, mouth = os.pipe()
    child = os.fork()
    if child:
        return child, os.read(ear, 200).decode()
    server = Server()
    server.mount(Registry("epoch"))
    os.write(mouth, server.start("http://127.0.0.1:0").encode())
    server.serve_forever()
    os._exit(0)


def live(registry: str, nothing: str, handler: bool) -> None:
    """Leave everything open."""
    random.seed()
    server = Server()
    server.register(Echo())
    address = server.start("tcp://127.0.0.1:0", advertise=registry)
    client = Client.connect(address)
    assert client.call("Echo.echo", 1) == 1
    for nodes in ([address], RegistryDiscovery(registry), FileDiscovery(nothing, interval=0.01)):
        balanced = BalancedClient(nodes)
        with suppress(Unavailable):  # not yet registered, or no nodes
            balanced.call("Echo.echo", 1)
        kept.append(balanced)
    kept.extend((server, client))
    if handler:
        client.start("Echo.never_end")
        while not server.stats["running"]:
            time.sleep(0.001)
    time.sleep(random.random() * 0.01)


kept: list[object] = []  # to the end of the interpreter


def main() -> int:
    count, at_once, nothing, handler = sys.argv[1:]
    left = int(count)
    parent = os.getpid()
    process, registry = start_registry()
    running: set[int] = set()
    ends: Counter[int] = Counter()
    try:
        while left or running:
            while left and len(running) < int(at_once):
                left -= 1
                child = os.fork()
                if not child:
                    live(registry, nothing, handler == "handler")
                    return 0
                running.add(child)
            ended, status = os.wait()
            running.remove(ended)
            ends[os.waitstatus_to_exitcode(status)] += 1
    finally:
        if os.getpid() == parent:
            os.kill(process, signal.SIGKILL)
    print(dict(ends))
    return 0 if set(ends) == {0} else 1


if __name__ == "__main__":
    sys.exit(main())
