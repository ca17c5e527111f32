"""A codec between two witnesses: what both understand must be the same, and the rest refused.

    mill = Mill(my_codec, encode=witness.encode, decode=witness.decode)

    @given(mill.values())
    def test_values(value): mill.check_value(value)

    @given(mill.data())
    def test_data(data): mill.check_data(data)

A codec may refuse what its witness takes, but only with an exception, and for a reason that
`refuses(data, value)` knows; it may not take what the witness refuses, unless `allows(data)`.
"""

import math
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

from rpc_proto import Codec

from .strategies import mutated, plain_values

__all__ = ["Mill", "same"]


def same(one: Any, other: Any) -> bool:
    """Whether two decoded values are the same, types included; NaN is NaN."""
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        # The order is that of the bytes, and so are the keys that are there twice.
        return len(one) == len(other) and all(
            same(key, theirs) and same(value, other_value)
            for (key, value), (theirs, other_value) in zip(one.items(), other.items(), strict=True)
        )
    if type(one) is not type(other):
        return False
    if isinstance(one, float) and math.isnan(one):
        return math.isnan(other)
    equal: bool = one == other
    return equal


class Mill:
    """A codec, and an independent witness of the same format."""

    def __init__(
        self,
        codec: Codec,
        encode: Callable[[Any], bytes],
        decode: Callable[[bytes], Any],
        *,
        refuses: Callable[[bytes, Any], bool] = lambda data, value: False,
        allows: Callable[[bytes], bool] = lambda data: False,
    ) -> None:
        self.codec = codec
        self._encode = encode
        self._decode = decode
        self._refuses = refuses
        self._allows = allows

    def values(self) -> st.SearchStrategy[Any]:
        """Values that every codec has to carry: see `rpc_proto.Codec`."""
        return plain_values()

    def data(self) -> st.SearchStrategy[bytes]:
        """Bytes: those of values, with some changed, and any."""
        encoded = self.values().map(self.codec.encode)
        return st.one_of(encoded, mutated(encoded), mutated(encoded), st.binary(max_size=40))

    def check_value(self, value: Any) -> None:
        """Encode a value both ways, and decode it crosswise."""
        ours, theirs = self.codec.encode(value), self._encode(value)
        for who, got in (
            ("the witness reads what the codec wrote", self._decode(ours)),
            ("the codec reads what the witness wrote", self.codec.decode(theirs)),
            ("the codec reads what it wrote", self.codec.decode(ours)),
        ):
            if not same(got, value):
                raise AssertionError(f"{who}: {got!r:.200}, and not {value!r:.200}")

    def check_data(self, data: bytes) -> None:
        """Decode bytes both ways: the same value, or a refusal that can be explained."""
        ours, failure = _outcome(self.codec.decode, data)
        theirs, refusal = _outcome(self._decode, data)
        if failure is None and refusal is None:
            if not same(ours, theirs):
                raise AssertionError(
                    f"{data!r:.200} is {ours!r:.200}, to the witness {theirs!r:.200}"
                )
        elif failure is None:
            if not self._allows(data):
                raise AssertionError(f"{data!r:.200} is {ours!r:.200}; the witness: {refusal!r}")
        elif refusal is None and not self._refuses(data, theirs):
            raise AssertionError(f"{data!r:.200} is {theirs!r:.200}; the codec: {failure!r}")


def _outcome(decode: Callable[[bytes], Any], data: bytes) -> tuple[Any, Exception | None]:
    try:
        return decode(data), None
    except Exception as error:
        return None, error
