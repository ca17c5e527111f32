"""The two built-in codecs, msgpack and json (docs/protocol.md, "Codecs")."""

import json
from typing import Any

import msgspec

from .codecs import Codec, Decode

__all__ = ["JSON", "MSGPACK"]


def _refuse_extension(code: int, _data: memoryview) -> Any:
    raise ValueError(f"msgpack extension type {code} is not part of the protocol")


class _Msgpack(Codec):
    __slots__ = ()

    def decoder(self, kind: Any) -> Decode:
        # Straight into the type, without the plain value between: a quarter of the time.
        return msgspec.msgpack.Decoder(kind, ext_hook=_refuse_extension).decode


class _Json(Codec):
    __slots__ = ()

    def decoder(self, kind: Any) -> Decode:
        return msgspec.json.Decoder(kind).decode


# msgspec checks a length against the bytes that are there before it allocates, and counts depth.
MSGPACK = _Msgpack(
    "msgpack",
    msgspec.msgpack.Encoder().encode,
    msgspec.msgpack.Decoder(ext_hook=_refuse_extension).decode,
)

# msgspec's own JSON encoder would turn NaN into null without a word; this one refuses it.
_json_text = json.JSONEncoder(
    ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=msgspec.to_builtins
).encode


def _encode_json(value: Any) -> bytes:
    try:
        text = _json_text(value)
    except TypeError:  # perhaps of a key: `default` is asked for values only
        text = _json_text(msgspec.to_builtins(value, str_keys=True))
    return text.encode()


JSON = _Json("json", _encode_json, msgspec.json.Decoder().decode)
