"""What is shown of the nodes: the last good view, whatever happens to those who tell of them."""

from collections import deque
from typing import NamedTuple

from .nodes import MOST_NODES, Node, View

__all__ = ["ShrinkGuard", "StaleChanged", "ViewChanged", "ViewKeeper"]


class ViewChanged(NamedTuple):
    """There is a new view. A node that describes itself again is in both lists."""

    view: View
    added: list[Node]
    removed: list[Node]


class StaleChanged(NamedTuple):
    """The view has been unconfirmed since that time, for that reason; or, if None, it is good."""

    since: float | None
    reason: str


class ShrinkGuard:
    """Holds nodes back from going when a registry most probably errs and they live.

    That is when more than `share` of them go within `grace` seconds, as after it lost touch with
    the nodes, or when it began again. Held nodes go after `grace` seconds, or once most are back;
    after a new beginning, once all are.
    """

    def __init__(self, grace: float, share: float) -> None:
        self.held: dict[str, Node] = {}
        self.until: float | None = None
        self.times = 0  # how often it held anything
        self._grace = grace
        self._share = share
        self._most = 0  # nodes before they went
        self._anew = False  # whether it holds because a registry began again
        # How many nodes there were until when, falling: the first is the most within `grace`.
        self._sizes: deque[tuple[float, int]] = deque()

    def apply(
        self, current: dict[str, Node], target: dict[str, Node], again: bool, now: float
    ) -> None:
        """Add to `target`, which is to take the place of `current`, what is held back."""
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
    """Keeps a view and says when it changes, and since when nothing confirms it.

    When more than `share` of the nodes go within `grace` seconds, they are shown for so long
    nevertheless.
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
        """How many nodes are shown only because too many went at once."""
        return len(self._guard.held)

    @property
    def times_held(self) -> int:
        """How often too many nodes went at once."""
        return self._guard.times

    def _show(
        self, target: dict[str, Node], again: bool, now: float
    ) -> list[ViewChanged | StaleChanged]:
        """Show nodes by address, at most 10,000; `anew` if who told of them began again."""
        self._guard.apply(self._shown, target, again, now)
        self._shown = target
        view = View(target.values(), self.view.revision + 1)
        added, removed = self.view.changes(view)
        if not added and not removed and self.ready:
            return []
        self.view, self.ready = view, True
        return [ViewChanged(view, added, removed)]

    def _judge(self, reason: str, since: float, now: float) -> list[StaleChanged]:
        """Record that, for a reason, nothing confirms the view since then; "" if it is good."""
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
