"""Large responses: built in pieces, and shared by requests at about the same time."""

from collections.abc import Callable, Generator, Hashable

from .messages import Response

__all__ = ["FRESH", "Making", "Pieces", "Shared"]

FRESH = 0.25  # seconds that a response is shared
_MOST_KEPT = 16
_LONGEST = 2.0  # seconds after which no new request waits for an unfinished response

Pieces = Generator[None, None, Response]
"""What stops after each millisecond or so of work, and returns the response.

All that can change has to be looked at before it stops for the first time.
"""


class Making:
    """A response that is being built; `advance` builds a piece of it."""

    __slots__ = ("_pieces", "began", "error", "made_at", "response")

    def __init__(self, pieces: Pieces, now: float) -> None:
        self.response: Response | None = None
        self.error: BaseException | None = None  # why there is none
        self.began = now
        self.made_at = now
        self._pieces = pieces

    @property
    def ready(self) -> bool:
        """Whether there is a response, or an error."""
        return self.response is not None or self.error is not None

    def advance(self, now: float) -> None:
        """Build a piece, unless it is complete."""
        if self.ready:
            return
        try:
            next(self._pieces)
        except StopIteration as stop:
            self.response = stop.value
            self.made_at = now
        except BaseException as error:
            self.error = error


class Shared:
    """Keeps recent responses for other requests of the same.

    The key must contain everything that the response depends on, except the time. Check access
    before asking.
    """

    def __init__(self) -> None:
        self._kept: dict[Hashable, Making] = {}

    def ask(self, key: Hashable, now: float, make: Callable[[], Pieces]) -> Response | Making:
        """Return the response for this key, or start to build it; raises what `make` raises."""
        kept = self._kept
        making = kept.get(key)
        if making is None or not self._is_good(making, now):
            making = Making(make(), now)
            making.advance(now)
            kept.pop(key, None)
            if len(kept) >= _MOST_KEPT:
                del kept[next(iter(kept))]  # the oldest
            kept[key] = making
        if making.error is not None:
            del kept[key]
            raise making.error
        return making if making.response is None else making.response

    def _is_good(self, making: Making, now: float) -> bool:
        if making.ready:
            return making.error is None and 0 <= now - making.made_at < FRESH
        return 0 <= now - making.began < _LONGEST
