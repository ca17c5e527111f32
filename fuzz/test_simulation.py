"""A cluster in virtual time keeps its promises, and does the same each time."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from rpc_fuzz.simulation.cluster import Bank
from rpc_fuzz.simulation.plan import KINDS, Fault, Plan
from rpc_fuzz.simulation.run import simulate
from rpc_fuzz.simulation.shrink import shrink

KEPT = sorted((Path(__file__).parent / "plans").glob("*.json"))


@pytest.mark.parametrize("seed", range(4))
def test_promises_are_kept(seed: int) -> None:
    report = simulate(Plan.draw(seed))
    assert report.violations == []
    assert report.calls > 100
    assert report.lost == 0


@pytest.mark.parametrize("path", KEPT, ids=lambda path: path.stem)
def test_plan_that_once_failed(path: Path) -> None:
    assert simulate(Plan.load(path.read_text())).violations == []


def test_all_kinds_of_faults_are_drawn() -> None:
    assert {fault.kind for seed in range(100) for fault in Plan.draw(seed).faults} == set(KINDS)


def test_plan_is_the_same_after_a_journey_through_json() -> None:
    plan = Plan.draw(1)
    assert Plan.load(plan.dump()) == plan


def test_same_seed_is_the_same_trace_whatever_the_hash_seed() -> None:
    program = (
        "from rpc_fuzz.simulation.run import simulate\n"
        "from rpc_fuzz.simulation.plan import Plan\n"
        "print(simulate(Plan.draw(13)).digest)"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
            timeout=50,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(digests) == 1


def test_broken_promise_is_seen_and_the_plan_shrinks(monkeypatch: pytest.MonkeyPatch) -> None:
    deposit = Bank.deposit

    async def twice(self: Bank, token: str, wait: float, filler: str = "") -> list[str]:
        if token.endswith("7"):
            await deposit(self, token, wait, filler)
        return await deposit(self, token, wait, filler)

    monkeypatch.setattr(Bank, "deposit", twice)
    plan = replace(
        Plan.draw(2), faults=(Fault(1.0, "compact"), Fault(2.0, "pause", "server-0", 0.1))
    )

    def fails(plan: Plan) -> bool:
        return any("ran 2 times" in text for text in simulate(plan).violations)

    assert fails(plan)
    small = shrink(plan, fails, most=12)
    assert small.faults == ()
    assert small.clients == 1
