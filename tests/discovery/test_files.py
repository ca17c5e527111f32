"""Files that users name, and what others put in their place."""

import os
import stat

import pytest

from rpc_common.discovery.carriers import read_file
from rpc_common.discovery.files import check_regular
from rpc_common.discovery.snapshots import SavedRegistry
from rpc_discovery import OperationFailed, ReadFile, Registry

pytestmark = pytest.mark.fault(145)


def test_a_fifo_is_refused_and_not_waited_for(tmp_path):
    path = tmp_path / "fifo"
    os.mkfifo(path)
    with pytest.raises(OperationFailed, match="not a regular file"):
        read_file(ReadFile(1, str(path), 100, None, 1.0))
    with pytest.raises(OSError, match="not a regular file"):
        check_regular(path)
    with pytest.raises(OSError, match="not a regular file"):
        SavedRegistry(Registry("e"), path)


def test_a_path_with_nul_is_an_os_error(tmp_path):
    with pytest.raises(OperationFailed, match="null"):
        read_file(ReadFile(1, f"{tmp_path}/a\0b", 100, None, 1.0))
    with pytest.raises(OSError, match="null"):
        SavedRegistry(Registry("e"), f"{tmp_path}/a\0b")


def test_a_link_in_the_place_of_the_new_file_leads_nowhere(tmp_path):
    target = tmp_path / "target"
    target.write_text("precious")
    (tmp_path / "nodes.new").symlink_to(target)
    SavedRegistry(Registry("e"), tmp_path / "nodes")
    assert target.read_text() == "precious"
    assert not (tmp_path / "nodes").is_symlink()


def test_a_link_in_the_place_of_the_snapshot_is_refused(tmp_path):
    (tmp_path / "target").write_text("{}")
    (tmp_path / "nodes").symlink_to(tmp_path / "target")
    with pytest.raises(OSError, match="symbolic links"):
        SavedRegistry(Registry("e"), tmp_path / "nodes")


def test_the_mode_of_a_snapshot_stays(tmp_path):
    path = tmp_path / "nodes"
    SavedRegistry(Registry("e"), path)
    path.chmod(0o600)
    SavedRegistry(Registry("e"), path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
