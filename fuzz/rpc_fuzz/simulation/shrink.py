"""Making a failing plan small: without the faults, machines and clocks that do not matter."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from .plan import Plan

__all__ = ["shrink"]


def shrink(plan: Plan, fails: Callable[[Plan], bool], most: int = 200) -> Plan:
    """Return the smallest plan found that still fails, after at most so many attempts."""
    attempts = 0
    again = True
    while again:
        again = False
        for smaller in _smaller(plan):
            attempts += 1
            if attempts > most:
                return plan
            if fails(smaller):
                plan = smaller
                again = True
                break
    return plan


def _smaller(plan: Plan) -> Iterator[Plan]:
    """Return plans with less in them, the boldest first."""
    faults = plan.faults
    size = len(faults)
    while size:
        for start in range(0, len(faults), size):
            yield replace(plan, faults=faults[:start] + faults[start + size :])
        size //= 2
    for name, least in (("late", 0), ("clients", 1), ("registries", 1), ("servers", 1)):
        number = getattr(plan, name)
        for fewer in range(least, number):
            changes: dict[str, Any] = {name: fewer}
            smaller = replace(plan, **changes)
            known = smaller.machines
            yield replace(
                smaller,
                drifts={name: drift for name, drift in plan.drifts.items() if name in known},
                faults=tuple(
                    fault
                    for fault in faults
                    if fault.who in known and (not fault.whom or fault.whom in known)
                ),
            )
    if plan.members > 1:
        yield replace(
            plan,
            members=1,
            faults=tuple(f for f in faults if f"{f.who} {f.whom}".find("etcd-1") < 0),
        )
    if plan.drifts:
        yield replace(plan, drifts={})
    last = max((fault.at + fault.lasts for fault in faults), default=0.0)
    for length in (last + 0.5, last + 5.0, plan.length / 2):
        if length < plan.length - 1.0:
            yield replace(
                plan,
                length=round(length, 2),
                faults=tuple(fault for fault in faults if fault.at < length),
            )
    for number, fault in enumerate(faults):
        for lasts in (fault.lasts / 4, fault.lasts / 2):
            if fault.lasts > 0.2:
                shorter = replace(fault, lasts=round(lasts, 2))
                yield replace(plan, faults=(*faults[:number], shorter, *faults[number + 1 :]))
