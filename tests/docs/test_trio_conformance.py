"""The suite of the backends takes the driver of docs/embedding.md, too, by a small plug.

Here against asyncio servers; CONFORMANCE_DRIVERS=conformance.driver_trio runs it against all.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.timeout(300)
def test_the_trio_client_passes_the_suite_of_the_backends() -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-k", "to-asyncio"),
            *("-p", "no:cacheprovider", "-p", "no:hypothesispytest"),  # trio has its own dice
            *(f"tests/conformance/test_{name}.py" for name in ("calls", "network")),
        ],
        cwd=ROOT,
        env={**os.environ, "CONFORMANCE_DRIVERS": "conformance.driver_trio"},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    assert int(passed[1]) >= 40
