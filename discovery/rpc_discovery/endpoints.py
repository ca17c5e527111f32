"""What a caller knows about a node: calls in flight, latency, errors."""

from math import exp, inf

from .nodes import Node

__all__ = ["DECAY", "Endpoint"]

DECAY = 10.0  # seconds in which the weight of an old latency falls to 1/e

_LONGEST_PENALTY = 10.0


class Endpoint:
    """A node as one caller knows it. Subclasses may add slots.

    `since` is when the node appeared, in absolute seconds, from which its slow start counts. The
    default is for nodes of the first view, which have no slow start. When the node's description
    changes, `node` is replaced and the balancer rebuilt.

    `latency` is a peak EWMA in seconds, 0 before the first call has ended. A slower call replaces
    it at once; a faster one pulls it down, more so if the last one ended (`updated`) long ago: with
    w = exp(-elapsed / DECAY), it becomes w * latency + (1 - w) * seconds. A failed call counts as
    at least twice the latency (up to 10 s), so that failing quickly does not look fast.

    `errors` counts the failed calls since the last success. `ejection.OutlierEjection` sets
    `ejections`, in a row, and `ejected_until` in absolute seconds, None while in service.
    """

    __slots__ = (
        "ejected_until",
        "ejections",
        "errors",
        "in_flight",
        "latency",
        "node",
        "since",
        "updated",
    )

    def __init__(self, node: Node, since: float = -inf) -> None:
        self.node = node
        self.since = since
        self.in_flight = 0
        self.latency = 0.0
        self.updated = -inf
        self.errors = 0
        self.ejections = 0
        self.ejected_until: float | None = None

    def begin(self, now: float) -> None:
        """Count a call to the node."""
        self.in_flight += 1

    def end(self, now: float, seconds: float, failed: bool = False) -> None:
        """Count the end of a call that took `seconds`.

        `failed` means that the node is to blame: it was unavailable, or silent until the deadline.
        Errors raised by its handlers do not count.
        """
        self.in_flight -= 1
        latency = self.latency
        if failed:
            self.errors += 1
            seconds = max(seconds, min(2 * latency, _LONGEST_PENALTY))
        else:
            self.errors = 0
        if seconds < latency:
            seconds += (latency - seconds) * exp(min(self.updated - now, 0.0) / DECAY)
        self.latency = seconds
        self.updated = now

    def __repr__(self) -> str:
        state = "" if self.ejected_until is None else f", ejected until {self.ejected_until:.3f}"
        return f"<Endpoint {self.node.address}, {self.in_flight} in flight{state}>"
