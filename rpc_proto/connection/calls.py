"""A call as each end of a connection sees it, and the table of a connection's calls."""

from collections.abc import Iterator, Mapping
from heapq import heapify, heappop, heappush
from typing import Any, Generic, TypeVar

from rpc_proto.wire.frames import Flag
from rpc_proto.wire.headers import NO_METADATA

from .streams.halves import ReceiveHalf, SendHalf

__all__ = ["IDS", "CallTable", "InboundCall", "InboundStream", "OutboundCall", "OutboundStream"]

_ONE_WAY = Flag.ONE_WAY

IDS = 2**64  # ids are unsigned 64-bit numbers; 0 is none


class OutboundCall:
    """A call at the client's end.

    `waiter` belongs to the driver, which stores there whatever waits for the answer and finds it
    again in the event. `sent` is whether the request may have reached the peer. `sending` and
    `receiving` are the halves of a stream, and None for other calls.
    """

    sending: SendHalf | None = None
    receiving: ReceiveHalf | None = None

    __slots__ = (
        "body",
        "deadline",
        "flags",
        "id",
        "metadata",
        "method",
        "returns",
        "sent",
        "serial",
        "waiter",
    )

    def __init__(
        self,
        serial: int,
        call_id: int,
        method: str,
        deadline: float | None,
        metadata: Mapping[str, str] | None,
        returns: Any,
        flags: int,
        body: bytes,
        waiter: Any,
    ) -> None:
        self.serial = serial
        self.id = call_id
        self.method = method
        self.deadline = deadline
        self.metadata = metadata
        self.returns = returns
        self.flags = flags
        self.body = body
        self.waiter = waiter
        self.sent = False

    def __repr__(self) -> str:
        return f"<OutboundCall {self.id} {self.method}>"


class OutboundStream(OutboundCall):
    """A call with a stream of items in one direction or both, at the client's end.

    `idle_timeout` is how many seconds may pass without an item, or None.
    """

    __slots__ = ("idle_timeout", "receiving", "sending")

    idle_timeout: float | None


class InboundCall:
    """A call at the server's end, from its request until its handler has returned.

    `deadline` is when the caller stops waiting, in absolute seconds of the clock behind `now`, or
    None; `arrived` is when the request came. `ended` is whether the caller already has an outcome,
    so that the handler's result will be dropped. `reply_metadata` is sent with the answer.
    `connection` is where to answer; `cost` is how many bytes count for the call there. `job`
    belongs to the dispatcher. `sending` and `receiving` are the halves of a stream, and None for
    other calls.
    """

    sending: SendHalf | None = None
    receiving: ReceiveHalf | None = None

    __slots__ = (
        "arrived",
        "body",
        "connection",
        "cost",
        "deadline",
        "ended",
        "flags",
        "id",
        "job",
        "metadata",
        "method",
        "one_way",
        "reply_metadata",
    )

    def __init__(
        self,
        connection: Any,
        call_id: int,
        method: str,
        deadline: float | None,
        metadata: Mapping[str, str],
        flags: int,
        body: bytes,
        arrived: float,
    ) -> None:
        self.connection = connection
        self.id = call_id
        self.method = method
        self.deadline = deadline
        self.metadata = metadata
        self.flags = flags
        self.body = body
        self.arrived = arrived
        self.one_way = flags & _ONE_WAY != 0
        self.cost = 0
        self.ended = False
        self.reply_metadata = NO_METADATA
        self.job: Any = None

    def __repr__(self) -> str:
        return f"<InboundCall {self.id} {self.method}>"


class InboundStream(InboundCall):
    """A call with a stream of items in one direction or both, at the server's end.

    `idle_timeout` is how many seconds may pass without an item, or None. `waiter` belongs to the
    driver, which finds there whom an event concerns.
    """

    __slots__ = ("idle_timeout", "receiving", "sending", "waiter")

    idle_timeout: float | None
    waiter: Any


AnyCall = TypeVar("AnyCall", OutboundCall, InboundCall)

_SLACK = 64


class CallTable(Generic[AnyCall]):
    """Calls by id, in order of arrival, and a heap of their deadlines.

    The heap holds (deadline, id) rather than calls, so that nothing keeps an ended call alive. An
    entry without a call is dropped by `expire`, or when such entries outnumber the live ones: the
    heap never exceeds twice the number of calls plus 65. `by_id` and `deadlines` are read-only.
    """

    __slots__ = ("by_id", "deadlines")

    def __init__(self) -> None:
        self.by_id: dict[int, AnyCall] = {}
        self.deadlines: list[tuple[float, int]] = []

    def __len__(self) -> int:
        return len(self.by_id)

    def __contains__(self, call_id: int) -> bool:
        return call_id in self.by_id

    def __iter__(self) -> Iterator[AnyCall]:
        return iter(list(self.by_id.values()))

    def insert(self, call: AnyCall) -> bool:
        """Add a call, whose id must be free; return whether its deadline is now the earliest."""
        calls = self.by_id
        calls[call.id] = call
        if call.deadline is None:
            return False
        heap = self.deadlines
        if len(heap) > 2 * len(calls) + _SLACK:
            get = calls.get  # what `_is_live` does, without the way there
            heap[:] = [e for e in heap if (other := get(e[1])) and other.deadline == e[0]]
            heapify(heap)
        entry = (call.deadline, call.id)
        heappush(heap, entry)
        return heap[0] is entry

    def get(self, call_id: int) -> AnyCall | None:
        """Return the call with this id, or None."""
        return self.by_id.get(call_id)

    def remove(self, call: AnyCall) -> bool:
        """Remove exactly this call; return whether it was there."""
        if self.by_id.get(call.id) is not call:
            return False
        del self.by_id[call.id]
        return True

    def clear(self) -> list[AnyCall]:
        """Remove all calls and return them in order of arrival."""
        calls = list(self.by_id.values())
        self.by_id.clear()
        self.deadlines.clear()
        return calls

    def expire(self, now: float) -> list[AnyCall]:
        """Return the calls whose deadline has passed, earliest first; they stay in the table.

        Each is returned once. Afterwards the first of `deadlines` belongs to a call in the table.
        """
        due: list[AnyCall] = []
        heap = self.deadlines
        while heap and (heap[0][0] <= now or not self._is_live(heap[0])):
            entry = heappop(heap)
            # An id reused with the same deadline has two adjacent entries.
            if self._is_live(entry) and (not heap or heap[0] != entry):
                due.append(self.by_id[entry[1]])
        return due

    def _is_live(self, entry: tuple[float, int]) -> bool:
        call = self.by_id.get(entry[1])
        return call is not None and call.deadline == entry[0]
