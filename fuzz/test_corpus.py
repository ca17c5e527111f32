"""What coverage-guided fuzzing has found worth keeping, once more."""

from pathlib import Path

import pytest

from rpc_fuzz.guided.targets import SEEDS, TARGETS

CORPUS = Path(__file__).parent / "corpus"


@pytest.mark.parametrize("name", TARGETS)
def test_corpus(name: str) -> None:
    inputs = [path.read_bytes() for path in sorted((CORPUS / name).iterdir())]
    assert len(inputs) >= 4
    for data in (*SEEDS[name], *inputs):
        TARGETS[name](data)
