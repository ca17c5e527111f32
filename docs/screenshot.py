"""Make the pictures of pages in headless Chromium: docs/debug-page.png, docs/registry-page.png.

python docs/screenshot.py [debug] [registry]

The debug page is that of a server under some load, the other one that of a registry with a few
nodes. Needs selenium, and Debian's packages chromium and chromium-driver.
"""

import asyncio
import contextlib
import json
import random
import shutil
import struct
import sys
import zlib
from pathlib import Path
from typing import Any

from selenium import webdriver

from rpc_asyncio import BalancedClient, Client, Server
from rpc_asyncio.carriers import fetch
from rpc_common.discovery.advertising import Advertisement
from rpc_discovery import Registry, RegistryDiscovery
from rpc_proto import CallError, NotFound
from rpc_proto.http.client import Fetch

HERE = Path(__file__).parent
WIDTH = 1080
MOST = 150_000  # bytes


class Users:
    """Who is known here."""

    async def get(self, name: str) -> dict[str, str]:
        """Return what is known of a user; not_found if that is nothing."""
        if len(name) % 7 == 0:
            raise NotFound(f"no user {name!r}")
        return {"name": name}

    async def rename(self, name: str, to: str, *, notify: bool = True) -> None:
        """Give a user another name, and tell those who should know."""
        await asyncio.sleep(random.lognormvariate(-5.5, 0.8))


class Reports:
    """Numbers that take their time."""

    async def weekly(self, week: int, currency: str = "EUR") -> dict[str, int]:
        """Return the sums of a week; the warehouse needs a moment for them."""
        await asyncio.sleep(random.lognormvariate(-2.0, 0.8))
        return {"week": week}


async def load(address: str) -> None:
    """Call this and that, more and less of it, until cancelled."""
    async with Client.connect(address) as client, asyncio.TaskGroup() as group:

        async def call(method: str, *args: Any, timeout: float = 5.0) -> None:
            with contextlib.suppress(CallError, TimeoutError):
                await client.call(method, *args, timeout=timeout)

        level = 40.0
        while True:
            level = min(90.0, max(10.0, level + random.uniform(-6, 6)))
            for _ in range(int(level)):
                group.create_task(call("Users.get", "u" * random.randrange(1, 14)))
            for _ in range(int(level / 8)):
                group.create_task(call("Users.rename", "old", "new"))
            if random.random() < 0.4:
                group.create_task(call("Reports.weekly", 47, timeout=random.uniform(0.3, 0.9)))
            if random.random() < 0.02:
                group.create_task(call("Users.get", random.choice([7, "", None])))
            await asyncio.sleep(0.05)


