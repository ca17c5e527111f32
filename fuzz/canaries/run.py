"""Plant each bug of canaries.toml in a copy of the sources, and show what finds it.

    python fuzz/canaries/run.py [NAME...]

A bug is found by simulation, or by the tests that its entry names; otherwise the exit code is 1.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[2]
COPIED = ("rpc_proto", "discovery", "backends", "cli", "fuzz", "tests", "benchmarks", "docs")
PATHS = ("", "discovery", "backends", "cli", "fuzz", "tests", "benchmarks")
SEEDS = 25  # simulations, at most
PATIENCE = 240.0  # seconds; whoever takes longer hangs, and that is found, too

SIMULATE = f"""
import sys
from rpc_fuzz.simulation.plan import Plan
from rpc_fuzz.simulation.run import simulate
for seed in range({SEEDS}):
    violations = simulate(Plan.draw(seed)).violations
    if violations:
        sys.exit(f"seed {{seed}}: {{violations[0]}}")
"""


class Found(NamedTuple):
    """What found a bug, "" if nothing did, and how long it took."""

    name: str
    how: str
    seconds: float


def hunt(canary: dict[str, Any], copy: Path) -> Found:
    """Plant a bug in a copy of the sources, look for it, and take it out again."""
    path = copy / canary["file"]
    whole = path.read_text()
    if whole.count(canary["before"]) != 1:
        raise SystemExit(f"{canary['name']}: what it replaces is not in {canary['file']} once")
    path.write_text(whole.replace(canary["before"], canary["after"]))
    began = time.monotonic()
    try:
        how = _look(canary, copy)
    finally:
        path.write_text(whole)
    return Found(canary["name"], how, time.monotonic() - began)


def _look(canary: dict[str, Any], copy: Path) -> str:
    by = canary["by"]
    if by == "simulation":
        command = ["-c", SIMULATE]
    else:
        command = ["-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *by.split()]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(str(copy / path) for path in PATHS),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    try:
        done = subprocess.run(
            [sys.executable, *command],
            cwd=copy,
            env=environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"{by}: hangs"
    if not done.returncode:
        return ""
    if by == "simulation":
        return f"simulation, {done.stderr.strip().splitlines()[-1][:110]}"
    failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return failed[0].partition(" - ")[0][:130] if failed else f"{by}: exit code {done.returncode}"


def main() -> int:
    """Hunt for all bugs, or those named; return the exit code."""
    canaries = tomllib.loads((Path(__file__).parent / "canaries.toml").read_text())["canary"]
    if sys.argv[1:]:
        canaries = [canary for canary in canaries if canary["name"] in sys.argv[1:]]
    jobs = os.cpu_count() or 1
    found: list[Found] = []
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(jobs) as pool:
        copies: SimpleQueue[Path] = SimpleQueue()
        for number in range(jobs):
            copy = Path(folder) / str(number)
            for name in COPIED:
                shutil.copytree(
                    ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__")
                )
            shutil.copy(ROOT / "pyproject.toml", copy)
            copies.put(copy)

        def work(canary: dict[str, Any]) -> Found:
            copy = copies.get()
            try:
                return hunt(canary, copy)
            finally:
                copies.put(copy)

        for one in pool.map(work, canaries):
            found.append(one)
            print(f"{one.name:26}{one.seconds:6.1f} s  {one.how or 'NOT FOUND'}", flush=True)
    missed = [one.name for one in found if not one.how]
    print(f"{len(found) - len(missed)} of {len(found)} planted bugs were found")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
