"""Addresses as URLs: tcp, tls, http and https with host and port, and unix:///path."""

import re
from typing import NamedTuple

__all__ = ["Address", "parse_address"]

_SCHEMES = ("tcp", "tls", "http", "https", "unix")
_DEFAULT_PORTS = {"http": "80", "https": "443"}
_LONGEST_HOST = 255
_LONGEST_LABEL = 63
_LONGEST_PATH = 107  # bytes: what fits into sockaddr_un with its final NUL
_HOST = re.compile(r"\[[0-9A-Fa-f:.%a-zA-Z_-]+\]|[A-Za-z0-9._-]+", re.ASCII)


class Address(NamedTuple):
    """A parsed address; `path` for unix, `host` and `port` for all others.

    With http and https, the client opens the RPC connection with HTTP CONNECT.
    """

    scheme: str
    host: str = ""
    port: int = 0
    path: str = ""

    @property
    def has_tls(self) -> bool:
        """Whether TLS comes first."""
        return self.scheme in ("tls", "https")

    @property
    def has_http(self) -> bool:
        """Whether the connection begins with HTTP."""
        return self.scheme in _DEFAULT_PORTS

    @property
    def authority(self) -> str:
        """Host and port as HTTP writes them (RFC 9110, section 7.2)."""
        # A zone means something on this machine only (RFC 6874, section 1).
        host, _, _ = self.host.partition("%")
        return f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"

    def __str__(self) -> str:
        if self.scheme == "unix":
            return f"unix://{self.path}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"


def parse_address(url: str, *, listening: bool = False) -> Address:
    """Parse an address; ValueError names the value and the rule.

    Port 0 is for listening only. When dialling http or https, the port may be omitted and is then
    80 or 443, and the address may end with a slash, as web addresses do.
    """
    scheme, separator, rest = url.partition("://")
    if not separator or scheme not in _SCHEMES:
        schemes = ", ".join(f"{known}://" for known in _SCHEMES[:-1])
        raise ValueError(f"address must begin with {schemes} or unix://, not {url[:80]!r}")
    if scheme == "unix":
        if not rest.startswith("/") or "\0" in rest or len(rest.encode()) > _LONGEST_PATH:
            raise ValueError(
                f"a unix address needs an absolute path of at most {_LONGEST_PATH} bytes, "
                f"not {rest[:120]!r}"
            )
        return Address(scheme, path=rest)
    default = _DEFAULT_PORTS.get(scheme)
    if default is not None:
        rest = rest.removesuffix("/")
        if not listening and (":" not in rest or rest.endswith("]")):
            rest = f"{rest}:{default}"
    host, separator, digits = rest.rpartition(":")
    if not separator or not host:
        raise ValueError(f"address must have a host and a port, not {url[:80]!r}")
    if len(host) > _LONGEST_HOST or not _HOST.fullmatch(host):
        raise ValueError(f"host must be a name or an address, IPv6 in brackets, not {host[:80]!r}")
    if not all(0 < len(label) <= _LONGEST_LABEL for label in host.removesuffix(".").split(".")):
        raise ValueError(
            f"each part of a host name must have 1 to {_LONGEST_LABEL} characters, "
            f"not {host[:80]!r}"
        )
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 5):
        raise ValueError(f"port must be a number, not {digits[:20]!r}")
    port = int(digits)
    lowest = 0 if listening else 1
    if not lowest <= port <= 65535:
        raise ValueError(f"port must be from {lowest} to 65535, not {port}")
    return Address(scheme, host.strip("[]"), port)
