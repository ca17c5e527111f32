"""docs/protocol.md is what the library does: its test vectors and its diagram."""

import re
from pathlib import Path

import pytest

from rpc_proto import (
    CallCompleted,
    CallFailed,
    ClientConfig,
    ClientConnection,
    HandshakeCompleted,
    ItemsEnded,
    NotFound,
    ServerConfig,
    ServerConnection,
    ServerPort,
    Unimplemented,
)
from rpc_proto.connection.states import mermaid
from support.driving import caused

PAGE = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text()
VECTORS = {
    name: bytes.fromhex(hexes)
    for name, hexes in re.findall(r"```vector ([^\n]+)\n(.*?)```", PAGE, flags=re.S)
}


class Wire:
    """Two ends whose every byte is compared with the page before the other end gets it."""

    def __init__(self, codec: str, token: str | None = None) -> None:
        self.client = ClientConnection(ClientConfig(codec=codec, token=token), now=0.0)
        self.server = ServerConnection(ServerConfig(token=token), now=0.0)
        self.seen: set[str] = set()

    def shake_hands(self) -> None:
        self.server.receive_data(0.0, self.client.data_to_send())
        self.client.receive_data(0.0, self.server.data_to_send())

    def to_server(self, name: str):
        assert self.client.data_to_send().hex() == VECTORS[name].hex(), name
        return caused(self.server.receive_data, 0.0, VECTORS[name])

    def to_client(self, name: str):
        assert self.server.data_to_send().hex() == VECTORS[name].hex(), name
        return caused(self.client.receive_data, 0.0, VECTORS[name])


def test_the_handshake_is_as_written():
    wire = Wire("msgpack", "secret")
    (event,) = wire.to_server("client options")
    assert isinstance(event, HandshakeCompleted)
    (event,) = wire.to_client("server accepts")
    assert event.agreed.max_calls == 1024


def test_the_options_with_features_are_as_written():
    server = ServerPort(now=0.0)
    (event,) = caused(server.receive_data, 0.0, VECTORS["client options with features"])
    assert event.agreed.features == {"streams"}
    assert server.data_to_send() == VECTORS["server accepts"]


def test_the_refusal_is_as_written():
    server = ServerConnection(now=0.0)
    server.receive_data(0.0, b'{"magic":1}\n')
    assert server.data_to_send() == VECTORS["server refuses"]


@pytest.mark.parametrize("name", ["http connect", "http connect from go"])
def test_connect_is_as_written(name):
    client = ClientConnection(ClientConfig(), now=0.0, connect="example.org:7000")
    if name == "http connect":
        assert client.data_to_send() == VECTORS[name]
    server = ServerPort(now=0.0)
    server.receive_data(0.0, VECTORS[name])
    assert server.data_to_send() == VECTORS["http connected"]
    client.receive_data(0.0, VECTORS["http connected"])
    (event,) = caused(
        server.receive_data, 0.0, client.data_to_send().removeprefix(VECTORS["http connect"])
    )
    assert isinstance(event, HandshakeCompleted)


def test_a_connect_that_is_refused_is_as_written():
    server = ServerPort(now=0.0)
    server.receive_data(0.0, b"CONNECT /other HTTP/1.0\r\n\r\n")
    assert server.data_to_send() == VECTORS["http not found"]


def test_the_calls_in_msgpack_are_as_written():
    wire = Wire("msgpack")
    wire.shake_hands()
    client, server = wire.client, wire.server

    client.start_call(0.0, "Arith.add", (1, 2), deadline=1.5)
    (request,) = wire.to_server("msgpack request")
    server.send_response(0.0, request.call, 3)
    (answer,) = wire.to_client("msgpack response")
    assert answer.value == 3

    client.start_call(0.0, "Arith.add", (), {"a": 1, "b": 2}, metadata={"k": "v"})
    (request,) = wire.to_server("msgpack named")
    assert request.call.metadata == {"k": "v"}
    request.call.reply_metadata = {"t": "1"}
    server.send_response(0.0, request.call, None)
    (answer,) = wire.to_client("msgpack null with metadata")
    assert (answer.value, answer.metadata) == (None, {"t": "1"})

    client.start_call(0.0, "Blob.put", (b"\x00\xff",))
    (request,) = wire.to_server("msgpack raw request")
    server.send_response(0.0, request.call, b"\x01\x02")
    (answer,) = wire.to_client("msgpack raw response")
    assert answer.value == b"\x01\x02"

    client.start_call(0.0, "Log.line", ("hi",), one_way=True)
    (request,) = wire.to_server("msgpack one way")
    server.send_response(0.0, request.call, "unheard")
    assert server.data_to_send() == b""

    client.start_call(0.0, "Kv.get", ("x",))
    (request,) = wire.to_server("msgpack call")
    server.send_error(0.0, request.call, NotFound("no x"))
    (failure,) = wire.to_client("msgpack error")
    assert isinstance(failure.error, NotFound)
    assert failure.error.maybe_executed

    client.start_call(0.0, "Nope.x")
    (request,) = wire.to_server("msgpack no arguments")
    server.refuse(0.0, request.call, Unimplemented("no such"))
    (failure,) = wire.to_client("msgpack refusal")
    assert isinstance(failure, CallFailed)
    assert not failure.error.maybe_executed

    call = client.start_call(0.0, "Slow.nap", (9,))
    (request,) = wire.to_server("msgpack slow call")
    client.cancel(0.0, call)
    (cancelled,) = wire.to_server("cancel")
    assert cancelled.call is request.call
    server.shutdown(0.0, grace=5.0)
    wire.to_client("msgpack goaway")


