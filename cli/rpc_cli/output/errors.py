"""The errors of commands: one line for the user and an exit code."""

from typing import Any

from rpc_proto import CallError
from rpc_proto.texts import printable

from .values import to_json

__all__ = ["FAILED", "INTERRUPTED", "PIPE_CLOSED", "USAGE", "CommandError", "UsageError", "explain"]

FAILED = 1
USAGE = 2
INTERRUPTED = 130  # as a shell reports a program that SIGINT ended
PIPE_CLOSED = 141  # as a shell reports a program that SIGPIPE ended


class CommandError(Exception):
    """The command failed; the text is for the user."""

    exit_code = FAILED


class UsageError(CommandError):
    """The command line is invalid."""

    exit_code = USAGE


def explain(error: BaseException) -> str:
    """Return the text for the user: one line, then the details that a server sent."""
    text = _one_line(str(error) or type(error).__name__)
    details: Any = error.details if isinstance(error, CallError) else None
    if details is None:
        return text
    if isinstance(details, str):  # the traceback of a server in debug mode, say
        return text + "\n" + printable(details.rstrip(), "\n")
    return f"{text}\ndetails: {to_json(details, indent=None)}"


def _one_line(text: str) -> str:
    return printable(" ".join(text.split()))
