"""How a connection wants its transport to be closed, and when."""

import pytest

from rpc_fuzz.wire import CODECS, START, Wire, frame, open_client, open_server
from rpc_proto import ClientConnection, ServerConfig, ServerConnection, State, Wish


def leaving(config: ServerConfig | None = None) -> ServerConnection:
    """A server whose last words are to be written; its client spoke at START."""
    server = open_server(config)
    server.data_to_send()
    server.receive_data(START, frame(0x0C))
    assert server.state is State.CLOSING
    return server


def test_reading_goes_on_while_the_last_words_are_written() -> None:
    server = leaving()
    assert server.wish is Wish.READ
    server.receive_data(START + 0.1, b"what is still on its way")
    assert server.wish is Wish.READ


def test_server_says_that_no_more_comes_when_its_last_words_were_taken() -> None:
    server = leaving()
    version = server.version
    server.next_buffer()
    assert server.wish is Wish.HALF_CLOSE
    assert server.version > version
    assert server.next_timeout() == START + 0.2


def test_peer_that_falls_silent_is_waited_for_no_longer() -> None:
    server = leaving()
    server.data_to_send()
    server.receive_data(START + 0.1, b"more")
    server.handle_timeout(START + 0.2)
    assert server.wish is Wish.HALF_CLOSE
    assert server.next_timeout() == pytest.approx(START + 0.3)
    server.handle_timeout(server.next_timeout())
    assert server.wish is Wish.CLOSE


def test_peer_that_was_silent_long_before_is_not_waited_for() -> None:
    server = open_server()
    server.data_to_send()
    server.shutdown(START + 60.0)
    server.data_to_send()
    assert server.wish is Wish.CLOSE


def test_silence_counts_from_when_all_is_written() -> None:
    server = leaving()
    server.data_to_send()
    server.unsent = 10
    server.handle_timeout(START + 0.2)
    assert server.wish is Wish.HALF_CLOSE
    server.unsent = 0
    assert server.next_timeout() == pytest.approx(START + 0.4)
    server.handle_timeout(server.next_timeout())
    assert server.wish is Wish.CLOSE


def test_peer_that_goes_on_sending_has_until_the_close_timeout() -> None:
    server = leaving(ServerConfig(close_timeout=1.0))
    server.data_to_send()
    for tenth in range(1, 10):
        server.receive_data(START + tenth / 10, b"more")
        server.handle_timeout(START + tenth / 10)
        assert server.wish is Wish.HALF_CLOSE
    server.handle_timeout(START + 1.0)
    assert server.wish is Wish.ABORT


def test_end_of_the_peer_is_the_end() -> None:
    server = leaving()
    server.receive_eof(START)
    assert server.wish is Wish.READ  # its answer may still be read
    server.data_to_send()
    assert server.wish is Wish.CLOSE


def test_server_with_nothing_to_say_half_closes_at_once() -> None:
    server = open_server()
    server.shutdown(START, 5.0)
    server.data_to_send()
    assert server.state is State.CLOSING
    assert server.wish is Wish.HALF_CLOSE


@pytest.mark.parametrize("codec", CODECS)
def test_client_closes_when_its_last_words_were_taken(codec: str) -> None:
    client = open_client(codec=codec)
    client.shutdown(START)
    assert client.wish is Wish.READ
    client.data_to_send()
    assert client.wish is Wish.CLOSE


@pytest.mark.parametrize("end", [ClientConnection, ServerConnection])
def test_end_that_is_lost_wants_its_transport_dropped(end: type) -> None:
    connection = end(now=START)
    assert connection.wish is Wish.READ
    connection.connection_lost(START)
    assert connection.wish is Wish.ABORT


def test_refused_request_is_answered_before_the_end() -> None:
    server = open_server(ServerConfig(refusals=1, max_calls=1))
    wire = Wire()
    server.receive_data(START, b"".join(wire.request(number) for number in (1, 2, 3)))
    assert server.state is State.CLOSING
    assert server.wish is Wish.READ
    assert server.data_to_send()
    assert server.wish is Wish.HALF_CLOSE
