"""Keeping a view of the nodes: the last good one, whatever happens to the source."""

from collections import deque
from typing import NamedTuple

from .nodes import MOST_NODES, Node, View

__all__ = ["ShrinkGuard", "StaleChanged", "ViewChanged", "ViewKeeper"]


class ViewChanged(NamedTuple):
    """There is a new view. A node whose description changed is in both lists."""

    view: View
    added: list[Node]
    removed: list[Node]


class StaleChanged(NamedTuple):
    """The view has been unconfirmed since this time, for this reason; if None, it is good."""

    since: float | None
    reason: str


class ShrinkGuard:
    """Keeps nodes that disappear when the registry is probably wrong about them.

    That is when more than `share` of them disappear within `grace` seconds, because it lost contact
    with the nodes or was restarted. Kept nodes are removed after `grace` seconds, or once most have
    come back; after a restart, once all have.
    """

    def __init__(self, grace: float, share: float) -> None:
        self.held: dict[str, Node] = {}
        self.until: float | None = None
        self.times = 0  # how often it kept nodes
        self._grace = grace
        self._share = share
        self._most = 0  # nodes before they disappeared
        self._anew = False  # whether it keeps nodes because a registry was restarted
        # Numbers of nodes and until when, decreasing: the first is the maximum within `grace`.
        self._sizes: deque[tuple[float, int]] = deque()

    def apply(
        self, current: dict[str, Node], target: dict[str, Node], again: bool, now: float
    ) -> None:
        """Add the kept nodes to `target`, which replaces `current`."""
        sizes = self._sizes
        if self.until is None:
            while sizes and sizes[0][0] <= now - self._grace:
                sizes.popleft()
            while sizes and sizes[-1][1] <= len(current):
                sizes.pop()
            sizes.append((now, len(current)))
            self._most = sizes[0][1]
        going = [(address, node) for address, node in current.items() if address not in target]
        self._anew = bool(going) and (self._anew or again)
        wrong = self._anew or len(target) < self._most * (1 - self._share)
        if self.until is None and wrong and self._grace:
            self.until = now + self._grace
            self.times += 1
        elif self.until is not None and (now >= self.until or not wrong):
            self.until = None
            self.held = {}
            sizes.clear()
        if self.until is None:
            self._anew = False
        else:
            self.held = dict(going[: MOST_NODES - len(target)])
            target.update(self.held)


class ViewKeeper:
    """Keeps a view, and reports when it changes and since when it is unconfirmed.

    If more than `share` of the nodes disappear within `grace` seconds, they stay in the view for
    that time.
    """

    def __init__(self, grace: float, share: float) -> None:
        if not 0 <= grace <= 3600 or not 0 < share < 1:
            raise ValueError(
                f"grace must be from 0 to 3600 s and share between 0 and 1, not {grace!r} and "
                f"{share!r}"
            )
        self.view = View()
        self.ready = False  # whether there was anything to show yet
        self.stale_since: float | None = None
        self.stale_reason = ""
        self._guard = ShrinkGuard(grace, share)
        self._shown: dict[str, Node] = {}

    @property
    def held(self) -> int:
        """Number of nodes that are shown only because too many disappeared at once."""
        return len(self._guard.held)

    @property
    def times_held(self) -> int:
        """How often too many nodes disappeared at once."""
        return self._guard.times

    def _show(
        self, target: dict[str, Node], again: bool, now: float
    ) -> list[ViewChanged | StaleChanged]:
        """Show nodes by address, at most 10,000; `anew` if the source was restarted."""
        self._guard.apply(self._shown, target, again, now)
        self._shown = target
        view = View(target.values(), self.view.revision + 1)
        added, removed = self.view.changes(view)
        if not added and not removed and self.ready:
            return []
        self.view, self.ready = view, True
        return [ViewChanged(view, added, removed)]

    def _judge(self, reason: str, since: float, now: float) -> list[StaleChanged]:
        """Record that the view is unconfirmed since then, for a reason; "" if it is good."""
        if self.ready and reason:
            began = since
        elif self._guard.until is not None:
            reason = f"{self.held} nodes disappeared at once; still showing them"
            began = now
        else:
            changed = self.stale_since is not None
            self.stale_since, self.stale_reason = None, ""
            return [StaleChanged(None, "")] if changed else []
        self.stale_reason = reason
        if self.stale_since is not None:
            return []
        self.stale_since = began
        return [StaleChanged(began, reason)]
