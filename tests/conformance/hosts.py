"""The test's end of the server processes: start them, speak to them, end them."""

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# No test waits longer for one thing, in seconds.
LIMIT = 20.0

# Options of a host that are no arguments of its server.
_OWN = ("authority", "files", "port", "registry", "registries", "ttl", "verbose")

# A blocking server needs a thread for each handler that waits, of which one connection may have
# three quarters.
THREADS = 80


class Process:
    """A Python program whose lines of output are read with a deadline."""

    def __init__(self, log: Path, *arguments: str) -> None:
        self._log = log
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        with log.open("wb") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put(None)

    def line(self, timeout: float = LIMIT) -> str:
        try:
            line = self._lines.get(timeout=timeout)
        except queue.Empty:
            raise AssertionError(f"the process says nothing; {self._errors()}") from None
        if line is None:
            raise AssertionError(f"the process has ended; {self._errors()}")
        return line

    def say(self, line: str) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # the answer that fails to come tells more
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()

    def errors(self) -> str:
        return self._log.read_text(errors="replace")

    def _errors(self) -> str:
        return f"it said: {self.errors()[-4000:]}"

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    def kill(self) -> None:
        """End it at once, as the kernel does to one that takes too much memory."""
        self._process.send_signal(signal.SIGKILL)
        self._process.wait(LIMIT)
        self._reader.join(LIMIT)
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


class HostProcess:
    """A server in a process of its own."""

    def __init__(self, backend: str, folder: Path, certificate: Path, **options: Any) -> None:
        """Options: `config` for its ServerConfig; `files`, how many it may open; `authority`, which
        signs its clients' certificates; `verbose`; `port` for tcp;
        `registry`, the epoch of the one that it hosts; `registries` to register at, with a `ttl`;
        all others are arguments of its Server.
        """
        self.backend = backend
        config = options.pop("config", {})
        own = {name: options.pop(name) for name in _OWN if name in options}
        if backend == "blocking":
            options.setdefault("threads", THREADS)
        self._process = Process(
            folder / "errors.txt",
            "conformance.host",
            backend,
            json.dumps(
                {
                    "addresses": [
                        f"tcp://127.0.0.1:{own.pop('port', 0)}",
                        f"unix://{folder}/s",
                        "tls://127.0.0.1:0",
                    ],
                    "certificate": str(certificate),
                    "config": config,
                    "server": options,
                    **own,
                }
            ),
        )
        self._addresses: dict[str, str] = {
            address.partition(":")[0]: address for address in json.loads(self._process.line())
        }
        for transport, beneath in (("http", "tcp"), ("https", "tls")):  # one port, all faces
            rest = self._addresses[beneath].partition(":")[2]
            self._addresses[transport] = f"{transport}:{rest}"
        self.alive = True

    def address(self, transport: str = "tcp") -> str:
        return self._addresses[transport]

    def _do(self, *command: Any) -> Any:
        self._process.say(json.dumps(command))
        answer = json.loads(self._process.line(LIMIT + 10))
        assert "failure" not in answer, answer["failure"]
        return answer["value"]

    def count(self, what: str, key: str) -> int:
        return self._do("count", f"{what}:{key}")

    def wait(self, what: str, key: str, least: int = 1) -> None:
        """Wait until something has happened to a handler so many times."""
        seen = self._do("wait", f"{what}:{key}", least, LIMIT)
        assert seen >= least, f"{what}: {seen} of {least} times; {self.stats}"

    @property
    def stats(self) -> dict[str, int]:
        return self._do("settle", {}, 0)

    def settle(self, timeout: float = LIMIT, **wanted: int) -> None:
        """Wait until the server's counters are those wanted."""
        stats = self._do("settle", wanted, timeout)
        assert {name: stats[name] for name in wanted} == wanted

    def snapshot(self) -> dict[str, Any]:
        return self._do("snapshot")

    def no_delay(self) -> list[bool]:
        """Return whether TCP_NODELAY is set, for each connection."""
        return self._do("no_delay")

    def log(self) -> str:
        """Return what it has written to standard error."""
        return self._process.errors()

    def set_health(self, service: str, serving: bool) -> None:
        self._do("set_health", service, serving)

    def open(self, key: str) -> None:
        self._do("open", key)

    def begin_stop(self, grace: float) -> None:
        self._do("stop", grace)

    def stopped(self, timeout: float = LIMIT) -> bool:
        """Wait for the end of `stop`; whether it came in time."""
        ended, failure = self._do("stopped", timeout)
        assert failure is None, failure
        return ended

    def freeze(self) -> None:
        """Stop the process, whose kernel goes on for it."""
        self._process.signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._process.signal(signal.SIGCONT)

    def kill(self) -> None:
        if self.alive:
            self.alive = False
            self._process.kill()


class Hosts:
    """Starts servers on demand and keeps those that tests can share."""

    def __init__(self, folder: Path, certificate: Path) -> None:
        self._folder = folder
        self._certificate = certificate
        self._started = 0
        self._shared: dict[str, HostProcess] = {}

    def start(self, backend: str, **options: Any) -> HostProcess:
        self._started += 1
        folder = self._folder / str(self._started)
        folder.mkdir()
        return HostProcess(backend, folder, self._certificate, **options)

    @contextlib.contextmanager
    def own(self, backend: str, **options: Any) -> Iterator[HostProcess]:
        """Give a server that the test may destroy."""
        host = self.start(backend, **options)
        try:
            yield host
        finally:
            host.kill()

    @contextlib.contextmanager
    def shared(self, backend: str, **options: Any) -> Iterator[HostProcess]:
        """Give a server with these options; afterwards nothing may be left on it."""
        key = json.dumps([backend, options], sort_keys=True)
        host = self._shared.get(key)
        if host is None:
            host = self._shared[key] = self.start(backend, **options)
        try:
            yield host
            host.settle(connections=0, running=0, queued=0)
        except BaseException:
            del self._shared[key]
            host.kill()
            raise

    def close(self) -> None:
        for host in self._shared.values():
            host.kill()
        self._shared.clear()
