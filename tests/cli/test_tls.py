"""TLS from the command line: who trusts whom."""

import os
from pathlib import Path
from typing import Any

import pytest

from rpc_cli.output.errors import UsageError
from rpc_cli.setup.tls import client_context, server_context
from support.certificates import Authority

CERT = ("--tls-cert", "server.pem")
CLIENT_CERT = ("--tls-cert", "alice.pem", "--tls-key", "alice.pem")
CA = ("--tls-ca", "authority.pem")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with authority.pem, server.pem and alice.pem; commands that run in it find them."""
    folder = tmp_path_factory.mktemp("tls")
    Authority(folder)
    return folder


def serve(start: Any, folder: Path, *options: str) -> str:
    server = start(
        "serve", "rpc_cli.demo.services:Arith", "--listen=tls://127.0.0.1:0", *options, cwd=folder
    )
    address: str = server.address()
    assert address.startswith("tls://")
    return address


def test_client_that_trusts_the_authority_is_served(run: Any, start: Any, folder: Path) -> None:
    address = serve(start, folder, *CERT)
    assert run("call", address, "Arith.add", "1", "2", *CA, cwd=folder) == (0, "3.0\n", "")


def test_client_that_does_not_trust_the_server_says_so(run: Any, start: Any, folder: Path) -> None:
    code, _, errors = run("call", serve(start, folder, *CERT), "Arith.add", "1", "2", cwd=folder)
    assert code == 1
    assert "CERTIFICATE_VERIFY_FAILED" in errors
    assert errors.count("\n") == 1


def test_server_with_an_authority_wants_client_certificates(
    run: Any, start: Any, folder: Path
) -> None:
    call = ("call", serve(start, folder, *CERT, *CA), "Arith.add", "1", "2", *CA)
    code, output, errors = run(*call, cwd=folder)
    assert (code, output) == (1, "")
    assert errors.count("\n") == 1
    assert run(*call, *CLIENT_CERT, cwd=folder) == (0, "3.0\n", "")


def test_key_that_is_not_the_certificates_is_said(run: Any, folder: Path) -> None:
    code, _, errors = run(
        *("serve", "rpc_cli.demo.services:Arith", "--listen=tls://127.0.0.1:0"),
        *("--tls-cert", "server.pem", "--tls-key", "alice.pem"),
        cwd=folder,
    )
    assert code == 2
    assert errors.startswith("rpc-proto: server.pem and alice.pem are no certificate with its key")


@pytest.mark.fault(145)
@pytest.mark.timeout(20)
@pytest.mark.parametrize("context", [client_context, server_context])
@pytest.mark.parametrize("which", ["ca", "cert", "key"])
def test_fifo_in_place_of_a_tls_file_is_refused_and_waited_for_by_nobody(
    folder: Path, tmp_path: Path, context: Any, which: str
) -> None:
    cert = str(folder / "server.pem")
    files = {"ca": str(folder / "authority.pem"), "cert": cert, "key": cert}
    files[which] = str(tmp_path / "fifo")
    os.mkfifo(files[which])
    with pytest.raises(UsageError, match=f"{files[which]}: not a regular file"):
        context(**files)
