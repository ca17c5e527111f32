"""How `rpc-proto demo` looks: headings, code and results, in colours where they can be shown."""

import ast
import inspect
import sys
import textwrap
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from rpc_cli.output.errors import CommandError
from rpc_cli.output.terminal import is_fancy

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["body_of", "claim", "code", "result", "say"]


def say(console: "Console", text: str) -> None:
    """Show a heading."""
    console.print(text, style="bold", soft_wrap=True)
    console.print()


def code(console: "Console", text: str, language: str = "python") -> None:
    """Show code."""
    indented = textwrap.indent(text, "    ")
    if is_fancy(sys.stdout):
        from rich.syntax import Syntax

        shown = Syntax(indented, language, theme="ansi_dark", background_color="default")
        console.print(shown, soft_wrap=True)
    else:
        console.print(indented, soft_wrap=True)


def result(console: "Console", lines: list[str]) -> None:
    """Show what came of it."""
    mark = "  > "
    for line in lines:
        console.print(f"{mark}{line}".rstrip(), style="green", soft_wrap=True)
        mark = "    "
    console.print()
    sys.stdout.flush()  # even into a pipe, so that each step is seen at once


def body_of(function: Callable[..., Any]) -> str:
    """Return the lines of a function after its docstring, so that the code shown is what runs."""
    source = textwrap.dedent(inspect.getsource(function))
    parsed = ast.parse(source).body[0]
    assert isinstance(parsed, ast.FunctionDef | ast.AsyncFunctionDef)
    first = parsed.body[1].lineno
    return textwrap.dedent("\n".join(source.splitlines()[first - 1 :]))


def claim(true: bool, what: str, got: str) -> None:
    """Raise CommandError unless the claim is true."""
    if not true:
        raise CommandError(f"the demo did not show what it claims: {what}; got {got}")
