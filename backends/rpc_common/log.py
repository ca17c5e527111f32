"""Log lines that break nothing, whatever the handlers and filters of an application do."""

import logging
import sys
import traceback
from contextlib import suppress
from typing import Any

__all__ = ["Log", "get_log"]

# A line in a log is never worth a call, a slot or a connection. Handlers catch what goes wrong when
# they write, but not what their own code raises, and filters catch nothing.


class Log(logging.LoggerAdapter[logging.Logger]):
    """A logger whose methods raise no Exception; what a handler or a filter raised goes to stderr.

    What else they raise goes on: it is how threads and greenlets are told to end.
    """

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
    return Log(logging.getLogger(name), {})
