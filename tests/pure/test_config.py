"""What may be set, and what is refused with the name and the bounds."""

import math
from typing import Any

import pytest

from rpc_proto import ClientConfig, Codec, ServerConfig

BAD: list[tuple[type, dict[str, Any]]] = [
    (kind, {name: value})
    for kind in (ClientConfig, ServerConfig)
    for name, value in [
        ("max_header", 255),
        ("max_header", 65536),
        ("max_header", 300.0),
        ("max_header", True),
        ("max_body", 8191),
        ("max_body", 2**32),
        ("max_body", "9000"),
        ("high_water", 0),
        ("handshake_timeout", 0),
        ("handshake_timeout", -1.0),
        ("handshake_timeout", math.nan),
        ("handshake_timeout", math.inf),
        ("handshake_timeout", None),
        ("write_timeout", 0),
        ("close_timeout", "5"),
        ("ping_interval", 0.5),
        ("ping_interval", math.inf),
    ]
]
BAD += [
    (ClientConfig, {"call_timeout": 0}),
    (ClientConfig, {"call_timeout": math.nan}),
    (ClientConfig, {"max_queued_calls": 0}),
    (ServerConfig, {"max_calls": 0}),
    (ServerConfig, {"refusals": 0}),
    (ServerConfig, {"handling_timeout": 0}),
    (ServerConfig, {"idle_timeout": math.nan}),
    (ServerConfig, {"codecs": ()}),
    (ServerConfig, {"codecs": "msgpack"}),
    (ServerConfig, {"codecs": ("msgpack", "pickle")}),
    (ServerConfig, {"codecs": (7,)}),
    (ServerConfig, {"token": b"bytes"}),
    (ServerConfig, {"token": ""}),
]


@pytest.mark.parametrize(("kind", "settings"), BAD, ids=lambda value: repr(value)[:60])
def test_setting_out_of_its_bounds_is_refused_by_name(kind: type, settings: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        kind(**settings)


@pytest.mark.parametrize("kind", [ClientConfig, ServerConfig])
def test_bounds_themselves_are_accepted(kind: type) -> None:
    kind(max_header=256, max_body=8192, high_water=1024, ping_interval=1.0)
    kind(max_header=65535, max_body=2**32 - 1, ping_interval=None)


def test_timeout_of_calls_may_be_infinite() -> None:
    assert ClientConfig(call_timeout=math.inf).call_timeout == math.inf


@pytest.mark.parametrize("kind", [ClientConfig, ServerConfig])
def test_config_cannot_be_changed(kind: type) -> None:
    with pytest.raises(AttributeError):
        kind().max_body = 9000


@pytest.mark.parametrize("kind", [ClientConfig, ServerConfig])
def test_setting_of_an_unknown_name_is_refused(kind: type) -> None:
    with pytest.raises(TypeError, match="max_bdy"):
        kind(max_bdy=9000)


@pytest.mark.parametrize("kind", [ClientConfig, ServerConfig])
def test_token_is_not_shown(kind: type) -> None:
    assert "secret" not in repr(kind(token="secret"))


def test_token_and_authenticate_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="not both"):
        ServerConfig(token="t", authenticate=lambda *_: True)


def test_override_puts_in_place_what_is_given() -> None:
    config = ClientConfig(token="old", max_body=9000)
    assert config.override(codec=None, token=None) is config
    assert config.override(codec="json", token="new") == ClientConfig(
        codec="json", token="new", max_body=9000
    )
    assert ServerConfig().override(token="t", authenticate=None).token == "t"


def test_codec_of_the_user_may_be_listed() -> None:
    codec = Codec("own", repr, eval)  # type: ignore[arg-type]
    assert ServerConfig(codecs=(codec, "json")).codecs == (codec, "json")
