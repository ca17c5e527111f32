"""The time of HTTP connections that share it, and pages that are made once for many."""

import pytest

from rpc_proto import Peer, ServerConfig, ServerPort
from rpc_proto.http import HttpError, Request, Response
from rpc_proto.http.making import FRESH, Making, Pieces, Shared
from rpc_proto.http.turns import HttpTurns
from rpc_proto.pages.access import check_writer

REQUEST = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
LOCAL = "127.0.0.1:5"


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Server:
    """Connections of one server, each of whose requests takes some time."""

    def __init__(self, number: int, seconds: float) -> None:
        self.clock = Clock()
        self.seconds = seconds
        turns = HttpTurns(self.clock)
        self.connections = [
            ServerPort(ServerConfig(), now=0.0, application=self.work, turns=turns)
            for _ in range(number)
        ]

    def work(self, request: Request, now: float) -> Response:
        self.clock.now += self.seconds
        return Response.text("done")

    def run(self) -> list[float]:
        """Serve to the end; how long each stretch without a rest was."""
        stretches = []
        while True:
            due = [at for c in self.connections if (at := c.next_timeout()) and at < 5.0]
            if not due:
                return stretches
            start = self.clock.now = max(self.clock.now + 1e-5, min(due))
            for connection in self.connections:
                at = connection.next_timeout()
                if at is not None and at <= start:
                    connection.handle_timeout(start)
            stretches.append(self.clock.now - start)


def answered(connection: ServerPort) -> int:
    return connection.data_to_send().count(b"done\n")


@pytest.mark.fault(98)
def test_connections_together_take_little_time_at_a_stretch():
    server = Server(number=200, seconds=0.0005)
    for connection in server.connections:
        connection.receive_data(server.clock.now, REQUEST * 5)
    assert server.clock.now < 0.003  # of 0.5 s that all of it takes
    assert max(server.run()) < 0.004
    assert [answered(connection) for connection in server.connections] == [5] * 200


@pytest.mark.fault(98)
def test_who_waits_is_served_before_who_comes_later():
    server = Server(number=3, seconds=0.0021)
    first, second, third = server.connections
    for connection in (first, second):
        connection.receive_data(server.clock.now, REQUEST)
    assert [answered(first), answered(second)] == [1, 0]
    server.clock.now += 0.0012  # the rest is over, and the turn of the second has not come
    at = second.next_timeout()
    assert at is not None
    third.receive_data(min(server.clock.now, at - 1e-6), REQUEST)
    server.clock.now = max(server.clock.now, at)
    second.handle_timeout(server.clock.now)
    assert answered(second) == 1


def test_without_a_clock_sixteen_requests_are_served_at_a_time():
    connection = ServerPort(
        ServerConfig(), now=0.0, application=lambda request, now: Response.text("done")
    )
    connection.receive_data(0.0, REQUEST * 20)
    assert answered(connection) == 16
    at = connection.next_timeout()
    assert at is not None
    assert 0.0 < at < 0.01
    connection.handle_timeout(at)
    assert answered(connection) == 4


# Shared pages


def pieces(made: list[int], count: int = 3) -> Pieces:
    for _ in range(count - 1):
        yield
    made.append(1)
    return Response.text(f"page {len(made)}")


@pytest.mark.fault(79)
def test_a_page_is_made_once_for_all_who_ask_meanwhile():
    shared, made = Shared(), list[int]()
    first = shared.ask("page", 0.0, lambda: pieces(made))
    second = shared.ask("page", 0.1, lambda: pieces(made))
    assert isinstance(first, Making)
    assert second is first
    first.advance(0.2)
    first.advance(0.3)
    assert shared.ask("page", 0.3, lambda: pieces(made)) is first.response
    assert made == [1]


@pytest.mark.fault(79)
def test_a_page_is_shared_for_a_moment_only_and_by_its_key():
    shared, made = Shared(), list[int]()

    def ask(key: str, now: float) -> bytes:
        response = shared.ask(key, now, lambda: pieces(made, 1))
        assert isinstance(response, Response)
        return response.body

    assert ask("a", 0.0) == ask("a", FRESH * 0.9) == b"page 1\n"
    assert ask("b", 0.1) == b"page 2\n"
    assert ask("a", FRESH) == b"page 3\n"


def test_a_page_that_fails_is_tried_again():
    def fail() -> Pieces:
        yield
        raise ValueError("no")

    shared = Shared()
    failing = shared.ask("page", 0.0, fail)
    connection = ServerPort(ServerConfig(), now=0.0, application=lambda request, now: failing)
    connection.receive_data(0.0, REQUEST)
    assert connection.data_to_send().startswith(b"HTTP/1.1 500 ")
    made: list[int] = []
    assert isinstance(shared.ask("page", 0.0, lambda: pieces(made, 1)), Response)


@pytest.mark.fault(146)
@pytest.mark.parametrize("path", ["/", "/nothing", "/rpc"])
def test_no_answer_may_be_taken_for_something_else(path):
    def application(request: Request, now: float) -> Response:
        if request.path == "/nothing":
            raise HttpError(404, "there is nothing")
        return Response(200, b"[]", [("ETag", '"1"')])

    connection = ServerPort(ServerConfig(), now=0.0, application=application)
    connection.receive_data(0.0, REQUEST.replace(b" / ", f" {path} ".encode()))
    assert connection.data_to_send().count(b"X-Content-Type-Options: nosniff\r\n") == 1


# Who may write


@pytest.mark.fault(138)
@pytest.mark.parametrize(
    ("fields", "peer", "with_token", "passes"),
    [
        ({"host": "127.0.0.1:1"}, LOCAL, False, True),
        ({"host": "localhost"}, LOCAL, False, True),
        ({"host": "evil.example"}, LOCAL, False, False),
        ({}, LOCAL, False, False),
        ({"host": "evil.example"}, LOCAL, True, True),
        ({"host": "registry.example"}, "10.0.0.1:5", False, True),
        ({"host": "registry.example"}, "unix", False, True),
        ({"host": "localhost:1", "origin": "http://localhost:1"}, LOCAL, False, True),
        ({"host": "localhost:1", "origin": "http://localhost:2"}, LOCAL, False, False),
        ({"host": "localhost:1", "origin": "null"}, LOCAL, True, False),
        ({"host": "a.example", "origin": "https://a.example"}, "10.0.0.1:5", False, False),
        ({"host": "a.example", "origin": "https://a.example"}, "10.0.0.1:5", True, True),
        ({"host": "10.0.0.2", "origin": "http://evil.example"}, "10.0.0.1:5", True, False),
    ],
)
def test_no_page_of_a_stranger_may_write(fields, peer, with_token, passes):
    request = Request("POST", "/registry/nodes", fields, peer=Peer(peer))
    if passes:
        check_writer(request, with_token)
    else:
        with pytest.raises(HttpError, match=r"Origin is|Host names") as refused:
            check_writer(request, with_token)
        assert refused.value.status == 403
