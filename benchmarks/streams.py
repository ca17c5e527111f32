"""Measure streams: items per second, MiB per second, and what a stream costs.

Each measurement is a fresh server process on one core and a fresh client process on another; rounds
go through all contenders in shuffled order, and what counts are the ratios of the medians.

    python benchmarks/streams.py                  S1 and S2, 3 rounds
    python benchmarks/streams.py S3               1,000 streams with an item a second each
    python benchmarks/streams.py stalled          1,000 consumers that never take

S1: a server stream of 32-byte texts, one consumer; against our own calls with 64 in flight (W2) and
the streams of grpcio. S2: the same with 64 KiB of bytes; the floors are the same bytes between the
sockets of the same runtime, each item as an object of its own.
"""

import argparse
import asyncio
import gc
import json
import os
import random
import socket
import statistics
import struct
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import run as calls

SIZES = {"S1": 32, "S2": 65536}
OURS = ("asyncio", "gevent", "blocking")
PEERS = ("grpc.aio", "grpcio")
FLOORS = {f"{name} floor": name for name in OURS}

Announce = Callable[[Any], None]


def _item(size: int) -> Any:
    return "x" * size if size < 1000 else bytes(size)


class AsyncItems:
    async def endless(self, size: int) -> AsyncIterator[Any]:
        item = _item(size)
        while True:
            yield item

    async def ticking(self) -> AsyncIterator[int]:
        n = 0
        while True:
            yield n
            n += 1
            await asyncio.sleep(1.0)


class Items:
    def endless(self, size: int) -> Iterator[Any]:
        item = _item(size)
        while True:
            yield item


# Ours


async def _serve_asyncio(announce: Announce) -> None:
    from rpc_asyncio import Server

    server = Server(max_concurrency=20_000)
    server.register(AsyncItems(), "Items")
    announce(await server.start("tcp://127.0.0.1:0"))
    await server.serve_forever()


async def _load_asyncio(address: str, size: int, seconds: float) -> tuple[int, float]:
    from rpc_asyncio import Client

    count = 0
    async with Client.connect(address) as client:
        start = time.monotonic()
        stop = start + seconds
        async for _ in client.stream("Items.endless", size):
            count += 1
            if not count & 63 and time.monotonic() > stop:
                break
        return count, time.monotonic() - start


def _serve_sync(module: Any, announce: Announce) -> None:
    server = module.Server()
    server.register(Items())
    announce(server.start("tcp://127.0.0.1:0"))
    server.serve_forever()


def _load_sync(module: Any, address: str, size: int, seconds: float) -> tuple[int, float]:
    count = 0
    with module.Client.connect(address) as client:
        start = time.monotonic()
        stop = start + seconds
        for _ in client.stream("Items.endless", size):
            count += 1
            if not count & 63 and time.monotonic() > stop:
                break
        return count, time.monotonic() - start


# Floors: bytes of a known size, without any protocol


class _FloorServer(asyncio.Protocol):
    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.writable = True

    def data_received(self, data: bytes) -> None:
        self.item = bytes(struct.unpack(">I", data)[0])
        self.pump()

    def pump(self) -> None:
        if self.writable and not self.transport.is_closing():
            for _ in range(8):
                self.transport.write(self.item)
            asyncio.get_running_loop().call_soon(self.pump)

    def pause_writing(self) -> None:
        self.writable = False

    def connection_lost(self, exc: Exception | None) -> None:
        self.writable = False

    def resume_writing(self) -> None:
        self.writable = True
        self.pump()


class _FloorClient(asyncio.BufferedProtocol):
    def __init__(self, size: int, seconds: float) -> None:
        self.size, self.seconds = size, seconds
        self.buffer = memoryview(bytearray(512 * 1024))
        self.have = bytearray()
        self.count = 0
        self.done = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.start = time.monotonic()
        transport.write(struct.pack(">I", self.size))

    def get_buffer(self, sizehint: int) -> memoryview:
        return self.buffer

    def buffer_updated(self, nbytes: int) -> None:
        self.have += self.buffer[:nbytes]
        whole = len(self.have) // self.size
        for n in range(whole):
            bytes(memoryview(self.have)[n * self.size : (n + 1) * self.size])
        del self.have[: whole * self.size]
        self.count += whole
        now = time.monotonic()
        if now > self.start + self.seconds and not self.done.done():
            self.transport.abort()
            self.done.set_result((self.count, now - self.start))


