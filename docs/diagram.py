"""Write the diagram of the states into docs/protocol.md, from the table in rpc_proto/states.py."""

import re
from pathlib import Path

from rpc_proto.connection.states import mermaid

PAGE = Path(__file__).parent / "protocol.md"


def with_diagram(page: str) -> str:
    """Return the page with the diagram in its place."""
    return re.sub(
        r"```mermaid\n.*?```", lambda _: f"```mermaid\n{mermaid()}\n```", page, flags=re.S
    )


if __name__ == "__main__":
    PAGE.write_text(with_diagram(PAGE.read_text()))
