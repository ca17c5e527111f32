"""One caller's choice: which node gets a call, which nodes are dialled, and what may be repeated.

A driver asks `pick` for a node, dials it if it is not connected, makes the call and reports its
end. Everything that is decided is decided here, in the caller's thread and without waiting.
"""

from collections.abc import Callable, Collection
from math import inf
from typing import Any

from rpc_proto import CallError, DeadlineExceeded, HandshakeError, Unavailable

from .balancers import find_balancer
from .budget import HedgeDelay, RetryBudget
from .ejection import OutlierEjection
from .endpoints import Endpoint
from .nodes import Node, View
from .picking import Balancer

__all__ = ["BalancedCall", "Pool", "Target"]

# A node refused the call before any handler saw it, or was not there at all: another may do.
_ELSEWHERE = frozenset({"unavailable", "resource_exhausted", "unimplemented"})
# What may be repeated although a handler may have run, if the method is idempotent.
_REPEATABLE = frozenset({"unavailable", "resource_exhausted"})
# What a node is to blame for.
_FAULTS = frozenset({"unavailable", "deadline_exceeded"})

_FIRST_BACKOFF = 0.1  # seconds until a node that could not be dialled is tried again
_LONGEST_BACKOFF = 10.0
_REPEAT_AFTER = 0.02  # seconds; before a call goes to a node that it was sent to before


class Target(Endpoint):
    """A node, and how to reach it.

    `client` is the driver's connection, to be replaced at `expires_at`; `dialling` is what those
    wait for who need it while it is being made. `retry_at` is when to dial again after failures.
    Times are absolute seconds.
    """

    __slots__ = ("client", "dialling", "expires_at", "failures", "gone", "retry_at", "why")

    def __init__(self, node: Node, since: float) -> None:
        super().__init__(node, since)
        self.client: Any = None
        self.expires_at = inf
        self.dialling: Any = None
        self.failures = 0
        self.retry_at: float | None = None
        self.why: Exception | None = None  # it could not be dialled
        self.gone = False  # from the view


class BalancedCall:
    """A call that may be tried more than once. `deadline` is in absolute seconds, or None.

    `pending` and `abandoned` are the driver's: what is on its way now, and whether it is not wanted
    any more.
    """

    __slots__ = (
        "abandoned",
        "attempts",
        "deadline",
        "idempotent",
        "key",
        "maybe_executed",
        "node",
        "pending",
        "service",
        "target",
        "tried",
    )

    def __init__(
        self,
        service: str,
        deadline: float | None,
        *,
        idempotent: bool = False,
        key: str | None = None,
        node: str | None = None,
    ) -> None:
        self.service = service
        self.deadline = deadline
        self.idempotent = idempotent
        self.key = key
        self.node = node
        self.target: Target | None = None  # where it is now, or was last
        self.tried: set[Endpoint] = set()
        self.attempts = 0
        self.maybe_executed = False
        self.pending: Any = None
        self.abandoned = False


class _Service:
    """The balancer of the nodes that offer one service."""

    __slots__ = ("balancer", "version")

    def __init__(self, balancer: Balancer) -> None:
        self.balancer = balancer
        self.version = -1


