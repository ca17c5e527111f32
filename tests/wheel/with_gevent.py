"""A user's program with rpc_gevent, for type checkers: nothing in it is run."""

import ssl
from dataclasses import dataclass
from typing import Any, Protocol, assert_type

from rpc_discovery import (
    EtcdDiscovery,
    FileDiscovery,
    Node,
    PemFiles,
    Registry,
    RegistryDiscovery,
    StaticDiscovery,
)
from rpc_gevent import (
    Advertisement,
    BalancedClient,
    BroadcastFailed,
    Client,
    EtcdAdvertisement,
    Pending,
    Reply,
    SavedRegistry,
    Server,
)
from rpc_proto import (
    CallContext,
    CallError,
    ClientConfig,
    Codec,
    DeadlineExceeded,
    HandshakeError,
    NotFound,
    Peer,
    RpcError,
    ServerConfig,
    Unavailable,
    current_call,
    expose,
    quick,
)
from rpc_proto.http import Pages, Promise, Request, Response


@dataclass
class Quotient:
    quotient: int
    remainder: int


class Arith:
    @expose
    def add(self, a: int, b: int) -> int:
        call = current_call()
        assert_type(call, CallContext)
        assert_type(call.deadline, float | None)
        assert_type(call.time_left, float | None)
        assert_type(call.peer, Peer)
        assert_type(call.peer.address, str)
        assert_type(call.cancelled, bool)
        call.set_reply_metadata({"served-by": "a"})
        return a + b

    @expose
    @quick
    def one(self) -> int:
        return 1


assert_type(Arith().one(), int)


class ArithApi(Protocol):
    def add(self, a: int, b: int) -> int: ...

    def divide(self, a: int, b: int = 2) -> Quotient: ...


def identify(token: str | None, peer: Peer) -> str | None:
    return peer.address if token else None


def page(request: Request, now: float) -> Response | Promise:
    return Response.text(request.method)


def serve(context: ssl.SSLContext) -> None:
    server = Server(
        config=ServerConfig(max_calls=10), authenticate=identify, pages=Pages(debug="off")
    )
    assert_type(server.register(Arith()), str)
    server.http.add("/hello", page)
    saved = SavedRegistry(Registry("epoch"), "nodes.json")
    server.mount(saved)
    advertise = [
        Advertisement("http://127.0.0.1:1", "http://127.0.0.1:2"),
        EtcdAdvertisement("http://127.0.0.1:3"),
    ]
    assert_type(server.start("tls://127.0.0.1:0", ssl=context, advertise=advertise), str)
    assert_type(server.start("tcp://127.0.0.1:0", advertise="http://127.0.0.1:1"), str)
    assert_type(server.stats, dict[str, int])
    assert_type(server.snapshot(), dict[str, Any])
    server.set_health("Arith", False)
    server.serve_forever()
    server.stop(grace=1.0)


def call(codec: Codec) -> None:
    with Client.connect(
        "tcp://127.0.0.1:1", timeout=1.0, codec=codec, config=ClientConfig(max_body=1024)
    ) as client:
        assert_type(client, Client)
        assert_type(client.call("Arith.add", 1, 2), Any)
        assert_type(client.call("Arith.add", 1, 2, timeout=1.0, returns=int), int)
        assert_type(client.call("Arith.divide", 7, b=2, returns=Quotient), Quotient)
        assert_type(client.call("Arith.all", returns=list[Quotient]), list[Quotient])
        maybe: Quotient | None = client.call("Arith.divide", 7, returns=Quotient | None)
        assert maybe is None or maybe.quotient
        reply = client.request("Arith.add", 1, 2)
        assert_type(reply, Reply)
        assert_type(reply.metadata["served-by"], str)
        client.notify("Arith.add", 1, 2)
        arith = client.service(ArithApi)
        assert_type(arith, ArithApi)
        assert_type(arith.add(1, 2), int)
        assert_type(arith.divide(7), Quotient)
        assert_type(client.service("Arith"), Any)
        assert_type(client.closed, bool)
        pending = client.start("Arith.divide", 7, returns=Quotient)
        assert_type(pending, Pending[Quotient])
        assert_type(pending.result(), Quotient)
        assert_type(pending.done(), bool)
        assert_type(client.start("Arith.divide", 7), Pending[Any])
        for total in client.call_many("Arith.add", [(1, 2), (3, 4)], returns=int):
            assert_type(total, int)


def balance() -> None:
    tls = PemFiles("ca.pem")
    for discovery in (
        RegistryDiscovery("http://127.0.0.1:1", "http://127.0.0.1:2"),
        EtcdDiscovery("https://127.0.0.1:1", ssl=tls),
        FileDiscovery("nodes.json"),
        StaticDiscovery(["tcp://127.0.0.1:1", Node("tcp://127.0.0.1:2", weight=2.0)]),
        ["tcp://127.0.0.1:1"],
    ):
        with BalancedClient(discovery, balancer="least_loaded", zone="eu-1") as client:
            assert_type(client.call("Arith.add", 1, 2), Any)
            assert_type(client.call("Arith.add", 1, 2, key="a", returns=int), int)
            arith = client.service(ArithApi, idempotent=True)
            assert_type(arith.divide(7), Quotient)
            assert_type(client.nodes, list[Node])
            try:
                results = client.broadcast("Arith.add", 1, 2, policy="all")
                assert_type(results, dict[str, Any])
            except BroadcastFailed as failed:
                assert_type(failed.results, dict[str, Any])


def fail(client: Client) -> str:
    try:
        client.call("Arith.add", 1, 2)
    except (DeadlineExceeded, Unavailable, NotFound) as error:
        assert_type(error.maybe_executed, bool)
        return error.code
    except CallError as error:
        assert_type(error.code, str)
        assert_type(error.message, str)
        assert_type(error.details, Any)
        return error.message
    except HandshakeError as error:
        return error.code
    except RpcError as error:
        return str(error)
    return ""
