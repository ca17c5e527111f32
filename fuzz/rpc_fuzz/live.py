"""Fuzzing a live server: conversations that are right, and what is nearly right.

After each, the server must have closed the connection, and said nothing that the protocol does not
have; now and then a calm client must be served. What fails is made small by hypothesis.
"""

import random
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings

from .conformance.peer import Failure, Peer, Target
from .strategies import chunks, client_streams, cut, mutated
from .wire import Wire, frames_in

__all__ = ["Found", "attack"]

_BATCH = 200  # inputs between two looks at the clock
_CALM_EVERY = 25  # inputs between two calls of a calm client
_FROM_SERVER = frozenset({2, 3, 5, 6, 7, 8, 10})


@dataclass
class Found:
    """What came out: `data` is the smallest input that failed, with the sizes of its pieces."""

    inputs: int
    seconds: float
    failure: str | None = None
    data: bytes = b""
    pieces: tuple[int, ...] = ()


def attack(
    target: Target, seconds: float, first_seed: int, told: Callable[[int], None] | None = None
) -> Found:
    """Send inputs for so many seconds, or until one fails; `told` hears how many there were."""
    began = time.monotonic()
    found = Found(0, 0.0)
    number = first_seed
    while found.failure is None and time.monotonic() - began < seconds:
        _run_batch(target, number, found)
        number += 1
        if told is not None:
            told(found.inputs)
    found.seconds = time.monotonic() - began
    return found


def _run_batch(target: Target, number: int, found: Found) -> None:
    streams = client_streams(target.codec, target.token)

    @seed(number)
    @settings(
        max_examples=_BATCH,
        deadline=None,
        database=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
    )
    @given(streams | mutated(streams) | mutated(streams), chunks)
    def run(data: bytes, sizes: list[int]) -> None:
        found.inputs += 1
        try:
            _send(target, data, sizes)
            if found.inputs % _CALM_EVERY == 0 or found.failure is not None:
                _call_calmly(target)
        except Failure as failure:
            found.failure = str(failure)
            found.data, found.pieces = data, tuple(sizes)
            raise

    state = random.getstate()
    try:
        with suppress(Failure):
            run()
    finally:
        random.setstate(state)


def _send(target: Target, data: bytes, sizes: list[int]) -> None:
    """Send an input and the end, and check what the server says until it closes."""
    try:
        sock = target.dial()
    except OSError as error:
        raise Failure(f"the server does not accept: {error}") from None
    with Peer(sock, target.codec, target.timeout) as peer:
        peer.send(*cut(data, sizes))
        with suppress(OSError):  # it has closed already
            sock.shutdown(socket.SHUT_WR)
        said = peer.rest()
    _check(target, said)


def _check(target: Target, said: bytes) -> None:
    """Check that all that a server said is of the protocol."""
    if not said or said.startswith(b"HTTP/1."):
        return
    _, newline, frames = said.partition(b"\n")
    if not said.startswith(b"{") or not newline:
        raise Failure(f"the server began with {said[:60]!r}")
    try:
        whole = frames_in(frames)
    except Exception as error:
        raise Failure(f"the server sent what is no frames: {error!r}") from None
    wire: Any = Wire(target.codec)
    for one in whole:
        if one.type not in _FROM_SERVER and one.type < 0x80:
            raise Failure(f"the server sent a frame of type {one.type}")
        if one.type == 3 and len(wire.decode(one.body)) != 3:
            raise Failure(f"the body of an ERROR is {wire.decode(one.body)!r:.80}")


def _call_calmly(target: Target) -> None:
    """Make a call as every client does; it must be answered."""
    try:
        with Peer(target.dial(), target.codec, target.timeout) as peer:
            peer.hello(target.token)
            peer.send(peer.wire.request(1, "No.such_method"))
            peer.expect_error(1, "unimplemented", executed=False)
    except Failure as failure:
        raise Failure(f"a calm client is not served: {failure}") from None
    except OSError as error:
        raise Failure(f"the server does not accept: {error}") from None