class Pool:
    """The nodes of one view as one caller has come to know them.

    `balancer` and `settings` as in `find_balancer`; `rng` returns random numbers from 0 to 1.
    A call is sent at most `max_attempts` times. If it is idempotent, a node has `attempt_timeout`
    seconds to answer; the last one that is tried has all the time that is left. A connection is
    replaced when it is older than `max_age` seconds, up to a fifth less. Of all calls at most the
    share `retry_ratio` is sent again, and `retry_minimum` a second.
    """

    def __init__(
        self,
        *,
        now: float,
        rng: Callable[[], float],
        balancer: Any = "round_robin",
        max_attempts: int = 3,
        attempt_timeout: float | None = None,
        max_age: float | None = None,
        retry_ratio: float = 0.2,
        retry_minimum: float = 10.0,
        ejection: OutlierEjection | None = None,
        **settings: Any,
    ) -> None:
        if not isinstance(max_attempts, int) or not 1 <= max_attempts <= 100:
            raise ValueError(f"max_attempts must be from 1 to 100, not {max_attempts!r}")
        if attempt_timeout is not None and not 0 < attempt_timeout < inf:
            raise ValueError(f"attempt_timeout must be seconds over 0, not {attempt_timeout!r}")
        if max_age is not None and not 1 <= max_age < inf:
            raise ValueError(f"max_age must be from 1 second up, not {max_age!r}")
        self._max_age = max_age
        self._rng = rng
        self._settings = balancer, settings
        self._make_balancer()  # ValueError for what cannot be
        self._max_attempts = max_attempts
        self.attempt_timeout = attempt_timeout
        self.budget = RetryBudget(now, ratio=retry_ratio, minimum=retry_minimum)
        self.hedging = HedgeDelay()
        self.ejection = ejection or OutlierEjection(rng=rng)
        self.targets: dict[str, Target] = {}
        self.view: View | None = None
        self._services: dict[str, _Service] = {}
        self._version = 0
        self._down: set[Target] = set()  # those that wait before they are dialled again
        self._dialling: set[Target] = set()
        self.failovers = 0  # calls sent again

    # The view

    def update(self, view: View, now: float) -> list[Target]:
        """Take a view; return the targets that are no more, whose connections are to be closed."""
        first = self.view is None
        self.view = view
        removed = [target for address, target in self.targets.items() if address not in view]
        for target in removed:
            del self.targets[target.node.address]
            target.gone = True
            self._down.discard(target)
            self._dialling.discard(target)
        for node in view:
            known = self.targets.get(node.address)
            if known is None:
                self.targets[node.address] = Target(node, -inf if first else now)
            else:
                known.node = node
        self.ejection.update(self.targets.values(), now)
        self._rebuild()
        return removed

    def _rebuild(self) -> None:
        self._version += 1

    # Calls

    def pick(
        self, service: str, now: float, key: str | None = None, avoid: Collection[Endpoint] = ()
    ) -> Target:
        """Return where to send a call; Unavailable if there is nowhere.

        Count it with `target.begin(now)` when it is sent. Nodes that are being dialled, or could
        not be, are returned only if there is nothing else.
        """
        found = self._services.get(service)
        if found is None or found.version != self._version:
            found = self._prepare(service, now)
        if self._down or self._dialling:
            avoid = self._with_those_away(avoid, now)
        ejected = self.ejection.next_timeout()
        if ejected is not None and ejected <= now and self.ejection.handle_timeout(now):
            self._rebuild()
            found = self._prepare(service, now)
        target = found.balancer.pick(now, key, avoid)
        if target is None:
            raise Unavailable(f"no node of {service} takes calls", maybe_executed=False)
        return target  # type: ignore[return-value]

    def pick_for(self, call: BalancedCall, now: float) -> Target:
        """Return where to send a call next; CallError when there is no sense in going on."""
        if call.deadline is not None and now >= call.deadline:
            raise DeadlineExceeded(
                f"the deadline passed before a node of {call.service} was reached",
                maybe_executed=call.maybe_executed,
            )
        if call.node is not None:
            target = self.targets.get(call.node)
            if target is None:
                raise Unavailable(
                    f"no node {call.node!r:.100} is known", maybe_executed=call.maybe_executed
                )
        else:
            try:
                target = self.pick(call.service, now, call.key, call.tried)
            except Unavailable as error:
                error.maybe_executed = call.maybe_executed
                raise
            if target in self._down:
                target = self._find_last_resort(call) or target
        if target.retry_at is not None and target.retry_at > now:
            if target.failures and not isinstance(target.why, HandshakeError):
                raise Unavailable(
                    f"no node of {call.service} can be reached; {target.node.address}: "
                    f"{target.why}",
                    maybe_executed=call.maybe_executed,
                )
            raise _to_call_error(target.why, call.maybe_executed)
        call.target = target
        return target

    def _find_last_resort(self, call: BalancedCall) -> Target | None:
        """Return a node that was ejected, tried or is being dialled, when all others are down."""
        left = [
            (target in self._dialling, target in call.tried, self._rng(), target)
            for target in self.offering(call.service)
            if target.node.weight and target not in self._down
        ]
        return min(left, key=lambda each: each[:3])[3] if left else None

    def limit(self, call: BalancedCall) -> float:
        """Return the seconds that the next attempt may take within the call's deadline."""
        if self.attempt_timeout is None or not call.idempotent:
            return inf
        return inf if call.attempts + 1 >= self._max_attempts else self.attempt_timeout

    def offering(self, service: str) -> list[Target]:
        """Return all nodes that offer a service, for calls that go to all of them."""
        return [
            target
            for target in self.targets.values()
            if not target.node.services or service in target.node.services
        ]

    def succeeded(self, target: Target, started: float, now: float) -> None:
        """Take note that a call has ended well, or with an error that its handler meant."""
        target.end(now, now - started)
        self.budget.deposit()

    def cancelled(self, target: Target) -> None:
        """Take note that the caller gave a call up, which tells nothing of the node."""
        target.in_flight -= 1

    def failed(
        self, call: BalancedCall, target: Target, error: CallError, started: float, now: float
    ) -> float | None:
        """Take note that a call has failed; the seconds to wait before `pick_for`, None for never.

        The error stands when this returns None.
        """
        blamed = error.code in _FAULTS
        target.end(now, now - started, blamed)
        if blamed and self.ejection.failed(target, now):
            self._rebuild()
        call.attempts += 1
        if call.attempts == 1:
            self.budget.deposit()
        codes = _REPEATABLE if error.maybe_executed else _ELSEWHERE
        hung = error.code == "deadline_exceeded" and self.attempt_timeout is not None
        call.maybe_executed = call.maybe_executed or error.maybe_executed
        error.maybe_executed = call.maybe_executed  # by the attempts before, too
        if not (hung or error.code in codes) or (call.maybe_executed and not call.idempotent):
            return None
        if call.attempts >= self._max_attempts or (
            call.deadline is not None and now >= call.deadline
        ):
            return None
        again = target in call.tried
        call.tried.add(target)
        if call.node is None and len(self.offering(call.service)) <= len(call.tried):
            again = True
        if not self.budget.withdraw(now):
            return None
        self.failovers += 1
        return _REPEAT_AFTER * (1 + self._rng()) * call.attempts if again or call.node else 0.0

    # Connections

    def dialling(self, target: Target) -> None:
        """Take note that a node is being dialled: until that is over others are preferred."""
        if not target.gone:
            self._dialling.add(target)

    def connected(self, target: Target, now: float) -> None:
        """Take note that a node could be dialled."""
        if self._max_age is not None:
            target.expires_at = now + self._max_age * (1 - 0.2 * self._rng())
        target.failures = 0
        target.retry_at = target.why = None
        self._down.discard(target)
        self._dialling.discard(target)

    def unreachable(self, target: Target, error: Exception, now: float, ready: bool) -> None:
        """Take note that a node could not be dialled; it is left alone for a while.

        Unless it is `ready`, that is connected, and the connection was to be replaced: then that
        is tried again later.
        """
        if ready and self._max_age is not None:
            target.expires_at = now + self._max_age / 2
            return
        longest = min(_LONGEST_BACKOFF, _FIRST_BACKOFF * 2.0 ** min(target.failures, 30))
        target.failures += 1
        target.why = error
        target.retry_at = now + longest * (0.5 + 0.5 * self._rng())
        self._dialling.discard(target)
        if not target.gone:
            self._down.add(target)

    # The rest

    def _make_balancer(self) -> Balancer:
        balancer, settings = self._settings
        return find_balancer(balancer, rng=self._rng, **settings)

    def _prepare(self, service: str, now: float) -> _Service:
        offering = self.offering(service)
        if not offering:
            self._services.pop(service, None)  # or strangers' names would fill the memory
            raise Unavailable(f"no node offers {service!r:.100}", maybe_executed=False)
        found = self._services.get(service)
        if found is None:
            if len(self._services) >= 10_000:  # of nodes that say not what they offer
                self._services.clear()
            found = self._services[service] = _Service(self._make_balancer())
        found.balancer.rebuild(offering, now)
        found.version = self._version
        return found

    def _with_those_away(self, avoid: Collection[Endpoint], now: float) -> Collection[Endpoint]:
        over = [t for t in self._down if t.retry_at is None or t.retry_at <= now]
        self._down.difference_update(over)
        return {*avoid, *self._down, *self._dialling}


def _to_call_error(error: Exception | None, maybe_executed: bool) -> CallError:
    if isinstance(error, HandshakeError):
        return CallError.of(error.code, error.message, maybe_executed=maybe_executed)
    return Unavailable(str(error), maybe_executed=maybe_executed)
