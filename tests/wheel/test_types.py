"""What type checkers make of a user's program: the types that the pages promise."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from wheel.conftest import run

HERE = Path(__file__).parent
PROGRAMS = sorted(HERE.glob("with_*.py"))
WRONG = """
from rpc_asyncio import BalancedClient, Sever
from rpc_proto import quick, qick
quick(1)
BalancedClient(2)
"""


@pytest.fixture(scope="session")
def pyright() -> list[str]:
    """The command for pyright, which comes from PyPI and brings itself from npm."""
    pytest.importorskip("pyright", reason="pyright is not installed")
    command = [sys.executable, "-m", "pyright"]
    try:
        done = run(*command, "--version", cwd=HERE)
    except subprocess.TimeoutExpired:
        pytest.skip("pyright cannot be fetched from npm in time")
    if done.returncode:
        pytest.skip(f"pyright cannot be fetched from npm: {done.stdout[-200:]}")
    return command


@pytest.mark.timeout(180)
@pytest.mark.fault(73)
@pytest.mark.fault(74)
def test_mypy_sees_the_types_of_the_wheel(installed: Path, tmp_path: Path) -> None:
    pytest.importorskip("mypy", reason="mypy is not installed")
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--cache-dir=cache"]
    command += ["--python-executable", str(installed)]
    done = run(*command, *PROGRAMS, cwd=tmp_path, timeout=120.0)
    assert done.stdout == f"Success: no issues found in {len(PROGRAMS)} source files\n"
    (tmp_path / "wrong.py").write_text(WRONG)
    done = run(*command, "wrong.py", cwd=tmp_path, timeout=120.0)
    assert [line.partition(" error: ")[2][:40] for line in done.stdout.splitlines()[:4]] == [
        'Module "rpc_asyncio" has no attribute "S',
        'Module "rpc_proto" has no attribute "qic',
        'Value of type variable "Function" of "qu',
        'Argument 1 to "BalancedClient" has incom',
    ]


@pytest.mark.timeout(180)
@pytest.mark.fault(73)
@pytest.mark.fault(74)
def test_pyright_sees_the_types_of_the_wheel(
    installed: Path, pyright: list[str], tmp_path: Path
) -> None:
    (tmp_path / "wrong.py").write_text(WRONG)
    for program in PROGRAMS:
        (tmp_path / program.name).write_text(program.read_text())
    settings = {"typeCheckingMode": "strict", "include": [program.name for program in PROGRAMS]}
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(settings))
    command = [*pyright, "--pythonpath", str(installed)]
    done = run(*command, cwd=tmp_path, timeout=120.0)
    assert done.stdout.splitlines()[-1] == "0 errors, 0 warnings, 0 informations", done.stdout
    done = run(*command, "wrong.py", cwd=tmp_path, timeout=120.0)
    for rule, count in (("reportAttributeAccessIssue", 2), ("reportArgumentType", 2)):
        assert done.stdout.count(f"({rule})") == count, done.stdout
