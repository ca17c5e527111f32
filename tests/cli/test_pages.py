"""`rpc-proto serve` with pages: who sees them, and where a person is told to find them."""

import os
import pty
import subprocess
import urllib.error
import urllib.request
from typing import Any

import pytest

from cli.processes import COMMAND, ENVIRONMENT, HERE, PATIENCE
from rpc_cli.setup.pages import debug_page
from rpc_proto.http import Pages

ANYWHERE = "--listen=tcp://127.0.0.1:0"
SERVE = ("serve", "served:Other", ANYWHERE)


def status(address: str, path: str, token: str = "") -> int:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    fields = {"Authorization": f"Bearer {token}"} if token else {}
    url = f"http{address.removeprefix('tcp')}{path}"
    try:
        with opener.open(urllib.request.Request(url, headers=fields), timeout=PATIENCE) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        with error:
            return error.code


@pytest.mark.parametrize("backend", ["asyncio", "blocking", "gevent"])
def test_the_pages_are_there_unless_told_otherwise(start: Any, backend: str) -> None:
    pytest.importorskip("prometheus_client", reason="the extra metrics is not installed")
    if backend == "gevent":
        pytest.importorskip("gevent", reason="gevent is not installed")
    address = start("serve", "served:Probe", ANYWHERE, "--backend", backend).address()
    assert [status(address, path) for path in ("/debug/rpc", "/metrics", "/readyz")] == [200] * 3


def test_pages_can_be_switched_off_and_put_behind_a_token(start: Any) -> None:
    options = ("--debug-page", "token", "--page-token", "secret", "--metrics", "off")
    address = start(*SERVE, *options).address()
    assert status(address, "/debug/rpc") == 401
    assert status(address, "/debug/rpc", "secret") == 200
    assert status(address, "/metrics") == 404


def test_the_page_token_can_come_from_the_environment(start: Any) -> None:
    token = {"RPC_PROTO_PAGE_TOKEN": "secret"}
    address = start(*SERVE, "--debug-page=token", env=token).address()
    assert status(address, "/debug/rpc", "secret") == 200
    assert status(start(*SERVE, env=token).address(), "/debug/rpc") == 200  # asks for none


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--debug-page", "token"], "--page-token or $RPC_PROTO_PAGE_TOKEN"),
        (["--page-token", "secret"], "protects nothing"),
        (["--debug-page", "everybody"], "invalid choice: 'everybody'"),
    ],
)
def test_settings_that_make_no_sense_are_wrong_usage(
    run: Any, options: list[str], words: str
) -> None:
    code, output, errors = run(*SERVE, *options)
    assert (code, output) == (2, "")
    assert words in errors
    assert errors.count("\n") == 1


def test_a_person_is_told_where_the_page_is() -> None:
    person, terminal = pty.openpty()
    server = subprocess.Popen(
        [*COMMAND, *SERVE], cwd=HERE, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=terminal
    )
    try:
        assert server.stdout is not None
        port = server.stdout.readline().decode().strip().rpartition(":")[2]
        told = os.read(person, 4096).decode().strip()
        assert told == f"debug page, from this machine: http://127.0.0.1:{port}/debug/rpc"
    finally:
        server.kill()
        server.communicate()
        os.close(person)
        os.close(terminal)


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("tcp://0.0.0.0:7000", "http://localhost:7000/debug/rpc"),
        ("tls://[::]:7000", "https://localhost:7000/debug/rpc"),
        ("tcp://[::1]:7000", "http://[::1]:7000/debug/rpc"),
        ("unix:///run/s", "curl --unix-socket /run/s http://localhost/debug/rpc"),
    ],
)
def test_the_link_fits_the_address(address: str, shown: str) -> None:
    assert debug_page(address, Pages(debug="open")) == (
        f"debug page, for everybody who can connect: {shown}"
    )


def test_a_page_that_is_off_is_nowhere() -> None:
    assert debug_page("tcp://127.0.0.1:7000", Pages(debug="off")) is None
