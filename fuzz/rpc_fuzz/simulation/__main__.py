"""Run simulations: python -m rpc_fuzz.simulation --help"""

import argparse
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from itertools import islice
from pathlib import Path
from statistics import median

from .plan import KINDS, Plan
from .run import Report, simulate
from .shrink import shrink


def main() -> int:
    """Parse the arguments and run; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m rpc_fuzz.simulation",
        description="Run a cluster in virtual time, once for each seed, and check its promises.",
        epilog="Exit codes: 0 promises were kept, 1 one was broken, 2 a kind of fault is missing.",
    )
    parser.add_argument("--seeds", metavar="FIRST:LAST", help="these seeds, without the last")
    parser.add_argument("--minutes", type=float, help="as many seeds as fit into so many minutes")
    parser.add_argument("--first", type=int, default=0, help="the first seed, with --minutes")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--plan", type=Path, help="run this plan, and print its trace")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="write failing plans there")
    given = parser.parse_args()
    if given.plan is not None:
        return _replay(given.plan)
    begin = time.monotonic()
    reports: list[Report] = []
    with ProcessPoolExecutor(given.jobs) as pool:
        seeds = _seeds(given, begin)
        running = {pool.submit(run_seed, seed) for seed in islice(seeds, given.jobs)}
        while running:
            for done in as_completed(running):
                running.remove(done)
                reports.append(done.result())
                _tell_violations(reports[-1])
                seed = next(seeds, None)
                if seed is not None:
                    running.add(pool.submit(run_seed, seed))
                break
    # One in a hundred once more, in another process with another hash seed.
    again = sorted(reports, key=lambda report: report.plan.seed)[::100]
    differ = [r.plan.seed for r in again if _digest_elsewhere(r.plan.seed) != r.digest]
    _summarize(reports, time.monotonic() - begin, len(again), differ)
    failed = [report for report in reports if report.violations]
    for report in failed[:3]:
        _shrink(report, given.keep)
    if failed or differ:
        return 1
    seen = sum((report.faults for report in reports), Counter[str]())
    return 2 if set(KINDS) - set(seen) else 0


def run_seed(seed: int) -> Report:
    """Run the plan of a seed, in a process of the pool."""
    return simulate(Plan.draw(seed))


def _seeds(given: argparse.Namespace, begin: float) -> Iterator[int]:
    if given.seeds:
        first, _, last = given.seeds.partition(":")
        yield from range(int(first), int(last or int(first) + 1))
        return
    seed = given.first
    while time.monotonic() - begin < 60 * (given.minutes or 1.0):
        yield seed
        seed += 1


def _digest_elsewhere(seed: int) -> str:
    """Run a seed in a fresh process with another hash seed; return the hash of its trace."""
    program = f"from rpc_fuzz.simulation.__main__ import run_seed;print(run_seed({seed}).digest)"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONHASHSEED": str(seed % 1000 + 1)},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def _tell_violations(report: Report) -> None:
    for violation in report.violations[:5]:
        print(f"seed {report.plan.seed}: {violation}", flush=True)


def _summarize(reports: list[Report], seconds: float, again: int, differ: list[int]) -> None:
    def total(name: str) -> int:
        return sum(getattr(report, name) for report in reports)

    texts = [violation for report in reports for violation in report.violations]
    seeds = [report.plan.seed for report in reports]
    hours = sum(report.seconds for report in reports) / 3600
    converged = sorted(pair for report in reports for pair in report.converged)
    worst = max(converged, key=lambda pair: pair[0] / pair[1], default=(0.0, 1.0))
    faults = sum((report.faults for report in reports), Counter[str]())
    outcomes = sum((report.outcomes for report in reports), Counter[str]())
    missing = ", ".join(sorted(set(KINDS) - set(faults)))
    half = median(pair[0] for pair in converged) if converged else 0.0
    rows = [
        ("seeds", f"{len(seeds)} ({min(seeds)} to {max(seeds)}), in {seconds:.0f} s"),
        ("cluster-hours", f"{hours:.2f}, of {total('machines') / len(seeds):.1f} machines each"),
        ("faults", f"{sum(faults.values())}: " + _counts(faults)),
        ("missing faults", missing or "none"),
        ("calls", f"{total('calls')}: " + _counts(outcomes)),
        ("lost", f"{total('lost')}"),
        ("ended twice", f"{_of(texts, 'ended twice')}"),
        ("misdelivered", f"{_of(texts, 'belongs to another')}"),
        ("over-executed", f"{_of(texts, 'times') + _of(texts, 'though its caller')}"),
        ("worst deadline overrun", f"{1000 * max(report.most_late for report in reports):.3f} ms"),
        ("convergence", f"p50 {half:.2f} s, worst {worst[0]:.2f} s of {worst[1]:.1f} s allowed"),
        ("most held by a server", f"{max(report.most_held for report in reports)} bytes"),
        ("repeated", f"{again} seeds with another hash seed; different traces: {differ or 'none'}"),
        ("violations", f"{len(texts)}"),
    ]
    for name, text in rows:
        print(f"{name:24}{text}")


def _counts(counter: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counter.most_common())


def _of(texts: list[str], part: str) -> int:
    return sum(part in text for text in texts)


def _shrink(report: Report, folder: Path | None) -> None:
    kind = _words(report.violations[0])
    plan = shrink(report.plan, lambda plan: _fails_like(plan, kind))
    print(f"seed {plan.seed} becomes:\n{plan.dump()}")
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"seed-{plan.seed}.json").write_text(plan.dump())


def _words(violation: str) -> list[str]:
    """Return what broke, without its names and numbers."""
    return "".join(c for c in violation if c.isalpha() or c == " ").split()


def _fails_like(plan: Plan, kind: list[str]) -> bool:
    for violation in simulate(plan).violations:
        if sum(word in kind for word in _words(violation)) * 2 > len(kind):
            return True
    return False


def _replay(path: Path) -> int:
    report = simulate(Plan.load(path.read_text()), trace=True)
    sys.stdout.writelines(report.trace)
    _tell_violations(report)
    print(f"hash of the trace: {report.digest}")
    return 1 if report.violations else 0


if __name__ == "__main__":
    sys.exit(main())
