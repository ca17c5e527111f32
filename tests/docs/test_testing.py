"""docs/testing.md: its tests run, and so does the project that it names."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "testing.md").read_text()
IMPORTS = """
import asyncio
import pytest
from rpc_proto import Unavailable
from rpc_testing import AsyncioRig
"""


def run_pytest(folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", ".", "."],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_tests_of_the_page_pass(tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "test_page.py").write_text(IMPORTS + "\n\n".join(blocks))
    assert "2 passed" in run_pytest(tmp_path)


def test_the_project_of_the_page_is_small_and_passes(tmp_path: Path) -> None:
    project = ROOT / "examples" / "testing"
    files = sorted(project.glob("*.py"))
    assert sum(len(path.read_text().splitlines()) for path in files) <= 60
    for path in files:
        shutil.copy(path, tmp_path)
    assert "3 passed" in run_pytest(tmp_path)
