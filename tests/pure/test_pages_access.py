"""Who may see a page: the matrix of access, peer, proxy, Host and token."""

from base64 import b64encode
from typing import Any

import pytest

from rpc_proto import Peer
from rpc_proto.http import HttpError, Pages, Request
from rpc_proto.pages.access import ACCESS, check_access

LOCAL = "127.0.0.1:50000"
TOKEN = "sesäm:open"


def answer(
    access: str, peer: str = LOCAL, host: str | None = "localhost:7000", **fields: str
) -> Any:
    """The status that a request gets, 200 if it is let in, and what it is told."""
    headers = {name.replace("_", "-"): value for name, value in fields.items()}
    if host is not None:
        headers["host"] = host
    request = Request("GET", "/debug/rpc", headers, peer=Peer(peer))
    try:
        check_access(request, access, TOKEN)
    except HttpError as error:
        return error.status, error.message, error.headers
    return 200, "", ()


def status(*args: Any, **named: Any) -> int:
    return answer(*args, **named)[0]


def basic(user: str, password: str) -> str:
    return "Basic " + b64encode(f"{user}:{password}".encode()).decode()


def as_sent(text: str) -> str:
    """A field as a request holds it: bytes that are read as latin-1."""
    return text.encode().decode("latin-1")


@pytest.mark.parametrize(
    "peer", [LOCAL, "127.8.9.10:1", "::1:50000", "::ffff:127.0.0.1:1", "::ffff:7f01:203:1", "unix"]
)
def test_loopback_lets_in_who_connects_from_this_machine(peer):
    assert status("loopback", peer) == 200


@pytest.mark.parametrize(
    "peer",
    [
        "10.0.0.7:50000",
        "0.0.0.0:1",
        "128.0.0.1:1",
        "::2:1",
        "::ffff:10.0.0.7:1",
        "fe80::1%eth0:1",
        "127.0.0.1",
        "localhost:1",
        "127.0.0.1.example.com:1",
        "",
    ],
)
def test_loopback_refuses_any_other_peer_and_says_how_to_open_the_page(peer):
    code, message, _ = answer("loopback", peer)
    assert code == 403
    assert "/debug/rpc is only for this machine" in message
    assert 'access "token" or "open"' in message


@pytest.mark.parametrize("peer", [LOCAL, "unix"])
@pytest.mark.parametrize(
    "field",
    ["forwarded", "x_forwarded_for", "x_forwarded_host", "x_forwarded_proto", "x_real_ip", "via"],
)
def test_loopback_refuses_what_came_through_a_proxy_even_if_the_field_is_empty(peer, field):
    for value in ("for=127.0.0.1", "127.0.0.1", ""):
        code, message, _ = answer("loopback", peer, **{field: value})
        assert code == 403
        assert field.replace("_", "-") in message


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("localhost", 200),
        ("LocalHost:7000", 200),
        ("localhost:", 200),
        ("127.0.0.1", 200),
        ("127.1.2.3:80", 200),
        ("[::1]", 200),
        ("[::1]:7000", 200),
        ("evil.example", 403),
        ("evil.example:7000", 403),
        ("localhost.evil.example", 403),
        ("evil.localhost", 403),
        ("127.0.0.1.evil.example", 403),
        ("127.0.0.1@evil.example", 403),
        ("localhost@evil.example", 403),
        ("127.0.0.1]evil.example", 403),
        ("[::1]evil.example", 403),
        ("[127.0.0.1].evil.example:1", 403),
        ("::1", 403),
        ("127.1", 403),
        ("2130706433", 403),
        ("0.0.0.0", 403),
        ("10.0.0.1", 403),
        ("localhost:7000, evil.example", 403),
        ("", 403),
        (None, 403),
    ],
)
def test_loopback_wants_a_host_that_cannot_be_a_name_of_somebody_else(host, expected):
    assert status("loopback", LOCAL, host) == expected
    assert status("loopback", "unix", host) == 200


@pytest.mark.parametrize(
    "shown",
    [
        f"Bearer {TOKEN}",
        f"bearer  {TOKEN} ",
        basic("", TOKEN),
        basic("anybody", TOKEN),
        basic("anybody", TOKEN).replace("Basic", "BASIC"),
    ],
)
def test_token_lets_in_who_shows_it_from_anywhere(shown):
    fields = {"authorization": as_sent(shown), "x_forwarded_for": "1.2.3.4"}
    assert status("token", "10.0.0.7:1", "evil.example", **fields) == 200


@pytest.mark.parametrize(
    "shown",
    [
        "",
        TOKEN,
        "Bearer",
        "Bearer ",
        f"Bearer {TOKEN}x",
        f"Bearer {TOKEN[:-1]}",
        "Bearer sesam:open",
        f"Token {TOKEN}",
        basic(TOKEN, ""),
        basic("user", "wrong"),
        "Basic " + b64encode(TOKEN.partition(":")[2].encode()).decode(),
        "Basic !!!",
        "Basic ä",
        "Digest username=x",
        "Bearer \u20ac",
    ],
)
def test_token_asks_who_does_not_show_it(shown):
    field = shown if shown.endswith("\u20ac") else as_sent(shown)
    code, message, headers = answer("token", LOCAL, authorization=field)
    assert code == 401
    assert "Authorization: Bearer TOKEN" in message
    assert TOKEN not in message
    assert [value.partition(" ")[0] for _, value in headers] == ["Basic", "Bearer"]


@pytest.mark.parametrize("peer", [LOCAL, "unix", "10.0.0.7:1", ""])
def test_open_lets_everybody_in(peer):
    assert status("open", peer, "evil.example", via="1.1 proxy") == 200


def test_by_default_the_debug_page_is_local_and_the_metrics_are_open():
    pages = Pages()
    assert (pages.debug, pages.metrics, pages.token) == ("loopback", "open", None)
    assert set(ACCESS) == {"off", "loopback", "token", "open"}


def test_the_token_is_not_shown_with_the_settings():
    assert TOKEN not in repr(Pages(debug="token", token=TOKEN))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            {"debug": "everybody"},
            "debug must be one of off, loopback, token, open, not 'everybody'",
        ),
        ({"metrics": None}, "metrics must be one of"),
        ({"debug": ["open"]}, "debug must be one of"),
        ({"debug": "token"}, "needs a token"),
        ({"debug": "token", "token": ""}, "a string that is not empty"),
        ({"debug": "token", "token": b"x"}, "a string that is not empty"),
        ({"token": "x"}, "protects nothing"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        Pages(**settings)


def test_a_setting_that_does_not_exist_is_refused():
    with pytest.raises(TypeError, match="Pages has no setting 'healthz'"):
        Pages(healthz="off")  # type: ignore[call-arg]
