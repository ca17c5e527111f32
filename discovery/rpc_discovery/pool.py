"""The pool of a balanced client: which node gets a call, which to dial, and what to retry.

All decisions are made here, in the caller's thread and without waiting; a driver dials, sends the
calls and reports how they ended.
"""

from collections.abc import Callable, Collection
from math import inf
from typing import Any

from rpc_proto import (
    CallError,
    DeadlineExceeded,
    HandshakeError,
    State,
    Unavailable,
    parse_address,
)

from .balancer import Balancer
from .balancers import find_balancer
from .budget import HedgeDelay, RetryBudget
from .ejection import OutlierEjection
from .endpoints import Endpoint
from .nodes import Node, View

__all__ = ["MOST_DIALS", "MOST_TRIES", "BalancedCall", "Pool", "Target"]

MOST_TRIES = 3  # nodes dialled for one call while others are ready
MOST_DIALS = 64  # at a time, except for calls that cannot continue otherwise

_OPEN = State.OPEN

# The node refused the call before any handler started, or was unreachable: try another.
_ELSEWHERE = frozenset({"unavailable", "resource_exhausted", "unimplemented"})
# May be retried although a handler may have run, if the method is idempotent.
_REPEATABLE = frozenset({"unavailable", "resource_exhausted"})
# The node is to blame.
_FAULTS = frozenset({"unavailable", "deadline_exceeded"})

_FIRST_BACKOFF = 0.1  # seconds until a node that could not be dialled is tried again
_LONGEST_BACKOFF = 10.0
_REPEAT_AFTER = 0.02  # seconds, before a call is sent to the same node again
_SETTLING = 10.0  # seconds after the first nodes in which others count as first, too
_MOST_NAMES = 10_000  # services with a balancer, methods with a delay
_LONGEST_REASON = 200  # characters
_MOST_REASONS = 3


class Target(Endpoint):
    """A node and its connection.

    `client` is the driver's connection, to be replaced at `expires_at`; `dialling` belongs to the
    driver while it connects. `retry_at` is when to dial again after `failures` in a row, the last
    one with `code` and `why`. Times are absolute seconds.
    """

    __slots__ = ("client", "code", "dialling", "expires_at", "failures", "gone", "retry_at", "why")

    def __init__(self, node: Node, since: float) -> None:
        super().__init__(node, since)
        self.client: Any = None
        self.expires_at = inf
        self.dialling: Any = None
        self.failures = 0
        self.retry_at: float | None = None
        self.code = ""
        self.why = ""
        self.gone = False  # from the view

    def is_ready(self) -> bool:
        """Whether it is connected."""
        return self.client is not None and self.client.connection.state is _OPEN

    def why_waited_for(self) -> str:
        """Return the text for a deadline that passed meanwhile."""
        return f" while {self.node.address} was dialled"


