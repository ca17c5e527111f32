"""One node in etcd: a lease, its keys, and how they are restored (docs/etcd.md)."""

from collections.abc import Iterable, Mapping
from math import ceil

from rpc_discovery.documents import LONGEST_TTL, SHORTEST_TTL
from rpc_discovery.machines import Rng, SourceFailed
from rpc_discovery.nodes import Node

from .keys import keys_of
from .operations import (
    FAILED_PRECONDITION,
    INVALID_ARGUMENT,
    NOT_FOUND,
    PERMISSION_DENIED,
    UNAUTHENTICATED,
    Answer,
    Grant,
    Granted,
    KeepAlive,
    KeptAlive,
    Leased,
    LeaseKeys,
    Question,
    Revoke,
    Write,
)
from .session import EtcdSession

__all__ = ["USUAL_TTL", "EtcdRegistration"]

USUAL_TTL = 10.0  # seconds
_MOST_WRITES = 100  # keys in one transaction; etcd allows 128
_MOST_BYTES = 1_000_000  # of keys and values in it; etcd allows 1.5 MiB
_MOST_LEASES = 4  # that wait for their end
# With these etcd says that it has not done what was asked.
_NOT_DONE = (INVALID_ARGUMENT, NOT_FOUND, PERMISSION_DENIED, FAILED_PRECONDITION, UNAUTHENTICATED)


