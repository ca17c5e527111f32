"""A server's statistics: calls by method, errors, slow calls, connections; in bounded memory.

There is one record per registered method, one for all removed methods, and one for all unknown
names. A record holds at most 1,024 latencies (32 KiB). The last 50 errors and at most 40 slow calls
are kept as well. Nothing that a peer sends becomes a key.
"""

import math
from collections import deque
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from heapq import heappush, heapreplace
from typing import Any

from rpc_proto.connection.base import Connection, clip
from rpc_proto.connection.calls import InboundCall
from rpc_proto.errors import CODES, CallError, HandshakeError, RemoteProtocolError, RpcError
from rpc_proto.wire.frames import STREAMS

from .context import Job

__all__ = ["BATCH", "BOUNDS", "REMOVED", "UNKNOWN", "MethodStats", "ServerStats"]

# Upper bounds of the histogram's buckets, in seconds; the last bucket is unbounded.
BOUNDS = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025),
    *(0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
)

# Used in place of method names, which cannot contain parentheses.
UNKNOWN = "(unknown)"
REMOVED = "(removed)"

# Latencies are sorted into buckets in batches, which takes a tenth of the time.
BATCH = 512

_ERRORS = 50
_SLOWEST = 20
_OF_LATE = 300.0  # seconds
_TEXT = 200  # characters of a message
_OTHER = "other"

# A caller cancels when its deadline passes, which arrives at about the time of our own.
_SAME_TIME = 0.02

_COUNTS = (
    *("cancelled", "failed", "folded", "in_flight", "late", "overruns", "refused", "sum"),
    *("items_received", "items_sent", "item_bytes_received", "item_bytes_sent", "withdrawn"),
)


class MethodStats:
    """The statistics of one method; drivers with threads change them under a lock."""

    __slots__ = (*_COUNTS, "buckets", "errors", "latencies", "recent")

    def __init__(self) -> None:
        self.refused = 0
        self.failed = 0
        self.cancelled = 0
        self.late = 0  # returned when the call had ended already
        self.withdrawn = 0  # out of the queue
        self.in_flight = 0  # only in a copy
        self.overruns = 0
        self.items_received = 0  # those that handlers have taken
        self.items_sent = 0
        self.item_bytes_received = 0
        self.item_bytes_sent = 0
        self.errors: dict[str, int] = {}
        self.latencies: list[float] = []  # not in the buckets yet
        self.recent: list[float] = []  # those that came there last
        self.folded = 0
        self.sum = 0.0
        self.buckets = [0] * len(BOUNDS)

    @property
    def served(self) -> int:
        """Calls whose handler returned."""
        return self.folded + len(self.latencies) - self.failed

    @property
    def ended(self) -> int:
        """Calls whose handler has ended or will never run."""
        return self.folded + len(self.latencies) + self.withdrawn

    def count_items(self, call: InboundCall) -> None:
        """Add the items of a stream."""
        if call.receiving is not None:
            self.items_received += call.receiving.count
            self.item_bytes_received += call.receiving.received
        if call.sending is not None:
            self.items_sent += call.sending.count
            self.item_bytes_sent += call.sending.size

    def fold(self) -> None:
        """Sort the collected latencies into the buckets."""
        latencies = slower = self.latencies
        # Most calls are quick and end at the first bound. Sorting would take four times as long,
        # and one at a time ten times.
        for index, bound in enumerate(BOUNDS):
            if slower:
                slower = [latency for latency in slower if latency > bound]
            self.buckets[index] += len(latencies) - len(slower)
        self.sum += sum(latencies)
        self.folded += len(latencies)
        self.recent = latencies
        self.latencies = []

    def add(self, other: "MethodStats") -> None:
        """Add the statistics of another method."""
        for name in _COUNTS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for code, count in other.errors.items():
            self.errors[code] = self.errors.get(code, 0) + count
        pairs = zip(self.buckets, other.buckets, strict=True)
        self.buckets = [one + another for one, another in pairs]
        self.recent = other.recent or self.recent
        self.latencies += other.latencies
        if len(self.latencies) >= BATCH:
            self.fold()

    def copy(self) -> "MethodStats":
        """Return a copy, which can be read while the original changes."""
        copy = MethodStats()
        copy.add(self)
        return copy

    def counts(self) -> dict[str, Any]:
        """Return the counts as JSON-able values."""
        return {
            "begun": self.ended + self.in_flight,
            "ended": self.ended,
            "in_flight": self.in_flight,
            "served": self.served,
            "late": self.late,
            "failed": self.failed,
            "refused": self.refused,
            "cancelled": self.cancelled,
            "deadline_overruns": self.overruns,
            "items_received": self.items_received,
            "items_sent": self.items_sent,
            "item_bytes_received": self.item_bytes_received,
            "item_bytes_sent": self.item_bytes_sent,
            "errors": dict(self.errors),
        }

    def latency(self) -> dict[str, Any]:
        """Return the latencies as JSON-able values."""
        window = sorted(self.recent + self.latencies)
        self.fold()
        return {
            "count": self.folded,
            "sum": self.sum,
            "p50": _percentile(window, 50),
            "p99": _percentile(window, 99),
            "buckets": [list(pair) for pair in zip(BOUNDS, self.buckets, strict=True)],
        }


