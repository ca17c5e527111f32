"""What a connection does for its streams: items, credit, turns and silence."""

from abc import abstractmethod
from collections import deque
from heapq import heappop, heappush
from typing import Any, NoReturn

from rpc_proto.connection.endpoint import Endpoint
from rpc_proto.connection.events import ItemsEnded, ItemsReceived, Writable
from rpc_proto.connection.timers import Timer
from rpc_proto.errors import (
    CallError,
    DeadlineExceeded,
    InvalidArgument,
    LocalProtocolError,
    ResourceExhausted,
)
from rpc_proto.wire.codecs import Codec, explain
from rpc_proto.wire.frames import (
    BYTES,
    CREDIT_SIZE,
    PART,
    PREFIX_SIZE,
    Flag,
    FrameType,
    encode_prefix,
)

from .halves import MOST_CREDIT, WINDOW, Half, ReceiveHalf, SendHalf, Turn

__all__ = ["Streaming"]

_ITEM = int(FrameType.ITEM)
_OPEN = Half.OPEN

# Streams that wait get their turn when fewer bytes than this wait for the transport; an item of
# another stream is queued there as long as there are fewer than twice as many. So it waits for one
# part of a larger item, and control frames wait for three parts at most.
_ENOUGH = 64 * 1024

# Bytes; what is held for a stream is counted in steps of this size.
_STEP = 4 * 1024

_BIG_STEP = 64 * 1024


