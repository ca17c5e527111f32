"""What commands do with the answers of registries and servers that mean no good."""

import json
from typing import Any

import pytest

from rpc_cli.commands.nodes import _read_entry
from rpc_cli.output.values import to_json
from rpc_cli.setup.registries import _read_nodes
from rpc_proto.texts import printable

GOOD = {"address": "tcp://a:1", "age": 1.0, "ttl": 30, "flaps": 0}


@pytest.mark.fault(144)
@pytest.mark.parametrize(
    "character",
    ["\x00", "\x1b", "\x7f", "\x9b", "\u200b", "\u202e", "\u2028", "\ud800", "\U000e0001"],
)
def test_nothing_that_steers_a_terminal_is_shown_raw(character):
    value = {f"a{character}": [f"b{character}é"]}
    shown = to_json(value)
    assert character not in shown
    assert "é" in shown
    assert json.loads(shown) == value
    assert character not in printable(f"c{character}")


@pytest.mark.fault(143)
def test_good_nodes_are_used_and_others_are_left_out_in_one_line(capsys):
    nodes: list[Any] = [{"address": "tcp://a:1"}, {"address": 5}, None, [], {"address": "x\x9b"}]
    assert [node.address for node in _read_nodes(json.dumps({"nodes": nodes}).encode())] == [
        "tcp://a:1"
    ]
    told = capsys.readouterr().err
    assert told.startswith("rpc-proto: 4 of the registry's nodes left out: address must be")
    assert told.count("\n") == 1


@pytest.mark.fault(143)
@pytest.mark.parametrize(
    "wrong",
    [
        None,
        [],
        "tcp://a:1",
        {},
        {**GOOD, "age": "1"},
        {**GOOD, "ttl": None},
        {**GOOD, "flaps": True},
        {**GOOD, "age": float("nan")},
        {**GOOD, "metadata": 5},
        {**GOOD, "services": 7},
        {**GOOD, "weight": "x"},
        {name: value for name, value in GOOD.items() if name != "age"},
    ],
)
def test_an_entry_that_no_registry_shows_is_left_out(wrong):
    assert _read_entry(GOOD) is not None
    assert _read_entry(wrong) is None