async def _floor_serve_asyncio(announce: Announce) -> None:
    server = await asyncio.get_running_loop().create_server(_FloorServer, "127.0.0.1", 0)
    announce(f"tcp://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    await server.serve_forever()


async def _floor_load_asyncio(address: str, size: int, seconds: float) -> tuple[int, float]:
    port = int(address.rpartition(":")[2])
    loop = asyncio.get_running_loop()
    _, client = await loop.create_connection(lambda: _FloorClient(size, seconds), "127.0.0.1", port)
    result: tuple[int, float] = await client.done
    return result


def _floor_serve_sync(sockets: Any, announce: Announce) -> None:
    listener = sockets.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    announce(f"tcp://127.0.0.1:{listener.getsockname()[1]}")
    while True:
        connection, _ = listener.accept()
        item = bytes(struct.unpack(">I", connection.recv(4))[0])
        try:
            while True:
                connection.sendall(item)
        except OSError:
            connection.close()


def _floor_load_sync(sockets: Any, address: str, size: int, seconds: float) -> tuple[int, float]:
    connection = sockets.create_connection(("127.0.0.1", int(address.rpartition(":")[2])))
    connection.sendall(struct.pack(">I", size))
    buffer = memoryview(bytearray(size))
    count = 0
    start = time.monotonic()
    while time.monotonic() < start + seconds:
        got = 0
        while got < size:
            got += connection.recv_into(buffer[got:])
        bytes(buffer)
        count += 1
    connection.close()
    return count, time.monotonic() - start


# Peers


def _grpc_handlers() -> Any:
    import grpc

    def endless(request: bytes, context: Any) -> Iterator[bytes]:
        item = bytes(struct.unpack(">I", request)[0])
        while True:
            yield item

    method = grpc.unary_stream_rpc_method_handler(endless)
    return grpc.method_handlers_generic_handler("Items", {"endless": method})


def _grpc_handlers_aio() -> Any:
    import grpc

    async def endless(request: bytes, context: Any) -> AsyncIterator[bytes]:
        item = bytes(struct.unpack(">I", request)[0])
        while True:
            yield item

    method = grpc.unary_stream_rpc_method_handler(endless)
    return grpc.method_handlers_generic_handler("Items", {"endless": method})


def _serve_grpcio(announce: Announce) -> None:
    from concurrent.futures import ThreadPoolExecutor

    import grpc

    server = grpc.server(ThreadPoolExecutor(8))
    server.add_generic_rpc_handlers((_grpc_handlers(),))
    announce(f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}")
    server.start()
    server.wait_for_termination()


def _load_grpcio(address: str, size: int, seconds: float) -> tuple[int, float]:
    import grpc

    count = 0
    with grpc.insecure_channel(address) as channel:
        start = time.monotonic()
        stream = channel.unary_stream("/Items/endless")(struct.pack(">I", size))
        for _ in stream:
            count += 1
            if not count & 63 and time.monotonic() > start + seconds:
                break
        elapsed = time.monotonic() - start
        stream.cancel()
        return count, elapsed


async def _serve_grpc_aio(announce: Announce) -> None:
    import grpc

    server = grpc.aio.server()
    server.add_generic_rpc_handlers((_grpc_handlers_aio(),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    announce(f"127.0.0.1:{port}")
    await server.wait_for_termination()


async def _load_grpc_aio(address: str, size: int, seconds: float) -> tuple[int, float]:
    import grpc

    count = 0
    async with grpc.aio.insecure_channel(address) as channel:
        start = time.monotonic()
        stream = channel.unary_stream("/Items/endless")(struct.pack(">I", size))
        async for _ in stream:
            count += 1
            if not count & 63 and time.monotonic() > start + seconds:
                break
        elapsed = time.monotonic() - start
        stream.cancel()
        return count, elapsed


# Processes


def _parts(name: str) -> tuple[Any, Any]:
    """Return how to serve and how to load, each a function or a coroutine function."""
    if name == "asyncio":
        return _serve_asyncio, _load_asyncio
    if name == "asyncio floor":
        return _floor_serve_asyncio, _floor_load_asyncio
    if name == "grpc.aio":
        return _serve_grpc_aio, _load_grpc_aio
    if name == "grpcio":
        return _serve_grpcio, _load_grpcio
    runtime, _, floor = name.partition(" ")
    if floor:
        sockets: Any = socket
        if runtime == "gevent":
            from gevent import socket as gevent_socket

            sockets = gevent_socket
        return (
            lambda announce: _floor_serve_sync(sockets, announce),
            lambda *load: _floor_load_sync(sockets, *load),
        )
    module = __import__(f"rpc_{runtime}")
    return (
        lambda announce: _serve_sync(module, announce),
        lambda *load: _load_sync(module, *load),
    )


def _pin(core: int) -> None:
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[core % len(cores)]})


def _finish(result: Any) -> Any:
    return asyncio.run(result) if asyncio.iscoroutine(result) else result


async def _bare(count: int) -> None:
    """Say what a handler's task, generator and timer take without any RPC."""

    async def follow(items: AsyncIterator[int]) -> None:
        async for _ in items:
            pass

    async def start(count: int) -> list[asyncio.Task[None]]:
        tasks = [asyncio.create_task(follow(AsyncItems().ticking())) for _ in range(count)]
        await asyncio.sleep(0.1)  # each has begun and waits for its timer
        return tasks

    tasks = await start(20)
    gc.collect()
    before = _memory(os.getpid())
    tasks += await start(count)
    held = _memory(os.getpid()) - before
    print(f"   a task with a generator and a timer, alone: {held / count / 1024:.1f} KiB")


def _child(role: str, name: str, arguments: str) -> None:
    if role == "bare":
        _finish(_bare(int(arguments)))
        return
    serve, load = _parts(name)
    if role == "serve":
        _pin(0)
        _finish(serve(lambda address: print(address, flush=True)))
        return
    _pin(1)
    address, size, seconds = json.loads(arguments)
    _finish(load(address, size, 0.3))
    print(json.dumps(_finish(load(address, size, seconds))))


def _measure(name: str, size: int, seconds: float) -> float:
    with calls.started(__file__, "--child", "serve", name, "[]") as (_, address):
        load = json.dumps([address, size, seconds])
        count, elapsed = calls.result_of(
            *(__file__, "--child", "load", name, load), seconds=seconds
        )
    return float(count / elapsed)


def _rates(workload: str, rounds: int, seconds: float) -> None:
    size = SIZES[workload]
    names = [*OURS, *PEERS]
    if workload == "S2":
        names += FLOORS
    else:
        names += [f"{name} W2" for name in OURS]
    rates: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(rounds):
        for name in random.sample(names, len(names)):
            if name.endswith(" W2"):
                rates[name].append(calls.measure(name.removesuffix(" W2"), "W2", seconds)[0])
            else:
                rates[name].append(_measure(name, size, seconds))
    medians = {name: statistics.median(found) for name, found in rates.items()}
    unit, scale = ("items/s", 1.0) if workload == "S1" else ("MiB/s", size / 2**20)
    print(f"{workload} items of {size} bytes, one consumer, {unit}; medians of {rounds} rounds")
    best = max(medians[name] for name in PEERS)
    for name, rate in medians.items():
        line = f"   {name:16}{rate * scale:12,.0f}"
        if name in OURS:
            base = f"{name} W2" if workload == "S1" else f"{name} floor"
            line += f"   {rate / medians[base]:5.2f} of {base}, {rate / best:5.1f} of the best peer"
        print(line, flush=True)


def _memory(pid: int) -> int:
    with open(f"/proc/{pid}/smaps_rollup") as file:  # exact, where statm is some pages behind
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("Rss:"))


