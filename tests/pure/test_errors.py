"""The errors that users catch."""

import copy
import pickle

import pytest

import rpc_proto
from rpc_proto import (
    CODES,
    CallError,
    DeadlineExceeded,
    HandshakeError,
    LocalProtocolError,
    NotFound,
    ProtocolError,
    RemoteProtocolError,
    RpcError,
    Unavailable,
)

GRPC = {
    "cancelled",
    "unknown",
    "invalid_argument",
    "deadline_exceeded",
    "not_found",
    "already_exists",
    "permission_denied",
    "resource_exhausted",
    "failed_precondition",
    "aborted",
    "out_of_range",
    "unimplemented",
    "internal",
    "unavailable",
    "data_loss",
    "unauthenticated",
}


def test_codes_are_the_names_of_grpc_without_ok() -> None:
    assert CODES == GRPC


@pytest.mark.parametrize("code", sorted(GRPC))
def test_each_code_has_its_class(code: str) -> None:
    error = CallError.of(code, "text", [1], maybe_executed=False)
    name = "".join(part.title() for part in code.split("_"))
    assert type(error) is getattr(rpc_proto, name)
    assert (error.code, error.message, error.details) == (code, "text", [1])
    assert error.maybe_executed is False


def test_unknown_code_is_a_plain_call_error() -> None:
    error = CallError.of("out_of_tea", "text")
    assert type(error) is CallError
    assert str(error) == "out_of_tea: text"


def test_hierarchy() -> None:
    assert issubclass(ProtocolError, RpcError)
    assert issubclass(LocalProtocolError, ProtocolError)
    assert issubclass(RemoteProtocolError, ProtocolError)
    assert issubclass(HandshakeError, RpcError)
    assert issubclass(CallError, RpcError)
    assert issubclass(DeadlineExceeded, TimeoutError)
    assert issubclass(Unavailable, ConnectionError)


@pytest.mark.parametrize(
    "error",
    [NotFound("text", {"a": 1}, maybe_executed=False), CallError("own", "text"), Unavailable()],
    ids=repr,
)
def test_call_error_survives_pickle_and_copy(error: CallError) -> None:
    for other in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(other) is type(error)
        assert vars(other) == vars(error)


def test_text_names_code_message_and_what_is_supported() -> None:
    assert str(NotFound()) == "not_found"
    assert str(NotFound("no such row")) == "not_found: no such row"
    error = HandshakeError("unimplemented", "no", {"versions": [1]})
    assert str(error) == "unimplemented: no (supported: versions 1)"


def test_errors_raised_by_the_library_are_assumed_to_have_run() -> None:
    assert CallError("own").maybe_executed is True