class BalancedCall:
    """A call with its attempts. `deadline` is in absolute seconds, or None.

    `pending` and `abandoned` belong to the driver: the call in flight, and whether it was given up.
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
        "reasons",
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
        self.reasons: list[str] = []  # why each earlier attempt failed
        self.attempts = 0
        self.maybe_executed = False
        self.pending: Any = None
        self.abandoned = False

    def time_left(self, now: float, waiting: Callable[[], str] = str) -> float:
        """Return the seconds until the deadline; DeadlineExceeded if it has passed.

        `waiting()` returns what the call was waiting for.
        """
        if self.deadline is None:
            return inf
        if now < self.deadline:
            return self.deadline - now
        raise DeadlineExceeded(
            self.explain(f"the deadline of the call to {self.service} passed{waiting()}"),
            maybe_executed=self.maybe_executed,
        )

    def explain(self, text: str) -> str:
        """Return a text with the reasons of earlier attempts appended."""
        return f"{text}; before that {'; '.join(self.reasons)}" if self.reasons else text


class Pool:
    """The nodes of the current view, as one caller knows them.

    `balancer` and `settings` are as in `find_balancer`; `rng` returns random numbers from 0 to 1.
    A call is sent at most `max_attempts` times. If it is idempotent, each node has
    `attempt_timeout` seconds to answer, and the last one all the remaining time. A connection is
    replaced when it is older than `max_age` seconds, or up to a fifth less. Calls that may have
    been executed, or were refused for lack of capacity, are retried at most `retry_ratio` times per
    successful call plus `retry_minimum` times a second.
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
        self.measures = self._make_balancer().measures  # ValueError for invalid settings
        self._max_attempts = max_attempts
        self.attempt_timeout = attempt_timeout
        self.budget = RetryBudget(now, ratio=retry_ratio, minimum=retry_minimum)
        self.ejection = ejection or OutlierEjection(rng=rng)
        self.targets: dict[str, Target] = {}
        self.view: View | None = None
        self._settled_at: float | None = None
        self._balancers: dict[str, Balancer] = {}  # by service
        self._current: dict[str, Balancer] = {}  # those that know the last change
        # By method: the only node to use until `returns_at`, for speed.
        self.calm: dict[str, Balancer] = {}
        self.returns_at = inf  # when the first ejected node does
        self.ended_well = 0  # calls since the budget was last asked
        self._delays: dict[str, HedgeDelay] = {}  # by method
        self._down: set[Endpoint] = set()  # could not be dialled, and are skipped for a while
        self._up_at = inf  # when the first of them may be dialled again
        self.dials: set[Target] = set()  # being dialled, without a connection
        self._hopeless: set[Endpoint] = set()  # down, or dialled again after a failure
        self._away: set[Endpoint] = set()  # those, and others being dialled
        self.failovers = 0  # calls sent again
        self.closed = False  # no more calls

    # The view

    def update(self, view: View, now: float) -> list[Target]:
        """Take a view; return the removed targets, whose connections must be closed."""
        self.view = view
        removed = [target for address, target in self.targets.items() if address not in view]
        for target in removed:
            del self.targets[target.node.address]
            target.gone = True
            self._down.discard(target)
            self.dials.discard(target)
        if self._settled_at is None and len(view):
            self._settled_at = now + _SETTLING
        # Servers that start together are not known all at once; nor is a node that a caller who
        # has just begun does not know a new one.
        first = self._settled_at is None or now < self._settled_at
        for node in view:
            known = self.targets.get(node.address)
            if known is None:
                self.targets[node.address] = Target(node, -inf if first else now)
            else:
                known.node = node
        self.ejection.update(self.targets.values(), now)
        self._change()
        self._sort_out()
        return removed

    # Calls

    def pick(
        self, service: str, now: float, key: str | None = None, avoid: Collection[Endpoint] = ()
    ) -> Target:
        """Return the node for a call; Unavailable if there is none.

        Count it with `target.begin(now)` when it is sent. `avoid` has the nodes that were tried
        already, which are returned only before unreachable ones. Nodes that are being dialled are
        returned if no other is left, or at once for a call with a key.
        """
        balancer = self._current.get(service)
        if balancer is None:
            balancer = self._prepare(service, now)
        if now >= self.returns_at:
            self.ejection.handle_timeout(now)
            self._change()
            balancer = self._prepare(service, now)
        if avoid or self._away:
            target = self._pick_around(balancer, now, key, avoid)
        else:
            target = balancer.pick(now, key)
        if target is None:
            raise Unavailable(f"no node of {service} accepts calls", maybe_executed=False)
        return target  # type: ignore[return-value]

    def find(
        self,
        method: str,
        now: float,
        key: str | None,
        target: Target | None,
        dial: Callable[[Target], None],
    ) -> Target | None:
        """Return a connected node, and `dial` others on the way.

        `target` is the next node, if it is known already.
        """
        if self.view is None:
            return None
        service = method.rpartition(".")[0]
        for _ in range(MOST_TRIES):
            if target is None:
                target = self.pick(service, now, key)
            if target.is_ready():
                if now >= target.expires_at and target.dialling is None:
                    dial(target)
                self.calm_down(method, service)
                return target
            if target.retry_at is not None and target.retry_at > now:
                break
            if target.dialling is None and len(self.dials) < MOST_DIALS:
                dial(target)
            if key is not None:  # it is worth waiting for
                break
            target = None
        return None

    def pick_for(self, call: BalancedCall, now: float) -> Target:
        """Return the node for the next attempt; CallError if there is no point in continuing."""
        call.time_left(now)
        if call.node is None:
            try:
                target = self.pick(call.service, now, call.key, call.tried)
            except Unavailable as error:
                error.message = call.explain(error.message)
                error.maybe_executed = call.maybe_executed
                raise
        else:
            target = self._find(call.node, call.maybe_executed)
        if target.retry_at is not None and target.retry_at > now:
            down = [target] if call.node else [t for t in self.offering(call.service) if t.why]
            why = "; ".join(t.why for t in down[:_MOST_REASONS])
            raise CallError.of(
                target.code,
                call.explain(f"no node of {call.service} can be reached: {why}"),
                maybe_executed=call.maybe_executed,
            )
        call.target = target
        return target

    def limit(self, call: BalancedCall) -> float:
        """Return the seconds that the next attempt may take within the call's deadline."""
        if self.attempt_timeout is None or not call.idempotent:
            return inf
        return inf if call.attempts + 1 >= self._max_attempts else self.attempt_timeout

    def calm_down(self, method: str, service: str) -> None:
        """Remember the node of a method, if `pick` would always return it."""
        if not self._away:
            if len(self.calm) >= _MOST_NAMES:
                self.calm.clear()
            self.calm[method] = self._current[service]

    def offering(self, service: str) -> list[Target]:
        """Return all nodes that offer a service, for calls that go to all of them."""
        return [
            target
            for target in self.targets.values()
            if not target.node.services or service in target.node.services
        ]

    def has_others(self, call: BalancedCall) -> bool:
        """Whether there are nodes that a call was not sent to."""
        balancer = self._balancers.get(call.service)
        return balancer is not None and len(balancer.known) > len(call.tried)

    def succeeded(self, target: Target, started: float, now: float) -> None:
        """Record that a call succeeded.

        With a balancer that does not use latencies, this only changes `in_flight`, `errors` and
        `ended_well`.
        """
        target.end(now, now - started)
        self.ended_well += 1

    def cancelled(self, target: Target) -> None:
        """Record that the caller cancelled a call, which says nothing about the node."""
        target.in_flight -= 1

    def failed(
        self,
        call: BalancedCall,
        target: Target,
        error: CallError,
        started: float,
        now: float,
        blamed: bool = True,
    ) -> float | None:
        """Record that a call failed; return the seconds until `pick_for`, None for no retry.

        If this returns None, the error is final, and its text includes the earlier attempts.
        `blamed` is False if the failure says nothing new about the node: of all calls that fail
        with a lost connection, one counts.
        """
        if error.code in _FAULTS and blamed:
            target.end(now, now - started, failed=True)
            if self.ejection.failed(target, now):
                self._change()
        elif error.code in _FAULTS or not error.maybe_executed:
            target.in_flight -= 1  # a refusal takes no time, and must not look fast
        else:
            target.end(now, now - started)
        call.attempts += 1
        call.maybe_executed = call.maybe_executed or error.maybe_executed
        if not self._may_repeat(call, error, now):
            error.maybe_executed = call.maybe_executed
            if call.attempts > 1 or error.code == "unavailable":
                error.message = call.explain(f"{target.node.address}: {error.message}")
            return None
        again = call.node is not None or target in call.tried
        call.tried.add(target)
        call.reasons.append(f"{target.node.address}: {error}"[:_LONGEST_REASON])
        del call.reasons[:-_MOST_REASONS]
        self.failovers += 1
        if again or not self.has_others(call):
            return _REPEAT_AFTER * (1 + self._rng()) * call.attempts
        return 0.0

    # Hedging

    def hedge_delay(self, method: str) -> float | None:
        """Return after how many seconds a second node may be asked; None while unknown."""
        delay = self._delays.get(method)
        return None if delay is None else delay.seconds

    def observe(self, method: str, seconds: float) -> None:
        """Record how long a hedged call took."""
        delay = self._delays.get(method)
        if delay is None:
            if len(self._delays) >= _MOST_NAMES:
                self._delays.clear()
            delay = self._delays[method] = HedgeDelay()
        delay.observe(seconds)

    def hedge(self, call: BalancedCall, now: float) -> BalancedCall | None:
        """Return the call to a second node, if there is one and the budget allows it."""
        tried = {*call.tried, *([call.target] if call.target else [])}
        other = BalancedCall(call.service, call.deadline, idempotent=True, key=call.key)
        other.tried = tried
        return other if self.has_others(other) and self._withdraw(now) else None

    # Connections

    def dialling(self, target: Target) -> None:
        """Record that a node is being dialled: meanwhile others are preferred."""
        if not target.gone:
            self.dials.add(target)
            self._sort_out()

    def connected(self, target: Target, now: float) -> None:
        """Record that a node was connected."""
        if self._max_age is not None:
            target.expires_at = now + self._max_age * (1 - 0.2 * self._rng())
        target.failures = 0
        target.retry_at = None
        target.code = target.why = ""
        self._down.discard(target)
        self.dials.discard(target)
        self._sort_out()

    def unreachable(self, target: Target, error: Exception, now: float, ready: bool) -> None:
        """Record that a node could not be dialled; it is skipped for a while.

        If it is `ready`, because its connection was to be replaced, that is retried later.
        """
        self.dials.discard(target)
        if ready and self._max_age is not None:
            target.expires_at = now + self._max_age / 2
        else:
            longest = min(_LONGEST_BACKOFF, _FIRST_BACKOFF * 2.0 ** min(target.failures, 30))
            target.failures += 1
            # Not the error, whose traceback would keep much alive.
            target.code = error.code if isinstance(error, HandshakeError) else "unavailable"
            why = error.message if isinstance(error, (CallError, HandshakeError)) else str(error)
            if target.node.address not in why:
                why = f"{target.node.address}: {why or type(error).__name__}"
            target.why = why[:_LONGEST_REASON]
            target.retry_at = now + longest * (0.5 + 0.5 * self._rng())
            if not target.gone:
                self._down.add(target)
        self._sort_out()

    # The rest

    def _make_balancer(self) -> Balancer:
        balancer, settings = self._settings
        return find_balancer(balancer, rng=self._rng, **settings)

    def _prepare(self, service: str, now: float) -> Balancer:
        offering = self.offering(service)
        if not offering:
            self._balancers.pop(service, None)  # or unknown names would fill the memory
            raise Unavailable(f"no node offers {service!r:.100}", maybe_executed=False)
        balancer = self._balancers.get(service)
        if balancer is None:
            if len(self._balancers) >= _MOST_NAMES:  # of nodes that do not list their services
                self._balancers.clear()
                self._change()
            balancer = self._balancers[service] = self._make_balancer()
        balancer.rebuild(offering, now)
        self._current[service] = balancer
        return balancer

    def _change(self) -> None:
        """Make the balancers notice a change at their next picks."""
        self._current.clear()
        self.calm.clear()
        at = self.ejection.next_timeout()
        self.returns_at = inf if at is None else at

    def _find(self, address: str, maybe_executed: bool) -> Target:
        target = self.targets.get(address) or self.targets.get(str(parse_address(address)))
        if target is None:
            raise Unavailable(f"no node {address!r:.100} is known", maybe_executed=maybe_executed)
        return target

    def _pick_around(
        self, balancer: Balancer, now: float, key: str | None, avoid: Collection[Endpoint]
    ) -> Endpoint | None:
        if now >= self._up_at:
            self._down = {target for target in self._down if _retry_at(target) > now}
            self._sort_out()
        if key is None:
            target = balancer.pick(now, None, {*avoid, *self._away})
            if target not in avoid and target not in self._away:
                return target
        for shunned in ({*avoid, *self._hopeless}, self._hopeless, self._down):
            target = balancer.pick(now, key, shunned)
            if target not in shunned:
                return target
        # All others are down, and an ejected node may have recovered.
        left = [each for each in balancer.known if each.node.weight and each not in self._down]
        return left[int(self._rng() * len(left))] if left else target

    def _sort_out(self) -> None:
        """Update which nodes to skip, and for how long."""
        dialling = self.dials
        self._away = {*self._down, *dialling}
        self.calm.clear()
        self._hopeless = {*self._down, *(target for target in dialling if target.failures)}
        self._up_at = min(map(_retry_at, self._down), default=inf)

    def _may_repeat(self, call: BalancedCall, error: CallError, now: float) -> bool:
        codes = _REPEATABLE if error.maybe_executed else _ELSEWHERE
        hung = error.code == "deadline_exceeded" and self.attempt_timeout is not None
        if (
            not (hung or error.code in codes)
            or (error.maybe_executed and not call.idempotent)
            or call.attempts >= self._max_attempts
            or (call.deadline is not None and now >= call.deadline)
        ):
            return False
        # A call that no node saw has not cost any node anything.
        unseen = error.code == "unavailable" and not error.maybe_executed
        return unseen or self._withdraw(now)

    def _withdraw(self, now: float) -> bool:
        self.budget.deposit(self.ended_well)
        self.ended_well = 0
        return self.budget.withdraw(now)


def _retry_at(target: Any) -> float:
    return inf if target.retry_at is None else target.retry_at
