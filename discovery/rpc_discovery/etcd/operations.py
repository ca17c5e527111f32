"""The operations of etcd's API v3 that are needed, independent of the transport."""

from typing import NamedTuple

__all__ = [
    "Answer",
    "Authenticate",
    "Authenticated",
    "Change",
    "EtcdOperation",
    "Grant",
    "Granted",
    "Header",
    "KeepAlive",
    "KeptAlive",
    "KeyValue",
    "LeaseKeys",
    "Leased",
    "Question",
    "Range",
    "Ranged",
    "Revoke",
    "Revoked",
    "Watch",
    "Watched",
    "Write",
    "Written",
    "prefix_end",
]

# The gRPC status codes that matter here.
INVALID_ARGUMENT = 3
NOT_FOUND = 5
PERMISSION_DENIED = 7
RESOURCE_EXHAUSTED = 8
FAILED_PRECONDITION = 9
OUT_OF_RANGE = 11
UNAUTHENTICATED = 16

MAX_ANSWER = 16 * 1024 * 1024  # bytes; also of one message of a watch


class Header(NamedTuple):
    """Which member answered, and the store's revision at that time. 0 is unknown."""

    cluster: int = 0
    member: int = 0
    revision: int = 0
    term: int = 0


class KeyValue(NamedTuple):
    """A key, with the revision of its last write and its lease, or 0."""

    key: bytes
    value: bytes
    revision: int
    lease: int = 0


class Change(NamedTuple):
    """A key that was written, or deleted at the revision given."""

    kv: KeyValue
    deleted: bool = False


class Range(NamedTuple):
    """Read one key, or all from `key` up to `end`, linearizably; at a revision, or 0 for now."""

    key: bytes
    end: bytes = b""
    revision: int = 0
    limit: int = 0


class Write(NamedTuple):
    """Put keys, attached to the lease, and delete others, in one transaction."""

    puts: tuple[tuple[bytes, bytes], ...]
    deletes: tuple[bytes, ...]
    lease: int


class Grant(NamedTuple):
    """Get a lease for so many seconds."""

    ttl: int


class KeepAlive(NamedTuple):
    """Renew a lease."""

    lease: int


class LeaseKeys(NamedTuple):
    """Ask which keys are attached to a lease."""

    lease: int


class Revoke(NamedTuple):
    """End a lease; its keys go with it."""

    lease: int


class Authenticate(NamedTuple):
    """Log in."""

    user: str
    password: str

    def __repr__(self) -> str:
        return f"Authenticate(user={self.user!r})"


class Watch(NamedTuple):
    """Watch the keys from `key` up to `end`, from a revision on: a stream."""

    key: bytes
    end: bytes
    revision: int


Question = Range | Write | Grant | KeepAlive | LeaseKeys | Revoke | Authenticate | Watch


class Ranged(NamedTuple):
    """The keys, in order, and whether there are more than the limit."""

    header: Header
    kvs: list[KeyValue]
    more: bool = False


class Written(NamedTuple):
    """It is written."""

    header: Header


class Granted(NamedTuple):
    """The lease and its actual time to live, in seconds."""

    header: Header
    lease: int
    ttl: int


class KeptAlive(NamedTuple):
    """The renewed time to live in seconds; 0 or less if there is no such lease."""

    header: Header
    ttl: int


class Leased(NamedTuple):
    """The seconds that the lease has left, 0 or less if there is no such lease, and its keys."""

    header: Header
    ttl: int
    keys: list[bytes]


class Revoked(NamedTuple):
    """The lease was revoked."""

    header: Header


class Authenticated(NamedTuple):
    """The token to use from now on."""

    token: str

    def __repr__(self) -> str:
        return "Authenticated()"


class Watched(NamedTuple):
    """One message of a watch: that it was created, that it was cancelled and why, or changes.

    `compacted` is the first revision that can still be watched, if a compaction is the reason.
    """

    header: Header
    created: bool = False
    canceled: bool = False
    compacted: int = 0
    reason: str = ""
    changes: list[Change] = []


Answer = Ranged | Written | Granted | KeptAlive | Leased | Revoked | Authenticated


class EtcdOperation(NamedTuple):
    """One question to one endpoint; its result is the question's `Answer`.

    `Watch` is a stream of `Watched`. `token` is from a login, or "".
    """

    id: int
    endpoint: str
    question: Question
    timeout: float
    token: str

    @property
    def kind(self) -> str:
        """See `Operation`."""
        return "etcd"

    def __repr__(self) -> str:
        return f"<EtcdOperation {self.id} at {self.endpoint}: {self.question!r}>"


def prefix_end(prefix: bytes) -> bytes:
    r"""Return the first key after all with this prefix; b"\0", as in etcd, if there is none."""
    kept = prefix.rstrip(b"\xff")
    return kept[:-1] + bytes([kept[-1] + 1]) if kept else b"\0"