class ServerStats:
    """What a Dispatcher counts besides the methods' own statistics.

    `lock` is for drivers with threads: the lock that they hold when they change a MethodStats.
    """

    def __init__(self, lock: AbstractContextManager[Any] | None = None) -> None:
        self.lock = lock or nullcontext()
        self.unknown = MethodStats()
        self.removed = MethodStats()
        self.slow_from = -1.0  # seconds; a call that takes longer is one of the slowest
        self.turns_at = -math.inf  # when the slowest become the older ones
        # Heaps, the fastest first: latency, time of the end, method, peer, queue, handler, send
        self._slowest: list[tuple[Any, ...]] = []
        self._older: list[tuple[Any, ...]] = []
        self._errors: deque[tuple[float, str | None, str, str, str]] = deque(maxlen=_ERRORS)
        self._connections = 0
        self._violations = 0
        self._refused_handshakes = 0
        self._received = 0  # by connections that are closed
        self._sent = 0

    # Calls

    def count_error(
        self, stats: MethodStats, name: str, call: InboundCall, error: CallError, now: float
    ) -> None:
        """Count a call that ended with an error, served or not; the lock is held."""
        code = clip(str(error.code))[:64]
        known = code if code in CODES else _OTHER
        stats.errors[known] = stats.errors.get(known, 0) + 1
        if not error.maybe_executed:
            stats.refused += 1
        slack = _SAME_TIME if code == "cancelled" else 0.0
        if call.deadline is not None and call.deadline <= now + slack:
            stats.overruns += 1
        self._note_error(now, name, code, str(error.message), call.connection.peer.address)

    def note_slow(self, job: Job, ended: float, sent: float) -> None:
        """Record a call that may be one of the slowest; `sent` is when it was answered."""
        call = job.call
        if call.flags & STREAMS:  # it may take as long as it likes
            return
        arrived = call.arrived
        began = getattr(job, "began", arrived)
        latency = ended - arrived
        entry = (
            *(latency, ended, call.method, call.connection.peer.address),
            *(began - arrived, ended - began, sent - ended),
        )
        with self.lock:
            if ended >= self.turns_at:
                self._older = self._slowest if ended < self.turns_at + _OF_LATE else []
                self._slowest = []
                self.slow_from = -1.0
                self.turns_at = ended + _OF_LATE
            if len(self._slowest) < _SLOWEST:
                heappush(self._slowest, entry)
            elif latency > self.slow_from:
                heapreplace(self._slowest, entry)
            if len(self._slowest) == _SLOWEST:
                self.slow_from = self._slowest[0][0]

    # Connections

    def connected(self) -> None:
        """Count a new connection."""
        with self.lock:
            self._connections += 1

    def terminated(self, peer: str, error: RpcError | None, now: float) -> None:
        """Record why a connection ended: the error of its ConnectionTerminated."""
        with self.lock:
            if isinstance(error, RemoteProtocolError):
                self._violations += 1
                self._note_error(now, None, "protocol_violation", str(error), peer)
            elif isinstance(error, HandshakeError):
                self._refused_handshakes += 1
                self._note_error(now, None, str(error.code), str(error.message), peer)

    def closed(self, connection: Connection) -> None:
        """Keep the numbers of a closed connection; call it once for each."""
        with self.lock:
            self._received += connection.received
            self._sent += connection.sent

    # Reading

    def snapshot(
        self,
        methods: Mapping[str, MethodStats],
        now: float,
        connections: Iterable[Connection] = (),
    ) -> dict[str, Any]:
        """Return all statistics as JSON-able values; times and ages are in seconds.

        `methods` are copies, which this consumes; `connections` are the open ones.

        - `calls`: the sums over all methods of the fields in `methods`, except `latency`.
        - `methods`: by name, plus `(unknown)` and `(removed)` if anything was counted there.
          `begun` calls were accepted and `ended` calls are over; `in_flight` is the difference:
          their handlers are running or queued. `served` handlers returned and `failed` ones raised;
          `late` counts those served after the caller already had another outcome. `refused` calls
          were not accepted. `cancelled` calls ended before their handler did: by the caller, the
          deadline, the connection or a shutdown. `deadline_overruns`: the deadline passed before
          the answer. `errors`: {code: calls} of all calls that ended with an error, including
          refused ones; a code that is not part of the protocol counts as `other`. `latency`, from
          the arrival of the request to the end of the handler: `count`, `sum`, `p50` and `p99` of
          the last 512 calls or more (None without any), and `buckets`, pairs of an upper bound and
          the number of calls within it; the last bucket has no bound and counts all calls.
          `items_received` and `items_sent`, and their bytes on the wire, `item_bytes_received` and
          `item_bytes_sent`: of streams, running ones included.
        - `connections`: `total`, `open`, protocol `violations`, `refused_handshakes`,
          `bytes_received` and `bytes_sent` over all connections, without the overhead of TLS.
        - `last_errors`, newest first, at most 50: `age`, `method` (None for an error of the
          connection), `code`, `message`, `peer`.
        - `slowest`, slowest first, at most 20 of the last five to ten minutes: `age`, `method`,
          `peer`, `latency`, and its parts: `queue` until the handler started, `handler` until it
          ended, and `send` until the answer was encoded.
        """
        total = MethodStats()
        for stats in methods.values():
            total.add(stats)
        with self.lock:
            last_errors = list(self._errors)
            slowest = self._older + self._slowest
            connected = {
                "total": self._connections,
                "open": 0,
                "violations": self._violations,
                "refused_handshakes": self._refused_handshakes,
                "bytes_received": self._received,
                "bytes_sent": self._sent,
            }
        for connection in connections:
            connected["open"] += 1
            connected["bytes_received"] += connection.received
            connected["bytes_sent"] += connection.sent
        return {
            "calls": total.counts(),
            "methods": {
                name: {**stats.counts(), "latency": stats.latency()}
                for name, stats in methods.items()
                if name not in (UNKNOWN, REMOVED) or stats.ended or stats.in_flight or stats.errors
            },
            "connections": connected,
            "last_errors": [
                {
                    "age": now - at,
                    "method": method,
                    "code": code,
                    "message": message,
                    "peer": peer,
                }
                for at, method, code, message, peer in reversed(last_errors)
            ],
            "slowest": [
                {
                    "age": now - at,
                    "method": method,
                    "peer": peer,
                    "latency": latency,
                    "queue": queue,
                    "handler": handler,
                    "send": send,
                }
                for latency, at, method, peer, queue, handler, send in sorted(
                    (entry for entry in slowest if now - entry[1] < 2 * _OF_LATE), reverse=True
                )[:_SLOWEST]
            ],
        }

    def _note_error(
        self, now: float, method: str | None, code: str, message: str, peer: str
    ) -> None:
        self._errors.append((now, method, code, clip(message)[:_TEXT], peer))


def _percentile(ordered: list[float], percent: int) -> float | None:
    if not ordered:
        return None
    return ordered[max(1, math.ceil(len(ordered) * percent / 100)) - 1]
