"""Measure what the decoding of hostile bodies costs, at the default limits.

python benchmarks/decoding.py [--body TEXT] [--rounds 5]

A table: body, its size, the CPU time until it is decoded or refused and what came of it is freed
(the least of the rounds), the most memory that was allocated meanwhile beside the body itself, and
the outcome. No I/O is in these figures: a loop is kept for so long at a stretch.
"""

import argparse
import gc
import itertools
import struct
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from attacking import MIB, table

from rpc_proto import CallError, Codec, ServerConfig, ServerConnection, find_codec
from rpc_proto.service.methods import Method
from rpc_proto.wire.frames import Flag

MSGPACK, JSON = find_codec("msgpack"), find_codec("json")
LARGEST = ServerConfig.max_encoded - 64
GROWTH = ServerConfig.max_decoded
DEEP = 100_000
SHRINKS = 20
# Powers of two 61 apart have the same hash, and so have tuples of them.
ALIKE = [2.0 ** (61 * k) for k in range(-16, 17)]


@dataclass
class Node:
    name: str = ""
    weight: int = 0
    inner: "list[Node] | None" = None
    left: "Node | None" = None


class Service:
    def anything(self, value: Any) -> None: ...

    def two(self, first: int, second: int) -> None: ...

    def rest(self, *values: Any) -> None: ...

    def numbers(self, values: list[int]) -> None: ...

    def texts(self, values: dict[str, str]) -> None: ...

    def either(self, values: list[int | str | list[int] | dict[str, int] | None]) -> None: ...

    def nodes(self, values: list[Node]) -> None: ...

    def node(self, value: Node) -> None: ...


METHODS = {
    name: Method(f"Service.{name}", getattr(Service(), name))
    for name in vars(Service)
    if not name.startswith("_")
}


class Body(NamedTuple):
    codec: Codec
    method: str
    make: Callable[[int], bytes]
    flags: int = 0


def array(count: int) -> bytes:
    return b"\xdd" + struct.pack(">I", count)


def many(item: bytes, values: int = 1) -> Callable[[int], bytes]:
    """Return what makes a MessagePack body: one argument, an array of these values repeated."""

    def make(size: int) -> bytes:
        count = size // len(item)
        return b"\x91" + array(count * values) + item * count

    return make


def keyed(
    key: Callable[[int], bytes], value: bytes, wrap: bytes = b"\x91"
) -> Callable[[int], bytes]:
    """Return what makes a MessagePack body of one argument, a map with these keys."""

    def make(size: int) -> bytes:
        count = size // (len(key(0)) + len(value))
        entries = b"".join(key(number) + value for number in range(count))
        return b"\x91\xdf" + struct.pack(">I", count) + entries

    return make


