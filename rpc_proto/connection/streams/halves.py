"""The two halves of a stream: items that this end sends, and items that it receives.

docs/protocol.md, "Streams". Neither half knows of frames on their way or of time passing; the
connection's `Streaming` does.
"""

from collections import deque
from collections.abc import Callable
from enum import Enum
from io import BytesIO
from typing import Any, Final

from rpc_proto.errors import CallError, ResourceExhausted
from rpc_proto.wire.codecs import SMALL, explain
from rpc_proto.wire.frames import PART, PREFIX_SIZE

__all__ = [
    "MOST_CREDIT",
    "TRANSITIONS",
    "WINDOW",
    "Half",
    "ReceiveHalf",
    "SendHalf",
    "Turn",
    "cost",
]

# Bytes of credit with which each direction of a stream begins; as much as TCP sends at first.
WINDOW: Final = 16 * 1024

MOST_CREDIT: Final = 2**32 - 1

# A window that empties more often than twice in so many seconds grows. So it comes to hold what the
# stream carries in that time, which is enough for any round trip that is not longer.
_QUICK = 0.2


def cost(size: int) -> int:
    """Return how much credit an item of so many bytes takes: the length of its frames."""
    return size + PREFIX_SIZE * (-(-size // PART) or 1)


class Half(Enum):
    """The state of one direction of a stream; the same at both ends."""

    OPEN = "open"  # items may follow
    ENDED = "ended"  # the sender has said that no more will come
    CLOSED = "closed"  # the call is over


class Turn(Enum):
    """What makes a half change its state."""

    END = "END"
    OVER = "end of the call"


TRANSITIONS: dict[tuple[Half, Turn], Half] = {
    (Half.OPEN, Turn.END): Half.ENDED,
    (Half.OPEN, Turn.OVER): Half.CLOSED,
    (Half.ENDED, Turn.OVER): Half.CLOSED,
    (Half.CLOSED, Turn.OVER): Half.CLOSED,
}


class SendHalf:
    """The items that this end sends in one call.

    `credit` is how many bytes the peer will still take, prefixes included: while it is more than 0,
    an item may begin. `waits` is whether the last item is still to be sent, or the next must not
    come yet; a `Writable` event is the end of that. `count` and `size` are the items that were
    accepted, and their bytes on the wire; `active_at` is when that was, or the end of a wait.
    """

    __slots__ = (
        "active_at",
        "call",
        "count",
        "credit",
        "flags",
        "in_turn",
        "rest",
        "size",
        "state",
        "waits",
    )

    def __init__(self, call: Any, credit: int, now: float) -> None:
        self.call: Any = call
        self.state = Half.OPEN
        self.credit = credit
        self.waits = False
        self.in_turn = False  # whether it is in the queue of those that may send
        self.rest: memoryview | None = None  # what is left of the item that is being sent
        self.flags = 0  # of that item
        self.count = 0
        self.size = 0
        self.active_at = now

    def __repr__(self) -> str:
        return f"<SendHalf of {self.call!r}, {self.state.value}, credit {self.credit}>"

    @property
    def writable(self) -> bool:
        """Whether an item may be sent now."""
        return self.state is Half.OPEN and not self.waits

    def move(self, turn: Turn) -> None:
        """Change the state."""
        self.state = TRANSITIONS[self.state, turn]
        if self.state is Half.CLOSED:
            self.rest = self.call = None  # or the call and its half would keep each other alive


class ReceiveHalf:
    """The items that this end receives in one call, until they are taken.

    `take` is for one consumer. It may run while a thread of the connection receives: the fields
    that it changes are changed by nothing else. When it has made `due` true, give the peer more
    credit, with `Connection.grant`.

    `items` holds bodies; a RAW one is a tuple of one. `window` is how many bytes the sender may be
    ahead of the consumer, `credit` what is left of it. `received` and `taken` count bytes on the
    wire, `count` the items that were taken; `active_at` is when the last one came, or a grant was
    given. `decode(body)` gives the value of an item; `error` is why no more items come.
    """

    __slots__ = (
        "_bad",
        "_due_at",
        "_granted",
        "_granted_at",
        "_part",
        "_part_flags",
        "active_at",
        "call",
        "check",
        "convert",
        "count",
        "counted",
        "credit",
        "decode",
        "error",
        "items",
        "method",
        "received",
        "state",
        "taken",
        "window",
    )

    def __init__(
        self, call: Any, decode: Callable[[bytes], Any], bad: type[CallError], now: float
    ) -> None:
        self.call: Any = call
        self.method: str = call.method
        self._bad = bad  # what `take` raises for an item that cannot be decoded
        self.state = Half.OPEN
        self.decode = decode
        self.check: Callable[[bytes], object] | None = None  # of a body's size, before `decode`
        self.convert: Callable[[bytes], Any] | None = None  # a RAW body to a type other than bytes
        self.items: deque[bytes | tuple[bytes]] = deque()
        self.window = self.credit = WINDOW
        self.received = 0
        self.taken = 0
        self.count = 0
        self.counted = 0  # bytes that the connection counts for it
        self.error: CallError | None = None
        self.active_at = now
        self._granted = 0  # what `taken` was at the last grant
        self._granted_at = now
        self._due_at = WINDOW // 2
        self._part: BytesIO | None = None  # the parts of an item that has not arrived whole
        self._part_flags = 0

    def __repr__(self) -> str:
        return f"<ReceiveHalf of {self.method}, {self.state.value}, {len(self.items)} items>"

    def move(self, turn: Turn) -> None:
        """Change the state. The items that have arrived stay."""
        self.state = TRANSITIONS[self.state, turn]
        if self.state is Half.CLOSED:
            self._part = self.call = None  # or the call and its half would keep each other alive

    # Receiving

    @property
    def held(self) -> int:
        """Bytes on the wire that wait to be taken."""
        return self.received - self.taken

    @property
    def in_parts(self) -> bool:
        """Whether an item has begun and not arrived whole."""
        return self._part is not None

    def add_part(self, flags: int, body: bytes) -> int:
        """Add to an item that comes in parts; return its size so far, ValueError if it changed."""
        if self._part is None:
            self._part = BytesIO()
            self._part_flags = flags
        elif flags != self._part_flags:
            raise ValueError("the parts of an item differ in RAW")
        self._part.write(body)
        return self._part.tell()

    def finish_parts(self) -> bytes:
        """Return the item whose last part has been added."""
        assert self._part is not None
        whole = self._part.getvalue()
        self._part = None
        return whole

    # Taking

    def take(self) -> Any:
        """Take the next item; IndexError if there is none, a CallError if it cannot be decoded."""
        body = self.items.popleft()
        self.count += 1
        try:
            if isinstance(body, bytes):
                size = len(body)
                self.taken += PREFIX_SIZE + size if size <= PART else cost(size)
                if size > SMALL and self.check is not None:
                    self.check(body)
                return self.decode(body)
            raw = body[0]
            self.taken += cost(len(raw))
            return raw if self.convert is None else self.convert(raw)
        except ResourceExhausted as error:
            error.message = f"item {self.count} of {self.method} is {error.message}"
            raise
        except Exception as error:  # a codec may raise anything
            text = f"item {self.count} of {self.method} is bad: {explain(error)}"
            raise self._bad(text) from None

    @property
    def due(self) -> bool:
        """Whether enough has been taken that the peer should get more credit."""
        return self.taken >= self._due_at and self.state is Half.OPEN

    def next_window(self, now: float, most: int) -> int:
        """Return what the window should be after a grant now: the same, or twice as much.

        It grows if the consumer keeps up with a peer that used up the window quickly.
        """
        quick = now - self._granted_at < _QUICK / 2
        if quick and not self.items and self.window < most:
            return min(self.window * 2, most)
        return self.window

    def grant(self, now: float, window: int) -> int:
        """Make the window so large, and return the credit to give to the peer."""
        amount = self.taken - self._granted + window - self.window
        amount = min(amount, MOST_CREDIT - max(self.credit, 0))
        self.window = window
        self.credit += amount
        self._granted = self.taken
        self._granted_at = self.active_at = now
        self._due_at = self.taken + window // 2
        return amount
