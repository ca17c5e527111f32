"""The built-in service that tells what a server offers."""

from collections.abc import Iterable, Iterator

import pytest

from rpc_fuzz.pair import Host, Pair
from rpc_fuzz.wire import CODECS
from rpc_proto.service.introspection import INTROSPECTION, Introspection


class Arith:
    def add(self, a: int, b: int = 5) -> int:
        """Return the sum."""
        return a + b


@pytest.mark.parametrize("codec", CODECS)
def test_caller_learns_services_methods_signatures_and_texts(codec: str) -> None:
    pair = Pair(codec=codec).open()
    host = Host(pair, Arith())
    host.dispatcher.register(Introspection(host.dispatcher), INTROSPECTION)
    services = pair.outcome(pair.call(f"{INTROSPECTION}.services"))
    assert services["Arith"] == {
        "add": {
            "signature": "(a: int, b: int = 5) -> int",
            "doc": "Return the sum.",
            "kind": "unary",
        }
    }
    assert list(services) == sorted(services)
    assert set(services[INTROSPECTION]) == {"services"}


def test_caller_learns_the_items_of_streams() -> None:
    class Logs:
        def tail(self, name: str) -> Iterator[bool]:
            yield True

        def store(self, chunks: Iterable[bytes]) -> int: ...

        def chat(self, said: Iterable[str | None]):
            yield said

    pair = Pair().open()
    host = Host(pair, Logs())
    host.dispatcher.register(Introspection(host.dispatcher), INTROSPECTION)
    logs = pair.outcome(pair.call(f"{INTROSPECTION}.services"))["Logs"]
    assert logs["tail"]["signature"].startswith("(name: str) -> Iterator[")
    del logs["tail"]["signature"], logs["store"]["signature"], logs["chat"]["signature"]
    assert logs == {
        "tail": {"doc": "", "kind": "server_stream", "gives": "bool"},
        "store": {"doc": "", "kind": "client_stream", "takes": "bytes"},
        "chat": {"doc": "", "kind": "bidirectional", "takes": "str | None", "gives": "Any"},
    }


def test_introspection_follows_what_is_registered() -> None:
    pair = Pair().open()
    host = Host(pair)
    host.dispatcher.register(Introspection(host.dispatcher), INTROSPECTION)
    assert list(pair.outcome(pair.call(f"{INTROSPECTION}.services"))) == [INTROSPECTION]
    host.dispatcher.register(Arith(), "late.Arith")
    assert "late.Arith" in pair.outcome(pair.call(f"{INTROSPECTION}.services"))
