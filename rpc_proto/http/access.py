"""Who may see the pages: nobody, this machine, whoever shows a token, or everybody."""

import re
from ipaddress import IPv6Address, ip_address

from rpc_proto.config import _Settings

from .messages import HttpError, Request

__all__ = ["ACCESS", "Pages", "check_access"]

ACCESS = ("off", "loopback", "token", "open")

# What a proxy adds; who sent the request is then not who is at the other end of the connection.
_FORWARDED = ("forwarded", "via", "x-real-ip")

_HOST = re.compile(r"(?:\[([^]]*)]|([^][:]*))(?::[0-9]*)?")  # with or without a port

_ASK = [
    ("WWW-Authenticate", 'Basic realm="rpc-proto", charset="UTF-8"'),
    ("WWW-Authenticate", 'Bearer realm="rpc-proto"'),
]


class Pages(_Settings):
    """Who may see the pages of a server: "off" for nobody, "loopback", "token" or "open".

    "loopback" is for who connects from this machine: not through a proxy that says so, and not
    with a name in `Host` that only happens to lead here. "token" is for who shows `token`, as
    `Authorization: Bearer` or as the password of Basic, which browsers ask for.
    """

    debug: str = "loopback"
    """Of /debug/rpc."""
    metrics: str = "open"
    """Of /metrics."""
    token: str | None = None
    """What those show whom "token" asks for it; not the token of the calls."""

    def _check(self) -> None:
        for name in ("debug", "metrics"):
            if getattr(self, name) not in ACCESS:
                raise ValueError(
                    f"{name} must be one of {', '.join(ACCESS)}, not {getattr(self, name)!r}"
                )
        if self.token is not None and (not isinstance(self.token, str) or not self.token):
            raise ValueError("token must be a string that is not empty")
        asked = "token" in (self.debug, self.metrics)
        if asked and self.token is None:
            raise ValueError('a page whose access is "token" needs a token')
        if self.token is not None and not asked:
            raise ValueError('a token protects nothing: no page has the access "token"')


def check_access(request: Request, access: str, token: str | None) -> None:
    """Raise HttpError 401 or 403, which says how to be let in, if this request may not."""
    if access == "loopback":
        why = _why_not_local(request)
        if why is not None:
            raise HttpError(
                403,
                f"{request.path} is only for this machine, but {why}. Ask for it from there with "
                'Host: localhost, or start the server with the access "token" or "open" for it.',
            )
    elif access == "token" and not _shows(request.headers.get("authorization", ""), token or ""):
        raise HttpError(
            401,
            f"{request.path} needs the token: as Authorization: Bearer TOKEN, or as the password "
            "of any user.",
            _ASK,
        )


def _why_not_local(request: Request) -> str | None:
    """Tell what shows that a request may not come from this machine; None if nothing does."""
    for name in request.headers:
        if name in _FORWARDED or name.startswith("x-forwarded-"):
            return f"{name} says that this came through a proxy"
    address = request.peer.address
    if address == "unix":
        return None
    if not _is_loopback(address.rpartition(":")[0]):
        return f"you come from {address or 'nowhere'}"
    # A page of a stranger can let its own name lead here (DNS rebinding); it cannot change Host.
    host = request.headers.get("host", "")
    parts = _HOST.fullmatch(host)
    name = (parts[1] or parts[2]) if parts else ""
    if name.lower() != "localhost" and not _is_loopback(name):
        return f"Host names {host[:100]!r}"
    return None


def _is_loopback(text: str) -> bool:
    try:
        address = ip_address(text)
    except ValueError:
        return False
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped.is_loopback
    return address.is_loopback


def _shows(authorization: str, token: str) -> bool:
    """Whether the value of an Authorization field holds the token (RFC 6750, RFC 7617)."""
    from base64 import b64decode
    from hmac import compare_digest

    scheme, _, shown = authorization.strip().partition(" ")
    data = shown.strip().encode("latin-1", "replace")
    if scheme.lower() == "basic":
        try:
            data = b64decode(data, validate=True).partition(b":")[2]
        except ValueError:
            return False
    elif scheme.lower() != "bearer":
        return False
    return compare_digest(data, token.encode("utf-8", "surrogatepass"))
