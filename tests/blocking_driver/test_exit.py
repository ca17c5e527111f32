"""The end of a process in which clients, servers, registrations and discoveries still live."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parent / "exits.py"
EXITS = int(os.environ.get("EXITS", "40"))


def run(tmp_path: Path, count: int, at_once: int, handler: str) -> str:
    nothing = tmp_path / "nodes.json"
    nothing.write_text("[]")
    arguments = [str(count), str(at_once), str(nothing), handler]
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", str(PROGRAM), *arguments],
        capture_output=True,
        text=True,
        timeout=50 + count,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    assert "Fatal Python error" not in done.stderr
    return done.stdout.strip()


@pytest.mark.fault(147)
@pytest.mark.timeout(60 + EXITS)
def test_process_ends_well_whatever_is_still_open(tmp_path):
    assert run(tmp_path, EXITS, 2, "none") == str({0: EXITS})


@pytest.mark.fault(147)
def test_handler_that_never_ends_does_not_keep_the_process(tmp_path):
    began = time.monotonic()
    assert run(tmp_path, 1, 1, "handler") == "{0: 1}"
    assert time.monotonic() - began < 20
