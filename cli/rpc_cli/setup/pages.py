"""The pages of a server that the command starts: access, and their URLs."""

import os
from argparse import Namespace

from rpc_cli.output.errors import UsageError
from rpc_proto import parse_address
from rpc_proto.http import Pages
from rpc_proto.pages.builtin import DEBUG_PATH

from .variables import PAGE_TOKEN_VARIABLE

__all__ = ["debug_page", "make_pages"]


_ANYWHERE = ("0.0.0.0", "::")
_WHO = {
    "loopback": "from this machine",
    "token": "for any user with the page token as password",
    "open": "for everybody who can connect",
}


def make_pages(options: Namespace) -> Pages:
    """Return the settings; UsageError if they make no sense."""
    token = options.page_token
    if token is None and "token" in (options.debug_page, options.metrics):
        token = os.environ.get(PAGE_TOKEN_VARIABLE) or None
        if token is None:
            raise UsageError(f"a page with a token needs --page-token or ${PAGE_TOKEN_VARIABLE}")
    try:
        return Pages(debug=options.debug_page, metrics=options.metrics, token=token)
    except ValueError as error:
        raise UsageError(f"--page-token: {error}") from None


def debug_page(address: str, pages: Pages) -> str | None:
    """Return a line that says where the debug page of a server is; None if there is none."""
    if pages.debug == "off":
        return None
    where = parse_address(address)
    if where.scheme == "unix":
        link = f"curl --unix-socket {where.path} http://localhost{DEBUG_PATH}"
    else:
        if where.host in _ANYWHERE:
            where = where._replace(host="localhost")
        link = f"{'https' if where.has_tls else 'http'}://{where.authority}{DEBUG_PATH}"
    return f"debug page, {_WHO[pages.debug]}: {link}"
