"""HTTP proxies: which one to use, and how to ask it for a tunnel."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import unquote_to_bytes

from rpc_proto import Address, parse_address

if TYPE_CHECKING:
    from rpc_proto.http.tunnel import Tunnel

__all__ = ["ENVIRONMENT", "Proxy", "find_proxy", "parse_proxy"]

ENVIRONMENT = "env"  # instead of a URL: see the environment


class Proxy:
    """An HTTP proxy. Its credentials are never shown."""

    __slots__ = ("_credentials", "where")

    def __init__(self, where: Address, credentials: bytes | None) -> None:
        self.where = where
        self._credentials = credentials

    def __str__(self) -> str:
        return f"the proxy {self.where}"

    __repr__ = __str__

    def tunnel_to(self, target: Address) -> Tunnel:
        """Return the tunnel through this proxy to an address."""
        from rpc_proto.http.tunnel import Tunnel  # with h11, which few need

        return Tunnel(target.authority, peer=str(self), credentials=self._credentials)


def parse_proxy(url: str) -> Proxy:
    """Parse http://host:port or http://user:password@host:port; ValueError shows no password.

    User and password may be percent-encoded (RFC 3986, section 3.2.1). The default port is 80.
    """
    scheme, separator, rest = url.partition("://")
    user_info, at, host = rest.rpartition("@")
    if not separator or scheme != "http":
        raise ValueError("a proxy must be http://host:port or http://user:password@host:port")
    where = parse_address(f"http://{host}")
    if not at:
        return Proxy(where, None)
    # Variables of the environment may be of any bytes.
    user, _, password = user_info.encode("utf-8", "surrogateescape").partition(b":")
    name = unquote_to_bytes(user)
    if b":" in name:
        raise ValueError(f"the user of {where} cannot have a colon in the name (RFC 7617)")
    return Proxy(where, name + b":" + unquote_to_bytes(password))


def find_proxy(proxy: str | None, target: Address) -> Proxy | None:
    """Return the proxy for `connect`, or None; ValueError for an invalid one."""
    if proxy is None:
        return None
    if target.scheme == "unix":
        raise ValueError(f"a proxy cannot be used for {target}")
    return _from_environment(target) if proxy == ENVIRONMENT else parse_proxy(proxy)


def _from_environment(target: Address) -> Proxy | None:
    import urllib.request as environment  # takes long

    known = environment.getproxies_environment()
    url = known.get("http" if target.scheme == "http" else "https") or known.get("all")
    # `no_proxy` is a list of names, some of them with a port; IPv6 comes with and without brackets.
    is_direct = environment.proxy_bypass_environment  # type: ignore[attr-defined]
    if not url or is_direct(target.authority, known) or is_direct(target.host, known):
        return None
    try:
        return parse_proxy(url if "://" in url else f"http://{url}")
    except ValueError as error:
        raise ValueError(f"in the environment: {error}") from None
