"""What an output stream can show: colours and bars on a terminal, plain text elsewhere."""

import os
from typing import TYPE_CHECKING, TextIO

from .errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["can_show", "is_fancy", "make_console", "need_rich"]


def is_fancy(stream: TextIO) -> bool:
    """Whether escape codes may be written: never into a pipe, a file or a dumb terminal."""
    return stream.isatty() and os.environ.get("TERM", "dumb") not in ("", "dumb", "unknown")


def can_show(stream: TextIO, text: str) -> bool:
    """Whether the stream's encoding has these characters."""
    try:
        text.encode(stream.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True


def need_rich() -> None:
    """Raise UsageError, with what to do about it, if the extra `cli` is not installed."""
    try:
        import rich  # noqa: F401
    except ImportError:
        raise UsageError(
            "this command needs rich, which is not installed: pip install 'rpc-proto[cli]'"
        ) from None


def make_console(stream: TextIO) -> "Console":
    """Return a console that writes no escape codes where they would be seen."""
    from rich.console import Console

    class OurConsole(Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError  # for `main`, as from `print`

    fancy = is_fancy(stream)
    return OurConsole(
        file=stream,
        force_terminal=fancy,
        color_system="auto" if fancy else None,
        highlight=False,
        markup=False,
        emoji=False,
    )
