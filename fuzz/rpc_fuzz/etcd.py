"""A model of etcd in memory, and who uses it, on a virtual clock and a bad network."""

import heapq
import json
import random
from collections.abc import Callable
from itertools import count
from typing import Any

from rpc_discovery import Node
from rpc_discovery.etcd import EtcdRegistration, EtcdWatch
from rpc_discovery.etcd.operations import (
    Authenticate,
    Authenticated,
    Change,
    EtcdOperation,
    Grant,
    Granted,
    Header,
    KeepAlive,
    KeptAlive,
    KeyValue,
    Leased,
    LeaseKeys,
    Range,
    Ranged,
    Revoke,
    Revoked,
    Watch,
    Watched,
    Write,
    Written,
)

CLUSTER = 77
URLS = ["http://etcd-1:2379", "http://etcd-2:2379"]
PREFIX = b"/rpc"


class Refusal(Exception):
    """What etcd answers in place of an answer."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class Store:
    """What a cluster holds; every answer is linearizable."""

    def __init__(self) -> None:
        self._leases = count(1000)
        self._tokens = count(1)
        self.password: str | None = None
        self.forbidden = False  # whether writing is
        self.term = 1
        self.wipe()

    def wipe(self) -> None:
        self.revision = 1
        self.compacted = 0
        self.kvs: dict[bytes, KeyValue] = {}
        self.history: list[Change] = []
        self.leases: dict[int, tuple[int, float]] = {}  # ttl, end
        self.term = 1
        self.valid: set[str] = set()

    def restart(self, now: float) -> None:
        """Begin a new term, in which each lease has all of its time again, and no token is good."""
        self.term += 1
        self.leases = {lease: (ttl, now + ttl) for lease, (ttl, _) in self.leases.items()}
        self.valid = set()

    @property
    def header(self) -> Header:
        return Header(CLUSTER, 1, self.revision, self.term)

    def write(self, puts: Any, deletes: Any, lease: int = 0) -> None:
        """Change keys at one revision."""
        revision = self.revision + 1
        changes = [Change(KeyValue(key, value, revision, lease)) for key, value in puts]
        changes += [
            Change(KeyValue(key, b"", revision), True) for key in deletes if key in self.kvs
        ]
        for kv, deleted in changes:
            if deleted:
                del self.kvs[kv.key]
            else:
                self.kvs[kv.key] = kv
        if changes:
            self.revision = revision
            self.history += changes

    def end_lease(self, lease: int) -> None:
        del self.leases[lease]
        self.write([], [kv.key for kv in self.kvs.values() if kv.lease == lease])

    def expire(self, now: float) -> None:
        for lease in [lease for lease, (_, end) in self.leases.items() if end <= now]:
            self.end_lease(lease)

    def compact(self) -> None:
        self.compacted = self.revision
        self.history = [change for change in self.history if change.kv.revision > self.compacted]

    def changes(self, start: bytes, end: bytes, revision: int) -> list[Change]:
        return [
            change
            for change in self.history
            if start <= change.kv.key < end and change.kv.revision >= revision
        ]

    def check(self, token: str) -> None:
        if self.password is None:
            return
        if not token:
            raise Refusal(3, "etcdserver: user name is empty")
        if token not in self.valid:
            raise Refusal(16, "etcdserver: invalid auth token")

    def answer(self, question: Any, token: str, now: float) -> Any:
        """Answer a question that is no watch."""
        if isinstance(question, Authenticate):
            if self.password is None:
                raise Refusal(9, "etcdserver: authentication is not enabled")
            if question.password != self.password:
                raise Refusal(3, "etcdserver: authentication failed, invalid user ID or password")
            self.valid.add(new := f"token-{next(self._tokens)}")
            return Authenticated(new)
        self.check(token)
        if self.forbidden and isinstance(question, (Write, Revoke)):
            raise Refusal(7, "etcdserver: permission denied")
        if isinstance(question, Range):
            return self._range(question)
        if isinstance(question, Grant):
            lease = next(self._leases)
            self.leases[lease] = question.ttl, now + question.ttl
            return Granted(self.header, lease, question.ttl)
        ttl, _ = self.leases.get(question.lease, (0, 0.0))
        if isinstance(question, KeepAlive):
            if ttl:
                self.leases[question.lease] = ttl, now + ttl
            return KeptAlive(self.header, ttl)
        if isinstance(question, LeaseKeys):
            keys = [kv.key for kv in self.kvs.values() if kv.lease == question.lease]
            return Leased(self.header, ttl or -1, keys)
        if not ttl:
            raise Refusal(5, "etcdserver: requested lease not found")
        if isinstance(question, Revoke):
            self.end_lease(question.lease)
            return Revoked(self.header)
        assert isinstance(question, Write)
        self.write(question.puts, question.deletes, question.lease)
        return Written(self.header)

    def _range(self, question: Range) -> Ranged:
        if question.revision > self.revision:
            raise Refusal(11, "etcdserver: mvcc: required revision is a future revision")
        if question.revision and question.revision < self.compacted:
            raise Refusal(11, "etcdserver: mvcc: required revision has been compacted")
        kvs = self._at(question.revision or self.revision)
        end = question.end or question.key + b"\0"
        found = [kvs[key] for key in sorted(kvs) if question.key <= key < end]
        limit = question.limit or len(found)
        return Ranged(self.header, found[:limit], len(found) > limit)

    def _at(self, revision: int) -> dict[bytes, KeyValue]:
        """Return the keys as they were: those of now, less what came later."""
        if revision == self.revision:
            return self.kvs
        kvs = {key: kv for key, kv in self.kvs.items() if kv.revision <= revision}
        for change in self.history:
            if change.kv.revision <= revision and not change.deleted:
                kvs[change.kv.key] = change.kv
        for change in self.history:
            if change.kv.revision <= revision and change.deleted:
                known = kvs.get(change.kv.key)
                if known is not None and known.revision < change.kv.revision:
                    del kvs[change.kv.key]
        return kvs


class _Stream:
    def __init__(self, actor: Any, operation: EtcdOperation) -> None:
        self.actor = actor
        self.operation = operation
        self.next = 0  # the revision to tell next
        self.dead = False  # nothing arrives any more, and nobody knows
        self.order = 0.0  # when the last message arrives: no other one overtakes it


class World:
    """Carries operations and time; `run(seconds)` goes from one due moment to the next."""

    def __init__(self, seed: int = 0, start: float = 0.0) -> None:
        self.now = start
        self.random = random.Random(seed)
        self.store = Store()
        self.actors: dict[str, Any] = {}
        self.events: dict[str, list[Any]] = {}
        self.delay = 0.01
        self.loss = 0.0
        self.down: set[str] = set()
        self.frozen: set[str] = set()
        self.operations = 0
        self._streams: list[_Stream] = []
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._held: dict[str, list[Callable[[], None]]] = {url: [] for url in URLS}
        self._order = count()

    # Who uses it

    def register(self, node: Node, ttl: float = 10.0, **settings: Any) -> EtcdRegistration:
        actor = EtcdRegistration(
            node, URLS, now=self.now, rng=self.random.random, prefix=PREFIX, ttl=ttl, **settings
        )
        self._add(node.address, actor)
        return actor

    def watch(self, name: str, **settings: Any) -> EtcdWatch:
        settings = {"prefix": PREFIX, **settings}
        actor = EtcdWatch(URLS, now=self.now, rng=self.random.random, **settings)
        self._add(name, actor)
        return actor

    def _add(self, name: str, actor: Any) -> None:
        self.actors[name] = actor
        self.events[name] = []

    def kill(self, name: str) -> None:
        actor = self.actors.pop(name)
        self._streams = [stream for stream in self._streams if stream.actor is not actor]

    def tell(self, actor: Any, method: str, *args: Any) -> None:
        for name, known in self.actors.items():
            if known is actor:
                getattr(actor, method)(*args)
                self.events[name] += actor.events()
                due = actor.next_timeout()
                assert due is None or due > self.now, (method, due, self.now)

    # What happens to etcd

    def restart(self, wiped: bool = False) -> None:
        if wiped:
            self.store.wipe()
        self.store.restart(self.now)
        self.down = set()
        self.break_streams()

    def stop(self, url: str) -> None:
        self.down.add(url)
        self.break_streams(url)

    def thaw(self) -> None:
        frozen, self.frozen = self.frozen, set()
        for url in frozen:
            held, self._held[url] = self._held[url], []
            for action in held:
                action()

    def break_streams(self, url: str | None = None, silently: bool = False) -> None:
        for stream in list(self._streams):
            operation = stream.operation
            if url in (None, operation.endpoint):
                stream.dead = True
                if not silently:
                    self._streams.remove(stream)
                    self._report(stream.actor, "failed", operation.id, "connection lost")

    # Time

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while True:
            self._flush()
            times = [actor.next_timeout() for actor in self.actors.values()]
            times += [expiry for _, expiry in self.store.leases.values()]
            times.append(self._due[0][0] if self._due else None)
            at = min((at for at in times if at is not None), default=end)
            if at > end:
                break
            self.now = max(self.now, at)
            while self._due and self._due[0][0] <= self.now:
                heapq.heappop(self._due)[2]()
            if not self.down >= set(URLS):
                self.store.expire(self.now)
            else:  # nobody counts the time
                self.store.restart(self.now)
            for actor in list(self.actors.values()):
                due = actor.next_timeout()
                if due is not None and due <= self.now:
                    self.tell(actor, "handle_timeout", self.now)
        self.now = end

    def _later(self, delay: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._due, (self.now + delay, next(self._order), action))

    # The network

    def _flush(self) -> None:
        for actor in list(self.actors.values()):
            for operation in actor.operations_to_send():
                self.operations += 1
                self._send(actor, operation)
            dropped = set(actor.operations_to_cancel())
            for stream in list(self._streams):
                if stream.actor is actor and stream.operation.id in dropped:
                    self._streams.remove(stream)
        for stream in list(self._streams):
            self._tell_changes(stream)

    def _wait(self) -> float:
        return self.delay * (0.5 + self.random.random())

    def _loses(self) -> bool:
        return self.random.random() < self.loss

    def _send(self, actor: Any, operation: EtcdOperation) -> None:
        def give_up() -> None:
            self._tell_once(actor, "failed", operation.id, "no answer")

        if not isinstance(operation.question, Watch):
            self._later(operation.timeout, give_up)
        if not self._loses():
            self._later(self._wait(), lambda: self._arrive(actor, operation))

    def _arrive(self, actor: Any, operation: EtcdOperation) -> None:
        url = operation.endpoint
        if url in self.frozen:
            self._held[url].append(lambda: self._arrive(actor, operation))
            return
        if url in self.down:
            self._report(actor, "failed", operation.id, "connection refused")
            return
        try:
            if isinstance(operation.question, Watch):
                self._open(actor, operation)
                return
            answer = self.store.answer(operation.question, operation.token, self.now)
        except Refusal as refusal:
            self._report(actor, "failed", operation.id, str(refusal), refusal.code)
        else:
            self._report(actor, "result", operation.id, answer)

    def _open(self, actor: Any, operation: EtcdOperation) -> None:
        self.store.check(operation.token)
        if actor._watch is None or actor._watch.id != operation.id:
            return  # its connection was closed meanwhile
        stream = _Stream(actor, operation)
        question = operation.question
        assert isinstance(question, Watch)
        created = Watched(self.store.header, created=True)
        self._say(stream, created)
        stream.next = question.revision
        self._streams.append(stream)

    def _tell_changes(self, stream: _Stream) -> None:
        question = stream.operation.question
        assert isinstance(question, Watch)
        if stream.operation.endpoint in self.frozen or stream.next > self.store.revision:
            return
        if stream.next <= self.store.compacted:
            compacted = self.store.compacted
            self._say(stream, Watched(self.store.header, canceled=True, compacted=compacted))
            self._streams.remove(stream)
            return
        changes = self.store.changes(question.key, question.end, stream.next)
        stream.next = self.store.revision + 1
        if changes:
            self._say(stream, Watched(self.store.header, changes=changes))

    def _say(self, stream: _Stream, message: Watched) -> None:
        stream.order = max(stream.order, self.now + self._wait())
        operation = stream.operation

        def arrive() -> None:
            if not stream.dead:
                self.tell(stream.actor, "message", self.now, operation.id, message)

        heapq.heappush(self._due, (stream.order, next(self._order), arrive))

    def _report(self, actor: Any, method: str, *args: Any) -> None:
        if not self._loses():
            self._later(self._wait(), lambda: self._tell_once(actor, method, *args))

    def _tell_once(self, actor: Any, method: str, *args: Any) -> None:
        self.tell(actor, method, self.now, *args)


def held(store: Store) -> dict[str, set[str]]:
    """Read what the store holds as a person would: the services of each address."""
    found: dict[str, set[str]] = {}
    for key, kv in store.kvs.items():
        if not key.startswith(PREFIX):
            continue
        _, _, service, *_ = key.split(b"/")
        address = json.loads(kv.value)["address"]
        found.setdefault(address, set()).update({service.decode()} - {""})
    return found


def seen(watch: EtcdWatch) -> dict[str, set[str]]:
    return {node.address: set(node.services) for node in watch.view}