def test_the_calls_in_json_are_as_written():
    wire = Wire("json")
    wire.shake_hands()
    wire.client.start_call(0.0, "Arith.add", (1, 2), deadline=1.5)
    (request,) = wire.to_server("json request")
    wire.server.send_response(0.0, request.call, 3)
    (answer,) = wire.to_client("json response")
    assert isinstance(answer, CallCompleted)
    assert answer.value == 3


def test_ping_and_pong_are_as_written():
    wire = Wire("msgpack")
    wire.shake_hands()
    wire.client.handle_timeout(20.0)
    wire.to_server("ping")
    wire.to_client("pong")


@pytest.mark.fault(82)
@pytest.mark.parametrize(
    ("sent", "goaway"),
    [
        ("unknown type", "goaway for the unknown type"),
        ("calls and a violation", "goaway behind the calls"),
        ("cut frame", "goaway for the cut frame"),
    ],
)
def test_violations_are_answered_as_written(sent, goaway):
    wire = Wire("msgpack")
    wire.shake_hands()
    wire.server.receive_data(0.0, VECTORS[sent])
    wire.server.receive_eof(0.0)
    assert wire.server.data_to_send().hex() == VECTORS[goaway].hex()
    wire.client.start_call(0.0, "Kv.get", ("x",))
    wire.client.start_call(0.0, "Kv.get", ("x",))
    if sent == "calls and a violation":
        assert VECTORS[sent].startswith(wire.client.data_to_send())
    wire.client.receive_data(0.0, VECTORS[goaway])
    wire.client.receive_eof(0.0)
    assert wire.client.calls_in_flight == 0


@pytest.mark.parametrize("name", sorted(VECTORS))
def test_every_vector_of_the_page_is_checked_here(name):
    source = Path(__file__).read_text()
    assert f'"{name}"' in source


def test_the_diagram_is_that_of_the_table():
    assert f"```mermaid\n{mermaid()}\n```" in PAGE


def test_streams_are_as_written():
    wire = Wire("msgpack")
    wire.shake_hands()
    client, server = wire.client, wire.server
    client.start_call(0.0, "Logs.tail", ("app",), server_stream=True)
    (arrived,) = wire.to_server("stream request")
    server.send_item(0.0, arrived.call, "one")
    server.send_item(0.0, arrived.call, b"\x00\xff")
    server.send_response(0.0, arrived.call, None)
    received, completed = wire.to_client("items of the server")
    half = received.call.receiving
    assert [half.take(), half.take()] == ["one", b"\x00\xff"]
    assert isinstance(completed, CallCompleted)
    assert completed.value is None

    call = client.start_call(0.0, "Logs.store", client_stream=True)
    client.send_item(0.0, call, 1)
    client.send_item(0.0, call, 2)
    client.end_items(0.0, call)
    arrived, received, ended = wire.to_server("items of the client")
    assert isinstance(ended, ItemsEnded)
    assert [server.take_item(0.0, received.call) for _ in range(2)] == [1, 2]
    server.send_response(0.0, arrived.call, 3)
    (completed,) = wire.to_client("result of the client stream")
    assert completed.value == 3

    call = client.start_call(0.0, "Logs.store", client_stream=True)
    server.receive_data(0.0, client.data_to_send())
    (arrived,) = server.events()
    client.send_item(0.0, call, bytes(65537))
    first = VECTORS["prefix of the first part"] + bytes(65536)
    assert client.data_to_send() == first + VECTORS["the last part"]
    server.receive_data(0.0, first + VECTORS["the last part"])
    assert server.take_item(0.0, arrived.call) == bytes(65537)
    wire.to_client("credit")
    assert call.sending.credit == 2 * 16384
