"""Option lines: the parsers raise HandshakeError or give values in their bounds."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from budget import spread
from rpc_fuzz.pair import Pair
from rpc_fuzz.strategies import chunks, codecs, cut, mutated, option_lines
from rpc_fuzz.wire import START
from rpc_proto import (
    ClientConfig,
    ConnectionTerminated,
    HandshakeCompleted,
    HandshakeError,
    ServerConfig,
    ServerConnection,
    State,
)
from rpc_proto.wire.handshake import (
    MAX_LINE,
    Answer,
    LineReader,
    Options,
    agree_ping,
    encode_accept,
    encode_options,
    encode_refusal,
    parse_answer,
    parse_options,
)
from support.driving import caused

lines = st.one_of(option_lines(), mutated(option_lines()), st.binary(max_size=200))


def check_features(features: frozenset[str]) -> None:
    assert len(features) <= 32
    assert all(type(name) is str and 0 < len(name.encode()) <= 256 for name in features)


@spread()
@given(lines)
def test_options_are_refused_or_in_their_bounds(data: bytes) -> None:
    try:
        options = parse_options(data.rstrip(b"\n"))
    except HandshakeError as error:
        json.dumps([error.code, error.message, str(error)])
        return
    assert type(options.codec) is str
    assert options.token is None or type(options.token) is str
    assert 256 <= options.max_header < 2**16
    assert 8192 <= options.max_body < 2**32
    assert options.ping is None or 0 <= options.ping <= 2**40
    check_features(options.features)


@spread()
@given(lines)
def test_answers_are_refused_or_in_their_bounds(data: bytes) -> None:
    try:
        answer = parse_answer(data.rstrip(b"\n"))
    except HandshakeError as error:
        json.dumps([error.code.upper(), error.message.upper(), len(error.supported)])
        return
    assert type(answer.codec) is str
    assert 256 <= answer.max_header < 2**16
    assert 8192 <= answer.max_body < 2**32
    assert 1 <= answer.max_calls <= 2**31
    assert answer.ping is None or 1000 <= answer.ping <= 2**40
    check_features(answer.features)


@spread(0.5)
@given(lines, chunks, st.binary(max_size=20))
def test_line_and_what_follows_it_come_apart_at_any_cut(
    data: bytes, sizes: list[int], rest: bytes
) -> None:
    data = b"{" + data.replace(b"\n", b" ") + b"\n"
    reader = LineReader()
    found = None
    tail = b""
    for piece in cut(data + rest, sizes):
        if found is not None:
            tail += piece
            continue
        try:
            found = reader.feed(piece)
        except HandshakeError:
            assert len(data) > MAX_LINE
            return
        if found is not None:
            tail = found[1]
    assert found is not None
    assert found[0] + b"\n" == data
    assert tail == rest


headers = st.integers(256, 2**16 - 1)
bodies = st.integers(8192, 2**32 - 1)
pings = st.none() | st.integers(1, 2**40)
pings_in_force = st.none() | st.integers(1000, 2**40)
features = st.frozensets(st.text(min_size=1, max_size=8), max_size=8)


@spread(0.5)
@given(st.text(max_size=40), st.none() | st.text(max_size=100), headers, bodies, pings, features)
def test_options_come_through_as_they_were(
    codec: str,
    token: str | None,
    header: int,
    body: int,
    ping: int | None,
    named: frozenset[str],
) -> None:
    options = Options(codec, token, header, body, ping, named)
    assert parse_options(encode_options(options)[:-1]) == options


@spread(0.5)
@given(st.text(max_size=40), headers, bodies, st.integers(1, 2**31), pings_in_force, features)
def test_answer_comes_through_as_it_was(
    codec: str, header: int, body: int, calls: int, ping: int | None, named: frozenset[str]
) -> None:
    answer = Answer(codec, header, body, calls, ping, named)
    assert parse_answer(encode_accept(answer)[:-1]) == answer


@spread(0.5)
@given(st.text(max_size=40), st.text(max_size=300), st.lists(st.text(max_size=32), max_size=4))
def test_refusal_comes_through_as_it_was(code: str, message: str, names: list[str]) -> None:
    sent = encode_refusal(code, message, names)
    assert len(sent) <= MAX_LINE
    with pytest.raises(HandshakeError) as caught:
        parse_answer(sent[:-1])
    assert (caught.value.code, caught.value.message) == (code, message)
    assert caught.value.supported == {"versions": [1], "codecs": names}


intervals = st.none() | st.floats(1.0, 1e6)


@spread(0.5)
@given(intervals, pings)
def test_agreed_ping_is_at_least_a_second_and_no_longer_than_asked(
    ours: float | None, theirs: int | None
) -> None:
    agreed = agree_ping(ours, theirs)
    offers = [offer for offer in (ours and ours * 1000, theirs) if offer is not None]
    if not offers:
        assert agreed is None
    else:
        assert 1000 <= agreed <= max(1000, min(offers))


@spread(0.5)
@given(codecs, headers, bodies, headers, bodies, intervals, intervals, st.integers(1, 2**31))
def test_any_two_ends_agree(
    codec: str,
    header: int,
    body: int,
    server_header: int,
    server_body: int,
    ping: Any,
    server_ping: Any,
    calls: int,
) -> None:
    pair = Pair(
        ClientConfig(codec=codec, max_header=header, max_body=body, ping_interval=ping),
        ServerConfig(
            max_header=server_header,
            max_body=server_body,
            ping_interval=server_ping,
            max_calls=calls,
        ),
        chunk=11,
    ).open()
    assert pair.client.agreed == pair.server.agreed
    assert pair.client.agreed == Answer(
        *(codec, server_header, server_body, calls),
        agree_ping(server_ping, ping and int(ping * 1000)),
        frozenset({"streams"}),
    )


@spread()
@given(lines, chunks)
def test_server_accepts_or_refuses_every_line(data: bytes, sizes: list[int]) -> None:
    server = ServerConnection(now=START)
    events = []
    for piece in cut(b"{" + data.lstrip(b"{") + b"\n", sizes):
        events += caused(server.receive_data, START, piece)
    out = server.data_to_send()
    if server.state is State.CLOSING and not isinstance(events[0], HandshakeCompleted):
        assert isinstance(events[0], ConnectionTerminated)
        assert isinstance(events[0].error, HandshakeError)
        assert json.loads(out)["error"]["code"] == events[0].error.code
    else:
        assert json.loads(out.partition(b"\n")[0])["codec"] in ("msgpack", "json")
