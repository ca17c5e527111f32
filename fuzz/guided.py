"""Fuzz each target for a while, from the corpus and into it; then keep what covers something.

python fuzz/guided.py [SECONDS [TARGET...]]
"""

import re
import subprocess
import sys
import tempfile
from hashlib import sha256
from pathlib import Path
from typing import Any

from rpc_fuzz.guided.targets import SEEDS, TARGETS

CORPUS = Path(__file__).parent / "corpus"
LARGEST = 4096  # bytes of an input


def run(name: str, *arguments: str) -> str:
    """Run atheris on a target; return what libFuzzer says."""
    where = f"-artifact_prefix={tempfile.gettempdir()}/{name}-"  # of an input that fails
    options = (f"-max_len={LARGEST}", where, *arguments)
    command = [sys.executable, "-m", "rpc_fuzz.guided", name, *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{name} failed:\n{done.stdout[-3000:]}\n{done.stderr[-6000:]}")
    return done.stderr


def arcs_of(name: str, data: bytes) -> set[tuple[str, int, int]]:
    """Return the steps from line to line in the core that an input takes."""
    arcs: set[tuple[str, int, int]] = set()

    def trace(frame: Any, event: str, _: Any) -> Any:
        path = frame.f_code.co_filename
        if "rpc_proto" not in path:
            return None
        last = [frame.f_lineno]

        def step(frame: Any, event: str, _: Any) -> Any:
            arcs.add((path, last[0], frame.f_lineno))
            last[0] = frame.f_lineno
            return step

        return step

    sys.settrace(trace)
    try:
        TARGETS[name](data)
    finally:
        sys.settrace(None)
    return arcs


def minimise(name: str, inputs: list[bytes]) -> list[bytes]:
    """Return the inputs that cover something which no smaller one does."""
    known: set[tuple[str, int, int]] = set()
    kept = []
    for data in sorted(set(inputs), key=lambda data: (len(data), data)):
        arcs = arcs_of(name, data)
        if not arcs <= known:
            known |= arcs
            kept.append(data)
    return kept


def fuzz(name: str, seconds: int) -> None:
    """Fuzz one target, and minimise its corpus."""
    kept = CORPUS / name
    kept.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder)
        for number, data in enumerate(SEEDS[name]):
            (found / f"seed-{number}").write_bytes(data)
        said = run(name, str(found), str(kept), f"-max_total_time={seconds}")
        inputs = [path.read_bytes() for path in (*found.iterdir(), *kept.iterdir())]
    for path in kept.iterdir():
        path.unlink()
    chosen = minimise(name, inputs)
    for data in chosen:
        (kept / sha256(data).hexdigest()[:16]).write_bytes(data)
    done = re.search(r"Done (\d+) runs in (\d+)", said)
    count, took = done.groups() if done else ("?", "?")
    size = sum(map(len, chosen))
    print(
        f"{name:12}{count:>10} runs in {took} s, corpus of {len(chosen)}, {size} bytes", flush=True
    )


def main() -> None:
    """Fuzz all targets, or those named."""
    seconds = int(sys.argv[1]) if len(sys.argv) > 1 else 60
    for name in sys.argv[2:] or TARGETS:
        fuzz(name, seconds)


if __name__ == "__main__":
    main()