class EtcdRegistration(EtcdSession):
    """Keeps a node's keys in etcd, on a lease of `ttl` seconds that is renewed every third of it.

    Whatever happens to etcd or to the lease, it retries: a lease that is lost, or that could not be
    renewed for `ttl` seconds, is never used again; it requests a new lease and puts the keys on it.
    Every `ttl` seconds it checks that the keys still exist. See `EtcdSession` for inputs and
    outputs; the commands are `update` and `stop`. `now` is monotonic.
    """

    def __init__(
        self,
        node: Node,
        endpoints: Iterable[str],
        *,
        now: float,
        rng: Rng,
        prefix: str | bytes = "/rpc",
        ttl: float = USUAL_TTL,
        user: str | None = None,
        password: str | None = None,
        timeout: float = 2.0,
    ) -> None:
        if not SHORTEST_TTL <= ttl <= LONGEST_TTL:
            raise ValueError(f"ttl must be from {SHORTEST_TTL} to {LONGEST_TTL} s, not {ttl!r}")
        super().__init__(
            endpoints, rng=rng, prefix=prefix, user=user, password=password, timeout=timeout
        )
        self.node = node
        self.ttl = ttl
        self.lease = 0  # 0: none
        self._lease_until = 0.0  # counted from the time at which its renewal was sent
        self._renew_at = 0.0
        self._look_at = 0.0
        self._wanted = keys_of(self.prefix, node)
        # What is attached to the lease as far as we know: b"" where the answer is missing.
        self._known: dict[bytes, bytes] = {}
        # Unanswered writes on the lease: etcd may still perform them, after later ones.
        self._unanswered: set[Write] = set()
        self._ended: list[int] = []  # leases to revoke, so that late writes fail
        self._stops_at: float | None = None
        self._finish(now)

    # Getters

    @property
    def done(self) -> bool:
        """Whether it was stopped and has nothing left to do."""
        return self._stops_at is not None and self._asked is None and self._due_at is None

    def registered(self, now: float) -> list[str]:
        """Return the endpoint that has the current description of the node, or None."""
        known = self.lease and now < self._lease_until and self._known == self._wanted
        return [self.endpoint] if known else []

    # Commands

    def update(
        self,
        now: float,
        *,
        services: Iterable[str] | Mapping[str, str] | None = None,
        weight: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """Change the node's description, which is written at once; ValueError as from `Node`."""
        self.node = self.node.replace(services, weight, metadata)
        self._wanted = keys_of(self.prefix, self.node)
        self._finish(now)

    def stop(self, now: float, limit: float = 5.0) -> None:
        """Revoke the lease, which deletes the keys; `done` within `limit` seconds.

        It waits only for a lease that is being granted: etcd refuses writes on a lease that has
        ended.
        """
        if self._stops_at is None:
            self._stops_at = now + limit
            self._backoff_until = None
            if self._asked is not None and not isinstance(self._asked.question, Grant):
                self._drop_question()
        self._finish(now)

    # Planning

    def _plan(self, now: float) -> Question | float | None:
        if self._stops_at is not None:
            self._let_go()
            return Revoke(self._ended[0]) if self._ended else None
        if self.lease and (now >= self._lease_until or self._may_be_undone()):
            self._let_go()
        if not self.lease:
            return Grant(ceil(self.ttl))
        if now >= self._renew_at:
            return KeepAlive(self.lease)
        if self._known != self._wanted:
            return self._compose()
        if self._ended:
            return Revoke(self._ended[0])
        if now >= self._look_at:
            return LeaseKeys(self.lease)
        return min(self._renew_at, self._look_at)

    def _compose(self) -> Write:
        known, wanted = self._known, self._wanted
        puts: list[tuple[bytes, bytes]] = []
        size = 0
        for key, value in wanted.items():
            if known.get(key) != value:
                size += len(key) + len(value)
                if puts and (size > _MOST_BYTES or len(puts) == _MOST_WRITES):
                    break
                puts.append((key, value))
        deletes = [key for key in known if key not in wanted][: _MOST_WRITES - len(puts)]
        for key in (*(key for key, _ in puts), *deletes):
            known[key] = b""
        return Write(tuple(puts), tuple(deletes), self.lease)

    def _may_be_undone(self) -> bool:
        """Whether a late write could undo the current state; on an ended lease it cannot."""
        wanted = self._wanted
        return any(
            any(wanted.get(key) != value for key, value in write.puts)
            or any(key in wanted for key in write.deletes)
            for write in self._unanswered
        )

    def _take(self, question: Question, answer: Answer, now: float) -> None:
        if isinstance(question, Grant):
            assert isinstance(answer, Granted)
            if answer.lease <= 0 or answer.ttl <= 0:
                raise ValueError(f"lease {answer.lease} of {answer.ttl} s is not valid")
            self.lease = answer.lease
            self._known = {}
            self._unanswered = set()
            self._look_at = now + answer.ttl
            self._renewed(answer.ttl)
        elif isinstance(question, KeepAlive):
            assert isinstance(answer, KeptAlive)
            if answer.ttl <= 0:
                self._lost()
            else:
                self._renewed(answer.ttl)
        elif isinstance(question, Write):
            self._known |= question.puts
            for key in question.deletes:
                self._known.pop(key, None)
        elif isinstance(question, LeaseKeys):
            assert isinstance(answer, Leased)
            if answer.ttl <= 0:
                self._lost()
            else:
                self._known = {key: self._known.get(key, b"") for key in answer.keys}
                self._look_at = now + self.ttl
        elif isinstance(question, Revoke):
            self._ended.remove(question.lease)
        if self.lease and self._known == self._wanted:
            self._succeed()

    def _accepts(self, question: Question, code: int, error: str) -> bool:
        if isinstance(question, Revoke) and code in (NOT_FOUND, PERMISSION_DENIED):
            self._ended.remove(question.lease)
            return True
        if code == NOT_FOUND and isinstance(question, (KeepAlive, LeaseKeys, Write)):
            self._lost()
            return True
        return False

    def _refuse(self, question: Question, error: str, code: int, now: float) -> None:
        if isinstance(question, Write) and code not in _NOT_DONE:
            self._unanswered.add(question)
        super()._refuse(question, error, code, now)

    def _drop_question(self) -> None:
        if self._asked is not None and isinstance(self._asked.question, Write):
            self._unanswered.add(self._asked.question)
        super()._drop_question()

    def _fail(self, error: str, now: float, refused: bool = False) -> None:
        super()._fail(error, now, refused)
        # The lease is renewed even if keys are refused, or those it has would be lost.
        if self.lease and now < self._renew_at and self._backoff_until is not None:
            self._backoff_until = min(self._backoff_until, self._renew_at)

    def _renewed(self, ttl: float) -> None:
        self._lease_until = self._asked_at + ttl
        self._renew_at = self._asked_at + ttl / 3 * (1 - 0.2 * self._rng())

    def _lost(self) -> None:
        """Record that etcd does not know the lease."""
        self.lease = 0
        if not self.failures:
            self.failures = 1
            self._events.append(SourceFailed(self.name, "the lease is gone"))

    def _let_go(self) -> None:
        """Stop using a lease that may still exist."""
        if self.lease:
            self._ended = [*self._ended[1 - _MOST_LEASES :], self.lease]
            self.lease = 0

    def _also_at(self) -> float | None:
        return None if self._stops_at is None or self.done else self._stops_at

    def _conclude(self, now: float) -> None:
        if self._stops_at is not None and now >= self._stops_at:
            self._ended = []
            self.lease = 0
            self._backoff_until = None
            self._drop_question()