def listed(item: bytes) -> Callable[[int], bytes]:
    """Return what makes a JSON body of one argument, an array of that item again and again."""
    return lambda size: b"[[" + b",".join([item] * (size // (len(item) + 1))) + b"]]"


def alike(size: int) -> bytes:
    """Return a map whose keys all have the same hash."""
    keys = [
        b"\x94" + b"".join(b"\xcb" + struct.pack(">d", part) for part in key) + b"\xc0"
        for key in itertools.islice(itertools.product(ALIKE, repeat=4), size // 38)
    ]
    return b"\x91\xdf" + struct.pack(">I", len(keys)) + b"".join(keys)


def json_keys(size: int) -> bytes:
    return b"[{" + b",".join(b'"%07x":0' % number for number in range(size // 12)) + b"}]"


def nested(key: bytes, end: bytes) -> Callable[[int], bytes]:
    return lambda size: b"\x91" + key * min(DEEP, size // len(key)) + end


BODIES = {
    "empty arrays": Body(MSGPACK, "anything", many(b"\x90")),
    "empty maps": Body(MSGPACK, "anything", many(b"\x80")),
    "pairs of empty arrays": Body(MSGPACK, "anything", many(b"\x92\x90\x90")),
    "empty arrays, too many arguments": Body(
        MSGPACK, "two", lambda size: array(size) + b"\x90" * size
    ),
    "empty arrays, as arguments": Body(MSGPACK, "rest", lambda size: array(size) + b"\x90" * size),
    "empty arrays, NAMED": Body(
        MSGPACK, "two", lambda size: b"\x92" + array(size) + b"\x90" * size + b"\x80", Flag.NAMED
    ),
    "small integers": Body(MSGPACK, "numbers", many(b"\x01")),
    "small integers, untyped": Body(MSGPACK, "anything", many(b"\x01")),
    "integers of 64 bits": Body(MSGPACK, "numbers", many(b"\xcf" + b"\xff" * 8)),
    "one-letter texts": Body(MSGPACK, "anything", many(b"\xa1a")),
    "floats": Body(MSGPACK, "anything", many(b"\xcb" + struct.pack(">d", 1.5))),
    "a map of texts": Body(MSGPACK, "texts", keyed(lambda n: b"\xa7%07x" % n, b"\xa0")),
    "a map with text keys, untyped": Body(
        MSGPACK, "anything", keyed(lambda n: b"\xa7%07x" % n, b"\xc0")
    ),
    "a map with integer keys": Body(
        MSGPACK, "anything", keyed(lambda n: b"\xce" + struct.pack(">I", n << 12), b"\xc0")
    ),
    "keys that hash alike": Body(MSGPACK, "anything", alike),
    "keys that hash alike, 15 to a map": Body(
        MSGPACK,
        "anything",
        many(b"\x8f" + alike(15 * 38)[6:]),
    ),
    "nested arrays": Body(MSGPACK, "anything", nested(b"\x91", b"\x90")),
    "union": Body(MSGPACK, "either", many(b"\x01\xa1a\xc0\x91\x01\x81\xa1a\x01", 5)),
    "dataclasses without fields": Body(MSGPACK, "nodes", many(b"\x80")),
    "dataclasses": Body(MSGPACK, "nodes", many(b"\x82\xa4name\xa0\xa6weight\x01")),
    "recursive dataclasses": Body(MSGPACK, "nodes", many(b"\x81\xa5inner\x92\x80\x81\xa4left\x80")),
    "nested dataclasses": Body(MSGPACK, "node", nested(b"\x81\xa4left", b"\x80")),
    "JSON empty arrays": Body(JSON, "anything", listed(b"[]")),
    "JSON empty maps": Body(JSON, "anything", listed(b"{}")),
    "JSON small integers": Body(JSON, "numbers", listed(b"1")),
    "JSON integers of 4,299 digits": Body(JSON, "anything", listed(b"1" * 4299)),
    "JSON integers of 999 digits": Body(JSON, "anything", listed(b"1" * 999)),
    "JSON integers of 25 digits": Body(JSON, "anything", listed(b"1" * 25)),
    "JSON long floats": Body(JSON, "anything", listed(b"0." + b"1" * 700 + b"e-300")),
    "JSON floats with exponents": Body(JSON, "anything", listed(b"1e300")),
    "JSON floats of 10 digits with exponents": Body(JSON, "anything", listed(b"1.1234567890e-300")),
    "JSON floats of 30 digits": Body(JSON, "anything", listed(b"0." + b"1" * 30)),
    "JSON floats of 100 digits": Body(JSON, "anything", listed(b"0." + b"1" * 100)),
    "JSON floats of 300 digits": Body(JSON, "anything", listed(b"0." + b"1" * 300)),
    "JSON one-letter texts": Body(JSON, "anything", listed(b'"a"')),
    "JSON a map with text keys": Body(JSON, "anything", json_keys),
    "JSON escapes": Body(JSON, "anything", listed(rb'"' + rb"\u4e2d" * 1000 + rb'"')),
    "JSON nested arrays": Body(JSON, "anything", lambda size: b"[" * DEEP + b"]" * DEEP),
    "JSON dataclasses": Body(JSON, "nodes", listed(b'{"name":"","weight":1}')),
}


class Cost(NamedTuple):
    size: int
    seconds: float
    peak: int  # bytes
    outcome: str


def largest(body: Body) -> bytes:
    """Return the largest such body that is within the limits; or one of `LARGEST` bytes."""
    data = body.make(LARGEST)
    limit = GROWTH // METHODS[body.method].weight
    size = len(data) * limit // body.codec.growth(data)
    for _ in range(SHRINKS if size < len(data) else 0):
        fits = body.make(size)
        if body.codec.growth(fits) <= limit:
            return fits
        size -= size // 50
    return data


def run(body: Body, data: bytes) -> str:
    """Do what a server does with a body until its handler begins; return how that went."""
    server = ServerConnection(now=0.0)
    server.codec = body.codec
    try:
        server.check_encoded(data, METHODS[body.method].weight)
        METHODS[body.method].decode(body.codec, body.flags, data)
    except CallError as error:
        return str(error.code)
    return "decoded"


def measure(body: Body, data: bytes, rounds: int) -> Cost:
    outcome = run(body, data)  # warm
    seconds = []
    for _ in range(rounds):
        gc.collect()
        begun = time.process_time()
        run(body, data)
        seconds.append(time.process_time() - begun)
    tracemalloc.start()
    run(body, data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return Cost(len(data), min(seconds), peak, outcome)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--body", default="", help="only those with this in their names")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    rows = [["body", "KiB", "ms", "peak MiB", "outcome"]]
    for name, body in BODIES.items():
        if given.body in name:
            cost = measure(body, largest(body), given.rounds)
            figures = [f"{cost.size / 1024:.0f}", f"{cost.seconds * 1e3:.1f}"]
            rows.append([name, *figures, f"{cost.peak / MIB:.1f}", cost.outcome])
    print(table(rows))


if __name__ == "__main__":
    main()
