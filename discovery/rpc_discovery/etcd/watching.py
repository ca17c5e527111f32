"""The nodes in etcd, kept up to date by a watch (docs/etcd.md)."""

from collections.abc import Iterable
from math import inf

from rpc_discovery.machines import Rng
from rpc_discovery.nodes import MOST_NODES, Node
from rpc_discovery.views import ViewKeeper

from .keys import Entry, merge, read_entry, start_of
from .operations import (
    OUT_OF_RANGE,
    PERMISSION_DENIED,
    RESOURCE_EXHAUSTED,
    Answer,
    EtcdOperation,
    Header,
    KeyValue,
    Question,
    Range,
    Ranged,
    Watch,
    Watched,
    prefix_end,
)
from .session import EtcdSession

__all__ = ["EtcdWatch"]

_PAGE, _SHORTEST_PAGE = 500, 31  # keys in one answer
_MOST_KEYS = 100_000
_WAVE = 0.1  # seconds from one view to the next
# Seconds after which a watch is suspect that should have reported a change, or that has not heard
# from its leader.
_SILENCE = 60.0


class EtcdWatch(ViewKeeper, EtcdSession):
    """The nodes under a prefix: listed once, then watched from the next revision on.

    `view` is the last good view, whatever happens to etcd; `stale_since` is when it was last
    confirmed, None while it is good. See `EtcdSession` for inputs and outputs. Events are
    `ViewChanged`, `StaleChanged`, `SourceReached` and `SourceFailed`, whose source is all
    endpoints.

    A broken watch resumes where it ended. The nodes are listed again if etcd has compacted the
    revisions since, or if the store is no longer the same: another cluster, a revision or a term
    that went back, or another key in place of a known one.

    While the watch is silent, a probe is sent to the same endpoint every `probe` seconds; if it
    fails, another endpoint is used. Invalid keys and values are skipped and counted in
    `refused_nodes`; more than 100,000 keys or 10,000 nodes are rejected as a whole.
    """

    def __init__(
        self,
        endpoints: Iterable[str],
        *,
        now: float,
        rng: Rng,
        prefix: str | bytes = "/rpc",
        service: str | None = None,
        user: str | None = None,
        password: str | None = None,
        timeout: float = 2.0,
        probe: float = 5.0,
        grace: float = 30.0,
        share: float = 0.5,
    ) -> None:
        if not 0.1 <= probe <= 3600:
            raise ValueError(f"probe must be from 0.1 to 3600 s, not {probe!r}")
        ViewKeeper.__init__(self, grace, share)
        EtcdSession.__init__(
            self, endpoints, rng=rng, prefix=prefix, user=user, password=password, timeout=timeout
        )
        self.rejected = 0  # listings, as a whole
        self.revision = 0  # up to which everything is known
        self.listings = 0
        self.resumed = 0  # resumed watches
        self._start = start_of(self.prefix, service)
        self._end = prefix_end(self._start)
        self._probe = probe
        self._store = Header()  # as it was when it last answered a question
        self._at_least = 0  # the lowest revision of an answer, if it is the same store
        self._entries: dict[bytes, Entry] = {}
        self._keys: dict[str, dict[bytes, None]] = {}  # by address
        self._nodes: dict[str, Node] = {}  # by address, made of all keys of each
        # What it is doing: listing, or else watching, possibly after a question whether the store
        # is still the same.
        self._listing: list[KeyValue] | None = []
        self._page = _PAGE
        self._listed_at = Header()
        self._anew = False  # whether it is another store since the last view
        self._same = False
        self._watch: EtcdOperation | None = None
        self._watching = False  # whether the watch has confirmed its creation
        self._watch_until = 0.0  # until when it has to confirm
        self._heard_at = now  # of the watch
        self._heard_term = 0
        self._probe_at = now
        self._confirmed_at = -inf
        # The view
        self._dirty = False
        self._quiet_until = now
        self._excess = ""
        self._finish(now)

    # Getters

    def age(self, now: float) -> float:
        """Return how many seconds ago etcd confirmed the view; infinite before the first time."""
        return max(0.0, now - self._confirmed_at)

    @property
    def refused_nodes(self) -> int:
        """Number of keys that are not a node's, or whose values are invalid."""
        return len(self._entries) - sum(len(keys) for keys in self._keys.values())

    # Inputs

    def message(self, now: float, operation_id: int, message: Watched) -> None:
        """Take what a watch says."""
        if self._watch is None or self._watch.id != operation_id:
            self.ignored += 1
        elif message.canceled:
            self._close_watch()
            if message.compacted:
                self._listing = []
            else:
                reason = message.reason[:200] or "etcd ended the watch"
                code = PERMISSION_DENIED if "permission" in reason or "token" in reason else 0
                self._refuse(Watch(self._start, self._end, 0), reason, code, now)
        else:
            self._hear(message, now)
        self._finish(now)

    def failed(self, now: float, operation_id: int, error: str, code: int = 0) -> None:
        """Record that an operation failed, or that a watch ended."""
        watch = self._watch
        if watch is None or watch.id != operation_id:
            super().failed(now, operation_id, error, code)
            return
        self._close_watch()
        self._refuse(watch.question, str(error)[:200], code, now)
        self._finish(now)

    # What to ask

    def _plan(self, now: float) -> Question | float | None:
        # The watch may be ahead of the answer to an earlier question.
        self._at_least = max(self.revision, self._listed_at.revision)
        if self._listing is not None:
            start = self._listing[-1].key + b"\0" if self._listing else self._start
            return Range(start, self._end, self._listed_at.revision, self._page)
        if self._watch is None:
            if self._same:
                return Watch(self._start, self._end, self.revision + 1)
            witness = self._witness()
            if witness is not None:
                return Range(witness, revision=self.revision)
            self._listing = []
            return self._plan(now)
        if not self._watching:
            return self._watch_until
        if now < self._probe_at:
            return self._probe_at
        return Range(self._start)

    def _witness(self) -> bytes | None:
        """Return the newest key with a lease, which cannot be the same in another store."""
        leased = [(entry.revision, key) for key, entry in self._entries.items() if entry.lease]
        return max(leased)[1] if leased else None

    def _ask(self, question: Question, now: float) -> None:
        super()._ask(question, now)
        operation = self._asked
        if operation is not None and isinstance(operation.question, Watch):
            self._asked = None  # its results are messages
            self._watch, self._watching = operation, False
            self._watch_until = now + operation.timeout

    # Answers

    def _take(self, question: Question, answer: Answer, now: float) -> None:
        assert isinstance(question, Range)
        assert isinstance(answer, Ranged)
        listing = self._listing
        if not self._is_same_store(answer.header):
            self._start_over()
        elif listing is not None:
            self._list(listing, answer, now)
        elif self._watch is None:
            known = self._entries[question.key]
            found = [(kv.key, kv.revision, kv.lease) for kv in answer.kvs]
            if found == [(question.key, known.revision, known.lease)]:
                self._same = True
                self.resumed += 1
            else:
                self._start_over()
        else:
            self._confirmed_at = now
            self._probe_at = self._next_probe(now)
            # In another term it may be another store that happens to have the same revision.
            later = (answer.header.revision, answer.header.term) > (self.revision, self._heard_term)
            if later and now - self._heard_at > _SILENCE:
                self._close_watch()  # and resume it: its connection may be dead

    def _accepts(self, question: Question, code: int, error: str) -> bool:
        if code != OUT_OF_RANGE or not isinstance(question, Range) or not question.revision:
            return False
        if self._listing is not None:
            return False  # but try once more, after a pause
        if "compacted" in error:
            self._listing = []
        else:  # the revision is one that is still to come
            self._start_over()
        return True

    def _refuse(self, question: Question, error: str, code: int, now: float) -> None:
        if isinstance(question, Watch) and code == RESOURCE_EXHAUSTED:
            self._listing = []  # the changes are too large for one message
        elif isinstance(question, Range) and question.limit:
            # A page that is too large or too slow would be so again.
            self._page = max(_SHORTEST_PAGE, self._page // 2)
        super()._refuse(question, error, code, now)

    def _list(self, listing: list[KeyValue], answer: Ranged, now: float) -> None:
        if not listing:
            self._listed_at = answer.header
        listing += answer.kvs
        if len(listing) > _MOST_KEYS:
            self.rejected += 1
            raise ValueError(f"there are more than {_MOST_KEYS} keys")
        if answer.more and answer.kvs:
            return
        self.listings += 1
        self._page = _PAGE
        self.revision = self._listed_at.revision
        self._listing, self._listed_at = None, Header()
        self._entries, self._keys = {}, {}
        # In order, so that the same messages always make the same view.
        touched = dict.fromkeys(self._nodes)
        for kv in listing:
            touched[self._put(kv)] = None
        self._merge(touched)
        self._same = True
        self._confirmed_at = self._quiet_until = now
        self._dirty = True

    def _hear(self, message: Watched, now: float) -> None:
        header = message.header
        if header.cluster != self._store.cluster or header.revision < self.revision:
            self._start_over()
            return
        self._heard_at = self._confirmed_at = now
        self._heard_term = header.term
        self._probe_at = self._next_probe(now)
        if message.created and not self._watching:
            self._watching = True
            self._succeed()
        touched: dict[str, None] = {}
        known = self.revision
        for kv, deleted in message.changes:
            if kv.revision <= known:
                self.ignored += 1
                continue
            self.revision = max(self.revision, kv.revision)
            touched[self._drop(kv.key)] = None
            if not deleted:
                touched[self._put(kv)] = None
        if len(self._entries) > _MOST_KEYS:
            self._close_watch()
            self._listing = []
        if touched:
            self._merge(touched)
            self._dirty = True

    def _is_same_store(self, header: Header) -> bool:
        """Whether an answer could come from the store that answered last."""
        known, self._store = self._store, header
        return (
            known.cluster in (0, header.cluster)
            and header.term >= known.term
            and header.revision >= self._at_least
        )

    def _start_over(self) -> None:
        """Forget the position: it is another store. The view stays."""
        self._close_watch()
        self._anew = True
        self.revision = 0
        self._listing, self._listed_at = [], Header()

    def _close_watch(self) -> None:
        if self._watch is not None:
            self._dropped.append(self._watch.id)
            self._drop_question()  # which was a probe of it
        self._watch, self._watching, self._same = None, False, False

    def _next_probe(self, now: float) -> float:
        return now + self._probe * (1 - 0.2 * self._rng())

    def _fail(self, error: str, now: float, refused: bool = False) -> None:
        self._close_watch()
        if self._listing is not None:
            self._listing, self._listed_at = [], Header()
        super()._fail(error, now, refused)

    # The view

    def _put(self, kv: KeyValue) -> str:
        """Take a key, and return the address of its node, or ""."""
        entry = read_entry(self.prefix, kv.key, kv.value, kv.revision, kv.lease)
        self._entries[kv.key] = entry
        if entry.node is None:
            return ""
        self._keys.setdefault(entry.node.address, {})[kv.key] = None
        return entry.node.address

    def _drop(self, key: bytes) -> str:
        """Forget a key, and return the address of its node, or ""."""
        entry = self._entries.pop(key, None)
        if entry is None or entry.node is None:
            return ""
        address = entry.node.address
        del self._keys[address][key]
        if not self._keys[address]:
            del self._keys[address]
        return address

    def _merge(self, touched: Iterable[str]) -> None:
        for address in touched:
            keys = self._keys.get(address)
            if not keys:
                self._nodes.pop(address, None)
                continue
            node = merge([self._entries[key] for key in keys])
            if self._nodes.get(address) != node:
                self._nodes[address] = node

    def _also_at(self) -> float | None:
        times = [self._guard.until if not self._excess else None]
        if self._dirty:
            times.append(self._quiet_until)
        return min((at for at in times if at is not None), default=None)

    def _conclude(self, now: float) -> None:
        if self._watch is not None and not self._watching and now >= self._watch_until:
            self._fail(f"no watch within {self._watch.timeout:g} s", now)
        until = self._guard.until
        held_out = until is not None and now >= until and not self._excess
        if held_out or (self._dirty and now >= self._quiet_until):
            self._dirty = False
            self._quiet_until = now + _WAVE
            self._refresh_view(now)
        reason = self.error if self.failures else self._excess
        self._events += self._judge(reason, self._confirmed_at, now)

    def _refresh_view(self, now: float) -> None:
        self._excess = ""
        if len(self._nodes) > MOST_NODES:
            self.rejected += 1
            self._excess = f"there are more than {MOST_NODES} nodes"
            return
        again, self._anew = self._anew, False
        self._events += self._show(dict(self._nodes), again, now)
