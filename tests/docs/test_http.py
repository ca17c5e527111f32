"""docs/http.md shows what servers answer, and its example runs."""

import contextlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from rpc_blocking import Client, Server
from rpc_proto import NotFound

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "http.md").read_text()
LIMIT = 20.0


@contextlib.contextmanager
def running(*arguments: str) -> Iterator[str]:
    """Give the address that a program prints first."""
    program = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.PIPE, text=True)
    with program:
        try:
            assert program.stdout is not None
            yield program.stdout.readline().split()[-1]
        finally:
            program.kill()


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """The address of the server that the page tells of, after its calls."""
    (command,) = re.findall(r"\n    rpc-proto (serve .*)\n", PAGE)
    with running("-m", "rpc_cli", *command.split(), "--listen=tcp://127.0.0.1:0") as address:
        with Client.connect(address) as client:
            for number in range(3):
                client.call("Arith.add", number, 2)
            with pytest.raises(NotFound):
                client.call("Store.get", "nothing")
        yield address


def steady(text: str) -> list[str]:
    """The lines, without what is another in each version."""
    return re.sub(r"'sha256-[^']+'", "'sha256-...'", text.replace("\r", "")).splitlines()


TRANSCRIPTS = re.findall(r"^\$ (curl -i .*)\n((?:(?!\$ curl|```).*\n)+)", PAGE, flags=re.M)


@pytest.mark.parametrize(("command", "shown"), TRANSCRIPTS, ids=[one for one, _ in TRANSCRIPTS])
def test_the_server_answers_as_shown(address, command, shown):
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    if "metrics" in command:
        pytest.importorskip("prometheus_client", reason="the extra metrics is not installed")
    real = command.replace("127.0.0.1:7000", address.removeprefix("tcp://"))
    done = subprocess.run(
        [*shlex.split(real), "--silent", "--noproxy", "*"], stdout=subprocess.PIPE, timeout=LIMIT
    )
    lines = iter(steady(done.stdout.decode()))
    skipping = False
    for line in shown.splitlines():
        if line == "...":
            skipping = True
            continue
        assert line in lines if skipping else next(lines) == line
        skipping = False
    assert skipping or list(lines) == []


TYPED = "".join(re.findall(r"```sh\n.*?```", PAGE, flags=re.S))
BY_HAND = re.findall(r"^\$ (.*)\n((?:(?!\$ |```).*\n)+)", TYPED, flags=re.M)


@pytest.fixture(scope="module")
def both(authority, tmp_path_factory) -> Iterator[tuple[str, str]]:
    """The hosts and ports of a server, without TLS and with it."""
    context = authority.server_context()
    with Server() as server:
        yield tuple(
            server.start(f"{scheme}://127.0.0.1:0", ssl=ssl).partition("//")[2]
            for scheme, ssl in (("tcp", None), ("tls", context))
        )


@pytest.mark.parametrize(("command", "shown"), BY_HAND)
def test_connect_and_https_can_be_typed(both, authority, command, shown):
    for tool in ("curl", "openssl"):
        if tool in command and shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    plain, tls = both
    real = command.replace("127.0.0.1:7000", plain).replace("127.0.0.1:7443", tls)
    with subprocess.Popen(
        ["sh", "-c", f"{real.replace('ca.pem', str(authority.file))} 2>/dev/null"],
        stdout=subprocess.PIPE,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        try:  # openssl stays as long as the server does
            lines = [process.stdout.readline() for _ in shown.splitlines()]
        finally:
            os.killpg(process.pid, signal.SIGKILL)
    assert b"".join(lines).decode().replace("\r", "") == shown


def test_the_metrics_are_those_of_the_table(address):
    pytest.importorskip("prometheus_client", reason="the extra metrics is not installed")
    url = f"http{address.removeprefix('tcp')}/metrics"
    real = set(re.findall(r"^# TYPE (\w+)", get(url), flags=re.M))
    rows = re.findall(r"^\| (`rpc_server_.*?) \|", PAGE, flags=re.M)
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row)} == real


def get(url: str, data: bytes | None = None) -> str:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, data, timeout=LIMIT) as answer:
        return answer.read().decode()


def test_the_example_answers_and_keeps_its_promise(tmp_path):
    (code,) = (
        code for code in re.findall(r"```python\n(.*?)```", PAGE, flags=re.S) if "main()" in code
    )
    (tmp_path / "example.py").write_text(code)
    with running(str(tmp_path / "example.py")) as address:
        site = f"http{address.removeprefix('tcp')}"
        assert get(f"{site}/hello?name=you") == '{"hello":"you"}\n'
        with pytest.raises(urllib.error.HTTPError, match="400") as refused:
            get(f"{site}/hello")
        refused.value.close()
        news: list[str] = []
        reader = threading.Thread(target=lambda: news.append(get(f"{site}/news")))
        reader.start()
        told = ""
        while reader.is_alive() and told != "1 told\n":  # until it waits, and is told
            told = get(f"{site}/news", b"at last")
        reader.join(LIMIT)
        assert news == ["at last\n"]
