"""Etcd operations as requests to etcd's JSON gateway, over HTTP/1.1.

The gateway is half-duplex: a watch is one request with an endless response, one line of JSON per
message, and each keepalive is a request of its own. int64s are strings, bytes are base64, and zero
or empty values are omitted.
"""

from base64 import b64decode, b64encode
from collections.abc import Callable
from typing import Any

from rpc_discovery.documents import encode, parse_json
from rpc_discovery.machines import HttpRequest, HttpResponse, OperationFailed
from rpc_discovery.polling import explain

from .operations import (
    MAX_ANSWER,
    RESOURCE_EXHAUSTED,
    Answer,
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

__all__ = ["Exchange"]


class Exchange:
    """One operation as an HTTP request, and the response as its result.

    Pass the body of a stream to `part` as it arrives, and end with `finish`. Both raise
    OperationFailed for an error from etcd, or for a response that is not etcd's.
    """

    def __init__(self, operation: EtcdOperation) -> None:
        self.request = _compose(operation)
        self._question = operation.question
        self._line = bytearray()  # what has arrived of the next message

    def part(self, data: bytes) -> list[Watched]:
        """Take bytes of a stream, and return the messages they complete."""
        *lines, rest = data.split(b"\n")
        messages = []
        for line in lines:
            self._line += line  # in place: a long message comes in many pieces
            whole, self._line = bytes(self._line), bytearray()
            if whole.strip():
                messages.append(_read_message(_result(200, whole)))
        self._line += rest
        if len(self._line) > MAX_ANSWER:
            raise OperationFailed(f"a message of more than {MAX_ANSWER} bytes", RESOURCE_EXHAUSTED)
        return messages

    def finish(self, response: HttpResponse) -> Answer:
        """Return the answer. A stream has none: its end is a failure."""
        if not isinstance(self._question, Watch):
            return _read(self._question, response.status, response.body)
        if response.status != 200:
            raise _read_error(response.status, response.body)
        raise OperationFailed("etcd ended the watch")


# Requests


def _compose(operation: EtcdOperation) -> HttpRequest:
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
        raise OperationFailed(f"the response is not from etcd: {error}") from None


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
        raise OperationFailed(f"the message is not from etcd: {error}") from None


def _result(status: int, body: bytes) -> dict[str, Any]:
    """Return the object with the answer, which streams wrap."""
    if status != 200:
        raise _read_error(status, body)
    try:
        value = parse_json(body)
    except ValueError as error:
        raise OperationFailed(str(error)) from None
    if isinstance(value, dict) and "error" in value:
        raise _read_error(status, body)
    if isinstance(value, dict):
        value = value.get("result", value)
    if not isinstance(value, dict):
        raise OperationFailed(f"the answer must be an object, not {value!r:.40}")
    return value


def _read_error(status: int, body: bytes) -> OperationFailed:
    """Return the error in a body, in any of its formats."""
    try:
        value = parse_json(body)
        error = value["error"] if isinstance(value.get("error"), dict) else value
        code = error.get("grpc_code", error.get("code", 0))
        message = error.get("message", error.get("error"))
        if type(code) is int and isinstance(message, str):
            return OperationFailed(message, code)
    except (AttributeError, ValueError):
        pass
    return OperationFailed(explain(status, body))


def _header(value: dict[str, Any]) -> Header:
    header = value.get("header", {})
    if not isinstance(header, dict):
        raise OperationFailed(f"the header must be an object, not {header!r:.40}")
    try:
        return Header(
            *(_int(header, name) for name in ("cluster_id", "member_id", "revision", "raft_term"))
        )
    except ValueError as error:
        raise OperationFailed(f"the header is not from etcd: {error}") from None


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
