"""docs/protocol.md for the tests that show its rules: what they quote, and both ends by hand."""

import json
from collections.abc import Callable, Sequence
from typing import Any

from rpc_fuzz.pair import termination
from rpc_fuzz.wire import (
    ERROR,
    GOAWAY,
    NOT_EXECUTED,
    REQUEST,
    START,
    Frame,
    Wire,
    frame,
    frames_in,
    open_client,
    open_server,
    server_line,
)
from rpc_proto import (
    ClientConfig,
    ClientConnection,
    Event,
    HandshakeCompleted,
    RemoteProtocolError,
    ServerConfig,
    ServerConnection,
    State,
)
from rpc_proto.service.dispatch import Dispatcher
from support.driving import caused

WIRE = Wire("json")


def page(*sentences: str) -> Callable[[Any], Any]:
    """Say which sentences of the page a test shows; tests/pure/test_protocol_page.py reads them."""
    return lambda test: test


class Service:
    """What the servers of these tests offer."""

    def __init__(self) -> None:
        self.ran: list[str] = []

    def add(self, a: int, b: int = 0) -> int:
        self.ran.append("add")
        return a + b

    def nothing(self) -> None:
        self.ran.append("nothing")

    def take(self, data: bytes) -> bytes:
        self.ran.append("take")
        return data


class Served:
    """A server in JSON whose handlers run at once, fed by hand."""

    def __init__(self, config: ServerConfig | None = None) -> None:
        self.server = open_server(config, codec="json")
        self.service = Service()
        self.dispatcher = Dispatcher(clock=lambda: START)
        self.dispatcher.register(self.service, "S")

    def send(self, *data: bytes) -> list[Frame]:
        """Receive bytes; return the frames that come back."""
        self.dispatcher.serve(caused(self.server.receive_data, START, b"".join(data)))
        return frames_in(self.server.data_to_send())

    def ask(self, header: bytes, body: bytes = b"", flags: int = 0) -> Frame:
        """Return the one answer to a request."""
        [one] = self.send(frame(REQUEST, 1, header, body, flags))
        assert one.call_id == 1
        return one


def error_of(one: Frame) -> tuple[str, bool]:
    """Return the code of an ERROR, and whether it says that the call was not executed."""
    assert one.type == ERROR
    return json.loads(one.body)[0], bool(one.flags & NOT_EXECUTED)


def refusal(data: bytes, config: ServerConfig | None = None) -> str:
    """Return the code with which a server refuses a client's first bytes, and closes."""
    server = ServerConnection(config, now=START)
    server.receive_data(START, data)
    assert server.state is State.CLOSING
    fields = server_line(server.data_to_send())
    assert fields["magic"] == 1380991824
    assert type(fields["error"]["message"]) is str
    code: str = fields["error"]["code"]
    return code


def accepted(data: bytes) -> dict[str, Any]:
    """Return the line with which a server accepts a client's first bytes."""
    server = ServerConnection(now=START)
    [event] = caused(server.receive_data, START, data)
    assert isinstance(event, HandshakeCompleted)
    return server_line(server.data_to_send())


def told(data: bytes) -> str | None:
    """Return the code of the HandshakeError that a server's line causes, None if it accepts."""
    client = ClientConnection(ClientConfig(codec="json"), now=START)
    events = caused(client.receive_data, START, data)
    if isinstance(events[0], HandshakeCompleted):
        return None
    assert client.state is State.CLOSING
    code: str = termination(events).code
    return code


def check_violation(end: Any, events: Sequence[Event], last_call: int = 0) -> None:
    """Check that an end says GOAWAY for a violation, as its last frame, and closes."""
    assert isinstance(termination(events), RemoteProtocolError)
    goaway = frames_in(end.data_to_send())[-1]
    assert (goaway.type, goaway.call_id) == (GOAWAY, last_call)
    code, message = end.codec.decode(goaway.body)
    assert code == "invalid_argument"
    assert message
    assert end.state is State.CLOSING


def with_calls(count: int, codec: str = "json") -> tuple[ClientConnection, list[Any]]:
    """A client with calls in flight."""
    client = open_client(codec=codec)
    calls = [client.start_call(START, "S.m") for _ in range(count)]
    client.data_to_send()
    return client, calls


BASE = '"magic":1380991824,"version":1,"codec":"json"'


def options_with(text: str) -> bytes:
    return ("{" + BASE + text + "}\n").encode()
