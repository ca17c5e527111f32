"""TLS contexts from the files named on the command line."""

import ssl

from rpc_cli.output.errors import UsageError
from rpc_common.discovery.files import check_regular

__all__ = ["client_context", "server_context"]


def client_context(ca: str | None, cert: str | None, key: str | None) -> ssl.SSLContext:
    """Return a context that verifies the server, against `ca` instead of the system's if given.

    `cert` and `key` are what this end shows; the key may be in the file of the certificate.
    """
    # With a file named, what the system trusts besides is not loaded.
    context = (
        ssl.create_default_context() if ca is None else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    )
    if ca is not None:
        _load_ca(context, ca)
    if cert is not None:
        _load_cert(context, cert, key)
    elif key is not None:
        raise UsageError("--tls-key needs --tls-cert")
    return context


def server_context(ca: str | None, cert: str | None, key: str | None) -> ssl.SSLContext:
    """Return a context that shows `cert`; with `ca`, clients must show one that it vouches for."""
    if cert is None:
        raise UsageError("a tls:// address needs --tls-cert (and --tls-key)")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    _load_cert(context, cert, key)
    if ca is not None:
        _load_ca(context, ca)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def _load_ca(context: ssl.SSLContext, ca: str) -> None:
    _need_file(ca)
    try:
        context.load_verify_locations(ca)
    except ssl.SSLError as error:
        raise UsageError(f"{ca} holds no certificate in PEM form: {error}") from None


def _load_cert(context: ssl.SSLContext, cert: str, key: str | None) -> None:
    for path in (cert, key):
        if path is not None:
            _need_file(path)
    try:
        context.load_cert_chain(cert, key)
    except ssl.SSLError as error:
        raise UsageError(
            f"{cert} and {key or cert} are no certificate with its key: {error}"
        ) from None


def _need_file(path: str) -> None:
    try:
        check_regular(path)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None
