"""Headers: what they say, and that what repeats is encoded and parsed once."""

from typing import Any

import pytest

from rpc_fuzz.wire import CODECS
from rpc_proto import Codec, find_codec
from rpc_proto.wire.headers import HeaderError, Headers


def counting() -> tuple[Codec, list[Any], list[bytes]]:
    json = find_codec("json")
    encoded: list[Any] = []
    decoded: list[bytes] = []

    def encode(value: Any) -> bytes:
        encoded.append(value)
        return json.encode(value)

    def decode(data: bytes) -> Any:
        decoded.append(data)
        return json.decode(data)

    return Codec("counting", encode, decode), encoded, decoded


@pytest.mark.parametrize("name", CODECS)
def test_fields_that_are_not_there_cost_nothing(name: str) -> None:
    codec = find_codec(name)
    headers = Headers(codec)
    assert codec.decode(headers.request_plain("S.m", None)) == ["S.m"]
    assert codec.decode(headers.request_plain("S.m", 5)) == ["S.m", 5]
    assert codec.decode(headers.request("S.m", None, {"k": "v"})) == ["S.m", None, {"k": "v"}]
    assert headers.answer({}) == b""
    assert codec.decode(headers.answer({"k": "v"})) == [{"k": "v"}]


def test_method_with_the_same_options_is_encoded_and_parsed_once() -> None:
    codec, encoded, decoded = counting()
    headers = Headers(codec)
    for _ in range(3):
        header = headers.request_plain("S.m", 1000)
        assert headers.parse_request(header) == ("S.m", 1.0, {})
    assert (len(encoded), len(decoded)) == (1, 1)


def test_long_header_is_not_kept() -> None:
    codec, _, decoded = counting()
    headers = Headers(codec)
    header = headers.request_plain("S." + "m" * 300, None)
    for _ in range(3):
        headers.parse_request(header)
    assert len(decoded) == 3


def test_malformed_header_is_not_kept_as_good() -> None:
    headers = Headers(find_codec("json"))
    for _ in range(2):
        with pytest.raises(HeaderError):
            headers.parse_request(b"[1]")


def test_caches_are_bounded() -> None:
    headers = Headers(find_codec("json"))
    for number in range(2000):
        headers.parse_request(headers.request_plain(f"S.m{number}", None))
    assert headers.parse_cached.cache_info().currsize <= 512
    assert headers.request_plain.cache_info().currsize <= 512


def test_headers_of_a_codec_are_shared() -> None:
    assert Headers.of(find_codec("json")) is Headers.of(find_codec("json"))
    assert Headers.of(find_codec("json")) is not Headers.of(find_codec("msgpack"))


@pytest.mark.parametrize("metadata", [{"k": 1}, {1: "v"}, {"k": None}])
def test_metadata_of_other_than_strings_is_not_encoded(metadata: Any) -> None:
    with pytest.raises(TypeError):
        Headers(find_codec("msgpack")).request("S.m", None, metadata)


@pytest.mark.parametrize(
    "header", [b"[{}, {}]", b"[]", b"{}", b"[5]", b'[{"k": 1}]', b'[["k", "v"]]', b"[", b"5"]
)
def test_answer_header_is_one_map_of_strings(header: bytes) -> None:
    with pytest.raises(HeaderError):
        Headers(find_codec("json")).parse_answer(header)


@pytest.mark.parametrize("header", [b"", b"[null]", b"[{}]"])
def test_answer_header_may_be_empty(header: bytes) -> None:
    assert Headers(find_codec("json")).parse_answer(header) == {}


def test_text_of_an_error_quotes_in_part() -> None:
    with pytest.raises(HeaderError) as caught:
        Headers(find_codec("json")).parse_request(b'["m", "' + b"x" * 10_000 + b'"]')
    assert len(str(caught.value)) < 200
