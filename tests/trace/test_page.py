"""The example of traces on the page about embedding is true."""

import re
from pathlib import Path

PAGE = (Path(__file__).parents[2] / "docs" / "embedding.md").read_text()


def test_the_example_of_a_trace_is_true() -> None:
    (code,) = re.findall(r"```python\n(import rpc_proto\n.*?)```", PAGE, flags=re.S)
    exec(compile(code, "embedding.md", "exec"), {})
