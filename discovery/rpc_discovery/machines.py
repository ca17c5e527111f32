"""The parts of a discovery: machines, which decide, and operations, which a driver carries out.

A machine requests operations and gets their results. A driver has a carrier for each kind of
operation, keeps the time, and does nothing else (docs/discovery.md, "Machines").
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from .documents import MAX_ANSWER
from .nodes import View
from .views import StaleChanged, ViewChanged

__all__ = [
    "Discovery",
    "Event",
    "FileRead",
    "HttpRequest",
    "HttpResponse",
    "Machine",
    "Operation",
    "OperationFailed",
    "ReadFile",
    "Rng",
    "SourceFailed",
    "SourceReached",
    "ViewMachine",
]

Rng = Callable[[], float]  # a number from 0 up to 1, as random.random gives


# Events


class SourceFailed(NamedTuple):
    """A source (a registry's URL, or etcd's endpoints) failed, after it had worked.

    It is retried until it answers.
    """

    source: str
    reason: str


class SourceReached(NamedTuple):
    """A source gave a valid answer: its first, or the first after a failure."""

    source: str


Event = ViewChanged | StaleChanged | SourceFailed | SourceReached


# Operations


class Operation(Protocol):
    """Something that a machine wants the driver to do."""

    @property
    def kind(self) -> str:
        """Chooses the driver's carrier: "http", "file" or "etcd"."""

    @property
    def id(self) -> int:
        """Identifies the operation in the report of its end; unique within the machine."""

    @property
    def timeout(self) -> float:
        """Seconds that it may take; for a stream, until its first message."""


class HttpRequest(NamedTuple):
    """One HTTP request; its result is an `HttpResponse`.

    A response of more than `max_answer` bytes is a failure. Redirects are ordinary responses.
    `keep` allows reusing the connection for other requests. With `stream`, the body of a successful
    response arrives as messages.
    """

    id: int
    registry: str
    method: str
    url: str
    headers: tuple[tuple[str, str], ...]
    body: bytes
    timeout: float
    max_answer: int = MAX_ANSWER
    keep: bool = False
    stream: bool = False

    @property
    def kind(self) -> str:
        """See `Operation`."""
        return "http"


class HttpResponse(NamedTuple):
    """The status and the body of a response; a streamed body is not included."""

    status: int
    body: bytes


class ReadFile(NamedTuple):
    """Read at most `limit` + 1 bytes of a regular file, unless its state still equals `seen`."""

    id: int
    path: str
    limit: int
    seen: Any
    timeout: float

    @property
    def kind(self) -> str:
        """See `Operation`."""
        return "file"


class FileRead(NamedTuple):
    """The file's state, which changes with the file, and its content; None if unchanged."""

    state: Any
    data: bytes | None


class OperationFailed(Exception):
    """Raised by a carrier whose operation failed; `code` is a gRPC status code, or 0."""

    def __init__(self, message: str, code: int = 0) -> None:
        super().__init__(message)
        self.code = code


# Machines


class Machine(Protocol):
    """Decides which operations to request. It never waits, and never reads a clock.

    After each input, act on the outputs: send and cancel operations, handle the events, and call
    `handle_timeout` at `next_timeout()`, which is never in the past. `now` is monotonic, in
    seconds. Inputs never raise, whatever a source sends.
    """

    @property
    def done(self) -> bool:
        """Whether it has nothing left to do."""

    # Outputs

    def operations_to_send(self) -> list[Any]:
        """Return the operations to start now, each once."""

    def operations_to_cancel(self) -> list[int]:
        """Return the ids of operations that are no longer wanted, each once."""

    def events(self) -> list[Event]:
        """Return what happened since the last call, in order."""

    def next_timeout(self) -> float | None:
        """Return when to call `handle_timeout`, in absolute seconds; None for never."""

    # Inputs

    def handle_timeout(self, now: float) -> None:
        """Do what is due; calling it too early does nothing."""

    def result(self, now: float, operation_id: int, result: Any) -> None:
        """Take the result of an operation."""

    def message(self, now: float, operation_id: int, message: Any) -> None:
        """Take one message of an operation that is a stream."""

    def failed(self, now: float, operation_id: int, error: str, code: int = 0) -> None:
        """Take the failure of an operation; `code` is a gRPC status code if the source sent it."""


class ViewMachine(Machine, Protocol):
    """A machine that keeps a view of the nodes.

    `stale_since` is when the view was last confirmed, None while it is good.
    """

    view: View
    stale_since: float | None


class Discovery(Protocol):
    """A source of nodes for balanced clients. Subclasses inherit `ssl` and `transport`.

    `ssl` is an SSLContext, `PemFiles` or None, for sources at https://. `transport` is "grpc",
    "gateway" or None, and matters to etcd only.
    """

    ssl: Any = None
    transport: str | None = None

    def open(self, now: float, rng: Rng) -> ViewMachine:
        """Return a new machine; `rng` returns numbers from 0 up to 1."""