class Streaming(Endpoint):
    """A connection whose calls can have streams of items.

    A stream is open for sending while its half is `writable`: `send_item` then takes one item, of
    any size, and returns whether another may follow at once. If not, a `Writable` event tells when.
    Received items wait until they are taken; taking is what gives the peer credit for more.
    """

    __slots__ = ("_enough", "_plenty", "_resting", "_silences", "ignored")

    calls: Any  # a CallTable
    codec: Codec
    _send_limits: tuple[int, int]
    _bad_item: type[CallError] = InvalidArgument  # for one that cannot be encoded

    def _open_streams(self) -> None:
        self.ignored = 0
        # Halves that have something to send, in turn.
        self._turns = deque[SendHalf]()
        self._enough = min(_ENOUGH, self.high_water)
        self._plenty = min(2 * _ENOUGH, self.high_water)
        self._resting = 0  # bytes of the items that they hold
        # When to look whether a stream has been silent for too long, and its call: one entry each.
        self._silences: list[tuple[float, int]] = []

    # Commands

    def send_item(self, now: float, call: Any, value: Any) -> bool:
        """Send one item of a stream; return whether the next may follow at once.

        If not, wait for `Writable`: the peer has to take items first, or to read. Raises
        InvalidArgument (at a server Internal) if the value cannot be encoded, ResourceExhausted if
        it is larger than the peer accepts; nothing was sent then. LocalProtocolError if the half is
        not `writable`.
        """
        half: SendHalf | None = call.sending
        if half is None or half.waits or half.state is not _OPEN:
            self._refuse_item(call)
        flags = 0
        if type(value) in BYTES:
            flags = Flag.RAW
            body = value if type(value) is bytes else bytes(value)
        else:
            try:
                body = self.codec.encode(value)
            except Exception as error:  # a codec may raise anything
                raise self._bad_item(
                    f"item {half.count + 1} of {call.method} cannot be encoded as "
                    f"{self.codec.name}: {explain(error)}"
                ) from error
        size = len(body)
        self._now = half.active_at = now
        credit = half.credit
        if size <= PART and credit > 0 and self.outbound < self._plenty:
            self._out += (encode_prefix(_ITEM, flags, 0, size, call.id), body)
            size += PREFIX_SIZE
            half.credit = credit = credit - size
            self.outbound = outbound = self.outbound + size
            half.count += 1
            half.size += size
            if self._observers.item:
                self._tell(self._observers.item, call, size, True)
            if credit > 0 and outbound < self._plenty and outbound < self._room:
                return True
            return self._after_item(half, now)
        most = self._send_limits[1]
        if 0 < most < size:  # before the handshake it is not known
            raise ResourceExhausted(
                f"item {half.count + 1} of {call.method} has {size} bytes; the peer accepts {most}"
            )
        if not self._may_hold(size):
            raise ResourceExhausted(
                f"there is no memory to send item {half.count + 1} of {call.method}, which has "
                f"{size} bytes"
            )
        self._resting += size
        half.rest = memoryview(body)
        half.flags = flags
        half.waits = True
        half.count += 1
        if self._observers.item:
            self._tell(self._observers.item, call, size + PREFIX_SIZE, True)
        if credit > 0:
            self._queue_turn(half)
            self._pump()
            self._settle(now)
        return not half.waits

    def end_items(self, now: float, call: Any) -> None:
        """Client: say that no more items follow; the server can still send its own.

        LocalProtocolError if the last item is still to be sent: wait for `Writable` first.
        """
        half: SendHalf | None = call.sending
        if half is None or half.state is not _OPEN or half.rest is not None:
            self._refuse_item(call)
        self._now = now
        half.move(Turn.END)
        if call.sent:
            self._send(FrameType.END, 0, call.id)
        self._settle(now)

    def take_item(self, now: float, call: Any) -> Any:
        """Take the next item that has arrived, and give the peer credit for more.

        LocalProtocolError if there is none. Raises DataLoss (at a server InvalidArgument) or
        ResourceExhausted for an item that cannot be decoded.
        """
        half: ReceiveHalf | None = call.receiving
        if half is None or not half.items:
            raise LocalProtocolError(f"no item of {call.method} has arrived: wait for an event")
        try:
            return half.take()
        finally:
            if half.due:
                self.grant(now, call)

    def grant(self, now: float, call: Any) -> None:
        """Give the peer credit for the items that were taken; for drivers that call `take`."""
        half: ReceiveHalf = call.receiving
        if half.state is not _OPEN:
            return
        self._now = now
        window = half.next_window(now, self._config.max_window)
        if window > half.window and not self._may_grow(call, window - half.window):
            window = half.window
        amount = half.grant(now, window)
        if amount > 0:
            self._send(FrameType.CREDIT, 0, call.id, b"", amount.to_bytes(CREDIT_SIZE, "big"))
        if half.counted > half.held + _STEP:
            self._count_items(call, half.held - half.counted)
            half.counted = half.held
        self._settle(now)

    # What the two ends do differently

    @abstractmethod
    def _send(
        self, kind: int, flags: int, call_id: int, header: bytes = b"", body: bytes = b""
    ) -> None: ...

    @abstractmethod
    def _violate(self, message: str, now: float, code: str = "invalid_argument") -> None: ...

    @abstractmethod
    def _fail_stream(self, call: Any, error: CallError, now: float) -> None:
        """End a call because of what the peer did, or did not do, in its stream."""

    @abstractmethod
    def _count_items(self, call: Any, more: int) -> bool:
        """Count so many bytes of received items more, or fewer; return whether they may be held."""

    @abstractmethod
    def _may_grow(self, call: Any, more: int) -> bool:
        """Whether the window of a stream may be so many bytes larger."""

    @abstractmethod
    def _may_hold(self, size: int) -> bool:
        """Whether an item of this size may be held until it is sent."""

    @abstractmethod
    def _is_live(self, call: Any) -> bool:
        """Whether frames of a stream can belong to this call now."""

    @abstractmethod
    def _is_past(self, call_id: int) -> bool:
        """Whether frames of a stream may still be on their way for this call."""

    # Sending

    def _refuse_item(self, call: Any) -> NoReturn:
        half: SendHalf | None = call.sending
        if half is None:
            raise LocalProtocolError(f"{call!r} has no stream in this direction")
        if half.state is not _OPEN:
            raise LocalProtocolError(f"the stream of {call!r} is {half.state.value} at this end")
        raise LocalProtocolError(f"an item of {call!r} still waits to be sent; wait for Writable")

    def _after_item(self, half: SendHalf, now: float) -> bool:
        """Settle after an item; return whether another may follow."""
        if self.outbound >= self._room:
            self._settle(now)
        if half.credit > 0 and self.outbound < self._plenty:
            return half.state is _OPEN
        half.waits = True
        if half.credit > 0:
            self._queue_turn(half)
        return False

    def _queue_turn(self, half: SendHalf) -> None:
        if not half.in_turn:
            half.in_turn = True
            self._turns.append(half)

    def _pump(self) -> None:
        """Let the streams that wait to send take turns, while the transport has too little."""
        turns = self._turns
        while turns and self.outbound + self._unsent < self._enough:
            half = turns.popleft()
            half.in_turn = False
            if half.state is not _OPEN:
                continue
            if half.rest is not None:
                self._send_part(half, half.rest)
                if half.rest is not None:
                    self._queue_turn(half)  # credit below 0 does not stop an item that has begun
                    continue
            if half.credit > 0:
                half.waits = False
                half.active_at = self._now
                self._events.append(Writable(half.call))
                self.version += 1

    def _send_part(self, half: SendHalf, rest: memoryview) -> None:
        part = rest[:PART]
        flags = half.flags
        if len(rest) > PART:
            flags |= Flag.MORE
            half.rest = rest[PART:]
        else:
            half.rest = None
        self._out += (encode_prefix(_ITEM, flags, 0, len(part), half.call.id), part)
        self._resting -= len(part)
        size = PREFIX_SIZE + len(part)
        self.outbound += size
        half.credit -= size
        half.size += size

    def _credit_unbounded(self, call: Any) -> None:
        """The peer sends nothing more, so no credit will come: the transport slows us down."""
        half: SendHalf | None = call.sending
        if half is not None and half.state is _OPEN:
            half.credit = 2**62
            if half.waits:
                self._queue_turn(half)

    def _close_stream(self, call: Any) -> None:
        """Close both halves of a call that has ended."""
        sending: SendHalf | None = call.sending
        if sending is not None:
            if sending.rest is not None:
                self._resting -= len(sending.rest)
            sending.move(Turn.OVER)
        half: ReceiveHalf | None = call.receiving
        if half is not None:
            half.move(Turn.OVER)
            if half.counted:
                self._count_items(call, -half.counted)
                half.counted = 0

    # Receiving

    def _receive_stream(self, kind: int, flags: int, call_id: int, body: bytes, now: float) -> None:
        """Handle an ITEM, an END or a CREDIT."""
        call = self.calls.get(call_id)
        if call is None or not self._is_live(call):
            if self._is_past(call_id):
                self.ignored += 1
            else:
                name = FrameType(kind).name
                self._violate(f"{name} for call {call_id}, which was never made", now)
        elif kind == _ITEM:
            self._receive_item(call, flags, body, now)
        elif kind == FrameType.END:
            self._receive_end(call, now)
        else:
            self._receive_credit(call, int.from_bytes(body, "big"), now)

    def _receive_item(self, call: Any, flags: int, body: bytes, now: float) -> None:
        half: ReceiveHalf | None = call.receiving
        size = len(body)
        if half is None:
            why = f"an item for {call.method}, which has no stream in this direction"
            self._fail_stream(call, InvalidArgument(why), now)
            return
        if half.state is not _OPEN:
            self._violate(f"ITEM after END in call {call.id}", now)
            return
        if size > PART:
            self._violate(f"ITEM with {size} bytes; a part has at most {PART}", now)
            return
        credit = half.credit
        if credit <= 0 and not half.in_parts:
            why = f"an item for {call.method} without credit for it"
            self._fail_stream(call, ResourceExhausted(why), now)
            return
        half.credit = credit - size - PREFIX_SIZE
        half.active_at = now
        half.received += size + PREFIX_SIZE
        if half.held > half.counted and not self._count_more(half):
            why = f"there is no memory for the items of {call.method} that were not taken"
            self._fail_stream(call, ResourceExhausted(why), now)
            return
        if flags & Flag.MORE or half.in_parts:
            whole = self._join(half, flags, body, now)
            if whole is None:
                return
            body = whole
        items = half.items
        if not items:
            self._events.append(ItemsReceived(call))
        items.append((body,) if flags & Flag.RAW else body)
        if self._observers.item:
            self._tell(self._observers.item, call, size + PREFIX_SIZE, False)

    def _count_more(self, half: ReceiveHalf) -> bool:
        more = half.held - half.counted
        more += -more % (_STEP if half.held <= WINDOW else _BIG_STEP)
        if not self._count_items(half.call, more):
            return False
        half.counted += more
        return True

    def _join(self, half: ReceiveHalf, flags: int, body: bytes, now: float) -> bytes | None:
        """Add a part of an item; return the item if it is the last."""
        call = half.call
        size = len(body)
        more = flags & Flag.MORE
        if (more and size != PART) or not size:
            need = f"exactly {PART}" if more else f"1 to {PART}"
            self._violate(f"a part of an item with {size} bytes; it has {need}", now)
            return None
        try:
            total = half.add_part(flags & Flag.RAW, body)
        except ValueError as error:
            self._violate(str(error), now)
            return None
        most = self._config.max_body
        if total > most:
            why = f"an item for {call.method} of more than {most} bytes; that is the limit"
            self._fail_stream(call, ResourceExhausted(why), now)
            return None
        return None if more else half.finish_parts()

    def _receive_end(self, call: Any, now: float) -> None:
        half: ReceiveHalf | None = call.receiving
        if half is None:
            why = f"END for {call.method}, which has no stream in this direction"
            self._fail_stream(call, InvalidArgument(why), now)
        elif half.state is not _OPEN:
            self._violate(f"a second END in call {call.id}", now)
        elif half.in_parts:
            self._violate(f"END inside an item of call {call.id}", now)
        else:
            half.move(Turn.END)
            self._events.append(ItemsEnded(call))

    def _receive_credit(self, call: Any, amount: int, now: float) -> None:
        half: SendHalf | None = call.sending
        if not amount:
            self._violate("CREDIT of 0", now)
        elif half is None:
            why = f"CREDIT for {call.method}, which has no stream in this direction"
            self._fail_stream(call, InvalidArgument(why), now)
        elif half.state is not _OPEN:
            self.ignored += 1
        else:
            half.credit += amount
            if half.credit > MOST_CREDIT:
                self._violate(f"more credit than {MOST_CREDIT} in call {call.id}", now)
            elif half.waits and half.credit > 0:
                self._queue_turn(half)
                self._pump()

    def _cut_items(self, call: Any, error: CallError) -> None:
        """No more items can come, although the peer has not said so."""
        half: ReceiveHalf | None = call.receiving
        if half is not None and half.state is _OPEN:
            half.error = error
            half.move(Turn.END)
            self._events.append(ItemsEnded(call, error))

    # Silence

    def _watch_silence(self, call: Any, now: float) -> None:
        if call.idle_timeout is not None:
            heappush(self._silences, (now + call.idle_timeout, call.id))
            self._set_timer(Timer.SILENCE, self._silences[0][0])

    def _check_silence(self, now: float) -> None:
        """End the streams that were silent for too long, and look again later at the others."""
        silences = self._silences
        while silences and silences[0][0] <= now:
            _, call_id = heappop(silences)
            call = self.calls.get(call_id)
            if call is None or call.sending is call.receiving or not self._is_live(call):
                continue
            at = self._silent_at(call, now)
            if at is None:
                continue
            if at > now:
                heappush(silences, (at, call_id))
            else:
                why = f"no item of {call.method} for {call.idle_timeout:g} s"
                self._fail_stream(call, DeadlineExceeded(why), now)
        if silences:
            self._set_timer(Timer.SILENCE, silences[0][0])

    def _silent_at(self, call: Any, now: float) -> float | None:
        """Return when a stream has been silent for too long; None if no more items will come.

        It is not silent while an item waits for its taker, or for credit.
        """
        idle: float = call.idle_timeout
        active: list[float] = []
        sending: SendHalf | None = call.sending
        if sending is not None and sending.state is _OPEN:
            active.append(now if sending.waits else sending.active_at)
        receiving: ReceiveHalf | None = call.receiving
        if receiving is not None and receiving.state is _OPEN:
            active.append(now if receiving.items else receiving.active_at)
        return max(active) + idle if active else None
