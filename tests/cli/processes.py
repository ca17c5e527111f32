"""The real command in processes of its own; nothing here waits without a deadline."""

import json
import os
import selectors
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any
from urllib.request import urlopen

HERE = Path(__file__).parent
COMMAND = [sys.executable, "-m", "rpc_cli"]
PATIENCE = 20.0  # seconds

# The commands run in another folder, where relative paths would mean something else.
_PATHS = os.environ.get("PYTHONPATH", "").split(os.pathsep)
ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if not name.startswith("RPC_PROTO_")},
    "PYTHONPATH": os.pathsep.join(os.path.abspath(path) for path in _PATHS if path),
}


class Process:
    """A running command whose output is read line by line."""

    def __init__(self, *arguments: str, **options: Any) -> None:
        options = {"cwd": HERE, "stdout": subprocess.PIPE, **options}
        self.process = subprocess.Popen(
            [*COMMAND, *arguments],
            stderr=subprocess.PIPE,
            env={**ENVIRONMENT, **options.pop("env", {})},
            **options,
        )
        self._output = b""

    def line(self) -> str:
        """The next line of its standard output; AssertionError if none comes."""
        pipe: IO[bytes] | None = self.process.stdout
        assert pipe is not None
        deadline = time.monotonic() + PATIENCE
        with selectors.DefaultSelector() as selector:
            selector.register(pipe, selectors.EVENT_READ)
            while b"\n" not in self._output:
                ready = selector.select(deadline - time.monotonic())
                data = os.read(pipe.fileno(), 65536) if ready else b""
                if not data:
                    self.process.kill()
                    _, errors = self.process.communicate()
                    raise AssertionError(f"no line; {self._output!r}, {errors!r}")
                self._output += data
        line, _, self._output = self._output.partition(b"\n")
        return line.decode()

    def address(self) -> str:
        line = self.line()
        assert line.startswith("listening on "), line
        return line.removeprefix("listening on ")

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def end(self, patience: float = PATIENCE) -> tuple[int, str, str]:
        """Wait for its end; exit code, what else it wrote, and its errors."""
        output, errors = self.process.communicate(timeout=patience)
        return self.process.returncode, (self._output + (output or b"")).decode(), errors.decode()


def kill(started: Process) -> None:
    """End it if it still runs."""
    if started.process.poll() is None:
        started.process.kill()
    started.process.communicate()


def wait_for_nodes(registry: str, right: Callable[[list[dict[str, Any]]], bool]) -> Any:
    """Wait until a registry lists nodes that are right; AssertionError if that does not happen."""
    deadline = time.monotonic() + PATIENCE
    query = ""
    while (left := deadline - time.monotonic()) > 0:
        with urlopen(f"{registry}/registry/nodes{query}", timeout=PATIENCE) as answer:
            listing = json.load(answer)
        if right(listing["nodes"]):
            return listing["nodes"]
        query = f"?wait={left:.3f}&revision={listing['revision']}"
    raise AssertionError(listing)
