"""Operations as requests to etcd's JSON gateway, over HTTP/1.1, and its answers as theirs.

The gateway is half duplex: a watch is one request whose answer goes on, each message of it a line
of JSON, and a keepalive is a request of its own. int64s are strings, bytes base64, and what is zero
or empty is left out.
"""

from base64 import b64decode, b64encode
from collections.abc import Callable
from typing import Any

from rpc_discovery.documents import encode, parse_json
from rpc_discovery.links import HttpRequest, explain

from .operations import (
    MAX_ANSWER,
    RESOURCE_EXHAUSTED,
    Answer,
    Authenticate,
    Authenticated,
    Change,
    Grant,
    Granted,
    Header,
    KeepAlive,
    KeptAlive,
    KeyValue,
    Leased,
    LeaseKeys,
    Operation,
    Question,
    Range,
    Ranged,
    Revoke,
    Revoked,
    Watch,
    Watched,
    Write,
    Written,
)
from .user import EtcdUser

__all__ = ["Gateway"]


class Gateway:
    """Carries the operations of a machine (`EtcdWatch`, `EtcdRegistration`) as HTTP requests.

    To who does the I/O it is a machine like those for registries; the commands go to `machine`
    itself. A response that is a stream is given to `part` as it comes, and then to `response`.
    """

    def __init__(self, machine: EtcdUser) -> None:
        self.machine = machine
        self._carried: dict[int, Operation] = {}
        self._lines: dict[int, bytearray] = {}  # what has come of the next message of a watch

    @property
    def done(self) -> bool:
        """Whether there is nothing left to do."""
        return self.machine.done

    # Outputs

    def requests_to_send(self) -> list[HttpRequest]:
        """Return the requests to send now, each once."""
        requests = []
        for operation in self.machine.operations_to_send():
            self._carried[operation.id] = operation
            requests.append(_compose(operation))
        return requests

    def requests_to_cancel(self) -> list[int]:
        """Return the ids of the requests to give up, each once."""
        dropped = self.machine.operations_to_cancel()
        for request_id in dropped:
            self._forget(request_id)
        return dropped

    def next_timeout(self) -> float | None:
        """Return when to call `handle_timeout`, in absolute seconds; None if nothing is to come."""
        return self.machine.next_timeout()

    # Inputs

    def handle_timeout(self, now: float) -> list[object]:
        """Do what is due."""
        return self.machine.handle_timeout(now)

    def part(self, request_id: int, data: bytes, now: float) -> list[object]:
        """Take some bytes of a stream."""
        events: list[object] = []
        *lines, rest = data.split(b"\n")
        for line in lines:
            if request_id in self._carried:
                begun = self._lines.pop(request_id, bytearray())
                begun += line
                if begun.strip():
                    events += self._tell(request_id, bytes(begun), now)
        if request_id in self._carried:
            # In place: a long message comes in many pieces.
            begun = self._lines.setdefault(request_id, bytearray())
            begun += rest
            if len(begun) > MAX_ANSWER:
                self._forget(request_id)
                text = f"a message of over {MAX_ANSWER} bytes"
                events += self._fail(request_id, _GatewayError(text, RESOURCE_EXHAUSTED), now)
        return events

    def response(self, request_id: int, status: int, body: bytes, now: float) -> list[object]:
        """Take a response, or the end of a stream."""
        operation = self._carried.get(request_id)
        events: list[object] = []
        if operation is None:
            return events
        if not isinstance(operation.question, Watch):
            self._forget(request_id)
            try:
                answer = _read(operation.question, status, body)
            except _GatewayError as error:
                return self._fail(request_id, error, now)
            return self.machine.result(request_id, answer, now)
        if status != 200:
            self._forget(request_id)
            return self._fail(request_id, _read_error(status, body), now)
        # The last message of a stream may have no end of line.
        rest = bytes(self._lines.get(request_id, b"")) + body
        if rest.strip():
            events = self._tell(request_id, rest, now)
        return events + self.failed(request_id, "etcd ended the watch", now)

    def failed(self, request_id: int, error: str, now: float) -> list[object]:
        """Record that there is no answer, or no more of it."""
        return self.machine.failed(request_id, error, now) if self._forget(request_id) else []

    # The rest

    def _tell(self, request_id: int, line: bytes, now: float) -> list[object]:
        try:
            message = _read_message(_result(200, line))
        except _GatewayError as error:
            self._forget(request_id)
            return self._fail(request_id, error, now)
        return self.machine.message(request_id, message, now)

    def _fail(self, request_id: int, error: "_GatewayError", now: float) -> list[object]:
        return self.machine.failed(request_id, str(error), now, error.code)

    def _forget(self, request_id: int) -> bool:
        self._lines.pop(request_id, None)
        return self._carried.pop(request_id, None) is not None


class _GatewayError(Exception):
    """What came in place of an answer; `code` is gRPC's, 0 if etcd did not say it."""

    def __init__(self, message: str, code: int = 0) -> None:
        super().__init__(message)
        self.code = code


# Requests


def _compose(operation: Operation) -> HttpRequest:
    path, fields = _REQUESTS[type(operation.question)](operation.question)
    headers = [("Content-Type", "application/json"), ("Grpc-Metadata-Hasleader", "true")]
    if operation.token:
        headers.append(("Authorization", operation.token))
    return HttpRequest(
        operation.id,
        operation.endpoint,
        "POST",
        f"{operation.endpoint}/v3/{path}",
        tuple(headers),
        encode({name: value for name, value in fields.items() if value}),
        operation.timeout,
        MAX_ANSWER,
        keep=True,
        stream=isinstance(operation.question, Watch),
    )


