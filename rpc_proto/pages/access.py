"""Access to the pages: for nobody, for this machine, with a token, or for everybody."""

import re
from ipaddress import IPv6Address, ip_address

from rpc_proto.http.messages import HttpError, Request
from rpc_proto.settings import Settings

__all__ = ["ACCESS", "Pages", "check_access", "check_writer"]

ACCESS = ("off", "loopback", "token", "open")

# Headers that proxies add; the request then does not come from the other end of the connection.
_FORWARDED = ("forwarded", "via", "x-real-ip")

_HOST = re.compile(r"(?:\[([^]]*)]|([^][:]*))(?::[0-9]*)?")  # with or without a port

_ASK = [
    ("WWW-Authenticate", 'Basic realm="rpc-proto", charset="UTF-8"'),
    ("WWW-Authenticate", 'Bearer realm="rpc-proto"'),
]


class Pages(Settings):
    """Access to a server's pages: "off" for nobody, "loopback", "token" or "open" for everybody.

    "loopback" allows requests from this machine, except through a proxy that adds a header, or with
    a name in `Host` that merely resolves to it. "token" requires `token`, as `Authorization:
    Bearer` or as the password of Basic authentication, for which browsers ask.
    """

    debug: str = "loopback"
    """Access to /debug/rpc."""
    metrics: str = "open"
    """Access to /metrics."""
    token: str | None = None
    """The token for access "token"; separate from the token for calls."""

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
    """Raise HttpError 401 or 403 if access is denied; its text says how to get access."""
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


def check_writer(request: Request, with_token: bool) -> None:
    """Raise HttpError 403 if a foreign page in a browser may have sent this request.

    Programs send no `Origin`. A page may write only to its own origin. If no token is required
    (`with_token`), that origin must be an IP address or localhost, because any other name can be
    made to resolve to this machine (DNS rebinding).
    """
    headers = request.headers
    host, origin = headers.get("host", ""), headers.get("origin")
    if origin is not None:
        is_own = origin.lower() in (f"http://{host.lower()}", f"https://{host.lower()}")
        if not is_own or not (with_token or _is_no_name(_name_in(host))):
            raise HttpError(
                403,
                f"Origin is {origin[:100]!r}: pages of other origins than this server's may not "
                f"write to {request.path}, and without a token that must be an address or "
                "localhost.",
            )
    address = request.peer.address
    if with_token or not _is_loopback(address.rpartition(":")[0]):
        return
    why = _why_foreign_host(request)
    if why is not None:
        raise HttpError(
            403,
            f"You come from this machine, but {why}. Write to {request.path} with Host: "
            "localhost, or give the registry a token.",
        )


def _is_no_name(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return host == "localhost"
    return True


def _why_not_local(request: Request) -> str | None:
    """Return why a request may not come from this machine; None if it does."""
    for name in request.headers:
        if name in _FORWARDED or name.startswith("x-forwarded-"):
            return f"{name} says that this came through a proxy"
    address = request.peer.address
    if address == "unix":
        return None
    if not _is_loopback(address.rpartition(":")[0]):
        return f"you come from {address or 'nowhere'}"
    return _why_foreign_host(request)


def _why_foreign_host(request: Request) -> str | None:
    """Return why a request from this machine may come from a foreign page in a browser."""
    # A page can make its own name resolve to this machine (DNS rebinding) but cannot change Host.
    host = request.headers.get("host", "")
    name = _name_in(host)
    if name != "localhost" and not _is_loopback(name):
        return f"Host names {host[:100]!r}"
    return None


def _name_in(host: str) -> str:
    parts = _HOST.fullmatch(host)
    return (parts[1] or parts[2]).lower() if parts else ""


def _is_loopback(text: str) -> bool:
    try:
        address = ip_address(text)
    except ValueError:
        return False
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped.is_loopback
    return address.is_loopback


def _shows(authorization: str, token: str) -> bool:
    """Whether the value of an Authorization field has the token (RFC 6750, RFC 7617)."""
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
