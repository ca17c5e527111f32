"""Operations of etcd over gRPC, with the stubs of aetcd on our own channels."""

import asyncio
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import grpc
from aetcd import rpc

from rpc_common.discovery.carriers import describe
from rpc_common.discovery.files import read_regular
from rpc_common.transport.forks import Forks
from rpc_discovery import OperationFailed, PemFiles
from rpc_discovery.etcd.operations import (
    FAILED_PRECONDITION,
    INVALID_ARGUMENT,
    MAX_ANSWER,
    NOT_FOUND,
    OUT_OF_RANGE,
    PERMISSION_DENIED,
    UNAUTHENTICATED,
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

__all__ = ["BORN", "Grpc"]

_MAX_PEM = 1024 * 1024  # bytes of a file

BORN = Forks.count  # in the child of a process that uses it, grpc hangs

# What only etcd says, so that its connection is good.
_ANSWERS = (
    INVALID_ARGUMENT,
    NOT_FOUND,
    PERMISSION_DENIED,
    FAILED_PRECONDITION,
    OUT_OF_RANGE,
    UNAUTHENTICATED,
)

_OPTIONS = [
    # The machines decide what is tried again, when and where: a channel that failed is thrown
    # away, and the next one must not inherit its back-off.
    ("grpc.enable_retries", 0),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.service_config_disable_resolution", 1),
    ("grpc.enable_http_proxy", 0),
    ("grpc.max_receive_message_length", MAX_ANSWER),
    ("grpc.max_send_message_length", -1),
    # etcd takes pings each 5 s and not more. Without the last one, a minute is what it waits.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 2_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.ping_timeout_ms", 2_000),
]


class Grpc:
    """Carries out operations of etcd on an event loop, with one channel per endpoint.

    `tls` is for endpoints at https://.
    """

    def __init__(self, tls: PemFiles | None) -> None:
        self._tls = tls
        self.links: dict[str, _Link] = {}
        self.closing: set[asyncio.Task[None]] = set()

    async def carry(self, operation: EtcdOperation, message: Callable[[Watched], None]) -> Answer:
        """Return etcd's answer; OperationFailed for an error of etcd, or of the way there."""
        code = 0
        link = None
        try:
            async with asyncio.timeout(operation.timeout) as limit:
                link = self._link(operation.endpoint)

                def hear(heard: Watched) -> None:
                    limit.reschedule(None)
                    message(heard)

                return await link.ask(operation, hear)
        except grpc.aio.AioRpcError as error:
            reason = str(error.details()).rpartition("last error: ")[2]
            if "Unwrap failed" in reason:  # an alert after the handshake, as in TLS 1.3
                reason += ": TLS was closed; the client certificate may be missing or invalid"
            code = error.code().value[0]
        except Exception as error:  # whatever else responds there
            reason = describe(error, operation.timeout)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            reason = "the channel was closed"  # for what befell another operation
        if code not in _ANSWERS and link is self.links.get(operation.endpoint):
            self._close(operation.endpoint)
        raise OperationFailed(reason, code)

    def close(self) -> None:
        """Start to close the channels (see `closing`) and cancel running operations."""
        for endpoint in list(self.links):
            self._close(endpoint)

    def _link(self, endpoint: str) -> "_Link":
        if endpoint not in self.links:
            self.links[endpoint] = _Link(endpoint, self._tls)
        return self.links[endpoint]

    def _close(self, endpoint: str) -> None:
        link = self.links.pop(endpoint, None)
        if link is not None:
            task = asyncio.get_running_loop().create_task(link.channel.close())
            self.closing.add(task)
            task.add_done_callback(self.closing.discard)


class _Link:
    """A channel to an endpoint, and etcd's methods on it."""

    def __init__(self, endpoint: str, tls: PemFiles | None) -> None:
        parts = urlsplit(endpoint)
        where = f"dns:///{parts.netloc}"
        if parts.scheme == "https":
            assert tls is not None
            files = (tls.authority, tls.key or tls.certificate, tls.certificate)
            pems = (None if file is None else read_regular(file, _MAX_PEM)[1] for file in files)
            credentials = grpc.ssl_channel_credentials(*pems)
            self.channel = grpc.aio.secure_channel(where, credentials, options=_OPTIONS)
        else:
            self.channel = grpc.aio.insecure_channel(where, options=_OPTIONS)
        self._methods: dict[str, Any] = {}
        for stub in (rpc.KVStub, rpc.LeaseStub, rpc.WatchStub, rpc.AuthStub):
            self._methods |= vars(stub(self.channel))

    async def ask(self, operation: EtcdOperation, hear: Callable[[Watched], None]) -> Answer:
        """Return the answer; a watch has none, and `hear` gets its messages until it ends."""
        question = operation.question
        name, compose = _REQUESTS[type(question)]
        method, request = self._methods[name], compose(question)
        metadata = [("hasleader", "true")]
        if operation.token:
            metadata.append(("token", operation.token))
        if not isinstance(question, (KeepAlive, Watch)):
            # etcd gets the time limit, too.
            return _read(
                question, await method(request, metadata=metadata, timeout=operation.timeout)
            )
        call = method(iter([request]), metadata=metadata)
        try:
            while (message := await call.read()) is not grpc.aio.EOF:
                if isinstance(question, KeepAlive):
                    return KeptAlive(_header(message), message.TTL)
                hear(_message(message))
        finally:
            call.cancel()
        raise ValueError("etcd ended the watch" if isinstance(question, Watch) else "no answer")


# Requests


def _write(question: Write) -> Any:
    steps = [
        rpc.RequestOp(request_put=rpc.PutRequest(key=key, value=value, lease=question.lease))
        for key, value in question.puts
    ]
    steps += [
        rpc.RequestOp(request_delete_range=rpc.DeleteRangeRequest(key=key))
        for key in question.deletes
    ]
    return rpc.TxnRequest(success=steps)


def _watch(question: Watch) -> Any:
    create = rpc.WatchCreateRequest(
        key=question.key, range_end=question.end, start_revision=question.revision
    )
    return rpc.WatchRequest(create_request=create)


_REQUESTS: dict[type, tuple[str, Callable[[Any], Any]]] = {
    Range: (
        "Range",
        lambda question: rpc.RangeRequest(
            key=question.key,
            range_end=question.end,
            revision=question.revision,
            limit=question.limit,
        ),
    ),
    Write: ("Txn", _write),
    Watch: ("Watch", _watch),
    Grant: ("LeaseGrant", lambda question: rpc.LeaseGrantRequest(TTL=question.ttl)),
    KeepAlive: ("LeaseKeepAlive", lambda question: rpc.LeaseKeepAliveRequest(ID=question.lease)),
    LeaseKeys: (
        "LeaseTimeToLive",
        lambda question: rpc.LeaseTimeToLiveRequest(ID=question.lease, keys=True),
    ),
    Revoke: ("LeaseRevoke", lambda question: rpc.LeaseRevokeRequest(ID=question.lease)),
    Authenticate: (
        "Authenticate",
        lambda question: rpc.AuthenticateRequest(name=question.user, password=question.password),
    ),
}

# Answers


def _read(question: Question, value: Any) -> Answer:
    header = _header(value)
    if isinstance(question, Range):
        return Ranged(header, [_key_value(kv) for kv in value.kvs], value.more)
    if isinstance(question, Write):
        return Written(header)
    if isinstance(question, Grant):
        return Granted(header, value.ID, value.TTL)
    if isinstance(question, LeaseKeys):
        return Leased(header, value.TTL, list(value.keys))
    if isinstance(question, Revoke):
        return Revoked(header)
    return Authenticated(value.token)


def _message(value: Any) -> Watched:
    header = _header(value)
    changes = [
        Change(_key_value(event.kv), event.type == rpc.Event.DELETE) for event in value.events
    ]
    return Watched(
        header,
        value.created,
        value.canceled,
        value.compact_revision,
        value.cancel_reason,
        changes,
    )


def _header(value: Any) -> Header:
    if value is None:  # as gRPC has it
        raise ValueError("the answer is not etcd's")
    header = value.header
    return Header(header.cluster_id, header.member_id, header.revision, header.raft_term)


def _key_value(kv: Any) -> KeyValue:
    return KeyValue(kv.key, kv.value, kv.mod_revision, kv.lease)
