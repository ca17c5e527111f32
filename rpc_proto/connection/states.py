"""The states of a connection and the transitions between them, as data.

The diagram in docs/protocol.md is generated from `TRANSITIONS` (`python docs/diagram.py`).
"""

from enum import Enum

__all__ = ["TRANSITIONS", "State", "Trigger", "Wish", "mermaid"]


class State(Enum):
    """The state of a connection; the same at both ends."""

    HANDSHAKE = "handshake"  # options are being exchanged
    OPEN = "open"  # calls begin and end, or HTTP is spoken
    DRAINING = "draining"  # no new calls; those in flight end
    CLOSING = "closing"  # the last bytes are being sent; what arrives is dropped
    CLOSED = "closed"  # only the transport is left to close


class Wish(Enum):
    """What a connection wants its transport to do, apart from writing."""

    READ = "read"
    PAUSE = "pause"  # stop reading, which slows the peer down
    HALF_CLOSE = "half-close"  # half-close once everything is written, and go on reading
    CLOSE = "close"  # close once everything is written
    ABORT = "abort"  # close immediately and drop what is unwritten


class Trigger(Enum):
    """What makes a connection change its state."""

    ACCEPTED = "options accepted"
    REFUSED = "options refused or late"
    SERVED = "last HTTP response"
    SHUTDOWN = "shutdown()"
    GOAWAY = "GOAWAY received"
    HALF_CLOSED = "client sends no more"
    DRAINED = "no call left"
    VIOLATION = "violation by the peer"
    LOST = "transport gone or peer silent"
    LATE = "close timeout"


TRANSITIONS: dict[tuple[State, Trigger], State] = {
    (State.HANDSHAKE, Trigger.ACCEPTED): State.OPEN,
    (State.HANDSHAKE, Trigger.REFUSED): State.CLOSING,
    (State.HANDSHAKE, Trigger.SHUTDOWN): State.CLOSING,
    (State.HANDSHAKE, Trigger.LOST): State.CLOSED,
    (State.OPEN, Trigger.SERVED): State.CLOSING,
    (State.OPEN, Trigger.SHUTDOWN): State.DRAINING,
    (State.OPEN, Trigger.GOAWAY): State.DRAINING,
    (State.OPEN, Trigger.HALF_CLOSED): State.DRAINING,
    (State.OPEN, Trigger.VIOLATION): State.CLOSING,
    (State.OPEN, Trigger.LOST): State.CLOSED,
    (State.DRAINING, Trigger.SHUTDOWN): State.DRAINING,
    (State.DRAINING, Trigger.GOAWAY): State.DRAINING,
    (State.DRAINING, Trigger.HALF_CLOSED): State.DRAINING,
    (State.DRAINING, Trigger.DRAINED): State.CLOSING,
    (State.DRAINING, Trigger.VIOLATION): State.CLOSING,
    (State.DRAINING, Trigger.LOST): State.CLOSED,
    (State.CLOSING, Trigger.LATE): State.CLOSED,
    (State.CLOSING, Trigger.LOST): State.CLOSED,
    (State.CLOSED, Trigger.LOST): State.CLOSED,
}


def mermaid() -> str:
    """Return the transitions as a Mermaid state diagram."""
    edges: dict[tuple[State, State], list[str]] = {}
    for (before, trigger), after in TRANSITIONS.items():
        if before is not after:
            edges.setdefault((before, after), []).append(trigger.value)
    lines = ["stateDiagram-v2", f"    [*] --> {State.HANDSHAKE.name}"]
    for (before, after), triggers in edges.items():
        lines.append(f"    {before.name} --> {after.name}: {' / '.join(triggers)}")
    lines.append(f"    {State.CLOSED.name} --> [*]")
    return "\n".join(lines)
