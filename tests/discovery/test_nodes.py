"""Nodes and views: what is accepted, and what follows from two views."""

import pytest

from rpc_discovery import Node, View, hash_signatures


@pytest.mark.fault(58)
@pytest.mark.parametrize(
    "address",
    [
        "tcp://host:0",
        "tcp://host:70000",
        "file:///etc/passwd",
        "tcp://host:80\r\nHost: x",
        "tcp://a,b:80",
        "tcp://" + "h" * 10_240 + ":80",
        "host:80",
        "",
    ],
)
def test_poisoned_address_is_refused(address):
    with pytest.raises(ValueError, match=r"must|needs"):
        Node(address)


@pytest.mark.parametrize("weight", [-1, 1001, float("nan"), float("inf"), True, "1"])
def test_weight_out_of_bounds_is_refused(weight):
    with pytest.raises(ValueError, match="weight must be"):
        Node("tcp://a:1", weight=weight)


@pytest.mark.parametrize("name", ["", "a\n", "x" * 257, 7])
def test_bad_service_name_is_refused(name):
    with pytest.raises(ValueError, match="a service must be"):
        Node("tcp://a:1", [name])


def test_text_in_place_of_services_is_refused():
    with pytest.raises(ValueError, match="services must be several names, not the text 'Arith'"):
        Node("tcp://a:1", "Arith")


@pytest.mark.parametrize("signatures", [7, "x" * 65, "a\r\n"])
def test_bad_hash_of_a_service_is_refused(signatures):
    with pytest.raises(ValueError, match="the hash of Arith must be 1 to 64 printable"):
        Node("tcp://a:1", {"Arith": signatures})


def test_nodes_differ_when_the_methods_of_a_service_do():
    one = hash_signatures({"add": "(a: int, b: int) -> int", "neg": "(a: int) -> int"})
    same = hash_signatures({"neg": "(a: int) -> int", "add": "(a: int, b: int) -> int"})
    other = hash_signatures({"add": "(a: float, b: float) -> float", "neg": "(a: int) -> int"})
    assert one == same != other
    assert Node("tcp://a:1", {"Arith": one}) == Node("tcp://a:1", {"Arith": same})
    assert Node("tcp://a:1", {"Arith": one}) != Node("tcp://a:1", {"Arith": other})


def test_bad_metadata_is_refused():
    with pytest.raises(ValueError, match="metadata must be"):
        Node("tcp://a:1", metadata={"zone": "\x1b[31m"})


def test_nodes_with_the_same_description_are_equal():
    one = Node("tcp://a:1", ["S", "T"], weight=2, metadata={"zone": "x"})
    assert one == Node("tcp://a:1", ["T", "S"], weight=2.0, metadata={"zone": "x"})
    assert one != Node("tcp://a:1", ["S"], weight=2, metadata={"zone": "x"})
    assert len({one, Node("tcp://a:1", ["S", "T"], weight=2, metadata={"zone": "x"})}) == 1


def test_description_cannot_be_changed_from_outside():
    metadata = {"zone": "x"}
    node = Node("tcp://a:1", metadata=metadata)
    metadata["zone"] = "y"
    assert node.metadata == {"zone": "x"}


def test_view_knows_who_offers_a_service():
    view = View([Node("tcp://a:1", ["S"]), Node("tcp://b:1", ["T"]), Node("tcp://c:1", ["S"])])
    assert [node.address for node in view.offering("S")] == ["tcp://a:1", "tcp://c:1"]
    assert view.offering("U") == []


def test_changes_between_two_views_are_additions_and_removals():
    a, b, c = Node("tcp://a:1", ["S"]), Node("tcp://b:1", ["S"]), Node("tcp://c:1", ["S"])
    more = Node("tcp://b:1", ["S", "T"])
    added, removed = View([a, b]).changes(View([more, c]))
    assert added == [more, c]
    assert removed == [a, b]


@pytest.mark.fault(59)
def test_view_of_too_many_nodes_is_rejected_as_a_whole():
    with pytest.raises(ValueError, match="at most 10000 nodes"):
        View(Node(f"tcp://host:{port}") for port in range(1, 10_002))
