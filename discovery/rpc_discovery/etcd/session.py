"""What registrations and watches share: one question at a time, to one of several endpoints."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from urllib.parse import urlsplit

from rpc_discovery.machines import Event, Rng, SourceFailed, SourceReached
from rpc_proto import parse_address

from .keys import parse_prefix
from .operations import (
    FAILED_PRECONDITION,
    INVALID_ARGUMENT,
    PERMISSION_DENIED,
    UNAUTHENTICATED,
    Answer,
    Authenticate,
    Authenticated,
    EtcdOperation,
    Question,
    Watched,
)

__all__ = ["EtcdSession"]

_MOST_ENDPOINTS = 16
_FIRST_BACKOFF = 0.1  # seconds; doubled with each failure in a row
_LONGEST_BACKOFF = 2.0
_LONGEST_REFUSED = 15.0  # when etcd refuses, since logins are expensive for it
_SHORTEST_PAUSE = 0.01
_LATE = 1.0  # seconds that a transport may be late with its report


class EtcdSession(ABC):
    """Asks one endpoint, logs in if needed, and moves to the next endpoint on failure.

    A `Machine` whose operations are `EtcdOperation`s. After each input `next_timeout()` is None or
    later than its `now`.
    """

    def __init__(
        self,
        endpoints: Iterable[str],
        *,
        rng: Rng,
        prefix: str | bytes,
        user: str | None,
        password: str | None,
        timeout: float,
    ) -> None:
        self.endpoints = [parse_endpoint(url) for url in endpoints]
        if not 0 < len(self.endpoints) <= _MOST_ENDPOINTS:
            raise ValueError(f"1 to {_MOST_ENDPOINTS} endpoints, not {len(self.endpoints)}")
        if len(set(self.endpoints)) < len(self.endpoints):
            raise ValueError(f"duplicate endpoint: {', '.join(self.endpoints)}")
        self.name = ", ".join(self.endpoints)  # in events
        if (user is None) is not (password is None) or user == "" or password == "":
            raise ValueError("user and password go together, and neither must be empty")
        if not 0 < timeout <= 3600:
            raise ValueError(f"timeout must be from 0 to 3600 s, not {timeout!r}")
        self.prefix = parse_prefix(prefix)
        self.ignored = 0  # reports that were not expected
        self.failed_operations = 0
        self.failures = 0  # in a row
        self.error = ""  # of the last failure
        self._login = Authenticate(user, password) if user is not None and password else None
        self._token = None if self._login else ""
        self._fresh = False  # whether the token has not been accepted yet
        self._timeout = timeout
        self._rng = rng
        self._place = int(rng() * len(self.endpoints))
        self._serial = 0
        self._asked: EtcdOperation | None = None
        self._asked_at = 0.0
        self._due_at: float | None = None
        self._backoff_until: float | None = None
        self._reached = False
        self._outbox: list[EtcdOperation] = []
        self._dropped: list[int] = []
        self._events: list[Event] = []

    # Getters

    @property
    def done(self) -> bool:
        """Whether it has nothing left to do."""
        return False

    @property
    def endpoint(self) -> str:
        """The current endpoint."""
        return self.endpoints[self._place]

    # Outputs

    def operations_to_send(self) -> list[EtcdOperation]:
        """Return the operations to send now, each once."""
        outbox, self._outbox = self._outbox, []
        return outbox

    def operations_to_cancel(self) -> list[int]:
        """Return the ids of the operations to cancel, each once."""
        dropped, self._dropped = self._dropped, []
        return dropped

    def events(self) -> list[Event]:
        """Return what happened since the last call, in order."""
        events, self._events = self._events, []
        return events

    def next_timeout(self) -> float | None:
        """Return when to call `handle_timeout`, in absolute seconds; None for never."""
        times = (self._gives_up_at() if self._asked else self._due_at, self._also_at())
        return min((at for at in times if at is not None), default=None)

    # Inputs

    def handle_timeout(self, now: float) -> None:
        """Do what is due; calling it too early does nothing."""
        self._finish(now)

    def result(self, now: float, operation_id: int, result: Answer) -> None:
        """Take the answer to a question."""
        asked = self._asked
        if asked is None or asked.id != operation_id:
            self.ignored += 1
        else:
            self._asked = None
            if isinstance(result, Authenticated):
                self._token, self._fresh = result.token, True
            else:
                self._fresh = False
                try:
                    self._take(asked.question, result, now)
                except ValueError as error:
                    self._fail(str(error), now)
        self._finish(now)

    def failed(self, now: float, operation_id: int, error: str, code: int = 0) -> None:
        """Record that an operation failed; `code` is a gRPC status code if etcd sent it."""
        if self._asked is None or self._asked.id != operation_id:
            self.ignored += 1
        else:
            question, self._asked = self._asked.question, None
            self._refuse(question, str(error)[:200], code, now)
        self._finish(now)

    def message(self, now: float, operation_id: int, message: Watched) -> None:
        """Take a message of a watch."""
        self.ignored += 1

    # For subclasses

    @abstractmethod
    def _plan(self, now: float) -> Question | float | None:
        """Return what to ask now, or else when to check again."""

    @abstractmethod
    def _take(self, question: Question, answer: Answer, now: float) -> None:
        """Take an answer; ValueError if it is invalid."""

    def _accepts(self, question: Question, code: int, error: str) -> bool:
        """Whether to treat an error of etcd as an answer."""
        return False

    def _also_at(self) -> float | None:
        """Return when something else is due."""
        return None

    def _conclude(self, now: float) -> None:  # noqa: B027 - not all need it
        """Called after every input, before anything is sent."""

    def _succeed(self) -> None:
        """Record a success."""
        if self.failures or not self._reached:
            self._reached = True
            self._events.append(SourceReached(self.name))
        self.failures = 0
        self.error = ""

    def _fail(self, error: str, now: float, refused: bool = False) -> None:
        """Move to the next endpoint, after a pause."""
        if not self.failures:
            where = f"{self.endpoint}: " if len(self.endpoints) > 1 else ""
            self._events.append(SourceFailed(self.name, f"{where}{error}"))
        self._drop_question()
        self.error = f"{self.endpoint}: {error}"
        self.failed_operations += 1
        longest = _LONGEST_REFUSED if refused else _LONGEST_BACKOFF
        longest = min(longest, _FIRST_BACKOFF * 2.0 ** min(self.failures, 30))
        self._backoff_until = now + max(_SHORTEST_PAUSE, longest * self._rng())
        self.failures += 1
        self._place = (self._place + 1) % len(self.endpoints)

    def _drop_question(self) -> None:
        """Forget the question, so that its answer is not mistaken for another one's."""
        if self._asked is not None:
            self._dropped.append(self._asked.id)
            self._asked = None

    def _refuse(self, question: Question, error: str, code: int, now: float) -> None:
        """Handle an error in place of an answer."""
        if isinstance(question, Authenticate):
            if code == FAILED_PRECONDITION:  # authentication is not enabled
                self._token, self._fresh = "", True
                return
        elif self._login is not None and _is_about_tokens(code, error):
            stale, self._token = not self._fresh, None
            if stale:  # tokens expire, and are lost in a restart
                return
        if code and self._accepts(question, code, error):
            return
        refused = code in (INVALID_ARGUMENT, PERMISSION_DENIED, UNAUTHENTICATED)
        if refused:
            who = f"user {self._login.user!r}" if self._login else "without a user"
            error = f"{error} ({who}, prefix {self.prefix.decode(errors='replace')!r})"
        self._fail(error, now, refused)

    def _finish(self, now: float) -> None:
        if self._asked is not None and self._gives_up_at() <= now:
            self._fail(f"no answer within {self._asked.timeout:g} s", now)
        self._conclude(now)
        while self._asked is None:
            if self._backoff_until is not None:
                if now < self._backoff_until:
                    self._due_at = self._backoff_until
                    break
                self._backoff_until = None
            question = self._plan(now)
            if question is None or isinstance(question, (int, float)):
                self._due_at = question
                break
            self._ask(question, now)

    # The rest

    def _ask(self, question: Question, now: float) -> None:
        if self._token is None:
            assert self._login is not None
            question = self._login
        self._serial += 1
        operation = EtcdOperation(
            self._serial, self.endpoint, question, self._timeout, self._token or ""
        )
        self._outbox.append(operation)
        self._asked, self._asked_at = operation, now

    def _gives_up_at(self) -> float:
        assert self._asked is not None
        return self._asked_at + self._asked.timeout + _LATE


def _is_about_tokens(code: int, error: str) -> bool:
    """Whether a new login may help: etcd 3.5.1 reports an old token as permission denied."""
    return code in (PERMISSION_DENIED, UNAUTHENTICATED) or (
        code == INVALID_ARGUMENT and ("user name is empty" in error or "auth store" in error)
    )


def parse_endpoint(url: str) -> str:
    """Return an endpoint as http(s)://host:port; ValueError names the value and the rule."""
    rule = f"an endpoint must be http(s)://host:port, not {url!r:.80}"
    try:
        parts = urlsplit(url if isinstance(url, str) and url.isprintable() else "")
    except ValueError:
        raise ValueError(rule) from None
    beside = (parts.path.removeprefix("/"), parts.query, parts.fragment)
    if parts.scheme not in ("http", "https") or any(beside):
        raise ValueError(rule)
    host = parts.netloc if parts.netloc.rpartition(":")[2].isdigit() else f"{parts.netloc}:2379"
    try:
        where = parse_address(f"tcp://{host}")
    except ValueError as error:
        raise ValueError(f"{rule}: {error}") from None
    return f"{parts.scheme}://{str(where).removeprefix('tcp://')}"
