"""The table of faults: `--fault-table` prints which test shows which row, and how it ended."""

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

_Options = dict[str, Any]

_ORDER = ("failed", "error", "skipped", "xfailed", "passed")
_rows: dict[tuple[int, str], dict[str, str]] = {}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--fault-table",
        action="store_true",
        help="print at the end: row of the table of faults | test | outcome",
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # A user property travels with the reports, also from the workers of pytest-xdist.
    for item in items:
        for mark in item.iter_markers("fault"):
            for row in mark.args:
                item.user_properties.append(("fault", row))


def pytest_collection_finish() -> None:
    # Many tests look for leaks behind a collection: it need not visit the thousands of tests.
    gc.collect()
    gc.freeze()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when != "call" and report.outcome == "passed":
        return
    outcome: str = report.outcome if report.when == "call" or report.skipped else "error"
    if report.skipped and hasattr(report, "wasxfail"):
        outcome = "xfailed"
    test, _, case = report.nodeid.partition("[")
    for name, row in report.user_properties:
        if name == "fault":
            _rows.setdefault((int(str(row)), test), {})[case] = outcome


def _table() -> Iterator[str]:
    yield "row | test | outcome"
    for (row, test), outcomes in sorted(_rows.items()):
        worst = min(outcomes.values(), key=_ORDER.index)
        cases = f" ({len(outcomes)} cases)" if len(outcomes) > 1 else ""
        yield f"{row:3} | {test} | {worst}{cases}"


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    if config.getoption("--fault-table"):
        terminalreporter.section("faults")
        for line in _table():
            terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Certificates of a made-up authority."""
    from support.certificates import Authority  # its import takes longer than many a test

    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(params=["tcp", "unix", "tls"])
def transport(
    request: pytest.FixtureRequest, tmp_path: Path, authority: Any
) -> tuple[_Options, _Options]:
    """Give how to listen and how to connect."""
    if request.param == "tcp":
        return {"address": "tcp://127.0.0.1:0"}, {}
    if request.param == "unix":
        return {"address": f"unix://{tmp_path}/s"}, {}
    return (
        {"address": "tls://127.0.0.1:0", "ssl": authority.server_context()},
        {"ssl": authority.client_context()},
    )
