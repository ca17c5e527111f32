"""A registry and its file: what is saved when, and what happens when it cannot be."""

import json
import os
import time
from pathlib import Path

import pytest

from rpc_common.discovery.snapshots import SavedRegistry
from rpc_discovery import Registry
from rpc_fuzz.registries import ask

NODE = b'{"address": "tcp://10.0.0.1:4000", "ttl": 3600}'


def saved(path: Path) -> list[str]:
    return [node["address"] for node in json.loads(path.read_text())["nodes"]]


def kept(path: Path) -> SavedRegistry:
    return SavedRegistry(Registry("epoch"), path)


def wait_for(writing: SavedRegistry) -> None:
    assert writing._writer is not None
    writing._writer.join(10.0)


def test_what_was_saved_is_known_at_the_next_start(tmp_path):
    first = kept(tmp_path / "nodes")
    ask(first.registry, time.monotonic(), "POST", body=NODE)
    first.close()
    second = kept(tmp_path / "nodes")
    assert list(second.registry.entries) == ["tcp://10.0.0.1:4000"]
    assert os.listdir(tmp_path) == ["nodes"]


def test_a_change_is_saved_after_the_interval_and_not_before(tmp_path):
    keeper = kept(tmp_path / "nodes")
    now = time.monotonic()
    ask(keeper.registry, now, "POST", body=NODE)
    due = keeper.next_timeout()
    assert now < due <= now + 1.0
    keeper.handle_timeout(now)
    assert saved(tmp_path / "nodes") == []
    keeper.handle_timeout(due)
    wait_for(keeper)
    assert saved(tmp_path / "nodes") == ["tcp://10.0.0.1:4000"]


def test_a_heartbeat_alone_is_not_saved(tmp_path):
    keeper = kept(tmp_path / "nodes")
    now = time.monotonic()
    ask(keeper.registry, now, "POST", body=NODE)
    keeper.handle_timeout(now + 2.0)
    wait_for(keeper)
    ask(keeper.registry, now + 3.0, "POST", body=NODE)
    assert keeper.next_timeout() == keeper.registry.next_timeout()


def test_a_file_that_cannot_be_written_is_tried_again(tmp_path, caplog):
    folder = tmp_path / "folder"
    folder.mkdir()
    keeper = kept(folder / "nodes")
    now = time.monotonic()
    (folder / "nodes.new").mkdir()  # in its way
    ask(keeper.registry, now, "POST", body=NODE)
    for seconds in (2.0, 4.0):
        keeper.handle_timeout(now + seconds)
        wait_for(keeper)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "cannot write the snapshot" in caplog.text
    (folder / "nodes.new").rmdir()
    keeper.handle_timeout(now + 6.0)
    wait_for(keeper)
    assert saved(folder / "nodes") == ["tcp://10.0.0.1:4000"]


def test_a_file_that_is_no_snapshot_is_left_alone(tmp_path):
    path = tmp_path / "nodes"
    path.write_text("precious")
    with pytest.raises(ValueError, match="not JSON"):
        kept(path)
    assert path.read_text() == "precious"


def test_an_interval_must_be_over_0(tmp_path):
    with pytest.raises(ValueError, match="interval must be seconds over 0, not 0"):
        SavedRegistry(Registry("epoch"), tmp_path / "nodes", interval=0)