def _cpu(pid: int) -> float:
    with open(f"/proc/{pid}/stat") as file:
        user, system = file.read().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


async def _cost(method: str, arguments: tuple[Any, ...], count: int) -> None:
    """Say what so many streams on one connection take, at a server of rpc_asyncio."""
    from rpc_asyncio import Client
    from rpc_proto import ClientConfig

    with calls.started(__file__, "--child", "serve", "asyncio", "[]") as (server, address):
        config = ClientConfig(max_queued_calls=count)
        async with Client.connect(address, config=config) as client:
            streams = [client.stream(method, *arguments) for _ in range(20)]
            for stream in streams:  # what is needed once is there
                await anext(stream)
            gc.collect()
            before, own = _memory(server), _memory(os.getpid())
            streams += [client.stream(method, *arguments) for _ in range(count)]
            for stream in streams[20:]:
                await anext(stream)
            await asyncio.sleep(1.0)
            held = _memory(server) - before
            print(f"   server: {held / count / 1024:.1f} KiB for each of {count} streams")
            own = _memory(os.getpid()) - own
            print(f"   client: {own / count / 1024:.1f} KiB", flush=True)
            if method.endswith("ticking"):
                cpu, start = _cpu(server), time.monotonic()
                end = start + 5.0
                taken = 0

                async def follow(stream: Any) -> None:
                    nonlocal taken
                    async for _ in stream:
                        taken += 1
                        if time.monotonic() > end:
                            return

                await asyncio.gather(*map(follow, streams))
                elapsed = time.monotonic() - start
                cpu = (_cpu(server) - cpu) / elapsed
                print(
                    f"   {taken / elapsed:,.0f} items/s; server {cpu * 100:.1f} % of a core, "
                    f"{cpu / len(streams) * 1e6:.0f} µs a second for each stream"
                )
            else:
                start = time.monotonic()
                other = client.stream("Items.endless", 32)
                for _ in range(100_000):
                    await anext(other)
                print(f"   beside them: {100_000 / (time.monotonic() - start):,.0f} items/s")
                other.close()
            for stream in streams:
                stream.close()


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        _child(*sys.argv[2:5])
        return
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("workloads", nargs="*", metavar="S", help="S1 S2 S3 stalled")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0)
    options = parser.parse_args()
    for workload in options.workloads or SIZES:
        if workload in SIZES:
            _rates(workload, options.rounds, options.seconds)
        elif workload == "S3":
            print("S3 1,000 streams on one connection, an item a second each")
            asyncio.run(_cost("Items.ticking", (), 1000))
            subprocess.run(
                [sys.executable, __file__, "--child", "bare", "asyncio", "1000"], check=True
            )
        else:
            print("1,000 consumers that never take, items of 1,000 bytes")
            asyncio.run(_cost("Items.endless", (1000,), 1000))


if __name__ == "__main__":
    main()
