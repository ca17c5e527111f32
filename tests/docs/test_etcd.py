"""docs/etcd.md names the tests of what it promises."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_tests_that_are_named_are_there():
    page = (ROOT / "docs" / "etcd.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(test_\w+)`", page))
    sources = "".join(
        path.read_text(encoding="utf-8") for path in (ROOT / "tests" / "etcd").glob("test_*.py")
    )
    assert len(named) > 20
    assert named <= set(re.findall(r"def (test_\w+)", sources))
