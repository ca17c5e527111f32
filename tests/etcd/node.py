"""A process that registers itself, or watches, and prints what it sees: WAY WHAT URLS PREFIX.

It ends when its input does.
"""

import asyncio
import sys

from rpc_common.discovery.advertising import EtcdAdvertisement
from rpc_discovery import EtcdDiscovery


class Arith:
    def add(self, a: int, b: int) -> int:
        return a + b


def waiting_in_place(package, serves: bool, urls: list[str], prefix: str) -> None:
    if serves:
        server = package.Server()
        server.register(Arith())
        settings = EtcdAdvertisement(urls, prefix=prefix, ttl=2.0)
        print(server.start("tcp://127.0.0.1:0", advertise=settings), flush=True)
        sys.stdin.read() if package.__name__ == "rpc_blocking" else wait_for_input()
        server.stop()
    else:
        client = package.BalancedClient(EtcdDiscovery(urls, prefix=prefix))
        print(client.call("Arith.add", 1, 2, timeout=20.0), flush=True)
        sys.stdin.read() if package.__name__ == "rpc_blocking" else wait_for_input()


def wait_for_input() -> None:
    from gevent.socket import wait_read

    while True:
        wait_read(0)
        if not sys.stdin.buffer.raw.read(1):
            return


async def with_asyncio(serves: bool, urls: list[str], prefix: str, transport: str) -> None:
    import rpc_asyncio

    loop = asyncio.get_running_loop()
    if serves:
        server = rpc_asyncio.Server()
        server.register(Arith())
        settings = EtcdAdvertisement(urls, prefix=prefix, ttl=2.0, transport=transport)
        print(await server.start("tcp://127.0.0.1:0", advertise=settings), flush=True)
        await loop.run_in_executor(None, sys.stdin.read)
        await server.stop()
    else:
        client = rpc_asyncio.BalancedClient(EtcdDiscovery(urls, prefix=prefix, transport=transport))
        print(await client.call("Arith.add", 1, 2, timeout=20.0), flush=True)
        await loop.run_in_executor(None, sys.stdin.read)


def main() -> None:
    way, what, urls, prefix = sys.argv[1:]
    backend, _, transport = way.partition("-")
    serves = what == "serve"
    if backend == "asyncio":
        asyncio.run(with_asyncio(serves, urls.split(","), prefix, transport))
    else:
        package = __import__(f"rpc_{backend}")
        waiting_in_place(package, serves, urls.split(","), prefix)


if __name__ == "__main__":
    main()
