"""Running cases, and telling what came out: as a table, as JUnit XML, as JSON."""

import json
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple
from xml.etree import ElementTree

from rpc_proto.texts import printable

from .peer import Failure, Skip

__all__ = ["Result", "as_json", "as_junit", "as_table", "run_cases"]


class Result(NamedTuple):
    """How a case ended: "passed", "failed" or "skipped"; `text` says why."""

    section: str
    name: str
    says: str
    outcome: str
    text: str
    seconds: float


def run_cases(
    cases: Iterable[Any], run: Callable[[Any], None], told: Callable[[Result], None]
) -> list[Result]:
    """Run cases one after the other; `told` gets each result as it comes."""
    results = []
    for case in cases:
        began = time.monotonic()
        outcome, text = "passed", ""
        try:
            run(case)
        except Skip as reason:
            outcome, text = "skipped", str(reason)
        except (Failure, OSError) as failure:
            outcome, text = "failed", printable(str(failure))
        took = time.monotonic() - began
        results.append(Result(case.section, case.name, case.says, outcome, text, took))
        told(results[-1])
    return results


def as_table(results: list[Result]) -> str:
    """Return the results of each section, and their sum."""
    rows = [f"{'section':20}{'passed':>8}{'failed':>8}{'skipped':>9}"]
    sections: dict[str, list[Result]] = {}
    for result in results:
        sections.setdefault(result.section, []).append(result)
    for name, group in [*sections.items(), ("all", results)]:
        counts = [sum(r.outcome == kind for r in group) for kind in ("passed", "failed", "skipped")]
        rows.append(f"{name:20}{counts[0]:8}{counts[1]:8}{counts[2]:9}")
    return "\n".join(rows)


def as_json(results: list[Result]) -> str:
    """Return the results as a JSON array of objects."""
    return json.dumps([result._asdict() for result in results], indent=1)


def as_junit(results: list[Result]) -> str:
    """Return the results as JUnit XML."""
    suite = ElementTree.Element(
        "testsuite",
        name="rpc-proto conformance",
        tests=str(len(results)),
        failures=str(sum(result.outcome == "failed" for result in results)),
        skipped=str(sum(result.outcome == "skipped" for result in results)),
        time=f"{sum(result.seconds for result in results):.3f}",
    )
    for result in results:
        case = ElementTree.SubElement(
            suite,
            "testcase",
            classname=result.section,
            name=f"{result.name}: {result.says}",
            time=f"{result.seconds:.3f}",
        )
        if result.outcome == "failed":
            ElementTree.SubElement(case, "failure", message=result.text)
        elif result.outcome == "skipped":
            ElementTree.SubElement(case, "skipped", message=result.text)
    return ElementTree.tostring(suite, "unicode", xml_declaration=True) + "\n"
