"""The `rpc-proto` command: which part of it runs, and how it ends."""

import contextlib
import os
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from importlib import import_module
from io import TextIOWrapper

from rpc_proto import RpcError

from .output.errors import FAILED, INTERRUPTED, PIPE_CLOSED, CommandError, explain

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with these arguments (default: the program's) and return its exit code."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by whoever started us
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # for what its encoding does not have
    try:
        try:
            return _run(sys.argv[1:] if argv is None else argv)
        finally:
            sys.stdout.flush()  # here, where a closed pipe is no traceback yet
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # Nobody reads on; nor may the interpreter's own last flush complain.
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    except CommandError as error:
        return _fail(error, error.exit_code)
    except (RpcError, OSError) as error:  # TimeoutError is an OSError
        return _fail(error, FAILED)


def _fail(error: Exception, code: int) -> int:
    with contextlib.suppress(BrokenPipeError):
        print(f"rpc-proto: {explain(error)}", file=sys.stderr, flush=True)
    return code


def _run(argv: Sequence[str]) -> int:
    # Here, where Ctrl-C is no traceback any more: to load it takes a while.
    from .commandline.parser import parse

    options = parse(argv)
    # Each is loaded only when it runs: most need no more than a part of the package.
    name = "demo.run" if options.command == "demo" else f"commands.{options.command}"
    module = import_module(f".{name}", __package__)
    command: Callable[[Namespace], int] = getattr(module, options.command)
    return command(options)
