"""The calls of one connection, and the table that finds them by id and by deadline."""

from collections.abc import Mapping
from heapq import heapify, heappop, heappush
from itertools import count
from typing import Any, Generic, TypeVar

from .frames import Flag
from .headers import NO_METADATA

__all__ = ["IDS", "Call", "CallTable", "ServerCall"]

IDS = 2**64  # ids are unsigned 64-bit numbers; 0 is none


class Call:
    """One call as its caller's end sees it.

    `waiter` belongs to the driver: it hangs there whatever waits for the answer and finds it again
    on the event. `sent` tells whether the request may have reached the peer.
    """

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
        method: str,
        deadline: float | None,
        metadata: Mapping[str, str] | None,
        returns: Any,
        flags: int,
        body: bytes,
        waiter: Any,
    ) -> None:
        self.serial = serial
        self.id = serial % IDS
        self.method = method
        self.deadline = deadline
        self.metadata = metadata
        self.returns = returns
        self.flags = flags
        self.body = body
        self.waiter = waiter
        self.sent = False

    def __repr__(self) -> str:
        return f"<Call {self.id} {self.method}>"


class ServerCall:
    """One call as its server's end sees it: from the request until the handler has ended.

    `ended` tells that the caller has its outcome, so that whatever the handler still does is in
    vain; `handler` belongs to the driver. `reply_metadata` travels with the answer.
    """

    __slots__ = (
        "body",
        "deadline",
        "ended",
        "flags",
        "handler",
        "id",
        "metadata",
        "method",
        "one_way",
        "reply_metadata",
    )

    def __init__(
        self,
        call_id: int,
        method: str,
        deadline: float | None,
        metadata: Mapping[str, str],
        flags: int,
        body: bytes,
    ) -> None:
        self.id = call_id
        self.method = method
        self.deadline = deadline
        self.metadata = metadata
        self.flags = flags
        self.body = body
        self.one_way = bool(flags & Flag.ONE_WAY)
        self.ended = False
        self.handler: Any = None
        self.reply_metadata: Mapping[str, str] = NO_METADATA

    def __repr__(self) -> str:
        return f"<ServerCall {self.id} {self.method}>"


AnyCall = TypeVar("AnyCall", Call, ServerCall)

_SLACK = 64


class CallTable(Generic[AnyCall]):
    """Calls by id in the order of their arrival, and one heap of their deadlines.

    An entry of the heap whose call has gone is dropped when it comes to the top, or when such
    entries outnumber the live ones: the heap never holds more than twice the calls plus 64.
    """

    __slots__ = ("_calls", "_heap", "_order")

    def __init__(self) -> None:
        self._calls: dict[int, AnyCall] = {}
        self._heap: list[tuple[float, int, AnyCall]] = []
        self._order = count()

    def __len__(self) -> int:
        return len(self._calls)

    def __contains__(self, call_id: int) -> bool:
        return call_id in self._calls

    def __iter__(self) -> "Any":
        return iter(list(self._calls.values()))

    def insert(self, call: AnyCall) -> None:
        """Add a call whose id is free."""
        calls = self._calls
        calls[call.id] = call
        if call.deadline is not None:
            heap = self._heap
            if len(heap) > 2 * len(calls) + _SLACK:
                heap[:] = [entry for entry in heap if calls.get(entry[2].id) is entry[2]]
                heapify(heap)
            heappush(heap, (call.deadline, next(self._order), call))

    def get(self, call_id: int) -> AnyCall | None:
        """Return the call with that id, if there is one."""
        return self._calls.get(call_id)

    def remove(self, call: AnyCall) -> bool:
        """Take this very call away; whether it was there."""
        if self._calls.get(call.id) is not call:
            return False
        del self._calls[call.id]
        return True

    def pop(self, call_id: int) -> AnyCall | None:
        """Take the call with that id away and return it, if there is one."""
        return self._calls.pop(call_id, None)

    def clear(self) -> list[AnyCall]:
        """Take every call away and return them in the order of their arrival."""
        calls = list(self._calls.values())
        self._calls.clear()
        self._heap.clear()
        return calls

    def expire(self, now: float) -> list[AnyCall]:
        """Return the calls whose deadline has come, earliest first; they stay in the table.

        Each is returned once.
        """
        due: list[AnyCall] = []
        heap = self._heap
        calls = self._calls
        while heap and heap[0][0] <= now:
            call = heappop(heap)[2]
            if calls.get(call.id) is call:
                due.append(call)
        return due

    def next_deadline(self) -> float | None:
        """Return the earliest deadline of a call that is in the table, in absolute seconds."""
        heap = self._heap
        calls = self._calls
        while heap:
            deadline, _, call = heap[0]
            if calls.get(call.id) is call:
                return deadline
            heappop(heap)
        return None