def _text(data: bytes) -> str:
    return b64encode(data).decode()


def _range(question: Range) -> tuple[str, dict[str, Any]]:
    key, end = _text(question.key), _text(question.end)
    return "kv/range", {
        "key": key,
        "range_end": end,
        "revision": question.revision,
        "limit": question.limit,
    }


def _write(question: Write) -> tuple[str, dict[str, Any]]:
    steps: list[dict[str, Any]] = [
        {"request_put": {"key": _text(key), "value": _text(value), "lease": question.lease}}
        for key, value in question.puts
    ]
    steps += [{"request_delete_range": {"key": _text(key)}} for key in question.deletes]
    return "kv/txn", {"success": steps}


def _watch(question: Watch) -> tuple[str, dict[str, Any]]:
    fields = {
        "key": _text(question.key),
        "range_end": _text(question.end),
        "start_revision": question.revision,
    }
    return "watch", {"create_request": fields}


_REQUESTS: dict[type, Callable[[Any], tuple[str, dict[str, Any]]]] = {
    Range: _range,
    Write: _write,
    Watch: _watch,
    Grant: lambda question: ("lease/grant", {"TTL": question.ttl}),
    KeepAlive: lambda question: ("lease/keepalive", {"ID": question.lease}),
    LeaseKeys: lambda question: ("lease/timetolive", {"ID": question.lease, "keys": True}),
    Revoke: lambda question: ("lease/revoke", {"ID": question.lease}),
    Authenticate: lambda question: (
        "auth/authenticate",
        {"name": question.user, "password": question.password},
    ),
}

# Answers


def _read(question: Question, status: int, body: bytes) -> Answer:
    value = _result(status, body)
    header = _header(value)
    try:
        if isinstance(question, Range):
            found = [_key_value(kv) for kv in _list(value, "kvs")]
            return Ranged(header, found, value.get("more") is True)
        if isinstance(question, Write):
            return Written(header)
        if isinstance(question, Grant):
            return Granted(header, _int(value, "ID"), _int(value, "TTL"))
        if isinstance(question, KeepAlive):
            return KeptAlive(header, _int(value, "TTL"))
        if isinstance(question, LeaseKeys):
            keys = [b64decode(key, validate=True) for key in _list(value, "keys")]
            return Leased(header, _int(value, "TTL"), keys)
        if isinstance(question, Revoke):
            return Revoked(header)
        token = value.get("token")
        if not isinstance(token, str) or not token.isprintable() or not token.isascii():
            raise ValueError("token must be printable ASCII")
        return Authenticated(token)
    except (TypeError, ValueError) as error:
        raise _GatewayError(f"the answer is not etcd's: {error}") from None


def _read_message(value: dict[str, Any]) -> Watched:
    try:
        changes = []
        for event in _list(value, "events"):
            kind = event.get("type", "PUT")
            changes.append(Change(_key_value(event["kv"]), kind == "DELETE"))
        return Watched(
            _header(value),
            value.get("created") is True,
            value.get("canceled") is True,
            _int(value, "compact_revision"),
            str(value.get("cancel_reason", "")),
            changes,
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise _GatewayError(f"the message is not etcd's: {error}") from None


def _result(status: int, body: bytes) -> dict[str, Any]:
    """Return the object that is the answer; streams wrap it."""
    if status != 200:
        raise _read_error(status, body)
    try:
        value = parse_json(body)
    except ValueError as error:
        raise _GatewayError(str(error)) from None
    if isinstance(value, dict) and "error" in value:
        raise _read_error(status, body)
    if isinstance(value, dict):
        value = value.get("result", value)
    if not isinstance(value, dict):
        raise _GatewayError(f"the answer must be an object, not {value!r:.40}")
    return value


def _read_error(status: int, body: bytes) -> _GatewayError:
    """Return the error that a body tells of, in whichever dialect."""
    try:
        value = parse_json(body)
        error = value["error"] if isinstance(value.get("error"), dict) else value
        code = error.get("grpc_code", error.get("code", 0))
        message = error.get("message", error.get("error"))
        if type(code) is int and isinstance(message, str):
            return _GatewayError(message, code)
    except (AttributeError, ValueError):
        pass
    return _GatewayError(explain(status, body))


def _header(value: dict[str, Any]) -> Header:
    header = value.get("header", {})
    if not isinstance(header, dict):
        raise _GatewayError(f"the header must be an object, not {header!r:.40}")
    try:
        return Header(
            *(_int(header, name) for name in ("cluster_id", "member_id", "revision", "raft_term"))
        )
    except ValueError as error:
        raise _GatewayError(f"the header is not etcd's: {error}") from None


def _key_value(value: Any) -> KeyValue:
    if not isinstance(value, dict):
        raise ValueError(f"a key must be an object, not {value!r:.40}")
    key, data = (b64decode(value.get(name, ""), validate=True) for name in ("key", "value"))
    return KeyValue(key, data, _int(value, "mod_revision"), _int(value, "lease"))


def _int(value: dict[str, Any], name: str) -> int:
    number = value.get(name, 0)
    if isinstance(number, str) and len(number) <= 20:
        number = int(number)
    if type(number) is not int or not -(2**63) <= number < 2**64:
        raise ValueError(f"{name} must be a whole number of 64 bits, not {number!r:.40}")
    return number


def _list(value: dict[str, Any], name: str) -> list[Any]:
    found = value.get(name, [])
    if not isinstance(found, list):
        raise ValueError(f"{name} must be a list, not {found!r:.40}")
    return found
