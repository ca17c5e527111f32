"""Nodes and views: what is accepted, and what follows from two views."""

import pytest

from rpc_discovery import Node, View


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


def test_merged_view_has_all_nodes_and_the_newer_description():
    old = View([Node("tcp://a:1", ["S"]), Node("tcp://b:1", ["S"])], revision=1)
    new = View([Node("tcp://a:1", ["T"])], revision=2)
    for merged in (old.merged(new), new.merged(old)):
        assert merged.revision == 2
        assert [node.address for node in merged.offering("T")] == ["tcp://a:1"]
        assert [node.address for node in merged.offering("S")] == ["tcp://b:1"]


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