def take(url: str, height: int, seconds: float) -> bytes:
    """Look at the page for a while, and return a picture of it as PNG."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"):
        options.add_argument(argument)
    driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        screen = {"width": WIDTH, "height": height, "deviceScaleFactor": 1, "mobile": False}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
        driver.get(url)
        driver.set_script_timeout(2 * seconds)
        driver.execute_async_script(f"setTimeout(arguments[0], {1000 * seconds})")
        return driver.get_screenshot_as_png()
    finally:
        driver.quit()


def smaller(png: bytes) -> bytes:
    """Return a picture of 8-bit RGB or RGBA with a palette of its most frequent colours."""
    header, data, at = b"", b"", 8
    while at < len(png):
        size, kind = struct.unpack_from(">I4s", png, at)
        content = png[at + 8 : at + 8 + size]
        if kind == b"IHDR":
            header = content
        elif kind == b"IDAT":
            data += content
        at += size + 12
    width, height, depth, colour = struct.unpack_from(">IIBB", header)
    assert (depth, colour) in ((8, 2), (8, 6))
    rows = list(unfiltered(zlib.decompress(data), width, height, 3 if colour == 2 else 4))
    counts: dict[bytes, int] = {}
    for row in rows:
        for pixel in row:
            counts[pixel] = counts.get(pixel, 0) + 1
    frequent = sorted(counts, key=counts.__getitem__, reverse=True)
    palette = frequent[:160]
    for pixel in frequent[160:]:  # rare ones, as red is, if there is none like them
        if len(palette) < 256 and min(distance(pixel, one) for one in palette) > 900:
            palette.append(pixel)
    numbers = range(len(palette))
    nearest = {
        pixel: min(numbers, key=lambda number: distance(pixel, palette[number])) for pixel in counts
    }
    lines = b"".join(b"\0" + bytes(nearest[pixel] for pixel in row) for row in rows)
    return b"".join(
        (
            png[:8],
            chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)),
            chunk(b"PLTE", b"".join(palette)),
            chunk(b"IDAT", zlib.compress(lines, 9)),
            chunk(b"IEND", b""),
        )
    )


def distance(one: bytes, other: bytes) -> int:
    return sum((a - b) ** 2 for a, b in zip(one, other, strict=True))


def unfiltered(data: bytes, width: int, height: int, size: int) -> Any:
    """Yield each line as a list of RGB pixels (PNG, section 9)."""
    stride = width * size
    above = bytearray(stride)
    for start in range(0, (stride + 1) * height, stride + 1):
        kind, line = data[start], bytearray(data[start + 1 : start + 1 + stride])
        for index in range(stride):
            a = line[index - size] if index >= size else 0
            b, c = above[index], above[index - size] if index >= size else 0
            p = a + b - c
            paeth = min((abs(p - a), 0, a), (abs(p - b), 1, b), (abs(p - c), 2, c))[2]
            line[index] = (line[index] + (0, a, b, (a + b) // 2, paeth)[kind]) & 255
        above = line
        yield [bytes(line[at : at + 3]) for at in range(0, stride, size)]


def chunk(kind: bytes, content: bytes) -> bytes:
    """Return a chunk with its length and its checksum."""
    return (
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
    )


async def keep(name: str, url: str, height: int, seconds: float) -> None:
    """Make a picture of a page after so many seconds."""
    picture = smaller(await asyncio.to_thread(take, url, height, seconds))
    assert len(picture) <= MOST, f"{len(picture)} bytes"
    (HERE / name).write_bytes(picture)
    print(f"{name}: {len(picture)} bytes")


def at_localhost(address: str, path: str) -> str:
    return f"http://localhost:{address.rpartition(':')[2]}{path}"


async def picture_debug() -> None:
    server = Server(max_concurrency=6)
    server.register(Users())
    server.register(Reports())
    address = await server.start("tcp://127.0.0.1:0")
    calls = asyncio.create_task(load(address))
    # So many seconds, because the line of the rate fills with them.
    await keep("debug-page.png", at_localhost(address, "/debug/rpc"), 1420, 100.0)
    calls.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await calls
    await server.stop(grace=0.0)


async def picture_registry() -> None:
    registry = Registry("4f1c9a02d6b7e583")
    host = Server()
    host.mount(registry)
    url = (await host.start("tcp://127.0.0.1:0")).replace("tcp", "http")

    async def serve(zone: str, weight: float, *services: Any) -> Server:
        server = Server()
        for service in services:
            server.register(service)
        metadata = {"zone": zone, "version": "1.4.2"}
        advertise = Advertisement(url, weight=weight, metadata=metadata)
        await server.start("tcp://127.0.0.1:0", advertise=advertise)
        return server

    servers = [
        await serve("eu-1", 2, Users(), Reports()),
        await serve("eu-1", 1, Users(), Reports()),
        await serve("eu-2", 1, Users()),
        await serve("eu-2", 1, Reports()),
    ]
    silent = {"address": "tcp://10.0.7.12:4000", "services": ["Users"], "weight": 1, "ttl": 30}
    flapping = {"address": "tcp://10.0.7.13:4000", "services": ["Users", "Reports"], "ttl": 30}
    for node in (silent, flapping, *[None, flapping] * 3):
        method, target, body = "POST", "/registry/nodes", b""
        if node is None:
            method, target = "DELETE", f"{target}?address={flapping['address']}"
        else:
            node = {**node, "metadata": {"zone": "eu-3", "version": "1.4.1"}}
            body = json.dumps(node).encode()
        what = Fetch(method, f"{url}{target}", [("Content-Type", "application/json")], body)
        await fetch(what)
        assert what.status < 300, what.body
    discovery = RegistryDiscovery(url)
    async with BalancedClient(discovery) as first, BalancedClient(discovery) as second:
        await first.call("Users.get", "somebody")
        await second.call("Users.get", "somebody")
        await keep("registry-page.png", at_localhost(url, "/registry"), 790, 22.0)
    for server in (*servers, host):
        await server.stop(grace=0.0)


PICTURES = {"debug": picture_debug, "registry": picture_registry}

if __name__ == "__main__":
    for wanted in sys.argv[1:] or PICTURES:
        asyncio.run(PICTURES[wanted]())
