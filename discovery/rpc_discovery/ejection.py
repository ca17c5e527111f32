"""Outlier ejection: a node that keeps failing gets no calls for a while."""

from collections.abc import Callable, Iterable
from math import inf

from .endpoints import Endpoint

__all__ = ["OutlierEjection"]

_JITTER = 0.2  # of a time, so that nodes ejected together do not return together


class OutlierEjection:
    """Ejects an endpoint after `errors` failed calls in a row; a success resets the count.

    The first ejection lasts `base` seconds, each further one `base` longer, up to `longest`; `rng`
    (from 0 to 1, 1 excluded) shortens it by up to a fifth. After `longest` seconds in service, a
    node starts over. A node that returns has a slow start, and one more error ejects it again,
    until a call succeeds.

    At most the fraction `share` of the endpoints with a weight is ejected, and one always stays.
    Others with too many errors are ejected when they fail again and there is room.

    Call `update` when the endpoints change, `failed` when a call has failed, and `handle_timeout`
    at `next_timeout`. They return whether balancers have to be rebuilt.
    """

    def __init__(
        self,
        *,
        rng: Callable[[], float],
        errors: int = 5,
        base: float = 30.0,
        longest: float = 300.0,
        share: float = 0.5,
    ) -> None:
        if not isinstance(errors, int) or errors < 1:
            raise ValueError(f"errors must be a whole number from 1 up, not {errors!r}")
        if not 0 < base <= longest < inf:
            raise ValueError(
                f"base must be over 0 seconds and at most longest, not {base!r}, {longest!r}"
            )
        if not 0 <= share <= 1:
            raise ValueError(f"share must be from 0 to 1, not {share!r}")
        self.rng = rng
        self.errors = errors
        self.base = base
        self.longest = longest
        self.share = share
        self.ejected: list[Endpoint] = []
        self._room = 0  # how many may be ejected
        self._next: float | None = None

    def next_timeout(self) -> float | None:
        """Return when the next endpoint returns, in absolute seconds, or None."""
        return self._next

    def update(self, endpoints: Iterable[Endpoint], now: float) -> bool:
        """Replace the endpoints; return whether some are restored, for lack of others."""
        able = {endpoint for endpoint in endpoints if endpoint.node.weight}
        self._room = max(0, min(int(len(able) * self.share), len(able) - 1))
        back = [endpoint for endpoint in self.ejected if endpoint not in able]
        stay = sorted((endpoint for endpoint in self.ejected if endpoint in able), key=_end)
        back += stay[: max(0, len(stay) - self._room)]
        self._return(back, now)
        return bool(back)

    def failed(self, endpoint: Endpoint, now: float) -> bool:
        """Record a failed call, which its endpoint has counted; return whether that ejects it."""
        if (
            endpoint.errors < self.errors
            or endpoint.ejected_until is not None
            or len(self.ejected) >= self._room
            or not endpoint.node.weight
        ):
            return False
        well = now - endpoint.since >= self.longest  # since its last return
        endpoint.ejections = 1 if well else endpoint.ejections + 1
        seconds = min(self.base * endpoint.ejections, self.longest)
        endpoint.ejected_until = now + seconds * (1 - _JITTER * self.rng())
        self.ejected.append(endpoint)
        self._next = min(endpoint.ejected_until, inf if self._next is None else self._next)
        return True

    def handle_timeout(self, now: float) -> bool:
        """Restore the endpoints whose time is over; return whether there were any."""
        back = [endpoint for endpoint in self.ejected if _end(endpoint) <= now]
        self._return(back, now)
        return bool(back)

    def _return(self, back: list[Endpoint], now: float) -> None:
        for endpoint in back:
            endpoint.ejected_until = None
            endpoint.since = now
            endpoint.errors = self.errors - 1
        self.ejected = [endpoint for endpoint in self.ejected if endpoint.ejected_until is not None]
        self._next = min(map(_end, self.ejected), default=None)


def _end(endpoint: Endpoint) -> float:
    return inf if endpoint.ejected_until is None else endpoint.ejected_until
