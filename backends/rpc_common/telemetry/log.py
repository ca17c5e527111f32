"""Log lines that cannot break anything, and that peers cannot forge."""

import logging
import sys
import traceback
from contextlib import suppress
from textwrap import indent
from typing import Any

from rpc_proto.texts import printable

__all__ = ["Log", "get_log"]

_LONGEST = 1000  # characters of a text in a line
_LONGEST_TRACEBACK = 32 * 1024

# A log line must never cost a call, a slot or a connection. Handlers catch errors of writing, but
# not those of their own code, and filters catch nothing.


class Log(logging.LoggerAdapter[logging.Logger]):
    """A logger whose methods raise no Exception; errors of handlers and filters go to stderr.

    Other BaseExceptions are raised, because they end threads and greenlets.

    Texts are shortened and escaped. So are tracebacks in which an exception's text is long or not
    printable; their lines are indented, so that none can pass for another record.
    """

    def __init__(self, logger: logging.Logger) -> None:
        super().__init__(logger, {})
        logger.addFilter(_make_printable)  # once for each logger, however many a Log has

    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:
        # Two frames more, so that a record names the line that logs.
        kwargs["stacklevel"] = kwargs.get("stacklevel", 1) + 2
        try:
            self.logger.log(level, msg, *args, **kwargs)
        except Exception:
            if logging.raiseExceptions and sys.stderr is not None:
                with suppress(Exception):
                    traceback.print_exc()

    def get_child(self, suffix: str) -> "Log":
        """Return the log of that name below this one."""
        return Log(self.logger.getChild(suffix))


def get_log(name: str) -> Log:
    """Return the log of that name."""
    return Log(logging.getLogger(name))


def _make_printable(record: logging.LogRecord) -> bool:
    """Make a record safe to write; returns True, for use as a filter."""
    if isinstance(record.args, tuple):
        record.args = tuple(map(_shown, record.args))
    error = record.exc_info[1] if record.exc_info else None
    if error is not None and not _is_plain(error):
        text = "".join(traceback.format_exception(error)).rstrip()
        if len(text) > _LONGEST_TRACEBACK:
            half = _LONGEST_TRACEBACK // 2
            text = f"{text[:half]}\n...\n{text[-half:]}"
        record.exc_text = indent(printable(text, "\n\t"), "  ")  # which formatters take as it is
    return True


def _shown(value: object) -> object:
    if isinstance(value, (int, float)):
        return value
    text = str(value)
    if len(text) > _LONGEST:
        text = f"{text[:_LONGEST]}... ({len(text)} characters)"
    return printable(text)


def _is_plain(error: BaseException) -> bool:
    """Whether the texts of an exception and its causes are safe to log."""
    waiting: list[BaseException | None] = [error]
    seen = set()
    while waiting:
        one = waiting.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        for text in (_text(one), *getattr(one, "__notes__", ())):
            if not isinstance(text, str) or len(text) > _LONGEST or not text.isprintable():
                return False
        waiting += one.__cause__, one.__context__, *getattr(one, "exceptions", ())
    return True


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except BaseException:  # an exception may be broken, too; a traceback says so
        return ""
