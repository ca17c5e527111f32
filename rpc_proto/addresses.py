"""Addresses as URLs: tcp://host:port, tls://host:port and unix:///path."""

import re
from typing import NamedTuple

__all__ = ["Address", "parse_address"]

_SCHEMES = ("tcp", "tls", "unix")
_LONGEST_HOST = 255
_LONGEST_LABEL = 63
_LONGEST_PATH = 107  # bytes: what fits into sockaddr_un with its final NUL
_HOST = re.compile(r"\[[0-9A-Fa-f:.%a-zA-Z_-]+\]|[A-Za-z0-9._-]+", re.ASCII)


class Address(NamedTuple):
    """A parsed address; `host` and `port` for tcp and tls, `path` for unix."""

    scheme: str
    host: str = ""
    port: int = 0
    path: str = ""

    def __str__(self) -> str:
        if self.scheme == "unix":
            return f"unix://{self.path}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"


def parse_address(url: str, *, listening: bool = False) -> Address:
    """Parse an address; ValueError names the value and the rule. Port 0 is only for listening."""
    scheme, separator, rest = url.partition("://")
    if not separator or scheme not in _SCHEMES:
        raise ValueError(f"address must begin with tcp://, tls:// or unix://, not {url[:80]!r}")
    if scheme == "unix":
        if not rest.startswith("/") or "\0" in rest or len(rest.encode()) > _LONGEST_PATH:
            raise ValueError(
                f"a unix address needs an absolute path of at most {_LONGEST_PATH} bytes, "
                f"not {rest[:120]!r}"
            )
        return Address(scheme, path=rest)
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
