"""Values, headers and whole calls come out as they went in, in both codecs."""

from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from enum import Enum
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from budget import spread
from rpc_fuzz.pair import Host, Pair
from rpc_fuzz.strategies import chunks, codecs, metadata, names, texts, values
from rpc_fuzz.wire import NAMED, RAW, Wire
from rpc_proto import CallError, State, current_call, find_codec
from rpc_proto.wire.bounds import MAX_TIMEOUT
from rpc_proto.wire.headers import Headers
from rpc_proto.wire.typed import decoder


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


@dataclass
class Leaf:
    name: str
    colour: Colour
    data: bytes
    at: datetime
    day: date
    weight: float | None = None


@dataclass
class Tree:
    leaves: list[Leaf]
    by_name: dict[str, int]
    pair: tuple[int, str] = (0, "")
    tags: set[str] = field(default_factory=set)


moments = st.datetimes(timezones=st.just(UTC))
leaves = st.builds(
    Leaf,
    texts,
    st.sampled_from(Colour),
    st.binary(max_size=20),
    moments,
    st.dates(),
    st.none() | st.floats(allow_nan=False, allow_infinity=False),
)
trees = st.builds(
    Tree,
    st.lists(leaves, max_size=3),
    st.dictionaries(texts, st.integers(-(2**63), 2**64 - 1), max_size=3),
    st.tuples(st.integers(-9, 9), texts),
    st.sets(texts, max_size=3),
)


class Echo:
    def echo(self, *args: Any, **kwargs: Any) -> Any:
        current_call().set_reply_metadata(current_call().metadata)
        return [list(args), kwargs]

    def one(self, value: Any) -> Any:
        return value

    def data(self, value: bytes) -> bytes:
        return value

    def tree(self, value: Tree) -> Tree:
        assert type(value) is Tree
        return value

    def fail(self, code: str, message: str, details: Any) -> None:
        raise CallError(code, message, details)


@spread(0.5)
@given(st.data(), codecs)
def test_value_comes_through_a_codec_as_it_was(data: st.DataObject, name: str) -> None:
    codec = find_codec(name)
    value = data.draw(values(name))
    encoded = codec.encode(value)
    assert type(encoded) is bytes
    assert codec.decode(encoded) == value
    assert repr(codec.decode(encoded)) == repr(value)


@spread(0.5)
@given(codecs, trees)
def test_typed_value_comes_through_a_codec_as_it_was(name: str, tree: Tree) -> None:
    codec = find_codec(name)
    assert decoder(codec, Tree)(codec.encode(tree)) == tree


@spread(0.25)
@given(st.data(), codecs, chunks, metadata)
def test_call_gives_back_its_arguments_and_its_metadata(
    data: st.DataObject, codec: str, sizes: list[int], sent: dict[str, str]
) -> None:
    args = data.draw(st.lists(values(codec), max_size=3))
    kwargs = data.draw(st.dictionaries(names, values(codec), max_size=3))
    pair = Pair(codec=codec, chunk=sizes[0] if sizes else None)
    Host(pair, Echo())
    call = pair.call("Echo.echo", *args, kwargs=kwargs, metadata=sent)
    if len(args) == 1 and type(args[0]) is bytes and codec == "json":
        assert not kwargs  # bytes are drawn for msgpack only
    assert pair.outcome(call) == [args, kwargs]
    assert pair.ends(call)[0].metadata == sent


@spread(0.25)
@given(codecs, st.binary(max_size=200))
def test_bytes_by_themselves_come_through_any_codec(codec: str, data: bytes) -> None:
    pair = Pair(codec=codec)
    Host(pair, Echo())
    assert pair.outcome(pair.call("Echo.one", data)) == data


@spread(0.25)
@given(codecs, trees)
def test_typed_argument_comes_through_a_call(codec: str, tree: Tree) -> None:
    pair = Pair(codec=codec)
    Host(pair, Echo())
    assert pair.outcome(pair.call("Echo.tree", tree, returns=Tree)) == tree


@spread(0.25)
@given(st.data(), codecs, texts, texts)
def test_error_comes_through_a_call(
    data: st.DataObject, codec: str, code: str, message: str
) -> None:
    details = data.draw(values(codec))
    pair = Pair(codec=codec)
    Host(pair, Echo())
    error = pair.outcome(pair.call("Echo.fail", code, message, details))
    assert (error.code, error.message, error.details) == (code, message, details)
    assert error.maybe_executed


@spread(0.5)
@given(codecs, texts, st.none() | st.integers(1, 2**63), metadata)
def test_request_header_comes_through_as_it_was(
    codec: str, method: str, timeout: int | None, sent: dict[str, str]
) -> None:
    headers = Headers(find_codec(codec))
    header = (
        headers.request(method, timeout, sent) if sent else headers.request_plain(method, timeout)
    )
    seconds = None if timeout is None else min(timeout / 1000, MAX_TIMEOUT)
    assert headers.parse_request(header) == (method, seconds, sent)
    assert headers.parse_answer(headers.answer(sent)) == sent


bodies = st.one_of(
    st.binary(max_size=60),
    st.builds(
        lambda codec, value: find_codec(codec).encode(value),
        codecs,
        st.one_of(
            st.lists(values("json"), max_size=3),
            st.tuples(st.lists(values("json"), max_size=2), st.dictionaries(names, values("json"))),
        ),
    ),
)


@spread(0.5)
@given(
    codecs,
    st.sampled_from(["Echo.echo", "Echo.one", "Echo.data", "Echo.tree", "Echo.fail", "Echo.none"]),
    bodies,
    st.sampled_from([0, NAMED, RAW]),
)
def test_any_body_is_served_or_refused(codec: str, method: str, body: bytes, flags: int) -> None:
    pair = Pair(codec=codec).open()
    host = Host(pair, Echo())
    call = pair.client.start_call(pair.now, method)
    pair.client.data_to_send()
    pair.up.data += Wire(codec).request(call.id, method, body=body, flags=flags)
    pair.pump()
    assert len(pair.ends(call)) == 1
    assert pair.server.state is State.OPEN
    assert (host.dispatcher.running, pair.server.calls_in_flight) == (0, 0)
